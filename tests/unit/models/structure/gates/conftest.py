"""States of tokens, and gates with other sizes than their defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsescope.models.structure.gates import make_gate

WIDTH, EXPERTS, VOCABULARY, TOKENS = 12, 6, 40, 64


@pytest.fixture
def states() -> torch.Tensor:
    """[N, d]."""
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def token_ids() -> torch.Tensor:
    """[N]."""
    return torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gate() -> Callable[..., Any]:
    """Return a function that builds a gate in evaluation mode; its options are keywords."""

    def build(name: str, *, experts: int = EXPERTS, std: float = 0.5, seed: int = 3, **options: Any) -> Any:
        made = make_gate(name, WIDTH, experts, options, vocabulary=VOCABULARY, seed=seed, std=std)
        return made.eval()

    return build
