"""JSON from files that others wrote: no repeated keys, no NaN, no numbers of a thousand
digits, no deep nesting.

Python's parser takes the last of repeated keys and accepts ``NaN``; a document that two readers understand
differently is refused instead. The depth is bounded so that nothing that walks the values can overflow the
stack.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

DEPTH_LIMIT = 64
_LONGEST_NUMBER = 400


def parse(data: bytes | str, *, constants: bool = False) -> Any:
    """Parse a JSON document.

    Args:
        data: The document, UTF-8 when bytes.
        constants: Accept ``NaN``, ``Infinity`` and ``-Infinity``.

    Raises:
        ValueError: If it is not valid, with the reason. JSON's and Unicode's own errors are ValueErrors too.
    """
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    options: dict[str, Any] = {} if constants else {"parse_constant": _no_constant}
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, **options)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Refuse values that are nested deeper than ``DEPTH_LIMIT``; without recursion.

    Raises:
        ValueError: If they are.
    """
    level: list[Any] = [value]
    for _ in range(DEPTH_LIMIT):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list | tuple):
                inner += item
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {DEPTH_LIMIT} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} is there twice")
        found[key] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
