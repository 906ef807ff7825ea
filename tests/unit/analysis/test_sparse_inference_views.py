"""Figures and sentences of sparse inference on hand-made results: numbers in, numbers out."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from sparsescope.analysis.sparse_inference import ANALYSIS
from sparsescope.analysis.sparse_inference.statements import TITLES, policy_words, slug, statements
from sparsescope.analysis.sparse_inference.views import parts
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.core.statements import headline_of, title_of
from sparsescope.testing import check_figure, check_statements
from sparsescope.viz import theme
from sparsescope.viz.panel import Panel

METHODS = ("TEAL", "WINA", "WINA as released", "WAS", "R-Sparse", "CATS", "auto")
NAMES = ("teal", "wina", "wina_released", "was", "rsparse", "cats", "auto")
COST = {
    "auto": 0.7,
    "TEAL": 1.2,
    "WINA": 1.0,
    "WAS": 1.05,
    "R-Sparse": 0.95,
    "CATS": 1.6,
    "TEAL, greedy": 1.1,
}
TARGETS = (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.65)
PREFIXES = ("all_sparse", "decode_only")
ROLES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.in", "mlp.out")
INPUTS = ("attn.in[q,k,v]", "attn.out[o]", "mlp.in[gate,in]", "mlp.out[out]")
RUNS = {
    "whole": {},
    "quick": {
        "methods": ("TEAL", "WINA", "auto"), "targets": (0.25, 0.5), "prefixes": PREFIXES[:1], "beside": (),
    },
    "one point": {"methods": ("TEAL",), "targets": (0.5,), "prefixes": ("decode_only",), "beside": ()},
    "without the reference": {"methods": ("CETT", "Top-p", "later"), "beside": ()},
}  # fmt: skip
HOSTILE = "<script>alert(1)</script> $x$ %{y} \u202eabc"


def kl_of(method, target):
    return COST.get(method, 1.0) * 0.9 * target**2.5


def interval(low, high):
    return Interval(low, high, 0.95, "paired document-cluster bootstrap", 40)


def point(method, prefix, target, kl, *, realised=None, loss=None):
    """A row of quality with intervals of ten percent."""
    loss = kl * 0.9 if loss is None else loss
    realised = target + 0.001 if realised is None else realised
    return {
        "method": method, "prefix": prefix, "target": target, "realised": realised,
        "realised_low": realised - 0.001, "realised_high": realised + 0.001,
        "mlp": target, "model": 0.8 * target,
        "kl": kl, "kl_low": 0.9 * kl, "kl_high": 1.1 * kl,
        "loss": loss, "loss_low": loss - 0.1 * abs(loss), "loss_high": loss + 0.1 * abs(loss),
        "perplexity": 20 * math.exp(loss), "agreement": 1 - target / 2, "agreement_low": 0.9 - target / 2,
        "agreement_high": 1 - target / 3, "accuracy": 0.4, "documents": 40, "tokens": 4000,
    }  # fmt: skip


def comparison(second, prefix, target, ratio, verdict="first is better", *, first="auto"):
    difference = ratio - 1
    return {
        "prefix": prefix, "target": target, "first": first, "second": second,
        "difference": difference, "low": difference - 0.1, "high": difference + 0.1,
        "ratio": ratio, "ratio_low": 0.9 * ratio, "ratio_high": 1.1 * ratio,
        "verdict": verdict, "documents": 40,
    }  # fmt: skip


def reach(method, prefix, tolerance, sparsity, censored="no"):
    return {
        "method": method, "prefix": prefix, "tolerance": tolerance, "sparsity": sparsity,
        "low": sparsity - 0.02, "high": sparsity + 0.02, "bracket": 0.05, "censored": censored,
        "documents": 40,
    }  # fmt: skip


def made(methods=METHODS, *, targets=TARGETS, prefixes=PREFIXES, beside=("TEAL, greedy",), leave_out=()):
    """A result like that of a run, without a model; tables in ``leave_out`` are not there."""
    result = Result("sparse_inference")
    names = [NAMES[METHODS.index(method)] for method in methods if method in METHODS]
    result.provenance = {
        "subject": {"id": "small"},
        "params": {
            "methods": names, "beside": ["teal+greedy"] if beside else [], "reference": "auto",
            "compare_at": [target for target in targets if target in (0.25, 0.4, 0.5, 0.65)],
            "detail_at": 0.5, "level": 0.95,
            "tolerances": [0.01, 0.05, 0.1],
        },
    }  # fmt: skip
    tables = {name: [] for name in ANALYSIS.tables}
    for prefix in prefixes:
        tables["quality"].append(point("dense", prefix, 0.0, 0.0, realised=0.0))
        for method in methods:
            limit = 0.4 if method == "CATS" else 1
            for target in (each for each in targets if each < limit):
                tables["quality"].append(point(method, prefix, target, kl_of(method, target)))
                tables["accounting"].append(account(method, prefix, target))
            for tolerance in (0.01, 0.05, 0.1):
                tables["usable_range"].append(
                    reach(method, prefix, tolerance, tolerance**0.4 / COST.get(method, 1))
                )
        for target in targets:
            for second in (name for name in methods if name != "auto" and "auto" in methods):
                ratio = 0.7 / COST.get(second, 1.0)
                tables["comparisons"].append(comparison(second, prefix, target, ratio))
            for method in methods:
                tables["divergence"].append(
                    {
                        "method": method, "prefix": prefix, "target": target,
                        "length": 20 / COST.get(method, 1), "low": 10.0, "high": 34.0,
                        "never": 0.25, "agreement": 0.5, "prompts": 16, "new": 64,
                    }
                )  # fmt: skip
    for name in beside:
        for target in result.provenance["params"]["compare_at"]:
            tables["quality"].append(point(name, prefixes[0], target, kl_of(name, target)))
            tables["accounting"].append(account(name, prefixes[0], target))
    detailed(tables, [method for method in methods if method in ("TEAL", "WINA", "auto")] or methods[:1])
    for name, table in tables.items():
        if table and name not in leave_out:
            result.add(name, table)
    scalars(result, methods, targets)
    return result


def account(method, prefix, target):
    adapters = 0.0 if method == "TEAL" else 1000.0 * (1 + target)
    return {
        "method": method, "prefix": prefix, "target": target, "block": target - 0.005, "model": 0.8 * target,
        "flops": 0.7 * target, "read": 1e6 * (1 - 0.8 * target), "adapters": adapters,
        "bound": 1 / (1 - 0.8 * target),
    }  # fmt: skip


def detailed(tables, methods):
    for number, method in enumerate(methods):
        for layer in range(5):
            for role in ROLES:
                tables["per_matrix"].append(
                    {
                        "layer": layer, "role": role, "matrix": f"weight:blocks.{layer}.{role}.weight",
                        "method": method, "sparsity": 0.5, "error": 0.02 + 0.01 * number + 0.001 * layer,
                        "diagonal": 0.05, "tokens": 512,
                    }
                )  # fmt: skip
            for place, role in enumerate(INPUTS if method != "WINA" else [f"{role}[x]" for role in ROLES]):
                density = 0.4 + 0.05 * place + 0.01 * layer
                tables["atlas"].append(
                    {
                        "method": method, "layer": layer, "role": role, "density": density, "spread": 0.05,
                        "reuse": density + 0.1, "reuse_by_chance": density + 0.02, "persistent": 0.01,
                        "never": 0.0, "tokens": 2048,
                    }
                )  # fmt: skip
        for role in INPUTS:
            for together in (1, 2, 4, 8, 16):
                tables["unions"].append(
                    {
                        "method": method, "role": role, "together": together, "union": 1 - 0.5**together,
                        "by_chance": 1 - 0.5**together, "independent": 1 - 0.5**together, "tokens": 2048,
                    }
                )  # fmt: skip
    for document in ("first", "second"):
        for position in range(30):
            tables["tokens"].append(
                {
                    "document": document, "position": position, "token_text": f" t{position}",
                    "kept": 0.4 + 0.01 * position, "kl": 0.1,
                }
            )  # fmt: skip


def scalars(result, methods, targets):
    result.add_scalar("dense_perplexity", 20.0, "", "of the dense model", interval=interval(19, 21))
    result.add_scalar("block_share", 0.8, "fraction", "of the weights")
    for method in methods:
        result.add_scalar(
            f"range_{slug(method)}_at_0.05", 0.3, "fraction", "range", interval=interval(0.28, 0.32)
        )
        for target in targets:
            result.add_scalar(f"kl_{slug(method)}_at_{target:g}", kl_of(method, target), "nats", "KL")
    if {"WINA", "TEAL"} <= set(methods):
        result.add_scalar("wina_below_teal", 0.8, "fraction", "share of matrices")


def traces(figure, name, column=1):
    axis = "x" if column == 1 else f"x{column}"
    return [
        trace for trace in figure.data if trace.name == name and trace.xaxis == axis and trace.mode != "lines"
    ]


def draw(result, view, value=None):
    found = ANALYSIS.draw(view, result, value)
    check_figure(found, view)
    return found


def said(figure):
    return figure.layout.title.text.replace("<br>", " ").replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def whole():
    """Seven methods and two policies; not to be changed."""
    return made()


@pytest.mark.parametrize("name", RUNS)
def test_every_view_draws_every_choice_of_every_result(name):
    options = RUNS[name]
    result = made(**options)
    drawn = [view for view in ANALYSIS.views if view.table in result.tables]
    assert len(drawn) >= len(ANALYSIS.views) - ("auto" not in options.get("methods", METHODS))
    for view in drawn:
        for value in view.choices(result) or [None]:
            figure = draw(result, view.name, value)
            if not isinstance(figure, Panel):
                assert "small: " in figure.layout.title.subtitle.text
                assert all(trace.hovertemplate for trace in figure.data if "markers" in trace.mode)


def test_missing_provenance_and_scalars_break_nothing(whole):
    result = made()
    result.provenance, result.scalars = {}, {}
    for view in ANALYSIS.views:
        for value in view.choices(result) or [None]:
            draw(result, view.name, value)
    assert statements(result)


def test_quality_draws_the_numbers_of_its_policy(whole):
    figure = draw(whole, "quality", "all_sparse")
    table = whole.tables["quality"]
    rows = table[(table["method"] == "WINA") & (table["prefix"] == "all_sparse")]
    (kl,), (rise,) = traces(figure, "WINA"), traces(figure, "WINA", 2)
    np.testing.assert_allclose(kl.x, rows["realised"])
    np.testing.assert_allclose(kl.y, rows["kl"])
    np.testing.assert_allclose(rise.x, [0, *rows["realised"]])  # from the dense model on
    np.testing.assert_allclose(rise.y, [0, *(rows["perplexity"] / 20 - 1)])
    assert figure.layout.yaxis.type == "log" and all(value > 0 for value in kl.y)
    assert "KL is lowest for auto at 0.111 nats" in said(figure)
    assert "n = 40 documents" in figure.layout.title.subtitle.text
    assert "every position sparse" in figure.layout.title.subtitle.text


def test_quality_shows_what_was_measured_at_few_targets_as_markers(whole):
    figure = draw(whole, "quality", "all_sparse")
    (line,), (alone,) = traces(figure, "auto"), traces(figure, "TEAL, greedy")
    assert line.line.width > 2 and alone.mode == "markers"
    assert alone.marker.color == theme.VERMILION and alone.marker.symbol == "square-open"
    np.testing.assert_allclose(alone.error_y.array, 0.1 * np.array(alone.y))
    assert not traces(draw(whole, "quality", "decode_only"), "TEAL, greedy")


def test_quality_shows_pruned_models_apart():
    result = made()
    table = result.tables["quality"].to_dict("records")
    table += [point("Wanda 30 % alone", "all_sparse", 0.0, 0.05, realised=0.0)]
    table += [point("Wanda 30 %, then WINA", "all_sparse", 0.4, 0.3)]
    result.add("quality", table)
    figure = draw(result, "quality", "all_sparse")
    (alone,), (both,) = traces(figure, "Wanda 30 % alone"), traces(figure, "Wanda 30 %, then WINA")
    assert (alone.x[0], alone.y[0]) == (0.0, 0.05) and alone.marker.color == theme.SLATE
    assert both.y[0] == 0.3 and both.marker.color == theme.GREEN and both.marker.symbol == "star"
    assert "Wanda" not in said(figure)  # the title is about methods


def test_a_method_that_loses_nothing_measurable_has_no_place_on_a_logarithmic_axis():
    result = made(("TEAL", "auto"), targets=(0.1, 0.5), beside=())
    table = result.tables["quality"]
    table.loc[(table["method"] == "TEAL") & (table["target"] == 0.1), ["kl", "kl_low", "kl_high"]] = [
        0.0,
        -0.1,
        0.1,
    ]
    (teal,) = traces(draw(result, "quality", "all_sparse"), "TEAL")
    assert len(teal.y) == 1 and teal.y[0] > 0
    for name in ("kl", "kl_low", "kl_high"):
        table[name] = 0.0
    assert "no method" in draw(result, "quality", "all_sparse").layout.meta["alt"]


def test_methods_look_alike_in_all_figures_and_in_all_runs(whole):
    few = made(("WINA", "auto"), targets=(0.25, 0.5), beside=())
    assert parts.looks(few)["WINA"] == parts.looks(whole)["WINA"]
    assert (
        parts.looks(whole)["auto"]["color"] == theme.BLUE
        and parts.looks(whole)["dense"]["color"] == theme.SLATE
    )
    marked = {(look["color"], look["symbol"], look["dash"]) for look in parts.looks(whole).values()}
    assert len(marked) == len(parts.looks(whole))  # told apart without color too
    colors = {
        trace.marker.color
        for view, value in (("quality", "all_sparse"), ("usable_range", "all_sparse"), ("comparisons", None))
        for trace in draw(whole, view, value).data
        if trace.name == "R-Sparse" and trace.mode != "lines"
    }
    assert colors == {theme.OCHRE}


def test_usable_range_marks_bounds():
    result = made()
    table = result.tables["usable_range"]
    chosen = (table["method"] == "auto") & (table["tolerance"] == 0.1)
    table.loc[chosen, "censored"] = "at least: the last point is within"
    table.loc[(table["method"] == "WAS") & (table["tolerance"] == 0.01), "censored"] = "below the first point"
    table.loc[table["method"] == "CATS", ["sparsity", "low", "high"]] = math.nan
    figure = draw(result, "usable_range", "all_sparse")
    (exact,), (bound,) = traces(figure, "auto"), traces(figure, "auto", 3)
    assert exact.marker.symbol == "circle" and bound.marker.symbol == "triangle-right"
    assert "at least" in bound.customdata[0] and "of the model" in bound.customdata[0]
    assert traces(figure, "WAS")[0].marker.symbol == "triangle-left"
    assert not traces(figure, "CATS")
    np.testing.assert_allclose(exact.x, table[chosen.shift(-2, fill_value=False)]["sparsity"].iloc[:1])
    np.testing.assert_allclose([exact.error_x.array[0], exact.error_x.arrayminus[0]], 0.02)
    assert "triangles: only" in figure.layout.title.subtitle.text


def test_comparisons_keep_the_ratio_and_open_what_is_not_resolved():
    result = made()
    rows = [
        comparison("TEAL", "all_sparse", 0.25, 0.5),
        comparison("WINA", "all_sparse", 0.5, 0.9, "not resolved"),
    ]
    rows += [comparison("TEAL", "decode_only", 0.25, 1.4, "second is better")]
    result.add("comparisons", rows)
    figure = draw(result, "comparisons")
    (teal,), (wina,), (worse,) = traces(figure, "TEAL"), traces(figure, "WINA"), traces(figure, "TEAL", 2)
    assert (teal.x[0], wina.x[0], worse.x[0]) == (0.5, 0.9, 1.4)
    assert teal.y[0] == worse.y[0] != wina.y[0]  # one line for a target and a method in all panels
    assert (teal.marker.symbol, wina.marker.symbol) == ("square", "diamond-open")
    assert said(figure).startswith(
        "<b>auto is better in 1 of 3 comparisons at equal bytes, worse in 1, not resolved"
    )
    low, high = figure.layout.xaxis.range
    assert 10**low < 0.45 and 10**high > 1.54


def test_per_matrix_draws_one_role(whole):
    figure = draw(whole, "per_matrix", "attn.v")
    (wina,) = traces(figure, "WINA")
    np.testing.assert_allclose(wina.y, [0.03, 0.031, 0.032, 0.033, 0.034])
    assert "WINA 3.2 % (50 % dropped)" in said(figure)


def test_atlas_and_unions_draw_what_chance_would_give(whole):
    figure = draw(whole, "atlas", "auto")
    (kept,), (again,) = traces(figure, "attn q, k, v"), traces(figure, "attn q, k, v", 2)
    np.testing.assert_allclose(kept.y, [0.4, 0.41, 0.42, 0.43, 0.44])
    np.testing.assert_allclose(again.y, np.array(kept.y) + 0.1)
    dotted = next(trace for trace in figure.data if trace.name.startswith("attn q, k, v, "))
    np.testing.assert_allclose(dotted.y, np.array(kept.y) + 0.02)
    assert "the next token keeps" in said(figure) and "by chance" in said(figure)
    (union,) = traces(draw(whole, "unions", "auto"), "mlp out")
    np.testing.assert_allclose(union.x, [1, 2, 4, 8, 16])
    np.testing.assert_allclose(union.y, 1 - 0.5 ** np.array([1, 2, 4, 8, 16]))


def test_tokens_show_the_chosen_document(whole):
    panel = draw(whole, "tokens", "second")
    assert panel.title == "Tokens of this text read 40 % to 69 % of the block bytes, 54.5 % on average"
    assert "document second" in panel.subtitle and "first" not in panel.subtitle
    marks = [tag for top in panel.body for tag in top if "data-mark" in tag.attributes]
    assert len(marks) == 30 and "69.00 %" in marks[-1].attributes["title"]


def test_accounting_and_divergence_draw_their_tables(whole):
    figure = draw(whole, "accounting")
    for column, values in ((1, 0.8 * np.array(TARGETS)), (2, 1 / (1 - 0.8 * np.array(TARGETS)))):
        np.testing.assert_allclose(traces(figure, "auto", column)[0].y, values)
    assert not np.any(traces(figure, "TEAL", 3)[0].y)
    assert (
        "at best 1.67 times fewer bytes" in said(figure) and "no speed" in figure.layout.title.subtitle.text
    )
    figure = draw(whole, "divergence")
    assert traces(figure, "WINA")[0].x[0] == 20 and traces(figure, "WINA")[0].error_x.array[0] == 14
    assert len(traces(figure, "WINA", 2)) == 1


def test_hostile_names_are_shown_and_never_markup():
    result = made(("TEAL", HOSTILE, "auto"), targets=(0.25, 0.5))
    for name in ("per_matrix", "atlas", "unions", "tokens"):
        result.tables[name]["document" if name == "tokens" else "role"] = HOSTILE
    for view in ANALYSIS.views:
        for value in view.choices(result) or [None]:
            figure = draw(result, view.name, value)
            if isinstance(figure, Panel):
                text = figure.html()
            else:  # alt text is escaped by who writes it
                text = json.dumps(json.loads(figure.update_layout(meta=None).to_json()), ensure_ascii=False)
            assert "<script" not in text and "\u202e" not in text, view.name
    assert statements(result)


def test_sentences_say_how_far_whether_better_and_what_single_errors_mean(whole):
    check_statements(whole)
    far, better, matrices = statements(whole)
    reached = 0.05**0.4 / 0.7
    assert f"auto leaves {100 * reached:.2f} % [{100 * reached - 2:.2f}, {100 * reached + 2:.2f}]" in far.text
    assert (
        f"({80 * reached:.2f} %" in far.text and "TEAL 25.14 %" in far.text and "n = 40 documents" in far.text
    )
    assert far.scalars[:2] == ("range_auto_at_0.05", "range_teal_at_0.05")
    assert "50 % asked for, auto has 0.737 [0.663, 0.811] times the KL divergence of R-Sparse" in better.text
    assert f"All {len(whole.tables['comparisons'])} comparisons favor auto" in better.text
    assert "below TEAL's on 80.00 % of 35 matrices" in matrices.text
    # 10 % wide intervals of 0.159 and 0.191 overlap, though the first is smaller
    assert "not resolved" in matrices.text and "unpaired" in matrices.text
    assert set(matrices.scalars) <= set(whole.scalars)


@pytest.mark.parametrize(
    ("wina", "share", "words"),
    [
        (0.05, 0.8, "that carries over end to end"),
        (0.9, 0.8, "that does not carry over end to end"),
        (0.05, 0.2, "that does not carry over end to end"),
        (0.9, 0.2, "that carries over end to end"),
    ],
)
def test_single_errors_carry_over_only_where_intervals_are_apart(wina, share, words):
    result = made()
    table = result.tables["quality"]
    table.loc[(table["method"] == "WINA") & (table["target"] == 0.5), ["kl", "kl_low", "kl_high"]] = [
        wina, 0.9 * wina, 1.1 * wina,
    ]  # fmt: skip
    result.add_scalar("wina_below_teal", share, "fraction", "share")
    assert words in statements(result)[2].text


def test_without_intervals_nothing_is_resolved():
    result = made()
    result.tables["quality"][["kl_low", "kl_high"]] = math.nan
    assert "not resolved: KL divergence 0.159 nats" in statements(result)[2].text
    assert "no intervals" in statements(result)[2].text


def test_sentences_say_where_the_reference_is_not_better():
    result = made()
    rows = [
        comparison("TEAL", "all_sparse", 0.5, 0.5),
        comparison("WAS, blocks", "all_sparse", 0.5, 1.2, "not resolved"),
    ]
    rows += [comparison("WINA", "decode_only", 0.25, 1.4, "second is better")]
    result.add("comparisons", rows)
    text = statements(result)[1].text
    assert (
        "auto has 1.2 [1.08, 1.32] times the KL divergence of WAS (blocks), the best of 2 other methods"
        in text
    )
    assert "n = 40 documents; not resolved, every position sparse" in text
    assert "1 of 3 comparisons favor auto; worse against WINA at 25 % (dense prompt, sparse after it)" in text
    assert "not resolved against WAS (blocks) at 50 % (every position sparse)." in text


def test_bounds_are_said_to_be_bounds():
    result = made()
    result.tables["usable_range"]["censored"] = "at least: the last point is within"
    text = statements(result)[0].text
    assert "auto leaves at least" in text and "TEAL at least" in text and "All are bounds" in text


def test_a_run_with_one_target_and_one_method_says_what_it_has():
    result = made(("TEAL",), targets=(0.5,), beside=(), leave_out=("usable_range",))
    (only,) = statements(result)
    assert only.view == "quality" and "TEAL 0.191 [0.172, 0.21]" in only.text
    for options in RUNS.values():
        check_statements(made(**options))


def test_numbers_without_a_title_have_one(whole):
    assert {title_of(whole.analysis, scalar) for scalar in headline_of(whole)} >= {TITLES["dense_perplexity"]}
    assert set(ANALYSIS.headline) <= set(TITLES)
    assert policy_words("dense_first_n:4") == "first 4 positions dense"
    assert policy_words("dense_fraction:0.5") == "first 50 % dense"
    assert policy_words("dense_fraction:x") == "dense fraction:x"


def test_sentences_and_figures_need_no_torch():
    code = "import sys, sparsescope.analysis.sparse_inference.views"
    code += "; from sparsescope.analysis.sparse_inference.statements import titles_of; titles_of(['teal'])"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
