"""The verb ``sparsify``: what it keeps and says, what other verbs take of it; bad input keeps nothing."""

from __future__ import annotations

import pytest

TEXT = ("--corpus", "python-docs", "--tokens", "1500", "--context", "64")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSESCOPE_HOME", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_calibration_is_kept_and_every_verb_takes_it(command, runs):
    words = ("sparsify", "glassllm", "--method", "wina", "--target", "0.5", *TEXT)
    code, out, err = command(*words)
    assert code == 0, err
    assert "WINA at 50 %, all_sparse: 5" in out or "WINA at 50 %, all_sparse: 49." in out
    assert "no speed was measured" in out and "whole model" in out
    code, found, _ = command(*words, "--json")
    assert code == 0 and found["artifact"].startswith("calibration-")
    assert abs(found["realised"] - 0.5) <= 0.005 and found["method"] == "wina"
    assert 0 < found["sparsity"]["model"] < found["sparsity"]["block"] < 0.5
    assert found["bytes"]["read"] < found["bytes"]["dense"]
    assert found["artifact"] in out, "the same contents are one artifact"
    code, listed, _ = command("list", "artifacts", "--json")
    assert found["artifact"] in str(listed)
    name = f"sparsified@calibration={found['artifact']}:glassllm"
    code, run, err = command("run", "activation_rank", "--subject", name, *TEXT, "--json")
    assert code == 0, err
    subject = run["provenance"]["subject"]
    assert subject["id"] == name and subject["variant"]["kind"] == "sparsified"
    code, _, err = command(
        "run", "activation_rank", "--subject", name.replace("glassllm", "random-llama"), *TEXT
    )
    assert code == 1 and "another model" in err


def test_a_variant_is_calibrated_on_the_way(command, runs):
    name = "sparsified@0.4,method=teal,tokens=512,prefix=dense_first_n=4:glassllm"
    code, run, err = command("run", "activation_rank", "--subject", name, *TEXT, "--json")
    assert code == 0, err
    variant = run["provenance"]["subject"]["variant"]
    assert variant["parameters"]["prefix"] == "dense_first_n=4" and variant["adds"]
    assert run["provenance"]["subject"]["id"].startswith("sparsified@")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "1"), "the target is no sparsity"),
        (("--target", "40"), "target=0.4"),
        (("--method", "wnia"), "wina"),
        (("--prefix", "decode"), "decode_only"),
        (("--prefix", "dense_first_n:64"), "leaves nothing sparse"),
        (("--sinks", "densest"), "dense"),
        (("--scope", "mpl"), "mlp"),
        (("--method", "cats", "--target", "0.7"), "cannot reach"),
    ],
)
def test_bad_input_keeps_nothing(command, runs, words, said):
    code, _, err = command("sparsify", "glassllm", *TEXT, *words)
    assert code == 1 and said in err and "Traceback" not in err
    assert not list(runs.glob("artifacts/calibration-*"))
