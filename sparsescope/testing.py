"""Contract suites for plug-ins: call them from your own tests.

Each ``check_*`` raises ``AssertionError`` with what is wrong. They are what the built-in parts are held to::

    from sparsescope.testing import check_analysis
    def test_my_analysis():
        texts = ss.corpus([f"text {i} ..." for i in range(4)], context=64)
        check_analysis(MY_ANALYSIS, ss.load("random-llama"), texts)
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sparsescope.activations.accumulators import Accumulator
    from sparsescope.activations.capture import ActivationBatch, ActivationSource
    from sparsescope.activations.corpus import Corpus
    from sparsescope.core.registry import Analysis
    from sparsescope.core.result import Result
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.subject import Subject
    from sparsescope.models.variants import VariantKind
    from sparsescope.viz.panel import Panel


_DESCRIBE = (
    "call sparsescope.viz.figure.describe(figure, title=..., subtitle=..., alt=...), which sets title and alt"
)


def check_subject(subject: Subject) -> None:
    """Check that reading a subject leaves it bit-identical, also after an exception and an interrupt."""
    import torch

    from sparsescope.models.doctor import count_hooks, sample_ids
    from sparsescope.models.structure.sites import attach

    ids = sample_ids(subject)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    hooks, output = count_hooks(subject.model), subject.forward(ids).clone()
    sites = [site for site in subject.sites("blocks.*.*") if site.kind != "experts"]
    for failure in (None, RuntimeError, KeyboardInterrupt):

        def callback(
            site: Any, tensor: Any, rows: Any, failure: type[BaseException] | None = failure
        ) -> None:
            assert tensor.shape[-1] == site.width, f"{site.name} is {tensor.shape[-1]} wide, not {site.width}"
            if failure is not None and site.layer == subject.n_layers - 1:
                raise failure("on purpose")

        try:
            with attach(subject.model, sites, callback):
                assert torch.equal(subject.forward(ids), output), "hooks changed the output"
        except (RuntimeError, KeyboardInterrupt) as error:
            assert failure is not None and isinstance(error, failure), f"capture failed: {error}"
        assert count_hooks(subject.model) == hooks, "hooks were left behind"
    after = subject.model.state_dict()
    assert list(after) == list(before), "names of parameters changed"
    assert all(torch.equal(after[name], before[name]) for name in before), "parameters changed"
    assert torch.equal(subject.forward(ids), output), "the output changed"


def check_source(source: ActivationSource) -> None:
    """Check that a source gives the same batches every time and from any place on, as many as it says."""
    whole = [_copied(batch) for batch in source]
    assert [batch["index"] for batch in whole] == list(range(source.n_batches)), (
        "batches are not numbered from 0"
    )
    assert sum(len(batch["token_ids"]) for batch in whole) == source.n_tokens, (
        "another number of tokens than it says"
    )
    names = [site.name for site in source.sites]
    for start in sorted({0, 1, len(whole) // 2, len(whole) - 1, len(whole)}):
        rest = [_copied(batch) for batch in source.batches(start)]
        assert len(rest) == max(len(whole) - start, 0), f"from batch {start} on: {len(rest)} batches"
        for batch, other in zip(whole[start:], rest, strict=True):
            assert sorted(batch["values"]) == sorted(names), f"batch {batch['index']} has other sites"
            for key, value in batch.items():
                np.testing.assert_equal(
                    other[key], value, err_msg=f"{key} of batch {batch['index']}, read from {start} on"
                )
    assert json.loads(json.dumps(source.fingerprint)) == source.fingerprint, (
        "the fingerprint does not survive JSON"
    )


def _copied(batch: ActivationBatch) -> dict[str, Any]:
    """What a batch holds; its memory is used again."""
    values = {name: value.float().cpu().numpy().copy() for name, value in batch.values.items()}
    found = {
        name: getattr(batch, name)
        for name in ("index", "document", "domain", "token_ids", "positions", "rows")
    }
    return {**found, "values": values}


def check_variant(kind: VariantKind, subject: Subject, **params: Any) -> Subject:
    """Check a registered kind of variant on a subject and return what it made.

    The subject stays as it is; made twice the variant is the same; its name means the same variant; where the
    model computes something else, and no weights say so, the variant says that it adds something.

    Args:
        kind: The kind.
        subject: What the variant is made of.
        **params: Parameters of the kind.
    """
    import torch

    from sparsescope.models.doctor import count_hooks, sample_ids
    from sparsescope.models.variants import make_variant, read_name, registered_variants

    assert registered_variants().get(kind.name) is kind, f"{kind.name} is not registered"
    ids = sample_ids(subject)
    before = subject.identity, count_hooks(subject.model), subject.forward(ids).clone()
    made, again = (make_variant(subject, kind.name, **params) for _ in range(2))
    after = subject.identity, count_hooks(subject.model)
    assert after == before[:2] and torch.equal(subject.forward(ids), before[2]), "the subject was changed"
    assert made.variant is not None and made.variant.parent == before[0].as_parent(), "it says another parent"
    assert made.identity == again.identity == made.copy().identity, "made again, or copied, it is another"
    asked, bare = read_name(made.id)
    assert asked[0].kind is kind and bare == read_name(subject.id)[1], (
        f"its name {made.id!r} does not name it"
    )
    assert asked[0].params.model_dump(mode="json") == made.variant.parameters, (
        f"{made.id!r} means other parameters"
    )
    if made.identity.weight_hash == before[0].weight_hash and not torch.equal(made.forward(ids), before[2]):
        assert made.variant.adds, (
            "it computes something else with the same weights, and does not say what it adds"
        )
    assert not made.unstorable, f"it does not say that it adds this: {made.unstorable[0]}"
    return made


def check_accumulator(make: Callable[[], Accumulator], batches: Sequence[ActivationBatch]) -> None:
    """Check the laws of an accumulator on a stream of batches of at least two documents.

    Any split at a document boundary gives, merged in order, the state of the whole stream: integers
    bit for bit, floats to 1e-12 relative; merged in the other order, its totals; a saved and restored
    state goes on exactly.
    """
    from sparsescope.activations.accumulators import check_methods
    from sparsescope.core.named_code import Owner

    documents = list(dict.fromkeys(batch.document for batch in batches))
    assert len(documents) >= 2, "give at least two documents"
    with _declared():
        made = make()
        check_methods(made, Owner("this check", "Add an analysis"), type(made).__module__)
    whole = _fed(make, batches)
    for cut in range(1, len(documents)):
        first = [batch for batch in batches if batch.document in documents[:cut]]
        second = [batch for batch in batches if batch.document in documents[cut:]]
        _same_state(_fed(make, first).merge(_fed(make, second)), whole, f"split after {cut} documents")
        turned = _fed(make, second).merge(_fed(make, first))
        turned.finish()
        whole.finish()
        # Documents may stand in another order, so arrays are compared by their totals.
        for name, array in whole.state()[0].items():
            total, other = array.sum(), turned.state()[0][name].sum()
            np.testing.assert_allclose(other, total, rtol=1e-9, err_msg=f"merged in the other order: {name}")
    half = len(batches) // 2
    begun = _fed(make, batches[:half])
    resumed = make()
    resumed.restore(*_through_json(begun.state()))
    for batch in batches[half:]:
        resumed.update(batch)
    _same_state(resumed, whole, "restored state")


def check_analysis(
    record: Analysis, subject: Subject | CheckpointSeries, corpus: Corpus | None = None, **more: Any
) -> Result:
    """Check a registered analysis end to end and return its result.

    Runs twice and compares; stores, reopens and compares; draws every view, also of every preset; asks for
    definitions and unknown parameters.

    Args:
        record: The analysis.
        subject: A model, or a series of checkpoints for an analysis of series.
        corpus: Text; None for an analysis that reads none.
        **more: Inputs of further roles.
    """
    from sparsescope.core.named_code import function_of, module_of
    from sparsescope.core.registry import find_record
    from sparsescope.core.run_store import Store
    from sparsescope.errors import SpecError
    from sparsescope.runner.run import run

    assert find_record(record.name) is record, f"{record.name} is not registered"
    with _declared():  # before minutes of work
        record.compute_module()
        for view in record.views:
            record.view_function(view)
        if record.statements:
            module = module_of(record.statements, record.owner, "statements")
            function_of(module, "statements(result)", record.owner, "statements")
    with tempfile.TemporaryDirectory() as folder:
        result = run(record.name, subject, corpus, store=folder, **more)
        stored = Store(folder).open(str(result.run_id))
        assert [v.status for v in Store(folder).verify()] == ["ok"], "the stored run is damaged"
        _check_views(record, stored)  # here, because a view may read what the run left in the folder
        for preset in record.presets:
            other = run(record.name, subject, corpus, store=folder, preset=preset, **more)
            assert other.provenance["preset"] == preset and other.run_id != result.run_id, (
                f"preset {preset} is no run of its own"
            )
            assert set(record.headline) <= set(other.scalars), (
                f"a headline scalar is missing from preset {preset}"
            )
            _check_views(record, other)
        for tensor in stored.tensors.values():
            _ = tensor.array  # read when first used
    again = run(record.name, subject, corpus, **more)
    if not record.measures_time:
        check_same_numbers(result, again)
    check_same_numbers(result, stored)
    for scalar in result.scalars.values():
        assert scalar.definition.strip(), f"scalar {scalar.name} has no definition"
    for name, columns in result.columns.items():
        assert list(result.tables[name].columns) == [column.name for column in columns], (
            f"columns of table {name}"
        )
        assert all(column.description.strip() for column in columns), (
            f"a column of table {name} has no description"
        )
    if record.tables:
        assert set(result.tables) <= set(record.tables), (
            f"not declared: {sorted(set(result.tables) - set(record.tables))}"
        )
    assert set(record.headline) <= set(result.scalars), "a headline scalar is missing"
    check_statements(stored)
    try:
        run(record.name, subject, corpus, no_such_parameter=1, **more)
    except SpecError:
        return result
    raise AssertionError("an unknown parameter was accepted")


@contextmanager
def _declared() -> Iterator[None]:
    """Turn the error of what a record declares, and does not have, into one of its contract."""
    from sparsescope.errors import SpecError

    try:
        yield
    except SpecError as error:
        raise AssertionError(str(error)) from error


def _check_views(record: Analysis, result: Result) -> None:
    """Check that every view of a result can be drawn; one whose declared table this result lacks is not
    shown.
    """
    there = [view for view in record.views if view.table in result.tables]
    for view in record.views:
        assert view in there or view.table in record.tables, (
            f"view {view.name} shows table {view.table}, which is not there"
        )
    assert there or not record.views, "the result has no table of any view"
    for view in there:
        for value in view.choices(result)[:3] or [None]:
            check_figure(record.draw(view.name, result, value), view.name)


def check_statements(result: Result) -> None:
    """Check what a result says: one to three sentences in words, each of a figure and
    numbers that are there.
    """
    from sparsescope.core.registry import find_record
    from sparsescope.core.statements import MOST, own_statements, statements_of

    record = find_record(result.analysis)
    with _declared():
        own = own_statements(result)
    said = statements_of(result)
    assert 1 <= len(said if own is None else own) <= MOST, (
        f"{record.name} says {len(said if own is None else own)} things, not 1 to {MOST}"
    )
    for statement in own or said:
        assert statement.text.strip().endswith("."), f"no sentence: {statement.text!r}"
        identifier = re.search(r"\b[a-z0-9]+_[a-z0-9_]+", statement.text)
        assert identifier is None, (
            f"an identifier, {identifier and identifier[0]}, stands where words belong: {statement.text!r}"
        )
        views = {"", *(view.name for view in record.views)}
        assert statement.view in views, f"there is no view {statement.view!r}: {statement.text!r}"
    named = {name for statement in said for name in statement.scalars}
    assert not named or named & set(result.scalars), f"it names no number that is there: {sorted(named)}"


def check_figure(figure: Any, name: str = "figure") -> None:
    """Check that a figure has a title, axis titles, alt text, valid JSON and only SVG traces; of a
    panel see ``check_panel``.
    """
    from sparsescope.viz.panel import Panel

    if isinstance(figure, Panel):
        check_panel(figure, name)
        return
    assert hasattr(figure, "to_json"), f"{name} is a {type(figure).__name__}, not a plotly Figure or a Panel"
    described = json.loads(figure.to_json())
    assert described["layout"].get("title", {}).get("text"), (
        f"{name} has no title: set layout.title.text, or {_DESCRIBE}"
    )
    meta = described["layout"].get("meta") or {}
    assert isinstance(meta, dict) and meta.get("alt"), (
        f'{name} has no alt text: set layout.meta["alt"], '
        f'figure.update_layout(meta={{"alt": "what is to be seen"}}), or {_DESCRIBE}'
    )
    webgl = sorted({trace["type"] for trace in described["data"] if "gl" in trace["type"]})
    assert not webgl, (
        f"{name} has WebGL traces: {', '.join(webgl)}; take those without gl, for example go.Scatter"
    )
    if described["data"]:
        for axis in ("xaxis", "yaxis"):
            titles = [
                v.get("title", {}).get("text") for k, v in described["layout"].items() if k.startswith(axis)
            ]
            assert any(titles), (
                f"{name} has no title on any {axis}: set layout.{axis}.title.text, "
                f'figure.update_{axis}es(title="quantity, unit")'
            )


def check_panel(panel: Panel, name: str = "panel") -> None:
    """Check that a panel has a title and alt text, that every mark says what it is, and that its page
    allows one script only.
    """
    assert panel.title.strip(), f"{name} has no title: give Panel(title=...)"
    assert panel.alt.strip(), f"{name} has no alt text: give Panel(alt=...)"
    tags = [tag for top in panel.body for tag in top]
    silent = [
        tag for tag in tags if "data-mark" in tag.attributes and not tag.attributes.get("title", "").strip()
    ]
    assert not silent, f"{name} has {len(silent)} marks that say nothing without the script"
    elements = Counter(re.findall(r"<([a-z]+)", panel.html()))
    expected = Counter(tag.name for tag in tags) + Counter(("div", "p", "b", "p"))
    assert elements == expected, f"{name} has elements out of its texts: {elements - expected}"
    assert panel.page().count("<script") == 1, f"{name} has a script of its own"


def check_same_numbers(a: Result, b: Result, *, rtol: float = 0.0) -> None:
    """Check that two results hold equal scalars, tables and tensors, NaN equal to NaN.

    Columns of the kind ``seconds`` are measured on the way and differ from run to run: they are left out.

    Args:
        a: One result.
        b: The other.
        rtol: Relative tolerance of floats; 0 asks for equal bits. Counts and texts are
            always compared exactly.
    """
    import pandas as pd

    assert list(a.scalars) == list(b.scalars), "other scalars"
    for name, scalar in a.scalars.items():
        other = b.scalars[name]
        np.testing.assert_allclose(scalar.value, other.value, rtol=rtol, atol=0, err_msg=f"scalar {name}")
        assert (scalar.interval is None) == (other.interval is None), f"scalar {name}: interval on one side"
        if scalar.interval is not None and other.interval is not None:
            ours, other_ends = ([i.low, i.high, i.n] for i in (scalar.interval, other.interval))
            np.testing.assert_allclose(
                ours, other_ends, rtol=rtol, atol=0, err_msg=f"interval of scalar {name}"
            )
    assert list(a.tables) == list(b.tables), "other tables"
    for name, frame in a.tables.items():
        close = {"rtol": rtol, "atol": 0} if rtol else {"check_exact": True}
        measured = [column.name for column in a.columns.get(name, ()) if column.kind == "seconds"]
        mine, theirs = (table.drop(columns=measured) for table in (frame, b.tables[name]))
        pd.testing.assert_frame_equal(mine, theirs, obj=f"table {name}", **close)
    assert list(a.tensors) == list(b.tensors), "other tensors"
    for name, tensor in a.tensors.items():
        np.testing.assert_allclose(
            tensor.array, b.tensors[name].array, rtol=rtol, atol=0, err_msg=f"tensor {name}"
        )


def _fed(make: Callable[[], Accumulator], batches: Sequence[ActivationBatch]) -> Accumulator:
    accumulator = make()
    for batch in batches:
        accumulator.update(batch)
    return accumulator


def _through_json(
    state: tuple[dict[str, np.ndarray], dict[str, Any]],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a state becomes on its way over a disk."""
    arrays, meta = state
    return {name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(meta))


def _same_state(a: Accumulator, b: Accumulator, what: str) -> None:
    """Compare finished states."""
    for accumulator in (a, b):
        accumulator.finish()
    mine, theirs = a.state()[0], b.state()[0]
    assert mine.keys() == theirs.keys(), f"{what}: other arrays"
    for name, array in mine.items():
        if np.issubdtype(array.dtype, np.integer):
            np.testing.assert_array_equal(array, theirs[name], err_msg=f"{what}: {name}")
        else:
            np.testing.assert_allclose(array, theirs[name], rtol=1e-12, err_msg=f"{what}: {name}")
