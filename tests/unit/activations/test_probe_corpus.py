"""The held-out text of a series as a corpus: exactly the tokens of its probe set, documents kept together."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.activations.text.probe import probe_corpus
from sparsescope.errors import SpecError
from sparsescope.models.checkpoints import Checkpoint, CheckpointSeries, open_series
from sparsescope.models.sources import load


@pytest.mark.parametrize("name", ["lazy-relu", "bytes-moe"])
def test_every_window_is_one_row_of_the_probe_set(name):
    series = open_series(name)
    probe, text = series.probe(), probe_corpus(series)
    rows = np.concatenate([batch.input_ids for batch in text.batches(2048)])
    assert rows.shape == probe.tokens.shape
    assert sorted(map(bytes, rows.astype("<i8"))) == sorted(map(bytes, probe.tokens.astype("<i8")))
    assert all(batch.attention_mask.all() and (batch.position[:, 0] == 0).all() for batch in text.batches())
    pairs = set(zip(probe.fields["domain"].tolist(), probe.fields["document"].tolist(), strict=True))
    assert len(text.documents) == len(pairs) and text.domains == tuple(series.trained.data["domains"])
    described = text.describe()
    assert described["tokens"] == probe.tokens.size and "held-out" in described["name"]


def test_the_text_decodes_to_words_of_its_domain():
    series = open_series("lazy-relu")
    scripture = next(d for d in probe_corpus(series).documents if d.domain == "scripture")
    assert " the " in series.subject(0).tokenizer.decode(scripture.ids)


def test_twins_that_read_the_same_text_share_its_digest():
    assert probe_corpus(open_series("lazy-relu")).digest == probe_corpus(open_series("lazy-swiglu")).digest
    assert probe_corpus(open_series("lazy-relu")).digest != probe_corpus(open_series("bytes-moe")).digest


def test_a_series_without_text_is_refused():
    with pytest.raises(SpecError, match="residues"):
        probe_corpus(open_series("grokking-relu"))
    with pytest.raises(SpecError, match="carries no text") as caught:
        probe_corpus(
            CheckpointSeries("org/model", [Checkpoint(1, "step1")], lambda checkpoint: load("random-opt"))
        )
    assert "--corpus" in caught.value.next_step
