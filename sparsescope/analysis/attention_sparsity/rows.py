"""Sums of the measures of attention rows, fed by a running model.

For each layer three kinds of rows go through the same kernels: the real ones, uniform ones over the same
keys, and null rows (normal scores with the real row's variance; real weights dealt at random to the keys).
All sums are by document.
Shapes: D documents, L layers, H heads, P length bins, S measures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from sparsescope.errors import SubjectError
from sparsescope.kernels import attention_rows as kernels
from sparsescope.metrics.attention import LOCAL_WIDTHS, SINK_LENGTH, blocks_needed, concentration, gini

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenBatch
    from sparsescope.analysis.attention_sparsity import AttentionSparsityParams
    from sparsescope.models.attention import AttentionRows


@dataclass(slots=True)
class Sums:
    """Sums by document, with the number of rows (or windows) behind each.

    Attributes:
        real: float64 [D, L, H, S].
        uniform: float64 [D, L, S]; the same for all heads.
        null: float64 [D, L, H, S].
        n: float64 [D, L, H, S], behind ``real`` and ``uniform``.
        n_null: float64 [D, L, 1, 1] or as ``n``, behind ``null``.
    """

    real: np.ndarray
    uniform: np.ndarray
    null: np.ndarray
    n: np.ndarray
    n_null: np.ndarray

    @classmethod
    def zeros(cls, *shape: int) -> Sums:
        """Empty sums for [D, L, H, S]."""
        d, layers, _, s = shape
        return cls(
            np.zeros(shape), np.zeros((d, layers, s)), np.zeros(shape), np.zeros(shape), np.zeros(shape)
        )


@dataclass(slots=True)
class _Lines:
    """Mass of one layer in one window by column and diagonal, and its blocks."""

    columns: np.ndarray
    diagonals: np.ndarray
    needed: np.ndarray
    pairs: np.ndarray
    first: np.ndarray = field(default_factory=lambda: np.zeros(2))

    @classmethod
    def zeros(cls, heads: int, length: int, blocks: int) -> _Lines:
        lines = np.zeros((heads, length)), np.zeros((heads, 2 * length - 1))
        return cls(*lines, np.zeros((heads, blocks)), np.zeros(blocks))


def length_bins(longest: int, t_min: int) -> tuple[tuple[int, int], ...]:
    """Bins of t, first and last: powers of two from 2 on, and an edge at ``t_min``."""
    edges = sorted({t_min, *(2**k for k in range(1, longest.bit_length() + 1))})
    edges = [edge for edge in edges if 2 <= edge <= longest]
    return tuple((a, b - 1) for a, b in zip(edges, [*edges[1:], longest + 1], strict=True))


class AttentionStatistics:
    """Accumulates over windows; ``begin`` a window, then let the model call ``visit``.

    Args:
        params: Parameters of the analysis.
        shape: Documents, layers, heads.
        longest: Positions of the longest window.
        causal: Whether rows see only what is before them.
    """

    def __init__(
        self, params: AttentionSparsityParams, shape: tuple[int, int, int], longest: int, causal: bool
    ) -> None:
        from sparsescope.analysis.attention_sparsity import percent_name

        self.params, self.causal = params, causal
        tops = [f"top_{percent_name(p)}" for p in params.shares]
        self.shape_names = [
            "entropy_normalized",
            "gini",
            "density_support",
            *(f"density_{name}" for name in tops),
        ]
        self.key_names = ["entropy", "support", *(f"keys_{name}" for name in tops)]
        # A window that holds everything says nothing.
        self.widths = tuple(w for w in LOCAL_WIDTHS if w < longest)
        self.place_names = [
            "share_first",
            "share_first_4",
            "share_previous",
            *(f"share_local_{w}" for w in self.widths),
        ]
        self.output_names = [f"error_{name}" for name in tops]
        self.output_names += [f"density_output_{percent_name(level)}" for level in params.errors]
        self.window_names = [
            "share_columns",
            "share_diagonals",
            "gini_received",
            *(f"density_blocks_{b}" for b in params.blocks),
        ]
        self.window_names += ["share_sink_window", f"share_sink_{SINK_LENGTH}"]
        documents, layers, _ = shape
        self.bins = length_bins(longest, params.t_min)
        n_shape = len(self.shape_names) + len(self.key_names)
        self.shapes = Sums.zeros(*shape, n_shape)
        self.places = Sums.zeros(*shape, len(self.place_names))
        self.outputs = Sums.zeros(*shape, len(self.output_names))
        self.windows = Sums.zeros(*shape, len(self.window_names))
        # Over heads, by length: the bins take the place of the heads.
        self.lengths = Sums.zeros(documents, layers, len(self.bins), n_shape)
        self.lengths.uniform = np.zeros((documents, layers, len(self.bins), n_shape))
        self.n_uniform = np.zeros((documents, layers, len(self.bins), 1))
        self.n_windows = 0
        self._lines: dict[str, _Lines] = {}
        self._document, self._text = 0, np.zeros(0, np.bool_)

    def begin(self, batch: TokenBatch, document: int) -> None:
        """Start the one window of a batch; ``document`` is its index on axis D."""
        self._document = document
        # BOS, CLS and SEP ask for nothing; the first position has one key to look at.
        self._text = batch.text_mask[0] & (batch.position[0] > 0)
        self.n_windows += 1

    def visit(self, rows: AttentionRows) -> None:
        """Add some rows of one layer."""
        weights = rows.weights[0].contiguous().cpu().numpy()
        low, high = contiguous_keys(rows)
        t = high - low
        stop = rows.start + weights.shape[1]
        text = self._text[rows.start : stop] & (t >= 2)
        main = text & (t >= self.params.t_min)
        if rows.start == 0:
            size = len(self.params.blocks)
            self._lines = {
                "real": _Lines.zeros(weights.shape[0], rows.length, size),
                "null": _Lines.zeros(weights.shape[0], rows.length, size),
                "uniform": _Lines.zeros(1, rows.length, size),
            }
        keys = np.arange(weights.shape[2])
        even = (((keys >= low[:, None]) & (keys < high[:, None])) / t[:, None]).astype(np.float32)[None]
        seed = int(
            np.random.SeedSequence([self.params.seed, self.n_windows, rows.layer, rows.start]).generate_state(
                1
            )[0]
        )
        dealt = kernels.shuffled_rows(weights, low, high, seed)
        real = self._shapes(weights, low, high)
        self._add_shapes(rows.layer, t, text, main, real, self._shapes(even, low, high))
        sampled = np.flatnonzero(text & ((rows.start + np.arange(len(t))) % self.params.every == 0))
        if len(sampled):
            self._add_null(rows.layer, t, main, sampled, real)
            self._add_outputs(rows, weights, low, high, sampled[main[sampled]])
        for name, some in (("real", weights), ("null", dealt), ("uniform", even)):
            self._add_lines(rows, name, some, low, high, main)
        self._add_places(rows, weights, even, main)
        if stop == rows.length:
            self._finish_window(rows.layer, rows.length)

    def _shapes(
        self, weights: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measures [head, row, S] in the order of ``shape_names`` and ``key_names``, and the
        spread of the scores.
        """
        found = kernels.row_shapes(weights, low, high, self.params.shares)
        entropy, support, unequal, spread = np.moveaxis(found[..., : kernels.N_SHAPE], -1, 0)
        counts = found[..., kernels.N_SHAPE :]
        t = (high - low)[None, :].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = [entropy / np.log(t), unequal, support / t]
        measures = [
            *shares,
            *np.moveaxis(counts / t[..., None], -1, 0),
            entropy,
            support,
            *np.moveaxis(counts, -1, 0),
        ]
        return np.stack(measures, -1), spread

    def _add_shapes(
        self, layer: int, t: np.ndarray, text: np.ndarray, main: np.ndarray,
        real: tuple[np.ndarray, np.ndarray], even: tuple[np.ndarray, np.ndarray],
    ) -> None:  # fmt: skip
        d = self._document
        self.shapes.real[d, layer] += real[0][:, main].sum(1)
        self.shapes.uniform[d, layer] += even[0][0, main].sum(0)
        self.shapes.n[d, layer] += main.sum()
        for index, (first, last) in enumerate(self.bins):
            here = text & (t >= first) & (t <= last)
            self.lengths.real[d, layer, index] += real[0][:, here].sum((0, 1))
            self.lengths.n[d, layer, index] += real[0].shape[0] * here.sum()
            self.lengths.uniform[d, layer, index] += even[0][0, here].sum(0)
            self.n_uniform[d, layer, index] += here.sum()

    def _add_null(
        self,
        layer: int,
        t: np.ndarray,
        main: np.ndarray,
        sampled: np.ndarray,
        real: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Rows of normal scores, as ``metrics.attention.normal_null``, for the sampled rows of every head."""
        d, lengths = self._document, t[sampled]
        null = np.zeros((real[1].shape[0], len(sampled), int(lengths.max())), np.float32)
        for i, n in enumerate(lengths):
            quantiles = ndtri((np.arange(1, n + 1) - 0.5) / n)
            weights = np.exp(real[1][:, sampled[i], None] * (quantiles - quantiles[-1]))
            null[:, i, :n] = weights / weights.sum(1, keepdims=True)
        measures = self._shapes(null, np.zeros_like(lengths), lengths)[0]
        kept = main[sampled]
        self.shapes.null[d, layer] += measures[:, kept].sum(1)
        self.shapes.n_null[d, layer] += kept.sum()
        for index, (first, last) in enumerate(self.bins):
            here = (lengths >= first) & (lengths <= last)
            self.lengths.null[d, layer, index] += measures[:, here].sum((0, 1))
            self.lengths.n_null[d, layer, index] += measures.shape[0] * here.sum()

    def _add_outputs(
        self, rows: AttentionRows, weights: np.ndarray, low: np.ndarray, high: np.ndarray, chosen: np.ndarray
    ) -> None:
        values = rows.values[0].float().contiguous().cpu().numpy()
        found = kernels.dropped_outputs(
            weights, values, low, high, chosen, self.params.shares, self.params.errors
        )
        defined = np.isfinite(found)
        self.outputs.real[self._document, rows.layer] += np.where(defined, found, 0).sum(1)
        self.outputs.n[self._document, rows.layer] += defined.sum(1)

    def _add_places(
        self, rows: AttentionRows, weights: np.ndarray, even: np.ndarray, main: np.ndarray
    ) -> None:
        d = self._document
        found = kernels.row_places(weights, rows.start, rows.first_key, self.widths)
        reference = kernels.row_places(even, rows.start, rows.first_key, self.widths)
        self.places.real[d, rows.layer] += found[:, main].sum(1)
        self.places.uniform[d, rows.layer] += reference[0, main].sum(0)
        self.places.n[d, rows.layer] += main.sum()
        for name, some in (("real", found), ("uniform", reference)):
            lines = self._lines[name]
            if rows.start == 0:
                lines.first = np.zeros((some.shape[0], 2))
            # All rows of a window count for the sink rate of a causal model; of an encoder,
            # the rows of the text.
            counted = (
                np.ones(some.shape[1], np.bool_)
                if self.causal
                else self._text[rows.start : rows.start + some.shape[1]]
            )
            lines.first[:, 0] += some[:, counted, 0].sum(1)
            lines.first[:, 1] += some[:, : max(SINK_LENGTH - rows.start, 0), 0].sum(1)

    def _add_lines(
        self,
        rows: AttentionRows,
        name: str,
        weights: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        main: np.ndarray,
    ) -> None:
        lines = self._lines[name]
        kernels.add_lines(weights, main, rows.start, rows.first_key, lines.columns, lines.diagonals)
        for i, block in enumerate(self.params.blocks):
            mass = kernels.block_mass(weights, rows.first_key, rows.length, block)
            for q in range(mass.shape[1]):
                several = slice(q * block, (q + 1) * block)
                first, last = rows.first_key + low[several].min(), rows.first_key + high[several].max() - 1
                # Blocks that no row of the query block may see are not among the pairs.
                seen = mass[:, q, first // block : last // block + 1]
                lines.needed[:, i] += blocks_needed(seen)
                lines.pairs[i] += seen.shape[1]

    def _finish_window(self, layer: int, length: int) -> None:
        """Turn the lines of a layer and window into measures."""
        rows = length if self.causal else int(self._text.sum())
        n = np.ones(len(self.window_names))
        n[-1] = float(self.causal and length >= SINK_LENGTH)
        for name, lines in self._lines.items():
            first = (
                np.array([[a / rows, b / SINK_LENGTH] for a, b in lines.first])
                if name != "null"
                else np.zeros((1, 2))
            )
            if lines.columns.sum() > 0:
                heads = zip(lines.columns, lines.diagonals, strict=True)
                # A causal window has no keys after the query: those diagonals are not lines
                # that could be kept.
                start = length - 1 if self.causal else 0
                parts = [[concentration(c), concentration(d[start:]), gini(c)] for c, d in heads]
            else:
                parts, n[:3] = [[0.0] * 3] * len(lines.columns), 0.0
            found = np.concatenate(
                [parts, lines.needed / lines.pairs, np.broadcast_to(first, (len(parts), 2))], axis=1
            )
            found = np.where(n > 0, found, 0.0)
            place = (self._document, layer)
            if name == "real":
                self.windows.real[place] += found
            elif name == "null":
                self.windows.null[place] += found
            else:
                self.windows.uniform[place] += found[0]
        self.windows.n[self._document, layer] += n
        self.windows.n_null[self._document, layer] += n


def contiguous_keys(rows: AttentionRows) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last key of each row, int64 [row], counted from ``rows.first_key``.

    Raises:
        SubjectError: If the keys that a row may see are not neighbours.
    """
    allowed = rows.allowed.cpu().numpy()
    low = allowed.argmax(1).astype(np.int64)
    high = low + allowed.sum(1)
    keys = np.arange(allowed.shape[1])
    if not np.array_equal(allowed, (keys >= low[:, None]) & (keys < high[:, None])):
        raise SubjectError(
            "rows of this model see keys that are not neighbours",
            where=f"attention of block {rows.layer}",
            allowed="causal, sliding-window or full attention",
            next_step="use a model with one of these patterns",
        )
    return low, high
