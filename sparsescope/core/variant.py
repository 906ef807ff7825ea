"""What a subject that was made from another says about its making: plain values that identities,
manifests and pages share.

A variant changes a model in its weights, which have a hash of their own, or beyond them: by thresholds,
masks or hooks that weights and configuration do not show. ``adds`` is the hash of what is beyond. Only that
joins the digest of a run: the same weights computed in the same way are the same run, however they were
made. Variants nest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from sparsescope.errors import SpecError


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Parent(_Record):
    """The subject that a variant was made of.

    Attributes:
        id: Its name.
        revision: Its revision, or None.
        weight_hash: SHA-256 of its weights, hex.
        config_hash: SHA-256 of its configuration, hex.
        variant: What it was made of in turn, where it is a variant itself.
    """

    id: str
    revision: str | None
    weight_hash: str
    config_hash: str
    variant: Variant | None = None


class Variant(_Record):
    """How a subject was made from another.

    Attributes:
        kind: What was done, for example ``shuffled``.
        parameters: With what parameters, as JSON values.
        adds: Hash of what it adds beyond weights and configuration; empty where it adds nothing.
        parent: The subject that it was made of.
    """

    kind: str
    parameters: dict[str, Any]
    adds: str
    parent: Parent

    @property
    def chain(self) -> tuple[Variant, ...]:
        """This variant, the variant that it was made of, and so on."""
        return (self,) if self.parent.variant is None else (self, *self.parent.variant.chain)

    @property
    def beyond_weights(self) -> list[dict[str, Any]]:
        """What joins the digest of a run: the members of the chain that add something,
        without their parents.
        """
        return [one.model_dump(mode="json", exclude={"parent"}) for one in self.chain if one.adds]

    @property
    def text(self) -> str:
        """What it is in words: ``shuffled(seed=3) of smollm2-135m``."""
        return f"{self.kind}({arguments_text(self.parameters)}) of {self.parent.id}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a parent that is no variant has no such key."""
        return self.model_dump(mode="json", exclude_defaults=True)


def json_parameters(kind: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of a variant as JSON gives them back.

    Raises:
        SpecError: They are no JSON values.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(parameters), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SpecError(
            "parameters of a variant are JSON values", where=f"variant {kind}", got=str(error)
        ) from None
    return plain


def arguments_text(parameters: dict[str, Any]) -> str:
    """Write parameters as the command line takes them: ``seed=3,exact=true``."""
    return ",".join(f"{name}={argument_text(value)}" for name, value in parameters.items())


def argument_text(value: Any) -> str:
    """Write one value of a parameter as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
