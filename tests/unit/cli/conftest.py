"""The command line in this process, and a folder with two stored runs that the tests of this folder share."""

from __future__ import annotations

import json

import pytest

TEXT = ("--corpus", "python-docs", "--tokens", "400", "--context", "64", "--set", "resamples=100")
RUN = ("run", "activation_sparsity", *TEXT)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models are tiny: threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(capsys):
    """Function that runs a command line; returns exit code, standard output (parsed with --json)
    and standard error.
    """
    from sparsescope.cli import app
    from sparsescope.cli.exit_codes import execute

    def call(*words):
        capsys.readouterr()
        code = execute(app, [str(word) for word in words])
        captured = capsys.readouterr()
        return (
            code,
            json.loads(captured.out) if "--json" in words and captured.out else captured.out,
            captured.err,
        )

    return call


@pytest.fixture
def only(monkeypatch):
    """Function that leaves the analyses with these names: of a report that is made to see something
    else, the others would take most of the time.
    """
    from sparsescope.core import registry

    whole = registry.analyses()

    def choose(*names):
        known = registry.Registry()
        for name in names:
            known.add(whole.get(name))
        monkeypatch.setattr(registry, "analyses", lambda: known)

    return choose


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folder and ids of a run of glassllm and one of random-llama. Do not write there."""
    from sparsescope.cli import app
    from sparsescope.cli.exit_codes import execute
    from sparsescope.core.run_store import Store

    folder = tmp_path_factory.mktemp("cli") / "runs"
    ids = []
    for subject in ("glassllm", "random-llama"):
        assert execute(app, [*RUN, "--subject", subject, "--home", str(folder)]) == 0
        ids += [name for name in Store(folder).run_ids() if name not in ids]
    return folder, *ids


@pytest.fixture
def home(runs, monkeypatch):
    """The shared folder as $SPARSESCOPE_HOME."""
    monkeypatch.setenv("SPARSESCOPE_HOME", str(runs[0]))
    return runs[0]


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    """A folder of runs that does not exist yet, as $SPARSESCOPE_HOME."""
    monkeypatch.setenv("SPARSESCOPE_HOME", str(tmp_path / "runs"))
    return tmp_path / "runs"
