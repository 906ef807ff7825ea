"""Glosses of WordNet from a frozen excerpt of its noun file."""

from __future__ import annotations

import pytest

from sparsescope.activations.text.registered import registered_corpora
from sparsescope.activations.text.wordnet import CLASSES, GLOSSES, wordnet_nouns
from sparsescope.errors import ArtifactError, DependencyError

#: Lines of data.noun of WordNet 3.0, pointers left out of the longer ones.
LICENSE = "  1 This software and database is being provided to you, the LICENSEE, by  "
LINES = (
    "00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 ~ 04424418 n 0000 | that which is "
    "perceived or known or inferred to have its own distinct existence (living or nonliving)  ",
    "00002684 03 n 02 object 0 physical_object 0 001 @ 00001930 n 0000 | a tangible and visible entity; "
    'an entity that can cast a shadow; "it was full of rackets, balls and other objects"  ',
    "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of "
    "the genus Canis (probably descended from the common wolf) that has been domesticated by man since "
    "prehistoric times  ",
    "15113229 28 n 02 time_period 0 period_of_time 0 001 @ 00033615 n 0000 | an amount of time  ",
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.noun").write_text("\n".join([LICENSE, *LINES, ""]), encoding="utf-8")
    return tmp_path


def test_glosses_stand_under_their_class(folder):
    found = list(wordnet_nouns("noun", folder))
    assert [document.id for document in found] == ["Tops/0000", "animal/0000", "time/0000"]
    assert [document.domain for document in found] == ["noun.Tops", "noun.animal", "noun.time"]
    assert found[1].text.startswith("dog: a member of the genus Canis")
    assert sorted(line.partition(":")[0] for line in found[0].text.splitlines()) == ["entity", "object"]
    assert found[2].text == "time period: an amount of time"


def test_documents_have_eight_glosses_in_an_order_of_their_own(folder):
    many = [f"{n:08d} 06 n 01 thing_{n} 0 000 | gloss number {n}  " for n in range(30)]
    (folder / "data.noun").write_text("\n".join(many), encoding="utf-8")
    found = list(wordnet_nouns("noun", folder))
    assert [len(document.text.splitlines()) for document in found] == [GLOSSES] * 3 + [6]
    lines = [line for document in found for line in document.text.splitlines()]
    assert len(set(lines)) == 30 and lines != sorted(lines)
    assert [d.text for d in wordnet_nouns("noun", folder)] == [d.text for d in found]


def test_what_is_no_wordnet_is_refused(folder, tmp_path):
    with pytest.raises(DependencyError, match="needs WordNet"):
        list(wordnet_nouns("noun", tmp_path / "nowhere"))
    for line in (
        "no synset at all",
        "00001740 03 v 01 be 0 000 | a verb",
        "00001740 99 n 01 x 0 000 | beyond",
        "00001740 03 n 01 x 0",
    ):
        (folder / "data.noun").write_text(line, encoding="utf-8")
        with pytest.raises(ArtifactError, match="line 1"):
            list(wordnet_nouns("noun", folder))


def test_it_is_registered_with_its_classes():
    assert len(CLASSES) == 26
    entry = registered_corpora()["wordnet-nouns"]
    assert "WordNet" in entry.license and "wordnet" in entry.origin
