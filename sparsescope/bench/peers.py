"""Other ways to read the same activations, for the benchmark ``capture``: plain hooks of
torch, and TransformerLens.

Each is a generator over batches that yields site name -> tensor [batch, pos, width], as an analyst would
write it. All read the same batches with the same masks, in the same dtype, in inference mode, and drop a
batch before the next one. What they leave undone: both keep padding rows, hooks take new memory for every
batch, and TransformerLens keeps the tensors of the forward pass themselves without a copy. None of them
refuses activations that are not finite, as ``capture`` does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

    Values = dict[str, torch.Tensor]

#: What ``run_with_cache`` hands on to the HF model so that it does no work which the sites do not need.
LEAN: dict[str, Any] = {"output_attentions": False, "use_cache": False, "logits_to_keep": 1}
_COMPARED_BATCHES = 4


def plain_hooks(
    subject: Subject, sites: Sequence[Site], batches: Iterable[TokenBatch]
) -> Generator[Values, None, None]:
    """Copy the tensors in forward hooks, during the forward pass without output head."""
    from sparsescope.models.structure.roles import submodule

    values: Values = {}

    def on_input(site: Site) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            values[site.name] = _part(site, args[site.argument]).clone()

        return hook

    def on_output(site: Site) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            values[site.name] = _part(site, output[0] if isinstance(output, tuple) else output).clone()

        return hook

    handles = []
    try:
        for site in sites:
            module = submodule(subject.model, site.module_path)
            if site.kind == "input":
                handles.append(module.register_forward_pre_hook(on_input(site)))
            else:
                handles.append(module.register_forward_hook(on_output(site)))
        for tokens in batches:
            subject.forward(*arguments(tokens, subject.device))
            yield values
    finally:
        for handle in handles:
            handle.remove()


def run_with_cache(
    bridge: Any, sites: Sequence[Site], batches: Iterable[TokenBatch], **options: Any
) -> Generator[Values, None, None]:
    """Call ``run_with_cache`` of a ``TransformerBridge`` with the names of the sites as filter
    and nothing returned.

    Args:
        bridge: ``subject.bridge()``.
        sites: Sites that have the same name in TransformerLens.
        batches: What the model reads.
        **options: Handed on to the HF model, for example ``LEAN``.
    """
    import torch

    names = [site.name for site in sites]
    device = str(next(bridge.original_model.parameters()).device)
    for tokens in batches:
        ids, mask = arguments(tokens, device)
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(
                ids,
                names_filter=names,
                return_type=None,
                return_cache_object=False,
                attention_mask=mask,
                **options,
            )
        yield {name: cache[name].flatten(2) for name in names}


def why_not_hooks(sites: Sequence[Site]) -> str | None:
    """Say why plain hooks cannot read the sites, None when they can."""
    if any(site.kind == "experts" for site in sites):
        return "hidden layers of experts are computed inside one module, where no plain hook sees them"
    return None


def why_not_transformer_lens(bridge: Any, sites: Sequence[Site]) -> str | None:
    """Say why a bridge cannot read the sites, None when it can."""
    absent = [site.name for site in sites if site.name not in bridge.hook_dict]
    return f"it has no hook {absent[0]}" if absent else None


def largest_difference(
    values: Generator[Values, None, None],
    subject: Subject,
    sites: Sequence[Site],
    corpus: TokenizedCorpus,
    batch_tokens: int,
) -> float:
    """Compare a way to read activations with ``capture``, on the first batches.

    Returns:
        Largest absolute difference at any site on real tokens, over the largest absolute value at that site.
        Infinite where the shapes differ.
    """
    import torch

    from sparsescope.activations.capture import capture

    worst = 0.0
    batches = corpus.batches(batch_tokens)
    names = [site.name for site in sites]
    # Left in the middle, a generator would keep its hooks on the model.
    with closing(values), capture(subject, corpus, names, batch_tokens=batch_tokens, reuse=True) as source:
        for _, ours, tokens, theirs in zip(range(_COMPARED_BATCHES), source, batches, values, strict=False):
            kept = torch.from_numpy(tokens.kept_mask.reshape(-1)).to(subject.device)
            for site in sites:
                expected, found = (
                    ours.values[site.name],
                    theirs[site.name].reshape(-1, theirs[site.name].shape[-1]),
                )
                if found.shape != (len(kept), expected.shape[1]):
                    return float("inf")
                scale = max(float(expected.abs().max()), 1e-30)
                worst = max(worst, float((found[kept] - expected).abs().max()) / scale)
    return worst


def arguments(tokens: TokenBatch, device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return token ids and mask of a batch on a device; no mask where nothing is padded."""
    import torch

    mask = None if tokens.attention_mask.all() else torch.from_numpy(tokens.attention_mask).to(device)
    return torch.from_numpy(tokens.input_ids).to(device), mask


def _part(site: Site, tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that belongs to a site."""
    return tensor if site.part is None else tensor[..., site.part[0] : site.part[1]]
