"""Tables of ``steering``."""

from __future__ import annotations

from sparsescope.core.columns import Column

_METHOD = Column("method", "group", "Where the direction comes from.")
_CONCEPT = Column("concept", "domain", "Concept: a domain of the text.")

TABLES = {
    "methods": (
        _METHOD,
        Column("target", "label", "KL divergence that the strength is set for, or the try that was chosen."),
        Column(
            "lift", "value", "Mean over concepts of the lift of adding the direction, nats a token.", "nats"
        ),
        Column("low", "value", "Lower end of its interval over concepts.", "nats", low_of="lift"),
        Column("high", "value", "Upper end.", "nats", high_of="lift"),
        Column("positive", "fraction", "Concepts whose lift is above zero."),
        Column("contrast", "value", "Half of the lift of adding minus that of subtracting.", "nats"),
        Column(
            "contrast_low", "value", "Lower end of its interval over concepts.", "nats", low_of="contrast"
        ),
        Column("contrast_high", "value", "Upper end.", "nats", high_of="contrast"),
        Column("cost", "value", "Rise of the loss on text of other concepts, nats a token.", "nats"),
        Column("reached", "fraction", "Tries whose divergence is within 5 % of the target."),
        Column("concepts", "count", "Concepts."),
        Column("tries", "count", "Tries for each concept."),
    ),
    "comparisons": (
        Column("first", "group", "A method."),
        Column("second", "group", "Another."),
        Column("target", "label", "KL divergence, or the try that was chosen."),
        Column("measure", "metric", "lift or contrast."),
        Column("difference", "value", "The first minus the second, mean over concepts.", "nats"),
        Column("low", "value", "Lower end of its interval, paired by concept.", "nats", low_of="difference"),
        Column("high", "value", "Upper end.", "nats", high_of="difference"),
        Column("concepts", "count", "Concepts."),
    ),
    "detection": (
        _METHOD,
        Column(
            "auroc",
            "value",
            "Mean over concepts: documents of the concept told from others by the direction.",
        ),
        Column("low", "value", "Lower end of its interval over concepts.", low_of="auroc"),
        Column("high", "value", "Upper end.", high_of="auroc"),
        Column("concepts", "count", "Concepts."),
        Column("documents", "count", "Documents that they are told apart on."),
    ),
    "tries": (
        _CONCEPT,
        _METHOD,
        Column("direction", "label", "Feature that gives the direction, where one does."),
        Column("sign", "value", "Whether it is added or subtracted."),
        Column("target", "value", "KL divergence that the strength is set for.", "nats"),
        Column("achieved", "value", "KL divergence on the text that strengths are set on.", "nats"),
        Column("strength", "value", "What is added, in median norms of the activations."),
        Column("status", "label", "reached, or not reached."),
        Column("lift", "value", "Fall of the loss on text of the concept minus that on other text.", "nats"),
        Column("own", "value", "Fall of the loss on text of the concept.", "nats"),
        Column("others", "value", "Fall of the loss on text of other concepts.", "nats"),
        Column("train_lift", "value", "Lift on the training documents, by which a try is chosen.", "nats"),
    ),
    "concepts": (
        _CONCEPT,
        _METHOD,
        Column("direction", "label", "Feature that gives the direction, where one does."),
        Column("lift", "value", "Lift of the try that was chosen on training documents.", "nats"),
        Column("contrast", "value", "Contrast, mean over the divergences.", "nats"),
        Column("auroc", "value", "Documents of the concept told from others by the direction."),
        Column("train_auroc", "value", "The same on the documents that it was chosen on."),
    ),
}
