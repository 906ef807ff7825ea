"""The architecture: who may import whom, and calls that nobody may make."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from importlinter.api import read_configuration
from importlinter.application.use_cases import lint_imports

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "sparsescope").rglob("*.py"), *(ROOT / "apps").rglob("*.py")])
PACKAGES = sorted(
    p.name for p in (ROOT / "sparsescope" / "analysis").iterdir() if (p / "__init__.py").is_file()
)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """Dotted names that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} has a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def found(wanted):
    """Places that import a module for which ``wanted(path, module)`` is true."""
    return [
        f"{name_of(path)}:{line} {module}"
        for path in FILES
        for module, line in imports(path)
        if wanted(path, module)
    ]


def within(module, *packages):
    return any(module == package or module.startswith(package + ".") for package in packages)


def test_there_is_something_to_look_at():
    assert len(FILES) > 60 and "activation_sparsity" in PACKAGES


def test_the_contracts_of_import_linter_hold(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert read_configuration("pyproject.toml")["contracts_options"], "no contract is declared"
    kept = lint_imports(config_filename="pyproject.toml", cache_dir=None)
    assert kept, capsys.readouterr().out


def test_only_the_bridge_imports_transformer_lens():
    assert not found(
        lambda path, module: (
            within(module, "transformer_lens") and name_of(path) != "sparsescope/models/bridge.py"
        )
    )


def test_only_kernels_import_compilers():
    assert not found(
        lambda path, module: within(module, "triton", "numba") and "sparsescope/kernels/" not in name_of(path)
    )


def test_only_the_runner_would_import_ray():
    assert not found(
        lambda path, module: within(module, "ray") and name_of(path) != "sparsescope/runner/engine.py"
    )


def test_analyses_do_not_import_each_other():
    def foreign(path, module):
        home = next((p for p in PACKAGES if f"sparsescope/analysis/{p}/" in name_of(path)), None)
        return home is not None and any(
            within(module, f"sparsescope.analysis.{p}") for p in PACKAGES if p != home
        )

    assert not found(foreign)


def test_figures_import_results_only():
    assert not found(
        lambda path, module: (
            "sparsescope/viz/" in name_of(path)
            and within(module, "sparsescope")
            and not within(module, "sparsescope.viz", "sparsescope.core", "sparsescope.errors")
        )
    )


def test_the_explorer_imports_no_model_and_no_computing():
    banned = ("torch", "transformers", "sparsescope.models", "sparsescope.activations", "sparsescope.runner")
    assert not found(lambda path, module: name_of(path).startswith("apps/") and within(module, *banned))


# Pickle and its relatives run code that comes with data.
BANNED_MODULES = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")


def test_nothing_imports_a_pickle():
    assert not found(lambda path, module: within(module, *BANNED_MODULES))


BANNED_KEYWORDS = {
    "shell": True,
    "trust_remote_code": True,
    "unsafe_allow_html": True,
    "allow_pickle": True,
    "weights_only": False,
}
BANNED_CALLS = {
    "torch.load",
    "os.system",
    "os.popen",
    "eval",
    "exec",
    "np.random.seed",
    "torch.manual_seed",
    "random.seed",
}


def banned(source, name):
    """Calls in a source text that nobody may make."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in BANNED_CALLS:
            yield f"{name}:{node.lineno} calls {ast.unparse(node.func)}"
        for keyword in node.keywords:
            if (
                keyword.arg in BANNED_KEYWORDS
                and getattr(keyword.value, "value", None) is BANNED_KEYWORDS[keyword.arg]
            ):
                yield f"{name}:{node.lineno} sets {keyword.arg}"


def test_no_file_makes_a_banned_call():
    assert not [place for path in FILES for place in banned(path.read_text(), name_of(path))]


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "subprocess.run(x, shell=True)",
        "st.html(x, unsafe_allow_html=True)",
        "f(weights_only=False)",
    ],
)
def test_a_banned_call_would_be_found(line):
    assert list(banned(f"def f():\n    {line}", "f.py"))


def test_every_file_says_what_it_is_and_stays_small():
    for path in FILES:
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"
        assert len(text.splitlines()) <= 500, f"{name_of(path)} is too long"
        assert not [w for w in ("TO" + "DO", "FIX" + "ME", "XX" + "X") if w in text], (
            f"{name_of(path)} is not finished"
        )
