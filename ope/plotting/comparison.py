"""Differences between candidates, as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ope.plotting._axes import axes_for, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STARS = ((0.01, "**"), (0.05, "*"))
MAX_NUMBERS = 8


def plot_differences(comparison: Any, *, adjust: str = "holm", ax: Axes | None = None) -> Axes:
    """Draw the paired differences of candidates: row minus column.

    Parameters
    ----------
    comparison : Comparison, Estimates or PolicySelector
        Of a fitted selector, its `comparison_`.
    adjust : str
        How p-values are adjusted for the number of differences: a method of `Comparison.adjusted`.
    ax : Axes, optional
        Where to draw; default: a new figure of one column's width.

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    Orange: the row is better, purple: the column is. One star marks an adjusted p-value below 0.05, two below 0.01.
    With more than 8 candidates the cells hold the stars only.

    Examples
    --------
    >>> from ope.problems import RandomMDP
    >>> from ope.estimators import WeightedIS
    >>> from ope.policies import TabularPolicy
    >>> from matplotlib.figure import Figure
    >>> problem = RandomMDP(horizon=3, random_state=0)
    >>> candidates = {"a": TabularPolicy(problem.behavior), "b": TabularPolicy(problem.target)}
    >>> estimates = WeightedIS(gamma=1.0).fit(problem.sample(100, random_state=0), candidates).estimate()
    >>> plot_differences(estimates, ax=Figure().subplots()).get_title()
    'row - column'
    """
    read = _comparison(comparison)
    values = read.difference.to_numpy(dtype=float)
    p_values = read.adjusted(adjust).to_numpy(dtype=float)
    names = [str(name) for name in read.difference.index]
    shown, n = np.ma.masked_array(values, mask=np.eye(len(names), dtype=bool) | ~np.isfinite(values)), len(names)
    top = float(np.abs(shown).max()) if shown.count() else 1.0
    with axes_for(ax, matrix_height(n)) as ax:
        mesh = ax.pcolormesh(shown, cmap="PuOr_r", vmin=-(top or 1.0), vmax=top or 1.0)
        ax.invert_yaxis()
        _name_sides(ax, names)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title("row - column", fontsize="medium")
        digits = decimals(top) if n <= MAX_NUMBERS else None
        size = 6.0 if n <= 6 else 5.4
        for i, j in np.argwhere(~np.ma.getmaskarray(shown)):
            _cell(ax, i, j, values[i, j], p_values[i, j], digits=digits, pale=abs(values[i, j]) < 0.6 * top, size=size)
        mesh.set_gid("differences")
    return ax


def matrix_height(n: int) -> float:
    """Return the height in inches of a matrix of n candidates.

    Examples
    --------
    >>> matrix_height(3) < matrix_height(8) < matrix_height(30)
    True
    """
    return max(1.6, 0.9 + 0.34 * min(n, MAX_NUMBERS) + 0.1 * max(n - MAX_NUMBERS, 0))


def _name_sides(ax: Axes, names: Sequence[str]) -> None:
    n, places = len(names), np.arange(len(names)) + 0.5
    tilt: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    small: dict[str, Any] = {}
    if n > 12:
        tilt, small = {"rotation": 90}, {"fontsize": 5.5}
    ax.set_xticks(places, [shorten(name, 14) for name in names], **tilt, **small)
    ax.set_yticks(places, [shorten(name, 18) for name in names], **small)


def stars(p_value: float) -> str:
    """Return the mark of an adjusted p-value.

    Examples
    --------
    >>> stars(0.001), stars(0.03), stars(0.2)
    ('**', '*', '')
    """
    return next((mark for limit, mark in STARS if p_value < limit), "")


def decimals(top: float) -> int:
    """Return how many decimals show three digits of the largest difference; the same for all cells.

    Examples
    --------
    >>> decimals(1.6), decimals(0.05), decimals(250.0)
    (2, 4, 0)
    """
    return int(np.clip(2 - np.floor(np.log10(top)), 0, 6)) if top > 0 else 0


def _cell(
    ax: Axes, i: int, j: int, value: float, p_value: float, *, digits: int | None, pale: bool, size: float
) -> None:
    text = stars(p_value) if digits is None else f"{value:+.{digits}f}\n{stars(p_value)}".strip()
    # Middle tones of the map are pale: dark ink there, light ink on the strong ends.
    ax.text(
        j + 0.5,
        i + 0.5,
        text,
        ha="center",
        va="center",
        fontsize=size,
        linespacing=0.8,
        color="#111111" if pale else "#FFFFFF",
    )


def _comparison(comparison: Any) -> Any:
    if hasattr(comparison, "comparison_"):
        comparison = comparison.comparison_
    if hasattr(comparison, "difference") and hasattr(comparison, "adjusted"):
        return comparison
    from ope.comparison import Comparison

    return Comparison(comparison)
