"""``Subject``: a model under study, with tokenizer, identity, sites and weight matrices by role.

It never changes the model that it holds. Passes run in inference mode, in evaluation mode,
without cache and, unless logits are asked for, without the output head.

Shapes: ids [batch, pos] in; hidden states [batch, pos, d_model] or logits [batch, pos, vocabulary] out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch

from sparsescope.core.result import Severity
from sparsescope.core.shown import Shown
from sparsescope.core.variant import Variant, arguments_text, json_parameters
from sparsescope.errors import SpecError, SubjectError, unknown_name
from sparsescope.models.identity import SubjectIdentity as SubjectIdentity
from sparsescope.models.identity import config_hash, fingerprint, n_parameters, weight_hash
from sparsescope.models.provenance import declared as _declared
from sparsescope.models.provenance.beyond_weights import CURE, Found, scan, sentences
from sparsescope.models.provenance.notes import notes_of
from sparsescope.models.provenance.reading import reading_of
from sparsescope.models.structure import applied as _applied
from sparsescope.models.structure import parameters as _parameters
from sparsescope.models.structure import positions as _positions
from sparsescope.models.structure import sites as _sites
from sparsescope.models.structure.edits import Replace, edit
from sparsescope.models.structure.memory import copied, memory_estimate
from sparsescope.models.structure.parameters import ParameterSite
from sparsescope.models.structure.passes import evaluating as evaluating
from sparsescope.models.structure.patterns import select
from sparsescope.models.structure.positions import Padding, Side
from sparsescope.models.structure.reach import LENGTH, Reached
from sparsescope.models.structure.roles import Block, submodule, text_config
from sparsescope.models.structure.sites import Site, have_exact_zeros
from sparsescope.models.structure.token_ids import within_table
from sparsescope.models.structure.visits import alone
from sparsescope.models.torch_environment import dtype_name

_HIDDEN_ROLES = ("mlp.hook_post", "mlp.experts.hook_post", "mlp.shared_expert.hook_post")


class _Stopped(BaseException):
    """Ends a forward pass after the last wanted block. Not an error: code of a model that catches
    those must let it pass.
    """


class Subject(Shown):
    """A model under study. Make one with ``load`` or ``wrap``.

    Threads may share one: while one of them runs a pass, reads or edits, the others wait.

    Args:
        model: HF model.
        blocks: The roles found in its blocks.
        tokenizer: Its fast tokenizer, or None.
        id: Name of the subject.
        revision: Revision that was loaded, or None.
        origin_precision: Precision of the stored weights.
        trust_remote_code: Whether code of the repository was allowed to run.
        source: The name or path that was given to ``load``; None for a wrapped model.
        variant: How it was made from another subject; None where it was not.
        declared: What of the model beyond its weights the variant says that it adds.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[Block],
        tokenizer: Any,
        *,
        id: str,
        revision: str | None,
        origin_precision: str,
        trust_remote_code: bool = False,
        source: str | None = None,
        variant: Variant | None = None,
        declared: Sequence[Found] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.id = id
        self.revision = revision
        self.origin_precision = origin_precision
        self.trust_remote_code = trust_remote_code
        self.source = source
        self.variant = variant
        self.blocks = tuple(blocks)
        self._declared = tuple(declared)
        self._checked: dict[str, Any] = {}  # matrices that were found to be what their modules apply
        self._hash: tuple[Any, str] | None = None
        self._reached = Reached()
        self.paddings: dict[Any, Padding] = {}  # what was measured, see ``takes_padding``
        self._as_loaded = None if source is None else (fingerprint(model), config_hash(model))

    def _shown(self) -> dict[str, object]:
        model = f"{type(self.model).__name__}, {self.n_layers} layers x {self.d_model}"
        return {"id": self.id, "model": model, "dtype": f"{self.dtype} from {self.origin_precision}"}

    @property
    def unchanged(self) -> bool:
        """Whether ``load`` gave this very model; False for a wrapped model and for one that
        was changed since.
        """
        return self._as_loaded is not None and self._as_loaded == (
            fingerprint(self.model),
            config_hash(self.model),
        )

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(text_config(self.model).hidden_size)

    @property
    def device(self) -> str:
        """Device of the parameters, for example ``"cpu"`` or ``"cuda:0"``."""
        return str(next(self.model.parameters()).device)

    @property
    def dtype(self) -> str:
        """Precision that holds most weights, for example ``"float32"``."""
        return dtype_name(self.torch_dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same as a torch dtype."""
        sizes: dict[torch.dtype, int] = {}
        for parameter in self.model.parameters():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def identity(self) -> SubjectIdentity:
        """Everything that a result depends on. The hash is renewed when the weights change."""
        mark = fingerprint(self.model)
        if self._hash is None or self._hash[0] != mark:
            self._hash = (mark, weight_hash(self.model))
        return SubjectIdentity(
            id=self.id,
            revision=self.revision,
            weight_hash=self._hash[1],
            config_hash=config_hash(self.model),
            origin_precision=self.origin_precision,
            dtype=self.dtype,
            attn_implementation=str(getattr(self.model.config, "_attn_implementation", None) or "default"),
            device=self.device,
            architecture=type(self.model).__name__,
            n_parameters=n_parameters(self.model),
            n_layers=self.n_layers,
            d_model=self.d_model,
            trust_remote_code=self.trust_remote_code,
            variant=self.variant,
            reading=reading_of(self),
        )

    @property
    def notes(self) -> tuple[tuple[Severity, str], ...]:
        """What a reader of any result of this subject has to know, as severity and sentence."""
        return notes_of(self.model, self.blocks, self._all_parameters, self.origin_precision)

    @property
    def unstorable(self) -> tuple[str, ...]:
        """What this model computes with that no hash covers, and no variant declares: with other contents of
        it the identity would be the same, so that no run may be stored, or opened for it.
        """
        found = sentences(self._undeclared())
        return tuple(f"{one} computes with what no hash covers; {CURE}" for one in found)

    def _undeclared(self) -> list[Found]:
        beyond = self.variant is not None and bool(self.variant.beyond_weights)
        return _declared.undeclared(self.model, self._declared if beyond else ())

    @property
    def max_positions(self) -> int | None:
        """Tokens of a window that the model was made for, None where its config sets no limit."""
        return _positions.usable_positions(self.model)

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """What analyses can ask of a subject: ``hidden_units``, ``mlp_hidden``, ``mlp_gated``, ``experts``,
        ``small_experts``, ``attention``, ``logits``, ``tokenizer``, ``causal``, ``encoder``, ``exact_zeros``.

        ``hidden_units`` means that the hidden layer of an MLP, or of experts, can be read somewhere;
        ``mlp_hidden`` that ``blocks.*.mlp.hook_post`` can be asked for: no layer is sparse. ``causal``
        means that outputs do not depend on later tokens, which is measured; ``encoder`` that they do.
        ``logits`` means an output head over the vocabulary: a subject with both ``causal`` and ``logits`` has
        a loss of the next token; one without a head (a bare model, a reward model) can be causal as well.
        """
        roles = {site.role for site in self._all_sites}
        hidden = [site for site in self._all_sites if site.role.endswith("hook_post")]
        causal = _positions.is_causal(self)
        facts = {
            "mlp_hidden": "mlp.hook_post" in roles and not self._sparse_layers(),
            "hidden_units": bool(hidden),
            "mlp_gated": any(site.gated for site in hidden),
            "experts": "mlp.experts.hook_post" in roles,
            "small_experts": "mlp.router.hook_weights" in roles,
            "attention": "attn.hook_z" in roles,
            "logits": self.has_head,
            "tokenizer": self.tokenizer is not None,
            "causal": causal,
            "encoder": not causal,
            "exact_zeros": have_exact_zeros(self._all_sites),
        }
        return frozenset(name for name, present in facts.items() if present)

    @property
    def backbone(self) -> Any:
        """The HF module below the output head; it gives hidden states without logits."""
        base = self.model.base_model
        if base is self.model and self.has_head:  # a class that does not name its base
            base = next((child for child in self.model.children() if hasattr(child, "config")), base)
        return base

    def forward(self, input_ids: Any, attention_mask: Any = None, logits: bool = False) -> torch.Tensor:
        """Run the model once, in inference mode.

        Args:
            input_ids: Integers [batch, pos], tensor or NumPy array, on any device.
            attention_mask: True or 1 where a token is real, [batch, pos]; None when all are.
            logits: Run the output head too.

        Returns:
            Logits [batch, pos, vocabulary], or the last hidden state [batch, pos, d_model].

        Raises:
            SubjectError: Logits are asked of a model without output head, or the ids do not fit: their
                shape, or a token beyond the embedding table (``token_ids``).
        """
        ids = torch.as_tensor(input_ids, dtype=torch.int64, device=self.device)
        if ids.ndim != 2 or ids.numel() == 0:
            raise SubjectError(
                "token ids must be [batch, pos] and not empty",
                where="Subject.forward(input_ids)",
                got=tuple(ids.shape),
                next_step="for one sequence give [[...]]",
            )
        if logits and not self.has_head:
            raise SubjectError(
                "this model has no output head, so it has no logits",
                where=f"{self.id} ({type(self.model).__name__})",
                next_step="use hidden states, or load the model class with its language-model head",
            )
        ids = within_table(self, ids, attention_mask)
        module = self.model if logits else self.backbone
        arguments = self.mask_arguments(module, ids, attention_mask)
        with alone(self.model), torch.inference_mode(), evaluating(self.model):
            output = module(input_ids=ids, **arguments)
        return output.logits if logits else output.last_hidden_state

    def forward_through(self, layer: int, input_ids: Any, attention_mask: Any = None) -> None:
        """Run the blocks up to ``layer``, and none after it, for hooks that look at them; there is no output.

        Args:
            layer: Number of the last block that is run.
            input_ids: As in ``forward``.
            attention_mask: As in ``forward``.
        """
        if layer == self.n_layers - 1:  # what comes after the last block is next to nothing
            self.forward(input_ids, attention_mask)
            return

        def stop(module: Any, args: tuple[Any, ...], output: Any) -> None:
            raise _Stopped

        with alone(self.model):
            # Registered last, so it is called after all other hooks of the block.
            handle = submodule(self.model, self.blocks[layer].path).register_forward_hook(stop)
            try:
                self.forward(input_ids, attention_mask)
            except _Stopped:
                pass
            finally:
                handle.remove()

    def mask_arguments(self, module: Any, ids: torch.Tensor, attention_mask: Any) -> dict[str, Any]:
        """Return mask, positions and cache switch, as far as the module takes them.

        Args:
            module: The HF module that will be called: the model, or its backbone.
            ids: int64 [batch, pos].
            attention_mask: As in ``forward``.

        Raises:
            SubjectError: Mask and ids differ in shape, or padding on that side would change the outputs of
                real tokens. Whether it does is measured at the first padded pass.
        """
        return _positions.arguments(self, module, ids, attention_mask)

    def takes_padding(self, side: Side) -> bool:
        """Whether a padded row gives, for its real tokens, what the row alone gives; measured once.

        Args:
            side: ``"left"`` or ``"right"``.
        """
        return _positions.padding(self, self.backbone, side).sound

    @cached_property
    def has_head(self) -> bool:
        """Whether there is an output head over the vocabulary."""
        return self.model.get_output_embeddings() is not None

    @cached_property
    def _all_sites(self) -> tuple[Site, ...]:
        return _sites.sites_of(self.model, self.blocks, self.d_model)

    @cached_property
    def _all_parameters(self) -> tuple[ParameterSite, ...]:
        return _parameters.parameters_of(self.model, self.blocks)

    def _sparse_layers(self) -> tuple[int, ...]:
        return tuple(block.layer for block in self.blocks if block.experts is not None)

    def sites(self, patterns: str | Sequence[str]) -> tuple[Site, ...]:
        """Return the sites that patterns such as ``blocks.*.mlp.hook_post`` name, by layer.

        Raises:
            SubjectError: A pattern matches nothing; the message lists candidates and near matches.
        """
        return select(self._all_sites, patterns, self.n_layers, self._sparse_layers())

    def hidden_sites(self) -> tuple[Site, ...]:
        """Return the sites of the MLP hidden layer in the form that it takes in each layer:
        dense, or per expert.
        """
        return tuple(site for site in self._all_sites if site.role in _HIDDEN_ROLES)

    def site_names(self) -> tuple[str, ...]:
        """Return the name of every site."""
        return tuple(site.name for site in self._all_sites)

    def attach(
        self, sites: Sequence[Site], callback: Callable[[Site, torch.Tensor, torch.Tensor | None], None]
    ) -> AbstractContextManager[None]:
        """Read activations of this subject; see ``sites.attach``."""
        return _sites.attach(self.model, sites, callback)

    def edit(self, sites: Sequence[Site], replace: Replace) -> AbstractContextManager[None]:
        """Replace activations of this subject while a ``with`` block runs; see ``edits.edit``.

        The first edit of a site is tried beforehand; one that does not reach what the model goes on with is
        refused, see ``reach.Reached``.
        """
        self._reached.check(self.model, self.blocks, sites, self.sample_ids(2), self.forward)
        return edit(self.model, sites, replace)

    def parameter_sites(self, patterns: str | Sequence[str]) -> tuple[ParameterSite, ...]:
        """Return the weight matrices that patterns such as ``weight:blocks.*.mlp.out.weight`` name.

        Raises:
            SubjectError: A pattern matches nothing.
        """
        return select(self._all_parameters, patterns, self.n_layers, self._sparse_layers())

    def parameter(self, name: str | ParameterSite) -> torch.Tensor:
        """Return one weight matrix (out, in): the one that its module applies to what it reads.

        Where that is the stored parameter, which is found out once by comparing, it is a view: writing to it
        writes to the model. Where it is not, under an adapter that is not merged for example, it is
        computed, and cannot be written to.

        Args:
            name: ``weight:blocks.3.mlp.out.weight``; of experts ``...mlp.experts.5.out.weight``, or
                without a number all experts as [experts, out, in].

        Raises:
            SubjectError: There is no such parameter, or its module applies no matrix: it computes with
                quantized activations, or is not linear.
        """
        if isinstance(name, ParameterSite):
            return _applied.applied(self.model, name, self._checked)
        by_name = {site.name: site for site in self._all_parameters}
        site = by_name.get(name) or _parameters.batched(self._all_parameters, name)
        if site is None:
            hint = 'subject.parameter_sites("weight:blocks.*.*") lists them'
            of_experts = str(name).replace(".mlp.", ".mlp.experts.", 1)
            if _parameters.batched(self._all_parameters, of_experts) is not None:
                hint = f"this layer is a mixture of experts: {of_experts} gives all of them; {hint}"
            raise unknown_name("parameter", name, by_name, next_step=hint, error=SubjectError)
        return _applied.applied(self.model, site, self._checked)

    def sample_ids(self, batch: int) -> torch.Tensor:
        """A few equal sequences of spread token ids, int64 [batch, 8 or the most positions], to try on."""
        size, length = int(text_config(self.model).vocab_size), min(LENGTH, self.max_positions or LENGTH)
        return torch.tensor([[(17 + 31 * n) % size for n in range(length)]] * batch, device=self.device)

    def memory_estimate(self, batch_tokens: int = 2048) -> dict[str, int]:
        """Estimate the memory of one forward pass of so many tokens, in bytes.

        Returns:
            ``weights`` (exact), ``activations`` (the widest block at work), ``captured`` (the hidden
            layers of all MLPs kept at once, in the compute dtype), ``logits`` and ``total``.
        """
        return memory_estimate(self, self._all_sites, batch_tokens)

    def copy(self, id: str | None = None, *, share_weights: bool = False) -> Subject:
        """Return a subject with its own copy of the model, to be pruned or made sparse; see ``with_variant``.

        Args:
            id: Name of the copy; by default the same. A copy of a variant is that variant.
            share_weights: Copy the modules only; writing to a tensor of one writes to both.
        """
        made = self._around(copied(self.model, share_weights), id=id or self.id)
        made._declared = _declared.carried_over(self._declared, self._undeclared(), made.model)
        return made

    def with_variant(
        self, kind: str, parameters: Mapping[str, Any], *, of: Subject, adds: str = "", id: str | None = None
    ) -> Subject:
        """Return this subject with the record that it was made of another, so that neither opens the
        runs of the other.

        A pruned model adds nothing: its weights say it. One with thresholds, masks or hooks adds
        what they compute::

            sparse = subject.copy()
            ...  # hooks on sparse.model
            return sparse.with_variant("sparsified", {"target": 0.5}, of=subject,
                                       adds=sha256_of_the_thresholds)

        Args:
            kind: What was done, for example ``"pruned"``.
            parameters: With what parameters, JSON values.
            of: The subject that it was made of, as it is.
            adds: Hash of everything it adds that weights and configuration do not show; empty
                where they show all.
            id: Its name; by default ``KIND@NAME=VALUE,...:ID`` of the subject that it was made of.

        Raises:
            SpecError: The parameters are no JSON values, or ``of`` has the same model.
        """
        if of.model is self.model:
            raise SpecError(
                "a variant has a model of its own",
                where="Subject.with_variant(of)",
                got=f"{of.id}, which has the very model of the variant",
                next_step="change the model of subject.copy(), and give the subject as `of`",
            )
        found = scan(self.model).unhashed
        declared = of.variant is not None and of.variant.beyond_weights and not of._undeclared()
        if not adds and not (declared and _declared.same_beyond(self.model, of.model)):
            _declared.refuse_undeclared(self.model, found, where=f"with_variant({kind!r}, adds=...)")
        plain = json_parameters(kind, parameters)
        variant = Variant(kind=kind, parameters=plain, adds=adds, parent=of.identity.as_parent())
        arguments = f"@{arguments_text(plain)}" if plain else ""
        return self._around(
            self.model, id=id or f"{kind}{arguments}:{of.id}", variant=variant, declared=found
        )

    def loaded_as(self, source: str) -> Subject:
        """Return this subject with what ``load`` was given to make it."""
        return self._around(self.model, id=self.id, source=source, declared=self._declared)

    def _around(
        self,
        model: Any,
        *,
        id: str,
        source: str | None = None,
        variant: Variant | None = None,
        declared: Sequence[Found] = (),
    ) -> Subject:
        """A subject of the same kind around a model."""
        return Subject(
            model,
            self.blocks,
            self.tokenizer,
            id=id,
            revision=self.revision,
            origin_precision=self.origin_precision,
            trust_remote_code=self.trust_remote_code,
            source=source,
            variant=variant or self.variant,
            declared=declared,
        )

    def bridge(self) -> Any:
        """Return a ``TransformerBridge`` of TransformerLens on a deep copy of the model.

        Raises:
            SubjectError: TransformerLens has no adapter for the architecture.
        """
        from sparsescope.models.bridge import build_bridge

        return build_bridge(self)
