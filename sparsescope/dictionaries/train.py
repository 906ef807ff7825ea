"""Training of sparse autoencoders: any number of them on one stream of activations.

Each batch is read once; every dictionary makes its own step. Rows are divided by one number so that their
mean squared norm is their width, and losses by the variance, so that learning rates carry over between
sites; both are undone at the end. Before training the share of features that the untrained dictionary never
selects is counted, with and without the mean taken out (arXiv:2605.31518). Afterwards thresholds are set on
rows that were not trained on, and densities, dead features and errors are counted with frozen weights and
the exported rule: one definition for the page, the files and the evaluation. The state
(``training/state.py``) holds parameters, moments and counters, so an interrupted training goes on with the
same bits.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from sparsescope.core.spec import canonical_json
from sparsescope.dictionaries.autoencoder import SparseAutoencoder, Step
from sparsescope.dictionaries.base import as_rows, fvu_and_l0
from sparsescope.dictionaries.census import Census, census
from sparsescope.dictionaries.rows import (
    NORM_LIMIT,
    RowFacts,
    RowSource,
    TensorRows,
    facts_of,
    kept_rows,
    sample_of,
)
from sparsescope.dictionaries.thresholds import set_thresholds
from sparsescope.errors import SpecError
from sparsescope.training.loop import Training, run_training
from sparsescope.training.schedule import Schedule
from sparsescope.training.sinks import Sink
from sparsescope.training.state import alone

BORN_DEAD_ROWS = 8192
THRESHOLD_ROWS = 32_768
LOG_STEPS = 20
PARTS = ("fvu", "penalty", "l0", "batches")


@dataclass(frozen=True, slots=True)
class Settings:
    """How dictionaries are trained.

    Attributes:
        learning_rate: Of Adam (betas .9 and .999, eps 6.25e-10); None for 1e-3 sqrt(4096 / width).
        warmup: Share of the steps in which it rises, and with it the weight of sparsity penalties.
        decay: Share of the steps, at the end, in which it falls to 0.
        dead_window: Rows without activity after which a feature is dead; None for one pass over the rows.
        centred: Whether the mean is taken out of the rows at the beginning.
        scores: Type that features are scored in to choose those that are active; the scores of these, and
            everything else, are exact. ``bfloat16`` is quicker where the processor has such products.
    """

    learning_rate: float | None = None
    warmup: float = 0.05
    decay: float = 0.25
    dead_window: int | None = None
    centred: bool = True
    scores: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.scores not in ("float32", "bfloat16"):
            raise SpecError(
                "scores cannot be computed in this type",
                where="train(scores)",
                allowed="float32 or bfloat16",
                got=self.scores,
            )
        if not (0 <= self.warmup < 1 and 0 <= self.decay <= 1):
            raise SpecError(
                "a share of the steps is not possible",
                where="train(warmup, decay)",
                allowed="0 to 1",
                got=f"{self.warmup}, {self.decay}",
            )
        if self.dead_window is not None and self.dead_window < 1:
            raise SpecError(
                "the dead window is not possible",
                where="train(dead_window)",
                allowed="at least 1 row",
                got=self.dead_window,
            )
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise SpecError(
                "the learning rate is not possible", where="train(learning_rate)", allowed="above 0",
                got=self.learning_rate,
            )  # fmt: skip

    def rate(self, width: int) -> float:
        """The highest learning rate of a dictionary."""
        return 1e-3 * math.sqrt(4096 / width) if self.learning_rate is None else self.learning_rate


@dataclass(slots=True)
class Trained:
    """What a training gave.

    Attributes:
        dictionaries: By name, with the rule that is exported.
        facts: By name, plain values: the data (gamma, variance, rows left out), the born-dead shares, the
            errors on rows trained on and on rows held out, the seconds.
        census: By name, activity of every feature, counted with frozen weights.
        curves: Columns step, dictionary, measure, value.
    """

    dictionaries: dict[str, SparseAutoencoder]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    census: dict[str, Census] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)


def train(
    dictionaries: Mapping[str, SparseAutoencoder] | SparseAutoencoder,
    rows: RowSource | torch.Tensor,
    *,
    settings: Settings | None = None,
    held_out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    threshold_rows: torch.Tensor | None = None,
    folder: str | Path | None = None,
    device: str = "cpu",
    name: str = "dictionaries",
    sinks: Sequence[Sink] = (),
    progress: Callable[[str, int, int, str], None] | None = None,
    quiet: bool = False,
) -> Trained:
    """Train dictionaries on one stream of rows.

    Args:
        dictionaries: Untrained ones by name (or one); all read the same site. They are trained in place and
            end with thresholds set, in units of the rows.
        rows: A source of mixed rows, or a tensor [row, d].
        settings: Learning rate, windows, shares.
        held_out: Rows [row, d_in] that errors are computed on, of other documents; for a transcoder with its
            targets.
        threshold_rows: Rows [row, d_in] that thresholds are set on, of other documents; None for a sample
            of the rows that are trained on, which is said in the facts.
        folder: Where an interrupted training goes on; None for none.
        device: Where the dictionaries are trained.
        name: Shown with the progress.
        sinks: Told what is logged.
        progress: Called as ``progress(phase, done, total, unit)``.
        quiet: Whether no line of its own is shown, because ``progress`` shows what is done.

    Returns:
        The dictionaries with their exported rule, facts, densities and curves.

    Raises:
        SpecError: Widths differ, rows are NaN or infinite, or nothing is to be learned from them.
        ArtifactError: The folder holds another training, or the disk refuses.
    """
    given = (
        {"dictionary": dictionaries} if isinstance(dictionaries, SparseAutoencoder) else dict(dictionaries)
    )
    source: RowSource = TensorRows(rows, site=_site(given)) if isinstance(rows, torch.Tensor) else rows
    _check(given)
    d_in = next(iter(given.values())).d_in
    for what, found in (
        ("threshold_rows", threshold_rows),
        ("held_out", held_out[0] if isinstance(held_out, tuple) else held_out),
    ):
        if found is not None and not len(as_rows(found, d_in, what)):
            raise SpecError("there are no rows", where=f"train({what})", next_step="leave it out")
    training = DictionaryTraining(given, source, settings or Settings(), name, device, sinks, progress)
    training.quiet = quiet
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            record = run_training(training, Path(temporary))
    else:
        work = Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        with alone(work):
            record = run_training(training, work)
    return training.finished(record.curves, threshold_rows, held_out, record.cpu_seconds)


class DictionaryTraining(Training):
    """Several dictionaries on one stream; see ``train``."""

    def __init__(
        self,
        dictionaries: dict[str, SparseAutoencoder],
        source: RowSource,
        settings: Settings,
        name: str,
        device: str,
        sinks: Sequence[Sink],
        progress: Callable[[str, int, int, str], None] | None,
    ) -> None:
        _check(dictionaries)
        self.dictionaries, self.source, self.settings = dictionaries, source, settings
        for found in dictionaries.values():
            found.low_precision = settings.scores == "bfloat16"
        self.device, self.sinks, self.progress = torch.device(device), sinks, progress
        first = next(iter(dictionaries.values()))
        sample = sample_of(source)
        named = first.site and "" not in sample.values  # rows of a tensor have no name
        self.site = first.site if named or first.site in sample.values else next(iter(sample.values))
        self.site_out = first.site_out or self.site
        for site, width in ((self.site, first.d_in), (self.site_out, first.d_out)):
            if site not in sample.values or sample.values[site].shape[1] != width:
                raise SpecError(
                    "the rows have another width than the dictionaries, or lack a site",
                    where="train(rows)",
                    allowed=f"{site or 'rows'} of width {width}",
                    got=", ".join(
                        f"{key or 'rows'}: {found.shape[1]}" for key, found in sample.values.items()
                    ),
                )
        self.row_facts = {
            site: facts_of(sample.values[site], sample.positions)
            for site in dict.fromkeys((self.site, self.site_out))
        }
        self.scale_in = _scale(self.row_facts[self.site], first.d_in)
        self.scale_out = _scale(self.row_facts[self.site_out], first.d_out)
        batch = sample.documents[: getattr(source, "batch_rows", len(sample.documents))]
        self.documents_mixed = len(np.unique(batch))
        scaled, _ = kept_rows(sample, self.row_facts)
        self._sample = scaled[self.site] / self.scale_in
        self.born_dead = {key: self._born_dead(found) for key, found in dictionaries.items()}
        for found in dictionaries.values():
            self._begin(found, settings.centred)
            found.to(self.device)
        groups = [
            {
                "params": list(found.parameters()),
                "lr": settings.rate(found.width),
                "peak": settings.rate(found.width),
            }
            for found in dictionaries.values()
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999), eps=6.25e-10, fused=True)
        steps = source.n_batches
        self.window = settings.dead_window or source.n_rows
        self._shape = Schedule(1.0, steps, max(1, round(settings.warmup * steps)), "linear",
                               decay_steps=round(settings.decay * steps), final_fraction=0.0)  # fmt: skip
        since = {
            f"since.{key}": torch.zeros(found.width, dtype=torch.int64) for key, found in dictionaries.items()
        }
        sums = {f"sums.{key}": torch.zeros(len(PARTS), dtype=torch.float64) for key in dictionaries}
        marked = [
            steps,
            {key: found.architecture for key, found in dictionaries.items()},
            [{**found.config, "seed": found.seed} for found in dictionaries.values()],
            source.fingerprint,
            [
                settings.learning_rate,
                settings.warmup,
                settings.decay,
                settings.dead_window,
                settings.centred,
                *([] if settings.scores == "float32" else [settings.scores]),
            ],
        ]
        super().__init__(
            name=name,
            mark=hashlib.sha256(canonical_json(marked).encode()).hexdigest(),
            steps=steps,
            model=torch.nn.ModuleDict(
                {_key(n, key): found for n, (key, found) in enumerate(dictionaries.items())}
            ),
            optimizer=optimizer,
            generator=torch.Generator(),
            extra={**since, **sums, "left_out": torch.zeros(2, dtype=torch.int64)},
            log_every=max(1, min(LOG_STEPS, steps // 10)),
            saves=20.0,
            keep_two=True,
        )
        self._stream: Any = None
        self._next = -1

    def update(self, step: int) -> None:
        """One batch: a step of every dictionary."""
        if step != self._next:
            self._stream, self._next = self.source.batches(step), step
        batch = next(self._stream)
        self._next += 1
        values, out = kept_rows(batch, self.row_facts)
        self.extra["left_out"] += torch.tensor([out, len(batch.token_ids)])
        rows = (values[self.site] / self.scale_in).to(self.device)
        target = (
            rows if self.site_out == self.site else (values[self.site_out] / self.scale_out).to(self.device)
        )
        rate = self._shape.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        if not len(rows):  # all were left out
            return
        self.optimizer.zero_grad(set_to_none=True)
        for key, found in self.dictionaries.items():
            since = self.extra[f"since.{key}"]
            variance = self.row_facts[self.site_out].variance / self.scale_out**2
            at = Step(step / self.steps, min(1.0, (step + 1) / self._shape.warmup_steps),
                      (since >= self.window).to(self.device), variance)  # fmt: skip
            loss = found.loss(rows, target, at)
            loss.total.backward()
            _keep_to_sphere(found)
            active = loss.codes.rows_per_feature.cpu() > 0
            since += len(rows)
            since[active] = 0
            penalty = sum(value for part, value in loss.parts.items() if part != "fvu")
            l0 = len(loss.codes.values) / max(1, len(rows))
            self.extra[f"sums.{key}"] += torch.tensor(
                [loss.parts["fvu"], penalty, l0, 1.0], dtype=torch.float64
            )
        self.optimizer.step()
        for found in self.dictionaries.values():
            with torch.no_grad():
                found.decoder.div_(found.decoder.norm(dim=1, keepdim=True).clamp_(min=1e-12))
            found.after_update()
        if self.progress is not None:
            self.progress("train", step + 1, self.steps, "steps")

    def measure(self, step: int) -> tuple[list[tuple[str, str, str, float]], str]:
        """Means since the last call, and the dead share."""
        rows: list[tuple[str, str, str, float]] = []
        notes = []
        for key in self.dictionaries:
            fvu, penalty, l0, count = self.extra[f"sums.{key}"].tolist()
            dead = float((self.extra[f"since.{key}"] >= self.window).double().mean())
            found = {"dead_share": dead}
            if count:
                found |= {"fvu": fvu / count, "penalty": penalty / count, "l0": l0 / count}
                notes.append(f"{key} fvu {fvu / count:.3f} L0 {l0 / count:.1f}")
            rows += [(measure, "train", key, value) for measure, value in found.items()]
            for sink in self.sinks:
                sink(step, {f"{key}/{measure}": value for measure, value in found.items()})
            self.extra[f"sums.{key}"] = torch.zeros(len(PARTS), dtype=torch.float64)
        return rows, ", ".join(notes[:3])

    def finished(
        self,
        curves: Sequence[tuple[int, str, str, str, float]],
        threshold_rows: torch.Tensor | None,
        held_out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
        seconds: float,
    ) -> Trained:
        """Undo the scale, set thresholds, and count with frozen weights."""
        apart = self._sample * self.scale_in if threshold_rows is None else threshold_rows[:THRESHOLD_ROWS]
        exported: dict[str, SparseAutoencoder] = {}
        for key, found in self.dictionaries.items():
            found.to("cpu")
            found.rescale(self.scale_in, self.scale_out)
            set_thresholds(found, apart)
            exported[key] = found.to_inference()
        counted = census(
            exported, self.source, self.row_facts, self.site, self.site_out, self.window, self.progress
        )
        outcome = Trained(exported, census=counted)
        left_out, read = self.extra["left_out"].tolist()
        for key, found in exported.items():
            facts: dict[str, Any] = {
                "architecture": self.dictionaries[key].architecture,
                "rows_read": read,
                "rows_left_out": left_out,
                "epochs": getattr(self.source, "epochs", 1),
                "steps": self.steps,
                "learning_rate": self.settings.rate(found.width),
                "dead_window": self.window,
                "gamma": self.row_facts[self.site].gamma,
                "median_norm": self.row_facts[self.site].median_norm,
                "variance": self.row_facts[self.site_out].variance,
                "documents_mixed": self.documents_mixed,
                "born_dead_raw": self.born_dead[key][0],
                "born_dead_centred": self.born_dead[key][1],
                "centred": self.settings.centred,
                "scores": self.settings.scores,
                "thresholds_on": "rows trained on" if threshold_rows is None else "other documents",
                "train_fvu": counted[key].fvu,
                "train_l0": counted[key].l0,
                "dead_share": counted[key].dead_share,
                "dead_counted_rows": counted[key].rows,
                "cpu_seconds": round(seconds, 1),
            }
            if held_out is not None:
                facts |= _errors(found, held_out, self.row_facts[self.site])
            outcome.facts[key] = facts
        outcome.curves = pd.DataFrame(
            [(step, part, measure, value) for step, measure, _, part, value in curves],
            columns=["step", "dictionary", "measure", "value"],
        )
        return outcome

    def _begin(self, found: SparseAutoencoder, centred: bool) -> None:
        mean = self.row_facts[self.site].mean / self.scale_in
        found.begin(mean, self.row_facts[self.site_out].mean / self.scale_out, self._sample, centred)

    def _born_dead(self, found: SparseAutoencoder) -> tuple[float, float]:
        """Share of features that the untrained dictionary never selects, raw and with the mean taken out."""
        shares = []
        rows = self._sample[:BORN_DEAD_ROWS]
        before = {name: value.detach().clone() for name, value in found.state_dict().items()}
        step = Step(0.0, 1.0, torch.zeros(found.width, dtype=torch.bool), 1.0)
        for centred in (False, True):
            self._begin(found, centred)
            with torch.no_grad():
                seen = torch.zeros(found.width, dtype=torch.bool)
                for part in found._shifted(rows).split(4096):
                    entries = found.allocate(part, step)
                    seen[entries.codes(found.activate(entries.scores, entries)).indices.long()] = True
            shares.append(float((~seen).double().mean()))
            found.load_state_dict(before)
        return shares[0], shares[1]


def _keep_to_sphere(found: SparseAutoencoder) -> None:
    """Take out of the decoder's gradient what would only change the norm of a row."""
    gradient = found.decoder.grad
    if gradient is not None:
        along = torch.einsum("fd,fd->f", gradient, found.decoder.detach())
        gradient.addcmul_(found.decoder.detach(), along[:, None], value=-1)


def _scale(facts: RowFacts, width: int) -> float:
    """What rows are divided by, so that their mean squared norm is their width."""
    return math.sqrt(facts.mean_square / width)


@torch.no_grad()
def _errors(
    found: SparseAutoencoder,
    held_out: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    facts: RowFacts,
) -> dict[str, float]:
    """FVU and L0 on rows of other documents, outliers left out."""
    rows, target = held_out if isinstance(held_out, tuple) else (held_out, held_out)
    kept = rows.float().norm(dim=1) <= NORM_LIMIT * facts.median_norm
    fvu, l0, codes = fvu_and_l0(found, rows[kept].float(), target[kept].float())
    return {"held_out_fvu": fvu, "held_out_l0": l0, "held_out_rows": len(codes)}


def _check(dictionaries: Mapping[str, SparseAutoencoder]) -> None:
    if not dictionaries:
        raise SpecError("there is no dictionary to train", where="train(dictionaries)")
    for key, found in dictionaries.items():
        if found.normalize != "none" or found.encoder.dtype != torch.float32:
            raise SpecError(
                "this dictionary can be used, but not trained",
                where=f"train(dictionaries), {key}",
                allowed="normalize none, dtype float32",
                got=f"normalize {found.normalize}, dtype {str(found.encoder.dtype).removeprefix('torch.')}",
            )
    shapes = {(found.d_in, found.d_out, found.site, found.site_out) for found in dictionaries.values()}
    if len(shapes) > 1:
        raise SpecError(
            "dictionaries that are trained together read the same site",
            where="train(dictionaries)",
            got="; ".join(f"{site or 'rows'} ({d_in} to {d_out})" for d_in, d_out, site, _ in sorted(shapes)),
            next_step="train those of another site in a call of their own",
        )


def _site(dictionaries: Mapping[str, SparseAutoencoder]) -> str:
    return next((found.site for found in dictionaries.values()), "")


def _key(number: int, name: str) -> str:
    """A name that a module may have, another one for each dictionary."""
    return f"{number}_{name.replace('.', '_')}"
