"""The architectures that recipes and files name, with the classes that they are. Importing this needs no
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SpecError, unknown_name

if TYPE_CHECKING:
    from sparsescope.dictionaries.autoencoder import SparseAutoencoder


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture.

    Attributes:
        name: In recipes and files.
        title: How people read it.
        home: Module and class.
        summary: One sentence.
        source: The paper.
        trained: Whether it is trained here, or only read from files.
    """

    name: str
    title: str
    home: str
    summary: str
    source: str
    trained: bool = True

    def load(self) -> type[SparseAutoencoder]:
        """The class."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(f"sparsescope.dictionaries.{module}"), name)


ARCHITECTURES = {
    entry.name: entry
    for entry in (
        Architecture("relu", "ReLU + L1", "relu:ReLUSAE", "ReLU with an L1 penalty.", "arXiv:2309.08600"),
        Architecture(
            "gated", "Gated", "gated:GatedSAE", "One path opens, another measures.", "arXiv:2404.16014", False
        ),
        Architecture(
            "topk", "TopK", "topk:TopKSAE", "The k largest scores of each row, AuxK.", "arXiv:2406.04093"
        ),
        Architecture(
            "abstopk",
            "AbsTopK",
            "topk:AbsTopKSAE",
            "The k largest magnitudes, signed.",
            "SAELens 6.54",
            False,
        ),
        Architecture(
            "batch_topk",
            "Mutual Choice (BatchTopK)",
            "choice:BatchTopKSAE",
            "The k N largest scores of a batch.",
            "arXiv:2412.06410, arXiv:2411.02124",
        ),
        Architecture(
            "feature_choice",
            "Feature Choice",
            "choice:FeatureChoiceSAE",
            "Each feature chooses its quota of rows, by a Zipf law.",
            "arXiv:2411.02124",
        ),
        Architecture(
            "jumprelu",
            "JumpReLU",
            "jumprelu:JumpReLUSAE",
            "A trained threshold for each feature.",
            "arXiv:2407.14435",
        ),
        Architecture(
            "matryoshka",
            "Matryoshka",
            "matryoshka:MatryoshkaSAE",
            "Nested prefixes of features reconstruct too.",
            "arXiv:2503.17547",
        ),
        Architecture(
            "transcoder",
            "Transcoder",
            "transcoder:Transcoder",
            "From the input of an MLP to its output.",
            "arXiv:2406.11944",
        ),
    )
}
ALIASES = {"mutual_choice": "batch_topk", "standard": "relu"}


def find_architecture(name: str) -> Architecture:
    """Return an architecture by its name, or by another name of it.

    Raises:
        SpecError: There is none.
    """
    found = ARCHITECTURES.get(ALIASES.get(name, name))
    if found is None:
        raise unknown_name(
            "architecture of a dictionary",
            str(name),
            [*ARCHITECTURES, *ALIASES],
            next_step="choose one of these",
            error=SpecError,
        )
    return found


def make(architecture: str, d_in: int, width: int, **settings: Any) -> SparseAutoencoder:
    """Make an untrained dictionary.

    Raises:
        SpecError: The architecture or a setting is unknown, or a value is not possible.
    """
    kind = find_architecture(architecture).load()
    try:
        return kind(d_in, width, **settings)
    except TypeError as error:
        raise SpecError(
            "a setting of the dictionary is unknown",
            where=f"architecture {architecture}",
            allowed=["site", "site_out", "seed", "dtype", "normalize", *kind.settings],
            got=str(error).rpartition(")")[2].strip() or str(error),
        ) from None
