"""Figures of the routing of a mixture on hand-made results: numbers in, numbers out."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest

from sparsescope.analysis.moe_routing import ANALYSIS, views
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.testing import check_figure
from sparsescope.viz import theme
from sparsescope.viz.figure import MAX_MARKS, mark_count
from sparsescope.viz.panel import Panel

DOMAINS = ("docs", "code", "scripture", "legal")
MEASURES = ("I(E; D)", "I(E; D | token)")
HOSTILE = "<script>alert(1)</script> $x$ %{y} \u202eabc"
RUNS = {
    "whole": {},
    "large": {"layers": 16, "experts": 64, "k": 8},
    "very large": {"layers": 48, "experts": 128, "k": 8, "domains": (*DOMAINS, "mail", "news")},
    "one domain": {"domains": ("docs",)},
    "three domains": {"domains": DOMAINS[:3]},
    "one choice": {"k": 1},
    "one layer": {"layers": 1},
    "without intervals": {"intervals": False},
    "without controls": {"shuffled": False, "orders": 1},
    "an idle expert": {"idle": True},
}


def add(result, name, rows):
    """Add a table; columns that are not given are unknown."""
    declared = [column.name for column in ANALYSIS.tables[name]]
    frame = pd.DataFrame(rows)
    if frame.empty:
        result.add(name, [])
        return
    text = {column.name for column in ANALYSIS.tables[name] if column.kind in {"domain", "label", "metric"}}
    for missing in set(declared) - set(frame):
        frame[missing] = "" if missing in text else math.nan
    result.add(name, frame[declared])


def ends(value, width, known, prefix=""):
    low, high = (value - width, value + width) if known else (math.nan, math.nan)
    return {f"{prefix}low": low, f"{prefix}high": high}


def made(
    layers=4,
    experts=8,
    k=2,
    domains=DOMAINS,
    intervals=True,
    shuffled=True,
    idle=False,
    orders=3,
    leave_out=(),
):
    """A result like that of a run, without a model. Domain n prefers expert n, by more in later layers."""
    result = Result("moe_routing")
    result.provenance = {"subject": {"id": "small"}, "params": {"level": 0.95}}
    sizes = {domain: 1000 + 100 * n for n, domain in enumerate(domains)}
    total = sum(sizes.values())
    base = np.linspace(1.6, 0.4, experts)
    if idle:
        base[-1] = 0.0
    base = base * k / base.sum()
    tables = {name: [] for name in ANALYSIS.tables}
    for layer in range(layers):
        shares = np.tile(base, (len(domains), 1))
        for n in range(len(domains)):
            shares[n, n] += 0.04 * (1 + layer)
        mean = shares.mean(0)
        for n, domain in enumerate(domains):
            tables["domain_shares"] += [
                {"layer": layer, "expert": e, "domain": domain, "share": shares[n, e],
                 "all_share": mean[e], **ends(shares[n, e], 0.01, intervals),
                 "lift": shares[n, e] / mean[e] if mean[e] else math.nan,
                 "tokens": sizes[domain], "documents": 10}
                for e in range(experts)
            ]  # fmt: skip
        counts = sum(shares[n] * sizes[domain] for n, domain in enumerate(domains))
        rates = counts / counts.sum()
        entropy = -(rates[rates > 0] * np.log(rates[rates > 0])).sum()
        tables["load"] += [
            {"layer": layer, "domain": domain, "cv": counts.std() / counts.mean(),
             **ends(counts.std() / counts.mean(), 0.02, intervals),
             "normalized_entropy": entropy / math.log(experts), "effective_experts": math.exp(entropy),
             "max_violation": counts.max() / counts.mean() - 1, "max_token_share": counts.max() / total,
             "dead": float(idle) / experts, "tokens": total, "documents": 10 * len(domains)}
            for domain in ("all", *(domains if len(domains) > 1 else ()))
        ]  # fmt: skip
        if len(domains) > 1:
            for n, measure in enumerate(MEASURES):
                excess, beyond = 0.02 + 0.01 * layer, 0.012 * (layer - 1) - 0.004 * n
                tables["specialization"].append(
                    {"layer": layer, "measure": measure, "information": excess + 0.01, "null_mean": 0.01,
                     "null_sd": 0.001, "z": 10.0, "p": 0.01, "q": 0.01, "excess": excess,
                     **ends(excess, 0.015, intervals), "shuffled": excess - beyond if shuffled else math.nan,
                     "shuffled_sd": 0.002 if shuffled else math.nan,
                     "beyond_shuffled": beyond if shuffled else math.nan,
                     **ends(beyond, 0.01, intervals and shuffled, "beyond_"), "of_entropy": excess / 1.4,
                     "documents": 10 * len(domains)}
                )  # fmt: skip
        if k > 1 and layer < 4:  # enough, and many rows
            for one, other in permutations(range(experts), 2):
                known = counts[one] > 0 and counts[other] > 0
                never = {one, other} == {0, 1}
                lift = (0.0 if never else 2.0 ** ((one + other + layer) % 5 - 2)) if known else math.nan
                tables["coactivation"].append(
                    {"layer": layer, "expert": one, "other": str(other), "share": 0.2, "phi": 0.0,
                     "chance": (k - 1) / (experts - 1), "lift": lift, "together": 0 if never else 40,
                     "expected": 16.0,
                     **ends(lift, 0.2, intervals and known and not never)}
                )  # fmt: skip
        for n, measure in enumerate(("first choice", "shared")):
            for lag in range(1, 9):
                value = 0.3 + 0.1 * n + 0.1 / lag + 0.01 * layer
                tables["repetition"].append(
                    {"layer": layer, "lag": lag, "measure": measure, "mean": value,
                     **ends(value, 0.02, intervals), "load_chance": 0.25 + 0.1 * n, "shifted": 0.28 + 0.1 * n,
                     "documents": 10 * len(domains)}
                )  # fmt: skip
        for size in (k, 2 * k, 4 * k):
            for place, rule in enumerate(("fixed", "Belady", "LRU")):
                hits = min(1.0, 0.2 + size / experts) - 0.05 * place
                row = {"layer": layer, "size": size, "rule": rule, "segments": 90}
                tables["cache"].append(row | {"hits": hits, "chance": hits - 0.05})
        for chunk in (1, 2, 4, 8, 16):
            value = (1 - k / experts) ** (chunk**0.5)
            tables["chunk_sparsity"].append(
                {"layer": layer, "chunk": chunk, "sparsity": value,
                 **ends(value, 0.002 * (chunk > 1), intervals), "alike": (1 - k / experts) ** chunk,
                 "independent": 0.9 * value if chunk > 1 else value, "documents": 10 * len(domains)}
            )  # fmt: skip
        pairs = list(combinations(range(experts), 2))[:120]
        tables["similarity"] += [
            {"layer": layer, "expert": one, "other": str(other), "weights_random": 0.12, "weights_raw": 0.0,
             "cka": 0.1 + 0.3 * n / len(pairs) + 0.01 * layer, "weights": 0.2 + 0.05 * n / len(pairs)}
            for n, (one, other) in enumerate(pairs)
        ]  # fmt: skip
        for n, domain in enumerate(domains):
            tables["tokens"] += [
                {"document": f"{domain}: text", "position": p, "token_text": f" t{p}", "layer": layer,
                 "expert": (p * (layer + 1) + n) % min(experts, 12)}
                for p in range(40)
            ]  # fmt: skip
    if len(domains) > 1:
        for one in domains:
            for other in domains:
                own = {0: 0.06, 1: 0.001, 2: -0.05}.get(domains.index(one), 0.02)
                effect = own if one == other else -0.01
                row = {"chosen_for": one, "domain": other, "effect": effect, "documents": 8}
                tables["ablation_matrix"].append(row | ends(effect, 0.005, intervals))
        result.add_scalar(
            "specialist_effect", 0.02, "nats", "own minus others",
            interval=Interval(0.01, 0.03, 0.95, "bootstrap", 32) if intervals else None,
        )  # fmt: skip
    costs = {"frequency": 0.2, "soft mass": 0.3, "EAN": 0.1, "REAP": 0.5}
    costs |= {f"random order {n + 1}": 2.0 + 0.1 * n for n in range(orders)}
    for name, cost in costs.items():
        for removed in (0.125, 0.25, 0.5):
            change = cost * removed
            tables["pruning"].append(
                {"criterion": name, "removed": removed, "change": change,
                 **ends(change, 0.1 * change, intervals), "super_removed": 1, "tokens": 8000, "documents": 32}
            )  # fmt: skip
    for name, rows in tables.items():
        if (rows or name in {"specialization", "coactivation"}) and name not in leave_out:
            add(result, name, rows)
    return result


def draw(result, name, value=None):
    view = next(view for view in ANALYSIS.views if view.name == name)
    function = getattr(views, name)
    choices = view.choices(result)
    if view.select:
        found = function(result, value if value is not None else (choices[0] if choices else 0))
    else:
        found = function(result)
    check_figure(found, name)
    return found


def said(figure):
    text = figure.layout.title.text.replace("<br>", " ").replace("\N{NO-BREAK SPACE}", " ")
    return text.removeprefix("<b>").removesuffix("</b>")


def below(figure):
    return figure.layout.title.subtitle.text.replace("<br>", " ").replace("\N{NO-BREAK SPACE}", " ")


def traces(figure, name, column=1):
    axis = "x" if column == 1 else f"x{column}"
    return [trace for trace in figure.data if trace.name == name and trace.xaxis == axis]


def marks(panel):
    return [tag for top in panel.body for tag in top if "data-mark" in tag.attributes]


@pytest.fixture(scope="module")
def whole():
    """Four layers, eight experts, four domains; not to be changed."""
    return made()


@pytest.mark.parametrize("name", RUNS)
def test_every_view_draws_every_result(name):
    result = made(**RUNS[name])
    for view in ANALYSIS.views:
        if view.table not in result.tables:
            continue
        for value in view.choices(result)[:4] or [None]:
            figure = draw(result, view.name, value)
            if isinstance(figure, Panel):
                continue
            assert mark_count(figure) <= MAX_MARKS, view.name
            texts = [said(figure), below(figure), figure.layout.meta["alt"]]
            texts += [str(trace.customdata) for trace in figure.data]
            assert not re.search(r"\bnan\b", " ".join(texts)), view.name
            if figure.data:
                assert "small: " in below(figure), view.name
    assert {view.table for view in ANALYSIS.views} - set(result.tables) <= {"ablation_matrix"}


def test_all_views_are_there_and_need_no_torch():
    assert {view.name for view in ANALYSIS.views} == set(views.__all__)
    code = "import sys, sparsescope.analysis.moe_routing.views"
    code += "; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_provenance_and_scalars_break_nothing():
    result = made()
    result.provenance, result.scalars = {}, {}
    for view in ANALYSIS.views:
        draw(result, view.name)


def test_domains_draw_the_difference_from_the_mean(whole):
    figure = draw(whole, "domains")
    assert [panel.text.partition(" ")[0] for panel in figure.layout.annotations] == list(DOMAINS)
    for n in range(4):
        z = np.array(figure.data[n].z)
        assert z.shape == (4, 8)
        np.testing.assert_allclose(z[:, n], 0.03 * np.arange(1, 5))
        np.testing.assert_allclose(z[:, (n + 1) % 4], -0.01 * np.arange(1, 5))
        np.testing.assert_allclose(z[:, 4:], 0, atol=1e-12)
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax == pytest.approx(-0.12)
    assert figure.layout.coloraxis.colorscale[1] == (0.5, theme.BACKGROUND["light"])
    assert said(figure).startswith("Largest of 128 differences: expert ") and "of layer 3" in said(figure)
    assert "layer 3, expert 0" in figure.data[0].customdata[3][0]
    assert theme.restyle(figure, "dark").layout.coloraxis.colorscale[1][1] == theme.BACKGROUND["dark"]


def test_panels_of_domains_stand_where_their_titles_are(whole):
    for options in ({}, RUNS["large"], RUNS["three domains"]):
        figure = draw(made(**options), "domains")
        for n, title in enumerate(figure.layout.annotations):
            axis = figure.layout[f"yaxis{n + 1 if n else ''}"]
            assert axis.domain[1] == pytest.approx(title.y), n
            assert figure.data[n].yaxis == f"y{n + 1 if n else ''}"
    assert figure.layout.yaxis4.visible is False  # three domains in a grid of four


def test_domains_of_a_large_model_are_below_each_other():
    figure = draw(made(**RUNS["large"]), "domains")
    assert len({trace.xaxis for trace in figure.data}) == 4
    assert all(figure.layout[name].domain in (None, (0.0, 1.0)) for name in ("xaxis", "xaxis2", "xaxis3"))
    assert len(figure.layout.xaxis.tickvals) <= 32 and 800 < figure.layout.height < 1600
    many = draw(made(**RUNS["very large"]), "domains")
    assert len(many.data) == 1 and "of 6" in below(many)


def test_one_domain_has_nothing_to_compare():
    result = made(**RUNS["one domain"])
    assert "one domain" in draw(result, "domains").layout.annotations[0].text
    assert "two domains" in draw(result, "specialization").layout.annotations[0].text


def test_specialization_counts_layers_by_their_intervals(whole):
    figure = draw(whole, "specialization")
    (trained,), (shuffled,) = (traces(figure, name, 2) for name in ("routers as trained", "shuffled routers"))
    np.testing.assert_allclose(trained.y, [0.02, 0.03, 0.04, 0.05])
    np.testing.assert_allclose(trained.error_y.array, 0.015)
    np.testing.assert_allclose(shuffled.y, np.array(trained.y) - (0.012 * (np.arange(4) - 1) - 0.004))
    np.testing.assert_allclose(shuffled.error_y.array, 0.002)
    assert shuffled.marker.color == theme.SLATE and trained.marker.color == theme.BLUE
    assert "token known" in figure.layout.annotations[1].text
    assert said(figure) == (
        "Experts tell about the domain beyond chance in 4 of 4 layers where the token is known; more than "
        "shuffled routers in 1, less in 1, not resolved in 2"
    )
    assert "n = 40 documents" in below(figure) and "95 % jackknife" in below(figure)


def test_specialization_without_intervals_or_controls_says_so():
    figure = draw(made(intervals=False), "specialization")
    assert said(figure).endswith("no intervals") and "no intervals" in below(figure)
    assert not any(traces(figure, "routers as trained")[0].error_y.array)
    figure = draw(made(shuffled=False), "specialization")
    assert not traces(figure, "shuffled routers") and "were not read" in below(figure)
    assert "shuffled" not in said(figure)


def test_a_run_of_before_has_no_spread_over_draws():
    result = made()
    result.tables["specialization"] = result.tables["specialization"].drop(
        columns="shuffled_sd", errors="ignore"
    )
    assert not any(traces(draw(result, "specialization"), "shuffled routers")[0].error_y.array)


def test_load_is_sorted_over_the_mean_of_its_layer(whole):
    figure = draw(whole, "load")
    lines = [traces(figure, f"layer {layer}")[0] for layer in range(4)]
    for line in lines:
        assert list(line.y) == sorted(line.y, reverse=True) and np.mean(line.y) == pytest.approx(1)
    table = whole.tables["load"].query("domain == 'all'")
    np.testing.assert_allclose(traces(figure, "effective experts", 2)[0].y, table["effective_experts"])
    assert f"{1 + table['max_violation'].max():.2g} times the mean load (layer 3)" in said(figure)
    assert "Every expert got a token." in figure.layout.meta["alt"]
    idle = draw(made(idle=True), "load")
    assert "4 of 32 experts got no token" in idle.layout.meta["alt"]
    assert traces(idle, "layer 0")[0].y[-1] == 0


def test_coactivation_is_logarithmic_and_marks_what_never_meets(whole):
    figure = draw(whole, "coactivation", 1)
    heat, never = figure.data
    z = np.array(heat.z, float)
    assert z[2, 3] == (2 + 3 + 1) % 5 - 2 and z[3, 2] == z[2, 3]
    assert np.isnan(np.diag(z)).all() and np.isnan(z[0, 1])
    assert {(x, y) for x, y in zip(never.x, never.y, strict=True)} == {(0, 1), (1, 0)}
    assert list(figure.layout.coloraxis.colorbar.ticktext) == ["1/4", "1/2", "1", "2", "4"]
    rows = whole.tables["coactivation"].query("layer == 1 and together > 0")
    rows = rows[rows["expert"] < rows["other"].astype(int)]
    more, less = (rows["low"] > 1).sum(), (rows["high"] < 1).sum()
    assert said(figure).startswith(f"Layer 1: {more} of 28 pairs are chosen together more often")
    assert f"{less} less often, 1 never" in said(figure)
    assert "never together, 0 tokens (independent: " in heat.customdata[0][1]


def test_coactivation_draws_the_busiest_of_many_experts():
    figure = draw(made(**RUNS["very large"]), "coactivation", 2)
    assert len(figure.data[0].z) == 64 and "the 64 busiest of 128 experts" in below(figure)


def test_coactivation_of_an_idle_expert_and_of_one_choice():
    figure = draw(made(idle=True), "coactivation", 0)
    assert np.isnan(np.array(figure.data[0].z, float)[7]).all()
    assert "has no token" in figure.data[0].customdata[7][2]
    one = draw(made(**RUNS["one choice"]), "coactivation")
    assert not one.data and "two experts" in one.layout.annotations[0].text


def test_the_graph_joins_pairs_whose_interval_is_above_chance(whole):
    figure = draw(whole, "coactivation_graph", 1)
    rows = whole.tables["coactivation"].query("layer == 1")
    rows = rows[rows["expert"].astype(int) < rows["other"].astype(int)]
    joined = rows[rows["low"] > 1]
    drawn = [text for trace in figure.data[:-1] for text in trace.customdata[::3]]
    found = {tuple(map(int, re.match(r"experts (\d+) and (\d+):", text).groups())) for text in drawn}
    expected = {(int(one), int(two)) for one, two in joined[["expert", "other"]].to_numpy()}
    assert found == expected and len(drawn) == len(expected)
    group = {expert: {expert} for expert in range(8)}
    for one, two in expected:
        merged = group[one] | group[two]
        group |= dict.fromkeys(merged, merged)
    largest = max(map(len, group.values()))
    assert said(figure).startswith(f"Layer 1: {len(expected)} of {len(rows)} pairs of experts")
    assert f"largest connected group has {largest} of 8" in said(figure)
    widths = [trace.line.width for trace in figure.data[:-1]]
    assert widths == sorted(widths) and "of which chance gives about 0.7" in below(figure)


def test_the_graph_of_one_choice_and_of_many_experts():
    one = draw(made(**RUNS["one choice"]), "coactivation_graph")
    assert not one.data and "two experts" in one.layout.annotations[0].text
    large = draw(made(**RUNS["very large"]), "coactivation_graph", 2)
    assert len(large.data[-1].x) == 128 and mark_count(large) < MAX_MARKS
    rows = made(**RUNS["very large"]).tables["coactivation"].query("layer == 2")
    above = rows[(rows["expert"] < rows["other"].astype(int)) & (rows["low"] > 1)]
    assert len(above) > 120 and said(large).startswith(f"Layer 2: {len(above)} of ")
    assert "the 120 largest are drawn" in below(large)
    plain = draw(made(intervals=False), "coactivation_graph", 0)
    assert "where the lift is above 1" in below(plain)


def test_repetition_draws_layers_their_mean_and_both_nulls(whole):
    figure = draw(whole, "repetition")
    (mean,) = traces(figure, "mean over layers", 2)
    np.testing.assert_allclose(mean.y, 0.4 + 0.1 / np.arange(1, 9) + 0.015)
    (far,), (loads,) = (
        traces(figure, name, 2)
        for name in ("tokens far from each other in a document", "independent tokens with these loads")
    )
    assert (far.line.dash, loads.line.dash) == ("dash", "dot")
    np.testing.assert_allclose(far.y, 0.38)
    np.testing.assert_allclose(loads.y, 0.35)
    assert said(figure) == (
        "Two tokens in a row share 51.5 % of their experts, tokens far apart 38 %, independent ones 35 %"
    )
    assert "above tokens far apart in 4 of 4 layers at distance 1" in below(figure)
    one = draw(made(layers=1), "repetition")
    assert traces(one, "observed", 2) and not traces(one, "mean over layers", 2)


def test_cache_draws_rules_and_their_chance(whole):
    figure = draw(whole, "cache")
    (lru,) = traces(figure, "least recently used (LRU)")
    np.testing.assert_allclose(lru.x, [2, 4, 8])
    np.testing.assert_allclose(lru.y, [0.35, 0.6, 0.9])
    (chance,) = traces(figure, "least recently used (LRU), random order")
    np.testing.assert_allclose(chance.y, np.array(lru.y) - 0.05)
    assert chance.line.dash == "dot" and chance.line.width < lru.line.width
    assert said(figure) == (
        "Requests that a cache of 4 experts serves: 60 % by LRU (55 % in random order) and 65 % at best "
        "(60 % in random order)"
    )
    assert "no intervals" in below(figure) and "90 segments" in below(figure)


def test_chunks_are_drawn_beside_independent_tokens(whole):
    figure = draw(whole, "chunk_sparsity")
    (mean,) = traces(figure, "mean over layers")
    np.testing.assert_allclose(mean.y, 0.75 ** np.sqrt([1, 2, 4, 8, 16]))
    (null,) = traces(figure, "independent tokens, each expert at its rate")
    assert null.line.dash == "dash"
    assert said(figure) == "16 tokens in a row leave 31.6 % of the experts unused, independent ones 28.5 %"
    assert "above the dashed null in 4 of 4 layers" in below(figure)


def test_similarity_shows_pairs_and_matched_random_weights(whole):
    figure = draw(whole, "similarity")
    (cka,), (top,) = traces(figure, "experts"), traces(figure, "most alike pair")
    table = whole.tables["similarity"]
    np.testing.assert_allclose(cka.y, table.groupby("layer")["cka"].median())
    np.testing.assert_allclose(top.y, table.groupby("layer")["cka"].max())
    (random,) = traces(figure, "one with its entries permuted", 2)
    np.testing.assert_allclose(random.y, 0.12)
    assert "(6 and 7 of layer 3)" in said(figure) and "permuted ones at 0.12" in said(figure)


def test_numbers_of_the_ablation_matrix_stand_in_its_cells(whole):
    figure = draw(whole, "ablation_matrix")
    (heat,) = figure.data
    np.testing.assert_allclose(np.diag(np.array(heat.z)), [0.06, 0.001, -0.05, 0.02])
    assert [heat.text[n][n] for n in range(4)] == ["+0.060", "(+0.001)", "-0.050", "+0.020"]
    assert "+0.06 [+0.055, +0.065] nats" in heat.customdata[0][0]
    assert said(figure) == (
        "Without its own specialists the loss of 2 of 4 domains rises more than without experts of like "
        "load: docs (+0.06 nats) and legal (+0.02 nats); less: scripture; 1 not resolved"
    )
    assert "own domain minus the others: +0.02 [+0.01, +0.03] nats" in below(figure)
    assert said(draw(made(intervals=False), "ablation_matrix")).endswith("no intervals")


def test_pruning_begins_at_the_whole_model_and_shows_random_orders_gray(whole):
    figure = draw(whole, "pruning")
    (ean,) = traces(figure, "EAN")
    np.testing.assert_allclose(ean.x, [0, 0.125, 0.25, 0.5])
    np.testing.assert_allclose(ean.y, [0, 0.0125, 0.025, 0.05])
    orders = traces(figure, "random orders")
    assert len(orders) == 3 and {trace.line.color for trace in orders} == {theme.SLATE}
    assert [trace.showlegend for trace in figure.data if trace.name == "random orders"].count(True) == 1
    assert said(figure) == (
        "Without 25 % of the experts the loss rises by +0.025 [+0.0225, +0.0275] nats by EAN, +0.5 to +0.55 "
        "nats in random order"
    )
    result = made(orders=1)
    table = result.tables["pruning"]
    table.loc[table["criterion"].str.startswith("random"), ["change", "low", "high"]] = [0.026, 0.02, 0.03]
    assert said(draw(result, "pruning")).endswith("+0.026 nats in random order; not clearly less")
    assert said(draw(made(intervals=False), "pruning")).endswith("no intervals")


def test_a_text_shows_the_layer_that_tells_most_about_the_domain(whole):
    panel = draw(whole, "token_experts", "code: text")
    assert "layer 3; document code: text; 40 tokens" in panel.subtitle
    assert "tell most about the domain (+0.05 [+0.035, +0.065] nats, token known)" in panel.subtitle
    experts = [(4 * p + 1) % 8 for p in range(40)]
    assert [mark.attributes["title"].rpartition(" ")[2] for mark in marks(panel)] == list(map(str, experts))
    classes = {mark.attributes["class"] for mark in marks(panel)}
    assert len(classes) == 2 and all(name.startswith("mark kind-") for name in classes)
    assert (
        panel.title
        == "First choice of the tokens of this text in layer 3: expert 1 (50 %) and expert 5 (50 %)"
    )


def test_a_text_without_domains_shows_the_first_layer():
    panel = draw(made(**RUNS["one domain"]), "token_experts")
    assert "layer 0; " in panel.subtitle and "the first layer with a router" in panel.subtitle


def test_hostile_names_are_shown_and_never_markup():
    result = made(domains=("docs", HOSTILE), leave_out=("tokens",))
    add(
        result,
        "tokens",
        [{"document": HOSTILE, "position": 0, "token_text": HOSTILE, "layer": 0, "expert": 1}],
    )
    result.tables["pruning"]["criterion"] = HOSTILE
    result.tables["specialization"]["measure"] = HOSTILE
    for view in ANALYSIS.views:
        figure = draw(result, view.name)
        if isinstance(figure, Panel):
            text = figure.html()
        else:  # alt text is escaped by who writes it
            text = json.dumps(json.loads(figure.update_layout(meta=None).to_json()), ensure_ascii=False)
        assert "<script" not in text and "\u202e" not in text, view.name
