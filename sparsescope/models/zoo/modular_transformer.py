"""A small transformer without normalization, as in Nanda et al. 2023 (arXiv 2301.05217), in the
form of transformers.

Learned positions, bias-free attention, an MLP with biases, an output head of its own. Every block adds to the
residual stream what attention and MLP give; there is no LayerNorm, so what a neuron reads is linear in the
stream. No class of transformers has this shape. With one layer and few tokens, ``last_logits`` computes the
logits of the last position from tables of (token, position), several times faster than ``forward`` and equal
up to float rounding: it trains the model.

Shapes: V tokens of the vocabulary, n positions, d = hidden_size, h heads, f = intermediate_size,
[batch, pos] token ids.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparsescope.errors import SubjectError


class ModularTransformerConfig(PreTrainedConfig):
    """Sizes of a ``ModularTransformerForCausalLM``; ``hidden_size`` is divided evenly over the heads."""

    model_type = "modular_transformer"

    vocab_size: int = 114
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 1
    num_attention_heads: int = 4
    max_position_embeddings: int = 3
    hidden_act: str = "relu"
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = False


def _eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention; gives [batch, pos, head, head_dim] and the weights."""
    scores = query @ key.mT * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    return rearrange(weights @ value, "batch head pos width -> batch pos head width"), weights


class ModularAttention(nn.Module):
    """Causal self-attention without biases."""

    def __init__(self, config: ModularTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in range(4)
        )

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend; [batch, pos, d] in and out."""
        query, key, value = (
            rearrange(
                matrix(hidden_states), "batch pos (head width) -> batch head pos width", width=self.head_dim
            )
            for matrix in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager_attention)
        mixed, _ = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling)
        return self.o_proj(rearrange(mixed, "batch pos head width -> batch pos (head width)"))


class ModularMlp(nn.Module):
    """``fc2(act(fc1(x)))`` with biases."""

    def __init__(self, config: ModularTransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the output of the MLP; [..., d] in and out."""
        return self.fc2(self.act_fn(self.fc1(hidden_states)))


class ModularBlock(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, config: ModularTransformerConfig) -> None:
        super().__init__()
        self.self_attn = ModularAttention(config)
        self.mlp = ModularMlp(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the residual stream after the block; [batch, pos, d] in and out."""
        hidden_states = hidden_states + self.self_attn(hidden_states, attention_mask)
        return hidden_states + self.mlp(hidden_states)


class ModularTransformerPreTrainedModel(PreTrainedModel):
    """What both classes share: names, initialization, attention through the interface of transformers."""

    config_class = ModularTransformerConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["ModularBlock"]  # noqa: RUF012  # the type that transformers declares

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as the paper does: N(0, 1/d), of the output head N(0, 1/V); biases are zero."""
        if isinstance(module, nn.Linear | nn.Embedding):
            head = isinstance(module, nn.Linear) and module is self.get_output_embeddings()
            init.normal_(
                module.weight, std=(self.config.vocab_size if head else self.config.hidden_size) ** -0.5
            )
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)


class ModularTransformerModel(ModularTransformerPreTrainedModel):
    """The model below the output head."""

    def __init__(self, config: ModularTransformerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(ModularBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.embed_tokens

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> BaseModelOutput:
        """Return the residual stream after the last block.

        Args:
            input_ids: int64 [batch, pos].
            attention_mask: 1 where a token is real, [batch, pos]; None when all are.
            position_ids: int64 [batch, pos]; 0, 1, ... when None.

        Raises:
            SubjectError: A sequence has more positions than the model.
        """
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise SubjectError(
                "the sequence is longer than this model can read: it has one learned "
                "vector for each position",
                where="ModularTransformerModel.forward(input_ids)",
                allowed=f"at most {self.config.max_position_embeddings} positions",
                got=input_ids.shape[1],
                next_step="of a shipped series take the tokens of its probe set: "
                "open_series(name).probe().tokens",
            )
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        states = self.embed_tokens(input_ids) + self.embed_positions(position_ids)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=states,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=position_ids,
        )
        for block in self.layers:
            states = block(states, mask)
        return BaseModelOutput(last_hidden_state=states)


class ModularTransformerForCausalLM(ModularTransformerPreTrainedModel, GenerationMixin):
    """The model with its output head."""

    def __init__(self, config: ModularTransformerConfig) -> None:
        super().__init__(config)
        self.model = ModularTransformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output head."""
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Return logits [batch, pos, V]; of the last positions only where ``logits_to_keep`` is not 0."""
        states = self.model(input_ids, attention_mask, position_ids).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(states[:, -logits_to_keep:]))

    def last_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of the last position, by tables.

        With one layer, keys and values depend on (token, position) alone and only the last position needs a
        query, an MLP and the head: for V n << batch n rows the cost falls from n positions to one.

        Args:
            input_ids: int64 [batch, n] without padding.

        Returns:
            Logits [batch, V], equal to ``forward(input_ids, logits_to_keep=1)`` up to float rounding.

        Raises:
            SubjectError: The model has more than one layer.
        """
        if len(self.model.layers) != 1:
            raise SubjectError(
                "logits by tables need a model of one layer",
                where="ModularTransformerForCausalLM.last_logits",
                allowed="num_hidden_layers = 1",
                got=len(self.model.layers),
                next_step="call the model itself with logits_to_keep=1",
            )
        attention, mlp = self.model.layers[0].self_attn, self.model.layers[0].mlp
        n, heads = input_ids.shape[1], self.config.num_attention_heads
        embedded = self.model.embed_tokens.weight + self.model.embed_positions.weight[:n, None]  # [n, V, d]
        split = (self.config.vocab_size, heads, attention.head_dim)
        query = attention.q_proj(embedded[-1]).view(split)
        pairs = input_ids[:, -1] * self.config.vocab_size
        scores, values = [], []
        for position in range(n):
            key = attention.k_proj(embedded[position]).view(split)
            table = torch.einsum("qhe,khe->qkh", query, key).reshape(-1, heads) * attention.scaling
            scores.append(nn.functional.embedding(pairs + input_ids[:, position], table))
            values.append(
                nn.functional.embedding(input_ids[:, position], attention.v_proj(embedded[position]))
            )
        weights = torch.stack(scores, -1).softmax(-1)  # [batch, h, n]
        mixed: Any = sum(
            weights[:, :, position, None] * value.view(-1, heads, attention.head_dim)
            for position, value in enumerate(values)
        )
        states = nn.functional.embedding(input_ids[:, -1], embedded[-1]) + attention.o_proj(mixed.flatten(1))
        return self.lm_head(states + mlp(states))
