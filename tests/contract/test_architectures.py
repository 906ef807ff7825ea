"""Every text model type of transformers that builds small, held to what the library says of it.

``EXPECTED`` below is the table of all refusals. Each check either finds that library and model agree, or that
the library refuses the type with the words of the table; there is no third way. A new check is one function
in ``CHECKS``: it gets the type and its subject, and raises SubjectError only where the library does.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsescope as ss
from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument
from sparsescope.errors import SubjectError
from sparsescope.models import Subject
from sparsescope.models.structure.roles import is_linear

_FILE = Path(__file__).parents[1] / "fixtures" / "architectures.py"
_SPEC = importlib.util.spec_from_file_location("architectures", _FILE)
architectures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(architectures)
model_types = architectures.model_types

IDS = torch.arange(26).reshape(2, 13) * 7 % 90 + 3
EXACT = 1e-4

NO_BLOCKS = "no list of transformer blocks"
NO_MLP = "no MLP was found"
UNKNOWN = "known neither to us nor to TransformerLens"
LEFT, RIGHT = "padding on the left changes", "padding on the right changes"
STREAMS = "several streams beside each other"
WIDTH = "another width than its site"
ROWS = "the model pads inside"

# type -> check -> words of the refusal
EXPECTED: dict[str, dict[str, str]] = {
    "albert": {"wrap": NO_BLOCKS},
    "convbert": {"takes_left_padding": LEFT, "takes_right_padding": RIGHT},
    "cpmant": {"wrap": UNKNOWN},
    "ctrl": {"wrap": UNKNOWN},
    "deepseek_v4": {"is_read_once": STREAMS},
    "falcon_mamba": {"wrap": NO_MLP},
    "flaubert": {"wrap": UNKNOWN},
    "fnet": {"takes_left_padding": LEFT, "takes_right_padding": RIGHT},
    "funnel": {"wrap": NO_BLOCKS},
    "gemma3n_text": {"is_read_once": STREAMS},
    "hrm_text": {"wrap": NO_BLOCKS},
    "hy_v4": {"is_read_once": STREAMS},
    "ibert": {"is_read_once": "something else than a tensor"},
    "jetmoe": {"wrap": NO_MLP},
    "longcat_flash": {"wrap": NO_BLOCKS},
    "longformer": {"is_read_once": ROWS, "has_edits_that_act": ROWS},
    "mamba": {"wrap": NO_MLP},
    "mamba2": {"wrap": NO_MLP},
    "mobilebert": {"wrap": UNKNOWN},
    "modernbert": {"wrap": UNKNOWN},
    "modernbert-decoder": {"is_read_once": WIDTH},
    "nemotron_h": {"wrap": NO_MLP},
    "nystromformer": {"takes_left_padding": LEFT, "takes_right_padding": RIGHT},
    "qwen4_exp_text": {"is_read_once": WIDTH},
    "recurrent_gemma": {"wrap": NO_MLP},
    "roformer": {"takes_left_padding": LEFT},
    "rwkv": {"wrap": NO_MLP},
    "squeezebert": {"wrap": UNKNOWN},
    "trocr": {"takes_left_padding": LEFT},
    "xlm": {"wrap": UNKNOWN},
    "xlnet": {"wrap": UNKNOWN},
    "xlstm": {"wrap": UNKNOWN},
    "yoso": {"takes_left_padding": LEFT, "takes_right_padding": RIGHT},
    "zamba2": {"wrap": NO_MLP},
    "zaya": {"is_read_once": WIDTH},
}


@lru_cache(maxsize=1)
def wrapped(name: str) -> Subject | SubjectError:
    """The subject of a type, or why the library refuses the type."""
    try:
        return ss.wrap(architectures.build(name), id=name)
    except SubjectError as error:
        return error


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


# --- the checks: (type, subject) -> None


def is_read_once(name: str, subject: Subject) -> None:
    """Every site is visited once a pass, and dense ones have one vector for each token."""
    seen: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}
    sites = subject.sites("blocks.*.*")

    def visit(site: Any, tensor: torch.Tensor, rows: Any) -> None:
        seen[site.name] += 1
        if rows is None:
            shapes[site.name] = tuple(tensor.shape)

    with ss.capture(subject, _text(), "blocks.*.*") as source:
        assert [len(batch.token_ids) for batch in source] == [IDS.numel()]
    with subject.attach(sites, visit):
        subject.forward(IDS)
    dense = {site.name: (*IDS.shape, site.width) for site in sites if site.kind != "experts"}
    for expert in set(seen) - set(dense):
        assert seen[expert] == 1, expert
    assert {key: seen[key] for key in dense} == dict.fromkeys(dense, 1)
    assert shapes == dense


def _text() -> TokenizedCorpus:
    """The ids as one document of two windows."""
    document = TokenizedDocument(0, "ids", "ids", IDS.reshape(-1).numpy().astype("int32"), True)
    provenance: dict[str, Any] = {"domains": {"ids": {}}}
    return TokenizedCorpus("ids", (document,), ("ids",), IDS.shape[1], (), (), 1, "", "", provenance)


def takes_left_padding(name: str, subject: Subject) -> None:
    """A row that is padded on the left gives what it gives alone."""
    _padded(subject, slice(4, None))


def takes_right_padding(name: str, subject: Subject) -> None:
    """A row that is padded on the right gives what it gives alone."""
    _padded(subject, slice(0, 9))


def _padded(subject: Subject, real: slice) -> None:
    short = IDS[1:, :9]
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[1], mask[1] = 1, 0
    ids[1, real], mask[1, real] = short[0], 1
    together = subject.forward(ids, mask)
    assert relative(subject.forward(short), together[1:, real]) <= EXACT
    assert relative(subject.forward(IDS[:1]), together[:1]) <= EXACT


def has_the_causality_it_says(name: str, subject: Subject) -> None:
    """The prefix of a row gives what the row gives there if, and only if, the subject is called causal."""
    switch = subject.mask_arguments(subject.backbone, IDS, None)
    with torch.no_grad():
        whole, prefix = (
            subject.backbone(input_ids=ids, **switch).last_hidden_state for ids in (IDS, IDS[:, :6])
        )
    found = relative(whole[:, :6], prefix)
    assert ("causal" in subject.capabilities) == (found <= EXACT), f"{name}: {found}"
    assert ("causal" in subject.capabilities) != ("encoder" in subject.capabilities)


def has_every_matrix_covered_or_named(name: str, subject: Subject) -> None:
    """A matrix of a block has a role, or its name is in a note."""
    covered = {
        f"{site.module_path}.{site.parameter}" for site in subject.parameter_sites("weight:blocks.*.*")
    }
    notes = " ".join(sentence for _, sentence in subject.notes)
    named = set(re.findall(r"[\w*.]*\w", notes))
    for block in subject.blocks:
        for key, parameter in subject.model.get_submodule(block.path).named_parameters():
            if parameter.ndim >= 2 and f"{block.path}.{key}" not in covered:
                assert re.sub(r"\.\d+(?=\.|$)", ".*", key) in named, key


def runs_at_its_context(name: str, subject: Subject) -> None:
    """The longest window that is allowed can be run."""
    limit = subject.max_positions
    if limit is not None and limit <= 100:
        subject.forward((torch.arange(limit) * 7 % 90 + 3)[None])


def has_edits_that_act(name: str, subject: Subject) -> None:
    """Hidden layers that are all zero change what the model gives."""
    sites = subject.hidden_sites()
    if not sites:
        return
    with subject.edit(sites, lambda site, tensor, rows=None: torch.zeros_like(tensor)):
        without = subject.forward(IDS)
    assert relative(subject.forward(IDS), without) > 1e-6


def applies_the_matrices_that_are_read(name: str, subject: Subject) -> None:
    """The output of a linear module is its input times the matrix that is read, and its bias."""
    for site in subject.parameter_sites("weight:blocks.*.*"):
        weight, module = subject.parameter(site), subject.model.get_submodule(site.module_path)
        assert tuple(weight.shape) == site.shape
        if site.expert is not None or not is_linear(module) or "router" in site.role:
            continue
        x = torch.randn(1, 5, weight.shape[1], generator=torch.Generator().manual_seed(1))
        rows = slice(None) if site.rows is None else slice(*site.rows)
        with torch.no_grad():
            outputs = [module(given) for given in (x, torch.zeros_like(x))]
        found, bias = (out[0] if isinstance(out, tuple) else out for out in outputs)
        found, bias = found[..., rows], bias[..., rows]
        assert relative(found, x @ weight.T + bias) <= EXACT, site.name


CHECKS: tuple[Callable[[str, Subject], None], ...] = (
    is_read_once,
    takes_left_padding,
    takes_right_padding,
    has_the_causality_it_says,
    has_every_matrix_covered_or_named,
    runs_at_its_context,
    has_edits_that_act,
    applies_the_matrices_that_are_read,
)
# Of a type that cannot be wrapped there is nothing more to ask.
CASES = [
    (name, check)
    for name in model_types()
    for check in (CHECKS[:1] if "wrap" in EXPECTED.get(name, {}) else CHECKS)
]


@pytest.mark.parametrize(("name", "check"), CASES, ids=[f"{name}-{check.__name__}" for name, check in CASES])
def test_library_and_model_agree_or_the_library_refuses(name: str, check: Callable[..., None]) -> None:
    subject = wrapped(name)
    expected = EXPECTED.get(name, {})
    words = expected.get("wrap") or expected.get(check.__name__)
    if words is None:
        assert isinstance(subject, Subject), subject
        check(name, subject)
        return
    with pytest.raises(SubjectError, match=re.escape(words)):
        if isinstance(subject, SubjectError):
            raise subject
        check(name, subject)


def test_the_table_has_many_types_and_no_row_too_many() -> None:
    supported = [name for name in model_types() if "wrap" not in EXPECTED.get(name, {})]
    assert len(supported) >= 100
    assert set(EXPECTED) <= set(model_types())
    checks = {check.__name__ for check in CHECKS}
    assert all(row and set(row) <= checks | {"wrap"} for row in EXPECTED.values())
