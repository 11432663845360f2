"""Values of candidates: the forest plot, and estimators against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ope.display import LOOKS, number
from ope.estimate import Estimate, estimate_row
from ope.plotting._axes import (
    COLOURS,
    MARKERS,
    MUTED,
    axes_for,
    legend_above,
    limits,
    name_rows,
    rows_height,
    verdict_legend,
)
from ope.plotting._results import read_candidates, read_methods
from ope.verdict import Level

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_estimates(
    results: Any,
    *,
    level: float | None = None,
    baseline: float | Estimate | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a forest plot: a row per candidate with its value and intervals.

    Parameters
    ----------
    results : Estimate, Estimates or PolicySelector
        Of a fitted selector, the estimates of its deciding estimator.
    level : float, optional
        Of the intervals; default: the selector's, else 0.95.
    baseline : float or Estimate, optional
        Drawn as a line; default: the selector's baseline.
    ax : Axes, optional
        Where to draw; default: a new figure of one column's width.

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `results` holds no estimates.

    Notes
    -----
    Thick lines are intervals of one candidate, thin lines hold for all candidates at once. Verdicts differ in colour and
    marker. Refused estimates do not set the limits of the axis: what lies outside is marked at the edge with its value.

    Examples
    --------
    >>> from ope.problems import RandomMDP
    >>> from ope.estimators import WeightedIS
    >>> from ope.policies import TabularPolicy
    >>> from matplotlib.figure import Figure
    >>> problem = RandomMDP(horizon=3, random_state=0)
    >>> candidates = {"a": TabularPolicy(problem.behavior), "b": TabularPolicy(problem.target)}
    >>> estimates = WeightedIS(gamma=1.0).fit(problem.sample(100, random_state=0), candidates).estimate()
    >>> ax = plot_estimates(estimates, ax=Figure().subplots())
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['a', 'b']
    """
    read = read_candidates("plot_estimates", results, level, baseline)
    rows = {name: estimate_row(estimate, read.level) for name, estimate in read.estimates.items()}
    span = _span(rows, read.simultaneous, read.baseline)
    with axes_for(ax, rows_height(len(rows))) as ax:
        if span is not None:
            ax.set_xlim(*span)
        if read.baseline is not None:
            ax.axvline(read.baseline, color=MUTED, linestyle="--", linewidth=1.0, zorder=0, gid="baseline")
        for position, (name, row) in enumerate(rows.items()):
            _forest_row(ax, position, row, read.simultaneous.get(name), span)
        name_rows(ax, list(rows), read.chosen)
        ax.set_xlabel(_value_label(read.estimates), loc="right")
        extra = _line_keys(read.level, bool(read.simultaneous), read.baseline_name)
        verdict_legend(ax, [Level[row["verdict"]] for row in rows.values()], extra)
    return ax


def _span(
    rows: Mapping[str, Mapping[str, Any]], wide: Mapping[str, tuple[float, float]], baseline: float | None
) -> tuple[float, float] | None:
    answered = {name: row for name, row in rows.items() if row["verdict"] != "REFUSE"} or rows
    always = [row["value"] for row in answered.values()] + ([] if baseline is None else [baseline])
    low = [end for name, row in answered.items() for end in (row["low"], wide.get(name, (np.nan, np.nan))[0])]
    high = [end for name, row in answered.items() for end in (row["high"], wide.get(name, (np.nan, np.nan))[1])]
    return limits(low, high, always)


def _forest_row(
    ax: Axes, y: int, row: Mapping[str, Any], wide: tuple[float, float] | None, span: tuple[float, float] | None
) -> None:
    look, value = LOOKS[Level[row["verdict"]]], row["value"]
    if not np.isfinite(value) or span is None:
        ax.text(
            0.5,
            y,
            "no value",
            transform=ax.get_yaxis_transform(),
            ha="center",
            va="center",
            color=MUTED,
            style="italic",
        )
        return
    for width, ends in ((1.0, wide), (3.0, (row["low"], row["high"]))):
        if ends is not None and np.isfinite(ends).all():
            ax.plot(ends, (y, y), color=look.colour, linewidth=width, solid_capstyle="butt", zorder=2)
    if span[0] <= value <= span[1]:
        ax.plot(
            [value],
            [y],
            linestyle="none",
            marker=look.marker,
            color=look.colour,
            markersize=6.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=3,
        )
        return
    _beyond(ax, y, value, look.colour, left=value < span[0])


def _beyond(ax: Axes, y: int, value: float, colour: str, *, left: bool) -> None:
    """Mark a value outside the axes at the edge, with its number."""
    ax.annotate(
        f"◂ {number(value)}" if left else f"{number(value)} ▸",
        (0.0 if left else 1.0, y),
        xycoords=ax.get_yaxis_transform(),
        ha="left" if left else "right",
        va="center",
        color=colour,
    )


def _line_keys(level: float, wide: bool, baseline: str) -> list[Any]:
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color=MUTED, linewidth=3.0, label=f"{level:.0%} interval")]
    if wide:
        keys.append(Line2D([], [], color=MUTED, linewidth=1.0, label="simultaneous"))
    if baseline:
        keys.append(Line2D([], [], color=MUTED, linewidth=1.0, linestyle="--", label=baseline))
    return keys


def _value_label(estimates: Mapping[str, Estimate]) -> str:
    first = next(iter(estimates.values()))
    return f"value by {first.estimator} (gamma {first.gamma:g})"


def plot_agreement(results: Any, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """Draw the values of every candidate by every estimator: whether methods of different assumptions agree.

    Parameters
    ----------
    results : mapping of str to Estimates, or PolicySelector
        By estimator.
    level : float
        Of the intervals.
    ax : Axes, optional
        Where to draw; default: a new figure of one column's width.

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `results` holds no estimates.

    Notes
    -----
    Refused estimates are hollow and do not set the limits of the axis.

    Examples
    --------
    >>> from ope.problems import RandomMDP
    >>> from ope.estimators import LSTDQ, WeightedIS
    >>> from ope.policies import TabularPolicy
    >>> from matplotlib.figure import Figure
    >>> problem = RandomMDP(horizon=3, random_state=0)
    >>> log, candidates = problem.sample(100, random_state=0), {"a": TabularPolicy(problem.target)}
    >>> methods = {type(e).__name__: e.fit(log, candidates).estimate() for e in (WeightedIS(gamma=1.0), LSTDQ(gamma=1.0))}
    >>> ax = plot_agreement(methods, ax=Figure().subplots())
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['WeightedIS', 'LSTDQ']
    """
    methods = read_methods("plot_agreement", results)
    names = list(dict.fromkeys(name for estimates in methods.values() for name in estimates))
    rows = {method: {name: estimate_row(e, level) for name, e in of.items()} for method, of in methods.items()}
    answered = [row for of in rows.values() for row in of.values() if row["verdict"] != "REFUSE"]
    span = limits(
        [row["low"] for row in answered], [row["high"] for row in answered], [row["value"] for row in answered]
    )
    with axes_for(ax, rows_height(len(names), each=max(0.28, 0.13 * len(methods)))) as ax:
        handles = [
            _method(ax, k, len(methods), method, {names.index(name): row for name, row in rows[method].items()})
            for k, method in enumerate(methods)
        ]
        name_rows(ax, names, getattr(results, "best_name_", None))
        if span is not None:
            ax.set_xlim(*span)
        ax.set_xlabel(f"value, {level:.0%} interval (hollow: refused)", loc="right")
        for y in range(1, len(names)):
            ax.axhline(y - 0.5, color=MUTED, linewidth=0.4, alpha=0.5)
        legend_above(ax, handles)
    return ax


def _method(ax: Axes, k: int, n_methods: int, method: str, rows: Mapping[int, Mapping[str, Any]]) -> Any:
    from matplotlib.lines import Line2D

    colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
    shift = 0.0 if n_methods == 1 else 0.6 * (k / (n_methods - 1) - 0.5)
    for y, row in rows.items():
        hollow = row["verdict"] == "REFUSE"
        if np.isfinite([row["low"], row["high"]]).all():
            ax.plot(
                (row["low"], row["high"]), (y + shift,) * 2, color=colour, linewidth=1.2, alpha=0.5 if hollow else 1.0
            )
        if np.isfinite(row["value"]):
            face = "none" if hollow else colour
            ax.plot(
                [row["value"]],
                [y + shift],
                linestyle="none",
                marker=marker,
                markersize=4.5,
                color=colour,
                markerfacecolor=face,
            )
    return Line2D([], [], color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=method)
