"""The Marian encoder against a forward pass written out in NumPy, on a small random file; its
tokenizer; its refusals.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsescope.errors import SubjectError
from sparsescope.models import wrap
from sparsescope.models.entries import LoadRequest
from sparsescope.models.formats.marian_file import MarianFile, parse_marian
from sparsescope.models.zoo import bergamot

_spec = importlib.util.spec_from_file_location(
    "marian_writer", Path(__file__).parents[1] / "marian_writer.py"
)
assert _spec and _spec.loader
writer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(writer)

LAYERS, D, HEADS, WIDTH, VOCABULARY = 2, 8, 2, 12, 20
OPTIONS = {
    "type": "transformer",
    "dim-emb": D,
    "enc-depth": LAYERS,
    "transformer-heads": HEADS,
    "transformer-dim-ffn": WIDTH,
    "transformer-ffn-activation": "relu",
    "transformer-ffn-depth": 2,
    "transformer-preprocess": '""',
    "transformer-postprocess": "dan",
    "transformer-postprocess-emb": "d",
    "transformer-postprocess-top": '""',
    "transformer-train-position-embeddings": "false",
}


def stored(options: dict[str, Any] | None = None, without: str = "") -> MarianFile:
    generator = np.random.default_rng(0)

    def matrix(*shape: int, transpose: bool = True) -> tuple[int, tuple[int, ...], bytes]:
        values = generator.integers(-127, 128, shape)
        return writer.INTGEMM8, shape, writer.intgemm_data(values, 150.0, transpose=transpose)

    def vector(size: int) -> tuple[int, tuple[int, ...], bytes]:
        return writer.FLOAT32, (1, size), writer.float_data(generator.normal(size=size) / 4)

    entries = {"Wemb": matrix(VOCABULARY, D, transpose=False)}
    for layer in range(1, LAYERS + 1):
        head = f"encoder_l{layer}_"
        for name in "qkvo":
            entries |= {f"{head}self_W{name}": matrix(D, D), f"{head}self_b{name}": vector(D)}
        entries |= {f"{head}ffn_W1": matrix(D, WIDTH), f"{head}ffn_b1": vector(WIDTH)}
        entries |= {f"{head}ffn_W2": matrix(WIDTH, D), f"{head}ffn_b2": vector(D)}
        for norm in ("self_Wo_ln", "ffn_ffn_ln"):
            entries |= {f"{head}{norm}_scale": vector(D), f"{head}{norm}_bias": vector(D)}
    entries.pop(without, None)
    text = (
        "".join(f"{key}: {value}\n" for key, value in {**OPTIONS, **(options or {})}.items()).encode() + b"\0"
    )
    entries["special:model.yml"] = (writer.INT8, (len(text),), text)
    return parse_marian(writer.marian_bytes(entries), "small")


def forward(weights: Any, ids: list[int]) -> np.ndarray:
    """The encoder by its equations: post-norm, biases everywhere, embeddings times sqrt(d) plus positions."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}_scale"] + weights[f"{name}_bias"]

    half = D // 2
    rates = 10000.0 ** (-np.arange(half) / (half - 1))
    angles = np.arange(len(ids))[:, None] * rates
    x = weights["Wemb"][ids] * np.sqrt(D) + np.concatenate([np.sin(angles), np.cos(angles)], 1)
    for layer in range(1, LAYERS + 1):
        head = f"encoder_l{layer}_"
        q, k, v = (x @ weights[f"{head}self_W{n}"] + weights[f"{head}self_b{n}"] for n in "qkv")
        parts = []
        for h in range(HEADS):
            cut = slice(h * D // HEADS, (h + 1) * D // HEADS)
            scores = np.exp(q[:, cut] @ k[:, cut].T / np.sqrt(D / HEADS))
            parts.append(scores / scores.sum(1, keepdims=True) @ v[:, cut])
        mixed = np.concatenate(parts, 1) @ weights[f"{head}self_Wo"] + weights[f"{head}self_bo"]
        x = norm(x + mixed, f"{head}self_Wo_ln")
        hidden = np.maximum(x @ weights[f"{head}ffn_W1"] + weights[f"{head}ffn_b1"], 0)
        x = norm(x + hidden @ weights[f"{head}ffn_W2"] + weights[f"{head}ffn_b2"], f"{head}ffn_ffn_ln")
    return x


def test_hidden_states_are_those_of_the_equations() -> None:
    file = stored()
    subject = wrap(bergamot.marian_encoder(file))
    ids = [3, 19, 0, 7, 7, 1]
    ours = subject.forward([ids])[0].numpy()
    np.testing.assert_allclose(ours, forward(file.weights, ids), atol=2e-5)
    assert {"encoder", "hidden_units", "mlp_hidden", "exact_zeros", "attention"} == subject.capabilities
    assert [site.width for site in subject.sites("blocks.*.mlp.hook_post")] == [WIDTH] * LAYERS


def test_padding_changes_no_real_token() -> None:
    subject = wrap(bergamot.marian_encoder(stored()))
    alone = subject.forward([[3, 19, 0]])
    padded = subject.forward([[3, 19, 0, 0, 0]], [[1, 1, 1, 0, 0]])
    torch.testing.assert_close(padded[:, :3], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"transformer-ffn-activation": "swish"},
        {"transformer-preprocess": "n"},
        {"transformer-postprocess": "da"},
        {"transformer-train-position-embeddings": "true"},
        {"dim-emb": "wide"},
        {"type": "s2s"},
    ],
)
def test_another_architecture_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(SubjectError, match="another architecture"):
        bergamot.marian_encoder(stored(options))


@pytest.mark.parametrize("name", ["Wemb", "encoder_l2_ffn_b1"])
def test_a_missing_weight_is_named(name: str) -> None:
    with pytest.raises(SubjectError) as caught:
        bergamot.marian_encoder(stored(without=name))
    assert name in str(caught.value.got)


def test_a_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(SubjectError, match="another architecture"):
        bergamot.marian_encoder(stored({"transformer-dim-ffn": WIDTH + 1}))


def test_the_tokenizer_ends_texts_and_reads_spelled_out_specials_as_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    from sparsescope.activations.text.vocabulary import encoder, special_tokens

    pieces = ["</s>", "<unk>", "▁a", "▁", "<", "/", "s", ">", "unk"]
    backend = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    tokenizer = bergamot.marian_tokenizer(path)
    assert tokenizer("a").tokens() == ["▁a", "</s>"]
    assert special_tokens(tokenizer, "auto") == ((), (0,))
    for text, tokens in {"a</s>": ["▁a", "<", "/", "s", ">"], "<unk>": ["▁", "<", "unk", ">"]}.items():
        assert tokenizer.convert_ids_to_tokens(encoder(tokenizer)(text)) == tokens


def test_a_damaged_tokenizer_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0"')
    with pytest.raises(SubjectError, match="tokenizer cannot be read"):
        bergamot.marian_tokenizer(path)


def test_another_revision_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(SubjectError, match="no such revision"):
        bergamot.load_bergamot(LoadRequest("bergamot-en-pt", "9.9"))
