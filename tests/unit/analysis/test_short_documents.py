"""Documents of one token, and of a few: a result or a message, never a fault of ours."""

import pytest

import sparsescope as ss
from sparsescope.core.registry import analyses
from sparsescope.errors import SparsescopeError, SubjectError

QUICK = [record.name for record in analyses() if record.roles == ("subject", "text") and not record.filled_by]


@pytest.fixture(scope="module")
def relu():
    return ss.load("lazy-relu")


@pytest.mark.parametrize("bos", ["auto", "never"])
@pytest.mark.parametrize("name", QUICK)
def test_documents_of_one_token(name, bos, relu):
    letters = ss.corpus(
        [chr(97 + n) for n in range(26)], tokens=None, min_tokens=1, bos=bos, deduplicate=False
    )
    presets = next(record for record in analyses() if record.name == name).presets
    try:
        result = ss.run(name, relu, letters, **presets.get("quick", {}))
    except SparsescopeError as error:
        assert error.next_step, error
    else:
        assert result.scalars


def test_effective_density_says_that_nothing_is_predicted(relu):
    letters = ss.corpus(
        [chr(97 + n) for n in range(26)], tokens=None, min_tokens=1, bos="never", deduplicate=False
    )
    with pytest.raises(SubjectError, match="no token of the text is predicted"):
        ss.run("effective_density", relu, letters)


def test_attention_says_why_few_windows_were_measured(relu):
    texts = [f"{n} short" for n in range(500)] + ["a longer document " * 10 + str(n) for n in range(4)]
    text = ss.corpus(texts, tokens=None, context=128, deduplicate=False)
    found = ss.run("attention_sparsity", relu, text, windows=24, dose_windows=0, resamples=100)
    notes = {
        note.severity: note.message
        for note in found.notes
        if "windows" in note.message and "measured" in note.message
    }
    assert (
        notes == {"warning": notes["warning"]}
        and "Only 8 of" in notes["warning"]
        and "t_min" in notes["warning"]
    )
    some = ss.run("attention_sparsity", relu, text, windows=2, dose_windows=0, resamples=100)
    assert [note.severity for note in some.notes if "'windows' sets it" in note.message] == ["info"]
