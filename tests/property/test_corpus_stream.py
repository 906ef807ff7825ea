"""Properties of token streams that must hold for any texts, budget, context, padding and batch size."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sparsescope.activations.corpus import Document, corpus


def byte_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """One token for each UTF-8 byte; optionally a BOS before every text."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(symbols)} | {"<s>": 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens(["<s>"])
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


TOKENIZERS = {bos: byte_tokenizer(bos) for bos in (False, True)}

texts = st.text(min_size=1, max_size=120).filter(str.strip)
collections = st.lists(st.tuples(texts, st.sampled_from("abc")), min_size=1, max_size=12).map(
    lambda items: [Document(f"d{n}", domain, text) for n, (text, domain) in enumerate(items)]
)
streams = st.fixed_dictionaries(
    {
        "source": collections,
        "tokens": st.one_of(st.none(), st.integers(1, 600)),
        "seed": st.integers(0, 5),
        "context": st.integers(2, 40),
        "min_tokens": st.just(1),
        "deduplicate": st.just(False),
    }
)
batch_sizes = st.integers(1, 200)
quick = settings(max_examples=60, deadline=None)


@quick
@given(streams, st.booleans())
def test_the_budget_is_exact(arguments, bos):
    available = sum(len(document.text.encode()) for document in arguments["source"])
    found = corpus(**arguments).tokenize(TOKENIZERS[bos])
    assert found.n_tokens == min(arguments["tokens"] or available, available)
    for document in found.documents:
        source = next(item for item in arguments["source"] if item.id == document.id)
        assert document.ids.tolist() == TOKENIZERS[False](source.text)["input_ids"][: len(document)]
        assert document.whole == (len(document) == len(source.text.encode()))


@quick
@given(streams, st.integers(1, 30))
def test_domains_get_equal_shares_up_to_what_they_have(arguments, tokens):
    found = corpus(**{**arguments, "tokens": tokens}).tokenize(TOKENIZERS[False])
    entries = found.describe()["domains"]
    have = {
        name: sum(len(document.text.encode()) for document in arguments["source"] if document.domain == name)
        for name in entries
    }
    level = max(entry["tokens"] for entry in entries.values())
    for name, entry in entries.items():
        assert entry["tokens"] >= min(have[name], level - 1)


@quick
@given(streams, st.booleans(), batch_sizes)
def test_batches_cover_every_token_once_and_never_hold_two_documents(arguments, bos, batch_tokens):
    found = corpus(**arguments).tokenize(TOKENIZERS[bos])
    read = {document.index: np.full(len(document), -1) for document in found.documents}
    batches = list(found.batches(batch_tokens))
    assert [batch.index for batch in batches] == list(range(found.n_batches(batch_tokens)))
    for batch in batches:
        rows, width = batch.input_ids.shape
        assert len(set(batch.document.tolist())) == 1
        assert width <= arguments["context"]
        assert rows == 1 or rows * width <= batch_tokens
        assert batch.attention_mask.any(axis=0).all()
        document = found.document(int(batch.document[0]))
        assert {found.domains[number] for number in batch.domain} == {document.domain}
        position = batch.text_position[batch.text_mask]
        assert (read[document.index][position] == -1).all()
        read[document.index][position] = batch.input_ids[batch.text_mask]
    for document in found.documents:
        assert read[document.index].tolist() == document.ids.tolist()
    special = sum(len(batch.document) for batch in batches) * len(found.prefix)
    assert sum(int(batch.attention_mask.sum()) for batch in batches) == found.n_tokens + special
    assert sum(batch.n_tokens for batch in batches) == found.n_tokens
    assert sum(len(batch.document) for batch in batches) == found.n_windows


@quick
@given(streams, st.booleans(), batch_sizes)
def test_left_and_right_padding_give_the_same_tokens_and_positions(arguments, bos, batch_tokens):
    found = corpus(**arguments).tokenize(TOKENIZERS[bos])
    for right, left in zip(
        found.batches(batch_tokens, "right"), found.batches(batch_tokens, "left"), strict=True
    ):
        assert np.array_equal(right.offset, left.offset)
        for name in ("input_ids", "position", "text_position"):
            assert np.array_equal(
                getattr(right, name)[right.attention_mask], getattr(left, name)[left.attention_mask]
            )
        assert (left.position[~left.attention_mask] == -1).all()
        assert left.attention_mask[:, -1].all()
        assert right.attention_mask[:, 0].all()


@quick
@given(streams, st.integers(1, 8), batch_sizes)
def test_a_split_is_a_disjoint_cover_with_the_same_forward_passes(arguments, n, batch_tokens):
    found = corpus(**arguments).tokenize(TOKENIZERS[True])
    parts = found.split(n)
    assert 1 <= len(parts) <= n
    assert [document.index for part in parts for document in part.documents] == list(
        range(len(found.documents))
    )
    apart = [batch for part in parts for batch in part.batches(batch_tokens)]
    for together, alone in zip(found.batches(batch_tokens), apart, strict=True):
        for name in ("input_ids", "attention_mask", "document", "domain", "offset"):
            assert np.array_equal(getattr(together, name), getattr(alone, name))


@quick
@given(streams, st.data())
def test_a_selection_and_the_rest_are_the_whole(arguments, data):
    found = corpus(**arguments).tokenize(TOKENIZERS[False])
    numbers = [document.index for document in found.documents]
    chosen = data.draw(st.sets(st.sampled_from(numbers), min_size=1))
    part = found.select(chosen)
    assert {document.index for document in part.documents} == chosen
    assert part.domains == found.domains
    assert all(document is found.document(document.index) for document in part.documents)
    rest = set(numbers) - chosen
    if rest:
        assert part.n_tokens + found.select(rest).n_tokens == found.n_tokens
        assert part.digest != found.digest


@quick
@given(streams, st.randoms(use_true_random=False))
def test_the_selection_depends_on_the_seed_and_not_on_the_order_in_the_file(arguments, draw):
    domains = list(dict.fromkeys(document.domain for document in arguments["source"]))
    shuffled = list(arguments["source"])
    draw.shuffle(shuffled)
    # The order of domains decides odd tokens
    shuffled.sort(key=lambda document: domains.index(document.domain))
    first = corpus(**arguments).tokenize(TOKENIZERS[False])
    second = corpus(**{**arguments, "source": shuffled}).tokenize(TOKENIZERS[False])
    assert [(d.id, d.ids.tolist()) for d in first.documents] == [
        (d.id, d.ids.tolist()) for d in second.documents
    ]
    assert first.digest == corpus(**arguments).tokenize(TOKENIZERS[False]).digest


@quick
@given(st.lists(texts, min_size=1, max_size=6, unique_by=str.casefold), st.integers(1, 3))
def test_repeated_documents_are_dropped_whatever_the_order(kept, times):
    found = corpus(kept * (times + 1), tokens=None, min_tokens=1).tokenize(TOKENIZERS[False])
    once = corpus(kept, tokens=None, min_tokens=1).tokenize(TOKENIZERS[False])
    described = found.describe()
    assert described["documents"] + described["near_duplicates"] == len(kept) * (times + 1)
    assert described["documents"] <= len(kept)
    assert described["documents"] >= 1
    assert once.describe()["near_duplicates"] + len(once.documents) == len(kept)
