"""BlockFFN: the layer by numpy, active experts alone, a subject that dense analyses read, and a training that
goes on exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.text.documents import CorpusEntry, Document
from sparsescope.errors import SpecError, SubjectError
from sparsescope.inference import sparsify
from sparsescope.metrics.routing_locality import chunk_sparsity, chunk_sparsity_chance, windows
from sparsescope.models.checkpoints import open_series
from sparsescope.models.formats.series_file import SeriesFolder
from sparsescope.models.structure.architectures import build_model, check_config
from sparsescope.models.structure.coverage import uncovered
from sparsescope.models.structure.edits import edit
from sparsescope.models.zoo.blockffn import BlockFFNConfig, BlockFFNForCausalLM
from sparsescope.models.zoo.blockffn_layer import BlockFFN
from sparsescope.models.zoo.blockffn_losses import activation_locality, chunk_sparsification
from sparsescope.models.zoo.byte_tokenizer import byte_tokenizer
from sparsescope.testing import check_subject
from sparsescope.training import byte_text
from sparsescope.training.measure import measure, training_loss
from sparsescope.training.recipe import Recipe, read_recipe
from sparsescope.training.trainer import train

NAME = "BlockFFNForCausalLM"
SMALL = {
    "vocab_size": 259,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "ffn_experts": 6,
    "expert_size": 4,
    "loss_chunk": 4,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def build(seed=1, **values):
    return build_model(NAME, {**SMALL, **values}, seed=seed)


def tokens(rows=4, width=16, seed=0):
    return torch.randint(3, 259, (rows, width), generator=torch.Generator().manual_seed(seed))


def layer(seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = BlockFFN(8, 5, 3, **options).double()
        made.router_norm.weight.data.uniform_(-0.5, 2.0)
    return made


def states(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_numpy(mlp, given):
    """The definition, expert by expert."""
    x = given.detach().numpy().reshape(-1, 8)
    router, up, down = (m.weight.detach().numpy() for m in (mlp.router, mlp.up_proj, mlp.down_proj))
    used = np.maximum(x @ router.T, 0)
    rms = np.sqrt((used**2).mean(-1, keepdims=True) + 1e-6)
    weights = used / rms * mlp.router_norm.weight.detach().numpy()
    out = np.zeros_like(x)
    for expert in range(5):
        rows = slice(3 * expert, 3 * expert + 3)
        inner = x @ up[rows].T
        out += weights[:, expert, None] * (inner / (1 + np.exp(-inner)) @ down[:, rows].T)
    return out.reshape(given.shape)


@pytest.mark.parametrize("only_active", [False, True])
def test_the_layer_by_numpy(only_active):
    mlp, given = layer(), states(2, 7, 8)
    mlp.only_active = only_active
    np.testing.assert_allclose(mlp(given).detach().numpy(), by_numpy(mlp, given), rtol=0, atol=1e-10)


def test_active_experts_alone_give_the_same_output_and_gradients():
    found = []
    for only_active in (False, True):
        mlp, given = layer(), states(2, 7, 8).requires_grad_()
        mlp.only_active = only_active
        out = mlp(given)
        out.square().sum().backward()
        found.append([out.detach(), given.grad, *(p.grad for p in mlp.parameters())])
    for dense, active in zip(*found, strict=True):
        torch.testing.assert_close(active, dense, rtol=0, atol=1e-10)


def test_a_token_that_uses_no_expert_gets_zeros_and_finite_gradients():
    mlp, given = layer(), states(1, 4, 8)
    mlp.router.weight.data = -mlp.router.weight.data.abs()
    given = given.abs().requires_grad_()
    out = mlp(given)
    out.sum().backward()
    assert (out == 0).all() and given.grad.isfinite().all()
    mlp.only_active = True
    assert (mlp(given) == 0).all()


def test_hidden_units_of_experts_that_are_not_used_are_exactly_zero():
    mlp, given, held = layer(), states(2, 50, 8), []
    mlp.down_proj.register_forward_pre_hook(lambda _, args: held.append(args[0]))
    scores = []
    mlp(given, scores)
    used = (scores[0] > 0).repeat_interleave(3, -1)
    assert ((held[0] != 0) == used).all() and 0.2 < used.double().mean() < 0.8


def test_the_model_with_active_experts_alone_is_the_model():
    model, ids = build().double(), tokens()
    with torch.no_grad():
        dense = model(ids).logits
        model.compute_only_active()
        active = model(ids).logits
        model.compute_only_active(False)
        assert torch.equal(model(ids).logits, dense)
    torch.testing.assert_close(active, dense, rtol=0, atol=1e-10)


def test_generation_with_a_cache_is_that_without():
    model, ids = build(), tokens(1, 8)
    with torch.no_grad():
        made = [
            model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)
        ]
    assert torch.equal(*made)


def test_it_is_stored_and_read_again(tmp_path):
    model = build(hold_steps=0, period_steps=1).train()
    for _ in range(3):
        training_loss(model, tokens(), tokens()).backward()
        model.after_step(0.3)
    model.factor.after_step(1.0)
    assert model.factor.value != model.config.chunk_loss or float(model.factor.numbers[5]) > 0.05
    model.eval().save_pretrained(tmp_path)
    again = BlockFFNForCausalLM.from_pretrained(tmp_path)
    first, second = model.state_dict(), again.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert again.config.expert_size == 4 and again.config.intermediate_size == 24
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, again(tokens()).logits)


def test_a_folder_of_it_is_a_subject(subject, tmp_path):
    subject.model.save_pretrained(tmp_path)
    subject.tokenizer.save_pretrained(tmp_path)
    again, ids = ss.load(str(tmp_path)), tokens()
    assert type(again.model) is BlockFFNForCausalLM
    assert again.identity.weight_hash == subject.identity.weight_hash
    assert torch.equal(again.forward(ids, logits=True), subject.forward(ids, logits=True))


def test_losses_of_the_model_are_the_mean_over_layers_and_join_the_training():
    model, ids = build(chunk_loss=0.3, locality_loss=0.01, warmup_steps=2).train(), tokens()
    output = model(ids, output_router_logits=True)
    assert [one.shape for one in output.router_logits] == [(4, 16, 6)] * 2
    parts = [
        0.3 * chunk_sparsification(one, 4) + 0.01 * activation_locality(one) for one in output.router_logits
    ]
    assert float(output.aux_loss.detach()) == pytest.approx(float(sum(parts).detach()) / 4, rel=1e-6), (
        "half, in step 1 of 2"
    )
    plain = torch.nn.functional.cross_entropy(output.logits[:, :-1].reshape(-1, 259), ids[:, 1:].reshape(-1))
    joined = float(training_loss(model, ids, ids).detach())
    assert joined == pytest.approx(float((plain + output.aux_loss).detach()), rel=1e-6)
    model.after_step(0.0)
    assert float(model(ids, output_router_logits=True).aux_loss.detach()) == pytest.approx(
        float(sum(parts).detach()) / 2, rel=1e-5
    )
    assert model(ids).aux_loss is None


def test_padding_and_other_documents_do_not_reach_the_losses():
    model, ids = build(), tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.no_grad():
        found = model(ids, attention_mask=mask, output_router_logits=True)
        scores = [one.double() for one in found.router_logits]
        documents = torch.zeros_like(ids).masked_fill(mask == 0, -1)
        parts = [0.05 * chunk_sparsification(one, 4, documents) for one in scores]
        parts += [0.002 * activation_locality(one, documents) for one in scores]
        assert float(found.aux_loss) == pytest.approx(float(sum(parts).detach()) / 2, rel=1e-5)
        two = model(ids, document_ids=torch.arange(12).expand(2, 12) // 3, output_router_logits=True)
        whole = model(ids, output_router_logits=True)
    assert float(two.aux_loss) != pytest.approx(float(whole.aux_loss), rel=1e-3)


def test_passes_without_gradients_leave_the_schedule_alone():
    model = build(hold_steps=0, period_steps=1).train()
    before = model.factor.numbers.clone()
    with torch.no_grad():
        model(tokens(), output_router_logits=True)
    model.after_step(0.5)
    assert torch.equal(model.factor.numbers, before)
    model.eval()(tokens(), output_router_logits=True)
    model.after_step(0.5)
    assert torch.equal(model.factor.numbers, before)


@pytest.fixture(scope="module")
def subject():
    return ss.wrap(build(), tokenizer=byte_tokenizer(32), id="small-blockffn")


@pytest.fixture(scope="module")
def corpus():
    words = [f"w{number * 7919 % 100}" for number in range(97)]
    texts = [" ".join(words[(i * j + j) % 97] for j in range(30)) for i in range(1, 7)]
    return ss.corpus(texts, tokens=512)


def test_it_is_a_dense_subject_with_sites_of_its_router(subject):
    check_subject(subject)
    assert {"mlp_hidden", "hidden_units", "exact_zeros", "causal", "logits"} <= subject.capabilities
    assert "experts" not in subject.capabilities and "mlp_gated" not in subject.capabilities
    assert uncovered(subject.model, subject.blocks) == []
    assert subject.parameter("weight:blocks.1.mlp.router.weight").shape == (6, 16)
    held = {}
    names = [f"blocks.1.mlp.{name}" for name in ("hook_in", "hook_pre", "hook_post", "hook_out")]
    names += [f"blocks.1.mlp.router.{name}" for name in ("hook_scores", "hook_weights")]
    with subject.attach(subject.sites(names), lambda site, value, rows: held.update({site.name: value})):
        subject.forward(tokens())
    into, pre, post, out, scores, weights = (held[name] for name in names)
    mlp = subject.model.model.layers[1].mlp
    with torch.no_grad():
        torch.testing.assert_close(scores, into @ mlp.router.weight.T)
        torch.testing.assert_close(pre, into @ mlp.up_proj.weight.T)
        assert torch.equal(weights != 0, scores > 0)
        torch.testing.assert_close(post, torch.nn.functional.silu(pre) * weights.repeat_interleave(4, -1))
        torch.testing.assert_close(out, post @ mlp.down_proj.weight.T)


def test_weights_of_the_router_can_be_replaced(subject):
    ids = tokens()
    before = subject.forward(ids)
    sites = subject.sites("blocks.*.mlp.router.hook_weights")
    with edit(subject.model, sites, lambda site, value: torch.zeros_like(value)):
        without = subject.forward(ids)
    assert not torch.equal(without, before) and torch.equal(subject.forward(ids), before)


def test_sites_that_are_not_passed_are_refused(subject):
    subject.model.compute_only_active()
    try:
        with (
            pytest.raises(SubjectError),
            subject.attach(subject.sites("blocks.*.mlp.hook_post"), lambda *found: None),
        ):
            subject.forward(tokens())
    finally:
        subject.model.compute_only_active(False)


def test_dense_analyses_read_it(subject, corpus):
    sparsity = ss.run("activation_sparsity", subject, corpus)
    table = sparsity.tables["per_layer"]
    assert len(table) >= 2
    nonzero = sparsity.scalars["mean_nonzero"].value
    with ss.capture(subject, corpus, "blocks.*.mlp.router.hook_weights") as source:
        counted = [
            (float((batch.values[site.name][batch.positions > 0] != 0).double().sum()),
             batch.values[site.name][batch.positions > 0].numel())
            for batch in source
            for site in source.sites
        ]  # fmt: skip
    wanted = sum(one for one, _ in counted) / sum(n for _, n in counted)
    assert nonzero == pytest.approx(wanted, abs=1e-6), "hidden units are active where experts are"
    reuse = ss.run("activation_reuse", subject, corpus)
    assert reuse.scalars["token_sparsity_nonzero"].value == pytest.approx(1 - wanted, abs=1e-6)
    assert 0 < reuse.scalars["chunk_sparsity_nonzero"].value < reuse.scalars["token_sparsity_nonzero"].value


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("activation_rank", "full"),
        ("effective_density", "quick"),
        ("weight_sparsity", "quick"),
        ("sparse_inference", "quick"),
    ],
)
def test_other_analyses_of_dense_models_run_on_it(name, preset, subject, corpus):
    found = ss.run(name, subject, corpus, preset=preset)
    assert found.tables and any(np.isfinite(scalar.value) for scalar in found.scalars.values())


def test_it_can_be_sparsified(subject, corpus):
    made = sparsify(subject, method="teal", target=0.5, corpus=corpus)
    ids = tokens()
    assert not torch.equal(made.forward(ids), subject.forward(ids))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"intermediate_size": 25}, "the experts decide how wide"),
        ({"ffn_experts": 0}, "too small"),
        ({"period_steps": 0}, "too small"),
        ({"chunk_loss": -0.1}, "too small"),
        ({"least_growth": float("nan")}, "too small"),
    ],
)
def test_bad_configurations_are_named(values, message):
    with pytest.raises(SpecError, match=message):
        build(**values)


def test_the_configuration_says_its_values():
    check_config(NAME, SMALL)
    config = BlockFFNConfig(**SMALL)
    assert BlockFFNConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


ROOT = Path(__file__).resolve().parents[4]
RECIPES = {
    path.stem: read_recipe(path)
    for path in (ROOT / "analyses" / "blockffn").glob("*.toml")
    if path.stem != "study"
}


def test_the_dense_twin_has_as_many_weights_and_the_same_batches():
    ours, twin = RECIPES["blockffn"], RECIPES["swiglu"]
    weights = [
        sum(p.numel() for p in build_model(one.model.architecture, one.model.values).parameters())
        for one in (ours, twin)
    ]
    assert abs(weights[0] / weights[1] - 1) < 0.005, "routers included"
    left_out = {"name", "title", "model"}
    assert ours.model_dump(exclude=left_out) == twin.model_dump(exclude=left_out)


def test_the_other_recipes_differ_in_their_losses_alone():
    ours = RECIPES["blockffn"]
    others = [one for name, one in RECIPES.items() if name not in ("blockffn", "swiglu")]
    assert len(others) == 5
    losses = {"chunk_loss", "locality_loss"}
    for one in others:
        assert one.model_dump(exclude={"name", "title", "model"}) == ours.model_dump(
            exclude={"name", "title", "model"}
        )
        assert {k for k, v in one.model.values.items() if ours.model.values[k] != v} <= losses
    points = {(one.model.values["chunk_loss"], one.model.values["locality_loss"]) for one in (*others, ours)}
    assert len(points) == 6


def test_the_shipped_model_leaves_out_less_in_longer_chunks_and_more_than_by_chance():
    subject = ss.load("blockffn")
    probe = torch.from_numpy(open_series("blockffn").probe().tokens[:48])
    with torch.no_grad():
        scores = torch.stack(subject.model(probe, output_router_logits=True).router_logits)[:, :, 1:]
    active = (scores > 0).numpy()  # [layer, window, pos, expert]
    documents = np.repeat(np.arange(48), 127)
    layers = active.reshape(4, -1, 40)
    found = {
        length: np.mean([chunk_sparsity(one, windows(documents, length)).mean() for one in layers])
        for length in (1, 8, 16)
    }
    assert 0 < found[16] <= found[8] <= found[1] < 1
    assert found[1] > 0.7 and found[8] > 0.5
    chance = np.mean([chunk_sparsity_chance(one.mean(0), 8)[1] for one in layers])
    assert found[8] > chance


RECIPE = {
    "name": "tiny-blocks",
    "title": "A tiny run of BlockFFN",
    "license": "Apache-2.0",
    "steps": 8,
    "checkpoints": [0, 4, 8],
    "log_every": 4,
    "model": {
        "architecture": NAME,
        "config": {
            **{name: value for name, value in SMALL.items() if value is not None},
            "warmup_steps": 2,
            "hold_steps": 1,
            "period_steps": 1,
        },
    },
    "data": {
        "kind": "byte_text",
        "corpora": ["up", "down"],
        "context": 16,
        "windows_per_domain": 3,
        "probe_windows": 5,
    },
    "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0},
}


@pytest.fixture
def recipe(monkeypatch):
    def entry(name, order):
        texts = [" ".join(f"w{order * i * j % 97}" for j in range(40)) for i in range(1, 13)]
        documents = [Document(f"{name}{i}", name, text) for i, text in enumerate(texts)]
        return CorpusEntry(name, "toy", "CC0-1.0", name, lambda: documents)

    monkeypatch.setattr(byte_text, "registered_entries", lambda name: [entry("up", 1), entry("down", -1)])
    return Recipe.model_validate(RECIPE)


def test_a_training_goes_on_exactly_and_is_read_as_it_was_measured(recipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe, whole)
    for _ in range(2):
        assert train(recipe, parts, stop_after=3) is None
    train(recipe, parts)
    first, second = (SeriesFolder.open(folder) for folder in (whole, parts))
    assert first.content.checkpoints == second.content.checkpoints and first.curves().equals(second.curves())
    series = open_series(whole)
    model = series.subject(8).model
    assert model.factor.numbers[5] > 0.05, "the weight was steered, so that the state counts"
    found = measure(model, byte_text.ByteTextData(recipe.data).examples(whole=True))["validation"]["loss"]
    assert found == pytest.approx(series.checkpoints[-1].stored["validation"]["loss"], rel=1e-6)
    assert found < series.checkpoints[0].stored["validation"]["loss"]


def test_a_balancing_loss_of_the_recipe_is_refused(recipe, tmp_path):
    optimizer = recipe.optimizer.model_copy(update={"balance": 0.01})
    with pytest.raises(SpecError, match="weigh their own penalties"):
        train(recipe.model_copy(update={"optimizer": optimizer}), tmp_path / "run")
