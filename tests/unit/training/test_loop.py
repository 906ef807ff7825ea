"""The loop, on what is no language model: it resumes bit for bit, saves often enough, and lets no
step be half saved.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sparsescope.errors import ArtifactError, SpecError
from sparsescope.training import loop
from sparsescope.training.loop import Saving, Training, run_training, torch_threads
from sparsescope.training.schedule import Schedule
from sparsescope.training.state import FILE

STEPS, WIDTH, FEATURES = 40, 6, 12


class Autoencoder(nn.Module):
    """A ReLU dictionary with a stored buffer of its own."""

    def __init__(self, generator):
        super().__init__()
        self.encoder = nn.Parameter(torch.randn(WIDTH, FEATURES, generator=generator) * 0.3)
        self.decoder = nn.Parameter(self.encoder.detach().T.clone())
        self.bias = nn.Parameter(torch.zeros(FEATURES))
        self.register_buffer("threshold", torch.zeros(FEATURES))

    def forward(self, rows):
        features = torch.relu(rows @ self.encoder + self.bias)
        return features, features @ self.decoder


class Dictionaries(Training):
    """Two autoencoders on shards of activations: draws rows, counts steps without firing, revives features,
    reads shard by shard.

    ``cursor`` is the place in the data, ``left`` the rows read and not yet used (another number
    after every step).
    """

    def update(self, step):
        shards = torch.randn(5, 64, WIDTH, generator=torch.Generator().manual_seed(1))
        while len(self.extra["left"]) < 20:
            self.extra["left"] = torch.cat([self.extra["left"], shards[int(self.extra["cursor"]) % 5]])
            self.extra["cursor"] += 1
        rows, self.extra["left"] = self.extra["left"][:20], self.extra["left"][20:]
        rows = rows + 0.01 * torch.randn(rows.shape, generator=self.generator)
        loss = torch.zeros(())
        for name, module in self.model.items():
            features, output = module(rows)
            loss = loss + (output - rows).square().mean() + 0.1 * features.sum(1).mean()
            idle = self.extra[f"idle.{name}"]
            idle += 1
            idle[(features > 0).any(0)] = 0
            module.threshold.lerp_(features.detach().mean(0), 0.1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for name, module in self.model.items():
                module.encoder[:, self.extra[f"idle.{name}"] > 2] = torch.randn(
                    WIDTH, 1, generator=self.generator
                )

    def measure(self, step):
        return [
            ("idle", "", name, float(self.extra[f"idle.{name}"].sum())) for name in self.model
        ], f"at {step}"

    def checkpoint(self, step):
        return {"step": step, "norm": float(self.model["mlp"].encoder.detach().norm())}


def dictionaries(make_optimizer=torch.optim.Adam, kind=Dictionaries, **changes):
    generator = torch.Generator().manual_seed(0)
    model = nn.ModuleDict({name: Autoencoder(generator) for name in ("attention", "mlp")})
    values = {
        "name": "dictionaries",
        "mark": "0",
        "steps": STEPS,
        "model": model,
        "optimizer": make_optimizer(model.parameters(), lr=1e-2),
        "generator": generator,
        "schedule": Schedule(1e-2, STEPS, 5, "linear", 10, 0.0),
        "extra": {
            "cursor": torch.zeros((), dtype=torch.int64),
            "left": torch.zeros(0, WIDTH),
            **{f"idle.{name}": torch.zeros(FEATURES, dtype=torch.int64) for name in model},
        },
        "log_every": 8,
        "checkpoints": (0, 16, STEPS),
    }
    return kind(**{**values, **changes})


def everything(training):
    """All tensors of a training, by name."""
    moments = {
        f"{key}.{number}": value
        for number, state in training.optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }
    return {
        **training.model.state_dict(),
        **moments,
        **training.extra,
        "generator": training.generator.get_state(),
    }


def check_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and tensor.dtype == second[name].dtype, name


def momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def plain_descent(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr)


def groups(parameters, lr):
    """Two groups in another order than that of the model."""
    listed = list(parameters)
    return torch.optim.Adam(
        [{"params": listed[::-2]}, {"params": listed[-2::-2], "betas": (0.0, 0.99)}], lr=lr, amsgrad=True
    )


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, torch.optim.RMSprop, momentum, plain_descent, groups]
)
@pytest.mark.parametrize("stops", [(17,), (1, 1, 30), (16, 23)])
def test_an_interrupted_training_ends_with_the_bits_of_one_in_one_go(tmp_path, optimizer, stops):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = dictionaries(optimizer)
    in_one_go = run_training(whole, tmp_path / "whole")
    done = 0
    for steps in stops:
        done += steps
        assert (
            run_training(dictionaries(optimizer), tmp_path / "parts", stop_after=steps).step == done < STEPS
        )
    parts = dictionaries(optimizer)
    resumed = run_training(parts, tmp_path / "parts")
    check_equal(everything(whole), everything(parts))
    assert in_one_go.step == resumed.step == STEPS
    assert in_one_go.curves == resumed.curves and in_one_go.checkpoints == resumed.checkpoints
    assert [row[0] for row in resumed.curves] == [0, 0, 8, 8, 16, 16, 24, 24, 32, 32, 40, 40]
    assert [record["step"] for record in resumed.checkpoints] == [0, 16, STEPS]


def test_the_training_of_these_tests_uses_all_that_is_saved(tmp_path):
    training = dictionaries()
    begun = {name: tensor.clone() for name, tensor in everything(training).items()}
    run_training(training, tmp_path, stop_after=11)
    unchanged = [name for name, tensor in begun.items() if torch.equal(tensor, everything(training)[name])]
    assert not [name for name in unchanged if not name.startswith("idle")]
    assert training.optimizer.param_groups[0]["lr"] == Schedule(1e-2, STEPS, 5, "linear", 10, 0.0).rate(10)


def test_without_measures_checkpoints_and_schedule_it_only_updates(tmp_path):
    training = dictionaries(log_every=0, checkpoints=(), schedule=None)
    progress = run_training(training, tmp_path)
    assert (progress.step, progress.curves, progress.checkpoints) == (STEPS, [], [])
    assert training.optimizer.param_groups[0]["lr"] == 1e-2


class Signalled(Dictionaries):
    """Gets Ctrl-C in the middle of the tenth update, or while the end is measured."""

    when = 9

    def update(self, step):
        if step == self.when:
            signal.raise_signal(signal.SIGINT)
        super().update(step)

    def measure(self, step):
        if self.when == step == STEPS:
            signal.raise_signal(signal.SIGINT)
        return super().measure(step)


@pytest.mark.parametrize("when", [0, 9, STEPS - 1, STEPS])
def test_ctrl_c_saves_after_the_running_step(tmp_path, monkeypatch, when):
    monkeypatch.setattr(Signalled, "when", when)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, parts = dictionaries(), dictionaries()
    in_one_go = run_training(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_training(dictionaries(kind=Signalled), tmp_path / "parts")
    with safe_open(tmp_path / "parts" / FILE, framework="pt") as file:
        assert json.loads(file.metadata()["facts"])["step"] == min(when + 1, STEPS)
    resumed = run_training(parts, tmp_path / "parts")
    check_equal(everything(whole), everything(parts))
    assert in_one_go.curves == resumed.curves and in_one_go.checkpoints == resumed.checkpoints


class Impatient(Dictionaries):
    """Gets a second Ctrl-C at once, with half of the step done."""

    def update(self, step):
        if step == 9:
            self.extra["cursor"] += 100
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        super().update(step)


def test_a_step_that_was_cut_short_is_not_saved(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, parts = dictionaries(), dictionaries()
    run_training(whole, tmp_path / "whole")
    run_training(dictionaries(), tmp_path / "parts", stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        run_training(dictionaries(kind=Impatient), tmp_path / "parts")
    run_training(parts, tmp_path / "parts")
    check_equal(everything(whole), everything(parts))


class Clock:
    """Seconds that pass only when something is done."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("step_seconds", "save_seconds", "bound"),
    [
        (0.01, 0.001, 10.0),
        (0.3, 0.5, 10.0),
        (4.0, 0.1, 10.0),
        (0.7, 3.0, 30.0),
        (25.0, 3.0, 30.0),
        (60.0, 0.1, 60.0),
    ],
)
def test_a_kill_loses_ten_seconds_or_ten_saves_of_work(
    tmp_path, monkeypatch, step_seconds, save_seconds, bound
):
    """At every moment: the work done since the last save that is complete. A step that is longer than the
    bound counts alone.
    """
    clock, lost, saved = Clock(), [], [0.0]

    class Timed(Dictionaries):
        def update(self, step):
            clock.now += step_seconds
            lost.append(clock.now - saved[-1])

    def save(folder, training, progress):
        clock.now += save_seconds
        saved.append(clock.now)

    monkeypatch.setattr(loop, "save_state", save)
    run_training(dictionaries(kind=Timed, steps=2000, log_every=0, checkpoints=()), tmp_path, clock=clock)
    assert max(lost) <= bound + 1e-6
    spent_on_saves = (len(saved) - 1) * save_seconds
    assert spent_on_saves <= 0.26 * 2000 * step_seconds, "training mostly saves"
    if step_seconds < 1 and save_seconds < 1:
        assert max(lost) > bound - 2 * step_seconds, "saved more often than asked"


def test_the_first_save_comes_after_ten_seconds_and_its_length_counts_from_then_on():
    clock = Clock()
    saving = Saving(clock)
    for clock.now in (1.0, 5.0):
        assert not saving.due()
    clock.now = 8.0
    assert saving.due(), "a step like the last one would end after eleven seconds"
    with saving.measured():
        clock.now = 12.0
    clock.now = 13.0
    assert not saving.due()
    clock.now = 51.0
    assert saving.due() and saving.cost == 4.0


def test_states_of_former_versions_are_read(tmp_path):
    """Weights, the moments of AdamW, the generator, and the facts; neither buffers nor
    tensors of another kind.
    """
    training = Linear.fresh()
    tensors = {
        "model.weight": torch.full((1, 3), 2.0),
        "generator": torch.Generator().manual_seed(9).get_state(),
    }
    tensors |= {
        "step.weight": torch.tensor(4.0),
        "exp_avg.weight": torch.ones(1, 3),
        "exp_avg_sq.weight": torch.ones(1, 3) * 3,
    }
    facts = {
        "mark": "0",
        "step": 4,
        "curves": [[0, "loss", "train", "", 1.5]],
        "checkpoints": [{"step": 0}],
        "cpu_seconds": 7.5,
    }
    save_file(tensors, tmp_path / FILE, {"facts": json.dumps(facts)})
    progress = run_training(training, tmp_path)
    assert progress.curves == [(0, "loss", "train", "", 1.5)] and progress.checkpoints == [{"step": 0}]
    assert training.made == [4, 5] and progress.cpu_seconds >= 7.5
    (state,) = training.optimizer.state.values()
    assert state["step"] == 6.0 and torch.equal(training.generator.get_state(), tensors["generator"])
    expected = Linear.fresh()
    with torch.no_grad():
        expected.model.weight.fill_(2.0)
    expected.optimizer.state[expected.model.weight] = {
        key: tensors[f"{key}.weight"] for key in ("step", "exp_avg", "exp_avg_sq")
    }
    for step in (4, 5):
        expected.update(step)
    assert torch.equal(training.model.weight, expected.model.weight)


class Linear(Training):
    """Six steps of AdamW on one matrix."""

    @classmethod
    def fresh(cls, **changes):
        model = nn.Linear(3, 1, bias=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        values = {"name": "linear", "mark": "0", "steps": 6, "model": model, "optimizer": optimizer}
        made = cls(**{**values, "generator": torch.Generator(), **changes})
        made.made = []
        return made

    def update(self, step):
        self.made.append(step)
        self.optimizer.zero_grad()
        self.model(torch.arange(3.0)).sum().backward()
        self.optimizer.step()


def test_a_state_of_another_model_is_refused(tmp_path):
    run_training(Linear.fresh(), tmp_path, stop_after=2)
    wide = nn.Linear(1, 1, bias=False)  # copying 3 numbers into 1, or 1 into 3, must not pass for going on
    for changes, name in (
        ({"model": wide, "optimizer": torch.optim.AdamW(wide.parameters())}, "weight"),
        ({"extra": {"cursor": torch.zeros(1)}}, "cursor"),
    ):
        with pytest.raises(ArtifactError, match="does not fit its model") as caught:
            run_training(Linear.fresh(**changes), tmp_path)
        assert name in caught.value.got and caught.value.next_step
    with pytest.raises(ArtifactError, match="of another recipe"):
        run_training(Linear.fresh(mark="1"), tmp_path)


def test_what_could_not_be_saved_is_refused_before_the_first_step(tmp_path):
    other = nn.Linear(3, 1)
    training = Linear.fresh(optimizer=torch.optim.AdamW(other.parameters()))
    with pytest.raises(SpecError, match="parameters that are not the model's"):
        run_training(training, tmp_path)
    assert training.made == []


def test_an_optimizer_whose_state_is_no_tensor_is_refused(tmp_path):
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    optimizer.state[model.weight]["history"] = [1.0]
    with pytest.raises(SpecError, match="cannot be saved") as caught:
        run_training(Linear.fresh(model=model, optimizer=optimizer), tmp_path)
    assert "history of weight" in caught.value.where and not (tmp_path / FILE).exists()


def test_threads_of_torch_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_the_loop_knows_no_language_model():
    names = ("transformers", "sparsescope.training.data")
    code = f"import sys, sparsescope.training.loop; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
