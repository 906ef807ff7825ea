"""What users hold shows itself in a line and as a small table; names from elsewhere stay text."""

import torch

import sparsescope as ss
from sparsescope.activations.corpus import Document
from sparsescope.activations.store import write_store
from sparsescope.core.registry import analyses
from sparsescope.core.shown import Shown
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.inference.calibration import Calibration
from sparsescope.kernels.weight_rows import rows_by_channel
from sparsescope.pruning.masks import MaskSet


def holds(llama, small_corpus, tmp_path):
    big = ss.corpus(["word " * 100_000 + str(n) for n in range(90)], deduplicate=False)
    with ss.capture(llama, small_corpus, sites="blocks.0.mlp.hook_post") as source:
        store = write_store(source, tmp_path / "store")
        yield from (source, store)
    yield from (llama, big, small_corpus.read_by(llama), big.documents[0], MaskSet({}, {}))
    yield small_corpus.read_by(llama).documents[0]
    yield Calibration((), "teal", 0.5, "all_sparse", {"realised": 0.5, "model": {"id": "x"}})
    yield rows_by_channel([torch.randn(4, 3)])
    yield ss.open_series("grokking-short")
    yield from analyses()


def test_every_public_object_is_short(llama, small_corpus, tmp_path):
    seen = list(holds(llama, small_corpus, tmp_path))
    for value in seen:
        assert isinstance(value, Shown)
        assert "\n" not in repr(value) and repr(value).startswith(type(value).__name__ + "(")
        assert 20 < len(repr(value)) < 700 and len(value._repr_html_()) < 3000, repr(value)
        assert "_shown" not in repr(value) and "object at 0x" not in repr(value)


def test_names_from_elsewhere_stay_text():
    text = ss.corpus([Document("<script>alert(1)</script>", "a\u202eb$x$", "text")])
    for value in (text, text.documents[0]):
        assert "<script>" not in value._repr_html_() and "$" not in value._repr_html_()
        assert "\u202e" not in repr(value) + value._repr_html_()


def test_numbers_are_readable():
    assert "documents=2" in repr(ss.corpus(["a", "b c d"], tokens=None)) and "'all'" in repr(
        ss.corpus(["a", "b"], tokens=None)
    )
    assert "8,192" in ss.corpus(["a"])._repr_html_()


def test_dictionaries_show_themselves_and_not_their_modules():
    assert TopKSAE.__repr__ is Shown.__repr__
