"""The benchmark of capture: other ways read the same numbers, ratios are what they say, what cannot be
compared is named.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import sparsescope as ss
from sparsescope.bench import capture as benchmark
from sparsescope.bench import peers
from sparsescope.core.result import Result
from sparsescope.models.doctor import count_hooks
from sparsescope.models.structure.sites import Site
from sparsescope.runner.run import run
from sparsescope.testing import check_figure

SITES = "blocks.*.mlp.hook_post"


@pytest.fixture(scope="module")
def tokenized(llama: Any) -> Any:
    """Documents of unequal length: some batches are padded."""
    texts = ["the quick brown fox jumps over a lazy dog " * n for n in (2, 5, 9, 3)]
    return ss.corpus(texts, tokens=None, context=32, deduplicate=False).tokenize(llama.tokenizer)


@pytest.fixture(scope="module")
def measured(llama: Any) -> Result:
    corpus = ss.corpus("python-docs", tokens=400, context=48)
    return run("capture", llama, corpus, repeats=3)


@pytest.mark.parametrize(
    "pattern", [SITES, "blocks.*.mlp.hook_pre", "blocks.*.mlp.hook_out", "blocks.1.attn.hook_z"]
)
def test_plain_hooks_read_what_capture_reads(pattern: str, llama: Any, tokenized: Any) -> None:
    sites = llama.sites(pattern)
    before = count_hooks(llama.model)
    values = peers.plain_hooks(llama, sites, tokenized.batches(64))
    assert peers.largest_difference(values, llama, sites, tokenized, 64) == 0.0
    assert count_hooks(llama.model) == before


@pytest.mark.parametrize("options", [{}, peers.LEAN])
def test_transformer_lens_reads_what_capture_reads(
    options: dict[str, Any], llama: Any, tokenized: Any
) -> None:
    bridge, sites = llama.bridge(), llama.sites(SITES)
    assert peers.why_not_transformer_lens(bridge, sites) is None
    values = peers.run_with_cache(bridge, sites, tokenized.batches(64), **options)
    assert peers.largest_difference(values, llama, sites, tokenized, 64) < 1e-5


def test_another_way_with_other_numbers_is_found_out(llama: Any, tokenized: Any) -> None:
    sites = llama.sites(SITES)

    def wrong(factor: float, cut: int) -> Generator[dict[str, torch.Tensor], None, None]:
        for values in peers.plain_hooks(llama, sites, tokenized.batches(64)):
            yield {name: tensor[..., cut:] * factor for name, tensor in values.items()}

    assert peers.largest_difference(wrong(1.5, 0), llama, sites, tokenized, 64) == pytest.approx(0.5)
    assert peers.largest_difference(wrong(1.0, 1), llama, sites, tokenized, 64) == float("inf")


def test_expert_sites_are_named_as_left_out() -> None:
    sites = ss.load("random-olmoe").sites("blocks.*.mlp.experts.hook_post")
    assert "experts" in str(peers.why_not_hooks(sites))
    assert peers.why_not_hooks((Site("blocks.0.hook_in", 0, "hook_in", "input", "layers.0", 8),)) is None


def test_speedups_are_ratios_within_a_repeat() -> None:
    result = Result("capture")
    ours, theirs = np.array([1.0, 2.0, 4.0]), np.array([[2.0, 6.0, 16.0]])
    benchmark._speedups(result, {benchmark._PLAIN: 0.0}, ours, theirs)
    scalar = result.scalars["speedup_over_plain_hooks"]
    assert (scalar.value, scalar.interval.low, scalar.interval.high, scalar.interval.n) == (3.0, 2.5, 3.5, 3)
    row = result.tables["peers"].iloc[0]
    assert (row["seconds"], row["ours"], row["speedup"], row["repeats"]) == (6.0, 2.0, 3.0, 3)


def test_the_benchmark_compares_all_ways(measured: Result) -> None:
    frame = measured.tables["peers"]
    assert list(frame["peer"]) == list(benchmark._PEER_SCALARS)
    assert (frame["difference"] < 1e-5).all() and (frame["repeats"] == 3).all()
    assert (frame[["speedup_q1", "speedup", "speedup_q3"]].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    for name, scalar in measured.scalars.items():
        assert scalar.value > 0 and scalar.definition, name
    rows = dict(
        zip(measured.tables["variants"]["variant"], measured.tables["variants"]["seconds"], strict=True)
    )
    for row in frame.itertuples():
        assert rows[row.peer] == row.seconds


@pytest.mark.parametrize("view", [view.name for view in benchmark.ANALYSIS.views])
def test_views(view: str, measured: Result) -> None:
    check_figure(benchmark.ANALYSIS.draw(view, measured), view)


def test_without_a_comparison_the_view_is_empty_and_the_note_says_why() -> None:
    moe = ss.load("random-olmoe")
    corpus = ss.corpus("python-docs", tokens=200, context=48)
    result = run("capture", moe, corpus, repeats=3, sites="blocks.*.mlp.experts.hook_post")
    assert len(result.tables["peers"]) == 0
    assert not [name for name in result.scalars if name.startswith("speedup")]
    notes = " ".join(note.message for note in result.notes)
    assert "Plain hooks are left out" in notes and "TransformerLens is left out" in notes
    check_figure(benchmark.ANALYSIS.draw("speedups", result))


def test_a_model_without_output_head_is_measured_without_logits() -> None:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    subject = ss.wrap(transformers.BertModel(config), ss.load("random-llama").tokenizer)
    subject.model.embeddings.word_embeddings = torch.nn.Embedding(len(subject.tokenizer), 32)
    result = run(
        "capture",
        subject,
        ss.corpus("python-docs", tokens=200, context=48),
        repeats=3,
        transformer_lens=False,
    )
    assert "logits_ratio" not in result.scalars and {"capture_ratio", "speedup_over_plain_hooks"} <= set(
        result.scalars
    )
    assert "forward with logits" not in set(result.tables["variants"]["variant"])


def test_the_checks_of_a_pass_are_measured_apart_from_those_that_are_done_once(measured: Result) -> None:
    table = measured.tables["checks"]
    assert (table["seconds"] > 0).all() and len(table) == 5
    assert table["repeats"].tolist() == [3, 1, 1, 1, 1]
    assert 0 < measured.scalars["checks_share"].value == table["share"][0] < 0.5
    assert table["share"][1:].isna().all()
