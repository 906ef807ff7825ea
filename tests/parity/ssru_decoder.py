"""The decoder of the Bergamot "tiny" models by its equations, to translate through hidden
states of an encoder.

Two layers of: SSRU (simpler simple recurrent unit: f = sigmoid(x Wf + bf), c = f * c + (1 - f) * (x W),
output relu(c)), attention over the source, ReLU MLP; each followed by residual and norm. The first
input is the zero vector; id 0 ends a sentence. Sources: Kim et al. 2019, "From Research to Production
and Back: Ludicrously Fast Neural Machine Translation"; ``src/rnn/cells.h`` and
``src/models/transformer.h`` of marian-nmt/marian-dev.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn.functional import layer_norm

from sparsescope.models.zoo.bergamot import LAYER_NORM_EPS, sinusoidal_positions

LAYERS, HEADS, END = 2, 8, 0


class Decoder:
    """Greedy translation.

    Args:
        weights: Arrays of the Marian file; matrices are (in, out).
    """

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = {name: torch.from_numpy(array) for name, array in weights.items()}
        self.embedding = self.weights["Wemb"]
        self.d_model = self.embedding.shape[1]

    def translate(self, states: torch.Tensor, longest: int = 40) -> list[int]:
        """Return the ids that hidden states [pos, d_model] of a source sentence, its end included,
        are translated to.
        """
        positions = sinusoidal_positions(longest, self.d_model)
        cells = [torch.zeros(1, self.d_model) for _ in range(LAYERS)]
        ids: list[int] = []
        for position in range(longest):
            previous = self.embedding[ids[-1]] * self.d_model**0.5 if ids else torch.zeros(self.d_model)
            x = (previous + positions[position])[None]
            for layer in range(LAYERS):
                x, cells[layer] = self._layer(f"decoder_l{layer + 1}_", x, cells[layer], states)
            scores = x @ self.embedding.T + self.weights["decoder_ff_logit_out_b"]
            ids.append(int(scores.argmax()))
            if ids[-1] == END:
                break
        return ids

    def _layer(
        self, head: str, x: torch.Tensor, cell: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        forget = torch.sigmoid(x @ self.weights[f"{head}rnn_Wf"] + self.weights[f"{head}rnn_bf"])
        cell = forget * cell + (1 - forget) * (x @ self.weights[f"{head}rnn_W"])
        x = self._norm(x + torch.relu(cell), f"{head}rnn_ffn_ln")
        q, k, v = (
            self._linear(source, f"{head}context_", name).unflatten(1, (HEADS, -1)).transpose(0, 1)
            for source, name in ((x, "q"), (states, "k"), (states, "v"))
        )
        mixed = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v
        x = self._norm(
            x + self._linear(mixed.transpose(0, 1).flatten(1), f"{head}context_", "o"), f"{head}context_Wo_ln"
        )
        hidden = torch.relu(self._linear(x, f"{head}ffn_", "1"))
        return self._norm(x + self._linear(hidden, f"{head}ffn_", "2"), f"{head}ffn_ffn_ln"), cell

    def _linear(self, x: torch.Tensor, head: str, name: str) -> torch.Tensor:
        return x @ self.weights[f"{head}W{name}"] + self.weights[f"{head}b{name}"]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale, bias = (self.weights[f"{name}_{part}"].reshape(-1) for part in ("scale", "bias"))
        return layer_norm(x, (self.d_model,), scale, bias, LAYER_NORM_EPS)
