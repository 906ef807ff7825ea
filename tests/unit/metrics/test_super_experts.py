"""Super experts: above both levels, in the layers where massive activations form."""

from __future__ import annotations

import numpy as np

from sparsescope.metrics import super_experts as s


def test_super_experts_pass_both_levels_in_the_layers_of_massive_activations():
    outputs = np.random.default_rng(2).random((8, 64))
    assert s.super_experts(np.full((8, 64), 1.0)).sum() == 0  # none is above a quantile of equal ones
    outputs[2, 5], outputs[6, 9] = 900.0, 50.0  # the second is below a tenth of the first
    assert np.argwhere(s.super_experts(outputs)).tolist() == [[2, 5]]
    outputs[6, 9] = 500.0
    assert np.argwhere(s.super_experts(outputs)).tolist() == [[2, 5], [6, 9]]
    assert np.argwhere(s.super_experts(outputs, np.arange(8) == 6)).tolist() == [[6, 9]]
    outputs[0] = np.nan
    assert s.super_experts(outputs).sum() == 2 and s.super_experts(np.full((2, 3), np.nan)).sum() == 0
