"""The explorer listens here only and asks nobody anything, however it is started; it never loads a model."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from sparsescope.errors import DependencyError, SpecError
from sparsescope.reporting import explorer


def test_the_command_starts_the_app_with_every_setting():
    command = explorer.command(8765)
    assert command[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert command[4].endswith("app.py")
    flags = list(zip(command[5::2], command[6::2], strict=True))
    assert ("--server.address", "127.0.0.1") in flags
    assert ("--server.port", "8765") in flags
    assert ("--browser.gatherUsageStats", "false") in flags
    assert ("--client.showErrorDetails", "none") in flags
    assert [value for name, value in flags if name == "--server.allowedHosts"] == ["127.0.0.1", "localhost"]


def test_the_file_beside_the_app_says_the_same():
    path = explorer.app().parent / ".streamlit" / "config.toml"
    sections = tomllib.loads(path.read_text())
    found = {}

    def walk(values, prefix):
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                found[f"{prefix}{name}"] = value

    walk(sections, "")

    def text(value):
        if isinstance(value, list):
            return tuple(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    assert {name: text(value) for name, value in found.items()} == explorer.SETTINGS


def test_streamlit_knows_every_setting():
    from streamlit import config

    for name in explorer.SETTINGS:
        assert config.get_where_defined(name) is not None


def test_home_is_handed_over_as_a_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explorer.environment("here")["SPARSESCOPE_HOME"] == str(tmp_path / "here")
    monkeypatch.setenv("SPARSESCOPE_HOME", str(tmp_path / "there"))
    assert explorer.environment()["SPARSESCOPE_HOME"] == str(tmp_path / "there")


@pytest.mark.parametrize("port", [0, 80, 70_000])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(SpecError, match="port"):
        explorer.command(port)


def test_a_missing_app_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(explorer, "__file__", str(tmp_path / "sparsescope" / "report" / "explorer.py"))
    with pytest.raises(DependencyError, match="not part of this installation"):
        explorer.app()


def test_an_installed_package_finds_its_own_copy(monkeypatch, tmp_path):
    package = tmp_path / "sparsescope"
    (package / "explorer").mkdir(parents=True)
    (package / "explorer" / "app.py").write_text("")
    monkeypatch.setattr(explorer, "__file__", str(package / "report" / "explorer.py"))
    assert explorer.app() == package / "explorer" / "app.py"


def test_reports_and_views_load_no_model_library():
    code = (
        "import sys\n"
        "import sparsescope.reporting.build, sparsescope.reporting.compare, sparsescope.reporting.explorer\n"
        "import sparsescope.analysis.activation_sparsity.views\n"
        "print(sorted({'torch', 'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_address_has_the_base_path_of_the_user():
    from streamlit import config

    before = config.get_option("server.baseUrlPath")
    try:
        config.set_option("server.baseUrlPath", "/lab/shown/")
        assert explorer.address(8600) == "http://127.0.0.1:8600/lab/shown/"
        assert explorer.address(8600, "x-1") == "http://127.0.0.1:8600/lab/shown/result?run=x-1"
    finally:
        config.set_option("server.baseUrlPath", before)
    assert explorer.address(8600) == "http://127.0.0.1:8600/"
