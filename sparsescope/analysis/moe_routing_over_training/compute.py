"""Routing over training, computed: one checkpoint in memory at a time, then tables with paired intervals.

Shapes: T checkpoints, N tokens, D documents, L layers, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.activations.context import Context
from sparsescope.activations.routing import RoutingTrace, trace_routing
from sparsescope.activations.routing_information import MEASURES, DomainInformation, domain_information
from sparsescope.analysis.moe_routing_over_training import MoeRoutingOverTrainingParams
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.core.tables import grid
from sparsescope.errors import SubjectError
from sparsescope.metrics.estimates import DocumentBootstrap, note_few_documents
from sparsescope.metrics.expert_load import expert_load
from sparsescope.metrics.jackknife import JACKKNIFE, jackknife_interval
from sparsescope.metrics.routing import expert_counts, overlap, overlap_chance
from sparsescope.models.structure.routing import routers
from sparsescope.models.variants import make_variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.models.subject import Subject

    Array = NDArray[np.float64]

#: Occurrences that a token id has on average before a table of ids says more than the tokens themselves.
_OCCURRENCES = 50
_EARLY = 0.1


def compute(params: MoeRoutingOverTrainingParams, context: Context) -> Result:
    """Run the analysis."""
    corpus, series = context.corpus, context.series
    traces: list[RoutingTrace] = []
    informations: list[DomainInformation | None] = []
    controls: list[DomainInformation] = []

    def traced(of: Subject) -> dict[str, NDArray[Any]]:
        found = routers(of)
        trace = trace_routing(of, corpus, found)
        shape = [(router.layer, router.experts, router.k) for router in found]
        arrays = trace.arrays() | {"shape": np.array(shape, np.int64)}
        if len(np.unique(trace.domain)) > 1:
            arrays |= domain_information(trace, params.permutations, params.seed).arrays("information/")
        return arrays

    shapes = []
    for number, entry in enumerate(series.checkpoints):
        context.progress("checkpoints", number, len(series))

        def plain(step: int = entry.step) -> dict[str, NDArray[Any]]:
            return traced(series.subject(step))

        arrays = context.step(f"checkpoint-{number}", plain)
        shapes.append([tuple(row) for row in arrays["shape"].tolist()])
        if shapes[-1] != shapes[0]:
            raise SubjectError(
                "the checkpoints of this series differ in their experts",
                where=f"{series.name}, step {entry.step}",
                allowed=f"(layer, experts, experts per token) as at step {series.steps[0]}: {shapes[0]}",
                got=shapes[-1],
                next_step="compare checkpoints of one architecture",
            )
        traces.append(RoutingTrace.of(arrays))
        informations.append(_information(arrays))
        draws: list[DomainInformation] = []
        for draw in range(params.controls if informations[-1] is not None else 0):

            def shuffled(step: int = entry.step, seed: int = params.seed + draw) -> dict[str, NDArray[Any]]:
                made = make_variant(series.subject(step), "shuffled_router", seed=seed)
                return {
                    name: values for name, values in traced(made).items() if name.startswith("information/")
                }

            arrays = context.step(f"shuffled-{number}-{draw}", shuffled)
            draws.append(DomainInformation.of(arrays, "information/"))
        if draws:
            controls.append(DomainInformation.mean(draws))
    context.progress("checkpoints", len(series), len(series))
    measured = _Measured(
        params,
        series.steps,
        [row[0] for row in shapes[0]],
        traces,
        [value for value in informations if value is not None],
        controls,
    )
    out = Result("moe_routing_over_training")
    out.add("saturation", measured.saturation())
    out.add("specialization", measured.specialization())
    out.add("load", measured.load())
    _scalars(out, measured)
    _notes(out, measured)
    return out


def _information(arrays: dict[str, NDArray[Any]]) -> DomainInformation | None:
    return DomainInformation.of(arrays, "information/") if "information/value" in arrays else None


@dataclass(frozen=True)
class _Measured:
    """What the checkpoints gave."""

    params: MoeRoutingOverTrainingParams
    steps: tuple[int, ...]
    layers: list[int]
    traces: list[RoutingTrace]
    informations: list[DomainInformation]
    controls: list[DomainInformation]

    @cached_property
    def draws(self) -> DocumentBootstrap:
        """Resamples of documents, the same of all checkpoints."""
        params = self.params
        return DocumentBootstrap.draw(self.traces[0].domain, params.resamples, params.seed, params.level)

    @property
    def documents(self) -> int:
        """Documents, D."""
        return len(self.traces[0].documents)

    @cached_property
    def fewest(self) -> int:
        """Documents of the domain that has the fewest."""
        return int(np.unique(self.traces[0].domain, return_counts=True)[1].min())

    @property
    def compares(self) -> bool:
        """Whether every domain has documents enough for intervals of comparisons."""
        return self.fewest >= self.params.least_documents

    def shared(self, one: RoutingTrace, other: RoutingTrace) -> Array:
        """Share of experts in common, summed by document, [D, L]."""
        return np.stack(
            [
                np.bincount(
                    one.document,
                    overlap(one.index[:, layer], other.index[:, layer]),
                    minlength=self.documents,
                )
                for layer in range(len(self.layers))
            ],
            axis=1,
        )

    def saturation(self) -> pd.DataFrame:
        """One row for each step and layer."""
        last, tokens = self.traces[-1], self.traces[0].tokens.astype(float)[:, None]
        _, ids = np.unique(last.token_ids, return_inverse=True)
        seen = np.bincount(ids)
        known = len(ids) / len(seen) >= _OCCURRENCES
        k, experts = last.index.shape[2], last.experts
        frames = []
        for number, trace in enumerate(self.traces):
            found = self.draws.ratio(self.shared(trace, last), tokens)
            before = self.draws.ratio(self.shared(trace, self.traces[max(number - 1, 0)]), tokens).complement
            if number == 0:
                before = type(before)(*(np.full(len(self.layers), np.nan) for _ in before))
            chances = []
            for layer in range(len(self.layers)):
                one, two = (t.index[:, layer].astype(np.int64) for t in (trace, last))
                whole = np.zeros(len(one), np.int64)
                by_load = overlap_chance(
                    expert_counts(one, whole, experts), expert_counts(two, whole, experts), [len(one)]
                )
                by_token = (
                    overlap_chance(expert_counts(one, ids, experts), expert_counts(two, ids, experts), seen)
                    if known
                    else np.nan
                )
                chances.append((float(by_load), float(by_token), float((one[:, 0] == two[:, 0]).mean())))
            load, token, first = np.transpose(chances)
            frames.append(
                pd.DataFrame(
                    {
                        "step": self.steps[number],
                        "layer": self.layers,
                        "saturation": found.mean,
                        "low": found.low,
                        "high": found.high,
                        "churn": before.mean,
                        "churn_low": before.low,
                        "churn_high": before.high,
                        "first_choice": first,
                        "uniform_chance": k / experts,
                        "load_chance": load,
                        "token_chance": token,
                        "tokens": int(tokens.sum()),
                        "documents": self.documents,
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def specialization(self) -> pd.DataFrame | list[Any]:
        """One row for each step, layer and measure; none where the text has one domain."""
        if not self.informations:
            return []
        level, frames = self.params.level, []
        nan = np.full(self.informations[0].value.shape, np.nan)
        for number, found in enumerate(self.informations):
            low, high = found.ends(level) if self.compares else (nan, nan)
            control = self.controls[number].excess if self.controls else nan
            spread = self.controls[number].null_sd if self.controls else nan
            beyond = found.against(self.controls[number], level) if self.controls else (nan, nan, nan)
            since = found.against(self.informations[0], level)
            if not self.compares:
                beyond, since = (beyond[0], nan, nan), (since[0], nan, nan)
            frames.append(
                grid(
                    [{"layer": self.layers}, {"measure": MEASURES}],
                    step=self.steps[number], information=found.value, null_mean=found.null_mean, z=found.z,
                    p=found.p, excess=found.excess, low=low, high=high, shuffled=control, shuffled_sd=spread,
                    beyond_shuffled=beyond[0], beyond_low=beyond[1], beyond_high=beyond[2],
                    since_start=since[0], start_low=since[1], start_high=since[2], documents=self.documents,
                )
            )  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    def load(self) -> pd.DataFrame:
        """One row for each step and layer."""
        frames = []
        for step, trace in zip(self.steps, self.traces, strict=True):
            counts, tokens = trace.chosen().sum(0), int(trace.tokens.sum())
            found = expert_load(counts, np.full(len(counts), tokens))
            frames.append(
                pd.DataFrame(
                    {
                        "step": step,
                        "layer": self.layers,
                        "cv": found.cv,
                        "normalized_entropy": found.normalized_entropy,
                        "max_violation": found.max_violation,
                        "dead": found.dead,
                        "router_entropy": trace.entropy.sum(0) / tokens,
                        "tokens": tokens,
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def mean_difference(
        self, one: DomainInformation, other: DomainInformation
    ) -> tuple[float, Interval | None]:
        """Difference of the excess given the token, mean over layers, with its paired interval."""
        value = float((one.excess - other.excess)[:, 1].mean())
        folds = ((one.folds - one.null_mean) - (other.folds - other.null_mean))[..., 1].mean(1)
        if not self.compares:
            return value, None
        level = self.params.level
        ends = jackknife_interval(np.asarray(value), folds, level)
        return value, Interval.of(*ends, level, JACKKNIFE, self.documents)


def _scalars(out: Result, measured: _Measured) -> None:
    steps, over = measured.steps, f"mean over {len(measured.layers)} layers"
    last = steps[-1]
    early = min(
        (step for step in steps if step > 0), key=lambda step: abs(step - _EARLY * last), default=last
    )
    rows = out.tables["saturation"].query("step == @early")
    place = steps.index(early)
    trace, whole = measured.traces[place], measured.traces[-1]
    tokens = trace.tokens.astype(float)
    found = measured.draws.ratio(measured.shared(trace, whole).mean(1), tokens)
    out.add_scalar(
        "early_saturation",
        float(found.mean),
        "fraction",
        f"share of experts in common with step {last} at step {early}; {over}",
        interval=measured.draws.between(found.low, found.high, measured.documents),
    )
    for name, column, text in (
        ("early_load_chance", "load_chance", "independent choices with the loads of both"),
        ("early_token_chance", "token_chance", "choices that know the token id alone"),
    ):
        if rows[column].notna().all():
            out.add_scalar(name, rows[column].mean(), "fraction", f"the same of {text}: step {early}; {over}")
    if measured.informations:
        final = measured.informations[-1]
        value, interval = measured.mean_difference(final, measured.informations[0])
        text = f"{MEASURES[1]} beyond chance at step {last} minus that at step {steps[0]}; {over}"
        out.add_scalar("since_start", value, "nats", text, interval=interval)
        excess = final.excess[:, 1].mean()
        out.add_scalar("excess_last", excess, "nats", f"{MEASURES[1]} beyond chance at step {last}; {over}")
        if measured.controls:
            value, interval = measured.mean_difference(final, measured.controls[-1])
            text = f"{MEASURES[1]} beyond chance at step {last} minus that with shuffled routers; {over}"
            out.add_scalar("against_shuffled", value, "nats", text, interval=interval)
    load = out.tables["load"]
    for when, step in (("first", steps[0]), ("last", last)):
        value = load.query("step == @step")["cv"].mean()
        out.add_scalar(
            f"load_cv_{when}", value, "", f"coefficient of variation of the load: step {step}; {over}"
        )
    out.add_scalar(
        "documents", measured.documents, "count", "documents, the independent units of every interval"
    )


def _notes(out: Result, measured: _Measured) -> None:
    out.note(
        "warning",
        "One training run: intervals are over documents, and say nothing about other seeds or recipes.",
        "specialization",
    )
    note_few_documents(out, measured.documents, "saturation", "intervals")
    if not measured.informations:
        out.note(
            "warning",
            "The text has one domain: specialization in domains cannot be measured.",
            "specialization",
        )
    elif not measured.compares:
        out.note(
            "warning",
            f"A domain has {measured.fewest} documents, fewer than {measured.params.least_documents}: "
            f"domains are "
            "compared without intervals.",
            "specialization",
        )
    if out.tables["saturation"]["token_chance"].isna().any():
        out.note(
            "info",
            f"Token ids occur fewer than {_OCCURRENCES} times on average: what a table of ids would share "
            f"is not "
            "told apart from what is observed, and left out.",
            "saturation",
        )
