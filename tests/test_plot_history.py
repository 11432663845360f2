"""Pictures of training: a panel for each quantity, a line for each learner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="the plot extra is not installed")

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.base import BaseEstimator

from ope.plotting import plot_history

HISTORY = pd.DataFrame(
    {
        "update": [10, 20, 30],
        "loss": [36.0, 35.0, 36.5],
        "gap": [-1.0, 0.0, 1.0],
        "q_mean": [0.001, 0.01, 0.1],
        "penalty": [0.2, np.nan, 0.4],
    }
)


class Learner(BaseEstimator):  # type: ignore[misc]
    """What the picture reads of a learner: its settings and its history."""

    def __init__(
        self, learning_rate: float = 0.1, random_state: int | None = None, inner: Any = None, callbacks: Any = None
    ) -> None:
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.inner = inner
        self.callbacks = callbacks
        self.history_ = HISTORY


class Other(Learner):
    """Another class of learner."""


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    plt.close("all")
    yield
    plt.close("all")


def figure_of(axes: Any) -> Figure:
    figure = axes[0].figure
    assert isinstance(figure, Figure)
    return figure


def titles(axes: Any) -> list[str]:
    return [ax.get_title(loc="left") for ax in axes]


def legend_words(axes: Any) -> list[str]:
    legends = [ax.get_legend() for ax in axes] + list(axes[0].figure.legends)
    found = [[text.get_text() for text in legend.get_texts()] for legend in legends if legend is not None]
    assert len(found) <= 1
    return found[0] if found else []


# -------------------------------------------------------------------- panels


def test_each_quantity_has_its_own_panel_and_scale() -> None:
    axes = plot_history(HISTORY)
    assert titles(axes) == ["loss", "gap", "q_mean", "penalty"]
    for ax, name in zip(axes, HISTORY.columns[1:], strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), HISTORY["update"])
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), HISTORY[name])
    assert axes[0].get_ylim()[0] > 34  # not stretched to the others
    assert [ax.get_yscale() for ax in axes] == ["linear", "linear", "log", "linear"]
    assert legend_words(axes) == []


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7])
def test_panels_share_updates_at_most_three_side_by_side(n: int) -> None:
    frame = pd.DataFrame({"update": [1, 2], **{f"quantity_{k}": [0.0, 1.0] for k in range(n)}})
    axes = plot_history(frame)
    figure = figure_of(axes)
    figure.draw_without_rendering()
    assert len(figure.axes) == n
    boxes = [ax.get_position() for ax in axes]
    columns = sorted({round(box.x0, 3) for box in boxes})
    assert len(columns) <= 3
    assert all(ax.get_shared_x_axes().joined(axes[0], ax) for ax in axes)
    for column in columns:
        lowest = min(
            (ax for ax, box in zip(axes, boxes, strict=True) if round(box.x0, 3) == column),
            key=lambda ax: ax.get_position().y0,
        )
        assert lowest.get_xlabel() == "update"
        assert any(label.get_visible() and label.get_text() for label in lowest.get_xticklabels())
    assert sum(ax.get_xlabel() == "update" for ax in axes) == len(columns)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_nothing_overlaps_and_nothing_is_cut_off(n: int, many: bool) -> None:
    frame = pd.DataFrame({"update": [100_000, 200_000], **{f"a_long_quantity_{k}": [1e-4, 2e3 + k] for k in range(n)}})
    axes = plot_history({f"learner number {k}": frame for k in range(5)} if many else frame)
    figure = figure_of(axes)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [ax.get_tightbbox() for ax in axes] + [legend.get_window_extent() for legend in figure.legends]
    for k, box in enumerate(boxes):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])
    assert min(ax.get_position().height * height / figure.dpi for ax in axes) > 0.6  # inches


def test_few_points_are_marked_so_that_one_row_shows() -> None:
    (one,) = plot_history(HISTORY[["update", "loss"]].iloc[:1])
    assert one.lines[0].get_marker() == "o"
    (many,) = plot_history(pd.DataFrame({"update": np.arange(500), "loss": np.ones(500)}))
    assert many.lines[0].get_marker() == "None"


def test_columns_are_a_name_or_names_in_their_order() -> None:
    (alone,) = plot_history(HISTORY, columns="gap")
    assert alone.get_ylabel() == "gap"
    assert figure_of([alone]).get_size_inches()[0] == pytest.approx(3.4)
    assert titles(plot_history(HISTORY, columns=["q_mean", "loss", "q_mean"])) == ["q_mean", "loss"]


def test_a_column_of_nan_is_an_empty_panel() -> None:
    axes = plot_history(HISTORY.assign(gap=np.nan), columns=["loss", "gap"])
    assert axes[1].get_yscale() == "linear"


# -------------------------------------------------------------------- several learners


def test_several_learners_have_a_line_each_and_one_legend() -> None:
    axes = plot_history([Learner(random_state=k) for k in range(3)])
    assert [len(ax.lines) for ax in axes] == [3] * 4
    assert legend_words(axes) == ["random_state=0", "random_state=1", "random_state=2"]
    (alone,) = plot_history([Learner(random_state=k) for k in range(3)], columns="loss")
    assert legend_words([alone]) == ["random_state=0", "random_state=1", "random_state=2"]
    assert len({line.get_color() for line in alone.lines}) == 3


@pytest.mark.parametrize(
    ("learners", "names"),
    [
        ([Learner(0.1, 0), Learner(0.2, 1)], ["learning_rate=0.1", "learning_rate=0.2"]),
        ([Learner(0.1, 0), Learner(0.1, 1, callbacks=[print])], ["random_state=0", "random_state=1"]),
        (
            [Learner(0.1, 0), Learner(0.1, 1), Learner(0.2, 0)],
            ["learning_rate=0.1, random_state=0", "learning_rate=0.1, random_state=1", "learning_rate=0.2, random_state=0"],
        ),
        ([Learner(), Learner()], ["[0]", "[1]"]),
        ([Learner(0.1), Learner(0.2), Learner(0.2)], ["learning_rate=0.1", "learning_rate=0.2 [1]", "learning_rate=0.2 [2]"]),
        ([Learner(), Other()], ["Learner", "Other"]),
        ([Learner(inner=Learner(0.1)), Learner(inner=Learner(0.2))], ["learning_rate=0.1", "learning_rate=0.2"]),
        ([Learner(inner=Learner()), Learner(inner=Other())], ["inner=Learner", "inner=Other"]),
        ((HISTORY, HISTORY), ["[0]", "[1]"]),
        ({"mine": Learner(), "yours": HISTORY}, ["mine", "yours"]),
        ([Learner()], []),
    ],
)  # fmt: skip
def test_learners_are_named_by_what_tells_them_apart(learners: Any, names: list[str]) -> None:
    assert legend_words(plot_history(learners)) == names


def test_learners_that_record_different_quantities() -> None:
    other = pd.DataFrame({"update": [5], "loss": [1.0], "weight": [0.5]})
    axes = plot_history([HISTORY, other])
    assert titles(axes) == ["loss", "gap", "q_mean", "penalty", "weight"]
    assert [len(ax.lines) for ax in axes] == [2, 1, 1, 1, 1]
    # A line has the colour of its learner, wherever it is alone.
    assert axes[4].lines[0].get_color() == axes[0].lines[1].get_color()


# -------------------------------------------------------------------- axes that are given


def test_one_quantity_is_drawn_into_given_axes() -> None:
    ax = Figure().subplots()
    assert plot_history(HISTORY, columns="loss", ax=ax).tolist() == [ax]


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_several_quantities_divide_the_place_of_given_axes(layout: Any) -> None:
    figure = Figure(figsize=(8, 5), layout=layout)
    mine, other = figure.subplots(1, 2)
    axes = plot_history([Learner(random_state=0), Learner(random_state=1)], ax=mine)
    assert plt.get_fignums() == []
    figure.draw_without_rendering()
    assert not mine.axison
    assert titles(axes) == ["loss", "gap", "q_mean", "penalty"]
    assert all(ax.get_tightbbox().x1 < other.bbox.x0 for ax in axes)
    boxes = [ax.get_tightbbox() for ax in axes]
    assert not any(box.overlaps(later) for k, box in enumerate(boxes) for later in boxes[k + 1 :])
    (legend,) = axes[0].figure.legends
    assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
    assert legend.get_window_extent().y1 <= figure.bbox.height


def test_axes_outside_a_grid_hold_one_quantity_only() -> None:
    ax: Axes = Figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(
        ValueError, match=r"`ax` must be one of a grid to be divided into 4 panels, .* or draw one quantity"
    ):
        plot_history(HISTORY, ax=ax)
    assert len(plot_history(HISTORY, columns=["loss"], ax=ax)) == 1


def test_the_style_of_others_is_kept() -> None:
    before = dict(mpl.rcParams)
    plot_history([Learner(0.1), Learner(0.2)])
    assert dict(mpl.rcParams) == before


# -------------------------------------------------------------------- bad use


@pytest.mark.parametrize(
    ("learner", "columns", "error", "message"),
    [
        (HISTORY, ["los"], ValueError, r"`columns` must be one or several of \['loss', 'gap', 'q_mean', 'penalty'\], got \['los'\]"),
        (HISTORY, "los", ValueError, r"must be one or several of \['loss', .* got 'los'; correct the names"),
        (HISTORY, "update", ValueError, "must be one or several of"),
        (HISTORY, [], ValueError, r"must be one or several of .* got \[\]"),
        (HISTORY, 3, TypeError, "must be one or several of .* got 3"),
        (HISTORY, [["loss"]], ValueError, "must be one or several of"),
        ([Learner(), 3], None, TypeError, r"`learner` must be fitted and have a history_ .* got int; pass a neural learner after fit, or a list"),
        ([], None, ValueError, r"`learner` must hold at least one learner, got \[\]"),
        ({}, None, ValueError, "`learner` must hold at least one learner"),
        (HISTORY.iloc[:0], None, ValueError, "`learner` must have recorded something, got a history_ without rows"),
        (HISTORY[["update"]], None, ValueError, "`learner` must have recorded something"),
    ],
)  # fmt: skip
def test_bad_use_is_named(learner: Any, columns: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"plot_history: .*{message}"):
        plot_history(learner, columns=columns)
    assert plt.get_fignums() == []
