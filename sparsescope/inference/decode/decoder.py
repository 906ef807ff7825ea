"""A loop that generates token by token, dense and sparse by the same code.

The prompt is read in one pass with torch, from the same stored weights; every further token is one call of
``DecodeStep``. Masks act where the prefix policy of the calibration says; norms, attention and sums are
float32 whatever the weights are stored in. With ``backend="reference"`` every token goes through the pass of
the prompt: slow, readable, and what the compiled step is tested against.

Shapes: ids int64 [T]; logits float32 [vocabulary].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from sparsescope.core.shown import Shown
from sparsescope.errors import SpecError, unknown_name
from sparsescope.inference.decode.weights import ROLES, check_model, stacked_groups
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.kernels.backends import check_backend
from sparsescope.kernels.decode_step import GROUPS, DecodeStep
from sparsescope.kernels.weight_rows import Stored, rows_by_output

if TYPE_CHECKING:
    from sparsescope.inference.calibration import Calibration
    from sparsescope.models.subject import Subject

Backend = Literal["reference", "numba"]


class Decoder(Shown):
    """A model that is ready to generate.

    Args:
        subject: A dense model of the Llama family, on the CPU.
        calibration: Masks of this model; None for dense decoding.
        prefix: Another prefix policy than that of the calibration.
        stored: How the matrices of the blocks are stored.
        head: How the output head and the embedding are stored; as ``stored`` when None.
        backend: ``numba``, or ``reference``.
        longest: Longest sequence, prompt and answer together.

    Raises:
        SubjectError: The architecture is not known, or the calibration is of another model.
        KernelError: The backend cannot be used on this machine.

    Example:
        >>> from sparsescope.models.sources import load
        >>> decoder = Decoder(load("random-llama"), backend="reference", longest=32)
        >>> len(decoder.generate([1, 5, 9], 4))
        4
    """

    def __init__(
        self,
        subject: Subject,
        calibration: Calibration | None = None,
        *,
        prefix: str | PrefixPolicy | None = None,
        stored: Stored = "float32",
        head: Stored | None = None,
        backend: Backend = "numba",
        longest: int = 2048,
    ) -> None:
        if backend not in ("reference", "numba"):
            raise unknown_name("backend", backend, ("reference", "numba"), next_step="numba is the fast one")
        check_backend(backend, torch.device("cpu"))
        check_model(subject)
        if calibration is not None:
            calibration.check(subject)
        model, config = subject.model, subject.model.config
        self.subject, self.stored, self.backend = subject, stored, backend
        self.policy = PrefixPolicy.of(
            prefix if prefix is not None else "all_sparse" if calibration is None else calibration.prefix
        )
        if calibration is not None:
            self.policy.check(longest, "Decoder(longest)")
        self.sparse = calibration is not None
        self.longest, self.length, self.first_sparse = longest, 0, 0
        self._taken = 0  # compiled steps that were counted
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        with torch.no_grad():
            groups = stacked_groups(subject, () if calibration is None else calibration.masks, stored)
            inner = model.model
            norms = [[b.input_layernorm.weight, b.post_attention_layernorm.weight] for b in inner.layers]
            self.head = rows_by_output(model.lm_head.weight.float(), head or stored)
            tied = model.lm_head.weight.data_ptr() == inner.embed_tokens.weight.data_ptr()
            self.embedding = (
                self.head if tied else rows_by_output(inner.embed_tokens.weight.float(), head or stored)
            )
            angles = torch.arange(longest).float()[:, None] * inner.rotary_emb.inv_freq.float()
            scaling = inner.rotary_emb.attention_scaling
            self._step = DecodeStep(
                norms=torch.stack([torch.stack(pair) for pair in norms]).float().contiguous(),
                groups=groups,
                final_norm=inner.norm.weight.detach().float().contiguous(),
                head=self.head,
                cosines=angles.cos() * scaling,
                sines=angles.sin() * scaling,
                keys=torch.zeros(subject.n_layers, kv_heads, longest, size),
                values=torch.zeros(subject.n_layers, kv_heads, longest, size),
                heads=heads,
                epsilon=config.rms_norm_eps,
            )

    def _shown(self) -> dict[str, object]:
        return {
            "subject": self.subject.id,
            "sparse": self.sparse,
            "prefix": self.policy.text,
            "stored": self.stored,
            "head": self.head.stored,
            "backend": self.backend,
            "longest": self.longest,
        }

    @property
    def block_bytes(self) -> int:
        """Bytes of the stored matrices of the blocks."""
        return sum(one.nbytes for group in self._step.groups for one in group.layers)

    @property
    def compiled_step(self) -> DecodeStep:
        """The step and its arrays."""
        return self._step

    def begin(self, prompt: Sequence[int]) -> torch.Tensor:
        """Forget what was read, and read a prompt.

        Args:
            prompt: Token ids, at least one.

        Returns:
            Logits after the last token.

        Raises:
            SpecError: It is empty, too long, or has ids that the model does not know.
        """
        self._check(prompt, before=0)
        self.length = 0
        share = {"decode_only": 1.0, "dense_fraction": self.policy.value}.get(self.policy.kind)
        self.first_sparse = (
            math.ceil(share * len(prompt))
            if share is not None
            else int(self.policy.value)
            if self.policy.kind == "dense_first_n"
            else 0
        )
        return self._pass(torch.tensor(prompt))

    def step(self, token: int) -> torch.Tensor:
        """Read one more token; returns the logits after it.

        Raises:
            SpecError: No prompt was read, the sequence is full, or the id is not known.
        """
        if not self.length:
            raise SpecError(
                "no prompt was read, so that the prefix policy has nothing to count from",
                where="Decoder.step",
                allowed="begin(prompt) first",
                next_step="begin([token]) reads a single one",
            )
        self._check([token], before=self.length)
        if self.backend == "reference":
            return self._pass(torch.tensor([token]))
        x = self._embed(torch.tensor([token]))[0]
        logits = self._step(x, self.length, self.sparse and self.length >= self.first_sparse)
        self.length += 1
        self._taken += 1
        return logits

    def force(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """Read a prompt and then a given answer, token by token (teacher forcing).

        Returns:
            Logits before each token of the answer, [tokens, vocabulary].
        """
        rows = [self.begin(prompt)]
        rows += [self.step(token) for token in answer[:-1]]
        return torch.stack(rows)

    def generate(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stop: Sequence[int] = (),
    ) -> list[int]:
        """Generate as transformers does: greedy at temperature 0, else sampled.

        Args:
            prompt: Token ids.
            new_tokens: How many at most.
            temperature: Logits are divided by it.
            top_k: Only so many largest logits; 0 for all.
            top_p: Only the smallest set with this probability.
            generator: Draws; needed at a temperature above 0.
            stop: Tokens after which it ends, such as that of the end of text.

        Returns:
            The new tokens, a stopping one included.

        Raises:
            SpecError: The prompt does not fit, there is no generator, or no such way to draw.
        """
        if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
            raise SpecError(
                "there is no such way to draw",
                where="generate",
                allowed="temperature and top_k from 0 on, top_p above 0 and at most 1",
                got=f"temperature {temperature:g}, top_k {top_k}, top_p {top_p:g}",
                next_step="temperature=0 takes the most probable token",
            )
        if temperature > 0 and generator is None:
            raise SpecError(
                "sampling needs a generator, so that it can be repeated",
                where="generate(generator)",
                allowed="torch.Generator().manual_seed(0)",
                next_step="give one, or temperature=0",
            )
        self._check(prompt, before=0, more=new_tokens)
        made: list[int] = []
        logits = self.begin(prompt)
        while len(made) < new_tokens:
            made.append(self._choose(logits, temperature, top_k, top_p, generator))
            if made[-1] in stop or len(made) == new_tokens:
                break
            logits = self.step(made[-1])
        return made

    def realised(self) -> float:
        """Share of the block-matrix weights that the compiled steps since ``forget_counts`` left unread; NaN
        where there was none (the reference counts nothing).
        """
        read, steps = 0.0, self._taken
        for number, group in enumerate(self._step.groups):
            outputs = group.layers[0].outputs
            kept = self._step.kept[:, number].sum(0)
            if group.joint:
                read += float(kept[0]) * sum(outputs)
            else:
                read += sum(float(kept[part]) * size for part, size in enumerate(outputs))
        whole = sum(one.n_inputs * one.n_outputs for group in self._step.groups for one in group.layers)
        return 1 - read / (whole * steps) if steps else math.nan

    def forget_counts(self) -> None:
        """Begin to count kept inputs anew."""
        self._step.kept[:] = 0
        self._taken = 0

    def _choose(
        self,
        logits: torch.Tensor,
        temperature: float,
        top_k: int,
        top_p: float,
        generator: torch.Generator | None,
    ) -> int:
        if temperature == 0:
            return int(logits.argmax())
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        ids, scores = torch.empty(1, 0, dtype=torch.int64), logits[None]
        if temperature != 1:
            scores = TemperatureLogitsWarper(temperature)(ids, scores)
        if top_k:
            scores = TopKLogitsWarper(top_k)(ids, scores)
        if top_p < 1:
            scores = TopPLogitsWarper(top_p)(ids, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))

    def _check(self, ids: Sequence[int], before: int, more: int = 0) -> None:
        vocabulary = len(self.embedding.data)
        unknown = [token for token in ids if not 0 <= token < vocabulary]
        if not ids or unknown:
            raise SpecError(
                "these are no tokens of this model" if unknown else "there is no token",
                where="ids",
                allowed=f"0 to {vocabulary - 1}",
                got=unknown[:5],
                next_step="tokenize the text with the tokenizer of this model",
            )
        if before + len(ids) + more > self.longest:
            raise SpecError(
                "the sequence is longer than the cache",
                where="Decoder(longest)",
                allowed=f"{self.longest} tokens",
                got=before + len(ids) + more,
                next_step="make the decoder with a larger longest",
            )

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings, float32 [T, d]."""
        rows = self.embedding.data[ids, : self.embedding.width].float()
        if self.embedding.scale is not None:
            rows = (rows - 128) * self.embedding.scale[ids, None]
        return rows.contiguous()

    @torch.inference_mode()
    def _pass(self, ids: torch.Tensor) -> torch.Tensor:
        """Read tokens together with torch; returns the logits after the last one."""
        step, begin, count = self._step, self.length, len(ids)
        end = begin + count
        kv_heads, size = step.keys.shape[1], step.keys.shape[3]
        position = torch.arange(begin, end)
        sparse = (position >= self.first_sparse)[:, None] if self.sparse else None
        if sparse is not None and not bool(sparse.any()):
            sparse = None
        cosine, sine = step.cosines[begin:end], step.sines[begin:end]
        seen = torch.arange(end) <= position[:, None]
        x = self._embed(ids)
        for layer in range(len(step.norms)):
            made = self._product(0, layer, self._norm(x, step.norms[layer, 0]), sparse)
            query, key, value = made.split([step.heads * size, kv_heads * size, kv_heads * size], 1)
            query, key, value = (
                part.reshape(count, -1, size).transpose(0, 1) for part in (query, key, value)
            )
            step.keys[layer, :, begin:end] = _rotated(key, cosine, sine)
            step.values[layer, :, begin:end] = value
            mixed = scaled_dot_product_attention(
                _rotated(query, cosine, sine)[None],
                step.keys[layer, None, :, :end],
                step.values[layer, None, :, :end],
                attn_mask=seen,
                enable_gqa=True,
            )[0]
            x = x + self._product(1, layer, mixed.transpose(0, 1).reshape(count, -1), sparse)
            gate, up = self._product(2, layer, self._norm(x, step.norms[layer, 1]), sparse).chunk(2, 1)
            x = x + self._product(3, layer, silu(gate) * up, sparse)
        self.length = end
        return self.head.product(self._norm(x[-1:], step.final_norm))[0]

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._step.epsilon) * weight

    def _product(self, number: int, layer: int, x: torch.Tensor, sparse: torch.Tensor | None) -> torch.Tensor:
        """One group of matrices, masked at sparse positions."""
        group = self._step.groups[number]
        weight, bias = group.layers[layer], group.bias[:, layer]
        if sparse is None:
            y = weight.product(x)
            return y if not bias.shape[1] else y + bias[0]
        parts = []
        for part in range(1 if group.joint else len(ROLES[GROUPS[number]])):
            values = x - group.centres[layer, part]
            z = torch.where(sparse, values.masked_fill(values.abs() <= group.limits[layer, part], 0), x)
            parts.append(weight.product(z))
        if group.joint:
            y = parts[0]
        else:
            y = torch.cat([made.split(weight.outputs, 1)[part] for part, made in enumerate(parts)], 1)
        return y if not bias.shape[1] else y + torch.where(sparse, bias[1], bias[0])


def _rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions: x [heads, T, size]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
