"""A dictionary as an artifact: a folder that SAELens loads (of an SNMF, its own two files), and beside it
``training.json`` with what its training said of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sparsescope.errors import ArtifactError

if TYPE_CHECKING:
    from sparsescope.core.artifacts import Artifact
    from sparsescope.dictionaries.base import Dictionary

KIND = "dictionary"
TRAINING = "training.json"


def keep_dictionary(
    dictionary: Dictionary,
    keep: Callable[..., Any],
    *,
    training: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Artifact:
    """Keep a dictionary as an artifact.

    Args:
        dictionary: With the rule that is exported, or one that has one (``to_inference``).
        keep: ``ArtifactStore.keep``.
        training: What its training said: ``facts``, ``census``, ``documents``.
        meta: Short facts for lists; name, site, architecture, width are filled in.

    Raises:
        SpecError: The dictionary has no rule to export.
        ArtifactError: The disk refuses.
    """
    from sparsescope.dictionaries.snmf import SNMFDictionary

    facts = {
        "architecture": dictionary.architecture,
        "site": dictionary.site,
        "d_in": dictionary.d_in,
        "width": dictionary.width,
        **(meta or {}),
    }
    if isinstance(dictionary, SNMFDictionary):
        with keep(KIND, format="snmf", meta=facts) as writer:
            dictionary.snmf.save(writer.folder, {"site": dictionary.site})
            _write_training(writer, training)
    else:
        from sparsescope.dictionaries.interchange import save_saelens

        exported = dictionary.to_inference()
        with keep(KIND, format="saelens", meta=facts) as writer:
            save_saelens(exported, writer.folder)
            _write_training(writer, training)
    return writer.artifact


def _write_training(writer: Any, training: Mapping[str, Any] | None) -> None:
    if training:
        writer.write(TRAINING, json.dumps(training, allow_nan=False).encode())


def read_dictionary(artifact: Artifact) -> Dictionary:
    """Read a dictionary; see ``GivenDictionary.load``."""
    if artifact.format == "snmf":
        from sparsescope.dictionaries.snmf import SNMF, SNMFDictionary
        from sparsescope.dictionaries.snmf.file import provenance

        site = provenance(artifact.path, SNMF).get("site") or artifact.meta.get("site")
        return SNMFDictionary(SNMF.load(artifact.path), str(site or ""))
    from sparsescope.dictionaries.interchange import load_dictionary

    return load_dictionary(artifact.path)


def training_of(artifact: Artifact) -> dict[str, Any]:
    """What its training said; empty where nothing is known.

    Raises:
        ArtifactError: The file is damaged.
    """
    path = artifact.path / TRAINING
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(
            "what the training said of this dictionary cannot be read", where=str(path), got=str(error)
        ) from None
    return found
