"""What a registered subject is, what its loader gets and what it gives back. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsescope.core.named_code import Owner, named_function

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: In the precision of origin of a pruned model: ``float32 (pruned from gguf:Q4_1)``.
PRUNED_FROM = " (pruned from "


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What the caller of ``load`` asked for.

    Attributes:
        name: The registered name, path or hub id, without ``@revision``.
        revision: Branch, tag or commit on the hub; ``seed-N`` for random subjects; or None.
        dtype: One of ``catalog.DTYPES``.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        attn_implementation: One of ``catalog.ATTENTION``, or None for the choice of transformers.
        trust_remote_code: Whether code from the model repository may run.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    attn_implementation: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a loader gives back.

    Attributes:
        model: A HF model in evaluation mode, on CPU, in the requested dtype.
        tokenizer: Its fast tokenizer, or None.
        revision: The revision that was really loaded (commit hash, package version, seed) or None.
        origin_precision: Precision of the stored weights, for example ``gguf:Q4_1``.
    """

    model: PreTrainedModel
    tokenizer: Any
    revision: str | None
    origin_precision: str


@dataclass(frozen=True, slots=True)
class SubjectEntry:
    """One registered subject.

    Attributes:
        name: Registered name.
        summary: One line for listings.
        license: License of the weights.
        origin: Where the weights come from.
        precision: Precision of origin.
        loader: ``"module:function"`` or a callable; takes a ``LoadRequest``, gives a ``LoadedModel``.
    """

    name: str
    summary: str
    license: str
    origin: str
    precision: str
    loader: str | Callable[[LoadRequest], LoadedModel]

    def load(self, request: LoadRequest) -> LoadedModel:
        """Call the loader, importing it first when it is given by name.

        Raises:
            SpecError: There is no such loader.
        """
        loader = self.loader
        if isinstance(loader, str):
            owner = Owner(f"subject {self.name}", "Add a subject or a corpus", "check_subject")
            loader = named_function(loader, "(request)", owner, "loader")
        return loader(request)
