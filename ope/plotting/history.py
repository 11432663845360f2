"""What learners recorded while they trained: a panel for each quantity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope.plotting._axes import axes_for, legend_above, line_style, panel_grid, panels_for, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWNER = "plot_history"
MARKED = 20  # rows of a history whose points are marked
LABEL = 44  # characters of a learner's name
# Settings that change what is seen of a run, not what it is.
UNSEEN = frozenset({"callbacks", "checkpoint_path", "progress"})


def plot_history(
    learner: Any, *, columns: str | Sequence[str] | None = None, ax: Axes | None = None
) -> npt.NDArray[Any]:
    """Draw what neural learners or estimators recorded while they trained, a panel for each quantity.

    Parameters
    ----------
    learner : object or DataFrame, list of these, or mapping of str to these
        With a `history_`, or such a frame: a column "update" and the recorded quantities. Of several, as `fit_many` returns
        them, each has a line, named by the settings in which they differ, or by the key of the mapping.
    columns : str or list of str, optional
        Which quantities; default: all.
    ax : Axes, optional
        Where to draw; several quantities divide its place. Default: a new figure, for one quantity of one column's width.

    Returns
    -------
    ndarray of Axes
        In the order of the quantities.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If there is no history.
    ValueError
        If nothing was recorded, or not what `columns` names; if several quantities should be drawn into axes that stand in no
        grid of subplots.

    Notes
    -----
    Each quantity has its own axis, logarithmic where all values are positive and the largest is more than ten times the
    smallest.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> history = pd.DataFrame({"update": [1, 2], "loss": [0.5, 0.25], "gap": [30.0, 20.0]})
    >>> axes = plot_history(history, ax=Figure().subplots())
    >>> [ax.get_title(loc="left") for ax in axes], axes[0].lines[0].get_ydata()
    (['loss', 'gap'], array([0.5 , 0.25]))
    """
    frames = _histories(learner)
    shown = _quantities(frames.values(), columns)
    keys = [] if len(frames) == 1 else _keys(frames)
    if len(shown) == 1:
        with axes_for(ax) as ax:
            _draw(ax, shown[0], frames, n_ticks=6)
            ax.set(xlabel="update", ylabel=shorten(shown[0]))
            if keys:
                legend_above(ax, keys)
            return _array([ax])
    with panels_for(OWNER, ax, len(shown), keys) as panels:
        for panel, quantity in zip(panels, shown, strict=True):
            _draw(panel, quantity, frames, n_ticks=4)
            panel.set_title(shorten(quantity), loc="left")
        for lowest in panels[-panel_grid(len(panels))[1] :]:
            lowest.set_xlabel("update")
        return _array(panels)


def _array(panels: Sequence[Axes]) -> npt.NDArray[Any]:
    axes = np.empty(len(panels), dtype=object)
    axes[:] = panels
    return axes


# -------------------------------------------------------------------- what is drawn


def _histories(learner: Any) -> dict[str, pd.DataFrame]:
    """Return the history of each learner by its name; one alone has none."""
    if isinstance(learner, Mapping):
        named = {str(name): _history(one) for name, one in learner.items()}
    elif isinstance(learner, list | tuple):
        frames = [_history(one) for one in learner]
        named = dict(zip(_names(learner), frames, strict=True))
    else:
        named = {"": _history(learner)}
    if not named:
        raise ValueError(f"{OWNER}: `learner` must hold at least one learner, got {learner!r}; pass what was fitted.")
    return named


def _history(learner: Any) -> pd.DataFrame:
    frame = learner if isinstance(learner, pd.DataFrame) else getattr(learner, "history_", None)
    if not isinstance(frame, pd.DataFrame) or "update" not in frame:
        raise TypeError(
            f"{OWNER}: `learner` must be fitted and have a history_ with a column 'update', got {type(learner).__name__}; "
            "pass a neural learner after fit, or a list of them."
        )
    return frame.rename(columns=str)


def _quantities(frames: Iterable[pd.DataFrame], columns: str | Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(str(name) for frame in frames if len(frame) for name in frame if name != "update"))
    if not known:
        raise ValueError(
            f"{OWNER}: `learner` must have recorded something, got a history_ without rows; train for more updates, or "
            "lower `log_every`."
        )
    if columns is None:
        return known
    message = f"{OWNER}: `columns` must be one or several of {known}, got {columns!r}; correct the names."
    if not np.iterable(columns):
        raise TypeError(message)
    wanted = [columns] if isinstance(columns, str) else list(columns)
    if not wanted or any(name not in known for name in wanted):
        raise ValueError(message)
    return list(dict.fromkeys(wanted))


def _names(learners: Sequence[Any]) -> list[str]:
    """Name learners by the settings in which they differ, and by their place where these tell no two apart."""
    settings = [_settings(learner) for learner in learners]
    common = [name for name in settings[0] if all(name in one for one in settings)] if settings else []
    differing = [name for name in common if len({repr(one[name]) for one in settings}) > 1]
    told = [name for name in differing if not name.endswith("random_state")]
    if len({repr([one[name] for name in told]) for one in settings}) < len(settings):
        told = differing
    names = [shorten(", ".join(_word(name, one[name]) for name in told), LABEL) for one in settings]
    twins = {name for name in names if names.count(name) > 1}
    return [f"{name} [{k}]".strip() if name in twins else name for k, name in enumerate(names)]


def _settings(learner: Any) -> dict[str, Any]:
    """Return the settings of a learner and its class; of what it holds, settings and class too."""
    given = learner.get_params() if hasattr(learner, "get_params") else {}
    seen = {name: value for name, value in given.items() if name.rsplit("__", 1)[-1] not in UNSEEN}
    classes = {name: type(value).__name__ if hasattr(value, "get_params") else value for name, value in seen.items()}
    return {"": type(learner).__name__, **classes}


def _word(name: str, value: Any) -> str:
    return f"{name.rsplit('__', 1)[-1]}={value}" if name else str(value)


# -------------------------------------------------------------------- how


def _draw(ax: Axes, quantity: str, frames: Mapping[str, pd.DataFrame], *, n_ticks: int) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = []
    for k, (name, frame) in enumerate(frames.items()):
        if quantity in frame:
            y = frame[quantity].to_numpy(dtype=float)
            ax.plot(frame["update"].to_numpy(), y, **line_style(k), **_marks(len(y)), label=name or quantity)
            drawn.append(y[np.isfinite(y)])
    values = np.concatenate(drawn)
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        _scale(ax, decades=float(np.log10(values.max() / values.min())))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=n_ticks, integer=True, steps=(1, 2, 5, 10)))


def _scale(ax: Axes, decades: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    # matplotlib's own labels between decades overlap in small panels.
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades < 2 else (1.0,)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _marks(n_rows: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 2.5} if n_rows <= MARKED else {}


def _keys(frames: Mapping[str, pd.DataFrame]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], **line_style(k), label=name) for k, name in enumerate(frames)]
