"""A mixture of experts of the OLMoE architecture whose gate is chosen by name, in the form of transformers.

Attention, norms, embeddings and the experts' matrices are those of OLMoE; what decides which experts a
token uses is one of ``sparsescope.models.structure.gates``. With the gate ``top_k`` it computes what
``OlmoeForCausalLM`` does. All gates get the same initialization of everything else from one seed: each gate
takes one number of the random stream, from which it draws its own.

The experts' module gets ``top_k_index`` and ``top_k_weights`` [N, K], where K is the most experts that a
token can use: all of them with a gate that has no fixed number. A slot of weight zero is no choice, and its
expert is not computed; count weights, not slots.

Shapes: N = batch * pos tokens, d = hidden_size, f = intermediate_size, E experts, K slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import GenerationMixin, OlmoeConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.olmoe.modeling_olmoe import (
    OlmoeAttention,
    OlmoeExperts,
    OlmoeModel,
    OlmoePreTrainedModel,
    OlmoeRMSNorm,
    OlmoeRotaryEmbedding,
)
from transformers.utils.output_capturing import OutputRecorder

from sparsescope.errors import SpecError
from sparsescope.models.structure.gates import gate_class, gate_options
from sparsescope.models.structure.gates.base import Gate, slots_of


class GatedMixtureConfig(OlmoeConfig):
    """Sizes of a ``GatedMixtureForCausalLM``, and its gate.

    Attributes:
        gate: One of ``sparsescope.models.structure.gates.GATES``.
        gate_options: What differs from the defaults of the gate; all of them after the configuration was
            made.
        num_experts_per_tok: K, which the gate decides; 0 where it is not given.
    """

    model_type = "gated_mixture"

    num_experts: int = 8
    num_experts_per_tok: int = 0
    gate: str = "top_k"
    gate_options: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        options = gate_options(self.gate, self.gate_options)
        slots = gate_class(self.gate).most_experts(options, self.num_experts)
        if self.num_experts_per_tok not in (0, slots):
            raise SpecError(
                "the gate decides how many experts a token can use",
                where="num_experts_per_tok",
                allowed=f"{slots} with this gate, or nothing",
                got=self.num_experts_per_tok,
                next_step="leave it out, and set gate_options",
            )
        self.gate_options, self.num_experts_per_tok = options.model_dump(), slots
        super().__post_init__(**kwargs)


class GatedMixtureExperts(OlmoeExperts):
    """The experts: gated MLPs stored in 3-D tensors, each run on the tokens that weigh it."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Sum the weighted experts.

        Args:
            hidden_states: [N, d].
            top_k_index: Experts of each token, int64 [N, K].
            top_k_weights: [N, K]; where it is zero the expert is not computed.

        Returns:
            [N, d].
        """
        out = torch.zeros_like(hidden_states)
        used = top_k_weights != 0
        for expert in range(self.num_experts):
            token, slot = ((top_k_index == expert) & used).nonzero(as_tuple=True)
            if not len(token):
                continue
            gate, up = linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            said = linear(self.act_fn(gate) * up, self.down_proj[expert])
            out.index_add_(0, token, (said * top_k_weights[token, slot, None]).to(out.dtype))
        return out


class GatedMixtureBlock(nn.Module):
    """Gate and experts."""

    def __init__(self, config: GatedMixtureConfig) -> None:
        super().__init__()
        options = gate_options(config.gate, config.gate_options)
        self.gate = gate_class(config.gate)(
            config.hidden_size, config.num_experts, options, vocabulary=config.vocab_size
        )
        self.experts = GatedMixtureExperts(config)

    def forward(
        self, hidden_states: torch.Tensor, token_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output [batch, pos, d] and the penalty of the gate, a scalar.

        Args:
            hidden_states: [batch, pos, d].
            token_ids: int64 [batch, pos].
        """
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        gating = self.gate(flat, None if token_ids is None else token_ids.reshape(-1))
        index, weights = slots_of(gating.weights, self.gate.slots)
        out = self.experts(flat, index, weights.to(flat.dtype))
        return out.reshape(hidden_states.shape), gating.penalty


class GatedMixtureDecoderLayer(GradientCheckpointingLayer):
    """Attention, then the mixture, each after a norm and added to the residual stream."""

    def __init__(self, config: GatedMixtureConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = OlmoeAttention(config, layer_idx)
        self.mlp = GatedMixtureBlock(config)
        self.input_layernorm = OlmoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = OlmoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        token_ids: torch.Tensor | None = None,
        penalties: list[torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the residual stream after the block, [batch, pos, d].

        Args:
            hidden_states: [batch, pos, d].
            token_ids: int64 [batch, pos].
            penalties: The penalty of the gate is appended to it.
            **kwargs: What ``OlmoeAttention`` takes.
        """
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        mixed, penalty = self.mlp(self.post_attention_layernorm(hidden_states), token_ids)
        if penalties is not None:
            penalties.append(penalty)
        return hidden_states + mixed


class GatedMixturePreTrainedModel(OlmoePreTrainedModel):
    """What both classes share: names and initialization."""

    config_class = GatedMixtureConfig
    config: GatedMixtureConfig
    _no_split_modules = ["GatedMixtureDecoderLayer"]  # noqa: RUF012  # the type that transformers declares
    _can_record_outputs = {  # noqa: RUF012
        "router_logits": OutputRecorder(Gate, index=0),
        "hidden_states": GatedMixtureDecoderLayer,
        "attentions": OlmoeAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as OLMoE does; a gate draws from one number, so that what comes after does not
        depend on which gate it is.
        """
        if isinstance(module, Gate):
            seed = int(torch.randint(2**62, ()))
            module.reset(torch.Generator().manual_seed(seed), self.config.initializer_range)
        else:
            super()._init_weights(module)


class GatedMixtureModel(GatedMixturePreTrainedModel, OlmoeModel):
    """The model below the output head."""

    def __init__(self, config: GatedMixtureConfig) -> None:
        OlmoePreTrainedModel.__init__(self, config)  # not that of OlmoeModel, which makes layers of its own
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            GatedMixtureDecoderLayer(config, number) for number in range(config.num_hidden_layers)
        )
        self.norm = OlmoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = OlmoeRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> MoeModelOutputWithPast:
        """Return the residual stream after the last norm; arguments as of ``OlmoeModel``."""
        return OlmoeModel.forward(self, input_ids=input_ids, token_ids=input_ids, **kwargs)


class GatedMixtureForCausalLM(GatedMixturePreTrainedModel, GenerationMixin):
    """The model with its output head.

    Attributes:
        penalty_weight: Weight of ``aux_loss`` in a training: the gates weigh their own terms.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    penalty_weight = 1.0

    def __init__(self, config: GatedMixtureConfig) -> None:
        super().__init__(config)
        self.model = GatedMixtureModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def gates(self) -> list[Gate[Any]]:
        """The gate of each layer."""
        return [layer.mlp.gate for layer in self.model.layers]

    def after_step(self, progress: float) -> None:
        """Update what the gates do not learn by gradients, after the optimizer's step.

        Args:
            progress: Share of the training that is done, up to 1.
        """
        for gate in self.gates:
            gate.after_step(progress)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Return logits [batch, pos, V] and, as ``aux_loss``, the mean over layers of the gates' penalties.

        Args:
            input_ids: int64 [batch, pos].
            logits_to_keep: Of the last positions only, where it is not 0.
            **kwargs: What ``OlmoeModel`` takes.
        """
        penalties: list[torch.Tensor] = []
        found = self.model(input_ids=input_ids, penalties=penalties, **kwargs)
        logits = self.lm_head(slice_logits_to_keep(found.last_hidden_state, logits_to_keep))
        return MoeCausalLMOutputWithPast(
            logits=logits,
            aux_loss=torch.stack(penalties).mean(),
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
            router_logits=found.router_logits,
        )
