"""The report's pictures: matplotlib axes as SVG that takes its ink from the page, so that it suits light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ope.display import Markup, escape, number, tag
from ope.plotting import (
    plot_agreement,
    plot_calibration,
    plot_differences,
    plot_ess,
    plot_estimates,
    plot_returns,
    plot_sensitivity,
    plot_weights,
)
from ope.plotting._axes import COLUMN, STYLE, fix_tick_sizes, require_matplotlib, rows_height
from ope.plotting.comparison import matrix_height
from ope.report._parts import first_candidates
from ope.returns import ReturnDistribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A colour that no picture uses stands for the page's ink until the file is written.
INK = "#010203"
MAX_LINES = 8


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Parameters
    ----------
    key : str
        Unique in the page.
    title, words : str
        Caption: what it is, and how to read it.
    height : float
        In inches, at one column's width.
    draw : callable
        Draws into the axes that it gets.
    """

    key: str
    title: str
    words: str
    height: float
    draw: Callable[[Axes], object]


def figures(selector: Any, sensitivity: Any = None) -> list[Markup]:
    """Return the pictures that a fitted selector allows, as figure elements."""
    return [figure(picture) for picture in pictures(selector, sensitivity)]


def pictures(selector: Any, sensitivity: Any = None) -> Iterator[Picture]:
    """Yield the pictures that a fitted selector allows."""
    n = len(next(iter(selector.estimates_.values())))
    if selector.primary_ is not None:
        words = "Thick lines: interval of one candidate. Thin lines: intervals that hold for all candidates at once. Bold: the choice."
        yield Picture(
            "estimates",
            "Values of the candidates",
            words,
            rows_height(n),
            lambda ax: plot_estimates(selector, level=selector.settings_.level, ax=ax),
        )
    yield from _of_comparison(selector)
    if len(selector.estimates_) > 1:
        words = (
            "Estimators rest on different assumptions: where their intervals disagree, at least one assumption fails."
        )
        height = rows_height(n, each=max(0.28, 0.13 * len(selector.estimates_)))
        yield Picture(
            "agreement",
            "Estimators against each other",
            words,
            height,
            lambda ax: plot_agreement(selector, level=selector.settings_.level, ax=ax),
        )
    yield from _of_weights(selector)
    if selector.log_.calibration is not None:
        words = "Propensities were estimated. Points on the diagonal: actions were taken as often as predicted."
        yield Picture(
            "calibration", "Calibration of the propensities", words, 2.8, lambda ax: plot_calibration(selector, ax=ax)
        )
    yield from _of_sensitivity(selector, sensitivity)


def _of_comparison(selector: Any) -> Iterator[Picture]:
    comparison = selector.comparison_
    if comparison is None or len(comparison.names) < 2:
        return
    words = "Paired by episode. Orange: the row is better than the column. Stars: p-value adjusted by Holm below 0.05 (*) or 0.01 (**)."
    height = matrix_height(len(comparison.names))
    yield Picture("differences", "Differences", words, height, lambda ax: plot_differences(comparison, ax=ax))


def _of_weights(selector: Any) -> Iterator[Picture]:
    log, order = selector.log_, first_candidates(selector, MAX_LINES)
    if selector.best_name_ in log.returns:
        words = _about_returns(log.returns[selector.best_name_])
        yield Picture("returns", "Return of an episode", words, 2.4, lambda ax: plot_returns(selector, ax=ax))
    profiles = {name: log.weights[name] for name in order if name in log.weights}
    if not profiles:
        return
    left = f" Of {len(log.weights)} candidates, {len(profiles)} are shown." if len(log.weights) > len(profiles) else ""
    words = "How many logged episodes the importance weights leave for each candidate, as steps go by." + left
    height = 2.3 + 0.12 * len(profiles)
    yield Picture("ess", "Effective episodes over time", words, height, lambda ax: plot_ess(profiles, ax=ax))
    words = (
        "Share of episodes with at least such a weight. Slow falls are heavy tails: few episodes carry the estimate; ▲ marks them."
        + left
    )
    yield Picture("weights", "Tails of the weights", words, height, lambda ax: plot_weights(profiles, ax=ax))


def _about_returns(law: ReturnDistribution) -> str:
    words = (
        "Probability that an episode returns at most so much. Further right is better. The band holds the whole curve; it rests on the importance "
        f"weights alone, which leave {number(law.ess)} effective episodes."
    )
    if law.truncated_share:
        words += (
            f" The recording of {law.truncated_share:.0%} of them stopped early: their return is counted up to there."
        )
    return words


def _of_sensitivity(selector: Any, sensitivity: Any) -> Iterator[Picture]:
    if sensitivity is None:
        return
    named = sensitivity if hasattr(sensitivity, "items") else {"": sensitivity}
    for k, (name, path) in enumerate(named.items()):
        title = f"Sensitivity to {path.parameter.replace('_', ' ')}" + (f": {name}" if name else "")
        yield Picture(
            f"sensitivity{k}",
            title,
            path.conclusion,
            2.4,
            lambda ax, path=path: plot_sensitivity(path, baseline=selector.baseline_, ax=ax),  # type: ignore[misc]
        )


def figure(picture: Picture) -> Markup:
    """Return a picture as a figure element with caption and alternative text."""
    caption = tag("figcaption", tag("b", f"{picture.title}. "), picture.words)
    return tag("figure", svg(picture), caption, id=f"figure-{picture.key}")


def svg(picture: Picture) -> Markup:
    """Draw a picture and return it as an inline SVG element."""
    mpl = require_matplotlib()
    from matplotlib.figure import Figure

    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    fixed = {"svg.hashsalt": picture.key, "svg.fonttype": "path", **dict.fromkeys(colours, INK)}
    with mpl.rc_context({**STYLE, **fixed}):
        drawing = Figure(figsize=(COLUMN, picture.height), layout="constrained")
        axes = drawing.subplots()
        fix_tick_sizes(axes)
        picture.draw(axes)
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_embedded(buffer.getvalue(), picture))


def _embedded(text: str, picture: Picture) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    # The style of a picture would hold for the whole page; the page's own style has this rule.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    # Several pictures live in one page: what they define must not share names.
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{picture.key}-", text).replace(INK, "currentColor")
    label = escape(f"{picture.title}. {picture.words}")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()
