"""How alike the experts of a layer are: what all of them would say on the same tokens, and their weights."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.capture import LiveSource
from sparsescope.activations.samples import ActivationSample
from sparsescope.metrics.expert_similarity import aligned_cosine, linear_cka
from sparsescope.models.structure.experts import contribution, expert_inputs, sizes
from sparsescope.models.structure.roles import submodule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.structure.routing import Router
    from sparsescope.models.subject import Subject

#: Pairs of a layer whose weights are matched: the assignment problem grows with the cube of the width.
MOST_PAIRS = 120


def alike(
    subject: Subject, corpus: TokenizedCorpus, routers: Sequence[Router], tokens: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Compare the experts of each layer, pair by pair.

    Args:
        subject: The mixture.
        corpus: Where the tokens are drawn from.
        routers: Its routers.
        tokens: Tokens on which all experts are run.
        seed: Draws tokens, pairs and the permuted entries.

    Returns: ``layer``, ``expert``, ``other`` and the measures of the table ``similarity``, one entry for each
        pair.
    """
    sample = _states(subject, corpus, routers, tokens, seed)
    rows: dict[str, list[float]] = {
        name: []
        for name in ("layer", "expert", "other", "cka", "weights", "weights_random", "weights_raw", "router")
    }
    for n, router in enumerate(routers):
        module = submodule(subject.model, router.index.module_path)
        said = _said(module, sample[n].to(subject.device))
        neurons = [_neurons(subject, router.layer, expert) for expert in range(router.experts)]
        directions = (
            subject.parameter(f"weight:blocks.{router.layer}.mlp.router.weight").double().cpu().numpy()
        )
        directions = directions - directions.mean(0)  # a common part moves no choice
        cosine = directions / np.linalg.norm(directions, axis=1, keepdims=True).clip(1e-30)
        generator = np.random.default_rng([seed, router.layer])
        pairs = list(combinations(range(router.experts), 2))
        if len(pairs) > MOST_PAIRS:
            pairs = sorted(pairs[i] for i in generator.choice(len(pairs), MOST_PAIRS, replace=False))
        for one, other in pairs:
            matched = aligned_cosine(neurons[one], neurons[other])
            mixed = generator.permuted(neurons[other].reshape(-1)).reshape(neurons[other].shape)
            values = {
                "layer": router.layer,
                "expert": one,
                "other": other,
                "cka": linear_cka(said[one], said[other]),
                "weights": matched.aligned,
                "weights_random": aligned_cosine(neurons[one], mixed).aligned,
                "weights_raw": matched.raw,
                "router": float(cosine[one] @ cosine[other]),
            }
            for name, value in values.items():
                rows[name].append(value)
    return {name: np.array(values) for name, values in rows.items()}


def _states(
    subject: Subject, corpus: TokenizedCorpus, routers: Sequence[Router], tokens: int, seed: int
) -> list[torch.Tensor]:
    """What the mixture of each layer reads, on the same sample of tokens: [tokens, d_model] each."""
    names = [f"blocks.{router.layer}.mlp.hook_in" for router in routers]
    sites = subject.sites(names)
    sample = ActivationSample(sites, tokens, seed)
    for batch in LiveSource(subject, corpus, sites, reuse=True):
        sample.update(batch)
    found = sample.finish()
    return [torch.from_numpy(np.ascontiguousarray(found.parts[site.name])) for site in sites]


def _said(module: Any, states: torch.Tensor) -> list[NDArray[np.float64]]:
    """What every expert says on the same tokens, before its weight: E arrays [token, d_model]."""
    experts = sizes(module)[0]
    states = states.to(next(module.parameters()).dtype)
    everyone = torch.arange(experts, device=states.device).expand(len(states), experts)
    with torch.inference_mode():
        return [
            contribution(module, hidden, expert, rows).double().cpu().numpy()
            for expert, _, hidden, rows in expert_inputs(module, states, everyone)
        ]


def _neurons(subject: Subject, layer: int, expert: int) -> NDArray[np.float64]:
    """Weights of the hidden units of an expert: rows of the first matrices beside columns of the last one."""
    home = f"weight:blocks.{layer}.mlp.experts.{expert}"
    present = {site.role for site in subject.parameter_sites(f"{home}.*")}
    parts = [
        subject.parameter(f"{home}.{part}.weight").double().cpu().numpy()
        for part in ("gate", "in", "out")
        if f"mlp.experts.{part}.weight" in present
    ]
    return np.concatenate([*parts[:-1], parts[-1].T], axis=1)
