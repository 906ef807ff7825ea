"""One target looked at closely: errors of single matrices, masks of neighbouring tokens, continuations.

Shapes: x [tokens, K]; W [N, K].
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.losses import Reference, token_losses
from sparsescope.analysis.sparse_inference.measure import Measuring, as_bytes, as_value
from sparsescope.inference.atlas import CHUNKS, Atlas, read_atlas
from sparsescope.inference.calibration import Calibration
from sparsescope.inference.calibrator import beginning
from sparsescope.inference.divergence import dense_texts, greedy_divergence
from sparsescope.inference.masks import Mask
from sparsescope.inference.methods import named
from sparsescope.inference.statistics import InputReader
from sparsescope.metrics.estimates import DocumentBootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray


ERROR_TOKENS = 512
ATLAS_TOKENS = 2048
STRIP_DOCUMENTS = 6
STRIP_TOKENS = 200


def per_matrix(measuring: Measuring) -> list[dict[str, Any]]:
    """Relative output error of every matrix under the masks of some methods, on inputs of the dense model."""
    params = measuring.params
    bench = measuring.bench
    text = bench.development or bench.text
    rows: list[dict[str, Any]] = []
    samples = None
    for method in params.detail_methods:
        if not measuring.reaches(method, params.detail_at):
            continue

        def make(method: str = method) -> dict[str, NDArray[Any]]:
            nonlocal samples
            if samples is None:
                samples = InputReader(bench.subject, bench.groups, {}, ERROR_TOKENS).read(text)
            calibration = measuring.calibration(method, params.detail_at, params.prefixes[0])
            found = [row for mask in calibration.masks for row in _errors(measuring, mask, samples)]
            return {
                "matrix": as_bytes([row[0] for row in found]),
                "numbers": np.array([row[1:] for row in found], float).reshape(-1, 4),
            }

        kept = measuring.step(f"errors-{method.replace('+', '-')}-{params.detail_at:g}", make)
        for name, numbers in zip(as_value(kept["matrix"]), kept["numbers"], strict=True):
            parts = name.removeprefix("weight:").split(".")
            role = ".".join(parts[2:]).removesuffix(".weight")
            rows.append(
                {
                    "layer": int(parts[1]),
                    "role": role,
                    "matrix": name,
                    "method": named(method),
                    "sparsity": numbers[0],
                    "error": numbers[1],
                    "diagonal": numbers[2],
                    "tokens": int(numbers[3]),
                }
            )
    return rows


def _errors(measuring: Measuring, mask: Mask, samples: Any) -> list[tuple[str, float, float, float, int]]:
    """Name, dropped share, error, diagonal error and tokens of the matrices of a mask; of experts the
    mean.
    """
    if mask.kind != "score" or mask.rotation is not None:
        return []
    bench = measuring.bench
    group = bench.by_name[mask.group]
    found = []
    for role in mask.roles:
        sums: dict[str, float] = defaultdict(float)
        tokens = 0
        for site in bench.sites(group, role):
            x = samples.sample(group.name, site.expert)
            if x is None or not len(x):
                continue
            weight = bench.matrix(site).float()
            limits: Any = mask.limits
            if isinstance(limits, torch.Tensor) and limits.ndim == 2:
                limits = limits[site.expert or 0]
            centre = torch.zeros(x.shape[-1]) if mask.centre is None else mask.centre.float()
            keep = ~((x - centre).abs() <= limits)
            rest = (x - centre).masked_fill(keep, 0)
            error = rest @ weight.T
            if role in mask.low_rank:
                pair = mask.low_rank[role]
                error = error - (rest @ pair.right.float().T) @ pair.left.float().T
            columns = weight.square().sum(0)
            sums["dropped"] += float((~keep).sum())
            sums["inputs"] += keep.numel()
            sums["error"] += float(error.square().sum())
            sums["whole"] += float((x @ weight.T).square().sum())
            sums["diagonal"] += float((rest.square() @ columns).sum())
            sums["all"] += float((x.square() @ columns).sum())
            tokens += len(x)
        if not tokens:
            continue
        head = f"weight:blocks.{group.layer}.{role}"
        found.append(
            (
                head,
                sums["dropped"] / sums["inputs"],
                sums["error"] / max(sums["whole"], 1e-30),
                sums["diagonal"] / max(sums["all"], 1e-30),
                tokens,
            )
        )
    return found


def atlas_rows(
    measuring: Measuring, documents: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ``atlas``, ``unions`` and ``tokens``.

    Args:
        measuring: Of the run.
        documents: Names of the documents of the held-out text, in its order.
    """
    params = measuring.params
    atlas: list[dict[str, Any]] = []
    unions: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    for method in params.detail_methods:
        if not measuring.reaches(method, params.detail_at):
            continue
        calibration = measuring.calibration(method, params.detail_at, params.prefixes[0])
        own = _atlas(measuring, calibration)
        own_rows, own_unions = _tables(measuring, method, own)
        atlas += own_rows
        unions += own_unions
        if method == params.reference or (method == params.detail_methods[-1] and not tokens):
            tokens = _strip(measuring, calibration, own, documents)
    return atlas, unions, tokens


def _atlas(measuring: Measuring, calibration: Calibration) -> Atlas:
    bench = measuring.bench
    sparse = calibration.apply(bench.subject, "all_sparse")
    text = beginning(measuring.texts.held_out, ATLAS_TOKENS)
    weights = [bench.weights(mask) for mask in calibration.masks]
    widths = [bench.by_name[mask.group].width for mask in calibration.masks]
    return read_atlas(sparse, text, calibration.masks, weights, widths)


def _tables(
    measuring: Measuring, method: str, atlas: Atlas
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, by_role = [], defaultdict(list)
    for name, found in atlas.masks.items():
        if not found.tokens:
            continue
        role = name.split(".", 2)[2]
        by_role[role].append(found)
        p = found.frequency
        rows.append(
            {
                "method": named(method),
                "layer": int(name.split(".")[1]),
                "role": role,
                "density": found.density,
                "spread": found.spread,
                "reuse": found.reuse,
                "reuse_by_chance": found.reuse_by_chance,
                "persistent": float((p >= 0.9).mean()),
                "never": float((p <= 0.01).mean()),
                "tokens": found.tokens,
            }
        )
    unions = []
    for role, group in by_role.items():
        for chunk in (1, *CHUNKS):
            if chunk > 1 and not all(chunk in each.unions for each in group):
                continue
            union = [each.density if chunk == 1 else each.union(chunk) for each in group]
            unions.append(
                {
                    "method": named(method),
                    "role": role,
                    "together": chunk,
                    "union": float(np.mean(union)),
                    "by_chance": float(np.mean([each.union_by_chance(chunk) for each in group])),
                    "independent": float(np.mean([1 - (1 - each.density) ** chunk for each in group])),
                    "tokens": group[0].tokens,
                }
            )
    return rows, unions


def _strip(
    measuring: Measuring, calibration: Calibration, atlas: Atlas, names: list[str]
) -> list[dict[str, Any]]:
    """The tokens of some documents, with what each reads and what it costs."""
    subject = measuring.bench.subject
    if subject.tokenizer is None:
        return []
    text = measuring.texts.held_out
    chosen = [document.index for document in text.documents[:STRIP_DOCUMENTS]]
    few = text.select(chosen)
    reference = Reference()
    token_losses(subject, few, record=reference)
    losses = token_losses(calibration.apply(subject, "all_sparse"), few, reference=reference)
    assert losses.kl is not None
    by_index = dict(zip((document.index for document in text.documents), names, strict=True))
    rows = []
    window = few.window
    for index in chosen:
        own = np.flatnonzero(atlas.documents == index)[:STRIP_TOKENS]
        kl = losses.kl[losses.document == index]
        at = 0
        for place in own.tolist():
            position = int(atlas.positions[place])
            value = float("nan")
            # The KL of the distribution that follows a token; the last of a window has no target
            if (position + 1) % window and at < len(kl):
                value, at = float(kl[at]), at + 1
            rows.append(
                {
                    "document": by_index[index],
                    "position": position,
                    "token_text": str(subject.tokenizer.decode([int(atlas.ids[place])])),
                    "kept": float(atlas.read[place]),
                    "kl": value,
                }
            )
    return rows


def divergence_rows(measuring: Measuring) -> list[dict[str, Any]]:
    """How long continuations are alike."""
    params = measuring.params
    if not params.prompts or not params.divergence_at:
        return []
    text = measuring.texts.held_out
    texts = None
    rows: list[dict[str, Any]] = []
    for method in params.detail_methods:
        for target in params.divergence_at:
            for prefix in params.prefixes:
                if not measuring.reaches(method, target):
                    continue

                def make(
                    method: str = method, target: float = target, prefix: str = prefix
                ) -> dict[str, Any]:
                    nonlocal texts
                    if texts is None:
                        texts = dense_texts(
                            measuring.bench.subject,
                            text,
                            prompts=params.prompts,
                            prompt=params.prompt_tokens,
                            new=params.new_tokens,
                        )
                    calibration = measuring.calibration(method, target, prefix)
                    return greedy_divergence(
                        texts, calibration.apply(measuring.bench.subject, prefix)
                    ).arrays()

                name = f"divergence-{method.replace('+', '-')}-{target:g}-{prefix.replace(':', '-')}"
                found = measuring.step(name, make)
                length = found["length"].astype(float)
                draws = DocumentBootstrap.draw(
                    np.zeros(len(length)), params.resamples, params.seed, params.level
                )
                mean = draws.ratio(length, np.ones(len(length)))
                rows.append(
                    {
                        "method": named(method),
                        "prefix": prefix,
                        "target": target,
                        "length": float(mean.mean),
                        "low": float(mean.low),
                        "high": float(mean.high),
                        "never": float(found["never"].mean()),
                        "agreement": float(found["agree"].sum() / max(found["positions"].sum(), 1)),
                        "prompts": len(length),
                        "new": params.new_tokens,
                    }
                )
    return rows
