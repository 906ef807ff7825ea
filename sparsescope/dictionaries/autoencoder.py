"""Sparse autoencoders: what all architectures share.

    pre = W_enc (x - b_dec) + b_enc;   z = rule(pre);   x^ = z W_dec + b_dec

An architecture is one file with its rule and what it adds to the loss. The loss is in units of the variance
of what is reconstructed (the fraction of variance unexplained, FVU), so that coefficients and learning
rates carry over between layers and models. Decoder rows have unit norm while training.

Shapes: x [row, d_in]; encoder [width, d_in]; encoder_bias [width]; decoder [width, d_out]; decoder_bias
[d_out]. SAELens stores encoder and decoder as W_enc [d_in, width] and W_dec [width, d_out].
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from sparsescope.dictionaries.base import Dictionary, as_rows, leading_shape
from sparsescope.dictionaries.codes import SparseCodes
from sparsescope.dictionaries.entries import Entries, choose, decode_entries, encode_entries
from sparsescope.errors import SpecError
from sparsescope.kernels import sparse_codes as kernels

Normalize = Literal["none", "layer_norm"]
NORMALIZE = ("none", "layer_norm")
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_LAYER_NORM_EPS = 1e-5


@dataclass(slots=True)
class Step:
    """What a training step knows beside its rows.

    Attributes:
        progress: Share of the training that is done, in [0, 1].
        warmup: Weight of sparsity penalties, from 0 to 1 in the first steps.
        dead: bool [width], features that were not active for the dead window.
        variance: Mean squared distance of a row to the mean, the unit of the loss.
    """

    progress: float
    warmup: float
    dead: torch.Tensor
    variance: float


@dataclass(slots=True)
class Loss:
    """Loss of a batch.

    Attributes:
        total: What is minimised.
        codes: The codes, without gradients.
        parts: Named parts, for the curves; ``fvu`` is always there.
    """

    total: torch.Tensor
    codes: SparseCodes
    parts: dict[str, float] = field(default_factory=dict)


class SparseAutoencoder(Dictionary, torch.nn.Module):
    """A sparse autoencoder; architectures derive from it.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        d_out: Width of what it writes; None for ``d_in``. Another one is a transcoder's.
        site: Name of the site that it reads.
        site_out: Name of the site that a transcoder writes.
        subtract_decoder_bias: Whether the decoder bias is subtracted before encoding.
        normalize: ``layer_norm`` standardises each row and undoes it (``reconstruct``); files have it.
        skip: Whether a linear map of the input is added to the output (skip transcoders).
        dtype: Type of the parameters.
        seed: Of the initial directions.

    Raises:
        SpecError: A number is out of range, or a combination cannot be.
    """

    #: Names of further arguments of the constructor, stored in files.
    settings: tuple[str, ...] = ()
    #: Whether training scores in bfloat16 to choose entries, whose scores are then exact.
    low_precision = False

    def __init__(
        self,
        d_in: int,
        width: int,
        *,
        d_out: int | None = None,
        site: str = "",
        site_out: str = "",
        subtract_decoder_bias: bool | None = None,
        normalize: Normalize = "none",
        skip: bool = False,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        torch.nn.Module.__init__(self)
        d_out = d_in if d_out is None else d_out
        for name, value in (("d_in", d_in), ("width", width), ("d_out", d_out)):
            check_whole(self, name, value, 1)
        if normalize not in NORMALIZE or dtype not in DTYPES:
            raise SpecError(
                "a setting of the dictionary is unknown",
                where=f"{type(self).__name__}(normalize, dtype)",
                allowed=f"{', '.join(NORMALIZE)}; {', '.join(DTYPES)}",
                got=f"{normalize}; {dtype}",
            )
        self.d_in, self.width, self.d_out = d_in, width, d_out
        self.site, self.site_out, self.normalize, self.seed = site, site_out, normalize, seed
        if subtract_decoder_bias is None:
            subtract_decoder_bias = self.d_out == self.d_in and not site_out
        if subtract_decoder_bias and self.d_out != self.d_in:
            raise SpecError(
                "a decoder bias of another width cannot be subtracted from the input",
                where=f"{type(self).__name__}(subtract_decoder_bias)",
                got=f"d_in {d_in}, d_out {self.d_out}",
            )
        self.subtract_decoder_bias = subtract_decoder_bias
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(width, self.d_out, generator=generator)
        decoder = torch.nn.functional.normalize(directions, dim=1)
        if self.d_out == self.d_in:
            encoder = decoder.clone()
        else:
            encoder = torch.nn.functional.normalize(torch.randn(width, d_in, generator=generator), dim=1)
        kind = DTYPES[dtype]
        self.encoder = torch.nn.Parameter(encoder.to(kind))
        self.encoder_bias = torch.nn.Parameter(torch.zeros(width, dtype=kind))
        self.decoder = torch.nn.Parameter(decoder.to(kind))
        self.decoder_bias = torch.nn.Parameter(torch.zeros(self.d_out, dtype=kind))
        self.skip_weight = torch.nn.Parameter(torch.zeros(self.d_out, d_in, dtype=kind)) if skip else None
        #: What is known of its origin, JSON; kept in files.
        self.metadata: dict[str, Any] = {}

    @property
    def directions(self) -> torch.Tensor:
        """Rows of the decoder, [width, d_out]."""
        return self.decoder.detach()

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the constructor that make a dictionary of these shapes and rules."""
        names = ("d_in", "width", "d_out", "site", "site_out", "subtract_decoder_bias", "normalize")
        found = {name: getattr(self, name) for name in (*names, *self.settings)}
        found["dtype"] = str(self.encoder.dtype).removeprefix("torch.")
        return found | {"skip": self.skip_weight is not None}

    # The rule

    @abstractmethod
    def select(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The rule that is exported: from scores [row, width] to indices, scores and counts of the entries.

        Raises:
            SpecError: The rule is not known yet (a threshold that is set after training).
        """

    def values(self, scores: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Activations of entries from their scores, [entry]."""
        return scores

    # Encoding

    def encode(self, x: torch.Tensor) -> SparseCodes:
        """See ``Dictionary.encode``; the rule that is exported."""
        return self._encode(self._normalized(self._rows(x))[0])

    def decode(self, codes: SparseCodes) -> torch.Tensor:
        """See ``Dictionary.decode``.

        Raises:
            SpecError: The dictionary needs the row itself (``layer_norm``, or a linear skip).
        """
        if self.normalize != "none" or self.skip_weight is not None:
            raise SpecError(
                "codes alone do not say what this dictionary reconstructs: it needs the row itself",
                where=f"{self.architecture}, {'skip' if self.skip_weight is not None else self.normalize}",
                next_step="call reconstruct(x)",
            )
        return self._decode(codes)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """See ``Dictionary.reconstruct``."""
        found = self.reconstruct_rows(self._rows(x))[1]
        if self.d_out == self.d_in:
            return found.reshape(x.shape)
        return found.reshape(*leading_shape(x, self.d_in), self.d_out)

    @torch.no_grad()
    def reconstruct_rows(self, rows: torch.Tensor) -> tuple[SparseCodes, torch.Tensor]:
        """Codes and reconstruction of rows [row, d_in], encoded once."""
        normal, mean, scale = self._normalized(self._rows(rows))
        codes = self._encode(normal)
        found = self._decode(codes)
        if self.normalize == "layer_norm":
            found = found * scale + mean
        if self.skip_weight is not None:
            found = found + self._rows(rows) @ self.skip_weight.T
        return codes, found

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        return as_rows(x, self.d_in, self.site or "activations").to(self.encoder.device, self.encoder.dtype)

    def _normalized(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.normalize == "none":
            return rows, rows.new_zeros(1), rows.new_ones(1)
        mean, scale = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
        # As in files of others: eps keeps the division safe, and is not undone
        return (rows - mean) / (scale + _LAYER_NORM_EPS), mean, scale

    def _shifted(self, rows: torch.Tensor) -> torch.Tensor:
        return rows - self.decoder_bias.detach() if self.subtract_decoder_bias else rows

    @torch.no_grad()
    def _encode(self, rows: torch.Tensor) -> SparseCodes:
        entries = choose(self._shifted(rows), self.encoder, self.encoder_bias, self.select)
        return entries.codes(self.values(entries.scores, entries.indices))

    @torch.no_grad()
    def _decode(self, codes: SparseCodes) -> torch.Tensor:
        values = codes.values.to(self.decoder.dtype).contiguous()
        found = kernels.decode(codes.indices, values, codes.offsets, self.decoder.detach())
        return found + self.decoder_bias.detach()

    # Training

    def allocate(self, rows: torch.Tensor, step: Step) -> Entries:
        """The rule of training: which entries a batch of rows [row, d_in], shifted already, has."""
        return choose(rows, self.encoder, self.encoder_bias, self.select, self.low_precision)

    def activate(self, scores: torch.Tensor, entries: Entries) -> torch.Tensor:
        """Activations from scores [entry], with gradients."""
        return scores

    def penalty(
        self, values: torch.Tensor, entries: Entries, rows: torch.Tensor, residual: torch.Tensor, step: Step
    ) -> dict[str, torch.Tensor]:
        """What the loss has beside the error, by name, in units of the variance.

        Args:
            values: Activations [entry].
            entries: Their places.
            rows: [row, d_in], shifted.
            residual: What is not reconstructed, [row, d_out], without a gradient.
            step: The step.
        """
        return {}

    def error(
        self, values: torch.Tensor, entries: Entries, target: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The error in units of the variance, and the residual [row, d_out] without a gradient."""
        residual = target - self.decoder_bias - decode_entries(values, self.decoder, entries)
        return residual.square().sum() / (len(target) * step.variance), residual.detach()

    def loss(self, rows: torch.Tensor, target: torch.Tensor, step: Step) -> Loss:
        """The loss of a batch.

        Args:
            rows: [row, d_in].
            target: [row, d_out]; the rows themselves unless it is a transcoder.
            step: The step.
        """
        shift = self.decoder_bias if self.subtract_decoder_bias else None
        shifted = self._shifted(rows)
        entries = self.allocate(shifted, step)
        scores = encode_entries(shifted, self.encoder, self.encoder_bias, entries, shift)
        values = self.activate(scores, entries)
        if self.skip_weight is not None:
            target = target - rows @ self.skip_weight.T
        error, residual = self.error(values, entries, target, step)
        added = self.penalty(values, entries, shifted, residual, step)
        total = error + sum(added.values()) if added else error
        parts = {"fvu": float(residual.square().sum()) / (len(target) * step.variance)}
        parts |= {name: float(value.detach()) for name, value in added.items()}
        return Loss(total, entries.codes(values), parts)

    @torch.no_grad()
    def begin(self, mean: torch.Tensor, mean_out: torch.Tensor, sample: torch.Tensor, centred: bool) -> None:
        """Set the biases before training.

        Args:
            mean: Mean of the rows, [d_in].
            mean_out: Mean of what is reconstructed, [d_out].
            sample: Rows [row, d_in], for architectures that set thresholds.
            centred: Whether the mean is taken out of the rows (arXiv:2605.31518); else the biases stay 0.
        """
        if centred:
            self.decoder_bias.copy_(mean_out)
            if not self.subtract_decoder_bias:
                self.encoder_bias.copy_(-(self.encoder @ mean.to(self.encoder.dtype)))

    @torch.no_grad()
    def after_update(self) -> None:
        """Called after each optimizer step."""

    @torch.no_grad()
    def rescale(self, scale_in: float, scale_out: float) -> None:
        """Turn a dictionary of rows divided by ``scale_in``, and outputs by ``scale_out``, into one of the
        rows themselves. Decoder rows keep their norm.
        """
        self.encoder.mul_(scale_out / scale_in)
        self.encoder_bias.mul_(scale_out)
        self.decoder_bias.mul_(scale_out)
        if self.skip_weight is not None:
            self.skip_weight.mul_(scale_out / scale_in)

    @torch.no_grad()
    def fold_decoder_norm(self) -> None:
        """Give every decoder row unit norm and its feature the inverse factor; nothing else changes.

        Features whose decoder row is zero stay as they are.
        """
        norms = self.decoder.norm(dim=1)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        self.decoder.div_(norms[:, None])
        self.encoder.mul_(norms[:, None])
        self.encoder_bias.mul_(norms)
        self._scale_thresholds(norms)

    def _scale_thresholds(self, factor: torch.Tensor | float) -> None:
        """Multiply what the rule compares scores with."""

    def to_inference(self) -> SparseAutoencoder:
        """See ``Dictionary.to_inference``."""
        return self

    def copied(self, kind: type[SparseAutoencoder], **settings: Any) -> SparseAutoencoder:
        """A dictionary of another architecture with these weights."""
        shared = {name: value for name, value in self.config.items() if name not in self.settings}
        other = kind(**{**shared, **settings})
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if name in own:
                    parameter.copy_(own[name])
        other.metadata = dict(self.metadata)
        return other


def check_whole(owner: object, name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse what is not a whole number in the range.

    Raises:
        SpecError: It is not.
    """
    if type(value) is int and value >= least and (most is None or value <= most):
        return
    raise SpecError(
        f"{name} is not possible",
        where=f"{type(owner).__name__}({name})",
        allowed=f"a whole number from {least}" + (f" to {most}, the number of features" if most else " on"),
        got=repr(value),
    )


def check_number(owner: object, **numbers: float) -> None:
    """Refuse numbers that are negative, NaN or infinite.

    Raises:
        SpecError: One is.
    """
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise SpecError(
                f"{name} is not possible", where=f"{type(owner).__name__}({name})", allowed="0 or more",
                got=repr(value),
            )  # fmt: skip
