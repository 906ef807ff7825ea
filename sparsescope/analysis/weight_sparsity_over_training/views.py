"""Figures of ``weight_sparsity_over_training``: functions of the stored result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsescope.analysis.weight_sparsity_over_training.statements import main_curve, main_rules
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve, dotted
from sparsescope.viz.sentences import paired_text, percent
from sparsescope.viz.steps import StepAxis

_HEIGHT = 270
_ENDS = ("damage", "damage_low", "damage_high")
_NOTHING = "no checkpoint has a loss below chance on this probe"


def _looks(result: Result) -> dict[str, dict[str, Any]]:
    """Color, marker and dash of each curve; the null is gray."""
    hues = [color for color in theme.CATEGORIES["light"] if color != theme.SLATE]
    names = [name for name in dict.fromkeys(result.tables["drop_points"]["curve"]) if name != "Random"]
    looks: dict[str, dict[str, Any]] = {
        name: {
            "color": hues[number % len(hues)],
            "symbol": theme.MARKERS[number % len(theme.MARKERS)],
            "dash": "solid",
        }
        for number, name in enumerate(names)
    }
    return looks | {"Random": {"color": theme.SLATE, "symbol": "x", "dash": "dash"}}


def _axis(every: Any, known: Any) -> StepAxis:
    """All steps, logarithmic only if those with drop points need it: late ones would be crowded."""
    whole = StepAxis.of(every)
    return whole if not len(known) else StepAxis(whole.steps, StepAxis.of(known).log)


def _rule_title(rule: str) -> str:
    return f"tolerance {rule.removeprefix('+')}{' on chance' if 'gain' in rule else ''}"


def drop_points(result: Result) -> fig.Figure:
    """Draw drop points over steps, with random masks; below them the dense loss and chance."""
    table, dense = result.tables["drop_points"], result.tables["per_checkpoint"]
    rules, looks = main_rules(result), _looks(result)
    axis = _axis(dense["step"], table[table["sparsity"].notna()]["step"])
    titles = [_rule_title(rule) for rule in rules] + ["dense checkpoint"] * len(rules)
    figure = fig.panels(2, len(rules), titles=titles, height=_HEIGHT, share_y=True)
    for column, rule in enumerate(rules, 1):
        for name, look in looks.items():
            curve(
                figure,
                axis.place(table[(table["rule"] == rule) & (table["curve"] == name)]),
                "sparsity",
                name,
                x="at",
                columns=result.columns["drop_points"],
                legend=True,
                column=column,
                text=_drop_text(name),
                **look,
            )
        placed = axis.place(dense)
        curve(
            figure,
            placed,
            "loss",
            "dense loss",
            x="at",
            color=theme.GREEN,
            columns=result.columns["per_checkpoint"],
            show="{:.3g}".format,
            text="step {0.step:,}: {1} nats".format,
            row=2,
            column=column,
        )
        dotted(figure, placed["at"], placed["chance"], "chance", row=2, column=column)
        generalized = result.scalars.get("generalized_step")
        if generalized is not None and math.isfinite(generalized.value):
            for row in (1, 2):
                figure.add_vline(x=generalized.value, line=theme.LEVEL, row=row, col=column)
    axis.arrange(figure, columns=len(rules))
    figure.update_xaxes(title_text="", row=1)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=1)
    figure.update_yaxes(rangemode="tozero", row=2)
    figure.update_yaxes(title_text="weights that can go", row=1, col=1)
    figure.update_yaxes(title_text="loss, nats a target", row=2, col=1)
    fig.legend_below(figure)
    figure.update_layout(legend={"y": -0.12})
    title = _course(result, rules[0])
    subtitle = f"bands: intervals over {int(table['documents'].max())} documents; gray: random masks"
    subtitle += "; dotted below: chance"
    if "generalized_step" in result.scalars:
        subtitle += "; vertical: step of generalization"
    alt = (
        f"Lines of the drop point over training steps for {len(looks)} curves, above the dense loss. {title}."
    )
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _drop_text(name: str) -> Any:
    def text(at: Any, shown: str) -> str:
        bound = "at least " if str(at.censored).startswith("at least") else ""
        return f"{name}, step {at.step:,}: {bound}{shown}, levels {at.bracket:.2g} apart"

    return text


def _course(result: Result, rule: str) -> str:
    """The drop point of the first curve at the first and last checkpoint, and where it was most."""
    table = result.tables["drop_points"]
    known = table[(table["rule"] == rule) & table["sparsity"].notna()]
    own = known[known["curve"] == main_curve(result)].sort_values("step")
    if own.empty:
        return f"No drop point: {_NOTHING}"
    first, last, most = own.iloc[0], own.iloc[-1], own.loc[own["sparsity"].idxmax()]
    text = f"At {rule} {percent(last['sparsity'])} of the weights can go at step {last['step']:,}"
    if len(own) > 1:
        text += f", {percent(first['sparsity'])} at step {first['step']:,}"
    if most["sparsity"] > 1.05 * max(first["sparsity"], last["sparsity"]):
        text += f", most at step {most['step']:,} ({percent(most['sparsity'])})"
    null = known[known["curve"] == "Random"].sort_values("step").iloc[-1]
    return f"{text}; with random masks {percent(null['sparsity'])} at the end"


def excess(result: Result) -> fig.Figure:
    """Draw drop points minus those of random masks, one panel for each tolerance."""
    table, looks = result.tables["excess"], _looks(result)
    rules = list(dict.fromkeys(table["rule"]))
    known = table[table["excess"].notna()]
    if known.empty:
        return fig.empty("Beyond random masks", _NOTHING)
    axis = StepAxis.of(known["step"])
    figure = fig.panels(
        1, len(rules), titles=[rule.removeprefix("+") for rule in rules], height=330, share_y=True
    )
    for column, rule in enumerate(rules, 1):
        for name in dict.fromkeys(table["curve"]):
            curve(
                figure,
                axis.place(known[(known["rule"] == rule) & (known["curve"] == name)]),
                "excess",
                name,
                x="at",
                columns=result.columns["excess"],
                legend=True,
                show=lambda value: f"{100 * value:+.1f}",
                text="step {0.step:,}: {1} points".format,
                column=column,
                **looks[name],
            )
    figure.add_hline(y=0, line=theme.LEVEL)
    axis.arrange(figure, columns=len(rules))
    fig.y_axes(figure, "drop point minus that of random masks", tickformat="+.0%")
    fig.legend_below(figure)
    own = known[(known["rule"] == main_rules(result)[0]) & (known["curve"] == main_curve(result))]
    above = int((own["low"] > 0).sum())
    title = (
        f"{main_curve(result)} goes further than random masks at {above} of {len(own)} checkpoints "
        f"({main_rules(result)[0]})"
    )
    alt = f"Lines of the excess over random masks over training steps, {len(rules)} tolerances. {title}; "
    alt += f"from {100 * own['excess'].min():.0f} to {100 * own['excess'].max():.0f} points."
    return fig.describe(
        figure, title=title, subtitle=f"{paired_text(known)}; one training run", alt=alt, result=result
    )


def damage(result: Result) -> fig.Figure:
    """Draw the damage of each level over steps, one panel for each curve."""
    table, looks = result.tables["damage"], _looks(result)
    if table.empty:
        return fig.empty("What each level costs", _NOTHING)
    everywhere = table.groupby("asked")[["step", "curve"]].apply(lambda part: len(part.drop_duplicates()))
    whole = len(table[["step", "curve"]].drop_duplicates())
    levels = sorted(everywhere.index[everywhere == whole])
    shades = dict(zip(levels, theme.ramp(len(levels)), strict=True))
    axis, floor, columns = StepAxis.of(table["step"]), _floor(result), min(len(looks), 3)
    rows = -(-len(looks) // columns)
    figure = fig.panels(rows, columns, titles=list(looks), height=360 if rows == 1 else 300, share_y="all")
    low, high = floor, floor
    for number, name in enumerate(looks):
        own = axis.place(table[table["curve"] == name].sort_values("step"))
        for level, color in shades.items():
            part = own[np.isclose(own["asked"], level)]
            high = max(high, float(part["damage_high"].fillna(part["damage"]).max()))
            curve(
                figure,
                part.assign(**{end: part[end].clip(lower=floor) for end in _ENDS}),
                "damage",
                f"{percent(level)} zeros",
                x="at",
                color=color,
                columns=result.columns["damage"],
                show="{:.3g}".format,
                text=f"{percent(level)} zeros, step {{0.step:,}}: {{1}} nats".format,
                legend=True,
                alpha=0.12,
                **fig.place_of(number, columns),
            )
    for nats in _nats(result):
        figure.add_hline(y=nats, line=theme.LEVEL)
    figure.update_yaxes(type="log", range=[math.log10(low) - 0.05, math.log10(high) + 0.1])
    axis.arrange(figure, columns=columns)
    fig.y_axes(figure, "rise of the loss, nats (logarithmic)", exponentformat="power", dtick=1)
    fig.legend_below(figure)
    middle = min(levels, key=lambda level: abs(level - 0.5))
    chosen = table[np.isclose(table["asked"], middle) & (table["step"] == table["step"].max())]
    said = [
        f"{row.curve} {f'{row.damage:.3g}' if row.damage >= floor else f'under {floor:g}'}"
        for row in chosen.itertuples()
    ]
    title = f"At step {table['step'].max():,} {percent(middle)} zeros cost: {', '.join(said)} nats"
    alt = f"Lines of the rise of the loss over steps for {len(looks)} curves and {len(levels)} levels. "
    subtitle = f"dotted: tolerances; what is below {floor:.2g} nats is drawn there; only checkpoints below "
    subtitle += "chance"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=f"{alt}{title}.", result=result)


def _nats(result: Result) -> list[float]:
    """The tolerances in nats."""
    rules = dict.fromkeys(result.tables["drop_points"]["rule"])
    return [float(rule.split()[0]) for rule in rules if rule.startswith("+")]


def _floor(result: Result) -> float:
    return min(_nats(result)) / 10
