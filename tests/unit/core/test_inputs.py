"""What an analysis reads, and why it does not fit what is there."""

from __future__ import annotations

import pytest

from sparsescope.core.inputs import NOT_KNOWN, Input, Known, declared_inputs, why_not
from sparsescope.errors import SpecError

MODEL = declared_inputs(("subject", "text"))
SERIES = declared_inputs(("series",))
BOTH = declared_inputs(("series", "text"))
TEXT = Known("text", "docs", whole=True, needs=frozenset({"tokenizer"}))
NONE = frozenset[str]()


def known(role="subject", has=(), lacks=(), whole=False, name="m"):
    return Known(role, name, has=frozenset(has), lacks=frozenset(lacks), whole=whole)


def test_a_declaration_is_read():
    assert declared_inputs(("subject", "dictionary*", "series?", "more*?")) == (
        Input("subject"),
        Input("dictionary", repeated=True),
        Input("series", optional=True),
        Input("more", True, True),
    )


@pytest.mark.parametrize(
    "wrong", [("subject", "subject*"), ("Subject",), ("a b",), ("",), (None,), ("subject+",)]
)
def test_another_declaration_is_refused(wrong):
    with pytest.raises(SpecError, match="input is"):
        declared_inputs(wrong)


def test_what_is_not_loaded_is_not_known():
    assert why_not(MODEL, NONE, [known(), TEXT]) == NOT_KNOWN
    assert why_not(MODEL, NONE, [known(has=["tokenizer"]), TEXT]) is None, "nothing else is asked for"
    assert why_not(MODEL, frozenset({"logits"}), [known(has=["tokenizer"]), TEXT]) == NOT_KNOWN
    assert why_not(SERIES, NONE, [known("series")]) is None


def test_the_reason_is_said():
    assert why_not(MODEL, NONE, [known()]) == "it reads a text, and none is given"
    assert why_not(SERIES, NONE, [known(), TEXT]) == "it reads a series, and none is given"
    assert why_not(MODEL, NONE, [known(lacks=["tokenizer"]), TEXT]) == "it needs tokenizer, and m has none"
    whole = known(has=["tokenizer"], whole=True)
    assert why_not(MODEL, frozenset({"mlp_hidden"}), [whole, TEXT]) == "it needs mlp hidden, and m has none"
    assert why_not(SERIES, NONE, [known("series"), known("series")]) == "it reads one series, and 2 are given"
    assert why_not(declared_inputs(("series*",)), NONE, [known("series"), known("series")]) is None


def test_what_is_there_beside_does_no_harm():
    series = known("series", has=["tokenizer"], whole=True)
    assert why_not(BOTH, NONE, [series, known(lacks=["tokenizer"]), TEXT]) is None
    assert why_not(SERIES, frozenset({"pairs"}), [series, known(), TEXT]) == "it needs pairs, and m has none"


def test_an_optional_input_may_be_absent_and_counts_where_it_is_there():
    declared = declared_inputs(("subject", "dictionary?"))
    assert why_not(declared, NONE, [known()]) is None
    code = known("dictionary", has=["code"], whole=True, name="d")
    assert why_not(declared, frozenset({"code"}), [known(whole=True), code]) is None
    assert why_not(declared, frozenset({"code"}), [known(whole=True)]) == "it needs code, and m has none"


def test_what_a_text_needs_comes_from_the_model_before_it():
    model, words = known(lacks=["tokenizer"]), Known("word_list", "words.txt")
    declared = declared_inputs(("subject", "text", "word_list"))
    assert why_not(declared, NONE, [model, TEXT, words]) == "it needs tokenizer, and m has none"


def test_an_optional_text_that_the_series_cannot_read_is_left_out():
    perhaps, residues = declared_inputs(("series*", "text?")), known("series", has=["pairs"], whole=True)
    assert why_not(perhaps, NONE, [residues, TEXT]) is None
    assert why_not(BOTH, NONE, [residues, TEXT]) == "it needs tokenizer, and m has none"
    assert why_not(perhaps, NONE, [known("series"), TEXT]) == NOT_KNOWN
    assert why_not(perhaps, frozenset({"experts"}), [residues, TEXT]) == "it needs experts, and m has none"
