"""A dictionary that an analysis is given: the artifact that holds it, read when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsescope.dictionaries.artifact import read_dictionary, training_of

if TYPE_CHECKING:
    from sparsescope.core.artifacts import Artifact
    from sparsescope.dictionaries.base import Dictionary


@dataclass(frozen=True)
class GivenDictionary:
    """A dictionary on disk.

    Attributes:
        artifact: Its files.
    """

    artifact: Artifact

    def load(self) -> Dictionary:
        """Read it.

        Raises:
            ArtifactError: The files are damaged.
            SpecError: They hold a dictionary of an architecture that is not read.
        """
        return read_dictionary(self.artifact)

    @property
    def training(self) -> dict[str, Any]:
        """What its training said of it: facts, census, documents; empty for one from elsewhere."""
        return training_of(self.artifact)

    @property
    def label(self) -> str:
        """A short name for tables: the name in its recipe, or the id."""
        return str(self.artifact.meta.get("name") or self.artifact.id)
