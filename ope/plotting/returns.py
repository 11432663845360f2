"""The distribution of an episode's return under a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ope.plotting._axes import MUTED, axes_for, legend_above, line_style, shorten
from ope.returns import ReturnDistribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_returns(distributions: Any, *, logged: bool = True, ax: Axes | None = None) -> Axes:
    """Draw the distribution function of the return under candidates, with simultaneous bands.

    Parameters
    ----------
    distributions : ReturnDistribution, mapping of str to ReturnDistribution, or PolicySelector
        From `ope.returns.return_distribution`. Of a fitted selector, that of the chosen candidate.
    logged : bool
        Whether to draw the logged returns too.
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
        If there is no distribution.

    Notes
    -----
    A curve further to the right is better. The band holds the whole function with its confidence.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> x, f = np.array([0.0, 1.0]), np.array([0.5, 1.0])
    >>> law = ReturnDistribution(x, f, f - 0.1, np.minimum(f + 0.1, 1.0), f, 0.95, 200.0, 0.0)
    >>> ax = plot_returns(law, ax=Figure().subplots())
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['candidate', 'logged']
    """
    named = _distributions(distributions)
    first = next(iter(named.values()))
    with axes_for(ax) as ax:
        handles = [_curve(ax, k, name, law) for k, (name, law) in enumerate(named.items())]
        if logged:
            x, y = _from_zero(first.returns, first.logged_cdf)
            handles += ax.plot(x, y, drawstyle="steps-post", color=MUTED, linewidth=1.0, linestyle="--", label="logged")
        ax.set(
            ylim=(-0.02, 1.02),
            xlabel=f"discounted return of an episode ({first.level:.0%} band)",
            ylabel="probability of at most this",
        )
        legend_above(ax, handles)
    return ax


def _curve(ax: Axes, k: int, name: str, law: ReturnDistribution) -> Any:
    style = line_style(k)
    ax.fill_between(law.returns, law.low, law.high, step="post", color=style["color"], alpha=0.22, linewidth=0)
    x, y = _from_zero(law.returns, law.cdf)
    return ax.plot(x, y, drawstyle="steps-post", **style, label=shorten(name))[0]


def _from_zero(x: Any, cdf: Any) -> tuple[Any, Any]:
    # The function jumps from 0 at the smallest return: without this, its first step would not be seen.
    return np.concatenate([x[:1], x]), np.concatenate([[0.0], cdf])


def _distributions(distributions: Any) -> Mapping[str, ReturnDistribution]:
    if isinstance(distributions, ReturnDistribution):
        return {"candidate": distributions}
    if hasattr(distributions, "log_"):
        held, chosen = distributions.log_.returns, distributions.best_name_
        distributions = {chosen: held[chosen]} if chosen in held else held
    if isinstance(distributions, Mapping) and distributions:
        return distributions
    raise TypeError(
        "plot_returns: `distributions` must be a ReturnDistribution, a non-empty mapping of them or a PolicySelector fitted on a log with "
        f"propensities, got {type(distributions).__name__}; call ope.returns.return_distribution(data, policy, gamma=...)."
    )
