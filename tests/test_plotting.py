"""Pictures: what stands on the axes are the numbers of the results, and nothing else is touched."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="the plot extra is not installed")

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from report_case import EVIL, GAMMA, candidates, river_log, selector

from ope import Comparison, Estimates
from ope.behavior import calibration_table
from ope.display import LOOKS
from ope.estimators import WeightedIS
from ope.inference import max_t_quantile
from ope.plotting import (
    plot_agreement,
    plot_calibration,
    plot_differences,
    plot_ess,
    plot_estimates,
    plot_history,
    plot_returns,
    plot_sensitivity,
    plot_weights,
)
from ope.policies import TabularPolicy
from ope.returns import return_distribution
from ope.validation import FloatArray
from ope.verdict import Level
from ope.weight_profile import weight_profile


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


@pytest.fixture(scope="module")
def estimates() -> Estimates:
    result: Estimates = WeightedIS(gamma=GAMMA).fit(river_log(), candidates()).estimate()
    return result


def _x(line: Any) -> FloatArray:
    return np.asarray(line.get_xdata(), dtype=float)


def _y(line: Any) -> FloatArray:
    return np.asarray(line.get_ydata(), dtype=float)


def _points(ax: Axes) -> dict[float, tuple[float, str, str]]:
    """Return x, marker and colour of the single points, by their row."""
    single = [line for line in ax.lines if len(_x(line)) == 1]
    return {
        float(_y(line)[0]): (float(_x(line)[0]), str(line.get_marker()), to_hex(line.get_color())) for line in single
    }


def _bars(ax: Axes, width: float) -> dict[float, list[float]]:
    """Return the ends of horizontal lines of a width, by their row."""
    bars = [
        line for line in ax.lines if len(_x(line)) == 2 and line.get_linewidth() == width and line.get_gid() is None
    ]
    return {float(_y(line)[0]): _x(line).tolist() for line in bars}


# -------------------------------------------------------------------- forest plot


def test_forest_plot_shows_values_intervals_and_verdicts(ax: Axes, estimates: Estimates) -> None:
    plot_estimates(estimates, level=0.9, ax=ax)
    points, thick = _points(ax), _bars(ax, 3.0)
    for y, estimate in enumerate(estimates.values()):
        look = LOOKS[estimate.verdict.level]
        if estimate.verdict.level < Level.REFUSE:
            assert points[y] == (estimate.value, look.marker, look.colour.lower())
            assert thick[y] == pytest.approx(list(estimate.confidence_interval(0.9)))
    assert next(label.get_text() for label in ax.get_yticklabels()) == "today"
    low, high = ax.get_ylim()
    assert low > high  # the first candidate on top


def test_forest_plot_has_simultaneous_intervals(ax: Axes, estimates: Estimates) -> None:
    plot_estimates(estimates, ax=ax)
    finite = {name: e for name, e in estimates.items() if np.isfinite(np.asarray(e.influence)).all()}
    c = max_t_quantile(Estimates(finite).influence, 0.05)
    thin = _bars(ax, 1.0)
    for y, (name, e) in enumerate(estimates.items()):
        if name in finite:
            assert thin[y] == pytest.approx([e.value - c * e.std_error, e.value + c * e.std_error])


def test_forest_plot_of_a_selector(ax: Axes) -> None:
    fitted = selector()
    plot_estimates(fitted, ax=ax)
    thin = _bars(ax, 1.0)
    for y, name in enumerate(fitted.simultaneous_.index):
        row = fitted.simultaneous_.loc[name]
        if np.isfinite(row["low"]):
            assert thin[y] == pytest.approx([row["low"], row["high"]])
    assert fitted.baseline_ is not None
    line = next(line for line in ax.lines if line.get_gid() == "baseline")
    assert set(_x(line)) == {fitted.baseline_.value}
    bold = [label.get_text() for label in ax.get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == [fitted.best_name_]


def test_refused_values_outside_are_marked_at_the_edge(ax: Axes, estimates: Estimates) -> None:
    from dataclasses import replace

    from ope import Verdict

    far = replace(estimates["drift"], value=1e6, verdict=Verdict(Level.REFUSE, ("No.",)))
    failed = replace(estimates["drift"], value=float("nan"), influence=None, verdict=Verdict(Level.REFUSE, ("No.",)))
    plot_estimates(Estimates({"today": estimates["today"], "far": far, "failed": failed}), ax=ax)
    assert ax.get_xlim()[1] < 10
    words = [text.get_text() for text in ax.texts]
    assert words == ["1e+06 ▸", "no value"]


def test_a_single_estimate_and_a_baseline(ax: Axes, estimates: Estimates) -> None:
    plot_estimates(estimates["upstream"], baseline=0.25, ax=ax)
    assert set(_x(ax.lines[0])) == {0.25}
    assert _points(ax)[0][0] == estimates["upstream"].value


# -------------------------------------------------------------------- the others


def test_agreement_has_a_mark_per_estimator_and_candidate(ax: Axes) -> None:
    fitted = selector()
    plot_agreement(fitted, ax=ax)
    drawn = sorted(float(_x(line)[0]) for line in ax.lines if line.get_marker() != "None")
    values = fitted.results_["value"]
    assert drawn == pytest.approx(sorted(values[np.isfinite(values)]))
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(fitted.estimates_)


def test_differences_are_those_of_the_comparison(ax: Axes, estimates: Estimates) -> None:
    comparison = Comparison(estimates)
    plot_differences(comparison, ax=ax)
    drawn: FloatArray = np.ma.getdata(np.ma.asarray(ax.collections[0].get_array())).reshape(len(estimates), -1)
    np.testing.assert_allclose(drawn, comparison.difference.to_numpy())
    p_values = comparison.adjusted("holm").to_numpy()
    for text in ax.texts:
        j, i = (int(place) for place in text.get_position())
        number, _, mark = text.get_text().partition("\n")
        assert float(number) == pytest.approx(comparison.difference.iloc[i, j], abs=0.006)
        assert mark == ("**" if p_values[i, j] < 0.01 else "*" if p_values[i, j] < 0.05 else "")
    assert len(ax.texts) == len(estimates) * (len(estimates) - 1)


def test_many_differences_have_stars_only(ax: Axes) -> None:
    many = {f"step {k}": TabularPolicy([[1.0 - p, p]] * 6) for k, p in enumerate(np.linspace(0.7, 0.9, 13))}
    plot_differences(WeightedIS(gamma=GAMMA).fit(river_log(), many).estimate(), ax=ax)
    assert {text.get_text() for text in ax.texts} <= {"", "*", "**"}
    assert [label.get_text() for label in ax.get_yticklabels()] == list(many)


def test_weights_and_effective_sample_size(estimates: Estimates) -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    profile = weight_profile(river_log(), candidates()["upstream"])
    plot_weights({"upstream": profile}, ax=left)
    plot_ess({"upstream": profile}, ax=right)
    np.testing.assert_allclose(_x(left.lines[0]), np.exp(profile.log_tail))
    np.testing.assert_allclose(_y(left.lines[0]), np.arange(1, 401) / 400)
    np.testing.assert_allclose(_x(right.lines[0]), np.arange(1, 21))
    np.testing.assert_allclose(_y(right.lines[0]), profile.ess)
    assert min(profile.ess) <= estimates["upstream"].diagnostics["ess_final"] + 1e-9


def test_calibration_is_the_table(ax: Axes) -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=200)
    table = calibration_table(np.column_stack([1 - p, p]), (rng.uniform(size=200) < p).astype(int), n_bins=5)
    plot_calibration(table, ax=ax)
    for action, container in zip((0, 1), ax.containers, strict=True):
        line = container[0]
        rows = table[table["action"] == action]
        np.testing.assert_allclose(_x(line), rows["mean_prediction"])
        np.testing.assert_allclose(_y(line), rows["observed_frequency"])


def test_calibration_of_a_selector_from_estimated_propensities(ax: Axes) -> None:
    fitted = selector(estimated=True)
    plot_calibration(fitted, ax=ax)
    assert len(ax.containers) == 2
    with pytest.raises(ValueError, match="known propensities need none"):
        plot_calibration(selector(), ax=ax)


def test_returns_are_the_distribution(ax: Axes) -> None:
    law = return_distribution(river_log(), candidates()["upstream"], gamma=GAMMA)
    plot_returns({"upstream": law}, ax=ax)
    np.testing.assert_allclose(_x(ax.lines[0])[1:], law.returns)
    np.testing.assert_allclose(_y(ax.lines[0]), [0.0, *law.cdf])
    np.testing.assert_allclose(_y(ax.lines[1]), [0.0, *law.logged_cdf])
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((law.low.min(), law.high.max()))


def test_sensitivity_draws_value_and_band(ax: Axes) -> None:
    frame = pd.DataFrame(
        {"parameter": [1.0, 10.0, 1000.0], "value": [0.1, 0.2, 0.3], "low": [0.0, 0.1, 0.1], "high": [0.2, 0.4, 0.9]}
    )
    plot_sensitivity({"a": frame}, baseline=0.15, ax=ax)
    np.testing.assert_allclose(_x(ax.lines[0]), frame["parameter"])
    np.testing.assert_allclose(_y(ax.lines[0]), frame["value"])
    assert ax.get_xscale() == "log"
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (0.0, 0.9)
    assert set(_y(ax.lines[1])) == {0.15}


# -------------------------------------------------------------------- manners


@pytest.fixture
def closed() -> Iterator[None]:
    plt.close("all")
    yield
    plt.close("all")


def _all_pictures(fitted: Any, *, own: bool) -> Mapping[str, Axes]:
    draws = (plot_estimates, plot_agreement, plot_differences, plot_weights, plot_ess, plot_returns)
    return {draw.__name__: draw(fitted, ax=None if own else Figure().subplots()) for draw in draws}


@pytest.mark.usefixtures("closed")
def test_new_axes_are_one_column_wide_and_the_style_stays_inside() -> None:
    before = dict(mpl.rcParams)
    drawn = _all_pictures(selector(), own=True)
    assert dict(mpl.rcParams) == before
    assert len(plt.get_fignums()) == len(drawn)
    for name, axes in drawn.items():
        figure = axes.figure
        assert isinstance(figure, Figure)
        assert figure.get_size_inches()[0] == pytest.approx(3.4), name
        sizes = [float(text.get_fontsize()) for text in [*axes.texts, axes.xaxis.label]]
        assert min(sizes) >= 5, name
        _assert_nothing_is_cut_off(figure, axes, name)


def _assert_nothing_is_cut_off(figure: Figure, axes: Axes, name: str) -> None:
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    box = axes.get_tightbbox()
    assert box is not None
    assert box.x0 >= -1, name
    assert box.y0 >= -1, name
    assert box.x1 <= width + 1, name
    assert box.y1 <= height + 1, name


@pytest.mark.usefixtures("closed")
def test_given_axes_are_used_and_pyplot_is_not() -> None:
    assert len(_all_pictures(selector(), own=False)) == 6
    assert plt.get_fignums() == []


def test_dollars_in_names_are_no_mathematics(ax: Axes, estimates: Estimates) -> None:
    plot_estimates(estimates, ax=ax)
    label = ax.get_yticklabels()[list(estimates).index(EVIL)].get_text()
    assert label.startswith("<script>")
    ax.get_figure().draw_without_rendering()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "draw", [plot_estimates, plot_agreement, plot_weights, plot_ess, plot_returns, plot_sensitivity, plot_history]
)
def test_what_is_no_result_is_a_type_error_with_a_remedy(draw: Any, ax: Axes) -> None:
    with pytest.raises(TypeError, match=rf"{draw.__name__}: `\w+` must") as error:
        draw(3, ax=ax)
    assert "int" in str(error.value)


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, estimates: Estimates) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'ope-learn\[plot\]'"):
        plot_estimates(estimates)
