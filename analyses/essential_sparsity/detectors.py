"""How well detectors find where quality breaks: a simulation with known truth, written to stdout as tables.

Three curves of damage reach the tolerance of 0.01 nats ("1 pp") near a level of 0.5: exp(10 s) - 1, straight
from a corner at 0.5 on, and logistic. 64 documents: 40 of about 200 tokens in one domain, 24 of about 600 in
another; lengths vary by 40 %. The damage of a document is the curve times a lognormal factor of mean 1 at
every level, with a size (coefficient of variation 0.5 at the small noise, 1 at the large one) and a trend
over levels of its own; the domains are damaged as 0.8 to 1. A noise of 0.3 or 0.8 pp is the standard
deviation of the mean of a level:
  paired: each document has this noise once, so that it cancels; a tenth of it, new at each level, is left;
  independent: each document has it anew at each level, also at the dense one, which all are compared with.
Run: .venv/bin/python analyses/essential_sparsity/detectors.py [draws]
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from sparsescope.metrics.drop_points import damage_band, drop_point, non_inferior
from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.metrics.hinges import hinge, kneedle
from sparsescope.metrics.isotonic_crossing import resampled_crossings, tolerance_crossing

Array = NDArray[np.float64]
Curve = Callable[[Array], Array]

TOLERANCE, STEP = 0.01, 0.05
LEVELS: Array = STEP * np.arange(20.0)
DOMAINS = np.repeat([0, 1], [40, 24])
TOKENS = np.array([200.0, 600.0])[DOMAINS]
DOMAIN_FACTORS = np.array([0.8, 1.0])[DOMAINS] * TOKENS.sum() / (np.array([0.8, 1.0])[DOMAINS] @ TOKENS)
VARIATION = {0.3: 0.5, 0.8: 1.0}  # noise in pp: coefficient of variation of the damage over documents
RESAMPLES, FEW = 500, 200  # the second where each resample has a loop
RATE = math.log(0.4 / TOLERANCE - 1) / 0.199
NAMES = (
    "drop_point",
    "percentile of the isotonic crossing",
    "the same, reference pooled over the plateau",
    "non_inferior",
    "hinge",
    "kneedle",
    "first violation",
)


def curves(shift: float = 0.0) -> dict[str, tuple[Curve, float, float]]:
    """Each curve, the level at which it reaches the tolerance, and its corner (that level if it has none)."""
    at, corner = 0.501 + shift, 0.5 + shift

    def logistic(s: Array) -> Array:
        return 0.4 / (1 + np.exp(-RATE * (s - corner - 0.2)))

    return {
        "exponential": (lambda s: TOLERANCE * np.expm1(10 * s) / np.expm1(10 * at), at, at),
        "corner": (lambda s: TOLERANCE * np.maximum(s - corner, 0) / 0.011, corner + 0.011, corner),
        "logistic": (lambda s: logistic(s) - logistic(np.zeros(1)), at, at),
    }


def measured(
    generator: np.random.Generator, curve: Curve, levels: Array, noise: float, paired: bool
) -> tuple[Array, Array]:
    """Sums of the damage of each document, [K, D], and tokens, [D]."""
    documents, centered = len(TOKENS), levels[:, None] - 0.5
    counts = np.maximum((TOKENS * generator.lognormal(-0.08, 0.4, documents)).round(), 8)
    spread = math.log1p(VARIATION[noise] ** 2)
    size, trend = generator.normal(0, math.sqrt(spread), documents), generator.normal(0, 1, documents)
    factor = DOMAIN_FACTORS * np.exp(size + trend * centered - (spread + centered**2) / 2)
    of_document = noise / 100 * counts.sum() / math.sqrt(float((counts**2).sum()))
    if paired:
        once = generator.normal(0, of_document, documents)
        of_token = 0.1 * noise / 100 * np.sqrt(counts.sum() / counts)
        loss = once + generator.normal(0, 1, (len(levels), documents)) * of_token
    else:
        loss = generator.normal(0, of_document, (len(levels), documents))
    loss = loss + curve(levels)[:, None] * factor
    return (loss - loss[0]) * counts, counts


def detect(sums: Array, counts: Array, seed: int) -> dict[str, tuple[float, float, float]]:
    """What each detector finds: place, low, high. One-sided and without an interval: inf, NaN."""
    draws = DocumentBootstrap.draw(DOMAINS, RESAMPLES, seed, 0.95)
    damage = sums.sum(1) / counts.sum()
    primary = drop_point(LEVELS, sums, counts, TOLERANCE, draws)
    crossing = tolerance_crossing(LEVELS, damage, TOLERANCE).at
    resampled = draws.replicates(sums.T, counts[:, None])[:FEW]
    many = np.broadcast_to(LEVELS, resampled.shape)
    ends = draws.ends(resampled_crossings(many, resampled, TOLERANCE))
    # Levels in a row whose interval includes 0 are the plateau, again in each resample.
    band = damage_band(sums, counts, draws)
    both = np.vstack([damage, resampled])
    plateau = np.logical_and.accumulate(both - (band.mean - band.low) <= 0, axis=1)
    referred = both - ((both * plateau).sum(1) / plateau.sum(1))[:, None]
    pooled = resampled_crossings(np.broadcast_to(LEVELS, referred.shape), referred, TOLERANCE)
    pooled_ends = draws.ends(pooled[1:])
    bound = non_inferior(LEVELS, sums, counts, TOLERANCE, draws)
    corner = hinge(LEVELS, sums, counts, draws)
    above = np.flatnonzero(damage > TOLERANCE)
    found = (
        (primary.at, primary.low, primary.high),
        (crossing, float(ends[0]), float(ends[1])),
        (float(pooled[0]), float(pooled_ends[0]), float(pooled_ends[1])),
        (bound, bound, math.inf),
        (corner.at, corner.low, corner.high),
        (kneedle(LEVELS, damage), math.nan, math.nan),
        (float(LEVELS[above[0] - 1] if len(above) else LEVELS[-1]), math.nan, math.nan),
    )
    return {**dict(zip(NAMES, found, strict=True)), "exists": (float(corner.exists), math.nan, math.nan)}


def summary(found: list[tuple[float, float, float]], truth: float) -> str:
    """Bias, standard deviation, and coverage in percent."""
    at, low, high = np.array(found).T
    missing = int(np.isnan(at).sum())
    text = f"{np.nanmean(at) - truth:+.3f} ± {np.nanstd(at):.3f}"
    if not np.isnan(low).all():
        text += f", {100 * np.mean((low <= truth) & (truth <= high)):.1f} %"
    return text + (f" ({missing} without)" if missing else "")


def comparison(draws: int) -> list[list[str]]:
    """Bias ± standard deviation, coverage, of each detector in the twelve cells."""
    rows = [["curve", "noise", "pp", *NAMES, "hinge exists", "width of drop_point"]]
    cells = product(curves().items(), (True, False), VARIATION)
    for cell, ((name, (curve, at, corner)), paired, noise) in enumerate(cells):
        generator, found = np.random.default_rng([1, cell]), defaultdict(list)
        for seed in range(draws):
            for detector, place in detect(*measured(generator, curve, LEVELS, noise, paired), seed).items():
                found[detector].append(place)
        truths = {"hinge": corner, "kneedle": corner}
        width = np.median([high - low for _, low, high in found["drop_point"]])
        exists = 100 * np.mean([place[0] for place in found["exists"]])
        start = [name, "paired" if paired else "independent", f"{noise}"]
        texts = [summary(found[detector], truths.get(detector, at)) for detector in NAMES]
        rows.append([*start, *texts, f"{exists:.0f} %", f"{width:.3f}"])
    return rows


def windows(draws: int) -> list[list[str]]:
    """Places found where the grid ends earlier, without noise and with paired noise of 0.3 pp."""
    rows = [["curve", "last level", "kneedle", "hinge", "drop_point", "kneedle, noise", "hinge, noise"]]
    rows[0].append("drop_point, noise")
    for (name, (curve, _, _)), last in product(curves().items(), (0.7, 0.8, 0.95)):
        levels, generator, found = LEVELS[: round(last / STEP) + 1], np.random.default_rng(2), []
        exact = curve(levels)[:, None] * TOKENS, TOKENS
        for sums, counts in [exact, *(measured(generator, curve, levels, 0.3, True) for _ in range(draws))]:
            boot = DocumentBootstrap.draw(DOMAINS, 50, 0, 0.95)
            knee = kneedle(levels, sums.sum(1) / counts.sum())
            drop = drop_point(levels, sums, counts, TOLERANCE, boot).at
            found.append((knee, hinge(levels, sums, counts, boot).at, drop))
        values, exactly = np.array(found[1:]), [f"{place:.3f}" for place in found[0]]
        noisy = [f"{v.mean():.3f} ± {v.std():.3f}" for v in values.T]
        rows.append([name, f"{last:.2f}", *exactly, *noisy])
    return rows


def between(draws: int) -> list[list[str]]:
    """The same curves moved by half a step, paired noise: what happens between two levels is not seen."""
    rows = [["curve, moved by 0.025", "pp", "truth", "drop_point", "within its bracket"]]
    for (name, (curve, at, _)), noise in product(curves(STEP / 2).items(), VARIATION):
        generator, found, within = np.random.default_rng(3), [], 0
        for seed in range(draws):
            sums, counts = measured(generator, curve, LEVELS, noise, True)
            boot = DocumentBootstrap.draw(DOMAINS, RESAMPLES, seed, 0.95)
            point = drop_point(LEVELS, sums, counts, TOLERANCE, boot)
            found.append((point.at, point.low, point.high))
            before = LEVELS[np.searchsorted(LEVELS, point.at) - 1]
            within += before <= at <= before + point.bracket
        rows.append([name, f"{noise}", f"{at:.3f}", summary(found, at), f"{100 * within / draws:.1f} %"])
    return rows


def main(draws: int) -> None:
    """Write the tables."""
    started = time.perf_counter()
    quality = "Bias ± sd, coverage (nominal 95 %; non_inferior 97.5 %, one-sided)"
    for title, rows in (
        (f"{quality}; {draws} draws a cell", comparison(draws)),
        ("Where the grid ends", windows(50)),
        ("Truth between two levels", between(draws)),
    ):
        table = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        sys.stdout.write("\n".join([f"\n{title}\n", *(f"| {' | '.join(row)} |" for row in table), ""]))
        sys.stdout.flush()
    sys.stdout.write(f"\n{time.perf_counter() - started:.0f} s\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
