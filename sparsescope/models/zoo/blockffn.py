"""BlockFFN (Song et al. 2025, arXiv:2507.08771): a Llama whose MLP is made of small experts that ReLU
chooses, with losses that make consecutive tokens use few and the same of them, in the form of transformers.

The layer is in ``blockffn_layer.py``, the losses and the schedule of their weight in ``blockffn_losses.py``.
With ``output_router_logits`` the model gives the scores of its routers and ``aux_loss``, the mean over its
layers of ``chunk_loss`` (steered) times the chunk loss plus ``locality_loss`` times the activation locality.

Shapes: E experts of e hidden units, d hidden_size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, MoeCausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from sparsescope.errors import SpecError
from sparsescope.models.zoo.blockffn_layer import BlockFFN
from sparsescope.models.zoo.blockffn_losses import (
    AdaptiveFactor,
    activation_locality,
    chunk_sparsification,
)


class BlockFFNConfig(LlamaConfig):
    """Sizes of a ``BlockFFNForCausalLM``, and what its losses weigh.

    Attributes:
        ffn_experts: E.
        expert_size: e.
        intermediate_size: E e, which follows; 0 where it is not given.
        chunk_loss: Weight of the chunk loss at the beginning.
        locality_loss: Weight of the activation locality.
        loss_chunk: Tokens of a chunk of the chunk loss.
        sharpness: Factor of the scores in the activation locality.
        warmup_steps: Steps in which both weights grow from zero.
        hold_steps: Steps before the weight of the chunk loss is steered.
        period_steps: Steps between two changes of it.
        least_growth: The smallest factor of a change.
        most_growth: The largest weight of the chunk loss, in times of ``chunk_loss``.
    """

    model_type = "blockffn"
    base_model_tp_plan = {}  # noqa: RUF012  # that of Llama names matrices of its MLP

    intermediate_size: int = 0
    ffn_experts: int = 40
    expert_size: int = 64
    chunk_loss: float = 0.05
    locality_loss: float = 0.002
    loss_chunk: int = 64
    sharpness: float = 100.0
    warmup_steps: int = 0
    hold_steps: int = 1000
    period_steps: int = 100
    least_growth: float = 1.025
    most_growth: float = 4.0

    def __post_init__(self, **kwargs: Any) -> None:
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise SpecError(
                    "a value of the configuration is too small",
                    where=name,
                    allowed=f"{least} or more",
                    got=getattr(self, name),
                    next_step="mend [model.config] of the recipe",
                )
        wide = self.ffn_experts * self.expert_size
        if self.intermediate_size not in (0, wide):
            raise SpecError(
                "the experts decide how wide the hidden layer is",
                where="intermediate_size",
                allowed=f"{wide} with {self.ffn_experts} experts of {self.expert_size}, or nothing",
                got=self.intermediate_size,
                next_step="leave it out, and set ffn_experts and expert_size",
            )
        self.intermediate_size = wide
        super().__post_init__(**kwargs)


_LEAST = {
    "ffn_experts": 1,
    "expert_size": 1,
    "chunk_loss": 0,
    "locality_loss": 0,
    "loss_chunk": 1,
    "sharpness": 0,
    "warmup_steps": 0,
    "hold_steps": 0,
    "period_steps": 1,
    "least_growth": 1,
    "most_growth": 1,
}


class BlockFFNDecoderLayer(GradientCheckpointingLayer):
    """Attention, then the experts, each after a norm and added to the residual stream."""

    def __init__(self, config: BlockFFNConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer_idx)
        self.mlp = BlockFFN(
            config.hidden_size, config.ffn_experts, config.expert_size, config.hidden_act, config.rms_norm_eps
        )
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        router_scores: list[torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the residual stream after the block, [batch, pos, d].

        Args:
            hidden_states: [batch, pos, d].
            router_scores: A0 [batch, pos, E] is appended to it.
            **kwargs: What ``LlamaAttention`` takes.
        """
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        said: torch.Tensor = self.mlp(self.post_attention_layernorm(hidden_states), router_scores)
        return hidden_states + said


class BlockFFNPreTrainedModel(LlamaPreTrainedModel):
    """What both classes share: names and initialization."""

    config_class = BlockFFNConfig
    config: BlockFFNConfig
    _no_split_modules = ["BlockFFNDecoderLayer"]  # noqa: RUF012  # the type that transformers declares
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": BlockFFNDecoderLayer,
        "attentions": LlamaAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as Llama does; the schedule goes to its beginning."""
        if isinstance(module, AdaptiveFactor):
            module.reset()
        else:
            super()._init_weights(module)


class BlockFFNModel(BlockFFNPreTrainedModel, LlamaModel):
    """The model below the output head."""

    def __init__(self, config: BlockFFNConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # not that of LlamaModel, which makes layers of its own
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            BlockFFNDecoderLayer(config, number) for number in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class BlockFFNForCausalLM(BlockFFNPreTrainedModel, GenerationMixin):
    """The model with its output head.

    Attributes:
        penalty_weight: Weight of ``aux_loss`` in a training: the configuration weighs its terms.
        factor: The weight of the chunk loss, steered.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    penalty_weight = 1.0

    def __init__(self, config: BlockFFNConfig) -> None:
        super().__init__(config)
        self.model = BlockFFNModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.factor = AdaptiveFactor(
            config.chunk_loss,
            warmup=config.warmup_steps,
            hold=config.hold_steps,
            period=config.period_steps,
            least=config.least_growth,
            most=config.most_growth,
        )
        self._chunk_losses: list[float] = []
        self.post_init()

    @property
    def experts(self) -> list[BlockFFN]:
        """The experts of each layer."""
        return [layer.mlp for layer in self.model.layers]

    def compute_only_active(self, only_active: bool = True) -> None:
        """Compute nothing for experts that a token does not use: the same up to rounding.

        Args:
            only_active: False to compute all experts again.
        """
        for mlp in self.experts:
            mlp.only_active = only_active

    def after_step(self, progress: float) -> None:
        """Steer the weight of the chunk loss, after the optimizer's step.

        Args:
            progress: Share of the training that is done, which the schedule does not need.
        """
        losses, self._chunk_losses = self._chunk_losses, []
        if losses:
            self.factor.after_step(sum(losses) / len(losses))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_router_logits: bool = False,
        document_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Return logits [batch, pos, V].

        Args:
            input_ids: int64 [batch, pos].
            attention_mask: [batch, pos], 0 where a token is padding.
            logits_to_keep: Of the last positions only, where it is not 0.
            output_router_logits: Also give A0 of each layer, [batch, pos, E], and ``aux_loss``.
            document_ids: int64 [batch, pos]: losses do not look across documents. None where a row is one.
            **kwargs: What ``LlamaModel`` takes.
        """
        scores: list[torch.Tensor] | None = [] if output_router_logits else None
        found: BaseModelOutputWithPast = self.model(
            input_ids=input_ids, attention_mask=attention_mask, router_scores=scores, **kwargs
        )
        states: Any = found.last_hidden_state
        logits = self.lm_head(slice_logits_to_keep(states, logits_to_keep))
        given: Any = None if scores is None else tuple(scores)
        return MoeCausalLMOutputWithPast(
            logits=logits,
            aux_loss=None
            if scores is None
            else self._penalty(scores, _documents(attention_mask, document_ids)),
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
            router_logits=given,
        )

    def _penalty(self, scores: list[torch.Tensor], documents: torch.Tensor | None) -> torch.Tensor:
        config = self.config
        layers = [one.float() for one in scores]
        chunk = torch.stack(
            [chunk_sparsification(one, config.loss_chunk, documents) for one in layers]
        ).mean()
        penalty = self.factor.value * chunk
        if config.locality_loss:
            local = [activation_locality(one, documents, config.sharpness) for one in layers]
            penalty = penalty + config.locality_loss * torch.stack(local).mean()
        if self.training and torch.is_grad_enabled():
            self._chunk_losses.append(float(chunk.detach()))
        return self.factor.ramp * penalty


def _documents(mask: torch.Tensor | None, documents: torch.Tensor | None) -> torch.Tensor | None:
    """The document of each token, below zero where it is padding; None where each row is one document."""
    if mask is None or mask.ndim != 2:
        return documents
    if documents is None:
        documents = torch.zeros_like(mask, dtype=torch.int64)
    return documents.masked_fill(mask == 0, -1)
