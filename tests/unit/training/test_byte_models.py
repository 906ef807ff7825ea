"""Training on bytes of text, with a mixture of experts: exact resumption, measures by domain, a
tokenizer that fits.
"""

from __future__ import annotations

import pytest
import torch

from sparsescope.activations.text.documents import CorpusEntry, Document
from sparsescope.errors import ArtifactError
from sparsescope.models.checkpoints import open_series
from sparsescope.models.formats.series_file import SeriesFolder
from sparsescope.training import byte_text
from sparsescope.training.measure import measure, training_loss
from sparsescope.training.recipe import Recipe
from sparsescope.training.trainer import train

RECIPE = {
    "name": "tiny-bytes",
    "title": "A tiny run on text",
    "license": "Apache-2.0",
    "steps": 6,
    "checkpoints": [0, 3, 6],
    "log_every": 3,
    "model": {
        "architecture": "OlmoeForCausalLM",
        "config": {
            "vocab_size": 259,
            "hidden_size": 16,
            "intermediate_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 16,
        },
    },
    "data": {
        "kind": "byte_text",
        "corpora": ["up", "down"],
        "context": 16,
        "windows_per_domain": 3,
        "probe_windows": 5,
    },
    "optimizer": {
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "decay": "cosine",
        "clip_norm": 1.0,
        "balance": 0.01,
    },
}


def entries(words):
    def entry(name, order):
        texts = [" ".join(words[order * (i * j) % 97] for j in range(40)) for i in range(1, 13)]
        return CorpusEntry(
            name,
            "toy",
            "CC0-1.0",
            name,
            lambda: [Document(f"{name}{i}", name, t) for i, t in enumerate(texts)],
        )

    return [entry("up", 1), entry("down", -1)]


@pytest.fixture
def recipe(monkeypatch):
    words = [f"w{number * 7919 % 1000}" for number in range(97)]
    monkeypatch.setattr(byte_text, "registered_entries", lambda name: entries(words))
    return Recipe.model_validate(RECIPE)


def test_a_run_on_text_goes_on_exactly_and_reads_text(recipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe, whole)
    assert train(recipe, parts, stop_after=2) is None and train(recipe, parts, stop_after=2) is None
    train(recipe, parts)
    first, second = (SeriesFolder.open(folder) for folder in (whole, parts))
    assert first.content.checkpoints == second.content.checkpoints and first.curves().equals(second.curves())
    series = open_series(whole)
    assert len(series.subject(6).tokenizer("Ähm")["input_ids"]) == 4
    splits = {"train", "validation"}
    splits |= {f"{split}/{part}" for split in splits for part in ("up", "down")}
    assert set(series.checkpoints[0].trained) == splits and set(series.checkpoints[0].stored) == splits | {
        "probe"
    }
    assert set(series.trained.baselines) == {"up", "down"} == set(series.trained.data["domains"])
    found = measure(series.subject(6).model, byte_text.ByteTextData(recipe.data).examples(whole=True))
    for split in ("validation/up", "validation"):
        assert found[split]["loss"] == pytest.approx(series.checkpoints[-1].stored[split]["loss"], rel=1e-6)


def test_other_texts_are_other_work(recipe, tmp_path, monkeypatch):
    train(recipe, tmp_path / "run", stop_after=2)
    monkeypatch.setattr(byte_text, "registered_entries", lambda name: entries([f"x{n}" for n in range(97)]))
    with pytest.raises(ArtifactError, match="or of other texts"):
        train(recipe, tmp_path / "run")


def test_the_balancing_loss_is_added_with_its_weight(recipe):
    from sparsescope.models.structure.architectures import build_model

    model = build_model("OlmoeForCausalLM", recipe.model.values)
    tokens = torch.randint(3, 259, (4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, once, twice = (
            float(training_loss(model, tokens, tokens, weight)) for weight in (0.0, 0.5, 1.0)
        )
    assert once - plain == pytest.approx(twice - once, rel=1e-4)
    assert 2 * (once - plain) >= 2 - 1e-3, "with k experts a token the balancing loss is k at least"


def test_losses_by_domain_weigh_alike_and_follow_the_definition(recipe):
    from sparsescope.models.structure.architectures import build_model

    model = build_model("OlmoeForCausalLM", recipe.model.values)
    examples = byte_text.ByteTextData(recipe.data).examples(whole=True)
    found = measure(model, examples)
    parts = [found[f"validation/{name}"]["loss"] for name in ("up", "down")]
    assert found["validation"]["loss"] == pytest.approx(sum(parts) / 2)
    rows = next(
        example for example in examples if (example.split, example.part) == ("validation", "up")
    ).tokens
    with torch.no_grad():
        log_p = model(input_ids=rows).logits.double().log_softmax(-1)[:, :-1]
    by_hand = -log_p.gather(-1, rows[:, 1:, None]).mean()
    assert parts[0] == pytest.approx(float(by_hand), rel=1e-5)
