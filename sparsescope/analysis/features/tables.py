"""Tables of ``features``."""

from __future__ import annotations

from sparsescope.core.columns import Column

_DICTIONARY = Column("dictionary", "group", "Dictionary that the feature is of.")
_NAME = Column("name", "label", "The feature: dictionary and number.")

TABLES = {
    "features": (
        _NAME,
        _DICTIONARY,
        Column("feature", "feature", "Number of the feature in its dictionary."),
        Column("label", "label", "What it fires on: the short set of tokens, or the class, that tells most."),
        Column(
            "auroc",
            "value",
            "How well the label predicts firing on documents that it was not made from: area under the ROC "
            "curve, 0.5 for nothing.",
        ),
        Column("auroc_low", "value", "Lower end of its interval.", low_of="auroc"),
        Column("auroc_high", "value", "Upper end of its interval.", high_of="auroc"),
        Column("auroc_control", "value", "The same for the label of another feature that is about as dense."),
        Column("recall", "fraction", "Firings on those documents that the label covers."),
        Column("precision", "fraction", "Tokens that the label names on which it fires."),
        Column("density", "fraction", "Share of the tokens on which it is active."),
        Column("fires", "fraction", "Share of the tokens on which it fires: is active above its threshold."),
        Column("mean", "value", "Mean activation where it is active."),
        Column("max", "value", "Largest activation."),
        Column("purity", "fraction", "Share of the 50 strongest activations that are on one token type."),
        Column("strongest", "label", "Tokens of the strongest activations, the most frequent first."),
        Column("raises", "label", "Tokens whose logits its direction raises most."),
        Column("lowers", "label", "Tokens whose logits its direction lowers most."),
        Column("domain", "domain", "Domain in which it fires most often."),
        Column("domain_ratio", "value", "Rate of firing there / rate in the whole text."),
        Column(
            "domain_fdr",
            "value",
            "Smallest false discovery rate at which its link with domains is found.",
        ),
        Column("nearest", "label", "Feature of the same dictionary with the nearest direction."),
        Column("nearest_cosine", "value", "Cosine of the two directions."),
        Column("fires_with", "label", "Feature of the same dictionary that fires on the same tokens most."),
        Column("fires_with_jaccard", "fraction", "Tokens on which both fire / on which one of them does."),
    ),
    "map": (
        _NAME,
        _DICTIONARY,
        Column("label", "label", "What it fires on."),
        Column("domain", "domain", "Domain that its firing is linked with; empty for none."),
        Column("nearest_cosine", "value", "Cosine with the nearest direction of the dictionary."),
        Column("x", "value", "Place, first axis."),
        Column("y", "value", "Place, second axis."),
    ),
    "label_scores": (
        _DICTIONARY,
        Column("kind", "group", "Whether it was trained (dictionary) or not (baseline)."),
        Column("predictor", "group", "What predicts firing: its own label, or a control."),
        Column("features", "count", "Features that are scored."),
        Column("median", "value", "Median over features of the area under the ROC curve."),
        Column("low", "value", "Lower end of its interval.", low_of="median"),
        Column("high", "value", "Upper end of its interval.", high_of="median"),
        Column("lower_quarter", "value", "A quarter of the features are below."),
        Column("upper_quarter", "value", "A quarter of the features are above."),
        Column("above_90", "fraction", "Share of the features above 0.9."),
        Column("documents", "count", "Documents that they are scored on."),
    ),
    "label_kinds": (
        _DICTIONARY,
        Column("kind", "group", "What the label is made of."),
        Column("features", "count", "Features with such a label."),
        Column("median", "value", "Median of their areas under the ROC curve."),
    ),
    "densities": (
        _DICTIONARY,
        Column("density_from", "fraction", "Lower edge."),
        Column("density_to", "fraction", "Upper edge."),
        Column("features", "count", "Features that are active on a share of the tokens between the edges."),
        Column("share", "fraction", "The same / all features."),
    ),
    "domains": (
        _DICTIONARY,
        Column("domain", "domain", "Domain."),
        Column("features", "count", "Features whose link with domains is found, and that fire here most."),
        Column("share", "fraction", "The same / features that fire."),
        Column("null_share", "fraction", "The same where domains were dealt to documents at random."),
        Column("documents", "count", "Documents of the domain."),
    ),
    "contexts": (
        _NAME,
        Column("context", "count", "Number of the context of the feature."),
        Column("group", "group", "Which activations it was drawn from."),
        Column("document", "document", "Document."),
        Column("position", "position", "Position of the token in the document."),
        Column("token_text", "token_text", "The token."),
        Column("value", "value", "Activation."),
        Column("peak", "count", "1 for the token that the context was drawn for."),
    ),
    "counterparts": (
        _NAME,
        Column("other", "group", "Another dictionary."),
        Column("counterpart", "label", "Its feature that is active most alike."),
        Column("correlation", "value", "Pearson's correlation of the two over the same tokens."),
    ),
    "neurons": (
        _NAME,
        Column("neuron", "neuron", "Neuron of the site."),
        Column("weight", "value", "Its entry in the direction of the feature."),
        Column("share", "fraction", "Its magnitude / sum of the magnitudes of the direction."),
    ),
    "sharing": (
        _DICTIONARY,
        Column("used_by", "count", "Features that use a neuron."),
        Column("neurons", "count", "Neurons that so many use."),
        Column("expected", "value", "The same if each feature drew its neurons at random."),
    ),
    "shared_pairs": (
        Column("first", "label", "A feature."),
        Column("second", "label", "Another."),
        Column("shared", "count", "Neurons of both."),
        Column("jaccard", "fraction", "The same / neurons of one of them."),
        Column("fdr", "value", "Smallest false discovery rate at which the pair is found (hypergeometric)."),
    ),
    "levels": (
        _DICTIONARY,
        Column("level", "count", "Level of the hierarchy; the dictionary itself is level 0."),
        Column("components", "count", "Components of the level."),
        Column("explained", "fraction", "Variance of the activations that its components explain."),
    ),
    "tree": (
        _DICTIONARY,
        Column("level", "count", "Level of the parent."),
        Column("parent", "label", "Component of the level."),
        Column("child", "label", "Component of the level below."),
        Column("weight", "value", "How much the child holds of the parent."),
        Column("label", "label", "Label of the child, where it is a feature of the dictionary."),
    ),
}
