"""The variant ``sparsified``: ``sparsified@method=wina,target=0.5:smollm2-135m``, without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from sparsescope.core.spec import Params
from sparsescope.errors import SparsescopeError
from sparsescope.inference.methods import read_method
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.models.variants import VariantKind

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject


class SparsifiedParams(Params):
    """Parameters of ``sparsified``."""

    target: float = Field(0.4, ge=0, lt=1, description="Share of the block-matrix bytes that is not read.")
    method: str = Field("auto", description="METHOD[+ALLOCATION]: teal, wina, was+blocks, auto, ...")
    prefix: str = Field(
        "all_sparse",
        description="all_sparse, decode_only, dense_first_n=N or dense_fraction=F.",
    )
    calibration: str = Field(
        "", description="A kept calibration, calibration-<12 hex>, or its folder, in place of the rest."
    )
    corpus: str = Field("python-docs+python-source", description="Calibration text.")
    tokens: int = Field(8192, ge=64, le=10_000_000, description="Its tokens.")
    seed: int = Field(0, ge=0, description="Draws its documents.")

    @field_validator("method")
    @classmethod
    def _method(cls, value: str) -> str:
        try:
            read_method(value)
        except SparsescopeError as error:
            raise ValueError(f"{error.what}; allowed: {error.allowed}") from None
        return value

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        try:
            return PrefixPolicy.of(value).text.replace(":", "=")
        except SparsescopeError as error:
            raise ValueError(f"{error.what}; allowed: {error.allowed}") from None


def make(subject: Subject, params: SparsifiedParams) -> Subject:
    """Make the variant ``sparsified`` of a subject, which stays as it is.

    Raises:
        SpecError: The method cannot reach the target.
        SubjectError: The subject is not fit for the method, or the calibration is of another model.
        ArtifactError: There is no such calibration.
    """
    from sparsescope.activations.corpus import corpus
    from sparsescope.inference.sparsifier import find_calibration, sparsify

    policy = PrefixPolicy.of(params.prefix)
    if params.calibration:
        found = find_calibration(params.calibration)
        made = found.apply(subject, None if "prefix" not in params.model_fields_set else policy)
    else:
        text = corpus(params.corpus, tokens=params.tokens, seed=params.seed)
        made = sparsify(subject, params.method, params.target, text, policy)
    assert made.variant is not None
    named = params.model_dump(mode="json", exclude_defaults=True) or {"target": params.target}
    return made.with_variant("sparsified", named, of=subject, adds=made.variant.adds)


KIND = VariantKind(
    "sparsified",
    "sparse inference: inputs of the block matrices are masked token by token; "
    "sparsified@0.5:NAME leaves half of their bytes unread",
    SparsifiedParams,
    "sparsescope.inference.variant:make",
)
