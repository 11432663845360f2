"""Paths: a value over a setting that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ope.estimate import Estimate
from ope.plotting._axes import MARKERS, MUTED, axes_for, legend_above, line_style, shorten
from ope.validation import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("value", "low", "high")
NAMES = {"odds_ratio": "odds ratio of unobserved confounding", "clip": "limit of the weights"}


def plot_sensitivity(paths: Any, *, baseline: float | Estimate | None = None, ax: Axes | None = None) -> Axes:
    """Draw the value of candidates over a setting, with bands.

    Parameters
    ----------
    paths : SensitivityPath, DataFrame, or mapping of str to these
        From `ope.sensitivity`. A frame has the setting as its first column or index, and columns value, low and high.
    baseline : float or Estimate, optional
        Drawn as a line.
    ax : Axes, optional
        Where to draw; default: a new figure of one column's width.

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError, ValueError
        If there is no path.

    Notes
    -----
    Bands are pointwise. Dotted lines are the estimated bounds under confounding, where the path has them: the band surrounds
    these. Settings whose largest is more than 20 times the smallest stand on a logarithmic axis; infinite ones at its end.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> path = pd.DataFrame({"clip": [1.0, 10.0], "value": [0.4, 0.5], "low": [0.3, 0.3], "high": [0.5, 0.7]})
    >>> ax = plot_sensitivity(path, ax=Figure().subplots())
    >>> ax.get_xlabel(), ax.lines[0].get_ydata()
    ('limit of the weights', array([0.4, 0.5]))
    """
    named = {name: _path(item) for name, item in (paths if isinstance(paths, Mapping) else {"": paths}).items()}
    if not named:
        raise ValueError("plot_sensitivity: `paths` must hold at least one path, got none; see ope.sensitivity.")
    with axes_for(ax) as ax:
        handles = [_band(ax, k, name, *path) for k, (name, path) in enumerate(named.items())]
        if baseline is not None:
            value = baseline.value if isinstance(baseline, Estimate) else float(baseline)
            name = baseline.policy if isinstance(baseline, Estimate) else "baseline"
            handles.append(ax.axhline(value, color=MUTED, linestyle="--", linewidth=1.0, label=name))
        ax.set_xlabel(next(iter(named.values()))[0])
        ax.set_ylabel("value")
        _scale(ax, np.concatenate([frame.index.to_numpy(dtype=float) for _, frame in named.values()]))
        if any(named) or baseline is not None:
            legend_above(ax, [handle for handle in handles if handle.get_label()])
    return ax


def _band(ax: Axes, k: int, name: str, _: str, frame: pd.DataFrame) -> Any:
    x = frame.index.to_numpy(dtype=float)
    finite = x[np.isfinite(x)]
    x = np.where(np.isposinf(x), _end(finite), x)
    value, low, high = (frame[column].to_numpy(dtype=float) for column in COLUMNS)
    style = line_style(k)
    ax.fill_between(x, low, high, color=style["color"], alpha=0.22, linewidth=0)
    for bound in {"bound_low", "bound_high"} & set(frame):
        ax.plot(x, frame[bound].to_numpy(dtype=float), color=style["color"], linestyle=":", linewidth=0.9)
    marker = MARKERS[k % len(MARKERS)]
    return ax.plot(x, value, **style, marker=marker, markersize=3.5, label=shorten(name))[0]


def _scale(ax: Axes, x: FloatArray) -> None:
    finite = x[np.isfinite(x)]
    if len(finite) and finite.min() > 0 and finite.max() / finite.min() > 20:
        ax.set_xscale("log")
    if np.isposinf(x).any():
        ax.text(_end(finite), -0.02, "∞", transform=ax.get_xaxis_transform(), ha="center", va="top")


def _end(finite: FloatArray) -> float:
    return 2.0 * float(finite.max(initial=0.5))


def _path(path: Any) -> tuple[str, pd.DataFrame]:
    """Return the name of the setting, and value, low and high indexed by it."""
    frame = path if isinstance(path, pd.DataFrame) else getattr(path, "frame", None)
    if not isinstance(frame, pd.DataFrame) or not set(COLUMNS) <= set(frame):
        raise TypeError(
            f"plot_sensitivity: `paths` must be a path of ope.sensitivity or a frame with columns {', '.join(COLUMNS)}, got {type(path).__name__}."
        )
    if frame.index.name is None:
        frame = frame.set_index("parameter" if "parameter" in frame else frame.columns[0])
    name = str(getattr(path, "parameter", frame.index.name))
    return NAMES.get(name, name.replace("_", " ")), frame
