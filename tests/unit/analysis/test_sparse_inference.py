"""The numbers of ``sparse_inference`` against plain loops, its texts, its steps, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.capture import tokenized
from sparsescope.activations.context import Context
from sparsescope.analysis.sparse_inference import SparseInferenceParams
from sparsescope.analysis.sparse_inference.compute import compute
from sparsescope.analysis.sparse_inference.measure import Measuring
from sparsescope.analysis.sparse_inference.texts import part_text
from sparsescope.errors import SpecError, SubjectError

SMALL = {
    "methods": ("teal", "wina", "cats", "auto"),
    "targets": (0.25, 0.5),
    "compare_at": (0.25, 0.5),
    "choose": False,
    "detail_methods": ("teal", "wina"),
    "divergence_at": (0.5,),
    "prompts": 3,
    "new_tokens": 4,
    "prompt_tokens": 8,
    "tokens": 512,
    "calibration_tokens": 1024,
    "development_tokens": 256,
    "document_tokens": 64,
    "resamples": 200,
    "pruned": 0.0,
}


@pytest.fixture(scope="module")
def corpus():
    return ss.corpus("python-docs+python-source", tokens=12_000, context=64)


@pytest.fixture(scope="module")
def result(glass, corpus):
    return ss.run("sparse_inference", glass, corpus, **SMALL)


def test_texts_are_apart_and_as_long_as_asked(glass, corpus):
    text = tokenized(corpus, glass)
    params = SparseInferenceParams(**SMALL)
    parts = part_text(text, params)
    chosen = [
        {document.index for document in part.documents}
        for part in (parts.calibration, parts.development, parts.held_out)
    ]
    assert not chosen[0] & chosen[1] and not chosen[0] & chosen[2] and not chosen[1] & chosen[2]
    assert 512 <= parts.held_out.n_tokens <= 512 + 64 and parts.calibration.n_tokens >= 1024
    assert all(len(document) <= 64 for document in parts.held_out.documents)
    assert len({parts.calibration.digest, parts.development.digest, parts.held_out.digest}) == 3


def test_numbers_are_those_of_a_plain_loop(glass, corpus, result):
    """KL, loss, agreement and skipped bytes of one sparse model, with nothing of the package but the
    masks.
    """
    params = SparseInferenceParams(**SMALL)
    text = tokenized(corpus, glass)
    parts = part_text(text, params)
    measuring = Measuring(params, Context.of(subject=glass, text=text), parts)
    measuring.chains["teal"] = [0.25, 0.5]
    calibration = measuring.calibration("teal", 0.5, "all_sparse")
    limits = {mask.group: mask.threshold for mask in calibration.masks}
    model, kept, there = glass.model, 0, 0
    hooks = []

    def masked(name, count):
        def hook(module, args):
            nonlocal kept, there
            x = args[0]
            keep = x.abs() > limits[name]
            kept += int(keep[:, 1:].sum()) * count
            there += keep[:, 1:].numel() * count
            return (x * keep,)

        return hook

    kl, nll, agree, n = 0.0, 0.0, 0, 0
    windows = []
    for document in parts.held_out.documents:
        ids = np.concatenate([np.array(text.prefix, np.int64), document.ids.astype(np.int64)])
        assert len(document) <= text.window
        windows.append(torch.from_numpy(ids)[None])
    for ids in windows:
        with torch.inference_mode():
            dense = model(input_ids=ids).logits[0].log_softmax(-1)
            for layer, block in enumerate(model.model.layers):
                home = f"blocks.{layer}"
                attention, mlp = block.self_attn, block.mlp
                places = [
                    (attention.q_proj, "attn.in"), (attention.k_proj, "attn.in"),
                    (attention.v_proj, "attn.in"), (attention.o_proj, "attn.out"),
                    (mlp.gate_proj, "mlp.in"), (mlp.up_proj, "mlp.in"), (mlp.down_proj, "mlp.out"),
                ]  # fmt: skip
                hooks += [
                    m.register_forward_pre_hook(masked(f"{home}.{role}", m.weight.shape[0]))
                    for m, role in places
                ]
            sparse = model(input_ids=ids).logits[0].log_softmax(-1)
            for hook in hooks:
                hook.remove()
            hooks.clear()
        first = -(-ids.shape[1] // 2)
        for target in range(first + 1, ids.shape[1]):
            p, q = dense[target - 1], sparse[target - 1]
            kl += float((p.exp() * (p - q)).sum())
            nll += float(p[ids[0, target]] - q[ids[0, target]])
            agree += int(p.argmax() == q.argmax())
            n += 1
    row = (
        result.tables["quality"]
        .query("method == 'TEAL' and target == 0.5 and prefix == 'all_sparse'")
        .iloc[0]
    )
    assert row["tokens"] == n and row["documents"] == len(windows)
    assert row["kl"] == pytest.approx(kl / n, rel=1e-3)
    assert row["loss"] == pytest.approx(nll / n, rel=1e-2, abs=1e-4)
    assert row["agreement"] == pytest.approx(agree / n, abs=2 / n)
    assert row["realised"] == pytest.approx(1 - kept / there, abs=1e-3)
    assert abs(row["realised"] - 0.5) < 0.03


def test_tables_say_what_was_asked(result):
    quality = result.tables["quality"]
    assert set(quality["method"]) == {"dense", "TEAL", "WINA", "CATS", "auto"}
    assert set(quality["prefix"]) == {"all_sparse", "decode_only"}
    assert set(quality.query("method == 'CATS'")["target"]) == {0.25}, "beyond its ceiling there is no row"
    ceilings = result.tables["ceilings"].set_index("method")["ceiling"]
    assert ceilings["CATS"] < 0.5 and ceilings["TEAL"] == 1
    assert any("CATS" in note.message and "ceiling" in note.message for note in result.notes)
    dense = quality.query("method == 'dense'")
    assert (dense[["kl", "loss", "realised"]] == 0).all().all()
    assert (quality["kl_low"] <= quality["kl"]).all() and (quality["kl"] <= quality["kl_high"]).all()
    matrices = result.tables["per_matrix"]
    assert len(matrices) == 2 * 28 and (matrices["error"] > 0).all()
    assert set(result.tables["divergence"]["method"]) == {"TEAL", "WINA"}
    strip = result.tables["tokens"]
    assert strip["kept"].between(0, 1).all() and strip["token_text"].map(len).sum() > 100
    unions = result.tables["unions"].query("method == 'TEAL'")
    for _, rows in unions.groupby("role"):
        assert (np.diff(rows.sort_values("together")["union"]) >= -1e-9).all()
        one = rows.query("together == 1").iloc[0]
        assert one["union"] == pytest.approx(one["by_chance"]) == pytest.approx(one["independent"])


def test_errors_of_matrices_by_hand(glass, corpus, result):
    """||W r||^2 over features, summed over tokens, beside ||W x||^2; inputs of the dense model."""
    params = SparseInferenceParams(**SMALL)
    text = tokenized(corpus, glass)
    parts = part_text(text, params)
    measuring = Measuring(params, Context.of(subject=glass, text=text), parts)
    measuring.chains["wina"] = [0.25, 0.5]
    masks = {m.name: m for m in measuring.calibration("wina", 0.5, "all_sparse").masks}
    seen = []
    module = glass.model.get_submodule("model.layers.1.mlp.down_proj")
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, 1:].clone()))
    for document in parts.development.documents:
        glass.forward(np.concatenate([np.array(text.prefix, np.int64), document.ids])[None])
    handle.remove()
    x, weight = torch.cat(seen), module.weight.detach()
    rest = x * (x.abs() * weight.norm(dim=0) <= masks["blocks.1.mlp.out[out]"].threshold)
    expected = (rest @ weight.T).square().sum() / (x @ weight.T).square().sum()
    row = result.tables["per_matrix"].query("method == 'WINA' and matrix == 'weight:blocks.1.mlp.out.weight'")
    assert row["tokens"].item() == len(x) and row["error"].item() == pytest.approx(float(expected), rel=1e-3)


def test_comparisons_are_at_the_bytes_that_the_other_method_realised(result):
    quality = result.tables["quality"].query("prefix == 'all_sparse'")
    auto = quality.query("method in ['dense', 'auto']").sort_values("realised")
    for row in result.tables["comparisons"].query("prefix == 'all_sparse'").itertuples():
        other = quality.query(f"method == '{row.second}' and target == {row.target}").iloc[0]
        expected = np.interp(other["realised"], auto["realised"], auto["kl"])
        assert row.ratio == pytest.approx(expected / other["kl"], rel=1e-6)
        assert row.difference == pytest.approx(expected - other["kl"], rel=1e-6)
        assert row.ratio_low <= row.ratio <= row.ratio_high
        expected_verdict = (
            "first is better" if row.high <= 0 else "second is better" if row.low >= 0 else "not resolved"
        )
        assert row.verdict == expected_verdict


def test_adapters_and_vectors_are_charged(glass, corpus):
    found = ss.run(
        "sparse_inference",
        glass,
        corpus,
        **{
            **SMALL,
            "methods": ("teal", "wina+rotated", "rsparse"),
            "prefixes": ("all_sparse",),
            "prompts": 0,
        },
    )
    table = found.tables["quality"].query("target == 0.5").set_index("method")["realised"]
    assert table["TEAL"] == pytest.approx(0.5, abs=0.02)
    # two dense d x d products a layer: 2 * 128^2 of 197 k weights
    assert table["WINA, rotated"] == pytest.approx(0.5 - 2 * 128**2 / 196_864, abs=0.03)
    assert table["R-Sparse"] == pytest.approx(0.5, abs=0.02)
    accounting = found.tables["accounting"].query("target == 0.5").set_index("method")
    assert (
        accounting.loc["WINA, rotated", "adapters"] > 4 * 2 * 128**2 * 4 > accounting.loc["TEAL", "adapters"]
    )


def test_a_run_goes_on_after_its_last_point(glass, corpus, tmp_path, monkeypatch):
    """Stopped in the middle, it measures nothing twice and ends with the same numbers."""
    store = tmp_path / "runs"
    few = {**SMALL, "methods": ("teal", "wina"), "prompts": 0, "detail_methods": ()}
    real, measured = Measuring._measure, []

    def stop(self, method, target, prefix):
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append((method, target, prefix))
        return real(self, method, target, prefix)

    monkeypatch.setattr(Measuring, "_measure", stop)
    with pytest.raises(KeyboardInterrupt):
        ss.run("sparse_inference", glass, corpus, store=store, **few)
    monkeypatch.setattr(Measuring, "_measure", lambda self, *p: (measured.append(p), real(self, *p))[1])
    again = ss.run("sparse_inference", glass, corpus, store=store, **few)
    assert len(measured) == len(set(measured)) == 8
    whole = ss.run("sparse_inference", glass, corpus, **few)
    left, right = again.tables["quality"], whole.tables["quality"]
    assert left["kl"].to_numpy() == pytest.approx(right["kl"].to_numpy(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"targets": (1.2,)}, "less than 1"),
        ({"methods": ("tael",)}, "teal"),
        ({"methods": ("teal", "teal")}, "distinct"),
        ({"prefixes": ("decode",)}, "prefix policy"),
        ({"prefixes": ("dense_fraction:1",)}, "nothing sparse"),
        ({"methods": ("teal+blocks",)}, "no such allocation"),
    ],
)
def test_wrong_parameters_are_refused_by_name(glass, corpus, given, said):
    with pytest.raises(SpecError, match=said):
        ss.run("sparse_inference", glass, corpus, **{**SMALL, **given})


def test_what_cannot_be_measured_is_said(glass, corpus):
    with pytest.raises(SpecError, match="nothing sparse"):
        ss.run("sparse_inference", glass, corpus, **{**SMALL, "prefixes": ("dense_first_n:64",)})
    with pytest.raises(SubjectError, match="no method reaches"):
        ss.run(
            "sparse_inference",
            glass,
            corpus,
            **{**SMALL, "methods": ("cats",), "targets": (0.9,), "compare_at": ()},
        )
    with pytest.raises(SubjectError, match="too few documents"):
        ss.run("sparse_inference", glass, ss.corpus(["word " * 300]), **SMALL)


@pytest.mark.parametrize("name", ["lazy-relu", "bytes-moe"])
def test_other_architectures_take_the_same_command(name, corpus):
    subject = ss.load(name)
    params = SparseInferenceParams(**{**SMALL, "prompts": 0})
    found = compute(params, Context.of(subject=subject, text=tokenized(corpus, subject)))
    quality = found.tables["quality"].query("prefix == 'all_sparse'")
    assert {"TEAL", "WINA", "auto"} <= set(quality["method"])
    gated = subject.blocks[0].experts is not None
    assert ("CATS" in set(quality["method"])) == gated
    if not gated:
        assert any("CATS" in note.message and "gate" in note.message for note in found.notes)
    asked = quality.query("method == 'TEAL'").set_index("target")["realised"]
    # Of hidden units that are zero anyway more is skipped than was asked for, at no cost
    assert asked[0.5] == pytest.approx(0.5, abs=0.06) if gated else 0.5 < asked[0.5] < 0.75
