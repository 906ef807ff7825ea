"""Columns of the tables of ``dictionary_quality``."""

from __future__ import annotations

from sparsescope.core.columns import Column
from sparsescope.core.tables import LAYER, SITE, with_interval

NAME = Column("dictionary", "label", "Name of the dictionary, or of what stands in its place.")
KIND = Column(
    "kind",
    "label",
    "'dictionary'; 'baseline' that nobody trained, with as many active features; 'ablation' of the whole "
    "site.",
)
L0 = Column("l0", "value", "Mean active features of a token, of the rule that is exported, on these tokens.")
FVU = Column(
    "fvu",
    "value",
    "Fraction of variance unexplained: sum |x - r|^2 / sum |x - mean|^2, mean of each dimension over all "
    "evaluation tokens.",
)
DOCUMENTS = Column("documents", "count", "Documents; they are the independent units.")
TOKENS = Column("tokens", "count", "Tokens counted.")
_PAIRED = "its document-cluster bootstrap interval, paired by document"


def _known(name: str, kind: str, text: str, unit: str = "") -> Column:
    """A column of what only the training of a dictionary can say."""
    return Column(name, kind, f"{text} NaN where that is not known.", unit)


TABLES: dict[str, tuple[Column, ...]] = {
    "quality": (
        NAME,
        KIND,
        Column("architecture", "label", "The rule that says which features are active."),
        LAYER,
        SITE,
        Column("target", "site", "What is reconstructed; another site than is read of a transcoder."),
        Column("width", "count", "Features."),
        L0,
        *with_interval(FVU),
        Column("explained_variance", "value", "1 - FVU."),
        Column("cosine", "value", "Mean of <x, r> / (|x| |r|)."),
        Column("l2_ratio", "value", "Mean of |r| / |x|."),
        Column("bias", "value", "sum |r|^2 / sum <x, r>; below 1 the reconstruction shrinks."),
        Column("dead_share", "fraction", "Features that are active on none of these tokens."),
        Column(
            "rare_below", "fraction", "A feature rarer than this looks dead on so few tokens (95 % bound)."
        ),
        Column("dense_share", "fraction", "Features that are active on more than 10 % of the tokens."),
        _known(
            "training_dead_share",
            "fraction",
            "Features that were active on none of the tokens counted after training.",
        ),
        _known("training_fvu", "value", "FVU on the tokens that it was trained on."),
        Column("gamma", "value", "|mean| / root of the variance of the site (arXiv:2605.31518)."),
        _known("born_dead_raw", "fraction", "Features that the untrained dictionary never chose."),
        _known("born_dead_centred", "fraction", "The same with the mean taken out."),
        Column("thresholds", "label", "Where its thresholds come from."),
        DOCUMENTS,
        TOKENS,
    ),
    "comparisons": (
        Column("first", "label", "Dictionary."),
        Column("second", "label", "What it is compared with."),
        Column("measure", "metric", "'FVU', or 'loss' for the rise of the loss when spliced in, in nats."),
        SITE,
        Column("first_l0", "value", "L0 of the first."),
        Column("second_l0", "value", "L0 of the second."),
        Column("equal_l0", "label", "'yes' where they differ by less than 10 %."),
        *with_interval(
            Column("difference", "value", "The measure of the first minus that of the second."), _PAIRED
        ),
        Column(
            "verdict",
            "label",
            "'first is better', 'second is better', 'not distinguishable', or 'more active features', which "
            "the better one has, so that nothing follows.",
        ),
        DOCUMENTS,
    ),
    "families": (
        Column("family", "label", "Dictionaries that differ by their seed alone."),
        SITE,
        Column("seeds", "count", "How many."),
        Column("l0", "value", "Mean of their L0."),
        Column("fvu", "value", "Mean of their FVU."),
        Column("fvu_least", "value", "The smallest.", low_of="fvu"),
        Column("fvu_most", "value", "The largest.", high_of="fvu"),
        Column(
            "dead_counted",
            "count",
            "Tokens counted: as many as after each training, or, where that is not known, those scored here.",
        ),
        Column(
            "dead_share",
            "fraction",
            "Mean share of features that were active on none of the tokens counted.",
        ),
        Column("dead_least", "fraction", "The smallest.", low_of="dead_share"),
        Column("dead_most", "fraction", "The largest.", high_of="dead_share"),
    ),
    "rules": (
        Column("first", "label", "Dictionaries that differ by their seed alone."),
        Column("second", "label", "Others, of the same seeds, with the same number of active features."),
        SITE,
        Column("seeds", "count", "Seeds that both have."),
        Column("first_l0", "value", "Mean L0 of the first."),
        Column("second_l0", "value", "Mean L0 of the second."),
        *with_interval(
            Column("difference", "value", "FVU of the first minus that of the second, mean over seeds."),
            _PAIRED,
        ),
        Column("least", "value", "The smallest difference of one seed."),
        Column("most", "value", "The largest difference of one seed."),
        Column(
            "verdict",
            "label",
            "'first is better' or 'second is better' where the interval and every seed say so; 'seeds "
            "disagree'; 'not distinguishable'.",
        ),
        DOCUMENTS,
    ),
    "splice": (
        NAME,
        KIND,
        LAYER,
        SITE,
        L0,
        FVU,
        *with_interval(
            Column(
                "rise",
                "value",
                "Mean loss with this in place of the activations minus the loss of the model as it is.",
                "nats",
            ),
            _PAIRED,
            "rise_",
        ),
        *with_interval(
            Column("divergence", "value", "Mean KL(model || spliced model) of the next token.", "nats"),
            prefix="divergence_",
        ),
        *with_interval(
            Column("recovered", "value", "1 - rise / zero_rise; it saturates, so look at the rise."),
            _PAIRED,
            "recovered_",
        ),
        Column("zero_rise", "value", "Its denominator: the rise where the site is set to zero.", "nats"),
        DOCUMENTS,
        Column("tokens", "count", "Targets."),
    ),
    "densities": (
        NAME,
        KIND,
        Column("density_from", "fraction", "Lower edge: share of the tokens on which a feature is active."),
        Column("density_to", "fraction", "Upper edge."),
        Column("features", "count", "Features in between."),
        Column("share", "fraction", "The same / all features of the dictionary, dead ones included."),
    ),
    "dead_curve": (
        NAME,
        Column("counted", "label", "'evaluation' tokens, or those counted after 'training'."),
        Column("tokens", "count", "Tokens looked at."),
        Column("dead_share", "fraction", "Features that were active on none of them."),
    ),
    "probing": (
        NAME,
        KIND,
        Column("task", "label", "What the probe has to say of a token."),
        Column("features", "count", "Features that the probe may use."),
        Column("balanced_accuracy", "fraction", "Mean of the two recalls on documents not fitted on."),
        Column("null", "fraction", "The same for permuted labels, mean over permutations."),
        Column("auroc", "fraction", "Area under the ROC curve."),
        Column("f1", "fraction", "F1 of the label."),
        Column("accuracy", "fraction", "Share of tokens that the probe is right about."),
        Column("majority", "fraction", "The same of saying nothing: rate of the more frequent class."),
        Column("positives", "count", "Tokens with the label among those not fitted on."),
        TOKENS,
    ),
    "absorption": (
        NAME,
        Column("parameters", "label", "'paper' or 'code': two sets are in use, with other numbers."),
        Column("letter", "label", "First letter; 'mean' over those that were evaluated."),
        Column("probe_f1", "fraction", "F1 of the linear probe on tokens not fitted on."),
        Column("main_features", "count", "Features that stand for the letter."),
        Column("main_f1", "fraction", "F1 of the probe on them."),
        Column("fired", "count", "Tokens of the letter on which the linear probe fires."),
        Column("full", "fraction", "Share of these on which another feature carries the letter alone."),
        Column("fraction", "fraction", "Mean share of the letter that other features carry."),
        Column("letters", "count", "Letters evaluated."),
    ),
    "seeds": (
        Column("first", "label", "Dictionary."),
        Column("second", "label", "Another one of the same architecture, width and site."),
        Column("architecture", "label", "Of both."),
        Column("width", "count", "Features of each."),
        Column("mcc", "value", "Mean cosine of the best one-to-one matching of their directions."),
        Column("chance", "value", "The same of random directions, uniform on the sphere."),
        Column(
            "chance_data", "value", "The same of random directions with the covariance of the activations."
        ),
        Column(
            "forward", "value", "MMCS: mean largest cosine of the first's directions with any of the second."
        ),
        Column("backward", "value", "The same from the second to the first."),
        Column("stable_70", "fraction", "Matched pairs with a cosine of 0.7 or more."),
        Column("stable_90", "fraction", "The same for 0.9."),
        Column("used_70", "fraction", "The same as stable_70, each pair counted by how often it is active."),
        Column("exact", "label", "Whether all pairs were candidates of the matching."),
    ),
    "frequency_fit": (
        NAME,
        KIND,
        Column("exponent", "value", "alpha of density ~ (rank + shift)^-alpha; 1 is Zipf's law."),
        Column("shift", "value", "How many of the first features are about equally frequent."),
        Column("r2", "value", "Share of the variance of log density that the law explains."),
        Column("fitted", "count", "Features in the fit."),
        Column("left_out", "count", "Active features too rare to know their density."),
    ),
    "cost": (
        Column("step", "label", "What was done."),
        Column("seconds", "seconds", "Time that it took here.", "s"),
        TOKENS,
    ),
}
