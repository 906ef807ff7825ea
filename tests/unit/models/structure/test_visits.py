"""Every site is seen once in a pass, and every edit acts; what is otherwise is refused."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import MethodType

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.errors import SubjectError
from sparsescope.models import examine

IDS = torch.arange(12).reshape(2, 6)
POST = "blocks.*.mlp.hook_post"


@pytest.fixture
def changed(llama):
    """A copy of a small Llama, to be changed."""
    return llama.copy()


def read(subject, patterns=POST, ids=IDS):
    found = {}
    with subject.attach(
        subject.sites(patterns), lambda site, tensor, rows: found.update({site.name: tensor})
    ):
        subject.forward(ids)
    return found


def zeroed(subject, patterns=POST):
    with subject.edit(subject.sites(patterns), lambda site, tensor, rows=None: torch.zeros_like(tensor)):
        return subject.forward(IDS)


def replace_forward(module, forward):
    module.forward = MethodType(forward, module)


def compiled(subject):
    """Compile before any hook is there, in the very state in which a subject runs: another one would make
    torch compile once more, with the hooks.
    """
    model = subject.model.eval()
    with torch.inference_mode():
        model.model(input_ids=IDS, use_cache=False)


@pytest.mark.parametrize("what", ["layers", "mlps", "model", "forward"])
def test_compiled_modules_are_read_and_edited_like_plain_ones(llama, changed, what):
    backbone = changed.model.model
    for layer in backbone.layers:
        if what == "layers":
            layer.compile(backend="eager")
        elif what == "mlps":
            layer.mlp.compile(backend="eager")
        elif what == "forward":
            layer.forward = torch.compile(layer.forward, backend="eager")
    if what == "model":
        backbone.compile(backend="eager")
    compiled(changed)
    expected, found = read(llama), read(changed)
    assert expected.keys() == found.keys() and all(torch.equal(expected[k], found[k]) for k in expected)
    assert torch.equal(zeroed(llama), zeroed(changed)) and not torch.equal(
        zeroed(changed), changed.forward(IDS)
    )


def test_a_result_says_that_compiled_modules_ran_uncompiled(llama, changed, small_corpus):
    for layer in changed.model.model.layers:
        layer.compile(backend="eager")
    compiled(changed)
    expected = ss.run("effective_density", llama, small_corpus)
    found = ss.run("effective_density", changed, small_corpus)
    said = [note.message for note in found.notes if "compiled" in note.message]
    assert len(said) == 1 and f"{changed.n_layers} modules" in said[0]
    assert not any("compiled" in note.message for note in expected.notes)
    assert found.scalars == expected.scalars
    rows = ss.run("attention_sparsity", changed, small_corpus)
    assert rows.scalars == ss.run("attention_sparsity", llama, small_corpus).scalars


def test_an_mlp_that_goes_around_its_matrices_is_refused_by_name(changed, small_corpus):
    replace_forward(changed.model.model.layers[1].mlp, lambda self, states: states * 0.5)
    with pytest.raises(SubjectError, match=r"not at all.*\n.*blocks\.1\.mlp\.hook_post") as caught:
        read(changed)
    assert "the forward of model.layers.1.mlp was replaced" in str(caught.value)
    for analysis in (
        "activation_sparsity",
        "activation_interventions",
        "effective_density",
        "activation_rank",
    ):
        with pytest.raises(SubjectError, match="not at all"):
            ss.run(analysis, changed, small_corpus)
    assert read(changed, "blocks.0.mlp.hook_post"), "the other layers can still be read"


def test_a_value_that_is_thrown_away_cannot_be_edited(changed):
    def forward(self, states):
        self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))
        return states

    replace_forward(changed.model.model.layers[1].mlp, forward)
    assert len(read(changed)) == changed.n_layers, "it is there to be read"
    with pytest.raises(SubjectError, match="does not reach") as caught:
        zeroed(changed)
    assert "blocks.1.mlp.hook_post" in str(caught.value) and "1 of 3 sites" in str(caught.value)
    zeroed(changed, "blocks.0.mlp.hook_post")


def test_an_edit_of_a_zero_matrix_is_no_fault(changed):
    torch.nn.init.zeros_(changed.model.model.layers[0].mlp.down_proj.weight)
    zeroed(changed)


@pytest.mark.parametrize(
    "role", ["hook_in", "hook_out", "attn.hook_z", "mlp.hook_in", "mlp.hook_pre", "mlp.hook_out"]
)
def test_every_kind_of_site_reaches_the_next_block(llama, role):
    zeroed(llama.copy(), f"blocks.*.{role}")


def test_experts_reach_the_next_block():
    olmoe = ss.load("random-olmoe")
    zeroed(olmoe, "blocks.*.mlp.experts.hook_post")
    zeroed(olmoe, "blocks.*.mlp.hook_expert_weights")


def test_one_module_in_two_places_is_refused(changed):
    changed.model.model.layers[1] = changed.model.model.layers[0]
    with pytest.raises(SubjectError, match="more than once") as caught:
        read(changed)
    assert "one module stands in 2 places: model.layers.0" in str(caught.value)
    with pytest.raises(SubjectError, match="more than once"):
        zeroed(changed)


def test_a_loop_and_a_direct_call_and_a_skipped_layer_are_refused(changed):
    layer = changed.model.model.layers[0]
    attention = "blocks.0.attn.hook_z"

    def loop(self, hidden_states, **more):
        return self.mlp(self.mlp(hidden_states))

    replace_forward(layer, loop)
    with pytest.raises(SubjectError, match="more than once"):
        read(changed)
    replace_forward(layer, lambda self, hidden_states, **more: self.mlp.forward(hidden_states))
    assert read(changed, POST), "its matrices are called as modules"
    with pytest.raises(SubjectError, match="not at all"):
        read(changed, "blocks.0.mlp.hook_in")
    replace_forward(layer, lambda self, hidden_states, **more: hidden_states)
    with pytest.raises(SubjectError, match="not at all"):
        read(changed, attention)


def test_the_forward_of_the_model_itself_must_be_called(llama):
    with (
        pytest.raises(SubjectError, match=r"outside of a forward pass"),
        llama.attach(llama.sites(POST), lambda *_: None),
    ):
        llama.backbone.forward(IDS)


def test_sites_behind_the_last_wanted_block_are_refused(llama):
    with (
        pytest.raises(SubjectError, match=r"not at all(.|\n)*blocks\.2"),
        llama.attach(llama.sites("blocks.*.mlp.hook_post"), lambda *_: None),
    ):
        llama.forward_through(1, IDS)


def test_passes_are_counted_apart_and_one_that_failed_is_forgotten(llama):
    seen = []

    def callback(site, tensor, rows):
        seen.append(site.name)
        if len(seen) == 2:
            raise ValueError("of the caller")

    sites = llama.sites(POST)
    with llama.attach(sites, callback):
        with pytest.raises(ValueError, match="of the caller"):
            llama.forward(IDS)
        llama.forward(IDS, logits=True)
        llama.forward_through(llama.n_layers - 1, IDS)
        llama.forward(IDS)
    assert len(seen) == 2 + 3 * len(sites)


def test_a_model_that_pads_inside_is_refused():
    from transformers import LongformerConfig, LongformerForMaskedLM

    torch.manual_seed(0)
    config = LongformerConfig(
        attention_window=16, vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=130,
    )  # fmt: skip
    subject = ss.wrap(LongformerForMaskedLM(config).eval())
    with pytest.raises(SubjectError, match=r"of other positions than the pass(.|\n)*pads inside") as caught:
        read(subject, ids=torch.arange(2, 52)[None])
    assert "[1, 50, 48]" in str(caught.value) and "[1, 64, 48]" in str(caught.value)
    assert read(subject, ids=torch.arange(2, 50)[None])["blocks.1.mlp.hook_post"].shape == (1, 48, 48)


def test_threads_share_a_subject(llama):
    """One reads while the other edits: each finds what it finds alone."""
    site = "blocks.2.mlp.hook_post"
    plain, edited = read(llama, site)[site], zeroed(llama)
    begin = threading.Barrier(3)

    def reading():
        begin.wait()
        return all(torch.equal(read(llama, site)[site], plain) for _ in range(40))

    def editing():
        begin.wait()
        return all(torch.equal(zeroed(llama), edited) for _ in range(40))

    with ThreadPoolExecutor(3) as pool:
        assert [done.result() for done in [pool.submit(work) for work in (reading, editing, reading)]] == [
            True
        ] * 3


def test_batches_are_copies_unless_asked_otherwise(llama, small_corpus):
    with ss.capture(llama, small_corpus, POST, batch_tokens=128) as source:
        kept = list(source)
        for batch, again in zip(kept, source, strict=True):
            for name, values in again.values.items():
                np.testing.assert_array_equal(batch.values[name], values)
        assert len({batch.values["blocks.0.mlp.hook_post"].data_ptr() for batch in kept}) == len(kept)
    with ss.capture(llama, small_corpus, POST, batch_tokens=128, reuse=True) as source:
        kept = list(source)
        assert len({batch.values["blocks.0.mlp.hook_post"].data_ptr() for batch in kept}) == 1


def test_the_doctor_tells_beforehand_what_a_run_would_refuse(llama, changed):
    assert [(check.what, check.ok) for check in examine(llama).checks][:2] == [
        ("sites", True),
        ("edits", True),
    ]
    replace_forward(changed.model.model.layers[1].mlp, lambda self, states: states * 0.5)
    found = examine(changed)
    assert not found.healthy
    sites, edits = found.checks[:2]
    assert not sites.ok and not edits.ok
    assert "the forward of model.layers.1.mlp was replaced" in sites.detail
