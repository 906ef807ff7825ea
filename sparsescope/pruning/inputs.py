"""What matrices read on a calibration text: the norm of each input, and the Gram matrix.

One hook for each linear module, before it runs. Padding never counts; the first token of a window, on which
massive activations sit, counts unless it is left out. Every expert of a mixture is calibrated on the tokens
that were routed to it. Matrices that read the very same tensor (q, k and v; gate and in) share a statistic.
Sums over a batch are float32, over batches float64.
Shapes: x [tokens, in]; squares [in]; Gram matrix [in, in].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SubjectError

if TYPE_CHECKING:
    import torch

    from sparsescope.activations.text.tokenized import TokenBatch
    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.pruning.criteria import Reads

#: Module path, and for experts their number and whether it is the second matrix.
Key = tuple[str, int | None, bool]


@dataclass(slots=True)
class InputStatistics:
    """Sums over the calibration tokens that a matrix read.

    Attributes:
        tokens: How many there were.
        squares: float64 [in], sum of squares of each input.
        gram: float64 [in, in], sum of outer products; None where it was not asked for.
    """

    tokens: int = 0
    squares: torch.Tensor | None = None
    gram: torch.Tensor | None = None

    def add(self, x: torch.Tensor, with_gram: bool) -> None:
        """Count the inputs of some tokens, [tokens, in]."""
        import torch

        if not x.shape[0]:
            return
        values = x.float()
        self.tokens += x.shape[0]
        if with_gram:
            gram = (values.T @ values).double()
            self.gram = gram if self.gram is None else self.gram.add_(gram)
            return
        squares = torch.linalg.vector_norm(values, dim=0).square().double()
        self.squares = squares if self.squares is None else self.squares.add_(squares)

    @property
    def norms(self) -> torch.Tensor | None:
        """Root mean square of each input, float64 [in]; None where no token came."""
        squares = self.squares if self.gram is None else self.gram.diagonal()
        return None if squares is None else (squares.clamp(min=0) / self.tokens).sqrt()


def input_norms(inputs: InputStatistics | None, weight: torch.Tensor) -> torch.Tensor:
    """Root mean square of each input in the precision of a matrix, [in]; ones where no token came, so that
    the matrix is judged by its weights alone.
    """
    norms = None if inputs is None else inputs.norms
    return weight.new_ones(weight.shape[1]) if norms is None else norms.to(weight.device, weight.dtype)


def key_of(site: ParameterSite) -> Key:
    """Which statistic belongs to a matrix."""
    return site.module_path, site.expert, site.expert is not None and site.role.endswith("out.weight")


class Collector:
    """Reads the inputs of matrices while forward passes run.

    Args:
        model: The HF model.
        matrices: The matrices.
        reads: What is summed: norms or Gram matrices.
        first_positions: Whether the first token of each window counts.

    Attributes:
        found: The statistics; see ``of``.
    """

    def __init__(
        self,
        model: Any,
        matrices: Sequence[ParameterSite],
        reads: Reads,
        first_positions: bool = True,
    ) -> None:
        self.model, self.matrices = model, tuple(matrices)
        self.with_gram, self.first_positions = reads == "gram", first_positions
        self.found: dict[Key, InputStatistics] = {}
        self._shared: dict[str, str] = {}  # module -> the module before it that reads the same tensor
        self._last: dict[str, tuple[str, Any]] = {}  # by container: module and tensor read last
        self._rows: torch.Tensor | None = None
        self._shape: tuple[int, ...] = ()
        self._positions = 0

    def of(self, site: ParameterSite) -> InputStatistics:
        """What a matrix read; without tokens where none was routed to its expert.

        Raises:
            SubjectError: An input is not finite, or the matrix is that of no expert and read nothing.
        """
        path, expert, second = key_of(site)
        found = self.found.get((self._shared.get(path, path), expert, second), InputStatistics())
        if expert is None and not found.tokens:
            raise SubjectError(
                "a matrix read no calibration token",
                where=f"{site.name} ({path})",
                next_step="give a longer text, count first positions, or leave this matrix out of the scope",
            )
        if found.norms is not None and not bool(found.norms.isfinite().all()):
            raise SubjectError(
                "what a matrix reads is not finite on the calibration text",
                where=f"{site.name} ({path})",
                got=f"{int((~found.norms.isfinite()).sum())} of {site.shape[1]} inputs",
                next_step="load the model in float32 or bfloat16, or use a criterion that reads no text",
            )
        return found

    @property
    def bytes(self) -> int:
        """Size of the statistics."""
        tensors = [t for entry in self.found.values() for t in (entry.squares, entry.gram) if t is not None]
        return sum(tensor.nbytes for tensor in tensors)

    def begin(self, batch: TokenBatch, device: str) -> None:
        """Say which tokens of the next pass count."""
        import torch

        wanted = batch.kept_mask
        if not self.first_positions:
            wanted &= batch.position > 0
        self._shape, self._positions = wanted.shape, wanted.size
        rows = None if wanted.all() else torch.from_numpy(wanted.reshape(-1).nonzero()[0]).to(device)
        self._rows = rows
        self._last.clear()

    @contextmanager
    def reading(self, layer: int | None = None) -> Iterator[None]:
        """Have hooks on the modules of one block, or of all."""
        from sparsescope.models.structure.experts import is_fused
        from sparsescope.models.structure.sites import module_at

        wanted = [site for site in self.matrices if layer is None or site.layer == layer]
        with ExitStack() as handles:
            for path in dict.fromkeys(site.module_path for site in wanted):
                module = module_at(self.model, path)
                hook = self._experts(path) if is_fused(module) else self._linear(path)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                handles.callback(handle.remove)
            yield
        self._last.clear()

    def _linear(self, path: str) -> Any:
        from sparsescope.models.structure.sites import argument

        home = path.rpartition(".")[0]

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = argument(args, kwargs, 0)
            leader, tensor = self._last.get(home, ("", None))
            if tensor is x:  # q, k and v; gate and in
                if (path, None, False) in self.found:
                    raise self._unsteady(path)
                self._shared[path] = leader
                return
            if path in self._shared:
                raise self._unsteady(path)
            self._last[home] = path, x
            self._add((path, None, False), self._counted(x, path))

        return hook

    def _experts(self, path: str) -> Any:
        from sparsescope.models.structure.experts import expert_inputs, sizes, takes_routing
        from sparsescope.models.structure.sites import argument

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            index = argument(args, kwargs, 1) if takes_routing(module) else None
            states = argument(args, kwargs, 0)
            tokens = (states if index is None else index)[..., 0].numel()
            if index is None:  # every expert gets every token
                tokens //= sizes(module)[0]
            if tokens != self._positions:
                raise self._other_tokens(path, tokens)
            for expert, into, hidden, rows in expert_inputs(module, states, index):
                if self._rows is not None:
                    counted = rows.new_zeros(self._positions).bool()
                    counted[self._rows] = True
                    chosen = counted[rows]
                    into, hidden = into[chosen], hidden[chosen]
                self._add((path, expert, False), into)
                self._add((path, expert, True), hidden)

        return hook

    def _counted(self, x: torch.Tensor, path: str) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if flat.shape[0] != self._positions:
            raise self._other_tokens(path, flat.shape[0])
        # In another order, padding could not be told from text
        if x.ndim > 2 and self._rows is not None and x.shape[:-1] not in (self._shape, (1, self._positions)):
            raise self._other_tokens(path, flat.shape[0], f" as {list(x.shape[:-1])}")
        return flat if self._rows is None else flat[self._rows]

    def _other_tokens(self, path: str, tokens: int, how: str = "") -> SubjectError:
        return SubjectError(
            "a matrix reads other tokens than the text has",
            where=path,
            allowed=f"{self._positions} positions, [{', '.join(map(str, self._shape))}]",
            got=f"{tokens}{how}",
            next_step="leave it out of the scope, or use a criterion that reads no text",
        )

    def _unsteady(self, path: str) -> SubjectError:
        return SubjectError(
            "matrices that read one tensor together do so in some passes only",
            where=path,
            next_step="leave it out of the scope, or use a criterion that reads no text",
        )

    def _add(self, key: Key, x: torch.Tensor) -> None:
        self.found.setdefault(key, InputStatistics()).add(x, self.with_gram)
