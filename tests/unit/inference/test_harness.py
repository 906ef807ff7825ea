"""Tasks of lm_eval on subjects: scores against our own passes, generation, prefix policies, what is refused.

Where lm_eval is installed these tests run against it; elsewhere against ``stand_in``, which has of it what
the wrapper touches: tokenizing of requests as ``TemplateLM`` does it, rolling windows, two kinds of tasks.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.continuations import continuations
from sparsescope.activations.losses import token_losses
from sparsescope.errors import DependencyError, SpecError, SubjectError
from sparsescope.inference.calibration import calibrate
from sparsescope.inference.calibrator import Calibrator
from sparsescope.inference.harness import described, evaluate, harness_model
from sparsescope.inference.sparsifier import split

POLICIES = ["all_sparse", "dense_first_n:2", "dense_fraction:0.5", "decode_only"]
PAIRS = [
    ("Alice was beginning to get very", " tired of sitting by her sister"),
    ("Down the", " rabbit hole"),
    ("The Queen of Hearts said", " off with her head, and the King said nothing at all to that"),
    ("Curiouser and ", "curiouser"),
    ("", "Alice"),
]


class TemplateLM:
    """As ``lm_eval.api.model.TemplateLM`` of 0.4.13."""

    tokenizer, backend = None, "causal"

    def __init__(self):
        self.cache_hook = SimpleNamespace(add_partial=lambda kind, asked, answer: None)

    def loglikelihood(self, requests, disable_tqdm=False):
        found = []
        for context, own in [request.args for request in requests]:
            if context == "":
                before, after = [self.prefix_token_id], self.tok_encode(own, add_special_tokens=False)
            else:
                spaces = len(context) - len(context.rstrip())
                own_, context_ = context[len(context) - spaces :] + own, context[: len(context) - spaces]
                before = self.tok_encode(context_)
                after = self.tok_encode(context_ + own_)[len(before) :]
            found.append(((context, own), before, after))
        return self._loglikelihood_tokens(found, disable_tqdm=disable_tqdm)


def rolling(token_list, prefix_token, max_seq_len, context_len):
    ids = [prefix_token, *token_list]
    done = min(max_seq_len, len(token_list))
    yield ids[:done], token_list[:done]
    while done < len(token_list):
        size = min(len(token_list) - done, max_seq_len - context_len + 1)
        end = done + size
        yield token_list[end - max_seq_len - 1 : end - 1], token_list[done:end]
        done = end


def simple_evaluate(*, model, tasks, limit=None, **_settings):
    """Multiple choice and generation on a file of lines of JSON."""
    from jinja2 import Template

    results = {}
    for task in tasks:
        text = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        lines = lines[: limit or len(lines)]
        asked = [Template(task["doc_to_text"]).render(**line) for line in lines]
        if task["output_type"] == "generate_until":
            requests = [SimpleNamespace(args=(text, task["generation_kwargs"])) for text in asked]
            right = [
                text == line["answer"]
                for text, line in zip(model.generate_until(requests), lines, strict=True)
            ]
            results[task["task"]] = {"exact_match,none": float(np.mean(right))}
            continue
        requests = [
            SimpleNamespace(args=(text, " " + choice))
            for text, line in zip(asked, lines, strict=True)
            for choice in line["choices"]
        ]
        scores = np.array([score for score, _ in model.loglikelihood(requests)]).reshape(len(lines), -1)
        right = scores.argmax(1) == [line["gold"] for line in lines]
        results[task["task"]] = {"acc,none": float(right.mean())}
    return {"results": results, "config": model.get_model_info()}


def stand_in():
    """Modules of lm_eval, by name."""
    names = (
        "lm_eval",
        "lm_eval.api",
        "lm_eval.api.model",
        "lm_eval.tasks",
        "lm_eval.utils",
        "lm_eval.evaluator",
    )
    made = {name: ModuleType(name) for name in names}
    made["lm_eval"].__path__ = made["lm_eval.api"].__path__ = []
    made["lm_eval.api.model"].TemplateLM = TemplateLM
    made["lm_eval.tasks"].TaskManager = lambda include_path=None, include_defaults=True: None
    made["lm_eval.utils"].get_rolling_token_windows = rolling
    made["lm_eval.utils"].make_disjoint_window = lambda pair: (
        pair[0][: len(pair[0]) - len(pair[1]) + 1],
        pair[1],
    )
    made["lm_eval.evaluator"].simple_evaluate = simple_evaluate
    return made


@pytest.fixture(autouse=True)
def package(monkeypatch):
    if importlib.util.find_spec("lm_eval") is None:
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def calibrations(glass):
    text = ss.corpus("kjv", tokens=2048, context=64).read_by(glass)
    return {target: calibrate(Calibrator(glass, *split(text)), "teal", target) for target in (0.0, 0.6)}


@pytest.fixture(scope="module")
def sparse(glass, calibrations):
    return {policy: calibrations[0.6].apply(glass, policy) for policy in POLICIES}


def ask(model, kind, *arguments):
    return getattr(model, kind)([SimpleNamespace(args=each) for each in arguments])


def tokens(subject, context, own):
    """Token ids of both together, and how many are of the context."""
    if not context:
        before = [subject.tokenizer.bos_token_id]
        return before + subject.tokenizer.encode(own, add_special_tokens=False), 1
    before = subject.tokenizer.encode(context.rstrip())
    return subject.tokenizer.encode(context + own), len(before)


def log_probabilities(logits, ids, first):
    """Sum of log p of the tokens from ``first`` on, and whether each is the most probable one."""
    scores = logits[0, first - 1 : len(ids) - 1].double().log_softmax(-1)
    targets = torch.tensor(ids[first:])
    return float(scores.gather(-1, targets[:, None]).sum()), bool((scores.argmax(-1) == targets).all())


# ---------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["dense", *POLICIES[:2]])
def test_scores_of_continuations_are_those_of_our_own_passes(kind, batch_size, glass, sparse):
    subject = glass if kind == "dense" else sparse[kind]
    found = ask(harness_model(subject, batch_size), "loglikelihood", *PAIRS)
    for (context, own), (score, greedy) in zip(PAIRS, found, strict=True):
        ids, first = tokens(subject, context, own)
        expected = log_probabilities(subject.forward([ids], logits=True), ids, first)
        assert score == pytest.approx(expected[0], abs=1e-4) and greedy == expected[1]


def test_scores_of_a_text_are_those_of_token_losses(glass, sparse):
    text = "Alice was not a bit hurt, and she jumped up on to her feet in a moment: she looked up."
    for subject in (glass, sparse["all_sparse"], sparse["dense_first_n:2"]):
        read = ss.corpus([text], tokens=None, context=128, bos="always").read_by(subject)
        losses, ids = token_losses(subject, read), read.documents[0].ids.tolist()
        assert len(losses) == len(ids)
        model = harness_model(subject)
        ((score, _),) = model._loglikelihood_tokens([(None, [model.prefix_token_id], ids)])
        assert score == pytest.approx(-losses.nll.sum(), abs=1e-4)
        # As in lm_eval, a text that is scored as a whole has its own special tokens after the prefix.
        encoded = model.tok_encode(text)
        expected = subject.forward([[model.prefix_token_id, *encoded]], logits=True)
        whole = log_probabilities(expected, [model.prefix_token_id, *encoded], 1)[0]
        assert ask(model, "loglikelihood_rolling", (text,))[0] == pytest.approx(whole, abs=1e-4)


def test_a_long_text_is_scored_in_windows_each_token_once(glass):
    text = "The Mock Turtle sighed deeply, and drew the back of one flapper across his eyes. " * 12
    model = harness_model(glass)
    ids = model.tok_encode(text)
    assert len(ids) > 2 * model.max_length
    found = ask(model, "loglikelihood_rolling", (text,), ("Down the rabbit hole.",))
    size, whole, total = model.max_length, [model.prefix_token_id, *ids], 0.0
    for done in range(0, len(ids), size):
        end = min(done + size, len(ids))
        window = whole[max(0, end - size) : end + 1]  # the last one has as much context as there is room for
        logits = glass.forward([window[:-1]], logits=True)
        total += log_probabilities(logits, window, len(window) - (end - done))[0]
    assert found[0] == pytest.approx(total, abs=1e-3)
    assert found[1] == pytest.approx(
        ask(model, "loglikelihood_rolling", ("Down the rabbit hole.",))[0], abs=1e-4
    )


def test_a_long_context_loses_its_beginning_and_a_long_continuation_is_refused(glass):
    model = harness_model(glass)
    ids = [20 + n % 300 for n in range(200)]
    ((score, _),) = model._loglikelihood_tokens([(None, ids[:190], ids[190:])])
    kept = ids[-129:]
    expected, _ = log_probabilities(glass.forward([kept[:-1]], logits=True), kept, 119)
    assert score == pytest.approx(expected, abs=1e-4)
    with pytest.raises(SubjectError, match="continuation is longer"):
        model._loglikelihood_tokens([(None, ids[:5], ids[5:])])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_continuation_is_scored_as_it_would_be_decoded(policy, glass, sparse):
    """Token by token through a cache, where the passes themselves say what is prompt."""
    subject = sparse[policy]
    found = ask(harness_model(subject, 3), "loglikelihood", *PAIRS)
    for (context, own), (score, _) in zip(PAIRS, found, strict=True):
        ids, first = tokens(subject, context, own)
        rows, past = [], None
        with torch.inference_mode():
            for start, end in [(0, first), *((n, n + 1) for n in range(first, len(ids) - 1))]:
                given = torch.tensor([ids[start:end]])
                output = subject.model(input_ids=given, past_key_values=past, use_cache=True)
                past = output.past_key_values
                rows.append(output.logits)
        assert score == pytest.approx(log_probabilities(torch.cat(rows, 1), ids, first)[0], abs=2e-3)


def test_policies_and_targets_change_scores(glass, sparse, calibrations):
    dense = ask(harness_model(glass), "loglikelihood", *PAIRS)
    none = ask(harness_model(calibrations[0.0].apply(glass)), "loglikelihood", *PAIRS)
    assert [one[0] for one in none] == pytest.approx([one[0] for one in dense], abs=1e-5)
    by_policy = {p: ask(harness_model(sparse[p]), "loglikelihood", *PAIRS) for p in POLICIES}
    first = [found[0][0] for found in (dense, *by_policy.values())]
    assert len({round(score, 3) for score in first}) == 5
    ids, before = tokens(glass, "", "Alice")
    assert (len(ids), before) == (2, 1)  # one token after one: under decode_only nothing of it is decoded
    assert by_policy["decode_only"][4][0] == pytest.approx(dense[4][0], abs=1e-5)
    assert by_policy["all_sparse"][4][0] != pytest.approx(dense[4][0], abs=1e-2)


def test_a_model_that_takes_no_padding_scores_rows_of_one_length_together(glass, monkeypatch):
    model = harness_model(glass, 4)
    padded = ask(model, "loglikelihood", *PAIRS)
    monkeypatch.setattr(type(glass), "takes_padding", lambda self, side: False)
    alone = ask(model, "loglikelihood", *PAIRS)
    assert [one[0] for one in padded] == pytest.approx([one[0] for one in alone], abs=1e-4)


# ---------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("kind", ["dense", *POLICIES])
def test_generation_is_greedy_decoding_up_to_a_stop(kind, glass, sparse):
    subject = glass if kind == "dense" else sparse[kind]
    contexts = ["Alice was", "The Queen of Hearts said to the King", "Down"]
    model = harness_model(subject, 3)
    found = ask(model, "generate_until", *((text, {"until": [], "max_gen_toks": 12}) for text in contexts))
    for text, own in zip(contexts, found, strict=True):
        ids = np.array(subject.tokenizer.encode(text), np.int32)
        (alone,) = continuations(subject, [ids], (), 12)
        assert own == subject.tokenizer.decode(alone.tolist(), skip_special_tokens=True)
    stop = found[1].strip()[4]
    settings = {"until": stop, "max_gen_toks": 12, "do_sample": False, "temperature": 0.0, "top_p": 1}
    cut = ask(model, "generate_until", *((text, settings) for text in contexts))
    assert cut == [own.split(stop)[0] for own in found] and cut[1] != found[1]


def test_generation_may_draw_and_keeps_to_the_window(glass):
    model = harness_model(glass, 3, seed=3)
    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
    drawn = ask(model, "generate_until", ("Alice", settings), ("Alice", settings))
    assert drawn == ask(model, "generate_until", ("Alice", settings), ("Alice", settings))
    assert drawn != ask(
        harness_model(glass, 3, seed=4), "generate_until", ("Alice", settings), ("Alice", settings)
    )
    long = "Alice was beginning to get very tired of sitting by her sister on the bank. " * 9
    ids = np.array(glass.tokenizer.encode(long)[-(128 - 8) :], np.int32)
    (expected,) = continuations(glass, [ids], (), 8)
    (found,) = ask(model, "generate_until", (long, {"max_gen_toks": 8}))
    assert found == glass.tokenizer.decode(expected.tolist(), skip_special_tokens=True)
    assert model.max_gen_toks == 64  # lm_eval's 256 are more than this model takes
    for name, value in {"num_beams": 4, "repetition_penalty": 1.2}.items():
        with pytest.raises(SpecError, match=f"generate is not known here[^\x00]*{name}"):
            ask(model, "generate_until", ("Alice", {name: value}))
    with pytest.raises(SpecError, match="no room for the context"):
        ask(model, "generate_until", ("Alice", {"max_gen_toks": 128}))


def test_generation_without_a_cache_keeps_to_the_policy(sparse, monkeypatch):
    subject = sparse["decode_only"]
    asked = [(text, {"max_gen_toks": 6}) for text in ("Alice was", "The Queen of Hearts said", "Down")]
    cached = ask(harness_model(subject), "generate_until", *asked)
    forward = type(subject.model).forward

    def plain(self, input_ids=None, attention_mask=None, logits_to_keep=0):
        return forward(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            logits_to_keep=logits_to_keep,
        )

    monkeypatch.setattr(type(subject.model), "forward", plain)
    assert ask(harness_model(subject), "generate_until", *asked) == cached


# ---------------------------------------------------------------------------------------- tasks


@pytest.fixture()
def tasks(tmp_path, glass):
    words = ["rabbit", "queen", "king", "turtle", "cat", "hatter"]
    lines = []
    for n in range(12):
        question = f"Alice saw the {words[n % 6]} and the"
        ids = np.array(glass.tokenizer.encode(question), np.int32)
        (own,) = continuations(glass, [ids], (), 6)
        answer = glass.tokenizer.decode(own.tolist(), skip_special_tokens=True)
        choices = [words[(n + k) % 6] for k in range(3)]
        scores = [
            log_probabilities(glass.forward([ids_], logits=True), ids_, first)[0]
            for ids_, first in (tokens(glass, question, f" {choice}") for choice in choices)
        ]
        lines.append(
            {"question": question, "answer": answer, "choices": choices, "gold": int(np.argmax(scores))}
        )
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    choose = {
        **common,
        "task": "choose",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    write = {
        **common,
        "task": "write",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    return [choose, write]


def test_tasks_on_a_dense_model_a_sparse_one_and_one_that_skips_nothing(tasks, glass, sparse, calibrations):
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    dense = evaluate(glass, tasks)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    # Right answers are what the dense model says.
    assert dense["results"]["choose"]["acc,none"] == 1
    assert dense["results"]["write"]["exact_match,none"] == 1
    none = evaluate(calibrations[0.0].apply(glass), tasks)
    assert none["results"]["choose"]["acc,none"] == none["results"]["write"]["exact_match,none"] == 1
    found = evaluate(sparse["all_sparse"], tasks, batch_size=5)
    assert found["results"]["write"]["exact_match,none"] < 1
    one = evaluate(glass, tasks[1], limit=2)
    assert list(one["results"]) == ["write"]


def test_results_say_which_model_they_are_of(tasks, glass, sparse):
    found = evaluate(sparse["decode_only"], tasks[:1], limit=1)["sparsescope"]
    assert found == described(sparse["decode_only"])
    assert (found["method"], found["target"], found["prefix"]) == ("teal", 0.6, "decode_only")
    assert found["subject"] == sparse["decode_only"].id and found["variant"]["kind"] == "sparsified"
    assert described(sparse["dense_first_n:2"])["prefix"] == "dense_first_n:2"
    dense = evaluate(glass, tasks[:1], limit=1)
    assert dense["sparsescope"] == dense["config"]["sparsescope"] == described(glass)
    assert (dense["sparsescope"]["method"], dense["sparsescope"]["prefix"]) == ("dense", None)
    json.dumps(found), json.dumps(dense["sparsescope"])


# ---------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_run_is_refused(glass, monkeypatch):
    with pytest.raises(SpecError, match="no task"):
        evaluate(glass, [])
    with pytest.raises(SpecError, match="batch_size must be at least 1"):
        harness_model(glass, 0)
    with pytest.raises(SubjectError, match="only a causal language model"):
        harness_model(ss.load("minilm-l6"))
    with pytest.raises(SubjectError, match="has no tokenizer"):
        harness_model(ss.load("grokking-relu"))


def test_without_lm_eval_the_extra_is_named(glass, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for call in (lambda: harness_model(glass), lambda: evaluate(glass, "piqa")):
        with pytest.raises(DependencyError, match=r"pip install 'sparsescope\[harness\]'"):
            call()
