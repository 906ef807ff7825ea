"""Frozen, hashed parameters of one run.

The digest names the run: SHA-256 over canonical JSON of analysis name and version, parameters with
defaults filled in, the identity of the subject (revision, weight hash, precision of origin, compute dtype,
attention implementation, and of a variant what it adds beyond its weights) and the digest of the token
stream. The environment is recorded beside it but is not part of it; only analyses that measure time add
device, backend and threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from sparsescope.core.escaping import well_formed_values
from sparsescope.core.variant import Variant
from sparsescope.errors import SpecError, near_matches

# What of a subject changes a number; the config does: the same weights with another activation are
# another model. Its id and device do not: the same weights under another name, or on another
# device, are the same run.
SUBJECT_DIGEST_KEYS = (
    "revision",
    "weight_hash",
    "config_hash",
    "origin_precision",
    "dtype",
    "attn_implementation",
)


class Params(BaseModel):
    """Base class of the parameters of an analysis: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Spec(BaseModel):
    """Everything that names a run.

    Attributes:
        analysis: Registered name.
        version: Version of the analysis; a change of method changes it.
        params: Parameters with defaults filled in.
        subject: Identity of the subject (``SubjectIdentity.as_dict()``).
        corpus: Description of the corpus with its ``digest``, or None where none is used.
        timing: Device, backend and thread count for analyses that measure time, else None.
        inputs: Identity of every further input, by role, each with its ``digest``; None where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    analysis: str
    version: str
    params: dict[str, Any]
    subject: dict[str, Any]
    corpus: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None
    inputs: dict[str, list[dict[str, Any]]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, values: Any) -> Any:
        """A folder name that is not UTF-8 must not make the digest differ between now and the stored file."""
        return well_formed_values(values)

    @field_validator("subject")
    @classmethod
    def _described(cls, value: dict[str, Any]) -> dict[str, Any]:
        """What joins the digest must be readable before it is asked for."""
        try:
            variant_of(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, ("variant", *first["loc"])))
            raise ValueError(f"{place} is not valid: {first['msg']}") from None
        return value

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) over the canonical JSON of what changes a number."""
        subject = {key: self.subject.get(key) for key in SUBJECT_DIGEST_KEYS}
        variant = variant_of(self.subject)
        if variant is not None and variant.beyond_weights:
            subject["variant"] = variant.beyond_weights
        if self.subject.get("reading"):
            subject["reading"] = self.subject["reading"]
        named = {
            "analysis": self.analysis,
            "version": self.version,
            "params": self.params,
            "subject": subject,
            "corpus": None if self.corpus is None else self.corpus["digest"],
            "timing": self.timing,
        }
        # Only when there are any: the runs that were stored before there were keep their names
        if self.inputs:
            named["inputs"] = {
                role: [entry["digest"] for entry in entries] for role, entries in self.inputs.items()
            }
        return hashlib.sha256(canonical_json(named).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """Folder name of the run: ``<analysis>-<12 hex>``."""
        return f"{self.analysis}-{self.digest[:12]}"


def with_digest(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity with a digest of its own: a model or a series that stands beside the one under
    study gets one here.
    """
    if "digest" in identity:
        return identity
    beside = Spec(analysis="input", version="1", params={}, subject=identity)
    return {**identity, "digest": beside.digest}


def named_inputs(model: type[Params]) -> dict[str, str]:
    """Parameters that name inputs (``json_schema_extra={"role": ROLE}`` on the field), with their roles."""
    extras = {name: found.json_schema_extra for name, found in model.model_fields.items()}
    return {
        name: str(extra["role"])
        for name, extra in extras.items()
        if isinstance(extra, dict) and "role" in extra
    }


def variant_of(subject: Mapping[str, Any]) -> Variant | None:
    """Return how a described subject was made from another, None for one that was not.

    Raises:
        ValidationError: The description is malformed.
    """
    given = subject.get("variant")
    return None if given is None else Variant.model_validate(given)


def canonical_json(value: Any) -> str:
    """Serialize so that equal values give equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def make_params(
    model: type[Params],
    given: dict[str, Any],
    *,
    analysis: str,
    kind: str = "analysis",
    next_step: str | None = None,
) -> Params:
    """Validate parameters and fill in defaults.

    Args:
        model: The parameter model of the analysis.
        given: What the user set.
        analysis: Name used in messages.
        kind: What has that name, where it is no analysis.
        next_step: Where more is said of the parameters; ``sparsescope show`` when None.

    Raises:
        SpecError: For an unknown parameter (with near matches) or a value out of range.
    """
    fields = model.model_fields
    next_step = f"see: sparsescope show {analysis}" if next_step is None else next_step
    for name in given:
        if name not in fields:
            near = near_matches(name, fields)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise SpecError(
                f"unknown parameter {name!r}",
                where=f"{kind} {analysis}",
                allowed=list(fields),
                got=name,
                next_step=hint + next_step,
            )
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"parameter {name!r} is not valid",
            where=f"{kind} {analysis}",
            allowed=first["msg"],
            got=repr(first.get("input"))[:200],
            next_step=next_step,
        ) from None


def read_arguments(
    model: type[Params], text: str | None, *, name: str, example: str, kind: str, next_step: str
) -> Params:
    """Read the ARGS of a name ``KIND@ARGS:NAME``: ``3``, the value of the first parameter, or
    ``seed=3,other=x``, or both in this order.

    Args:
        model: The parameter model.
        text: What stands between ``@`` and ``:``; None where nothing does.
        name: The KIND.
        example: How such a name is written.
        kind: What has such names, for messages.
        next_step: Where more is said of the parameters.

    Raises:
        SpecError: ARGS are malformed, or name an unknown parameter or a wrong value.
    """
    given: dict[str, Any] = {}
    names = ", ".join(model.model_fields)
    for number, part in enumerate([] if text is None else text.split(",")):
        key, named, value = part.partition("=")
        if not named:
            key, value = (next(iter(model.model_fields), ""), part) if number == 0 else ("", part)
        if not key or not value or key in given:
            raise SpecError(
                f"the arguments of a {kind} cannot be read",
                where=f"{name}@{text}:",
                allowed=f"a value for the first of {names}, then NAME=VALUE" if names else "no arguments",
                got=repr(part),
                next_step=f"for example {example}; {next_step}",
            )
        given[key] = value
    return make_params(model, given, analysis=name, kind=kind, next_step=next_step)
