"""Training: planted directions come back, an interrupted one goes on bit for bit, what is counted is true."""

from __future__ import annotations

import copy
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import sparsescope as ss
from sparsescope.activations.shuffled import RowBatch, ShuffledRows
from sparsescope.activations.store import write_store
from sparsescope.dictionaries import train as module
from sparsescope.dictionaries.architectures import make
from sparsescope.dictionaries.census import census
from sparsescope.dictionaries.rows import LiveRows, TensorRows, facts_of, kept_rows, sample_of
from sparsescope.dictionaries.train import DictionaryTraining, Settings, train
from sparsescope.errors import ArtifactError, SpecError
from sparsescope.training.loop import Saving, run_training
from sparsescope.training.state import FILE, PREVIOUS, load_state

D, TRUE, WIDTH, K = 24, 36, 48, 3
#: Mean cosine of the best pairs: measured, less 0.06 to 0.08 for other processors.
RECOVERED = {
    "topk": 0.90,
    "batch_topk": 0.83,
    "feature_choice": 0.85,
    "matryoshka": 0.71,
    "jumprelu": 0.78,
    "relu": 0.87,
}


def planted(rows, seed):
    """Rows that are sums of few of 36 directions in 24 dimensions, and the directions."""
    generator = torch.Generator().manual_seed(7)
    directions = torch.nn.functional.normalize(torch.randn(TRUE, D, generator=generator), dim=1)
    generator = torch.Generator().manual_seed(seed)
    often = 0.16 * (torch.arange(TRUE) + 1.0) ** -0.35
    active = (torch.rand(rows, TRUE, generator=generator) < often) * (
        1 + torch.rand(rows, TRUE, generator=generator)
    )
    return active @ directions + 0.01 * torch.randn(rows, D, generator=generator) + 0.3, directions


def made(names=("topk", "batch_topk", "feature_choice"), d=D, width=WIDTH, **more):
    return {
        name: make(name, d, width, **({"l1": 0.6} if name == "relu" else {"k": K}), **more) for name in names
    }


def bits(outcome):
    """Parameters, buffers, facts, densities and curves."""
    return {
        key: (
            {name: value.clone() for name, value in found.state_dict().items()},
            {name: value for name, value in outcome.facts[key].items() if name != "cpu_seconds"},
            outcome.census[key].rows_per_feature.tolist(),
            outcome.census[key].first_row.tolist(),
            outcome.curves.to_numpy().tolist(),
        )
        for key, found in outcome.dictionaries.items()
    }


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert all(torch.equal(value, b[key][0][name]) for name, value in a[key][0].items()), key
        assert a[key][1:] == b[key][1:]


@pytest.fixture(scope="module")
def whole():
    """All architectures on planted rows, with what the sinks and the progress were told."""
    rows, _ = planted(6000, 1)
    held, _ = planted(2000, 2)
    logged, told = [], []
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    outcome = train(
        made(tuple(RECOVERED)),
        TensorRows(rows, batch_rows=150, epochs=8),
        settings=Settings(learning_rate=1e-2, dead_window=1500),
        held_out=held,
        threshold_rows=held,
        sinks=[lambda step, values: logged.append((step, dict(values)))],
        progress=lambda *words: told.append(words),
    )
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:], "the global generators were used"
    return outcome, rows, held, logged, told


@pytest.mark.parametrize("name", list(RECOVERED))
def test_planted_directions_are_found_and_explain_more_than_principal_components(name, whole):
    outcome, _, held, *_ = whole
    _, directions = planted(1, 1)
    found, facts = outcome.dictionaries[name], outcome.facts[name]
    cosines = (torch.nn.functional.normalize(found.directions, dim=1) @ directions.T).numpy()
    pairs = linear_sum_assignment(-cosines)
    assert cosines[pairs].mean() > RECOVERED[name]
    spectrum = torch.linalg.svdvals(held.double() - held.double().mean(0)).square()
    l0 = facts["held_out_l0"]
    assert facts["held_out_fvu"] < float(spectrum[math.ceil(l0) :].sum() / spectrum.sum()) - 0.1
    assert l0 < 1.5 * K


@pytest.mark.parametrize("name", list(RECOVERED))
def test_facts_equal_naive_dense_computation_with_frozen_weights(name, whole):
    outcome, rows, held, *_ = whole
    found, facts, counted = outcome.dictionaries[name], outcome.facts[name], outcome.census[name]
    assert facts["architecture"] == name and facts["thresholds_on"] == "other documents"
    made_of = found.reconstruct(held)
    error = (made_of - held).double().square().sum() / (held - held.mean(0)).double().square().sum()
    assert facts["held_out_fvu"] == pytest.approx(float(error), rel=1e-4)
    assert facts["held_out_l0"] == pytest.approx(float((found.encode(held).dense() != 0).sum()) / 2000)
    order = np.random.default_rng([0, 0]).permutation(6000)[:1500]
    first = rows[torch.from_numpy(order)]
    active = found.encode(first).dense() != 0
    assert counted.rows == 1500 == facts["dead_counted_rows"]
    assert counted.rows_per_feature.tolist() == active.sum(0).tolist()
    assert counted.dead_share == facts["dead_share"] == float((~active.any(0)).double().mean())
    wanted = torch.where(active.any(0), active.int().argmax(0), 1500)
    assert counted.first_row.tolist() == wanted.tolist()
    np.testing.assert_allclose(counted.densities, active.double().mean(0).numpy())
    error = (found.reconstruct(first) - first).double().square().sum()
    assert counted.fvu == pytest.approx(
        float(error / (first - first.mean(0)).double().square().sum()), rel=1e-4
    )
    assert facts["train_fvu"] == counted.fvu and facts["train_l0"] == counted.l0
    assert counted.l0 == pytest.approx(float(active.sum() / 1500))
    if name in ("batch_topk", "feature_choice", "matryoshka"):
        assert found.architecture == "jumprelu" and facts["held_out_l0"] == pytest.approx(K, rel=0.02)


def test_facts_of_the_data(whole):
    outcome, rows, *_ = whole
    facts = outcome.facts["topk"]
    mean, double = rows.double().mean(0), rows.double()
    variance = float((double - mean).square().sum(1).mean())
    assert facts["variance"] == pytest.approx(variance, rel=1e-5)
    assert facts["gamma"] == pytest.approx(float(mean.norm()) / math.sqrt(variance), rel=1e-5)
    assert facts["median_norm"] == pytest.approx(float(rows.norm(dim=1).median()))
    assert (facts["steps"], facts["epochs"], facts["rows_read"], facts["rows_left_out"]) == (
        320,
        8,
        48_000,
        0,
    )
    assert facts["learning_rate"] == 1e-2 and facts["dead_window"] == 1500 and facts["cpu_seconds"] > 0


def test_sinks_and_curves_hold_finite_numbers_that_fall(whole):
    outcome, _, _, logged, told = whole
    assert [step for step, _ in logged[:: len(RECOVERED)]] == list(range(0, 321, 20))
    assert all(math.isfinite(value) for _, values in logged for value in values.values())
    last = logged[-len(RECOVERED)][1]
    assert set(last) == {f"topk/{measure}" for measure in ("fvu", "penalty", "l0", "dead_share")}
    curves = outcome.curves
    assert set(curves["dictionary"]) == set(RECOVERED) and np.isfinite(curves["value"]).all()
    for name in RECOVERED:
        mine = curves[(curves["dictionary"] == name) & (curves["measure"] == "fvu")]
        assert mine["step"].tolist() == list(range(20, 321, 20))
        assert mine["value"].iloc[-1] < 0.6 * mine["value"].iloc[0]
    l0 = curves[(curves["dictionary"] == "batch_topk") & (curves["measure"] == "l0")]["value"]
    np.testing.assert_allclose(l0, K)
    assert ("train", 320, 320, "steps") in told and told[-1][0] == "count"


# Steps


def loop_of(dictionaries, source, settings=None, **more):
    rest = {"name": "t", "device": "cpu", "sinks": (), "progress": None, **more}
    return DictionaryTraining(dictionaries, source, settings or Settings(learning_rate=1e-2), **rest)


def test_decoder_rows_have_unit_norm_and_gradients_at_right_angles(monkeypatch):
    """T11, before every step of the optimizer and after it."""
    rows, _ = planted(600, 1)
    training = loop_of(made(tuple(RECOVERED)), TensorRows(rows, batch_rows=100))
    step = training.optimizer.step
    seen = []

    def looked():
        for found in training.dictionaries.values():
            along = (found.decoder.grad * found.decoder.detach()).sum(1).abs()
            assert float(found.decoder.grad.norm()) > 0
            assert float(along.max()) < 1e-5 * float(found.decoder.grad.norm())
        seen.append(1)
        step()

    monkeypatch.setattr(training.optimizer, "step", looked)
    for number in range(6):
        with torch.no_grad():
            training.dictionaries["jumprelu"].threshold[0] = -5.0
        training.update(number)
        assert float(training.dictionaries["jumprelu"].threshold.detach().min()) >= 0
        for found in training.dictionaries.values():
            torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(WIDTH))
    assert len(seen) == 6


def test_what_a_step_is_told():
    """Progress, warm-up, dead features and the learning rate at each step."""
    rows, _ = planted(1000, 1)
    found = made(("topk",))
    training = loop_of(
        found,
        TensorRows(rows, batch_rows=50),
        Settings(learning_rate=0.5, dead_window=100, warmup=0.2, decay=0.5),
    )
    steps, rates, plain = [], [], found["topk"].loss
    found["topk"].loss = lambda rows, target, step: steps.append(step) or plain(rows, target, step)
    since = torch.zeros(WIDTH, dtype=torch.int64)
    for number in range(20):
        training.update(number)
        rates.append(training.optimizer.param_groups[0]["lr"])
        assert torch.equal(steps[-1].dead, since >= 100)
        since = training.extra["since.topk"].clone()
    assert [step.progress for step in steps] == [number / 20 for number in range(20)]
    assert [step.warmup for step in steps] == [0.25, 0.5, 0.75] + [1.0] * 17
    assert max(rates) == 0.5 and rates[0] < rates[1] < 0.5 and rates[-1] < rates[-2] < 0.5
    variance = facts_of(rows, np.ones(1000)).variance
    assert steps[0].variance == pytest.approx(variance / training.scale_in**2)
    assert training.scale_in == pytest.approx(math.sqrt(float(rows.square().sum(1).mean()) / D))
    assert since.max() > 0 and (since % 50 == 0).all() and (since == 0).any()


def test_the_default_rate_of_each_dictionary_is_that_of_its_width():
    rows, _ = planted(200, 1)
    both = {"a": make("topk", D, 40, k=2), "b": make("topk", D, 160, k=2)}
    training = loop_of(both, TensorRows(rows, batch_rows=100), Settings(warmup=0.0, decay=0.0))
    training.update(0)
    rates = [group["lr"] for group in training.optimizer.param_groups]
    assert rates == pytest.approx([1e-3 * math.sqrt(4096 / 40), 1e-3 * math.sqrt(4096 / 160)])


@pytest.mark.parametrize("factor", [128.0, 100.0])
def test_rows_times_a_factor_give_codes_times_the_factor(factor):
    """Bit for bit for a power of two; otherwise as far as rounding goes."""
    rows, _ = planted(600, 1)
    names = ("topk", "batch_topk", "jumprelu", "relu")
    one = train(made(names), TensorRows(rows, batch_rows=100))
    other = train(made(names), TensorRows(rows * factor, batch_rows=100))
    for name in names:
        a, b = one.dictionaries[name].encode(rows), other.dictionaries[name].encode(rows * factor)
        if factor == 128:
            assert torch.equal(a.indices, b.indices) and torch.equal(a.values * factor, b.values)
            for fact in ("train_fvu", "train_l0", "dead_share", "gamma"):
                assert one.facts[name][fact] == pytest.approx(other.facts[name][fact], rel=1e-6)
        else:
            assert (a.dense() != 0).ne(b.dense() != 0).double().mean() < 1e-3
            assert float((a.dense() * factor - b.dense()).norm() / b.dense().norm()) < 1e-2


def test_scores_in_bfloat16_choose_nearly_the_same_features():
    """Which features are chosen may differ where scores are close; their values are those of float32."""
    rows, _ = planted(3000, 1)
    held, _ = planted(1000, 2)
    names = ("topk", "batch_topk", "feature_choice", "jumprelu", "matryoshka")
    exact, quick = (
        train(
            made(names),
            TensorRows(rows, batch_rows=150, epochs=4),
            settings=Settings(learning_rate=1e-2, scores=scores),
            held_out=held,
        )
        for scores in ("float32", "bfloat16")
    )
    for name in names:
        one, other = exact.facts[name], quick.facts[name]
        assert (one["scores"], other["scores"]) == ("float32", "bfloat16")
        assert other["held_out_fvu"] == pytest.approx(one["held_out_fvu"], rel=0.1), name
        assert not torch.equal(exact.dictionaries[name].encoder, quick.dictionaries[name].encoder), name


def test_a_transcoder_learns_another_site():
    rows, _ = planted(3000, 1)
    generator = torch.Generator().manual_seed(3)
    target = rows @ torch.randn(D, 10, generator=generator) * 40 + 5
    settings = Settings(learning_rate=1e-2)
    errors = {}
    for skip in (False, True):
        found = make("transcoder", D, 40, d_out=10, k=4, site="in", site_out="out", skip=skip)
        source = TensorRows(rows, target, batch_rows=100, epochs=2, site="in", site_out="out")
        outcome = train(found, source, settings=settings, held_out=(rows[:500], target[:500]))
        exported = outcome.dictionaries["dictionary"]
        made_of = exported.reconstruct(rows[:500])
        wanted = (made_of - target[:500]).square().sum() / (
            target[:500] - target[:500].mean(0)
        ).square().sum()
        errors[skip] = outcome.facts["dictionary"]["held_out_fvu"]
        assert errors[skip] == pytest.approx(float(wanted), rel=1e-3)
        assert outcome.facts["dictionary"]["variance"] == pytest.approx(
            float((target - target.mean(0)).square().sum(1).mean()), rel=1e-4
        )
        assert exported.architecture == "jumprelu" and exported.site_out == "out"
    assert errors[True] < errors[False] < 0.5


# Going on


def interrupted(folder, rows, stops, **more):
    for stop in stops:
        run_training(loop_of(made(), rows, **more), folder, stop_after=stop)


@pytest.fixture(scope="module")
def reference():
    """Three architectures, trained at once; Feature Choice changes its phase at step 15 of 30."""
    rows, _ = planted(300, 1)
    source = TensorRows(rows, batch_rows=30, epochs=3)
    outcome = train(made(), source, settings=Settings(learning_rate=1e-2, dead_window=90))
    assert outcome.curves["step"].max() == 30
    return source, bits(outcome)


@pytest.mark.parametrize("stops", [(1,), (14,), (15,), (7, 10), (30,)], ids=str)
def test_a_training_goes_on_with_the_same_bits(stops, reference, tmp_path):
    """T19."""
    source, wanted = reference
    settings = Settings(learning_rate=1e-2, dead_window=90)
    interrupted(tmp_path, source, stops, settings=settings)
    assert (tmp_path / FILE).is_file()
    again = train(made(), source, settings=settings, folder=tmp_path)
    same(bits(again), wanted)
    same(bits(train(made(), source, settings=settings, folder=tmp_path)), wanted)  # of a finished one


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "garbage"])
def test_a_damaged_state_goes_on_from_the_one_before(damage, reference, tmp_path):
    source, wanted = reference
    settings = Settings(learning_rate=1e-2, dead_window=90)
    interrupted(tmp_path, source, (8, 10), settings=settings)
    data = (tmp_path / FILE).read_bytes()
    changed = {"truncated": data[:-100], "empty": b"", "garbage": b"x" * 5000}
    (tmp_path / FILE).unlink() if damage == "missing" else (tmp_path / FILE).write_bytes(changed[damage])
    assert load_state(tmp_path, loop_of(made(), source, settings=settings)).step == 8
    same(bits(train(made(), source, settings=settings, folder=tmp_path)), wanted)


def test_two_damaged_states_are_an_error(reference, tmp_path):
    source, _ = reference
    interrupted(tmp_path, source, (2, 2))
    for name in (FILE, PREVIOUS):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="cannot be read"):
        train(made(), source, settings=Settings(learning_rate=1e-2), folder=tmp_path)


def test_what_a_killed_process_left_half_written_is_removed(reference, tmp_path):
    source, _ = reference
    (tmp_path / f".{FILE}.12345.tmp").write_bytes(b"half")
    interrupted(tmp_path, source, (2,))
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE]
    interrupted(tmp_path, source, (2,))
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, FILE]


def test_the_folder_of_another_training_is_refused(reference, tmp_path):
    source, _ = reference
    rows, _ = planted(300, 1)
    interrupted(tmp_path, source, (2,))
    rate = Settings(learning_rate=1e-2)
    others = [
        (made(("topk", "batch_topk", "jumprelu")), source, rate),
        ({**made(), "topk": make("topk", D, WIDTH, k=K + 1)}, source, rate),
        ({**made(), "topk": make("topk", D, WIDTH, k=K, seed=1)}, source, rate),
        ({**made(), "topk": make("topk", D, WIDTH, k=K, aux_k=5)}, source, rate),
        (made(), source, Settings(learning_rate=2e-2)),
        (made(), source, Settings(learning_rate=1e-2, dead_window=7)),
        (made(), source, Settings(learning_rate=1e-2, warmup=0.5)),
        (made(), source, Settings(learning_rate=1e-2, decay=0.5)),
        (made(), source, Settings(learning_rate=1e-2, centred=False)),
        (made(), TensorRows(rows, batch_rows=30, epochs=4), rate),  # as many rows, other steps
        (made(), TensorRows(rows, batch_rows=30, epochs=3, seed=1), rate),
        (made(), TensorRows(rows, batch_rows=31, epochs=3), rate),
        (made(), TensorRows(rows.flip(0), batch_rows=30, epochs=3), rate),  # the same sums
    ]
    for dictionaries, other, settings in others:
        with pytest.raises(ArtifactError, match="another recipe"):
            train(dictionaries, other, settings=settings, folder=tmp_path)
    run_training(loop_of(made(), source), tmp_path, stop_after=1)


def test_two_trainings_do_not_share_a_folder(reference, tmp_path):
    from sparsescope.training.state import alone

    source, _ = reference
    with alone(tmp_path), pytest.raises(ArtifactError, match="another training writes"):
        train(made(), source, folder=tmp_path)


@pytest.mark.parametrize("cost", [0.2, 1.0, 7.0])
def test_saving_takes_at_most_five_percent_of_the_time(cost):
    """Steps shorter than a save; the first save is due after ten seconds, when its cost is not known yet."""
    now, spent, saved = 0.0, 0.0, []
    training = loop_of(made(("topk",)), TensorRows(planted(100, 1)[0]))
    saving = Saving(lambda: now, training.saves)
    while now < 3000:
        now += 0.3 * cost
        if saving.due():
            with saving.measured():
                now += cost
            spent += cost
            saved.append(now)
    assert spent / (now - saved[0] + cost) <= 0.05
    assert saved[0] <= 10 + cost and len(saved) > 10
    assert max(b - a for a, b in pairwise(saved)) <= max(10, 20 * cost) + cost
    assert training.keep_two


# Rows


class Given:
    """Batches that are given, with positions and documents."""

    def __init__(self, rows, positions, batch_rows, epochs=1):
        self.rows, self.positions, self.batch_rows = rows, positions, batch_rows
        self.n_rows, self.epochs = len(rows), epochs
        self.per_epoch = -(-len(rows) // batch_rows)
        self.n_batches, self.fingerprint = epochs * self.per_epoch, {"given": len(rows)}

    def batches(self, start=0):
        for number in range(start, self.n_batches):
            part = slice(
                (number % self.per_epoch) * self.batch_rows, (number % self.per_epoch + 1) * self.batch_rows
            )
            size = len(self.positions[part])
            # Token id 0, which some models have as BOS, is everywhere
            yield RowBatch(
                number, number // self.per_epoch, np.full(size, number, np.int32), np.zeros(size, np.int64),
                self.positions[part], {"": self.rows[part]},
            )  # fmt: skip


def with_sinks(count=400, last=1):
    """Rows of windows of 20, whose position 0 has a norm of an attention sink, one outlier elsewhere, and a
    last batch that holds nothing but position 0.
    """
    rows, _ = planted(count + last, 1)
    positions = (np.arange(count + last) % 20).astype(np.int32)
    rows = rows.clone()
    rows[torch.from_numpy(positions == 0)] = 300.0
    rows[33] = 1e4
    return rows, positions


def test_position_0_and_outliers_are_left_out_and_counted():
    """The positions say which, whatever the ids of the tokens are; a batch of nothing else is no update."""
    rows, positions = with_sinks()
    source = Given(rows, positions, 40, epochs=2)
    assert source.n_batches == 22
    outcome = train(made(), source, settings=Settings(learning_rate=1e-2))
    inside = torch.from_numpy(positions != 0) & (torch.arange(401) != 33)
    facts = outcome.facts["batch_topk"]
    assert facts["rows_left_out"] == 2 * int((~inside).sum()) == 44 and facts["rows_read"] == 802
    kept = rows[inside].double()
    assert facts["variance"] == pytest.approx(float((kept - kept.mean(0)).square().sum(1).mean()), rel=1e-5)
    assert facts["median_norm"] == pytest.approx(
        float(rows[torch.from_numpy(positions != 0)].norm(dim=1).median())
    )
    counted = outcome.census["batch_topk"]
    found = outcome.dictionaries["batch_topk"]
    assert counted.rows == len(kept), "rows were counted twice, or rows that were left out were counted"
    assert counted.rows_per_feature.tolist() == found.encode(rows[inside]).rows_per_feature.tolist()
    assert all(torch.isfinite(value).all() for value in found.state_dict().values())
    # Without them: the same training
    clean = train(
        made(), Given(rows[:-1], positions[:-1], 40, epochs=2), settings=Settings(learning_rate=1e-2)
    )
    assert clean.facts["batch_topk"]["gamma"] == facts["gamma"]


def test_what_is_left_out_is_decided_for_all_sites_together():
    rows, targets = planted(50, 1)[0], planted(50, 2)[0].clone()
    targets[7], rows[9] = 1e5, rows[9] * 1e5
    batch = next(TensorRows(rows, targets, site="a", site_out="b").batches())
    sites = {"a": facts_of(rows, np.ones(50)), "b": facts_of(targets, np.ones(50))}
    values, out = kept_rows(batch, sites)
    assert out == 2 and len(values["a"]) == len(values["b"]) == 48
    assert torch.equal(
        values["a"], batch.values["a"][torch.from_numpy((batch.token_ids != 7) & (batch.token_ids != 9))]
    )
    batch.values["b"][3, 1] = float("nan")
    with pytest.raises(SpecError, match=r"NaN or infinite[\s\S]*b, batch 0, row 3"):
        kept_rows(batch, sites)


def test_facts_where_every_row_is_at_position_0():
    rows, _ = planted(50, 1)
    assert facts_of(rows, np.zeros(50)).median_norm == pytest.approx(float(rows.norm(dim=1).median()))


def test_features_that_point_away_from_a_large_mean_are_born_dead():
    rows, _ = planted(2000, 1)
    rows = rows + 40 * torch.nn.functional.normalize(torch.ones(D), dim=0)
    outcome = train(made(), TensorRows(rows, batch_rows=500), settings=Settings(learning_rate=1e-3))
    for name in ("topk", "batch_topk"):
        facts = outcome.facts[name]
        assert facts["gamma"] > 10 and facts["born_dead_raw"] > 0.5 and facts["born_dead_centred"] < 0.1
    # By hand: the features that the directions of the beginning select
    facts, scaled = outcome.facts["topk"], rows / math.sqrt(float(rows.square().sum(1).mean()) / D)
    start = make("topk", D, WIDTH, k=K)
    for centred, share in ((False, facts["born_dead_raw"]), (True, facts["born_dead_centred"])):
        used = start.encode(scaled - scaled.mean(0) * centred).rows_per_feature > 0
        assert share == pytest.approx(float((~used).double().mean()), abs=1 / WIDTH)
    raw = train(made(("topk",)), TensorRows(rows, batch_rows=500), settings=Settings(centred=False))
    assert raw.facts["topk"]["centred"] is False
    assert raw.facts["topk"]["dead_share"] > outcome.facts["topk"]["dead_share"] + 0.3


def test_the_census_stops_after_the_window_and_tells_rows_of_the_first_activity():
    rows, _ = planted(1000, 1)
    found = make("relu", D, 8)
    with torch.no_grad():
        found.encoder_bias[:] = torch.tensor([100.0] + [-100.0] + [0.0] * 6)
    source = TensorRows(rows, batch_rows=100, epochs=2)
    facts = {"": facts_of(rows, np.ones(1000))}
    for window, wanted in ((250, 300), (100, 100), (10**9, 1000)):
        counted = census({"a": found}, source, facts, "", "", window)["a"]
        assert counted.rows == wanted and counted.rows_per_feature[:2].tolist() == [wanted, 0]
        assert counted.first_row[:2].tolist() == [0, wanted] and counted.dead_share == 1 / 8


def test_tensor_rows_come_once_an_epoch_from_any_batch_on():
    rows = torch.arange(70.0).reshape(35, 2)
    source = TensorRows(rows, batch_rows=8, epochs=3, seed=5)
    batches = list(source.batches())
    assert [batch.index for batch in batches] == list(range(15)) and [
        len(b.token_ids) for b in batches[:5]
    ] == [8] * 4 + [3]
    orders = [np.concatenate([b.token_ids for b in batches if b.epoch == epoch]) for epoch in range(3)]
    assert all(sorted(order) == list(range(35)) for order in orders) and (orders[0] != orders[1]).any()
    for start in (0, 3, 5, 14, 15):
        tail = list(source.batches(start))
        assert [b.index for b in tail] == list(range(start, 15))
        assert all(
            torch.equal(a.values[""], b.values[""]) for a, b in zip(tail, batches[start:], strict=True)
        )
    for batch in batches:
        assert torch.equal(batch.values[""], rows[torch.from_numpy(batch.token_ids)])


@pytest.fixture(scope="module")
def live():
    model, corpus = ss.load("glassllm"), ss.corpus("python-docs", tokens=4000)
    with ss.capture(model, corpus, "blocks.0.mlp.hook_post", batch_tokens=256) as source:
        yield source


def rows_of(batches, site):
    return [
        (int(document), int(token), int(position), value.float().numpy().tobytes())
        for batch in batches
        for document, token, position, value in zip(
            batch.documents, batch.token_ids, batch.positions, batch.values[site], strict=True
        )
    ]


def test_rows_of_a_running_model_come_once_an_epoch_from_any_batch_on(live):
    site = live.sites[0].name
    rows = LiveRows(live, batch_rows=100, buffer_rows=1500, epochs=2, seed=3)
    batches = list(rows.batches())
    assert [batch.index for batch in batches] == list(range(rows.n_batches)) and len(rows._buffers) > 1
    wanted = sorted(
        (batch.document, int(token), int(position), value.float().numpy().tobytes())
        for batch in live
        for token, position, value in zip(batch.token_ids, batch.positions, batch.values[site], strict=True)
    )
    assert rows.n_rows == len(wanted) == live.n_tokens
    epochs = [[batch for batch in batches if batch.epoch == epoch] for epoch in (0, 1)]
    for mine in epochs:
        assert sorted(rows_of(mine, site)) == wanted
    assert rows_of(epochs[0], site) != rows_of(epochs[1], site)
    mixed = [len(np.unique(batch.documents)) for batch in batches if len(batch.token_ids) == 100]
    assert np.mean(mixed) > 1.5, "batches do not mix documents"
    first = next(b.index for b in batches if b.epoch == 1)
    for start in (1, first - 1, first + 3, rows.n_batches):
        tail = list(rows.batches(start))
        assert [b.index for b in tail] == list(range(start, rows.n_batches))
        assert rows_of(tail, site) == rows_of(batches[start:], site)


def test_stored_rows_train_the_same_as_themselves_and_name_their_documents(live, tmp_path):
    site = live.sites[0].name
    store = write_store(live, tmp_path / "store")
    rows = ShuffledRows(store, [site], shuffle="batches", batch_rows=200, buffer_rows=2000, seed=1)
    assert sorted(rows_of(rows.batches(), site)) == sorted(rows_of(LiveRows(live).batches(), site))
    assert np.mean([len(np.unique(b.documents)) for b in rows.batches()]) > 1.5
    chosen = sorted({batch.document for batch in live})[::2]
    part = ShuffledRows(store, [site], shuffle="batches", batch_rows=200, buffer_rows=2000, documents=chosen)
    wanted = [row for row in sorted(rows_of(rows.batches(), site)) if row[0] in chosen]
    assert sorted(rows_of(part.batches(), site)) == wanted and 0 < part.n_rows == len(wanted) < rows.n_rows
    tail = list(rows.batches(7))
    assert rows_of(tail, site) == rows_of(list(rows.batches())[7:], site)
    with pytest.raises(SpecError, match="no stored document was chosen"):
        ShuffledRows(store, [site], documents=[10**6])
    prints = [
        ShuffledRows(store, [site], **more).fingerprint
        for more in ({}, {"shuffle": "batches"}, {"documents": chosen}, {"documents": chosen[1:]})
    ]
    assert all(prints[a] != prints[b] for a in range(4) for b in range(a))
    d = live.sites[0].width
    settings = Settings(learning_rate=1e-3)
    first, second = (train(make("topk", d, 64, k=4, site=site), rows, settings=settings) for _ in range(2))
    same(bits(first), bits(second))
    facts = first.facts["dictionary"]
    assert facts["documents_mixed"] > 1 and facts["rows_left_out"] >= facts["epochs"] > 0
    assert facts["train_fvu"] < 1 and first.dictionaries["dictionary"].site == site


def test_rows_that_cannot_be_read_live():
    model, corpus = ss.load("random-olmoe"), ss.corpus("python-docs", tokens=500)
    with (
        ss.capture(model, corpus, "blocks.0.mlp.experts.0.hook_post") as source,
        pytest.raises(SpecError, match="expert"),
    ):
        LiveRows(source)


def test_a_sample_is_the_first_rows_of_one_epoch():
    rows = torch.arange(100.0).reshape(50, 2)
    source = TensorRows(rows, batch_rows=8)
    sample = sample_of(source, 20)
    assert len(sample.token_ids) == 24
    wanted = torch.cat([b.values[""] for b in list(source.batches())[:3]])
    assert torch.equal(sample.values[""], wanted)
    several = sample_of(TensorRows(rows, batch_rows=8, epochs=5), 200)
    assert sorted(several.token_ids) == list(range(50)), "rows came twice"


# What cannot be trained


def test_what_cannot_be_trained_is_refused_before_the_first_step():
    rows, _ = planted(100, 1)
    bad = rows.clone()
    bad[50, 3] = float("nan")
    cases = [
        ({}, rows, "no dictionary to train"),
        ({"a": make("topk", D, 8, k=2), "b": make("topk", D - 1, 8, k=2)}, rows, "read the same site"),
        ({"a": make("topk", D, 8, k=2, site="x"), "b": make("topk", D, 8, k=2)}, rows, "read the same site"),
        (make("topk", D + 1, 8, k=2), rows, "another width"),
        (make("topk", D, 8, k=2), bad, "NaN or infinite"),
        (make("topk", D, 8, k=2), torch.ones(50, D), "all rows are equal"),
        (make("topk", D, 8, k=2), rows[:0], "cannot be trained on"),
        (make("topk", D, 8, k=2), rows[0], "cannot be trained on"),
        (make("gated", D, 8), rows, "not trained"),
        (make("topk", D, 8, k=2, normalize="layer_norm"), rows, "can be used, but not trained"),
        (make("topk", D, 8, k=2, dtype="bfloat16"), rows, "can be used, but not trained"),
        (make("topk", D, 8, k=2, site="blocks.1"), TensorRows(rows, site="blocks.0"), "lack a site"),
        (make("transcoder", D, 8, k=2, site_out="blocks.1"), rows, "lack a site"),
    ]
    for dictionaries, given, message in cases:
        with pytest.raises(SpecError, match=message):
            train(dictionaries, given)
    # What is only used after the last step
    topk = make("topk", D, 8, k=2)
    for name in ("held_out", "threshold_rows"):
        for given, message in (
            (rows[:, 1:], "another width"),
            (rows[:0], "no rows"),
            (bad, "NaN or infinite"),
        ):
            with pytest.raises(SpecError, match=message) as error:
                train(topk, rows, **{name: given})
            assert name in str(error.value)
    with pytest.raises(SpecError, match="cannot be trained on"):
        TensorRows(rows, rows[:5])
    for more in ({"batch_rows": 0}, {"epochs": 0}):
        with pytest.raises(SpecError, match="is not possible"):
            TensorRows(rows, **more)


def test_names_that_look_alike_and_names_of_modules_are_no_trouble(tmp_path):
    rows, _ = planted(100, 1)
    names = ("a.b", "a_b", "train", "keys", "")
    outcome = train(
        {name: make("topk", D, 8, k=2, seed=n) for n, name in enumerate(names)}, rows, folder=tmp_path
    )
    assert set(outcome.dictionaries) == set(names)
    encoders = [found.encoder for found in outcome.dictionaries.values()]
    assert not any(torch.equal(encoders[0], other) for other in encoders[1:])


def test_trained_dictionaries_can_be_copied():
    rows, _ = planted(100, 1)
    for name, found in train(made(tuple(RECOVERED)), rows).dictionaries.items():
        other = copy.deepcopy(found)
        assert torch.equal(other.encode(rows).values, found.encode(rows).values), name


def test_thresholds_on_rows_trained_on_are_said_so():
    rows, _ = planted(300, 1)
    outcome = train(made(("batch_topk",)), rows)
    facts = outcome.facts["batch_topk"]
    assert facts["thresholds_on"] == "rows trained on" and "held_out_fvu" not in facts
    assert float(outcome.dictionaries["batch_topk"].encode(rows).active_per_row.double().mean()) == K
    assert module.THRESHOLD_ROWS >= 8192
