"""Text that a model writes itself: its name, its ids, its strata, its digest, and runs on it."""

from __future__ import annotations

import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.capture import check_context
from sparsescope.activations.continuations import ROWS, continuations, end_tokens
from sparsescope.activations.corpus import Corpus
from sparsescope.activations.generated import GeneratedCorpus, read_name, split_name
from sparsescope.activations.losses import token_losses
from sparsescope.core.result import Result
from sparsescope.errors import SpecError, SubjectError

NAME = "generated@prompt=12,new=20:python-docs"
DRAWN = "generated@prompt=12,new=20,temperature=1,seed={}:python-docs"
SMALL = {"resamples": 100}


def parts(text):
    """Documents of each domain."""
    return tuple([d for d in text.documents if d.domain == domain] for domain in ("prompt", "generated"))


@pytest.fixture(scope="module")
def written(glass):
    return ss.corpus(NAME, tokens=32 * 20).read_by(glass)


# ---------------------------------------------------------------------------------------- names


def test_a_name_says_how_the_text_is_written_and_from_what():
    asked, source = read_name("generated@temperature=0.7,seed=3:kjv+licenses")
    assert source == "kjv+licenses"
    assert asked.model_dump() == {"prompt": 32, "new": 64, "temperature": 0.7, "seed": 3}
    assert read_name("generated@8,new=16:a.txt")[0].prompt == 8  # the first may stand without its name
    assert read_name("generated:python-docs")[0].new == 64
    assert read_name("python-docs") == (None, "python-docs")
    assert split_name("generated@8:x/y.txt") == ("generated@8:", "x/y.txt")


def test_the_name_of_the_corpus_is_the_one_that_makes_it_again():
    assert ss.corpus(NAME).name == NAME
    again = ss.corpus("generated@seed=4,new=20,prompt=12:python-docs")
    assert again.name == NAME and again.digest == ss.corpus(NAME).digest  # greedy: a seed draws nothing
    drawn = ss.corpus("generated@temperature=0.5:python-docs")
    assert drawn.name == "generated@prompt=32,new=64,temperature=0.5,seed=0:python-docs"
    assert ss.corpus(drawn.name).digest == drawn.digest
    assert ss.corpus("python-docs").generated(12, 20).digest == ss.corpus(NAME).digest
    assert isinstance(drawn, GeneratedCorpus) and drawn.describe()["generated"]["temperature"] == 0.5
    assert ss.corpus(NAME, name="mine").name == "mine"


def test_an_existing_file_of_such_a_name_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "generated:x.txt").write_text("a file with an unusual name")
    assert type(ss.corpus("generated:x.txt")) is Corpus
    (tmp_path / "y.txt").write_text("\f".join(f"document {n} " * 9 for n in range(9)))
    assert ss.corpus("generated@4:y.txt").name == "generated@prompt=4,new=64:y"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("generated@new=0:python-docs", ("new", "greater than or equal to 2", "Most tokens")),
        ("generated@prompt=0:python-docs", ("prompt", "greater than or equal to 1")),
        ("generated@temperature=-1:python-docs", ("temperature",)),
        ("generated@temprature=1:python-docs", ("temprature", "did you mean 'temperature'")),
        ("generated@8,9:python-docs", ("arguments of a corpus", "NAME=VALUE")),
        ("generated@8:", ("a corpus that is there", "generated@prompt=32,new=64:python-docs")),
        ("generated@8:generated:python-docs", ("a corpus that is there",)),
        ("generated@8:python-dosc", ("python-docs",)),
    ],
)
def test_a_wrong_name_is_refused_before_a_model_is_there(name, words):
    with pytest.raises(SpecError) as caught:
        ss.corpus(name)
    assert all(word in str(caught.value) for word in words), caught.value


def test_lengths_are_said_by_the_name_and_not_by_a_cap():
    with pytest.raises(SpecError, match="max_document_tokens"):
        ss.corpus(NAME, max_document_tokens=64)


# ---------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("name", ["glassllm", "random-llama", "random-gpt2", "random-olmoe"])
def test_the_greedy_text_is_that_of_transformers(name):
    subject = ss.load(name)
    text = ss.corpus(NAME, tokens=32 * 6).read_by(subject)
    for prompt, own in zip(*parts(text), strict=True):
        ids = torch.tensor([[*text.prefix, *prompt.ids]])
        with torch.inference_mode():
            found = subject.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
            )
        assert own.ids.tolist() == found[0, ids.shape[1] :].tolist()


def test_settings_of_generation_that_nobody_asked_for_are_not_taken(llama, written, glass):
    subject = glass.copy()
    for name, value in {"repetition_penalty": 5.0, "do_sample": True, "top_k": 3, "temperature": 9.0}.items():
        setattr(subject.model.generation_config, name, value)
    again = ss.corpus(NAME, tokens=32 * 20).read_by(subject)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(written.documents, again.documents, strict=True))


def test_the_tokens_stay_those_that_were_written(written, glass):
    prompts, own = parts(written)
    assert [len(document) for document in prompts] == [12] * 20 and {len(d) for d in own} == {20}
    ids = [document.ids for document in prompts]
    for document, found in zip(own, continuations(glass, ids, written.prefix, 20), strict=True):
        assert np.array_equal(document.ids, found)
    # Decoded and tokenized again, some would be others: that is why ids are kept.
    own, tokenizer = parts(ss.corpus(DRAWN.format(0), tokens=32 * 20).read_by(glass))[1], glass.tokenizer
    again = [tokenizer(tokenizer.decode(d.ids), add_special_tokens=False)["input_ids"] for d in own]
    assert any(ids != d.ids.tolist() for ids, d in zip(again, own, strict=True))


def test_prompts_are_the_beginnings_of_documents(written, glass):
    plain = ss.corpus("python-docs", tokens=None).read_by(glass)
    begins = {document.id: document.ids[:12].tolist() for document in plain.documents}
    assert all(
        document.ids.tolist() == begins[document.id.removesuffix(" (prompt)")]
        for document in parts(written)[0]
    )
    assert written.n_tokens == 32 * 20 and len({document.id for document in written.documents}) == 40


def test_several_domains_give_prompts_evenly(glass):
    text = ss.corpus("generated@prompt=7,new=9:python-docs+python-source", tokens=16 * 21).read_by(glass)
    prompts, own = parts(text)
    assert len(prompts) == len(own) == 21
    docs = sum(document.id.startswith("python-docs") for document in prompts)
    assert docs in (10, 11)


def test_samples_follow_the_seed_and_leave_the_global_random_state(glass):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    texts = [ss.corpus(DRAWN.format(seed), tokens=32 * 5).read_by(glass) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert texts[0].digest == texts[1].digest != texts[2].digest
    first, other = parts(texts[0])[1], parts(texts[2])[1]
    assert any(not np.array_equal(a.ids, b.ids) for a, b in zip(first, other, strict=True))


def test_what_is_drawn_has_the_probabilities_of_the_model(llama):
    prompt = np.array([5, 6, 7], np.int32)
    found = continuations(llama, [prompt] * 4000, (), 1, temperature=0.02, seed=1)
    logits = llama.forward([prompt.tolist()], logits=True)[0, -1].double()
    expected = (logits / 0.02).softmax(-1).numpy()
    seen = np.bincount([int(ids[0]) for ids in found], minlength=len(expected)) / 4000
    likely = np.argsort(-expected)[:5]
    assert expected[likely[0]] < 0.98  # else there would be nothing to see
    np.testing.assert_allclose(seen[likely], expected[likely], atol=0.035)


def test_a_sample_does_not_depend_on_what_is_drawn_beside_it(llama):
    prompts = [np.array([5, n], np.int32) for n in range(ROWS + 3)]
    every = continuations(llama, prompts, (), 6, temperature=1.0)
    some = continuations(llama, prompts[:2], (), 6, temperature=1.0)
    assert [ids.tolist() for ids in every[:2]] == [ids.tolist() for ids in some]


def test_a_text_stops_at_its_end(llama):
    """The head is made to prefer the end after the token 9, and 9 after anything else."""
    subject = llama.copy()
    (end,) = end_tokens(subject)

    def choose(module, args, kwargs, output):
        output.logits[:] = 0
        read = kwargs["input_ids"][:, -1]
        output.logits[torch.arange(len(read)), -1, torch.where(read == 9, end, 9)] = 1
        return output

    with_hook = subject.model.register_forward_hook(choose, with_kwargs=True)
    prompts = [np.array([5, 6], np.int32), np.array([5, 9], np.int32)]
    found = continuations(subject, prompts, (), 8)
    assert [ids.tolist() for ids in found] == [[9, end], [end]]
    assert [ids.tolist() for ids in continuations(subject, prompts, (), 1)] == [[9], [end]]
    corpus = ss.corpus("generated@prompt=12,new=20:python-docs", tokens=32 * 4)
    text = corpus.read_by(subject)
    assert all(d.whole and d.ids.tolist() == [9, end] for d in parts(text)[1])
    assert text.describe()["ended"] == 4 and "56 of the 128" in text.describe()["notes"][0]
    with_hook.remove()
    subject.model.generation_config.eos_token_id = [9]
    hook = subject.model.register_forward_hook(choose, with_kwargs=True)
    with pytest.raises(SubjectError, match="ended every text at once"):
        corpus.read_by(subject)
    hook.remove()


def test_a_model_without_a_cache_writes_the_same(glass, written, monkeypatch):
    forward = type(glass.model).forward

    def plain(self, input_ids=None, attention_mask=None, logits_to_keep=0):
        return forward(self, input_ids=input_ids, use_cache=False, logits_to_keep=logits_to_keep)

    monkeypatch.setattr(type(glass.model), "forward", plain)
    found = continuations(glass, [d.ids for d in parts(written)[0][:3]], written.prefix, 20)
    assert all(np.array_equal(a, d.ids) for a, d in zip(found, parts(written)[1], strict=False))


# ---------------------------------------------------------------------------------------- strata


@pytest.mark.parametrize("bos", ["auto", "always"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_token_is_counted_once_where_it_was_written(glass, bos, side):
    text = ss.corpus(NAME, tokens=32 * 3, bos=bos).read_by(glass)
    special = len(text.prefix)
    assert special == (bos == "always")
    batches = list(text.batches(padding_side=side))
    assert sum(batch.n_tokens for batch in batches) == text.n_tokens == 96
    assert sum(int(batch.kept_mask.sum()) for batch in batches) == text.n_kept == 96 + 3 * special
    assert text.n_batches() == len(batches) == text.n_windows == 6
    for batch, document in zip(batches, text.documents, strict=True):
        assert batch.input_ids[batch.text_mask].tolist() == document.ids.tolist()
        first = special + (12 if document.domain == "generated" else 0)
        assert batch.position[batch.text_mask].tolist() == list(range(first, first + len(document)))
        assert batch.text_position[batch.text_mask].tolist() == list(range(len(document)))
        assert text.domains[batch.domain[0]] == document.domain
    read = [batch.input_ids[0].tolist() for batch in batches]
    assert all(longer[: len(short)] == short for short, longer in zip(read[::2], read[1::2], strict=True))


def test_activations_are_those_of_the_text_in_one_piece(glass, written):
    site = "blocks.2.mlp.hook_post"
    some = written.select([0, 1])
    with ss.capture(glass, some, site) as source:
        batches = list(source)
        assert source.n_tokens == sum(len(batch.token_ids) for batch in batches) == 32
    whole = torch.tensor([[*written.prefix, *batches[0].token_ids, *batches[1].token_ids]])
    seen = {}
    with glass.attach(glass.sites(site), lambda site, value, rows: seen.update(all=value[0].clone())):
        glass.forward(whole)
    together = torch.cat([batch.values[site] for batch in batches])
    torch.testing.assert_close(together, seen["all"][len(written.prefix) :], atol=1e-5, rtol=1e-4)
    assert [int(batch.positions[0]) for batch in batches] == [0, 12]


def test_losses_count_the_first_written_token_too(glass, written):
    losses = token_losses(glass, written)
    counts = np.bincount(losses.domain)
    assert counts.tolist() == [20 * 11, 20 * 20]
    # What is written greedily is what the model finds most probable.
    assert losses.correct[losses.domain == 1].mean() > 0.99


def test_a_longer_context_changes_nothing_but_the_bound(glass):
    text = ss.corpus(NAME, tokens=64, context=100).read_by(glass)
    assert text.context == 100 and [len(d) for d in text.documents] == [12, 20, 12, 20]
    check_context(glass, replace(text, context=4000))  # no window is longer than 32


def test_parts_of_a_text_keep_prompts_and_what_follows(written):
    first, second = written.split(2)
    assert [len(part.documents) for part in (first, second)] == [20, 20]
    assert first.digest != written.digest


# ---------------------------------------------------------------------------------------- digests


def test_the_digest_covers_ids_and_what_they_were_written_after(written, glass):
    from sparsescope.activations.text.digests import stream_digest

    def digest(documents):
        return stream_digest("origin", written.tokenizer_hash, written.prefix, (), documents)

    usual = digest(written.documents)
    first, second, *rest = written.documents
    other = second.ids.copy()
    other[-1] += 1
    assert digest([first, replace(second, ids=other), *rest]) != usual
    assert digest([first, replace(second, before=second.before[1:]), *rest]) != usual
    same = ss.corpus(NAME, tokens=32 * 20).read_by(glass)
    assert same.digest == written.digest


def test_the_description_names_who_wrote_it_and_how(written, glass):
    found, identity = written.describe(), glass.identity
    assert found["written_by"]["id"] == "glassllm"
    assert found["written_by"]["weight_hash"] == identity.weight_hash
    assert found["generated"] == {"prompt": 12, "new": 20, "temperature": 0.0, "seed": None}
    assert len(found["prompts"]["digest"]) == 64 and found["prompts"]["documents"] == 20
    assert found["name"] == NAME and found["budget"] == 640
    assert found["domains"]["generated"]["tokens"] == 400
    assert "glassllm" in found["license"] and "PSF-2.0" in found["domains"]["prompt"]["license"]


def test_another_writer_is_another_text(written):
    other = ss.load("shuffled:glassllm")
    text = ss.corpus(NAME, tokens=32 * 20).read_by(other)
    assert text.digest != written.digest
    assert text.describe()["prompts"]["digest"] == written.describe()["prompts"]["digest"]
    assert text.describe()["written_by"]["variant"]["kind"] == "shuffled"


def test_ordinary_digests_are_what_they_were():
    assert ss.corpus(["one two three four", "five six seven eight"]).digest == (
        "9497f633418587d35367deef8f5e16a10f7e18c4b2f54abf835bec1e631afb29"
    )
    text = ss.corpus(["one two three four", "five six seven eight"]).read_by(ss.load("random-llama"))
    assert text.digest == "2be32aa18b47d50814669f8a4bdbd47c362d05fd2f7d08067b6d4114d383d0d7"


# ---------------------------------------------------------------------------------------- errors


def test_models_that_write_nothing_are_refused():
    with pytest.raises(SubjectError, match="only a causal language model") as caught:
        ss.corpus(NAME).read_by(ss.load("minilm-l6"))
    assert "list corpora" in caught.value.next_step
    bare = ss.wrap(ss.load("random-llama").model)
    with pytest.raises(SubjectError, match="no tokenizer"):
        ss.corpus(NAME).read_by(bare)


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("generated@prompt=200,new=20:python-docs", {}, SubjectError, ("128", "200 + 20")),
        ("generated@prompt=20,new=200:python-docs", {}, SubjectError, ("128", "20 + 200")),
        (NAME, {"context": 31}, SpecError, ("context", "at least 32", "31")),
        (NAME, {"tokens": 31}, SpecError, ("at least 32", "31")),
    ],
)
def test_what_has_no_room_is_refused(glass, name, options, error, words):
    with pytest.raises(error) as caught:
        ss.corpus(name, **options).read_by(glass)
    assert all(word in str(caught.value) for word in words), caught.value


def test_short_documents_and_tokenizers_alone_are_refused(glass):
    with pytest.raises(SubjectError, match="no document is as long as a prompt"):
        ss.corpus(["one two three", "four five six"]).generated(prompt=60).read_by(glass)
    with pytest.raises(SpecError, match="read_by"):
        ss.corpus(NAME).tokenize(glass.tokenizer)
    with pytest.raises(SpecError, match="new"):
        ss.corpus("python-docs").generated(new=0)


def test_logits_that_are_no_numbers_are_refused(glass):
    subject = glass.copy()
    assert "causal" in subject.capabilities  # measured before there is anything wrong

    def spoil(module, args, output):
        output.logits[:] = float("nan")
        return output

    subject.model.register_forward_hook(spoil)
    with pytest.raises(SubjectError, match="logits of the next token are not finite"):
        continuations(subject, [np.array([5, 6], np.int32)], (), 4)


# ---------------------------------------------------------------------------------------- runs


def test_an_analysis_tells_prompts_from_what_is_written(glass):
    result = ss.run("activation_sparsity", glass, ss.corpus(NAME, tokens=32 * 20), **SMALL)
    assert isinstance(result, Result)
    rows = result.tables["by_domain"].query("metric == 'nonzero' or metric == metric").groupby("domain")
    assert rows["tokens"].first().to_dict() == {"generated": 400, "prompt": 220}
    assert rows["documents"].first().to_dict() == {"generated": 20, "prompt": 20}
    assert any("two documents here" in note.message for note in result.notes)
    assert result.provenance["corpus"]["written_by"]["id"] == "glassllm"


def test_an_analysis_of_ordinary_text_has_no_such_note(llama):
    result = ss.run("activation_sparsity", llama, ss.corpus("python-docs", tokens=200), **SMALL)
    assert not any("two documents here" in note.message for note in result.notes)


def test_a_text_of_one_model_is_read_by_another(glass, written):
    other = ss.load("shuffled:glassllm")
    result = ss.run("activation_sparsity", other, written, **SMALL)
    assert result.provenance["corpus"]["written_by"]["id"] == "glassllm"
    assert result.provenance["command"].startswith("in Python")  # no options say who wrote it


@pytest.mark.parametrize("analysis", ["activation_reuse", "effective_density", "attention_sparsity"])
def test_other_analyses_run_on_it(glass, analysis):
    small = {"activation_reuse": {}, "effective_density": {"tokens": 300, "resamples": 100},
             "attention_sparsity": {"windows": 8, "t_min": 8, "resamples": 100}}  # fmt: skip
    result = ss.run(analysis, glass, ss.corpus(NAME, tokens=32 * 40), **small[analysis])
    assert result.scalars and "generated" in result.provenance["corpus"]["domains"]


def test_the_command_line_runs_it_and_says_how_to_run_it_again(tmp_path, capsys):
    from sparsescope.cli import app
    from sparsescope.cli.exit_codes import execute

    words = ["run", "activation_sparsity", "--subject", "glassllm", "--corpus", DRAWN.format(2)]
    words += ["--tokens", "320", "--set", "resamples=100", "--home", str(tmp_path)]
    assert execute(app, words) == 0
    (folder,) = tmp_path.glob("activation_sparsity-*")
    result = ss.open(folder)
    assert result.provenance["corpus"]["generated"]["seed"] == 2
    again = shlex.split(result.provenance["command"])
    assert DRAWN.format("2").replace("temperature=1", "temperature=1.0") in again
    capsys.readouterr()
    assert execute(app, [*again[1:], "--home", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.glob("activation_sparsity-*")] == [folder.name]  # the same run
    assert (
        execute(
            app, ["run", "activation_sparsity", "--subject", "glassllm", "--corpus", "generated@new=0:kjv"]
        )
        == 1
    )
    assert "greater than or equal to 2" in capsys.readouterr().err


def test_a_series_reads_what_its_last_checkpoint_writes():
    series = ss.open_series("lazy-relu")
    text = ss.corpus("generated@prompt=8,new=8:python-docs", tokens=160)
    from sparsescope.runner.roles import text as role

    opened = role.open(text, {"series": (series,)}, None)
    assert opened.describe()["written_by"]["id"] == series.subject(series.steps[-1]).id
