"""The trace of a routing: what tokens chose and sums by document, beside a plain count of one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.routing import RoutingTrace, trace_routing
from sparsescope.activations.routing_information import (
    DomainInformation,
    domain_information,
    folds_by_domain,
)
from sparsescope.errors import SubjectError
from sparsescope.metrics.information import conditional_mutual_information, mutual_information
from sparsescope.metrics.jackknife import FOLDS
from sparsescope.models.structure.routing import routers

TEXTS = [("a", "the cat sat on the mat " * 6), ("b", "0123 + 4567 = 89; " * 8), ("a", "a dog and a cat " * 5)]


@pytest.fixture(scope="module")
def subject():
    return ss.load("random-olmoe")


@pytest.fixture(scope="module")
def corpus(subject):
    from sparsescope.activations.corpus import Document

    texts = [Document(f"{n}", domain, text) for n, (domain, text) in enumerate(TEXTS)]
    return ss.corpus(texts, tokens=None, context=48).read_by(subject)


@pytest.fixture(scope="module")
def trace(subject, corpus):
    return trace_routing(subject, corpus, routers(subject), outputs=True)


def test_choices_and_sums_are_those_of_the_model(subject, corpus, trace):
    """Counted by hand from transformers' own router, window by window."""
    found = routers(subject)
    ids, index, weight = [], [], np.zeros((3, 2, 8))
    mass, norm, weighted, squares = *np.zeros((3, 3, 2, 8)), np.zeros((3, 2))
    for place, document in enumerate(corpus.documents):
        width = corpus.window_of(document)
        for start in range(0, len(document), width):
            window = [*corpus.prefix, *document.ids[start : start + width].tolist(), *corpus.suffix]
            seen = {}
            handles = [
                subject.model.get_submodule(router.path).register_forward_hook(
                    lambda _, args, out, to=seen, layer=router.layer: to.update({layer: (args[0], *out)})
                )
                for router in found
            ]
            with torch.no_grad():
                subject.model(input_ids=torch.tensor([window]))
            for handle in handles:
                handle.remove()
            ids += window[1:]
            order = []
            for layer, (states, logits, weights, chosen) in seen.items():
                states, logits, weights, chosen = (
                    t.reshape(len(window), -1)[1:] for t in (states, logits, weights, chosen)
                )
                best = weights.argsort(dim=-1, descending=True, stable=True)
                order.append(chosen.gather(-1, best).numpy())
                mass[place, layer] += logits.double().softmax(-1).sum(0).numpy()
                squares[place, layer] += float(logits.double().logsumexp(-1).square().sum())
                experts = subject.model.model.layers[layer].mlp.experts
                for token, row, w in zip(states, chosen, weights, strict=True):
                    for expert, value in zip(row.tolist(), w.tolist(), strict=True):
                        gate, up = (experts.gate_up_proj[expert] @ token).chunk(2)
                        said = experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                        weight[place, layer, expert] += value
                        norm[place, layer, expert] += float(said.detach().norm())
                        weighted[place, layer, expert] += value * float(said.detach().norm())
            index.append(np.stack(order, 1))
    assert trace.token_ids.tolist() == ids
    assert np.array_equal(trace.index, np.concatenate(index))
    for name, value in (("mass", mass), ("weight", weight), ("squared_logsumexp", squares), ("norm", norm),
                        ("weighted_norm", weighted)):  # fmt: skip
        np.testing.assert_allclose(getattr(trace, name), value, rtol=2e-5, atol=1e-6, err_msg=name)
    assert np.array_equal(trace.chosen().sum((1, 2)), 2 * 2 * trace.tokens)


def test_it_knows_places_and_what_comes_next(trace):
    ends = trace.next_ids == -1
    follow = np.flatnonzero(~ends)
    assert np.array_equal(trace.next_ids[follow], trace.token_ids[follow + 1])
    assert np.array_equal(trace.positions[follow] + 1, trace.positions[follow + 1])
    assert trace.positions.min() == 1, "the first position of a window is left out"
    # Domains alternate in a stream: the document of the other domain comes second
    assert trace.domain.tolist() == [0, 1, 0]


def test_margins_and_entropies_of_scores_that_are_known(subject, corpus, trace):
    """Recomputed from the scores of a captured pass."""
    from sparsescope.activations.capture import capture

    entropy, margin, ties = (np.zeros((3, 2)) for _ in range(3))
    with capture(subject, corpus, "blocks.*.mlp.router.hook_out") as source:
        for batch in source:
            place = trace.documents.tolist().index(batch.document)
            for layer in range(2):
                scores = batch.values[f"blocks.{layer}.mlp.router.hook_out"].double()[batch.positions > 0]
                shares = scores.softmax(-1)
                entropy[place, layer] -= float((shares * shares.log()).sum())
                ordered = scores.sort(-1, descending=True).values
                margin[place, layer] += float((ordered[:, 1] - ordered[:, 2]).sum())
                ties[place, layer] += int((ordered[:, 1] - ordered[:, 2] < 1e-3).sum())
    np.testing.assert_allclose(trace.entropy, entropy, rtol=1e-5)
    np.testing.assert_allclose(trace.margin, margin, rtol=1e-5)
    assert np.array_equal(trace.near_ties, ties)
    again = RoutingTrace.of(trace.arrays())
    assert all(np.array_equal(getattr(again, name), value) for name, value in trace.arrays().items())


def test_without_outputs_there_are_none(subject, corpus, trace):
    plain = trace_routing(subject, corpus, routers(subject))
    assert plain.norm.size == 0 and np.array_equal(plain.index, trace.index)
    assert np.array_equal(plain.mass, trace.mass)


def test_one_token_has_no_routing(subject):
    text = ss.corpus(["x"], tokens=None, context=8, min_tokens=1).read_by(subject)
    with pytest.raises(SubjectError, match="no token after the first"):
        trace_routing(subject, text, routers(subject))


# Information


def made(index: np.ndarray, token_ids: np.ndarray, document: np.ndarray, domain: np.ndarray) -> RoutingTrace:
    """A trace of one layer and one expert per token out of four."""
    documents, nothing = len(domain), np.zeros((0, 0, 0))
    return RoutingTrace(
        index=index.reshape(-1, 1, 1).astype(np.int16), token_ids=token_ids.astype(np.int32),
        next_ids=token_ids.astype(np.int32), positions=np.ones(len(index), np.int32),
        document=document.astype(np.int32), documents=np.arange(documents, dtype=np.int32),
        domain=domain.astype(np.int16), mass=np.zeros((documents, 1, 4)), weight=nothing,
        squared_logsumexp=nothing, entropy=nothing, margin=nothing, near_ties=nothing,
        norm=nothing, weighted_norm=nothing, peak=nothing,
    )  # fmt: skip


@pytest.fixture(scope="module")
def planted():
    """Twenty documents a domain, 50 tokens each; the domain decides half of the choices."""
    generator = np.random.default_rng(0)
    domain = np.arange(40) % 2
    document = np.repeat(np.arange(40), 50)
    token_ids = generator.integers(0, 5, len(document))
    by_domain = 2 * domain[document] + generator.integers(0, 2, len(document))
    index = np.where(generator.random(len(document)) < 0.5, by_domain, token_ids % 4)
    return made(index, token_ids, document, domain)


def test_information_is_that_of_the_joint_table(planted):
    found = domain_information(planted, permutations=99, seed=0)
    joint = np.zeros((5, 2, 4))
    np.add.at(joint, (planted.token_ids, planted.domain[planted.document], planted.index[:, 0, 0]), 1)
    assert found.value[0, 0] == pytest.approx(mutual_information(joint.sum(0)))
    assert found.value[0, 1] == pytest.approx(conditional_mutual_information(joint))
    assert (found.p == 0.01).all() and (found.z > 10).all()
    low, high = found.ends(0.95)
    assert (low > 0).all() and (low < found.excess).all() and (found.excess < high).all()


def test_folds_leave_whole_documents_out_of_every_domain(planted):
    folds = folds_by_domain(planted.domain)
    assert all(set(folds[planted.domain == domain]) == set(range(FOLDS)) for domain in (0, 1))
    found = domain_information(planted, permutations=99, seed=0)
    kept = folds != 0
    rows = kept[planted.document]
    joint = np.zeros((2, 4))
    np.add.at(joint, (planted.domain[planted.document][rows], planted.index[rows, 0, 0]), 1)
    assert found.folds[0, 0, 0] == pytest.approx(mutual_information(joint))


def test_what_the_token_tells_is_no_specialization(planted):
    """A hash router: the id decides, and one domain has other ids than the other."""
    generator = np.random.default_rng(1)
    ids = planted.token_ids + 3 * planted.domain[planted.document] * generator.integers(
        0, 2, len(planted.index)
    )
    found = domain_information(made(ids % 4, ids, planted.document, planted.domain), 99, 0)
    assert found.excess[0, 0] > 0.01 and found.z[0, 0] > 5
    assert found.value[0, 1] == pytest.approx(0, abs=1e-12), "the id tells all of it"


def test_differences_are_paired(planted):
    found = domain_information(planted, 99, 0)
    difference, low, high = found.against(found, 0.95)
    assert not difference.any() and not low.any() and not high.any()
    generator = np.random.default_rng(2)
    nothing = made(
        generator.integers(0, 4, len(planted.index)), planted.token_ids, planted.document, planted.domain
    )
    other = domain_information(nothing, 99, 0)
    difference, low, high = found.against(other, 0.95)
    assert (low > 0).all() and difference == pytest.approx(found.excess - other.excess)
    assert (other.ends(0.95)[0] < 0.01).all()


def test_the_mean_of_draws_has_their_spread(planted):
    one = domain_information(planted, 99, 0)
    other = DomainInformation.of({name: 2 * value for name, value in one.arrays().items()})
    mean = DomainInformation.mean([one, other])
    assert mean.excess == pytest.approx(1.5 * one.excess)
    assert mean.null_sd == pytest.approx(one.excess / np.sqrt(2))
    assert np.isnan(DomainInformation.mean([one]).null_sd).all()


def test_folds_without_documents_are_no_replicates(planted):
    """Three documents a domain are three folds: five that leave nothing out would make an interval too
    narrow.
    """
    few = planted.document < 6
    trace = made(planted.index[few], planted.token_ids[few], planted.document[few], planted.domain[:6])
    found = domain_information(trace, 99, 0)
    assert np.isfinite(found.folds).all((1, 2)).tolist() == [True] * 3 + [False] * 5
    low, high = found.ends(0.95)
    from scipy.stats import t

    replicates = found.folds[:3] - found.null_mean
    error = np.sqrt(2 / 3 * ((replicates - replicates.mean(0)) ** 2).sum(0))
    assert high - low == pytest.approx(2 * t.ppf(0.975, 2) * error)
