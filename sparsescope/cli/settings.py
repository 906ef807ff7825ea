"""Parameters of an analysis as they are written on the command line: ``--set NAME=VALUE``.

A value stays text until the parameter model reads it, so that the type of the parameter decides what ``1e3``,
``true`` or ``5`` means. Only lists (``0.5,0.9`` or ``[0.5, 0.9]``) and ``none`` are told apart here, again by
the type of the parameter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from sparsescope.core.spec import Params, make_params
from sparsescope.errors import SpecError


def parse_set(pairs: Sequence[str], model: type[Params], *, analysis: str) -> dict[str, Any]:
    """Turn NAME=VALUE into parameters and check them.

    Args:
        pairs: What was given with ``--set``.
        model: Parameter model of the analysis.
        analysis: Name used in messages.

    Returns:
        What was set, by name; the defaults are not filled in.

    Raises:
        SpecError: For a pair of another form, an unknown parameter, or a value that is not valid.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise SpecError(
                "a parameter is set as NAME=VALUE",
                where="--set",
                got=repr(pair),
                next_step="for example: --set seed=1",
            )
        field = model.model_fields.get(name)
        found[name] = text if field is None else _value(text, field.annotation)
    make_params(model, found, analysis=analysis)
    return found


def _value(text: str, annotation: Any) -> Any:
    """The text, or its comma-separated parts for a parameter that is a list, or None where that is meant."""
    kinds = set(_kinds(annotation))
    if type(None) in kinds and text.lower() == "none":
        return None
    if kinds & {tuple, list} and (_is_list(text) or "," in text or str not in kinds):
        try:
            listed = json.loads(text) if _is_list(text) else None
        except ValueError:  # a list without the quotes of JSON
            listed = None
        inner = text.strip()[1:-1] if _is_list(text) else text
        return listed if isinstance(listed, list) else [part.strip() for part in inner.split(",")]
    return text


def _is_list(text: str) -> bool:
    """Whether it is written as Python and JSON write a list: ``[0.5, 0.9]``."""
    return text.strip()[:1] + text.strip()[-1:] in ("[]", "()")


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation admits at its top: ``str | tuple[float, ...]`` gives str and tuple."""
    origin = get_origin(annotation)
    if origin in (tuple, list):
        yield origin
    elif origin is Literal:
        yield str
    elif origin is None:
        yield annotation
    else:  # a union or Annotated; what annotates a type does no harm
        for part in get_args(annotation):
            yield from _kinds(part)
