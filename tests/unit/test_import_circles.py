"""No circle of imports at run time: neither of those at the top of modules nor of those within functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def modules(root):
    """Path of every module of the package ``sparsescope`` below a folder, by dotted name."""
    found = {}
    for path in sorted((root / "sparsescope").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(node):
    """Dotted names that a piece of code imports when it runs; what stands under
    ``if TYPE_CHECKING`` never does.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from imported(ast.Module([other], []))
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imported(child)


def graph(paths):
    """The modules that each module imports. ``from a import b`` imports the module a.b where
    there is one, else a.
    """
    found = {}
    for name, path in paths.items():
        wanted = imported(ast.parse(path.read_text(encoding="utf-8")))
        inside = {module if module in paths else module.rpartition(".")[0] for module in wanted}
        found[name] = inside & paths.keys() - {name}
    return found


def circles(edges):
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[-len(component) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in edges:
        if module not in index:
            visit(module)
    return found


def test_no_module_imports_itself_through_others():
    edges = graph(modules(ROOT))
    assert len(edges) > 150 and edges["sparsescope.models.catalog"] >= {"sparsescope.models.entries"}
    assert circles(edges) == []


@pytest.mark.parametrize(
    ("line", "circle"),
    [
        ("from sparsescope import a", True),
        ("def f():\n    from sparsescope.a import x", True),
        ("if TYPE_CHECKING:\n    from sparsescope.a import x", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import sparsescope.a", True),
    ],
)
def test_a_circle_would_be_found(line, circle, tmp_path):
    package = tmp_path / "sparsescope"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "a": "import sparsescope.b",
        "b": "from sparsescope.c import y",
        "c": line,
    }.items():
        (package / f"{name}.py").write_text(text)
    expected = [["sparsescope.a", "sparsescope.b", "sparsescope.c"]] if circle else []
    assert circles(graph(modules(tmp_path))) == expected
