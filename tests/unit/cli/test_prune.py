"""The verb ``prune``: what it writes and says, what other verbs say of it; bad input writes nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import sparsescope as ss
from sparsescope.pruning import MaskSet
from sparsescope.pruning.masks import MASKS

TEXT = ("--corpus", "python-docs", "--tokens", "300", "--context", "64")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to write to, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSESCOPE_HOME", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def pruned(command, here):
    """The folder of random-llama, 40 % of its weights removed by magnitude."""
    assert command("prune", "random-llama", "--sparsity", "0.4", "-o", "model")[0] == 0
    return here / "model"


def merge_adapter(folder, target=None):
    """What merging a LoRA into q and v leaves: a model folder without those zeros."""
    subject = ss.load(folder)
    for site in subject.parameter_sites(["weight:blocks.*.attn.q.weight", "weight:blocks.*.attn.v.weight"]):
        with torch.no_grad():
            subject.parameter(site).add_(0.01)
    subject.model.save_pretrained(target or folder)
    subject.tokenizer.save_pretrained(target or folder)


def test_what_it_writes_and_says(command, here):
    words = ("prune", "random-llama", "--criterion", "wanda", "--sparsity", "0.5", *TEXT, "-o", "out/model")
    code, out, err = command(*words)
    assert code == 0 and "Traceback" not in err
    assert "blocks: 0 of 3 blocks" in err and "saving out/model" in err
    lines = out.splitlines()
    assert lines[0] == "out/model: 50.00 % of the weights in scope are zero (wanda, single weights)"
    assert "scope blocks: 138,240 weights in 21 matrices" in out and "not in scope: embeddings 16,576" in out
    for row in (
        ("weights in scope", "69,120", "138,240", "50.00 %", "50.00 %"),
        ("all parameters", "69,184", "171,840", "40.26 %", "59.74 %"),
        ("attn.k", "3", "6,144", "3,072", "50.00 %"),
        ("weights, packed: NOT saved", "421.13 KiB", "62.5 % of dense"),
        ("weights, as a dense model", "674.26 KiB", "float32"),
    ):
        (line,) = [line for line in lines if line.startswith(row[0])]
        assert all(part in line for part in row), line
    assert "calibrated on 300 tokens of python-docs" in out and "propagation sequential" in out
    assert "Plain runtimes neither shrink nor speed up" in out
    assert "all 69,120 removed weights are zero, every parameter as in memory" in out
    assert lines[-2:] == ["  sparsescope report out/model", "  sparsescope doctor --subject out/model"]
    assert sorted(path.name for path in here.iterdir()) == ["out"]
    assert [path.name for path in (here / "out").iterdir()] == ["model"]
    facts = MaskSet.load("out/model").facts
    assert facts["command"] == (
        "sparsescope prune random-llama --criterion wanda --sparsity 0.5 --corpus python-docs --tokens 300 "
        "--context 64 --output out/model"
    )
    assert facts["calibration"]["tokens"] == 300


def test_the_command_in_the_record_makes_the_same_folder(command, here):
    words = ("prune", "random-llama", "--criterion", "random", "--sparsity", "0.3", "--prune-seed", "5")
    options = (
        "--scope",
        "weight:blocks.*.mlp.*",
        "--scope",
        "weight:blocks.0.attn.q.weight",
        "--allocation",
        "owl",
    )
    more = ("--no-first-positions", *TEXT, "--dtype", "bfloat16")
    code, found, _ = command(*words, *options, *more, "-o", "one", "--json")
    assert code == 0 and found["folder"] == "one" and found["dtype"] == "bfloat16"
    again = found["made"]["command"] if "command" in found["made"] else MaskSet.load("one").facts["command"]
    again = again.split()
    assert again[:2] == ["sparsescope", "prune"] and again[-1] == "one"
    again = [word.strip("'") for word in again[1:-1]]
    assert command(*again, "two")[0] == 0
    assert dict(MaskSet.load("one").masks) == dict(MaskSet.load("two").masks)
    assert ss.load("one").identity.weight_hash == ss.load("two").identity.weight_hash


def test_two_of_four_as_json_and_text(command, here):
    code, found, _ = command("prune", "random-gpt2", "--pattern", "2:4", "-o", "a", "--json")
    assert code == 0
    assert found["scope_sparsity"] == 0.5 and found["made"]["pattern"] == "2:4" and found["notes"] == []
    assert found["bytes_packed"] < found["bytes_weights"] and "2 bits" in found["packed_form"]
    assert found["parameters"] > found["scope_weights"] and 0 < found["sparsity"] < 0.5
    code, out, _ = command("prune", "random-gpt2", "--pattern", "2:4", "-o", "b")
    assert code == 0 and "2:4 can be quicker" in out and "no text was read" in out
    code, out, _ = command("verify", "b")
    assert code == 0 and "2:4 holds in every matrix" in out


def test_weights_that_grow_by_being_saved_are_said(command, here):
    assert command("prune", "random-llama", "--sparsity", "0.5", "--dtype", "bfloat16", "-o", "half")[0] == 0
    code, out, _ = command("prune", "half", "--sparsity", "0.6", "-o", "whole")
    assert code == 0 and "came as bfloat16 and are saved as float32, twice as large" in out
    code, out, _ = command("prune", "half", "--sparsity", "0.6", "--dtype", "bfloat16", "-o", "kept")
    assert code == 0 and "twice as large" not in out


def test_shares_that_differ_are_shown(command, here):
    code, out, _ = command("prune", "glassllm", "--sparsity", "0.5", "--allocation", "global", "-o", "model")
    assert code == 0 and "(magnitude, single weights, allocation global)" in out
    (line,) = [line for line in out.splitlines() if line.startswith("attn.q")]
    assert " to " in line and "of one matrix" in out


# -- nothing is written ---------------------------------------------------------------------------

MISTAKES = {
    "no such model": (("random-lama", "--sparsity", "0.5"), "unknown subject", "did you mean 'random-llama'"),
    "no such criterion": (
        ("random-llama", "--sparsity", "0.5", "--criterion", "wnda"),
        "unknown criterion",
        "wanda",
    ),
    "no such allocation": (
        ("random-llama", "--sparsity", "0.5", "--allocation", "owll"),
        "unknown allocation",
        "owl",
    ),
    "no such pattern": (("random-llama", "--pattern", "2-4"), "unknown pattern", "2:4"),
    "no such scope": (("random-llama", "--sparsity", "0.5", "--scope", "mlps"), "unknown scope", "'mlp'"),
    "no such matrix": (("random-llama", "--sparsity", "0.5", "--scope", "weight:blocks.*.x"), "", "next:"),
    "no such propagation": (
        ("random-llama", "--sparsity", "0.5", "--propagation", "both"),
        "unknown propagation",
        "dense",
    ),
    "no sparsity": (("random-llama",), "how many weights go is not said", "--sparsity 0.5"),
    "too much": (("random-llama", "--sparsity", "50"), "a sparsity is a share", "50 % is 0.5"),
    "two sparsities": (
        ("random-llama", "--sparsity", "0.7", "--pattern", "2:4"),
        "the pattern says the sparsity",
        "0.7",
    ),
    "groups that do not fit": (
        ("random-llama", "--pattern", "3:7"),
        "the groups of this pattern do not divide",
        "64 inputs",
    ),
    "a text that is not read": (
        ("random-llama", "--sparsity", "0.5", *TEXT),
        "these options have no meaning for magnitude",
        "--corpus, --tokens, --context",
    ),
    "the usual number of tokens of other verbs": (
        ("random-llama", "--sparsity", "0.5", "--tokens", "16384"),
        "these options have no meaning",
        "--tokens",
    ),
    "a seed of the text for a drawn mask": (
        ("random-llama", "--sparsity", "0.5", "--criterion", "random", "--seed", "3"),
        "these options have no meaning",
        "--prune-seed",
    ),
    "a seed where nothing is drawn": (
        ("random-llama", "--sparsity", "0.5", "--prune-seed", "3"),
        "these options have no meaning",
        "--prune-seed",
    ),
    "a way to judge blocks where none is judged": (
        ("random-llama", "--sparsity", "0.5", "--propagation", "dense", "--no-first-positions"),
        "these options have no meaning",
        "--no-first-positions, --propagation",
    ),
    "no such text": (
        ("random-llama", "--sparsity", "0.5", "--criterion", "wanda", "--corpus", "nosuch"),
        "unknown corpus",
        "nosuch",
    ),
    "no such device": (("random-llama", "--sparsity", "0.5", "--device", "tpu"), "unknown device", "tpu"),
    "a model that no folder holds": (
        ("bergamot-en-pt", "--sparsity", "0.5"),
        "plain transformers could not load",
        "Marian",
    ),
    "a model without tokenizer": (
        ("grokking-moe", "--sparsity", "0.5"),
        "a model without tokenizer",
        "grokking-moe",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input_writes_nothing(command, here, mistake):
    words, what, part = MISTAKES[mistake]
    code, out, err = command("prune", *words, "-o", "model")
    message = err[err.index("error:") :]
    assert code == 1 and out == "" and message.startswith(f"error: {what}") and part in message, err
    assert len(message.splitlines()) <= 7 and "Traceback" not in err
    assert "matrices:" not in err and "blocks: " not in err, "found before the work"
    assert list(here.iterdir()) == []


def test_a_target_that_is_taken_is_found_before_the_model_is_loaded(command, here):
    (here / "full").mkdir()
    (here / "full" / "mine.txt").write_text("mine")
    code, _, err = command("prune", "random-llama", "--sparsity", "0.5", "-o", "full")
    assert code == 1 and "the folder is not empty" in err and "mine.txt" in err and "loading" not in err
    assert [path.name for path in here.rglob("*")] == ["full", "mine.txt"]
    code, _, err = command("prune", "random-llama", "--sparsity", "0.5")
    assert code == 1 and "--output" in err


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x", "a\0b"])
def test_no_name_of_the_target_is_a_bug(command, here, name):
    code, _, err = command("prune", "random-llama", "--sparsity", "0.5", "-o", name)
    assert code == 1 and err.startswith("error:") and "internal" not in err and list(here.iterdir()) == []


# -- the folder in other verbs ----------------------------------------------------------------------


def test_a_run_takes_the_folder(command, pruned):
    code, found, _ = command(
        "run", "activation_sparsity", "--subject", "model", *TEXT, "--set", "resamples=100", "--json"
    )
    assert code == 0
    assert found["provenance"]["subject"]["origin_precision"] == "float32 (pruned from float32)"
    assert any("pruned model" in note["message"] for note in found["notes"])


def test_doctor_proves_the_zeros(command, pruned):
    code, out, _ = command("doctor", "--subject", "model")
    assert code == 0 and out.splitlines()[-1] == "healthy"
    assert "zeros: 55,296 of 138,240 weights" in out and "sparsity 40.00 % (density 60.00 %)" in out
    assert "all 55,296 removed weights are zero" in out and "by chance at this sparsity" in out
    code, found, _ = command("doctor", "--subject", "model", "--json")
    assert code == 0 and found["zeros"]["healthy"] and found["zeros"]["lost"] == []
    assert found["zeros"]["masks"] == "model" and found["zeros"]["share"] == pytest.approx(0.4, abs=1e-3)


def test_doctor_names_the_matrices_whose_zeros_were_lost(command, pruned):
    merge_adapter(pruned)
    code, out, _ = command("doctor", "--subject", "model")
    assert code == 1 and out.splitlines()[-1] == "PROBLEM: see the zeros above"
    rows = [line for line in out.splitlines() if "40.0 % -> 0.0 %" in line]
    assert [row.split()[0] for row in rows] == [
        f"weight:blocks.{layer}.attn.{key}.weight" for layer in range(3) for key in "qv"
    ]
    assert "lost in attn.q 3 of 3, attn.v 3 of 3; all matrices 40.0 % -> 34.7 %" in out
    code, found, _ = command("doctor", "--subject", "model", "--json")
    assert code == 1 and not found["zeros"]["healthy"] and len(found["zeros"]["lost"]) == 6
    assert found["zeros"]["lost"][0]["lost"] == 1638 and found["subject"]["healthy"]
    code, out, _ = command("verify", "model")
    assert code == 1 and "PROBLEM" in out and "model.safetensors has another checksum" in out


def test_doctor_takes_the_masks_of_another_folder(command, pruned, here):
    merge_adapter(pruned, here / "merged")
    code, out, _ = command("doctor", "--subject", "merged")
    assert code == 0 and "no masks: which of these zeros were meant is not known" in out
    assert "more than 1 % in 15 of 21 matrices" in out
    code, out, _ = command("doctor", "--subject", "merged", "--masks", "model")
    assert code == 1 and "all matrices 40.0 % -> 34.7 %" in out
    kept = {"model.layers.1.self_attn.v_proj": MaskSet.load("model")["weight:blocks.1.attn.v.weight"].array()}
    np.savez(here / "masks.npz", **kept)
    code, out, _ = command("doctor", "--subject", "merged", "--masks", "masks.npz")
    assert code == 1 and "819 of 819 removed weights are not zero, in 1 of 1 matrices" in out
    code, _, err = command("doctor", "--subject", "random-gpt2", "--masks", "model")
    assert code == 1 and "another shape than its matrix" in err
    code, _, err = command("doctor", "--masks", "model")
    assert code == 1 and "masks without a subject" in err


def test_doctor_says_that_masks_are_damaged(command, pruned):
    bits = load_file(pruned / MASKS)
    bits["weight:blocks.0.attn.q.weight"][:5] = 255
    save_file(bits, pruned / MASKS)
    code, out, _ = command("doctor", "--subject", "model")
    assert code == 1 and "the masks cannot be read" in out and "PROBLEM: see the zeros above" in out


def test_doctor_says_nothing_of_zeros_where_there_are_none(command, here):
    code, out, _ = command("doctor", "--subject", "random-llama")
    assert code == 0 and "zeros" not in out
    code, found, _ = command("doctor", "--subject", "random-llama", "--json")
    assert code == 0 and "zeros" not in found


def test_doctor_takes_a_model_whose_matrices_are_not_known(command, pruned, monkeypatch):
    from sparsescope.errors import SubjectError
    from sparsescope.pruning import zeros

    def none(source):
        raise SubjectError("this model has no matrices in scope")

    monkeypatch.setattr(zeros, "describe", none)
    assert command("doctor", "--subject", "random-llama")[0] == 0
    code, _, err = command("doctor", "--subject", "random-llama", "--masks", "model")
    assert code == 1 and "no matrices in scope" in err


def test_a_folder_of_a_registered_name_is_not_taken_for_the_subject(command, pruned, here):
    pruned.rename(here / "random-llama")
    code, out, _ = command("doctor", "--subject", "random-llama")
    assert code == 0 and "zeros" not in out
    code, out, _ = command("doctor", "--subject", "./random-llama")
    assert code == 0 and "all 55,296 removed weights are zero" in out


def test_verify_proves_a_folder(command, pruned, here):
    code, out, _ = command("verify", "model")
    assert code == 0 and "PROBLEM" not in out and "files with the sizes and checksums" in out
    code, found, _ = command("verify", "model", "--json")
    assert code == 0 and [proof["what"] for proof in found["proofs"]] == [
        "masks",
        "files",
        "count",
        "pattern",
        "zeros",
    ]
    (pruned / "config.json").write_text(
        json.dumps({**json.loads((pruned / "config.json").read_text()), "x": 1})
    )
    code, found, _ = command("verify", "model", "--json")
    assert code == 1 and [proof["what"] for proof in found["proofs"] if not proof["ok"]] == ["files"]
    for words, what in (
        (("nowhere",), "the folder has no masks"),
        ((".",), "the folder has no masks"),
        (("model", "--home", "runs"), "these options are about the folder of runs"),
    ):
        code, out, err = command("verify", *words)
        assert code == 1 and out == "" and what in err


def test_help_says_what_is_read(command):
    code, out, _ = command("prune", "--help")
    assert code == 0
    for option in (
        "--criterion",
        "--sparsity",
        "--pattern",
        "--allocation",
        "--scope",
        "--propagation",
        "--output",
    ):
        assert option in out
