"""The decoding loop against transformers, dense and sparse: tokens, logits, counts, draws; refusals."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import transformers

import sparsescope as ss
from sparsescope.activations.capture import tokenized
from sparsescope.errors import SpecError, SubjectError
from sparsescope.inference.calibration import Calibration, calibrate
from sparsescope.inference.calibrator import Calibrator
from sparsescope.inference.decode import Decoder
from sparsescope.inference.groups import input_groups
from sparsescope.inference.install import reading_of
from sparsescope.inference.masks import LowRank, Mask
from sparsescope.inference.sparsifier import split
from sparsescope.kernels import decode_step
from sparsescope.kernels.weight_rows import rows_by_output

POLICIES = ("all_sparse", "decode_only", "dense_first_n:3", "dense_fraction:0.5")
METHODS = ("teal", "wina", "wina_released", "auto", "by hand")
LONGEST, NEW = 64, 20
TIE = 1e-3  # between the two largest logits: rounding may decide which is chosen
PROMPTS = ([7], [3, 90, 14, 90, 61], list(range(100, 118)))

_SMALL = {"vocab_size": 131, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "qwen2": (
        "Qwen2Config",  # biases of q, k and v; one matrix for embedding and head
        {
            **_SMALL,
            "hidden_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 80,
            "tie_word_embeddings": True,
        },
    ),
    "odd": (
        "LlamaConfig",  # biases everywhere, heads wider than their share, slow positions, odd lengths
        {
            **_SMALL,
            "hidden_size": 39,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 14,
            "num_hidden_layers": 2,
            "intermediate_size": 45,
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0},
        },
    ),
}


@cache
def dense(name):
    """A random model with every parameter drawn, so that no bias is zero and no two logits are near."""
    if name == "llama":
        subject = ss.load("random-llama").copy()
        model, tokenizer = subject.model, subject.tokenizer
    else:
        config, parameters = MODELS[name]
        made = getattr(transformers, config)(**parameters)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, tokenizer = transformers.AutoModelForCausalLM.from_config(made).eval(), None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return ss.wrap(model, tokenizer)


@cache
def calibration(name, method="teal"):
    subject = dense(name)
    if method == "by hand" or name != "llama":
        return by_hand(subject, apart=method != "joint")
    text = tokenized(ss.corpus("python-docs", tokens=1536, context=64), subject)
    return calibrate(Calibrator(subject, *split(text)), method, 0.4)


def by_hand(subject, apart=True, **more):
    """Masks with all parts that kernels compute: scales, centres, biases; q, k and v each with its own."""
    generator = torch.Generator().manual_seed(3)
    masks = []
    rows = {(site.layer, site.role): site.shape[0] for site in subject.parameter_sites("weight:blocks.*.*")}
    for group in input_groups(subject):
        for roles in [(role,) for role in group.parts] if apart else [group.parts]:
            layer = int(group.name.split(".")[1])
            masks.append(
                Mask(
                    group.name,
                    tuple(roles),
                    0.3,
                    scale=torch.rand(group.width, generator=generator) + 0.5,
                    centre=torch.randn(group.width, generator=generator) * 0.1,
                    bias={role: torch.randn(rows[layer, role], generator=generator) / 10 for role in roles},
                    **more,
                )
            )
    facts = {"subject": subject.id, "weight_hash": subject.identity.weight_hash}
    return Calibration(tuple(masks), "auto", 0.4, "all_sparse", facts)


def loop(subject, prompt, count, answer=None):
    """Greedy tokens of transformers with a cache, the logits before each, and kept inputs of its steps."""
    reading, ids, cache, rows, tokens, kept = reading_of(subject), [*prompt], None, [], [], {}
    with torch.inference_mode():
        for number in range(count):
            if reading is not None:
                reading.counts = {}
            out = subject.model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            if reading is not None and number:
                for name, (have, there) in reading.counts.items():
                    before = kept.get(name, (0, 0))
                    kept[name] = (before[0] + int(have), before[1] + int(there))
            cache, logits = out.past_key_values, out.logits[0, -1]
            rows.append(logits)
            tokens.append(int(logits.argmax()))
            ids = [tokens[-1] if answer is None else answer[number]]
    return tokens, torch.stack(rows), kept


def gaps(logits):
    """Between the two largest, [rows]."""
    top = logits.topk(2).values
    return top[:, 0] - top[:, 1]


def check_tokens(made, expected, logits):
    """The same, up to a first tie."""
    differ = next(
        (n for n, (one, other) in enumerate(zip(made, expected, strict=True)) if one != other), None
    )
    if differ is not None:
        gap = float(gaps(logits)[differ])
        assert gap < TIE, f"token {differ} of {len(made)} differs, and the gap of the logits is {gap:.3g}"
    return len(made) if differ is None else differ


@pytest.mark.parametrize("name", ["llama", "qwen2", "odd"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_dense_tokens_are_those_of_transformers(name, backend):
    decoder = Decoder(dense(name), backend=backend, longest=LONGEST)
    same, distinct = 0, set()
    for prompt in PROMPTS:
        expected, logits, _ = loop(dense(name), prompt, NEW)
        same += check_tokens(decoder.generate(prompt, NEW), expected, logits)
        distinct |= set(expected)
        found = decoder.force(prompt, expected)
        torch.testing.assert_close(found, logits, rtol=0, atol=2e-5 * float(logits.abs().max()))
    assert same >= 0.9 * NEW * len(PROMPTS) and len(distinct) > 5


def test_tokens_are_those_of_generate():
    subject = dense("llama")
    decoder = Decoder(subject, longest=LONGEST)
    end = subject.model.generation_config.eos_token_id
    for prompt in PROMPTS:
        made = subject.model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
        assert decoder.generate(prompt, NEW, stop=[end]) == made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("prefix", POLICIES)
@pytest.mark.parametrize("method", METHODS)
def test_sparse_tokens_are_those_of_the_sparse_subject(method, prefix):
    found = calibration("llama", method)
    sparse = found.apply(dense("llama"), prefix)
    backends = ("numba", "reference") if prefix == "dense_first_n:3" else ("numba",)
    own = method in ("wina", "wina_released", "by hand")  # k or gate has a mask of its own
    for backend in backends:
        decoder = Decoder(dense("llama"), found, prefix=prefix, backend=backend, longest=LONGEST)
        assert decoder.compiled_step.groups[0].joint != own and decoder.compiled_step.groups[1].joint
        same, other = 0, 0
        for prompt in PROMPTS:
            expected, logits, _ = loop(sparse, prompt, NEW)
            same += check_tokens(decoder.generate(prompt, NEW), expected, logits)
            other += expected != loop(dense("llama"), prompt, NEW)[0]
            # Where masks begin to act is a position more or less: seen in the logits, not always in a token
            found_logits = decoder.force(prompt, expected[:3])
            torch.testing.assert_close(
                found_logits, logits[:3], rtol=0, atol=2e-5 * float(logits.abs().max())
            )
        assert same >= 0.9 * NEW * len(PROMPTS) and other, "sparse tokens are the dense ones"


@pytest.mark.parametrize("name", ["qwen2", "odd"])
@pytest.mark.parametrize("masks", ["apart", "joint"])
@pytest.mark.parametrize("prefix", ["all_sparse", "decode_only"])
def test_sparse_models_with_biases(name, masks, prefix):
    found = calibration(name, masks)
    sparse = found.apply(dense(name), prefix)
    decoder = Decoder(dense(name), found, prefix=prefix, longest=LONGEST)
    assert decoder.compiled_step.groups[0].joint == (masks == "joint")
    for prompt in PROMPTS:
        expected, logits, _ = loop(sparse, prompt, NEW)
        check_tokens(decoder.generate(prompt, NEW), expected, logits)
        off = (decoder.force(prompt, expected) - logits).abs().amax(1) / logits.abs().max()
        assert float(off.median()) <= 2e-5, "an input at its limit may move one token, not half of them"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_read_is_what_the_reference_counts(method):
    found = calibration("llama", method)
    sparse = found.apply(dense("llama"), "dense_first_n:3")
    decoder = Decoder(dense("llama"), found, prefix="dense_first_n:3", longest=LONGEST)
    assert np.isnan(decoder.realised()), "nothing was counted"
    sites = dense("llama").parameter_sites("weight:blocks.*.*")
    sizes = {(site.layer, site.role): site.shape[0] for site in sites}
    whole = sum(site.shape[0] * site.shape[1] for site in sites)
    prompt = PROMPTS[2]
    answer = loop(sparse, prompt, NEW)[0]
    kept = loop(sparse, prompt, NEW, answer)[2]
    decoder.force(prompt, answer)
    read = 0.0
    for mask in found.masks:
        have, _ = kept[mask.name]
        outputs = sum(sizes[mask.layer, role] for role in mask.roles)
        read += outputs * have
    masked = {(mask.layer, role) for mask in found.masks for role in mask.roles}
    assert masked == set(sizes)
    share = 1 - read / (whole * (NEW - 1))
    assert 0.2 < share < 0.8
    assert decoder.realised() == pytest.approx(share, abs=1e-3)
    decoder.forget_counts()
    assert np.isnan(decoder.realised())
    everything = Decoder(dense("llama"), longest=LONGEST)
    everything.force(prompt, answer)
    assert everything.realised() == 0 and int(everything.compiled_step.kept.sum()) > 0


def rounded(subject, stored):
    """The model whose matrices are what is stored of them, in float32."""
    made = subject.copy()
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(rows_by_output(parameter, stored).dense())
    return made


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_other_types_are_rounded_weights_and_nothing_else(stored, masked):
    """The compiled step, the reference, and transformers with the rounded matrices."""
    subject, prompt = dense("llama"), PROMPTS[1]
    found = calibration("llama", "by hand") if masked else None
    fast = Decoder(subject, found, stored=stored, longest=LONGEST)
    slow = Decoder(subject, found, stored=stored, longest=LONGEST, backend="reference")
    answer = fast.generate(prompt, NEW)
    ours, reference = fast.force(prompt, answer), slow.force(prompt, answer)
    largest = float(reference.abs().max())
    off = (ours - reference).abs().amax(1) / largest
    assert float(off.median() if masked else off.max()) <= 1e-4
    if not masked:
        truth = loop(rounded(subject, stored), prompt, NEW, answer)[1]
        assert float((ours - truth).abs().max()) <= 1e-4 * largest
        exact = loop(subject, prompt, NEW, answer)[1]
        assert float((ours - exact).abs().max()) > 1e-3 * largest
    assert fast.block_bytes < Decoder(subject, longest=LONGEST).block_bytes / (
        1.9 if stored == "bfloat16" else 3
    )


def test_the_head_has_a_type_of_its_own():
    subject = dense("qwen2")  # where it is the embedding, too
    decoder = Decoder(subject, stored="float32", head="int8", longest=LONGEST)
    assert decoder.embedding is decoder.head and decoder.head.stored == "int8"
    made = subject.copy()
    with torch.no_grad():
        weight = made.model.lm_head.weight
        weight.copy_(rows_by_output(weight, "int8").dense())
    answer = decoder.generate(PROMPTS[1], NEW)
    truth = loop(made, PROMPTS[1], NEW, answer)[1]
    torch.testing.assert_close(
        decoder.force(PROMPTS[1], answer), truth, rtol=0, atol=1e-4 * float(truth.abs().max())
    )


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 12},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.9},
    ],
)
def test_draws_are_those_of_transformers(how):
    subject, prompt = dense("llama"), PROMPTS[1]
    decoder = Decoder(subject, longest=LONGEST)
    end = subject.model.generation_config.eos_token_id
    different = set()
    for seed in range(4):
        state = torch.random.get_rng_state()
        made = decoder.generate(prompt, NEW, **how, generator=torch.Generator().manual_seed(seed), stop=[end])
        assert torch.random.get_rng_state().equal(state)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            options = {"top_k": 0, "top_p": 1.0, **how}
            expected = subject.model.generate(
                torch.tensor([prompt]), max_new_tokens=NEW, do_sample=True, **options
            )
        assert made == expected[0, len(prompt) :].tolist()
        different.add(tuple(made))
    assert len(different) == 4


def test_it_stops_after_a_stopping_token():
    decoder = Decoder(dense("llama"), longest=LONGEST)
    made = decoder.generate(PROMPTS[1], NEW)
    at = next(n for n in range(3, NEW) if made[n] not in made[:n])
    assert decoder.generate(PROMPTS[1], NEW, stop=[made[at]]) == made[: at + 1]
    assert decoder.generate(PROMPTS[1], NEW, stop=[next(n for n in range(200) if n not in made)]) == made
    assert decoder.generate(PROMPTS[1], 1) == made[:1]


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_a_decoder_begins_anew_and_reads_nothing_that_it_did_not_write(stored, monkeypatch):
    found = calibration("llama", "by hand")
    first = Decoder(dense("llama"), found, stored=stored, longest=LONGEST)
    answer = first.generate(PROMPTS[2], NEW)
    logits = first.force(PROMPTS[1], answer)
    first.force(PROMPTS[2], [5] * 30)
    assert first.force(PROMPTS[1], answer).equal(logits)

    class Poisoned:
        def __getattr__(self, name):
            return getattr(np, name)

        def empty(self, shape, dtype=np.float64):
            return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 10**9, dtype)

    monkeypatch.setattr(decode_step, "np", Poisoned())
    other = Decoder(dense("llama"), found, stored=stored, longest=LONGEST)
    step = other.compiled_step
    step.keys.fill_(float("nan"))
    step.values.fill_(float("nan"))
    assert other.force(PROMPTS[1], answer).equal(logits)


def test_the_number_of_threads_moves_rounding_only():
    found, made, before = calibration("llama", "by hand"), {}, torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            made[count] = Decoder(dense("llama"), found, longest=LONGEST).force(PROMPTS[1], [5] * NEW)
    finally:
        torch.set_num_threads(before)
    off = (made[1] - made[2]).abs().amax(1) / made[1].abs().max()
    assert float(off.median()) <= 1e-5


def test_the_subject_stays_as_it_is():
    subject = dense("llama")
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    logits = subject.forward(torch.tensor([PROMPTS[1]]), logits=True)
    for stored in ("float32", "int8"):
        Decoder(subject, calibration("llama", "by hand"), stored=stored, longest=LONGEST).generate(
            [5, 6], NEW
        )
    for name, tensor in subject.model.state_dict().items():
        assert tensor.equal(before[name]), name
    assert subject.forward(torch.tensor([PROMPTS[1]]), logits=True).equal(logits)


def test_models_and_masks_that_it_does_not_know():
    with pytest.raises(SubjectError, match=r"does not know this architecture(.|\n)*model gpt2"):
        Decoder(ss.load("random-gpt2"))
    with pytest.raises(SubjectError, match="does not know this architecture"):
        Decoder(ss.load("random-gemma2"))
    found = calibration("llama", "by hand")
    with pytest.raises(SubjectError, match="sparse already"):
        Decoder(found.apply(dense("llama")))
    with pytest.raises(SubjectError, match="made for another model"):
        Decoder(ss.load("random-llama"), found)
    with pytest.raises(SpecError, match="backend"):
        Decoder(dense("llama"), backend="triton")
    with pytest.raises(SpecError, match="type of weights"):
        Decoder(dense("llama"), stored="int4")
    with pytest.raises(SpecError, match=r"begin inside of a word(.|\n)*float32"):
        Decoder(dense("odd"), calibration("odd", "apart"), stored="int8")
    pair = {"attn.q.weight": LowRank(torch.zeros(64, 2), torch.zeros(2, 64))}
    for more, said in (
        ({"kind": "gate"}, "masks of kind gate"),
        ({"kind": "top_p"}, "masks of kind top_p"),
        ({"low_rank": pair}, "products of low rank"),
        ({"rotation": torch.eye(64)}, "a rotation"),
        ({"sink_norm": 8.0}, "dense sinks"),
    ):
        with pytest.raises(SubjectError, match=rf"do not compute this kind of mask(.|\n)*{said}"):
            Decoder(dense("llama"), by_hand(dense("llama"), **more))


def test_sequences_that_it_does_not_take():
    decoder = Decoder(dense("llama"), longest=16)
    with pytest.raises(SpecError, match=r"longer than the cache(.|\n)*16 tokens"):
        decoder.begin([5] * 17)
    with pytest.raises(SpecError, match="longer than the cache"):
        decoder.generate([5] * 10, 7)
    assert len(decoder.generate([5] * 10, 6)) == 6
    decoder.begin([5] * 16)
    with pytest.raises(SpecError, match="longer than the cache"):
        decoder.step(5)
    assert len(decoder.generate([5] * 10, 6)) == 6
    assert decoder.generate([5] * 10, 0) == []
    for call in (decoder.begin, lambda ids: decoder.generate(ids, 3)):
        with pytest.raises(SpecError, match="there is no token"):
            call([])
        for bad in (-1, dense("llama").model.config.vocab_size):
            with pytest.raises(SpecError, match=rf"no tokens of this model(.|\n)*\[{bad}\]"):
                call([5, bad])
    decoder.begin([5])
    with pytest.raises(SpecError, match="no tokens of this model"):
        decoder.step(-1)
    with pytest.raises(SpecError, match="needs a generator"):
        decoder.generate([5], 3, temperature=0.5)


def test_a_step_needs_a_prompt():
    decoder = Decoder(dense("llama"), calibration("llama"), prefix="decode_only", longest=LONGEST)
    with pytest.raises(SpecError, match="no prompt was read") as caught:
        decoder.step(5)
    assert "begin" in caught.value.message()


def test_a_prompt_that_is_refused_changes_nothing():
    decoder = Decoder(dense("llama"), longest=LONGEST)
    decoder.begin([3, 4])
    expected = decoder.step(5)
    decoder.begin([3, 4])
    with pytest.raises(SpecError):
        decoder.begin([10**9])
    assert torch.equal(decoder.step(5), expected)


def test_a_policy_that_leaves_nothing_sparse():
    with pytest.raises(SpecError, match="leaves nothing sparse"):
        Decoder(dense("llama"), calibration("llama"), prefix="dense_first_n:64", longest=LONGEST)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_ways_to_draw_that_are_none(wrong):
    with pytest.raises(SpecError, match="no such way to draw"):
        Decoder(dense("llama"), backend="reference", longest=LONGEST).generate([1], 2, **wrong)


def test_a_step_outside_of_the_cache():
    decoder = Decoder(dense("llama"), longest=LONGEST)
    with pytest.raises(SpecError, match="no such place"):
        decoder.compiled_step(torch.zeros(64), LONGEST, False)
    with pytest.raises(SpecError, match="no such place"):
        decoder.compiled_step(torch.zeros(63), 0, False)
