"""The probe set of a checkpoint series as a corpus: the held-out text on which its checkpoints are compared.

A series of language models carries windows of its validation documents, fixed by digest. Windows of one
document stand together, so that statistics resample documents; each window is one sequence for the model, as
it was cut. They are not tokenized again: what the checkpoints read here is what the trainer measured them on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.activations.text.digests import stream_digest
from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument
from sparsescope.activations.text.vocabulary import padding_id, vocabulary_hash
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.models.checkpoints import CheckpointSeries


def probe_corpus(series: CheckpointSeries) -> TokenizedCorpus:
    """Return the probe set of a series of language models.

    Args:
        series: A series of our own trainer whose data are text.

    Returns:
        Documents in the order of the probe set; the context is the length of its windows; no special tokens.

    Raises:
        SpecError: The series carries no probe set, or one that is no text.
        ArtifactError: It is damaged.
    """
    from sparsescope.models.zoo.byte_tokenizer import byte_tokenizer

    content = series.trained
    if content is None or content.data.get("kind") != "byte_text":
        kind = "carries no text of its own" if content is None else "has no text: its models read residues"
        raise SpecError(
            f"this series {kind}",
            where=series.name,
            allowed="a series with a probe set of text, or a corpus that is given",
            next_step=(
                'give the text: ss.run(..., corpus=ss.corpus("python-docs")), on the command '
                "line --corpus python-docs"
            )
            if content is None
            else "take a series of language models, for example lazy-relu",
        )
    probe = series.probe()
    described = content.data["domains"]
    names, width = list(described), probe.tokens.shape[1]
    domain, document = probe.fields["domain"], probe.fields["document"]
    documents: list[TokenizedDocument] = []
    for place, number in sorted({(int(d), int(n)) for d, n in zip(domain, document, strict=True)}):
        rows = probe.tokens[(domain == place) & (document == number)]
        ids = rows.reshape(-1).astype(np.int32)
        documents.append(
            TokenizedDocument(len(documents), f"{names[place]}/{number}", names[place], ids, whole=False)
        )
    tokenizer = byte_tokenizer(width)
    vocabulary = vocabulary_hash(tokenizer)
    licenses = {name: str(entry.get("license", "not stated")) for name, entry in described.items()}
    provenance = {
        "name": f"held-out text of {series.name}",
        "license": ", ".join(dict.fromkeys(licenses.values())),
        "domains": {name: {"license": licenses[name]} for name in names},
        "context": width,
        "notes": ["windows of validation documents, which the training never read"],
    }
    return TokenizedCorpus(
        name=provenance["name"],
        documents=tuple(documents),
        domains=tuple(names),
        context=width,
        prefix=(),
        suffix=(),
        pad_id=padding_id(tokenizer),
        tokenizer_hash=vocabulary,
        digest=stream_digest(probe.digest, vocabulary, (), (), documents),
        provenance=provenance,
    )


def check_probes(series: Sequence[CheckpointSeries], corpus: TokenizedCorpus) -> bool:
    """Refuse series that carry different texts; say whether this text is what the first one carries.

    Args:
        series: Series whose losses are compared.
        corpus: What they read.

    Raises:
        SpecError: They carry different texts.
    """
    first = series[0].trained
    if (
        first is None
        or first.data.get("kind") != "byte_text"
        or probe_corpus(series[0]).digest != corpus.digest
    ):
        return False
    for one in series[1:]:
        own = None if one.trained is None else one.trained.probe_digest
        if own != first.probe_digest:
            raise SpecError(
                "the series carry different held-out texts, so that their losses cannot be compared",
                where=one.name,
                allowed=f"the probe set of {series[0].name}, {first.probe_digest[:12]}",
                got="none" if own is None else own[:12],
                next_step="train them on the same corpora with the same split_seed, or give a text that none "
                "of them was trained on: --corpus NAME",
            )
    return True
