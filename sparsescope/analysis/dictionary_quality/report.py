"""Measurements of ``dictionary_quality`` as tables with intervals.

Shapes: D documents, B resamples, V variants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.dictionary_quality.entries import BASELINE, DICTIONARY, Entry, close
from sparsescope.analysis.dictionary_quality.splice import MEAN, ZERO, Spliced
from sparsescope.metrics.estimates import PAIRED_BOOTSTRAP, DocumentBootstrap
from sparsescope.metrics.feature_counts import (
    NEVER,
    dead_share_curve,
    density_histogram,
    density_shares,
    zipf_mandelbrot,
)
from sparsescope.metrics.reconstruction import MEASURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.dictionary_quality import DictionaryQualityParams
    from sparsescope.analysis.dictionary_quality.measure import Place
    from sparsescope.dictionaries.rows import RowFacts
    from sparsescope.models.structure.sites import Site

    Floats = NDArray[np.float64]
    Rows = list[dict[str, Any]]

ABLATION = "ablation"
_FVU, _L0 = MEASURES.index("fvu"), MEASURES.index("l0")
_POINTS = 24
ABLATIONS = {ZERO: "Set to zero", MEAN: "Set to its mean"}


class Reporter:
    """Turns measurements into rows.

    Args:
        params: Parameters of the analysis.
        corpus: Evaluation documents.
        places: What was found at each place.
        spliced: Losses; None where there are none.
        facts: By site, of the rows that things were fitted on.

    Attributes:
        estimates: By label, every measure as value, low and high.
        draws: By place, the resamples of its documents.
        rises: By label, rise of the loss as value, low and high.
    """

    def __init__(
        self,
        params: DictionaryQualityParams,
        corpus: TokenizedCorpus,
        places: Sequence[Place],
        spliced: Spliced | None,
        facts: dict[str, RowFacts],
    ) -> None:
        self.params, self.places, self.spliced, self.facts = params, places, spliced, facts
        domain = {document.index: corpus.domains.index(document.domain) for document in corpus.documents}
        self.estimates: dict[str, dict[str, tuple[float, float, float]]] = {}
        self.draws: list[DocumentBootstrap] = []
        self._replicates: list[Floats] = []
        for place in places:
            strata = [domain[int(number)] for number in place.sums.documents]
            draws = self._drawn(strata)
            found, replicates = place.sums.measures(), place.sums.measures(draws.weights)
            ends = draws.ends(replicates, int(np.count_nonzero(place.sums.rows)))
            for row, entry in enumerate(place.entries):
                self.estimates[entry.label] = {
                    name: (float(found[row, at]), float(ends[0][row, at]), float(ends[1][row, at]))
                    for at, name in enumerate(MEASURES)
                }
            self.draws.append(draws)
            self._replicates.append(replicates)
        self.rises: dict[str, tuple[float, float, float]] = {}
        self.losses: DocumentBootstrap | None = None
        if spliced is not None:
            self.losses = self._drawn(spliced.domains)
            rise = self.losses.ratio(spliced.rises.T, spliced.targets[:, None])
            self.rises = {
                name: (float(rise.mean[row]), float(rise.low[row]), float(rise.high[row]))
                for row, name in enumerate(spliced.names)
            }

    def _drawn(self, strata: Any) -> DocumentBootstrap:
        return DocumentBootstrap.draw(
            strata, self.params.resamples, self.params.seed, self.params.level, PAIRED_BOOTSTRAP
        )

    def replicates(self, number: int) -> Floats:
        """Measures of the entries of a place in every resample, [B, entry, measure]."""
        return self._replicates[number]

    def documents(self, number: int = 0) -> int:
        """Evaluation documents of a place."""
        return int(np.count_nonzero(self.places[number].sums.rows))

    @property
    def entries(self) -> list[tuple[int, Entry]]:
        """Every entry with the number of its place."""
        return [(number, entry) for number, place in enumerate(self.places) for entry in place.entries]

    def dictionaries(self, number: int) -> list[Entry]:
        """The dictionaries of a place, without baselines."""
        return [entry for entry in self.places[number].entries if entry.kind == DICTIONARY]

    def quality(self) -> Rows:
        """One row for each dictionary and baseline."""
        return [self._quality(number, entry) for number, entry in self.entries]

    def _quality(self, number: int, entry: Entry) -> dict[str, Any]:
        place, found, facts = self.places[number], self.estimates[entry.label], entry.facts
        shares = density_shares(place.active[entry.label], place.tokens)

        def known(name: str) -> float:
            value = facts.get(name)
            return float(value) if isinstance(value, int | float) else math.nan

        gamma = known("gamma")
        return {
            "dictionary": entry.label,
            "kind": entry.kind,
            "architecture": entry.rule,
            "layer": entry.reads.layer,
            "site": entry.reads.name,
            "target": entry.writes.name,
            "width": entry.dictionary.width,
            "l0": found["l0"][0],
            **dict(zip(("fvu", "low", "high"), found["fvu"], strict=True)),
            "explained_variance": found["explained_variance"][0],
            "cosine": found["cosine"][0],
            "l2_ratio": found["l2_ratio"][0],
            "bias": found["bias"][0],
            "dead_share": shares.dead,
            "rare_below": shares.dead_bound,
            "dense_share": shares.dense_10,
            "training_dead_share": known("dead_share"),
            "training_fvu": known("train_fvu"),
            "gamma": gamma if math.isfinite(gamma) else self.facts[entry.reads.name].gamma,
            "born_dead_raw": known("born_dead_raw"),
            "born_dead_centred": known("born_dead_centred"),
            "thresholds": entry.thresholds,
            "documents": self.documents(number),
            "tokens": place.tokens,
        }

    def comparisons(self) -> Rows:
        """Paired differences of dictionaries of a place, and of each with the baselines at its L0."""
        rows: Rows = []
        for number, place in enumerate(self.places):
            here = self.dictionaries(number)
            pairs = list(combinations(here, 2))
            for entry in here:
                l0 = self.estimates[entry.label]["l0"][0]
                others = [one for one in place.entries if one.kind == BASELINE]
                pairs += [(entry, one) for one in others if close(self.estimates[one.label]["l0"][0], l0)]
            for one, two in pairs:
                rows += [self._compared(number, one, two, measure) for measure in ("FVU", "loss")]
        return [row for row in rows if row]

    def _compared(self, number: int, one: Entry, two: Entry, measure: str) -> dict[str, Any]:
        """A paired difference; empty where the measure is not there for both."""
        place, l0 = self.places[number], [self.estimates[entry.label]["l0"][0] for entry in (one, two)]
        if measure == "FVU":
            first, second = (place.sums.names.index(entry.label) for entry in (one, two))
            replicates = self._replicates[number][:, first, _FVU] - self._replicates[number][:, second, _FVU]
            low, high = (float(end) for end in self.draws[number].ends(replicates, self.documents(number)))
            value = self.estimates[one.label]["fvu"][0] - self.estimates[two.label]["fvu"][0]
            documents = self.documents(number)
        else:
            if self.spliced is None or self.losses is None or not {one.label, two.label} <= self.rises.keys():
                return {}
            first, second = (self.spliced.names.index(entry.label) for entry in (one, two))
            difference = self.spliced.rises[first] - self.spliced.rises[second]
            found = self.losses.ratio(difference, self.spliced.targets)
            value, low, high = (float(part) for part in found)
            documents = self.losses.documents
        verdict = _verdict(low, high, *l0)
        return {
            "first": one.label,
            "second": two.label,
            "measure": measure,
            "site": one.writes.name,
            "first_l0": l0[0],
            "second_l0": l0[1],
            "equal_l0": "yes" if close(*l0) else "no",
            "difference": value,
            "low": low,
            "high": high,
            "verdict": verdict,
            "documents": documents,
        }

    def splice(self) -> Rows:
        """One row for each variant."""
        if self.spliced is None or self.losses is None:
            return []
        found = {entry.label: (entry.writes, entry.kind) for _, entry in self.entries}
        sites = {entry.writes.name: entry.writes for _, entry in self.entries}
        many = len(sites) > 1
        rows = []
        for row, name in enumerate(self.spliced.names):
            site, kind = found.get(name) or (sites[name.partition(" ")[2]], ABLATION)
            label = name if kind != ABLATION else ABLATIONS[name.partition(" ")[0]]
            label += f" (layer {site.layer}, {site.role})" if kind == ABLATION and many else ""
            rows.append(self._spliced(row, label, kind, site))
        return rows

    def _spliced(self, row: int, label: str, kind: str, site: Site) -> dict[str, Any]:
        assert self.spliced is not None and self.losses is not None
        spliced, draws, nan = self.spliced, self.losses, (math.nan,) * 3
        own = self.estimates.get(label, {})
        zero = spliced.names.index(f"{ZERO} {site.name}")
        rise, top = spliced.rises[row], spliced.rises[zero]
        apart = draws.ratio(spliced.divergences[row], spliced.targets)
        # A ratio to something that is not above zero says nothing
        recovered: tuple[float, ...] = nan
        if not self.rises[spliced.names[zero]][1] <= 0 and top.sum() > 0:
            ends = draws.ends(1 - draws.replicates(rise, top))
            recovered = (float(1 - rise.sum() / top.sum()), float(ends[0]), float(ends[1]))
        return {
            "dictionary": label,
            "kind": kind,
            "layer": site.layer,
            "site": site.name,
            "l0": own.get("l0", nan)[0],
            "fvu": own.get("fvu", nan)[0],
            **dict(zip(("rise", "rise_low", "rise_high"), self.rises[spliced.names[row]], strict=True)),
            **dict(zip(("divergence", "divergence_low", "divergence_high"), map(float, apart), strict=True)),
            **dict(zip(("recovered", "recovered_low", "recovered_high"), recovered, strict=True)),
            "zero_rise": self.rises[spliced.names[zero]][0],
            "documents": draws.documents,
            "tokens": int(spliced.targets.sum()),
        }

    def densities(self) -> Rows:
        """Histogram of densities of every dictionary and baseline; empty bins are left out at either end."""
        rows: Rows = []
        for number, entry in self.entries:
            place = self.places[number]
            found = density_histogram(place.active[entry.label], place.tokens)
            filled = np.flatnonzero(found.features)
            for at in range(filled[0], filled[-1] + 1) if len(filled) else ():
                rows.append(
                    {
                        "dictionary": entry.label,
                        "kind": entry.kind,
                        "density_from": 10.0 ** found.edges[at],
                        "density_to": 10.0 ** found.edges[at + 1],
                        "features": int(found.features[at]),
                        "share": int(found.features[at]) / found.width,
                    }
                )
        return rows

    def dead_curve(self) -> Rows:
        """Dead share against the tokens looked at, here and after training where that is known."""
        rows: Rows = []
        for number in range(len(self.places)):
            place = self.places[number]
            for entry in self.dictionaries(number):
                rows += _curve(entry.label, "evaluation", place.first[entry.label], place.tokens)
                counted = entry.training.get("census")
                if isinstance(counted, dict) and "first_row" in counted:
                    total = int(counted["rows"])
                    first = np.asarray(counted["first_row"], np.int64)
                    rows += _curve(entry.label, "training", np.where(first >= total, NEVER, first), total)
        return rows

    def frequency_fit(self) -> Rows:
        """Zipf-Mandelbrot fits, of those for which there is one."""
        rows: Rows = []
        for number, entry in self.entries:
            place = self.places[number]
            found = zipf_mandelbrot(place.active[entry.label], place.tokens)
            if not math.isfinite(found.alpha):
                continue
            rows.append(
                {
                    "dictionary": entry.label,
                    "kind": entry.kind,
                    "exponent": found.alpha,
                    "shift": found.beta,
                    "r2": found.r2,
                    "fitted": found.fitted,
                    "left_out": found.left_out,
                }
            )
        return rows


def _verdict(low: float, high: float, first_l0: float, second_l0: float) -> str:
    """What follows from the interval of a difference: the better one may not have more active features."""
    if not (math.isfinite(low) and (low > 0 or high < 0)):
        return "not distinguishable"
    better, other = (first_l0, second_l0) if high < 0 else (second_l0, first_l0)
    if better > other and not close(better, other):
        return "more active features"
    return "first is better" if high < 0 else "second is better"


def _curve(label: str, counted: str, first: NDArray[np.int64], tokens: int) -> Iterator[dict[str, Any]]:
    """Points of a dead curve, evenly spread on a logarithmic axis."""
    points = np.unique(np.geomspace(1, max(1, tokens), _POINTS).round().astype(np.int64))
    for at, share in zip(points, dead_share_curve(first, points), strict=True):
        yield {"dictionary": label, "counted": counted, "tokens": int(at), "dead_share": float(share)}
