"""Sparsity over training, computed: one checkpoint in memory at a time, then tables with paired intervals.

All checkpoints are resampled with the same draws of documents, so the interval of a difference is that of the pairs.
Shapes: T checkpoints, D documents, L sites, M metrics, B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.activations.context import Context
from sparsescope.analysis.sparsity_over_training import TABLES, SparsityOverTrainingParams
from sparsescope.analysis.sparsity_over_training.measure import measure, sites_of
from sparsescope.core.result import Interval, Result
from sparsescope.errors import SubjectError
from sparsescope.metrics.sparsity import half_normal_reference
from sparsescope.metrics.statistics import bootstrap_weights, cluster_interval, mean_over_present

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.sites import Site

_RULES = ("nonzero", "in use")
_METHOD = "document-cluster bootstrap, percentile"


def compute(params: SparsityOverTrainingParams, context: Context) -> Result:
    """Run the analysis."""
    corpus, series = context.corpus, context.series
    arrays, sites = [], _sites(series, params)
    for index, entry in enumerate(series.checkpoints):
        context.progress("checkpoints", index, len(series))

        def reduce(step: int = entry.step) -> dict[str, NDArray[Any]]:
            return measure(series.subject(step), corpus, params)

        arrays.append(context.step(f"checkpoint-{index}", reduce))
    context.progress("checkpoints", len(series), len(series))

    found = _Measured.of(series.steps, arrays, sites, corpus, params)
    if not found.counts.any():
        raise SubjectError(
            "there is no token after the first of a window, and the first one is not measured with the others",
            where=f"corpus {corpus.name}",
            next_step="read more text: a larger token budget, or longer documents",
        )
    out = Result("sparsity_over_training")
    out.add_table("per_checkpoint", found.per_checkpoint(), TABLES["per_checkpoint"])
    out.add_table("per_layer", found.per_layer(), TABLES["per_layer"])
    out.add_table("unit_use", found.unit_use(), TABLES["unit_use"])
    held_out = _is_held_out(series, corpus)
    losses = found.losses().assign(validation=math.nan, unigram=math.nan, trigram=math.nan)
    losses = _beside_baselines(losses, series) if held_out else losses
    out.add_table("losses", losses[[column.name for column in TABLES["losses"]]], TABLES["losses"])
    out.add_table("push", found.push(), TABLES["push"])
    _scalars(out, found)
    _notes(out, found, held_out)
    return out


def _sites(series: CheckpointSeries, params: SparsityOverTrainingParams) -> tuple[Site, ...]:
    """The sites, those of the first checkpoint; its subject is let go."""
    return sites_of(series.subject(series.steps[0]), params)


def _is_held_out(series: CheckpointSeries, corpus: TokenizedCorpus) -> bool:
    """Whether the text is the one that the series carries, which its training never read."""
    from sparsescope.activations.text.probe import probe_corpus

    content = series.trained
    return content is not None and content.data.get("kind") == "byte_text" and probe_corpus(series).digest == corpus.digest


def _beside_baselines(losses: pd.DataFrame, series: CheckpointSeries) -> pd.DataFrame:
    """Fill in what the trainer recorded on all validation windows: the losses of the model and of n-gram models."""
    content, names = series.trained, ("unigram", "trigram")
    recorded: dict[tuple[int, str], tuple[float, ...]] = {}
    for entry in content.checkpoints if content is not None else ():
        parts = []
        for domain, values in content.baselines.items() if content is not None else ():
            loss = entry.stored.get(f"validation/{domain}", {}).get("loss", math.nan)
            parts.append((loss, *(values.get(name, math.nan) for name in names)))
            recorded[entry.step, domain] = parts[-1]
        recorded[entry.step, "all"] = tuple(map(float, np.mean(parts, 0)))
    rows = [recorded[int(step), str(domain)] for step, domain in zip(losses["step"], losses["domain"], strict=True)]
    return losses.assign(**{name: [row[place] for row in rows] for place, name in enumerate(("validation", *names))})


@dataclass(frozen=True, slots=True)
class _Measured:
    """The sums of all checkpoints, and the draws of documents that they share."""

    params: SparsityOverTrainingParams
    corpus: TokenizedCorpus
    steps: tuple[int, ...]
    sites: tuple[Site, ...]
    arrays: list[dict[str, NDArray[Any]]]
    sums: NDArray[np.float64]  # [T, D, L, M]
    counts: NDArray[np.float64]
    weights: NDArray[np.float64]  # [B, D], of the clusters of documents behind ``sums``
    domains: NDArray[np.int64]  # [documents of the corpus]
    document_weights: NDArray[np.float64]  # [B, documents of the corpus]; ``weights`` where no documents share a cluster

    @classmethod
    def of(
        cls,
        steps: tuple[int, ...],
        arrays: list[dict[str, NDArray[Any]]],
        sites: tuple[Site, ...],
        corpus: TokenizedCorpus,
        params: SparsityOverTrainingParams,
    ) -> _Measured:
        """Stack what the checkpoints gave."""
        sums, counts = (np.stack([entry[name] for entry in arrays]) for name in ("sums", "counts"))
        weights = bootstrap_weights(arrays[0]["domain"], params.resamples, params.seed)
        domains = np.array([corpus.domains.index(document.domain) for document in corpus.documents])
        drawn = bootstrap_weights(domains, params.resamples, params.seed)
        return cls(params, corpus, steps, sites, arrays, sums, counts, weights, domains, drawn)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in their order."""
        percent = f"{100 * self.params.share:.1f}".removesuffix(".0")
        return ["density_nonzero", f"density_l1_{percent}", f"density_energy_{percent}", "gini"]

    @property
    def documents(self) -> int:
        """Documents with a token, the independent units."""
        return int((self.counts[0].sum((1, 2)) > 0).sum())

    @property
    def present(self) -> NDArray[np.bool_]:
        """Sites that saw a token at every checkpoint, [L]: experts that no token was routed to drop out of all means."""
        return np.asarray((self.counts[..., 0].sum(1) > 0).all(0))

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean over the present sites of every checkpoint and metric, [T, M], and its resamples [T, B, M]."""
        means, replicates = [], []
        for sums, counts in zip(self.sums[:, :, self.present], self.counts[:, :, self.present], strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                means.append(mean_over_present(sums.sum(0) / counts.sum(0), 0))
                drawn = np.tensordot(self.weights, sums, 1) / np.tensordot(self.weights, counts, 1)
            replicates.append(mean_over_present(drawn, 1))
        return np.stack(means), np.stack(replicates)

    def ends(self, replicates: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Percentile interval over the axis before the last one; NaN where documents are too few."""
        if self.documents < 2:
            shape = replicates.shape[:-2] + replicates.shape[-1:]
            return np.full(shape, np.nan), np.full(shape, np.nan)
        tail = (1 - self.params.level) / 2
        low, high = np.nanquantile(replicates, [tail, 1 - tail], axis=-2)
        return low, high

    def control(self) -> NDArray[np.float64]:
        """Mean over tokens of the controls, [T, L, M]; NaN without controls."""
        if not self.params.control:
            return np.full((len(self.steps), *self.sums.shape[2:]), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([entry["control_sums"].sum(0) / entry["control_counts"].sum(0) for entry in self.arrays])

    def per_checkpoint(self) -> pd.DataFrame:
        """One row for each step and metric."""
        means, replicates = self.means()
        low, high = self.ends(replicates)
        change_low, change_high = self.ends(replicates - replicates[:1])
        shape = means.shape
        columns = {
            "step": np.repeat(self.steps, shape[1]), "metric": self.metrics * shape[0], "mean": means, "low": low, "high": high,
            "control": mean_over_present(self.control()[:, self.present], 1), "change": means - means[:1],
            "change_low": change_low, "change_high": change_high,
            "reference": [half_normal_reference(name) for name in self.metrics] * shape[0],
        }  # fmt: skip
        frame = pd.DataFrame({name: np.ravel(values) for name, values in columns.items()})
        return frame.assign(documents=self.documents)

    def per_layer(self) -> pd.DataFrame:
        """One row for each step, site and metric."""
        control, frames = self.control(), []
        for index, step in enumerate(self.steps):
            sums, counts = self.sums[index], self.counts[index]
            mean, low, high = cluster_interval(sums, counts, self.weights, self.params.level)
            n = len(self.metrics)
            frame = pd.DataFrame(
                {
                    "step": step,
                    "layer": np.repeat([site.layer for site in self.sites], n),
                    "site": np.repeat([site.name for site in self.sites], n),
                    "metric": self.metrics * len(self.sites),
                    "mean": mean.reshape(-1), "low": low.reshape(-1), "high": high.reshape(-1),
                    "control": control[index].reshape(-1),
                    "tokens": counts.sum(0).reshape(-1).astype(np.int64),
                    "documents": (counts > 0).sum(0).reshape(-1),
                }
            )  # fmt: skip
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def unit_use(self) -> pd.DataFrame:
        """One row for each step, site and rule."""
        rows = [
            (step, site.layer, site.name, rule, site.width, float(entry["dead"][row, index]),
             float(entry["always_on"][row, index]), int(entry["seen"][row]))
            for step, entry in zip(self.steps, self.arrays, strict=True)
            for row, site in enumerate(self.sites)
            for index, rule in enumerate(_RULES)
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=[column.name for column in TABLES["unit_use"]])

    def losses(self) -> pd.DataFrame:
        """One row for each step and domain, and one for the mean over domains."""
        columns = ["step", "domain", "loss", "low", "high", "accuracy", "tokens", "documents"]
        rows: list[tuple[Any, ...]] = []
        weights = self.document_weights
        for step, entry in zip(self.steps, self.arrays, strict=True):
            if "nll" not in entry:
                continue
            parts = [
                np.flatnonzero((self.domains == place) & (entry["targets"] > 0)) for place in range(len(self.corpus.domains))
            ]
            chosen = [(self.corpus.domains[place], rows_of) for place, rows_of in enumerate(parts) if len(rows_of)]
            losses, accuracies, drawn = [], [], []
            for domain, member in chosen:
                nll, targets = entry["nll"][member], entry["targets"][member]
                with np.errstate(invalid="ignore", divide="ignore"):
                    drawn.append(weights[:, member] @ nll / (weights[:, member] @ targets))
                losses.append(nll.sum() / targets.sum())
                accuracies.append(entry["correct"][member].sum() / targets.sum())
                ends = self.drawn_ends(drawn[-1], len(member))
                rows.append((step, domain, losses[-1], *ends, accuracies[-1], int(targets.sum()), len(member)))
            n = sum(len(member) for _, member in chosen)
            # A domain of one document varies in no resample that has it: the mean would look more certain than it is.
            several = all(len(member) > 1 for _, member in chosen)
            ends = self.drawn_ends(np.mean(drawn, 0), n if several else 1)
            rows.append((step, "all", np.mean(losses), *ends, np.mean(accuracies), int(entry["targets"].sum()), n))
        frame = pd.DataFrame(rows, columns=columns)
        return frame if rows else frame.astype({name: "float64" for name in columns if name != "domain"} | {"domain": "str"})

    def drawn_ends(self, drawn: NDArray[np.float64], documents: int) -> tuple[float, float]:
        """Interval of one number; none for one document."""
        if documents < 2:
            return math.nan, math.nan
        tail = (1 - self.params.level) / 2
        low, high = np.nanquantile(drawn, [tail, 1 - tail])
        return float(low), float(high)

    def push(self) -> pd.DataFrame:
        """One row for each step and site."""
        columns = [column.name for column in TABLES["push"]]
        weights = self.document_weights
        tail = (1 - self.params.level) / 2
        rows: list[tuple[Any, ...]] = []
        for step, entry in zip(self.steps, self.arrays, strict=True):
            if "push" not in entry:
                continue
            push, square, active = (entry[name] for name in ("push", "square", "active"))  # [D, L]
            documents = (active > 0).sum(0)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean, relative = _push_of(push.sum(0), square.sum(0), active.sum(0))
                drawn = _push_of(weights @ push, weights @ square, weights @ active)
                ends = [np.nanquantile(values, [tail, 1 - tail], axis=0) for values in drawn]
            for row, site in enumerate(self.sites):
                enough = 1.0 if documents[row] > 1 else math.nan
                rows.append(
                    (step, site.layer, site.name, mean[row], *(enough * ends[0][:, row]), relative[row],
                     *(enough * ends[1][:, row]), int(documents[row]))
                )  # fmt: skip
        frame = pd.DataFrame(rows, columns=columns)
        return frame if rows else frame.astype({name: "float64" for name in columns if name != "site"} | {"site": "str"})

    def relative_push(self, index: int) -> tuple[float, NDArray[np.float64]]:
        """Mean over sites of the relative push of a checkpoint, and its resamples."""
        entry = self.arrays[index]
        weights = self.document_weights
        push, square, active = (entry[name] for name in ("push", "square", "active"))
        with np.errstate(invalid="ignore", divide="ignore"):
            own = _push_of(push.sum(0), square.sum(0), active.sum(0))[1]
            drawn = _push_of(weights @ push, weights @ square, weights @ active)[1]
        return float(mean_over_present(own, 0)), mean_over_present(drawn, 1)


def _push_of(push: Any, square: Any, active: Any) -> tuple[Any, Any]:
    """The mean of sign(a) g, and its ratio to the root mean square of g."""
    mean = push / active
    return mean, mean / np.sqrt(square / active)


def _scalars(out: Result, found: _Measured) -> None:
    """First, last and change of the densities; loss, margins, dead units and push."""
    table = out.tables["per_checkpoint"]
    first, last = found.steps[0], found.steps[-1]
    level, documents = found.params.level, found.documents

    def interval(low: float, high: float) -> Interval | None:
        return Interval(float(low), float(high), level, _METHOD, documents) if math.isfinite(low) else None

    text = "checkpoint of step {}, mean over sites of the mean over tokens after the first of each window"
    meanings = {
        "nonzero": "density (share of units that are not exactly zero)",
        "density_energy": f"density (share of units in the smallest set that holds {found.params.share:.0%} of the energy)",
    }
    for name, metric in zip(meanings, (found.metrics[0], found.metrics[2]), strict=True):
        rows = table[table["metric"] == metric].set_index("step")
        for when, step in (("first", first), ("last", last)):
            row = rows.loc[step]
            out.add_scalar(
                f"{name}_{when}", row["mean"], "fraction", f"{meanings[name]}: {text.format(step)}",
                interval=interval(row["low"], row["high"]),
            )  # fmt: skip
            if found.params.control:
                out.add_scalar(
                    f"{name}_control_{when}", row["control"], "fraction",
                    f"{meanings[name]} with shuffled MLP input weights and zero biases: {text.format(step)}",
                )  # fmt: skip
        row = rows.loc[last]
        out.add_scalar(
            f"{name}_change", row["change"], "", f"{meanings[name]}: step {last} minus step {first}, paired by document",
            interval=interval(row["change_low"], row["change_high"]),
        )  # fmt: skip
        lowest = rows["mean"].idxmin()
        out.add_scalar(f"{name}_lowest", rows.loc[lowest, "mean"], "fraction", f"{meanings[name]}: lowest of all checkpoints",
                       interval=interval(rows.loc[lowest, "low"], rows.loc[lowest, "high"]))  # fmt: skip
        out.add_scalar(f"{name}_lowest_step", float(lowest), "count", f"step of the checkpoint with the lowest {name}")
    use = out.tables["unit_use"]
    for when, step in (("first", first), ("last", last)):
        rows = use[(use["step"] == step) & (use["rule"] == "nonzero")]
        known = rows.dropna(subset="dead_share")
        share = float((known["dead_share"] * known["units"]).sum() / max(known["units"].sum(), 1)) if len(known) else math.nan
        text = f"share of units that were never nonzero on the text, of sites that saw a token: step {step}"
        out.add_scalar(f"dead_{when}", share, "fraction", text)
    _loss_scalars(out, found, interval)
    if "push" in found.arrays[0]:
        for when, index in (("first", 0), ("last", -1)):
            value, drawn = found.relative_push(index)
            low, high = found.drawn_ends(drawn, documents)
            out.add_scalar(
                f"push_{when}", value, "",
                f"mean(sign(a) g) / rms(g), g = dL/da of nonzero units, mean over sites: step {found.steps[index]}",
                interval=interval(low, high),
            )  # fmt: skip
    out.add_scalar("documents", documents, "count", "documents, the independent units of every interval")


def _loss_scalars(out: Result, found: _Measured, interval: Any) -> None:
    """Losses of the first and last checkpoint, and what the last one gains on n-gram models in its worst domain."""
    losses = out.tables["losses"]
    if losses.empty:
        return
    for when, step in (("first", found.steps[0]), ("last", found.steps[-1])):
        row = losses[(losses["step"] == step) & (losses["domain"] == "all")].iloc[0]
        out.add_scalar(
            f"loss_{when}", row["loss"], "nats", f"mean loss of the next token, mean over domains: step {step}",
            interval=interval(row["low"], row["high"]),
        )  # fmt: skip
    last = losses[(losses["step"] == found.steps[-1]) & (losses["domain"] != "all")]
    for name in ("unigram", "trigram"):
        margins = last[name] - last["validation"]
        if margins.notna().all():
            worst = int(margins.to_numpy().argmin())
            out.add_scalar(
                f"{name}_margin", margins.iloc[worst], "nats",
                f"loss of a {name} model minus that of the last checkpoint, both on all validation windows, in the domain where "
                f"this is least ({last['domain'].iloc[worst]})",
            )  # fmt: skip


def _notes(out: Result, found: _Measured, held_out: bool) -> None:
    """Say what the reader has to know."""
    out.note(
        "warning",
        "One training run: intervals are over documents, and say nothing about other seeds or recipes.",
        "per_checkpoint",
    )
    if found.documents < 2:
        out.note("warning", "All text is one document: no interval can be given.", "per_checkpoint")
    elif found.documents < 10:
        out.note("warning", f"Only {found.documents} documents: bootstrap intervals are likely too narrow.", "per_checkpoint")
    if float(np.nanmin(out.tables["per_layer"].query("metric == 'density_nonzero'")["mean"])) > 0.98:
        out.note(
            "info",
            "More than 98 % of entries are not exactly zero at every checkpoint, as expected of SwiGLU and GELU: the exact-zero "
            "density carries no information here. Read the energy sets.",
            "density_nonzero",
        )
    if out.tables["losses"].empty:
        out.note("info", "The models are no causal language models: they have no loss of the next token.", "losses")
    if out.tables["push"].empty and found.params.push:
        out.note("info", "Gradients are measured at dense hidden layers of causal models only.", "push")
    if not held_out:
        out.note("warning", "This text is not the held-out text of the series: the training may have read it.", "losses")
    missing = int((~found.present).sum())
    if missing:
        out.note(
            "warning",
            f"{missing} of {len(found.sites)} sites saw no token at one checkpoint or more; means over sites leave them out.",
            "per_checkpoint",
        )
