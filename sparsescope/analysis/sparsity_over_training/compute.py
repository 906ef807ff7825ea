"""Sparsity over training, computed: one checkpoint in memory at a time, then tables with paired intervals.

All checkpoints are resampled with the same draws of documents, so the interval of a difference is
that of the pairs.
Shapes: T checkpoints, D documents, L sites, M metrics, B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.activations.context import Context
from sparsescope.analysis.sparsity_over_training import SparsityOverTrainingParams
from sparsescope.analysis.sparsity_over_training.measure import measure, sites_of
from sparsescope.core.result import Result
from sparsescope.core.tables import grid, places
from sparsescope.errors import SubjectError
from sparsescope.metrics.estimates import DocumentBootstrap, Estimate, note_few_documents
from sparsescope.metrics.sparsity import half_normal_reference
from sparsescope.metrics.statistics import mean_over_present

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.structure.sites import Site

_RULES = ("nonzero", "in use")


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
            "there is no token after the first of a window, and the first one is not "
            "measured with the others",
            where=f"corpus {corpus.name}",
            next_step="read more text: a larger token budget, or longer documents",
        )
    out = Result("sparsity_over_training")
    out.add("per_checkpoint", found.per_checkpoint())
    out.add("per_layer", found.per_layer())
    out.add("unit_use", found.unit_use())
    held_out = _is_held_out(series, corpus)
    losses = found.losses().assign(validation=math.nan, unigram=math.nan, trigram=math.nan)
    out.add("losses", _beside_baselines(losses, series) if held_out else losses)
    out.add("push", found.push())
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
    return (
        content is not None
        and content.data.get("kind") == "byte_text"
        and probe_corpus(series).digest == corpus.digest
    )


def _beside_baselines(losses: pd.DataFrame, series: CheckpointSeries) -> pd.DataFrame:
    """Fill in what the trainer recorded on all validation windows: the losses of the model
    and of n-gram models.
    """
    content, names = series.trained, ("unigram", "trigram")
    recorded: dict[tuple[int, str], tuple[float, ...]] = {}
    for entry in content.checkpoints if content is not None else ():
        parts = []
        for domain, values in content.baselines.items() if content is not None else ():
            loss = entry.stored.get(f"validation/{domain}", {}).get("loss", math.nan)
            parts.append((loss, *(values.get(name, math.nan) for name in names)))
            recorded[entry.step, domain] = parts[-1]
        recorded[entry.step, "all"] = tuple(map(float, np.mean(parts, 0)))
    rows = [
        recorded[int(step), str(domain)]
        for step, domain in zip(losses["step"], losses["domain"], strict=True)
    ]
    return losses.assign(
        **{name: [row[place] for row in rows] for place, name in enumerate(("validation", *names))}
    )


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
    draws: DocumentBootstrap  # of the clusters of documents behind ``sums``
    domains: NDArray[np.int64]  # [documents of the corpus]
    # of the documents of the corpus; as ``draws`` where no documents share a cluster
    document_draws: DocumentBootstrap

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
        domains = np.array([corpus.domains.index(document.domain) for document in corpus.documents])
        draws, drawn = (
            DocumentBootstrap.draw(strata, params.resamples, params.seed, params.level)
            for strata in (arrays[0]["domain"], domains)
        )
        return cls(params, corpus, steps, sites, arrays, sums, counts, draws, domains, drawn)

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
        """Sites that saw a token at every checkpoint, [L]: experts that no token was routed to
        drop out of all means.
        """
        return np.asarray((self.counts[..., 0].sum(1) > 0).all(0))

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean over the present sites of every checkpoint and metric, [T, M], and its resamples [B, T, M]."""
        means, replicates = [], []
        for sums, counts in zip(self.sums[:, :, self.present], self.counts[:, :, self.present], strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                means.append(mean_over_present(sums.sum(0) / counts.sum(0), 0))
            replicates.append(mean_over_present(self.draws.replicates(sums, counts), 1))
        return np.stack(means), np.stack(replicates, axis=1)

    def control(self) -> NDArray[np.float64]:
        """Mean over tokens of the controls, [T, L, M]; NaN without controls."""
        if not self.params.control:
            return np.full((len(self.steps), *self.sums.shape[2:]), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack(
                [entry["control_sums"].sum(0) / entry["control_counts"].sum(0) for entry in self.arrays]
            )

    def per_checkpoint(self) -> pd.DataFrame:
        """One row for each step and metric."""
        means, replicates = self.means()
        low, high = self.draws.ends(replicates, self.documents)
        change_low, change_high = self.draws.ends(replicates - replicates[:, :1], self.documents)
        return grid(
            [{"step": self.steps}, {"metric": self.metrics}], mean=means, low=low, high=high,
            control=mean_over_present(self.control()[:, self.present], 1), change=means - means[:1],
            change_low=change_low, change_high=change_high,
            reference=[half_normal_reference(name) for name in self.metrics], documents=self.documents,
        )  # fmt: skip

    def per_layer(self) -> pd.DataFrame:
        """One row for each step, site and metric."""
        found = Estimate(*map(np.stack, zip(*map(self.draws.ratio, self.sums, self.counts), strict=True)))
        return grid(
            [{"step": self.steps}, places(self.sites), {"metric": self.metrics}],
            **found._asdict(),
            control=self.control(),
            tokens=self.counts.sum(1).astype(np.int64),
            documents=(self.counts > 0).sum(1),
        )

    def unit_use(self) -> pd.DataFrame:
        """One row for each step, site and rule."""
        dead, on = (np.stack([entry[name] for entry in self.arrays]) for name in ("dead", "always_on"))
        seen = np.stack([entry["seen"] for entry in self.arrays]).astype(np.int64)[..., None]
        units = np.array([[site.width] for site in self.sites])
        axes: list[dict[str, Any]] = [{"step": self.steps}, places(self.sites), {"rule": _RULES}]
        return grid(axes, units=units, dead_share=dead, always_on_share=on, tokens=seen)

    def losses(self) -> pd.DataFrame:
        """One row for each step and domain, and one for the mean over domains."""
        rows: list[tuple[Any, ...]] = []
        for step, entry in zip(self.steps, self.arrays, strict=True):
            if "nll" not in entry:
                continue
            members = {
                domain: (self.domains == place) & (entry["targets"] > 0)
                for place, domain in enumerate(self.corpus.domains)
            }
            members = {domain: member for domain, member in members.items() if member.any()}
            losses, accuracies, replicates = [], [], []
            for domain, member in members.items():
                nll, correct, targets = (entry[name][member] for name in ("nll", "correct", "targets"))
                draws, documents = self.document_draws.among(member), int(member.sum())
                replicates.append(draws.replicates(nll, targets))
                losses.append(nll.sum() / targets.sum())
                accuracies.append(correct.sum() / targets.sum())
                ends = map(float, draws.ends(replicates[-1], documents))
                rows.append((step, domain, losses[-1], *ends, accuracies[-1], int(targets.sum()), documents))
            n = sum(int(member.sum()) for member in members.values())
            # A domain of one document varies in no resample that has it: the mean would look more
            # certain than it is.
            several = all(member.sum() > 1 for member in members.values())
            ends = map(float, self.document_draws.ends(np.mean(replicates, 0), n if several else 1))
            rows.append(
                (step, "all", np.mean(losses), *ends, np.mean(accuracies), int(entry["targets"].sum()), n)
            )
        return pd.DataFrame(
            rows, columns=["step", "domain", "loss", "low", "high", "accuracy", "tokens", "documents"]
        )

    def push(self) -> pd.DataFrame | list[pd.DataFrame]:
        """One row for each step and site."""
        frames = []
        for step, entry in zip(self.steps, self.arrays, strict=True):
            if "push" not in entry:
                continue
            documents = (entry["active"] > 0).sum(0)
            columns: dict[str, NDArray[np.float64]] = {}
            for (name, prefix), mean, replicates in zip(
                (("push", ""), ("relative", "relative_")), *self._pushes(entry), strict=True
            ):
                low, high = self.document_draws.ends(replicates, documents)
                columns |= {name: mean, f"{prefix}low": low, f"{prefix}high": high}
            frames.append(grid([places(self.sites)], step=step, **columns, documents=documents))
        return pd.concat(frames) if frames else []

    def _pushes(self, entry: dict[str, NDArray[Any]]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Push and relative push of a checkpoint, [L] each, and their resamples, [B, L]."""
        sums = [entry[name] for name in ("push", "square", "active")]  # [D, L]
        with np.errstate(invalid="ignore", divide="ignore"):
            return _push_of(*(each.sum(0) for each in sums)), _push_of(*map(self.document_draws.totals, sums))

    def relative_push(self, index: int) -> tuple[float, NDArray[np.float64]]:
        """Mean over sites of the relative push of a checkpoint, and its resamples."""
        (_, own), (_, drawn) = self._pushes(self.arrays[index])
        return float(mean_over_present(own, 0)), mean_over_present(drawn, 1)


def _push_of(push: Any, square: Any, active: Any) -> tuple[Any, Any]:
    """The mean of sign(a) g, and its ratio to the root mean square of g."""
    mean = push / active
    return mean, mean / np.sqrt(square / active)


def _scalars(out: Result, found: _Measured) -> None:
    """First, last and change of the densities; loss, margins, dead units and push."""
    table = out.tables["per_checkpoint"]
    first, last = found.steps[0], found.steps[-1]
    draws, documents = found.draws, found.documents

    def add(name: str, row: Any, column: str, text: str, prefix: str = "", unit: str = "fraction") -> None:
        interval = draws.between(row[f"{prefix}low"], row[f"{prefix}high"], documents)
        out.add_scalar(name, row[column], unit, text, interval=interval)

    text = "checkpoint of step {}, mean over sites of the mean over tokens after the first of each window"
    meanings = {
        "nonzero": "density (share of units that are not exactly zero)",
        "density_energy": (
            f"density (share of units in the smallest set that holds {found.params.share:.0%} of the energy)"
        ),
    }
    for name, metric in zip(meanings, (found.metrics[0], found.metrics[2]), strict=True):
        rows = table[table["metric"] == metric].set_index("step")
        for when, step in (("first", first), ("last", last)):
            add(f"{name}_{when}", rows.loc[step], "mean", f"{meanings[name]}: {text.format(step)}")
            if found.params.control:
                control = (
                    f"{meanings[name]} with shuffled MLP input weights and zero biases: {text.format(step)}"
                )
                out.add_scalar(f"{name}_control_{when}", rows.loc[step, "control"], "fraction", control)
        change = f"{meanings[name]}: step {last} minus step {first}, paired by document"
        add(f"{name}_change", rows.loc[last], "change", change, "change_", "")
        lowest = rows["mean"].idxmin()
        add(f"{name}_lowest", rows.loc[lowest], "mean", f"{meanings[name]}: lowest of all checkpoints")
        out.add_scalar(
            f"{name}_lowest_step", float(lowest), "count", f"step of the checkpoint with the lowest {name}"
        )
    use = out.tables["unit_use"]
    for when, step in (("first", first), ("last", last)):
        rows = use[(use["step"] == step) & (use["rule"] == "nonzero")]
        known = rows.dropna(subset="dead_share")
        share = (
            float((known["dead_share"] * known["units"]).sum() / max(known["units"].sum(), 1))
            if len(known)
            else math.nan
        )
        text = f"share of units that were never nonzero on the text, of sites that saw a token: step {step}"
        out.add_scalar(f"dead_{when}", share, "fraction", text)
    _loss_scalars(out, found)
    if "push" in found.arrays[0]:
        for when, index in (("first", 0), ("last", -1)):
            value, drawn = found.relative_push(index)
            text = (
                "mean(sign(a) g) / rms(g), g = dL/da of nonzero units, mean over sites: "
                f"step {found.steps[index]}"
            )
            out.add_scalar(f"push_{when}", value, "", text, interval=draws.interval(drawn, documents))
    out.add_scalar("documents", documents, "count", "documents, the independent units of every interval")


def _loss_scalars(out: Result, found: _Measured) -> None:
    """Losses of the first and last checkpoint, and what the last one gains on n-gram models
    in its worst domain.
    """
    losses = out.tables["losses"]
    if losses.empty:
        return
    for when, step in (("first", found.steps[0]), ("last", found.steps[-1])):
        row = losses[(losses["step"] == step) & (losses["domain"] == "all")].iloc[0]
        text = f"mean loss of the next token, mean over domains: step {step}"
        interval = found.draws.between(row["low"], row["high"], found.documents)
        out.add_scalar(f"loss_{when}", row["loss"], "nats", text, interval=interval)
    last = losses[(losses["step"] == found.steps[-1]) & (losses["domain"] != "all")]
    for name in ("unigram", "trigram"):
        margins = last[name] - last["validation"]
        if margins.notna().all():
            worst = int(margins.to_numpy().argmin())
            out.add_scalar(
                f"{name}_margin",
                margins.iloc[worst],
                "nats",
                f"loss of a {name} model minus that of the last checkpoint, both on all validation windows, "
                f"in the domain where this is least ({last['domain'].iloc[worst]})",
            )


def _notes(out: Result, found: _Measured, held_out: bool) -> None:
    """Say what the reader has to know."""
    out.note(
        "warning",
        "One training run: intervals are over documents, and say nothing about other seeds or recipes.",
        "per_checkpoint",
    )
    note_few_documents(out, found.documents, "per_checkpoint")
    if float(np.nanmin(out.tables["per_layer"].query("metric == 'density_nonzero'")["mean"])) > 0.98:
        out.note(
            "info",
            "More than 98 % of entries are not exactly zero at every checkpoint, as expected of SwiGLU and "
            "GELU: the exact-zero density carries no information here. Read the energy sets.",
            "density_nonzero",
        )
    if out.tables["losses"].empty:
        out.note(
            "info", "The models are no causal language models: they have no loss of the next token.", "losses"
        )
    if out.tables["push"].empty and found.params.push:
        out.note("info", "Gradients are measured at dense hidden layers of causal models only.", "push")
    if not held_out:
        out.note(
            "warning",
            "This text is not the held-out text of the series: the training may have read it.",
            "losses",
        )
    missing = int((~found.present).sum())
    if missing:
        out.note(
            "warning",
            f"{missing} of {len(found.sites)} sites saw no token at one checkpoint or more; means "
            "over sites leave them out.",
            "per_checkpoint",
        )
