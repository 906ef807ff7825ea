"""Variants: how they are named, what they say about themselves, and which of them are runs of their own."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch

from sparsescope.core.spec import Params, Spec
from sparsescope.core.variant import Variant
from sparsescope.errors import DependencyError, SpecError, SubjectError
from sparsescope.models import Subject, load, make_variant, registered_variants, wrap
from sparsescope.models.catalog import resolve
from sparsescope.models.variants import ENTRY_POINT_GROUP, VariantKind, read_name, split_name
from sparsescope.testing import check_variant

PLUGIN = """
import hashlib
from sparsescope.core.spec import Params
from sparsescope.models.structure.roles import submodule
from sparsescope.models.variants import VariantKind

class ClippedParams(Params):
    most: float = 1.0
    layers: str = "all"
    hard: bool = False

def make(subject, params):
    clipped = subject.copy()
    for site in clipped.sites("blocks.*.mlp.hook_out"):
        if params.layers in ("all", str(site.layer)):
            module = submodule(clipped.model, site.module_path)
            module.register_forward_hook(
                lambda module, inputs, output: output.clamp(-params.most, params.most)
            )
    adds = hashlib.sha256(f"{params.most} {params.layers}".encode()).hexdigest()
    return clipped.with_variant("clipped", params.model_dump(mode="json"), of=subject, adds=adds)

def forgets(subject, params):
    return subject.copy()

CLIPPED = VariantKind("clipped", "a toy", ClippedParams, make)
FORGETS = VariantKind("forgets", "a toy", Params, forgets)
OTHER = VariantKind("another", "a toy", Params, forgets)
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with kinds of variants, some of them broken, in a folder that is also the working folder."""
    info = tmp_path / "toy_variants-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-variants\nVersion: 1.0\n")
    points = {
        "clipped": "CLIPPED",
        "forgets": "FORGETS",
        "renamed": "OTHER",
        "missing": "NOWHERE",
        "none": "make",
        "shuffled": "OTHER",
    }
    lines = [f"{name} = toy_variants_module:{value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n" + "\n".join(lines))
    (tmp_path / "toy_variants_module.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digest(subject: Subject) -> str:
    return Spec(analysis="a", version="1", params={}, subject=subject.identity.as_dict()).digest


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "prefix", "bare"),
    [
        ("smollm2-135m", "", "smollm2-135m"),
        ("shuffled:smollm2-135m@12", "shuffled:", "smollm2-135m@12"),
        ("a1@0.5:b2@x=1,y=2:org/model@main", "a1@0.5:b2@x=1,y=2:", "org/model@main"),
        ("pruned@./masks:./folder@step-3", "pruned@./masks:", "./folder@step-3"),
        ("shuffled:", "shuffled:", ""),
        ("c:\\models\\x", "", "c:\\models\\x"),
        ("C:/models/x", "", "C:/models/x"),
        ("https://example.org/model", "", "https://example.org/model"),
        ("shuffled:/data/a:b/model", "shuffled:", "/data/a:b/model"),
        ("Shuffled:x", "", "Shuffled:x"),
    ],
)
def test_a_name_is_split_by_its_form(text: str, prefix: str, bare: str) -> None:
    assert split_name(text) == (prefix, bare)


def seeds(text: str) -> tuple[list[tuple[str, Any]], str]:
    asked, bare = read_name(text)
    return [(request.kind.name, request.params.model_dump()) for request in asked], bare


@pytest.mark.parametrize(
    ("text", "seed", "bare"),
    [
        ("shuffled:smollm2-135m", 0, "smollm2-135m"),
        ("shuffled:smollm2-135m@12", 12, "smollm2-135m"),
        ("shuffled@12:smollm2-135m", 12, "smollm2-135m"),
        ("shuffled@seed=12:smollm2-135m@7", 12, "smollm2-135m@7"),
        ("shuffled:organization/model@main", 0, "organization/model@main"),
        ("shuffled:organization/model@v2@7", 7, "organization/model@v2"),
        ("shuffled:./folder@3", 3, "./folder"),
    ],
)
def test_a_last_number_is_the_seed_of_a_control(text: str, seed: int, bare: str) -> None:
    assert seeds(text) == ([("shuffled", {"seed": seed})], bare)


def test_variants_nest_from_the_outside_in(toys: Path) -> None:
    assert seeds("clipped@0.5,hard=true:shuffled:clipped@layers=1:random-opt@3") == (
        [
            ("clipped", {"most": 0.5, "layers": "all", "hard": True}),
            ("shuffled", {"seed": 3}),
            ("clipped", {"most": 1.0, "layers": "1", "hard": False}),
        ],
        "random-opt",
    )
    made = load("clipped@0.25:shuffled@2:random-llama@5")
    assert (made.id, made.revision) == ("clipped@0.25:shuffled:random-llama@2", "seed-5")
    assert made.unchanged and made.source == "clipped@0.25:shuffled@2:random-llama@5"
    assert made.variant is not None
    assert [one.text for one in made.variant.chain] == [
        "clipped(most=0.25,layers=all,hard=false) of shuffled:random-llama@2",
        "shuffled(seed=2) of random-llama",
    ]
    assert load(made.id, revision=made.revision).identity == made.identity


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        (
            "shufled:random-opt",
            SubjectError,
            ["unknown kind of variant 'shufled'", "did you mean 'shuffled'"],
        ),
        ("shuffled@:random-opt", SpecError, ["cannot be read", "shuffled@0:NAME"]),
        ("shuffled@x:random-opt", SpecError, ["'seed' is not valid", "variant shuffled"]),
        ("shuffled@-1:random-opt", SpecError, ["'seed' is not valid"]),
        ("shuffled@1,2:random-opt", SpecError, ["cannot be read", "the first of seed"]),
        ("shuffled@1,seed=2:random-opt", SpecError, ["cannot be read"]),
        ("shuffled@sead=1:random-opt", SpecError, ["unknown parameter 'sead'", "did you mean 'seed'"]),
        ("forgets@1:random-opt", SpecError, ["cannot be read", "no arguments"]),
        ("shuffled:", SubjectError, ["a variant is made of a subject"]),
        ("shuffled: ", SubjectError, ["a variant is made of a subject"]),
        ("shuffled:@3", SubjectError, ["a variant is made of a subject"]),
        ("shuffled:shuffled:random-opt", SubjectError, ["a control is made of a subject"]),
        ("shuffled@1:shuffled@2:random-opt", SubjectError, ["a control is made of a subject"]),
        ("shuffled:random-optt", SubjectError, ["unknown subject", "random-opt"]),
        ("forgets:random-opt", SpecError, ["did not declare what it made", "with_variant('forgets'"]),
        ("missing:random-opt", DependencyError, ["missing = toy_variants_module:NOWHERE", "uninstall"]),
        ("none:random-opt", DependencyError, ["not a VariantKind"]),
        ("renamed:random-opt", DependencyError, ["'another'"]),
        ("https://example.org/x", SubjectError, ["unknown subject"]),
    ],
)
def test_what_is_wrong_with_a_name_is_said(
    toys: Path, name: str, error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        load(name)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_existing_place_is_no_variant(toys: Path) -> None:
    for name in ("shuffled:random-opt", "shuffled:x"):
        (toys / name).mkdir()
    for name, revision in (
        ("shuffled:random-opt", None),
        ("shuffled:random-opt@3", "3"),
        ("shuffled:x@step-3", "step-3"),
    ):
        reference = resolve(name)
        assert (reference.kind, reference.request.revision, reference.variants) == ("folder", revision, ())
    reference = resolve("clipped:shuffled:x")
    assert (reference.kind, reference.request.name, len(reference.variants)) == ("folder", "shuffled:x", 1)
    (toys / "clipped").mkdir()
    assert len(resolve("clipped@0.5:random-opt").variants) == 1


def test_what_a_variant_is_made_of_is_resolved_like_any_other() -> None:
    reference = resolve("shuffled:organization/model@v1.0@2")
    assert (reference.kind, reference.request.name, reference.request.revision) == (
        "hub",
        "organization/model",
        "v1.0",
    )
    assert resolve("random-opt").variants == ()


def test_broken_kinds_are_listed_and_built_in_ones_stay(toys: Path) -> None:
    kinds = registered_variants()
    assert list(kinds) == [
        "shuffled",
        "shuffled_router",
        "sparsified",
        "clipped",
        "forgets",
        "renamed",
        "missing",
        "none",
    ]
    assert kinds["missing"].summary.startswith("cannot be imported: ")
    assert kinds["shuffled"].make == "sparsescope.models.controls:make_control"
    assert (
        VariantKind("needs", "", type("P", (Params,), {"__annotations__": {"a": int}}), "").example
        == "needs@A:NAME"
    )


# -- identity --------------------------------------------------------------------------------------


def test_kinds_keep_the_contract(toys: Path) -> None:
    subject = load("random-llama")
    check_variant(registered_variants()["shuffled"], subject, seed=3)
    made = check_variant(registered_variants()["clipped"], subject, most=1e-4, layers="1", hard=True)
    assert made.id == "clipped@most=0.0001,layers=1,hard=true:random-llama"


def test_what_is_beyond_the_weights_joins_the_digest(toys: Path) -> None:
    subject = load("random-llama")
    half, quarter = (make_variant(subject, "clipped", most=most) for most in (1e-3, 1e-4))
    assert half.identity.weight_hash == subject.identity.weight_hash
    assert half.identity.config_hash == quarter.identity.config_hash
    assert len({digest(subject), digest(half), digest(quarter)}) == 3
    of_half, of_quarter = (make_variant(parent, "shuffled") for parent in (half, quarter))
    assert of_half.identity.weight_hash == of_quarter.identity.weight_hash
    assert digest(of_half) != digest(of_quarter), "the parent's thresholds are still in the model"
    ids = [[1, 2, 3, 4]]
    assert not torch.equal(of_half.forward(ids), of_quarter.forward(ids))


def test_what_is_all_in_the_weights_is_the_run_of_these_weights() -> None:
    control = load("shuffled:random-opt@3")
    same = wrap(control.copy().model, control.tokenizer)
    assert control.identity.variant is not None and same.identity.variant is None
    facts, bare = control.identity.as_dict(), control.identity.as_dict()
    del bare["variant"]
    digests = {
        Spec(analysis="a", version="1", params={}, subject=subject).digest for subject in (facts, bare)
    }
    assert len(digests) == 1
    assert "variant" not in load("random-opt").identity.as_dict()
    assert digest(control) == digest(load("shuffled@3:random-opt")) != digest(load("shuffled:random-opt"))


def test_the_record_survives_json_and_a_malformed_one_is_refused(toys: Path) -> None:
    record = make_variant(make_variant(load("random-llama"), "clipped", most=0.5), "shuffled").variant
    assert record is not None
    assert (
        Variant.model_validate_json(record.model_dump_json())
        == record
        == Variant.model_validate(record.as_dict())
    )
    assert record.parent.variant is not None and record.parent.variant.parent.id == "random-llama"
    changes: list[dict[str, Any]] = [{"adds": 3}, {"more": 1}, {"parent": {}}]
    for wrong in ({}, [], "x", 3, *({**record.as_dict(), **change} for change in changes)):
        with pytest.raises(ValueError, match=r"variant.* is not valid"):
            Spec(analysis="a", version="1", params={}, subject={"variant": wrong})


def test_a_declaration_is_checked() -> None:
    subject = load("random-opt")
    made = subject.copy().with_variant("thinned", {"share": 0.5, "rows": (1, 2)}, of=subject)
    assert made.variant is not None and made.variant.parameters == {"share": 0.5, "rows": [1, 2]}
    assert made.id == "thinned@share=0.5,rows=[1, 2]:random-opt"
    assert made.copy("mine").variant == made.variant
    with pytest.raises(SpecError, match="a model of its own"):
        subject.with_variant("thinned", {}, of=subject)
    for wrong in (torch.ones(1), float("nan")):
        with pytest.raises(SpecError, match="JSON values"):
            subject.copy().with_variant("thinned", {"x": wrong}, of=subject)


class _Clip:
    def __call__(self, module: Any, inputs: Any, output: Any) -> Any:
        return output.clamp(-1e-4, 1e-4)


def test_undeclared_hooks_and_methods_are_not_the_plain_model() -> None:
    plain = load("random-llama")

    def replace_forward(mlp: Any) -> None:
        original = mlp.forward

        def forward(self: Any, hidden: Any) -> Any:
            return original(hidden).clamp(-1e-4, 1e-4)

        mlp.forward = MethodType(forward, mlp)

    changes: dict[str, Any] = {
        "hook": lambda mlp: mlp.register_forward_hook(
            lambda module, inputs, output: output.clamp(-1e-4, 1e-4)
        ),
        "object": lambda mlp: mlp.register_forward_hook(_Clip()),
        "input": lambda mlp: mlp.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,)),
        "method": replace_forward,
    }
    hashes = {"plain": plain.identity.config_hash}
    for name, change in changes.items():
        changed = load("random-llama")
        assert changed.unchanged
        change(changed.model.model.layers[1].mlp)
        assert not torch.equal(changed.forward([[1, 2, 3]]), plain.forward([[1, 2, 3]])), name
        assert not changed.unchanged, name
        hashes[name] = changed.identity.config_hash
    assert len(set(hashes.values())) == len(hashes)


def test_hooks_of_a_pass_are_no_change() -> None:
    subject = load("random-llama")
    before = subject.identity
    with subject.attach(subject.sites("blocks.*.mlp.hook_post"), lambda *_: None):
        assert subject.identity == before


def test_a_variant_with_hooks_says_what_it_adds() -> None:
    subject = load("random-llama")
    changed = subject.copy()
    changed.model.model.layers[1].mlp.register_forward_hook(_Clip())
    with pytest.raises(SpecError, match="must say what it adds"):
        changed.with_variant("clipped", {"to": 1e-4}, of=subject)
    one = changed.with_variant("clipped", {"to": 1e-4}, of=subject, adds="a")
    # its weights say what it did, its parent what the hooks do
    pruned = one.copy().with_variant("pruned", {}, of=one)
    assert pruned.variant is not None and [kind.kind for kind in pruned.variant.chain] == [
        "pruned",
        "clipped",
    ]
