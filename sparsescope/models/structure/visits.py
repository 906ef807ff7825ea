"""Every site is seen exactly once in a forward pass, on batch x pos positions; all else is refused.

A hook that is not called leaves a hole, and one that is called twice leaves the second call: both look like
numbers. They come about where a forward was replaced and goes around its modules, where a module stands in
two places or is called in a loop, by ``module.forward(...)`` in place of ``module(...)``, in skipped layers,
and in models that pad inside.

A pass begins when the outermost module above the blocks is called, and ends when that returns; its token ids
say how many positions there are.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch

from sparsescope.errors import SubjectError
from sparsescope.models.structure.roles import submodule

if TYPE_CHECKING:
    from sparsescope.core.result import Severity
    from sparsescope.models.structure.sites import Site

P = ParamSpec("P")
T = TypeVar("T")
_TOKENS = ("input_ids", "inputs_embeds")
_locks: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextmanager
def alone(model: torch.nn.Module) -> Iterator[None]:
    """Run passes of a model in one thread at a time, and without compiled code.

    Hooks belong to the module, so a second thread that used it meanwhile would read and edit in the pass of
    the first. Compiled code does not see hooks that came after it was compiled.
    """
    with _making:
        lock = _locks.setdefault(model, threading.RLock())
    with lock, _uncompiled():
        yield


def _uncompiled() -> AbstractContextManager[Any]:
    """Ignore torch.compile; where nothing was compiled yet, its import would take seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def compiled_notes(model: torch.nn.Module) -> list[tuple[Severity, str]]:
    """What a result says about modules that were compiled in place; see ``alone``."""
    found = [path for path, module in model.named_modules() if module._compiled_call_impl is not None]
    if not found:
        return []
    said = (
        f"{len(found)} modules of the model are compiled ({found[0] or 'the model'} first); passes ran them "
    )
    return [("info", said + "uncompiled, since compiled code does not see hooks")]


def passing(model: torch.nn.Module) -> bool:
    """Whether hooks of ``attach`` or ``edit`` are on the model."""
    return any(
        getattr(hook, "__module__", "").startswith(__name__.rpartition(".")[0])
        for module in model.modules()
        for kind in _HOOKS
        for hook in getattr(module, kind).values()
    )


def structure_mark(model: torch.nn.Module) -> int:
    """A mark that changes when modules or their forwards are exchanged."""
    return hash(tuple((id(module), id(vars(module).get("forward"))) for module in model.modules()))


class Clock:
    """Time that was spent in checks.

    Attributes:
        seconds: The time.
        calls: How often something was checked.
    """

    def __init__(self) -> None:
        self.seconds, self.calls, self.inside = 0.0, 0, False


_clocks: list[Clock] = []


@contextmanager
def clocked() -> Iterator[Clock]:
    """Measure the checks of the passes in a ``with`` block; for one thread."""
    clock = Clock()
    _clocks.append(clock)
    try:
        yield clock
    finally:
        _clocks.remove(clock)


def _measured(function: Callable[P, T]) -> Callable[P, T]:
    """A check whose time is known to ``clocked``."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _clocks or _clocks[-1].inside:
            return function(*args, **kwargs)
        clock, begin = _clocks[-1], time.perf_counter()
        clock.inside = True
        try:
            return function(*args, **kwargs)
        finally:
            clock.inside = False
            clock.seconds += time.perf_counter() - begin
            clock.calls += 1

    return run


class Visits:
    """Counts how often each site is seen in a forward pass.

    Args:
        model: The model that the module paths of the sites start from.
        sites: The sites; all of them are to be seen in every pass.

    Attributes:
        shape: (batch, pos) of the running pass.
    """

    def __init__(self, model: Any, sites: Sequence[Site]) -> None:
        self.model = model
        self.sites = {site.name: site for site in sites}
        self.shape = (0, 0)
        self._seen: set[str] = set()
        self._opener: str | None = None

    @_measured
    def hooks(self) -> list[Any]:
        """Register what sees passes begin and end; return the handles."""
        paths = {site.block_path for site in self.sites.values()}
        above = {
            ".".join(parts[:end])
            for path in paths
            for parts in [path.split(".")]
            for end in range(len(parts))
        }
        handles = []
        for path in sorted(above):
            module = submodule(self.model, path)
            if module is None or isinstance(module, torch.nn.ModuleList):
                continue
            handles.append(module.register_forward_pre_hook(self._beginning(path), with_kwargs=True))
            handles.append(module.register_forward_hook(self._ending(path), always_call=True))
        return handles

    @_measured
    def see(self, site: Site) -> None:
        """Note that a site is seen.

        Raises:
            SubjectError: It was seen in this pass before, or there is no pass.
        """
        if self._opener is None:
            raise SubjectError(
                "a module of the model ran outside of a forward pass",
                where=f"{site.name} ({site.module_path})",
                allowed="calls of the model",
                next_step="call subject.forward(...) or model(...), never model.forward(...), "
                "which no hook sees",
            )
        if site.name in self._seen:
            raise self.refusal([site], "more than once", _cause(self.model, site, seen=True))
        self._seen.add(site.name)

    @_measured
    def see_experts(self, group: Sequence[Site], index: torch.Tensor | None) -> None:
        """Note that the experts of a layer are seen, those without tokens too.

        Args:
            group: Sites of one expert module.
            index: Experts of each token, [token, expert]; None where every expert runs on every token.

        Raises:
            SubjectError: As ``see``; or the mixture has another number of tokens than the pass.
        """
        for site in group:
            self.see(site)
        batch, pos = self.shape
        if index is not None and index[..., 0].numel() != batch * pos:
            raise SubjectError(
                "a mixture of experts was given other tokens than those of the pass",
                where=f"{group[0].name} ({group[0].module_path})",
                allowed=f"[{batch * pos}, experts per token]",
                got=list(index.shape),
                next_step="the architecture drops, pads or groups its tokens: its experts cannot be read",
            )

    @_measured
    def shaped(self, site: Site, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor of a site as [batch, pos, width], a view of what the model computes with.

        Raises:
            SubjectError: It has another width than the site, or other positions than the pass.
        """
        if not hasattr(tensor, "shape"):  # numbers with a scale beside them (I-BERT)
            raise SubjectError(
                "a module gave something else than a tensor",
                where=f"{site.name} ({site.module_path})",
                got=type(tensor).__name__,
                next_step="choose other sites; subject.site_names() lists them",
            )
        if site.part is not None:
            tensor = tensor[..., site.part[0] : site.part[1]]
        batch, pos = self.shape
        if tensor.shape == (batch, pos, site.width):
            return tensor
        if tensor.shape == (batch * pos, site.width):
            return tensor.reshape(batch, pos, site.width)
        what = "other positions than the pass"
        if tensor.shape[-1] != site.width:
            what = "another width than its site"
            cause = "the architecture is read wrongly: please report it with the name of the model"
        elif tensor.ndim > 3:
            cause = "the architecture carries several streams beside each other: this site has no one value"
        else:
            cause = (
                f"the model pads inside or rearranges its tokens; with as many tokens as it computes with "
                f"({tensor[..., 0].numel()} here) it may fit"
            )
        raise SubjectError(
            f"a module gave a tensor of {what}",
            where=f"{site.name} ({site.module_path})",
            allowed=f"[{batch}, {pos}, {site.width}], or [{batch * pos}, {site.width}]",
            got=list(tensor.shape),
            next_step=cause,
        )

    @_measured
    def check(self) -> None:
        """Close the pass, if one is open.

        Raises:
            SubjectError: A site was not seen in it.
        """
        opener, self._opener = self._opener, None
        if opener is None or len(self._seen) == len(self.sites):
            return
        missed = [site for name, site in self.sites.items() if name not in self._seen]
        raise self.refusal(missed, "not at all", _cause(self.model, missed[0], seen=False))

    def refusal(self, sites: Sequence[Site], seen: str, cause: str) -> SubjectError:
        """The error about sites that are not seen once in a pass."""
        return SubjectError(
            f"a site was seen {seen} in a forward pass, so its numbers would not be those of the model",
            where=f"{sites[0].name} ({sites[0].module_path})",
            allowed="once a pass",
            got=f"{seen}, {len(sites)} of {len(self.sites)} sites; likely cause: {cause}",
            next_step="use the model as its class computes it, or leave these layers out of the sites",
        )

    def _beginning(self, path: str) -> Callable[..., None]:
        @_measured
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._opener is not None and self._opener != path and path.startswith(self._opener):
                return  # below the module whose call is the pass
            self.check()  # of a pass that was stopped after its last wanted block
            self._opener = path
            self._seen.clear()
            tokens = next((kwargs[name] for name in _TOKENS if kwargs.get(name) is not None), None)
            if tokens is None:
                tokens = next((value for value in args if isinstance(value, torch.Tensor)), None)
            if tokens is None:
                raise SubjectError(
                    "the model was called without token ids",
                    where=type(module).__name__,
                    allowed=" or ".join(_TOKENS),
                    next_step="call subject.forward(ids)",
                )
            self.shape = int(tokens.shape[0]), int(tokens.shape[1])

        return hook

    def _ending(self, path: str) -> Callable[..., None]:
        @_measured
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            if self._opener != path:
                return
            if output is None:  # it failed: what it did not see is of no use to anybody
                self._opener = None
            self.check()

        return hook


def _cause(model: Any, site: Site, *, seen: bool) -> str:
    """What may have led a pass around a module, or through it twice."""
    module = submodule(model, site.module_path)
    if seen:
        places = [
            path for path, found in model.named_modules(remove_duplicate=False) if found is module and path
        ]
        if len(places) > 1:
            return f"one module stands in {len(places)} places: {', '.join(places[:3])}"
        return "the model calls this module several times"
    parts = site.module_path.split(".")
    for end in range(len(parts), 0, -1):
        path = ".".join(parts[:end])
        if isinstance(submodule(model, path), torch.nn.ModuleList):
            break
        patched = vars(submodule(model, path)).get("forward")
        if patched is not None:
            name = getattr(patched, "__qualname__", type(patched).__name__)
            return f"the forward of {path} was replaced by {name}"
    return "the layer was skipped, or its block goes around this module or calls its .forward(...)"
