"""Columns of the tables of ``sparse_inference``."""

from __future__ import annotations

from sparsescope.core.columns import Column
from sparsescope.core.tables import LAYER, ends_of, with_interval

METHOD = Column("method", "label", "Method, with its allocation where it is not uniform.")
PREFIX = Column("prefix", "label", "Which positions are sparse; the rest is dense.")
TARGET = Column("target", "fraction", "Share of the block-matrix bytes that was asked for.")
_PAIRED = "its paired document-cluster bootstrap interval"
_REALISED = Column(
    "realised",
    "fraction",
    "Share of the block-matrix bytes that a sparse position of the held-out text did not read, adapters "
    "taken "
    "off.",
)
_DOCUMENTS = Column("documents", "count", "Held-out documents; they are the independent units.")
_TOKENS = Column("tokens", "count", "Scored targets: those that second halves of windows predict.")
_LOSS = Column("loss", "value", "Mean loss of the sparse model minus that of the dense one.", "nats")
_KL = Column("kl", "value", "Mean KL(dense || sparse) of the next token.", "nats")
_AGREE = Column("agreement", "fraction", "Share of targets for which both models name the same token.")

QUALITY = (
    METHOD,
    PREFIX,
    TARGET,
    *with_interval(_REALISED, "its document-cluster bootstrap interval", "realised_"),
    Column("mlp", "fraction", "The same share of the bytes of the MLP matrices alone."),
    Column("model", "fraction", "The same bytes as a share of all weight bytes of a decoded token."),
    *with_interval(_KL, _PAIRED, "kl_"),
    *with_interval(_LOSS, _PAIRED, "loss_"),
    Column("perplexity", "value", "exp of the mean loss of the sparse model."),
    *with_interval(_AGREE, "its document-cluster bootstrap interval", "agreement_"),
    Column("accuracy", "fraction", "Share of targets that are the most probable token."),
    _DOCUMENTS,
    _TOKENS,
)

TABLES: dict[str, tuple[Column, ...]] = {
    "quality": QUALITY,
    "comparisons": (
        PREFIX,
        TARGET,
        Column("first", "label", "Method."),
        Column("second", "label", "Method that it is compared with."),
        *with_interval(
            Column(
                "difference",
                "value",
                "KL of the first minus that of the second at equal realised bytes: those of the second; the "
                "first is interpolated between its measured points, document by document.",
                "nats",
            ),
            _PAIRED,
        ),
        *with_interval(
            Column("ratio", "value", "KL of the first / KL of the second, at equal realised bytes."),
            _PAIRED,
            "ratio_",
        ),
        Column("verdict", "label", "'first is better', 'second is better', or 'not resolved'."),
        _DOCUMENTS,
    ),
    "usable_range": (
        METHOD,
        PREFIX,
        Column("tolerance", "fraction", "Rise of the perplexity that is tolerated."),
        *(
            (
                at := Column(
                    "sparsity", "fraction", "Largest realised share of bytes within it, isotonic fit."
                )
            ),
            *ends_of(at, "its paired bootstrap interval"),
        ),
        Column("bracket", "fraction", "Distance between the two measured points around it."),
        Column("censored", "label", "'no', or why the number is only a bound."),
        _DOCUMENTS,
    ),
    "domains": (
        METHOD,
        PREFIX,
        TARGET,
        Column("domain", "domain", "Kind of text."),
        *with_interval(_KL, _PAIRED, "kl_"),
        Column("realised", "fraction", "Share of the block-matrix bytes skipped on this text."),
        _DOCUMENTS,
    ),
    "per_matrix": (
        LAYER,
        Column("role", "label", "Role of the matrix in its layer; of experts the mean over them."),
        Column("matrix", "site", "Name of the matrix."),
        METHOD,
        Column("sparsity", "fraction", "Inputs dropped by this mask on the inputs of the dense model."),
        Column(
            "error", "fraction", "E||W r||^2 / E||W x||^2, r the dropped inputs of x, on development text."
        ),
        Column(
            "diagonal", "fraction", "The same without correlations: E sum r_i^2 c_i^2 / E sum x_i^2 c_i^2."
        ),
        Column("tokens", "count", "Tokens on which it is computed."),
    ),
    "atlas": (
        METHOD,
        LAYER,
        Column("role", "label", "The input: what these matrices read."),
        Column("density", "fraction", "Share of the inputs that a token keeps."),
        Column("spread", "fraction", "Standard deviation of that share between tokens."),
        Column("reuse", "fraction", "Kept inputs of a token that the next token keeps as well."),
        Column(
            "reuse_by_chance", "fraction", "The same of masks drawn channel by channel from their frequency."
        ),
        Column("persistent", "fraction", "Channels that at least 90 % of the tokens keep."),
        Column("never", "fraction", "Channels that at most 1 % of the tokens keep."),
        Column("tokens", "count", "Tokens."),
    ),
    "unions": (
        METHOD,
        Column("role", "label", "The input, over all layers."),
        Column("together", "count", "Consecutive tokens that read the weights together."),
        Column("union", "fraction", "Inputs that at least one of them keeps."),
        Column("by_chance", "fraction", "The same of masks drawn channel by channel from their frequency."),
        Column("independent", "fraction", "1 - s^L: the same of masks of independent entries."),
        Column("tokens", "count", "Tokens."),
    ),
    "tokens": (
        Column("document", "document", "Document."),
        Column("position", "position", "Position in the document."),
        Column("token_text", "token_text", "The token."),
        Column("kept", "fraction", "Share of the block-matrix bytes that this token reads."),
        Column("kl", "value", "KL(dense || sparse) of what follows it.", "nats"),
    ),
    "accounting": (
        METHOD,
        PREFIX,
        TARGET,
        Column("block", "fraction", "Share of the block-matrix bytes not read, adapters taken off."),
        Column("model", "fraction", "Share of all weight bytes of a decoded token not read."),
        Column("flops", "fraction", "Share of the FLOPs of a decoded token not computed."),
        Column("read", "bytes", "Weight bytes that a decoded token reads.", "bytes"),
        Column("adapters", "bytes", "Of these, bytes of factors, rotations, thresholds and biases.", "bytes"),
        Column("bound", "value", "Dense bytes / bytes read: by how much decoding could be faster at most."),
    ),
    "ceilings": (
        METHOD,
        Column("ceiling", "fraction", "Largest share of the block-matrix bytes that it can skip."),
        Column("reaches", "label", "Targets that it was measured at."),
    ),
    "calibration": (
        METHOD,
        PREFIX,
        TARGET,
        Column("realised", "fraction", "Share of the bytes skipped on the calibration text."),
        Column("rounds", "count", "Times that the sparse model read the calibration text."),
        Column("seconds", "seconds", "Time for this target.", "s"),
    ),
    "choices": (
        TARGET,
        Column("role", "label", "Kind of input."),
        Column("factor", "value", "Factor on its threshold that was chosen on development text."),
        Column("centred", "label", "Whether dropped inputs fall back to the median of their channel."),
        Column("kl", "value", "KL on the development text with all that was chosen.", "nats"),
        Column("start", "value", "KL before anything was chosen.", "nats"),
        Column("passes", "count", "Passes over the development text."),
    ),
    "divergence": (
        METHOD,
        PREFIX,
        TARGET,
        *with_interval(
            Column("length", "value", "Tokens that both models write alike before the first that differs."),
            "its bootstrap interval over prompts",
        ),
        Column("never", "fraction", "Prompts whose continuations never differ."),
        Column("agreement", "fraction", "Positions at which both wrote the same token."),
        Column("prompts", "count", "Prompts."),
        Column("new", "count", "Tokens written after each prompt."),
    ),
}
