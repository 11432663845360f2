"""Importance weights: their tails, the effective sample size over time, and the calibration of the propensities below them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ope.estimators._verdicts import THRESHOLDS
from ope.plotting._axes import COLOURS, MARKERS, MUTED, axes_for, legend_above, line_style, shorten
from ope.schema import BehaviorSource
from ope.weight_profile import WeightProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_weights(profiles: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the tails of the importance weights: the share of episodes with at least a weight, on logarithmic axes.

    Parameters
    ----------
    profiles : WeightProfile, mapping of str to WeightProfile, or PolicySelector
        From `ope.weight_profile.weight_profile`.
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
        If `profiles` holds no weights.

    Notes
    -----
    Weights are in units of the mean weight. A line that falls slowly is a heavy tail: few episodes carry the estimate. k is
    the shape of the fitted Pareto tail; the legend marks (▲) those above min(1 - 1 / log10(n), 0.7), where means from
    weights become unreliable.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> profile = WeightProfile(2, np.arange(1), np.array([2.0]), np.log([1.5, 0.5]), float("nan"))
    >>> ax = plot_weights({"a": profile}, ax=Figure().subplots())
    >>> ax.lines[0].get_xdata(), ax.lines[0].get_ydata()
    (array([1.5, 0.5]), array([0.5, 1. ]))
    """
    named = _profiles("plot_weights", profiles)
    with axes_for(ax) as ax:
        handles = []
        for k, (name, profile) in enumerate(named.items()):
            shown = np.isfinite(profile.log_tail)
            label = f"{shorten(name, 14)}{_shape(profile)}"
            handles += ax.plot(
                np.exp(profile.log_tail[shown]),
                profile.survival[shown],
                **line_style(k),
                drawstyle="steps-post",
                label=label,
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        # Weights far below the mean carry nothing.
        ax.set_xlim(left=max(ax.get_xlim()[0], 0.03))
        ax.set_xlabel("weight / mean weight")
        ax.set_ylabel("share of episodes above")
        legend_above(ax, handles)
    return ax


def _shape(profile: WeightProfile) -> str:
    if not np.isfinite(profile.pareto_k):
        return ""
    limit = min(1.0 - 1.0 / np.log10(profile.n_episodes), 0.7)
    return f", k {profile.pareto_k:.2f}" + (" ▲" if profile.pareto_k > limit else "")


def plot_ess(profiles: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the effective sample size of the weights over time.

    Parameters
    ----------
    profiles : WeightProfile, mapping of str to WeightProfile, or PolicySelector
        From `ope.weight_profile.weight_profile`.
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
        If `profiles` holds no weights.

    Notes
    -----
    Dotted lines are the limits below which weighted estimates are CAUTION and REFUSE.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> profile = WeightProfile(2, np.arange(2), np.array([2.0, 1.5]), np.log([1.5, 0.5]), float("nan"))
    >>> ax = plot_ess(profile, ax=Figure().subplots())
    >>> ax.lines[0].get_ydata()
    array([2. , 1.5])
    """
    named = _profiles("plot_ess", profiles)
    with axes_for(ax) as ax:
        from matplotlib.ticker import MaxNLocator

        handles = []
        for k, (name, profile) in enumerate(named.items()):
            mark = "." if len(profile.steps) == 1 else None
            handles += ax.plot(profile.steps + 1, profile.ess, **line_style(k), marker=mark, label=shorten(name))
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        ax.set_yscale("log")
        ax.set_ylim(0.8, 1.3 * max(profile.n_episodes for profile in named.values()))
        _limit(ax, THRESHOLDS.ess_caution, "CAUTION")
        _limit(ax, THRESHOLDS.ess_refuse, "REFUSE")
        ax.set_xlabel("step")
        ax.set_ylabel("effective episodes")
        legend_above(ax, handles)
    return ax


def _limit(ax: Axes, value: float, word: str) -> None:
    if value > ax.get_ylim()[1]:
        return
    ax.axhline(value, color=MUTED, linestyle=":", linewidth=0.9, zorder=0)
    ax.text(
        1.01,
        value,
        f"{word}\n< {value:g}",
        transform=ax.get_yaxis_transform(),
        va="center",
        color=MUTED,
        fontsize="small",
    )


def _profiles(owner: str, profiles: Any) -> Mapping[str, WeightProfile]:
    if isinstance(profiles, WeightProfile):
        return {"candidate": profiles}
    held = profiles.log_.weights if hasattr(profiles, "log_") else profiles
    if isinstance(held, Mapping) and held and all(isinstance(item, WeightProfile) for item in held.values()):
        return held
    raise TypeError(
        f"{owner}: `profiles` must be a WeightProfile, a non-empty mapping of them or a PolicySelector fitted on a log with propensities, "
        f"got {type(profiles).__name__}; call ope.weight_profile.weight_profile(data, policy)."
    )


def plot_calibration(table: Any, *, ax: Axes | None = None) -> Axes:
    """Draw how often actions were taken against the predicted probability, with 95 % ranges of the frequency.

    Parameters
    ----------
    table : DataFrame, BehaviorSource, LoggedDataset or PolicySelector
        A table of `ope.behavior.calibration_table`, or what holds one: a log after `estimate_behavior`.
    ax : Axes, optional
        Where to draw; default: a new figure of one column's width.

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the propensities are known, or densities: there is no table.

    Examples
    --------
    >>> from ope.behavior import calibration_table
    >>> from matplotlib.figure import Figure
    >>> table = calibration_table([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]], [0, 1, 1], n_bins=2)
    >>> ax = plot_calibration(table, ax=Figure().subplots())
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['0', '1']
    """
    frame = _calibration(table)
    actions = list(dict.fromkeys(frame["action"]))
    with axes_for(ax, 2.7) as ax:
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle="--", zorder=0)
        handles = [_action(ax, k, action, frame[frame["action"] == action]) for k, action in enumerate(actions)]
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="predicted probability", ylabel="observed frequency")
        ax.set_aspect("equal")
        legend_above(ax, handles, columns=4)
    return ax


def _action(ax: Axes, k: int, action: object, rows: pd.DataFrame) -> Any:
    x, y, n = (rows[column].to_numpy(dtype=float) for column in ("mean_prediction", "observed_frequency", "count"))
    # Wilson's interval: a frequency of 0 or 1 of few rows is no certainty.
    centre, half = (y + 1.92 / n) / (1 + 3.84 / n), 1.96 * np.sqrt(y * (1 - y) / n + 0.96 / n**2) / (1 + 3.84 / n)
    errors = np.maximum([y - centre + half, centre + half - y], 0.0)
    style: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "markersize": 4.0}
    return ax.errorbar(x, y, yerr=errors, linestyle="none", elinewidth=0.9, label=shorten(str(action), 12), **style)


def _calibration(table: Any) -> pd.DataFrame:
    if hasattr(table, "log_"):
        table = table.log_.calibration
    elif hasattr(table, "behavior_source"):
        table = table.behavior_source
    if isinstance(table, BehaviorSource):
        table = table.calibration
    if isinstance(table, pd.DataFrame) and {"mean_prediction", "observed_frequency", "count", "action"} <= set(table):
        return table
    raise ValueError(
        "plot_calibration: `table` must hold the calibration of estimated probabilities of discrete actions, got none; known propensities need "
        "none, for others pass a table of ope.behavior.calibration_table(probs, data.actions)."
    )
