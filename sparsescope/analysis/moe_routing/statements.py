"""What the routing of a mixture shows, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.numbers import Scalar
from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, said, said_value

TITLES = {
    "normalized_entropy": "Balance of the load",
    "max_violation": "Worst overload (MaxVio)",
    "dead_experts": "Experts without a token",
    "excess": "Domain information",
    "excess_given_token": "Domain information, token known",
    "against_shuffled": "Beyond shuffled routers",
    "specialist_effect": "Effect of specialists",
    "shared_by_neighbors": "Experts shared by neighbors",
    "shared_by_chance": "Shared by chance",
    "experts": "Experts of a layer",
    "experts_per_token": "Experts per token",
    "tokens": "Tokens",
    "documents": "Documents",
}


def statements(result: Result) -> list[Statement]:
    """Whether experts specialize in domains, whether the specialists matter, and how local routing is."""
    return [*_specialization(result), *_specialists(result), *_locality(result)]


def _sign(number: Scalar, above: str, below: str, open_: str) -> str:
    """What a difference says, as far as its interval allows."""
    ends = number.interval
    if ends is None:
        return " (no interval)"
    return f": {above if ends.low > 0 else below if ends.high < 0 else open_}"


def _specialization(result: Result) -> list[Statement]:
    found = defined(result, "excess_given_token", "excess")
    if found is None:
        return []
    given, plain = found
    text = (
        f"The expert of a token tells {said(given)} about the domain of the text beyond chance, where the "
        f"token "
        f"itself is known ({basis(given)}); {said_value(plain)} where it is not."
    )
    names = ["excess_given_token", "excess"]
    beyond = defined(result, "against_shuffled")
    if beyond is not None:
        names.append("against_shuffled")
        reading = _sign(
            beyond[0],
            "the learned directions of the routers make the difference",
            "routers with shuffled rows tell more",
            "routers with shuffled rows may tell as much",
        )
        text += f" That is {said(beyond[0])} more than with shuffled routers{reading}."
    return [Statement(text, "specialization", tuple(names))]


def _specialists(result: Result) -> list[Statement]:
    found = defined(result, "specialist_effect")
    if found is None:
        return []
    effect = found[0]
    reading = _sign(
        effect,
        "domains need their specialists",
        "other domains need them more",
        "that domains need their specialists is not shown",
    )
    text = (
        f"Without the specialists of a domain its loss rises {said(effect)} more than that of other domains, "
        f"beside experts of like load{reading}."
    )
    return [Statement(text, "ablation_matrix", ("specialist_effect",))]


def _locality(result: Result) -> list[Statement]:
    found = defined(result, "shared_by_neighbors", "shared_by_chance", "normalized_entropy")
    if found is None:
        return []
    neighbors, chance, balance = found
    text = (
        f"Two tokens in a row have {said_value(neighbors)} of their experts in common, independent tokens "
        f"with the "
        f"same loads {said_value(chance)}. The load has {said_value(balance)} of the entropy of a "
        f"balanced one."
    )
    return [Statement(text, "repetition", ("shared_by_neighbors", "normalized_entropy"))]
