"""Which module plays which role in a transformer block, found from the structure of HF modules.

Primary map, by module names of the common families; it needs no import beyond torch. Where it
finds no MLP, ``bridge.block_modules`` asks the adapter of TransformerLens 4.3, which knows 150
families but takes about 4 s to import. That is why the own map comes first; a parity test holds
that both agree wherever both answer.

Names: *in* and *out* are the first and second matrix of an MLP, *gate* the matrix whose output
goes through the activation in a gated MLP. ``part`` is a range of output rows when one module
holds several matrices (fused gate-up of Phi-3, fused qkv of GPT-2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sparsescope.errors import SubjectError


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix of a block.

    Attributes:
        path: HF path of the module that holds it.
        part: Range of output features inside a fused module, or None for the whole module.
    """

    path: str
    part: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class BlockRouter:
    """What weighs equal parts of the hidden layer of a dense MLP (BlockFFN), those at zero being unused.

    Attributes:
        scores: HF path of the matrix that scores the parts.
        weights: HF path of the module whose output weighs them.
    """

    scores: str
    weights: str


@dataclass(frozen=True, slots=True)
class Mlp:
    """A dense MLP: ``out(act(in(x)))`` or ``out(act(gate(x)) * in(x))``.

    Attributes:
        container: HF path of the MLP module; None when the block calls the matrices itself.
        into: First matrix (*up* in a gated MLP).
        out: Second matrix.
        gate: Gate matrix, None when the MLP is not gated.
        activation: ``relu``, ``gelu``, ``silu``, ...; None when it is not known.
        activation_path: HF path of the activation module, or None.
        router: What weighs parts of the hidden layer, None where nothing does.
    """

    container: str | None
    into: Matrix
    out: Matrix
    gate: Matrix | None = None
    activation: str | None = None
    activation_path: str | None = None
    router: BlockRouter | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """A sparse MLP: a router and experts whose matrices are stored as 3-D tensors.

    Attributes:
        container: HF path of the block of router and experts.
        path: HF path of the module with the 3-D tensors.
        router: HF path of the router, or None.
        shared: The expert that every token uses, or None.
        activation: Activation of the experts.
    """

    container: str
    path: str
    router: str | None
    shared: Mlp | None
    activation: str | None


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention. ``qkv`` is set only where q, k and v cannot be told apart as row ranges."""

    container: str
    out: Matrix | None
    q: Matrix | None = None
    k: Matrix | None = None
    v: Matrix | None = None
    qkv: Matrix | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """The roles of one transformer block."""

    layer: int
    path: str
    mlp: Mlp | None = None
    experts: Experts | None = None
    attention: Attention | None = None


# The dense layers of Granite 4 have nothing but what is the shared expert in the sparse ones.
_MLP_CONTAINERS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "shared_mlp", "")
_ROUTERS = ("gate", "router")
# What configurations call the number of experts that a token is sent to; modules say ``top_k``.
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
_SHARED_EXPERTS = ("shared_expert", "shared_experts", "shared_mlp")
# (gate, in, out); the gate is None in an MLP that is not gated.
_MLP_NAMES: tuple[tuple[str | None, str, str], ...] = (
    ("gate_proj", "up_proj", "down_proj"),
    ("w1", "w3", "w2"),
    (None, "c_fc", "c_proj"),
    (None, "fc1", "fc2"),
    (None, "fc_in", "fc_out"),
    (None, "dense_h_to_4h", "dense_4h_to_h"),
    (None, "up_proj", "down_proj"),
    (None, "lin1", "lin2"),
    (None, "intermediate.dense", "output.dense"),
)
_FUSED_GATE_UP = (("gate_up_proj", "down_proj"), ("input_linear", "output_linear"))
_ACTIVATION_NAMES = (
    "act_fn",
    "activation_fn",
    "act",
    "activation",
    "gelu_impl",
    "intermediate.intermediate_act_fn",
)
_ATTENTION_CONTAINERS = ("self_attn", "attn.attention", "attn", "attention", "self_attention")
_ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "output.dense", "wo")
_QKV_NAMES = (
    ("q_proj", "k_proj", "v_proj"),
    ("self.query", "self.key", "self.value"),
    ("q_lin", "k_lin", "v_lin"),
    ("wq", "wk", "wv"),
)
_FUSED_QKV = ("qkv_proj", "c_attn", "query_key_value", "Wqkv")
# Model types whose fused rows are [q; k; v]; in others they alternate by head (GPT-NeoX, Bloom, GPT
# BigCode) or by device (CodeGen), under the same module names.
_QKV_IN_ROWS = frozenset({"gpt2", "openai-gpt", "phi3"})


def submodule(root: Any, path: str) -> Any:
    """Return the module at a dotted path, or None. The empty path is the root."""
    module = root
    for name in path.split(".") if path else ():
        module = getattr(module, "_modules", {}).get(name)
        if module is None:
            return None
    return module


def features(module: Any) -> tuple[int, int]:
    """Return (out, in) of a linear module; ``Conv1D`` of GPT-2 stores its matrix transposed."""
    if hasattr(module, "in_features"):
        return module.out_features, module.in_features
    n_in, n_out = module.weight.shape
    return n_out, n_in


def is_linear(module: Any) -> bool:
    """Tell whether a module is one matrix: Linear (quantized kinds too) or Conv1D."""
    return module is not None and (hasattr(module, "in_features") or type(module).__name__ == "Conv1D")


def text_config(model: Any) -> Any:
    """Return the configuration of the language part of a model."""
    return model.config.get_text_config()


def find_blocks(model: Any) -> tuple[str, Any]:
    """Find the list of transformer blocks: the shallowest ``ModuleList`` with one module per layer.

    Returns:
        HF path and module of the list.

    Raises:
        SubjectError: There is none, or the model has an encoder and a decoder.
    """
    import torch

    config = text_config(model)
    n_layers = getattr(config, "num_hidden_layers", None)
    if getattr(config, "is_encoder_decoder", False):
        raise unsupported(model, "it has an encoder and a decoder, and sites name one stack of blocks")
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == n_layers
        and len({type(block) for block in module}) <= 3
        and any(True for _ in module[0].children())
    ]
    if not found:
        raise unsupported(model, "no list of transformer blocks was found in it")
    return min(found, key=lambda item: item[0].count("."))


def unsupported(model: Any, reason: str) -> SubjectError:
    """Build the error for an architecture whose sites cannot be named."""
    return SubjectError(
        f"the architecture {type(model).__name__} is not supported: {reason}",
        where=type(model).__module__,
        allowed="decoder-only language models and BERT-like encoders of transformers",
        next_step="load a model of a supported architecture, or ask for this one in an issue",
    )


@dataclass(slots=True)
class BlockReader:
    """Finds the roles of the blocks of one model."""

    model: Any
    d_model: int = field(init=False)

    def __post_init__(self) -> None:
        self.d_model = int(text_config(self.model).hidden_size)

    def read(self, layer: int, path: str, block: Any) -> Block:
        """Return the roles of one block; roles that the block lacks are None."""
        experts = self._experts(block, path)
        mlp = None if experts else self._mlp(block, path)
        return Block(layer, path, mlp, experts, self._attention(block, path))

    def _mlp(self, block: Any, path: str) -> Mlp | None:
        """Find a dense MLP in a block, in its containers and then in the block itself."""
        for name in _MLP_CONTAINERS:
            container = submodule(block, name)
            if container is None:
                continue
            mlp = self.mlp_in(container, _join(path, name), contained=bool(name))
            if mlp is not None:
                return mlp
        return None

    def mlp_in(self, container: Any, path: str, *, contained: bool = True) -> Mlp | None:
        """Find the matrices of a dense MLP directly below ``container``.

        Args:
            container: Module to look in.
            path: Its HF path.
            contained: False when the container is the block, which then has no MLP module.
        """
        activation, activation_path = activation_of(container, path, text_config(self.model))
        home = path if contained else None
        for fused, out in _FUSED_GATE_UP:
            modules = submodule(container, fused), submodule(container, out)
            if all(map(is_linear, modules)) and features(modules[0])[0] == 2 * features(modules[1])[1]:
                width, source = features(modules[1])[1], _join(path, fused)
                gate, up = Matrix(source, (0, width)), Matrix(source, (width, 2 * width))
                return Mlp(home, up, Matrix(_join(path, out)), gate, activation, activation_path)
        for gate_name, in_name, out_name in _MLP_NAMES:
            names = [name for name in (gate_name, in_name, out_name) if name is not None]
            found = [submodule(container, name) for name in names]
            if not all(map(is_linear, found)) or features(found[-1])[0] != self.d_model:
                continue
            matrices = [Matrix(_join(path, name)) for name in names]
            gate_matrix = matrices[0] if gate_name else None
            router = None if gate_name else _block_router(container, path)
            return Mlp(home, matrices[-2], matrices[-1], gate_matrix, activation, activation_path, router)
        return None

    def _experts(self, block: Any, path: str) -> Experts | None:
        """Find a sparse MLP: a container with a module ``experts``."""
        for name in _MLP_CONTAINERS:
            container = submodule(block, name)
            experts = submodule(container, "experts") if container is not None else None
            if experts is None:
                continue
            home = _join(path, name)
            activation, _ = activation_of(experts, _join(home, "experts"), text_config(self.model))
            router = _router(container, home)
            # GraniteMoeShared adds its shared expert in the block, beside the mixture
            shared = self._shared(container, home) or self._shared(block, path)
            return Experts(home, _join(home, "experts"), router, shared, activation)
        return None

    def _shared(self, container: Any, home: str) -> Mlp | None:
        """Find the expert that every token uses directly below ``container``."""
        name = _first(container, _SHARED_EXPERTS)
        return self.mlp_in(submodule(container, name), _join(home, name)) if name else None

    def _attention(self, block: Any, path: str) -> Attention | None:
        """Find self-attention in a block."""
        for name in _ATTENTION_CONTAINERS:
            container = submodule(block, name)
            if container is None:
                continue
            home = _join(path, name)
            out = next((o for o in _ATTENTION_OUT if is_linear(submodule(container, o))), None)
            if out is None:
                continue
            return Attention(home, Matrix(_join(home, out)), **self._qkv(container, home))
        return None

    def _qkv(self, container: Any, home: str) -> dict[str, Matrix]:
        """Find q, k and v: three modules, or row ranges of one, or one module as a whole."""
        for names in _QKV_NAMES:
            if all(is_linear(submodule(container, name)) for name in names):
                return {role: Matrix(_join(home, name)) for role, name in zip("qkv", names, strict=True)}
        name = _first(container, _FUSED_QKV)
        module = submodule(container, name) if name else None
        if name is None or not is_linear(module):
            return {}
        fused = Matrix(_join(home, name))
        config = text_config(self.model)
        head = getattr(config, "head_dim", None) or self.d_model // config.num_attention_heads
        n_kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        q_end = config.num_attention_heads * head
        k_end, v_end = q_end + n_kv * head, q_end + 2 * n_kv * head
        if config.model_type not in _QKV_IN_ROWS or v_end != features(module)[0]:
            return {"qkv": fused}
        parts = {"q": (0, q_end), "k": (q_end, k_end), "v": (k_end, v_end)}
        return {role: Matrix(fused.path, part) for role, part in parts.items()}


def activation_of(container: Any, path: str, config: Any) -> tuple[str | None, str | None]:
    """Return the name of an activation and the HF path of its module.

    The module decides, so a model whose activation was replaced after loading is read right;
    the configuration is asked only when there is no such module.

    Returns:
        Family name (``relu``, ``relu2``, ``gelu``, ``silu``, ``tanh``, ...) and path, None where unknown.
    """
    for name in _ACTIVATION_NAMES:
        module = submodule(container, name)
        if module is not None:
            return _family(type(module).__name__), _join(path, name)
        function = getattr(container, name.rpartition(".")[2], None)
        if callable(function):
            return _family(getattr(function, "__name__", "")), None
    for name in ("hidden_activation", "hidden_act", "activation_function", "activation"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            return _family(value), None
    return None, None


def _family(name: str) -> str | None:
    """Reduce the name of an activation class or function to its family."""
    lowered = name.lower().replace("_", "").removesuffix("activation")
    if lowered in {"relu2", "relusquared"}:
        return "relu2"
    for family, mark in (("gelu", "gelu"), ("silu", "silu"), ("silu", "swish"), ("tanh", "tanh")):
        if mark in lowered:
            return family
    return lowered or None  # relu, relu6, leakyrelu, sigmoid, and classes of users


def _first(module: Any, names: tuple[str, ...]) -> str | None:
    """Return the first of the names that is a submodule of ``module``."""
    return next((name for name in names if submodule(module, name) is not None), None)


def _router(container: Any, home: str) -> str | None:
    """Return the HF path of the router of a mixture: of its one matrix, where a module around that
    (HunYuan) does the rest of the routing.
    """
    name = _first(container, _ROUTERS)
    if name is None:
        return None
    path, module = _join(home, name), submodule(container, name)
    if getattr(module, "weight", None) is None:
        inside = [inner for inner, child in module.named_modules() if is_linear(child)]
        if len(inside) == 1:
            return _join(path, inside[0])
    return path


def _block_router(container: Any, path: str) -> BlockRouter | None:
    """Find what weighs parts of the hidden layer of an MLP, as BlockFFN names it."""
    names = ("router", "router_norm")
    if not is_linear(submodule(container, names[0])) or submodule(container, names[1]) is None:
        return None
    return BlockRouter(*(_join(path, name) for name in names))


def experts_per_token(model: Any, experts: Experts) -> int:
    """Return how many experts a mixture sends each token to; 0 where that is written nowhere."""
    places = [(text_config(model), name) for name in _EXPERTS_PER_TOKEN]
    router = experts.router or ""
    # HunYuan routes in the module around the matrix
    for path in (experts.container, router, router.rpartition(".")[0]):
        places += [(submodule(model, path), name) for name in (*_EXPERTS_PER_TOKEN, "top_k")]
    found = (getattr(holder, name, None) for holder, name in places)
    return next((number for number in found if isinstance(number, int) and number > 0), 0)


def _join(path: str, name: str) -> str:
    """Join two HF paths, either of which may be empty."""
    return f"{path}.{name}" if path and name else path or name
