"""Errors of factorizations against time, from the same codes: published updates, scikit-learn's NMF, ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.core.result import Result
from sparsescope.dictionaries.snmf.published import published_updates
from sparsescope.dictionaries.snmf.rows import Rows
from sparsescope.dictionaries.snmf.solver import Settings, factorize, support_size, timed

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.bench.dictionaries import DictionariesParams

PUBLISHED, OURS = "multiplicative update (published), torch", "sparsescope, float32"
NMF, OURS_NMF = "scikit-learn NMF, positive part", "sparsescope, positive part"
Codes = tuple[np.ndarray, np.ndarray]


def time_factorizations(
    params: DictionariesParams, context: Context, rows: torch.Tensor, site: str, out: Result
) -> None:
    """Fill the table ``errors`` and its numbers."""
    x = rows.contiguous()
    start = torch.rand(len(x), params.components, generator=torch.Generator().manual_seed(0)).clamp_min(1e-6)
    settings = Settings(support_size(params.sparsity, x.shape[1]))
    list(factorize(Rows(x[:256].numpy()), start[:256].numpy().copy(), settings, 1))  # compiled now
    table: list[dict[str, Any]] = []
    what = f"{len(x)} rows of {site}, {params.components} components"

    def told(name: str, count: int) -> Any:
        return lambda done: context.progress(name, done, count, "iterations")

    published = (
        (codes.numpy(), components.numpy())
        for codes, components in published_updates(
            x, start.clone(), sparsity=params.sparsity, iterations=params.updates
        )
    )
    theirs = _errors(x, published, PUBLISHED, table, told("published updates", params.updates))
    ours = _reached(x, start, settings, theirs[1], OURS, params.updates, table)
    _compared(out, "snmf", f"{params.updates} published updates", theirs, ours,
              f"{what}, {params.sparsity:.1%} of each kept")  # fmt: skip
    if params.nmf_iterations:
        # Non-negative factors of signed rows are not what NMF is for: both factor max(x, 0), ours with a
        # dictionary of any sign and every entry kept
        positive = x.clamp_min(0)
        theirs = _errors(
            positive,
            _nmf(positive, start, params.nmf_iterations),
            NMF,
            table,
            told("NMF", params.nmf_iterations),
        )
        everything = Settings(x.shape[1])
        ours = _reached(positive, start, everything, theirs[1], OURS_NMF, params.nmf_iterations, table)
        _compared(out, "nmf", f"{params.nmf_iterations} iterations of scikit-learn's NMF", theirs, ours,
                  f"the positive part of {what}, nothing pruned")  # fmt: skip
    out.add("errors", table)


def _nmf(x: torch.Tensor, start: torch.Tensor, iterations: int) -> Iterator[Codes]:
    """Coordinate descent of scikit-learn from the same codes; its dictionary begins at random, scaled."""
    from sklearn.decomposition import non_negative_factorization
    from sklearn.exceptions import ConvergenceWarning

    values, codes = x.numpy(), start.numpy().copy()
    generator = np.random.default_rng(0)
    scale = float(values.mean()) / (0.25 * codes.shape[1])  # so that the product has the mean of the rows
    components = (generator.random((codes.shape[1], values.shape[1])) * scale).astype(values.dtype)
    for _ in range(iterations):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            codes, components, _ = non_negative_factorization(
                values, codes, components, n_components=codes.shape[1], init="custom", solver="cd",
                max_iter=1, tol=0,
            )  # fmt: skip
        yield codes, components


def _errors(x: torch.Tensor, states: Iterator[Codes], name: str, table: list[Any], told: Any) -> Any:
    """Time of all iterations and the last error; some errors on the way go to the table."""
    found = (0.0, 1.0)
    held = None
    for number, (seconds, state) in enumerate(timed(states), 1):
        told(number)
        held = (number, seconds, state)
        if number % 10 == 0 or number in (1, 2, 5):
            table.append(_line(x, name, *held))
    if held is not None:
        if table[-1]["variant"] != name or table[-1]["iteration"] != held[0]:
            table.append(_line(x, name, *held))
        found = (held[1], table[-1]["error"])
    return found


def _reached(
    x: torch.Tensor,
    start: torch.Tensor,
    settings: Settings,
    error: float,
    name: str,
    most: int,
    table: list[Any],
) -> float | None:
    """Seconds until our error is no larger; goes on for as long again, for the picture."""
    reached = None
    states = (
        (state.codes, state.components)
        for state in factorize(Rows(x.numpy()), start.numpy().copy(), settings, most)
    )
    for number, (seconds, state) in enumerate(timed(states), 1):
        table.append(_line(x, name, number, seconds, state))
        if reached is None and table[-1]["error"] <= error:
            reached = seconds
        if reached is not None and seconds > 2 * reached:
            break
    return reached


def _line(x: torch.Tensor, name: str, number: int, seconds: float, state: Codes) -> dict[str, Any]:
    """A row of the table; the error is taken entry by entry, in float64."""
    left = whole = 0.0
    h = torch.from_numpy(np.asarray(state[1], np.float64))
    for part, code in zip(x.split(4096), torch.from_numpy(np.asarray(state[0])).split(4096), strict=True):
        rows = part.double()
        left += float((rows - code.double() @ h).square().sum())
        whole += float(rows.square().sum())
    return {"variant": name, "iteration": number, "seconds": seconds, "error": left / whole}


def _compared(
    out: Result, key: str, opponent: str, theirs: tuple[float, float], ours: float | None, what: str
) -> None:
    spent, error = theirs
    named = {"snmf": "snmf_published_seconds", "nmf": "nmf_seconds"}[key]
    out.add_scalar(named, spent, "seconds", f"time of {opponent}, {what}")
    if ours is None:
        out.note("warning", f"Our factorization did not reach the error {error:.4f} of {opponent}.")
    else:
        out.add_scalar(
            f"{key}_speedup", spent / ours, "", f"time of {opponent} over our time to their error, {what}",
            direction="higher",
        )  # fmt: skip
    out.note("info", f"Error of {opponent}: {error:.5f}; {what}.", place="errors")
