"""Axes, colours and small helpers of every picture. matplotlib is imported when a picture is drawn, not before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ope.display import LOOKS
from ope.verdict import Level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito (2008), without yellow, which vanishes on paper, and black, which vanishes on dark pages.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", "-.", ":")
MUTED = "#7F7F7F"
COLUMN = 3.4  # inches: one column of a two-column page
PANEL = (2.25, 1.45)  # inches: width and height of one of several panels
MAX_PANELS = 3  # side by side
LINE_HEIGHT = 0.19  # inches, of a legend
TWO_COLUMNS = 24  # characters of a label that leave room for a second one beside it
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "axes.titlelocation": "left",
    "figure.dpi": 150,
}


def require_matplotlib() -> Any:
    """Return matplotlib, or raise an ImportError that says how to get it."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError(
            "ope.plotting needs matplotlib, which is not installed; run: pip install 'ope-learn[plot]'"
        ) from error
    return mpl


@contextmanager
def axes_for(ax: Axes | None, height: float = 2.4) -> Iterator[Axes]:
    """Yield `ax`, or new axes of one column's width; only new axes get the library's style."""
    mpl = require_matplotlib()
    if ax is not None:
        yield ax
        return
    from matplotlib import pyplot as plt

    with mpl.rc_context(STYLE):
        # pyplot shows the figure in notebooks and by plt.show(); nothing is ever drawn into its current axes.
        _, new = plt.subplots(figsize=(COLUMN, height), layout="constrained")
        fix_tick_sizes(new)
        yield new


@contextmanager
def panels_for(owner: str, ax: Axes | None, n: int, keys: Sequence[Any] = ()) -> Iterator[list[Axes]]:
    """Yield n > 1 axes that share the horizontal one, in a new figure or in the place of `ax`, with one legend above them."""
    mpl = require_matplotlib()
    if ax is not None:
        place = _inside(owner, ax, n)
        yield _grid(place, n)
        _legend_over(place, keys, _fill(place, ax, n, keys) if place.get_layout_engine() is None else None)
        return
    from matplotlib import pyplot as plt

    n_rows, n_columns = panel_grid(n)
    with mpl.rc_context(STYLE):
        width = PANEL[0] * n_columns
        height = PANEL[1] * n_rows + 0.3 + LINE_HEIGHT * legend_grid(keys, width)[0]
        figure = plt.figure(figsize=(width, height), layout="constrained")
        panels = _grid(figure, n)
        for panel in panels:
            fix_tick_sizes(panel)
        yield panels
        _legend_over(figure, keys)


def _inside(owner: str, ax: Axes, n: int) -> SubFigure:
    """Return a part of the figure where `ax` stands; `ax` itself stays, unseen."""
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            f"{owner}: `ax` must be one of a grid to be divided into {n} panels, got axes with a place of their own; pass one of "
            "figure.subplots(), or draw one quantity."
        )
    ax.set_axis_off()
    return ax.figure.add_subfigure(place, facecolor="none")


def _grid(place: Figure | SubFigure, n: int) -> list[Axes]:
    n_rows, n_columns = panel_grid(n)
    grid = place.subplots(n_rows, n_columns, sharex=True, squeeze=False)
    for empty in grid.flat[n:]:
        empty.remove()
    panels = list(grid.flat[:n])
    for lowest in panels[-n_columns:]:
        lowest.tick_params(labelbottom=True)
    return panels


def _fill(place: SubFigure, ax: Axes, n: int, keys: Sequence[Any]) -> tuple[float, float]:
    """Let panels fill the box of `ax` where no layout engine does; return the corner where a legend may stand."""
    (n_rows, n_columns), box, cell, inch = panel_grid(n), ax.bbox, place.bbox, place.dpi
    across, down = 0.6 * inch, (0.4 if n == n_rows * n_columns else 0.6) * inch
    # The margin above has room for one line of a legend, as for a title.
    height = box.height - LINE_HEIGHT * inch * max(legend_grid(keys, cell.width / inch)[0] - 1, 0)
    right, bottom = (box.x1 - cell.x0) / cell.width, (box.y0 - cell.y0) / cell.height
    top = bottom + height / cell.height
    place.subplots_adjust(
        left=(box.x0 - cell.x0) / cell.width,
        right=right,
        bottom=bottom,
        top=top,
        wspace=across * n_columns / max(box.width - across * (n_columns - 1), 1.0),
        hspace=down * n_rows / max(height - down * (n_rows - 1), 1.0),
    )
    return right, top + 0.25 * inch / cell.height


def _legend_over(place: Figure | SubFigure, keys: Sequence[Any], corner: tuple[float, float] | None = None) -> None:
    if not keys:
        return
    where = {"loc": "outside upper right"} if corner is None else {"loc": "lower right", "bbox_to_anchor": corner}
    _, n_columns = legend_grid(keys, place.bbox.width / place.dpi)
    place.legend(handles=list(keys), ncols=n_columns, columnspacing=1.2, handletextpad=0.4, borderaxespad=0.2, **where)


def legend_grid(keys: Sequence[Any], width: float) -> tuple[int, int]:
    """Return rows and columns of a legend in `width` inches."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    em = FontProperties(size=rcParams["legend.fontsize"]).get_size_in_points() / 72
    widest = max((len(str(key.get_label())) for key in keys), default=0)
    n_columns = int(np.clip(width / (em * (4.0 + 0.6 * widest)), 1, max(len(keys), 1)))
    return -(-len(keys) // n_columns), n_columns


def panel_grid(n: int) -> tuple[int, int]:
    """Return rows and columns for n panels: as few empty places as there can be.

    Examples
    --------
    >>> [panel_grid(n) for n in (1, 2, 3, 4, 5, 7)]
    [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
    """
    n_rows = -(-n // MAX_PANELS)
    return n_rows, -(-n // n_rows)


def fix_tick_sizes(ax: Axes) -> None:
    """Keep the sizes of tick labels that are made later, when the style is no longer in force."""
    import matplotlib as mpl

    ax.tick_params(axis="x", labelsize=mpl.rcParams["xtick.labelsize"])
    ax.tick_params(axis="y", labelsize=mpl.rcParams["ytick.labelsize"])


def line_style(k: int) -> dict[str, Any]:
    """Return colour and dashes of the k-th candidate: colours repeat after six, the dashes then differ.

    Examples
    --------
    >>> line_style(0)["linestyle"], line_style(6)["linestyle"], line_style(0)["color"] == line_style(6)["color"]
    ('-', '--', True)
    """
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": LINES[(k // len(COLOURS)) % len(LINES)], "linewidth": 1.3}


def rows_height(n_rows: int, each: float = 0.28, least: float = 1.3) -> float:
    """Return the height in inches of a picture with a row per candidate."""
    return max(least, 0.85 + each * n_rows)


def name_rows(ax: Axes, names: Sequence[str], bold: str | None = None) -> None:
    """Put names on the vertical axis, the first on top, that of the chosen candidate in bold."""
    ax.set_yticks(range(len(names)), [shorten(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    for name, label in zip(names, ax.get_yticklabels(), strict=True):
        if name == bold:
            label.set_fontweight("bold")


def shorten(name: str, limit: int = 20) -> str:
    r"""Return a name that fits beside a picture: its begin and end, which tell names apart. Dollar signs stay dollar signs.

    Examples
    --------
    >>> shorten("a policy with a very long name"), shorten("cost_$5")
    ('a policy with…g name', 'cost_\\$5')
    """
    text = " ".join(str(name).split())
    return (text if len(text) <= limit else f"{text[: limit - 7]}…{text[-6:]}").replace("$", r"\$")


def verdict_legend(ax: Axes, levels: Sequence[Level], extra: Sequence[Any] = ()) -> None:
    """Explain the markers of the verdicts that occur, above the picture."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="none", marker=LOOKS[level].marker, color=LOOKS[level].colour, label=level.name)
        for level in sorted(set(levels))
    ]
    legend_above(ax, [*handles, *extra], columns=3)


def legend_above(ax: Axes, handles: Sequence[Any], columns: int = 2) -> None:
    """Place a legend over the axes, where it covers no data; from the right, so that it may reach over the names of rows."""
    widest = max((len(str(handle.get_label())) for handle in handles), default=0)
    ax.legend(
        handles=list(handles),
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns if widest <= TWO_COLUMNS else 1,
        borderaxespad=0.2,
        columnspacing=1.2,
        handletextpad=0.4,
    )


def limits(low: Sequence[float], high: Sequence[float], always: Sequence[float] = ()) -> tuple[float, float] | None:
    """Return the range that shows all finite ends with a margin, None if there are none."""
    ends = np.array([*low, *high, *always], dtype=float)
    ends = ends[np.isfinite(ends)]
    if not len(ends):
        return None
    left, right = float(ends.min()), float(ends.max())
    margin = 0.06 * (right - left) or 0.06 * max(abs(left), 1.0)
    return left - margin, right + margin
