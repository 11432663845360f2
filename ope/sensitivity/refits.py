"""Paths along a setting of the estimator: it is fitted again with every value, on the same episodes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from ope.dataset import LoggedDataset
from ope.display import between, number
from ope.estimate import Estimate, estimate_row
from ope.estimator import OffPolicyEstimator
from ope.inference.methods import IntervalMethod
from ope.policy import Policy
from ope.schema import End
from ope.sensitivity.cut import cut_episodes
from ope.sensitivity.path import SensitivityPath
from ope.validation import check_gamma, check_integer, check_number

__all__ = ["clip_path", "gamma_path", "horizon_path"]

Method = str | IntervalMethod | None
COLUMNS = ("value", "std_error", "low", "high")


def clip_path(
    estimator: OffPolicyEstimator,
    data: LoggedDataset,
    policy: Policy,
    clips: Iterable[float | None],
    *,
    level: float = 0.95,
    method: Method = None,
    name: str | None = None,
) -> SensitivityPath:
    """Refit an estimator with other limits of the weights.

    Parameters
    ----------
    estimator : OffPolicyEstimator
        With a parameter `clip`; as given it is the base of the differences.
    data : LoggedDataset
    policy : Policy
    clips : iterable of float or None
        Positive limits; None or infinity for no limit.
    level : float
        Of the bands.
    method : str or IntervalMethod, optional
        As in `Estimate.confidence_interval`.
    name : str, optional
        What the policy is called; default: its class.

    Returns
    -------
    SensitivityPath
        Differences are paired: all fits are on the same episodes.

    Raises
    ------
    TypeError, ValueError
        If a parameter is unusable or the estimator cannot be fitted as given. A setting at which the fit fails is a row
        without a value that says why.

    Examples
    --------
    >>> from ope.estimators import PerDecisionIS
    >>> from ope.policies import TabularPolicy
    >>> from ope.problems import ModelFail
    >>> problem = ModelFail()
    >>> log, policy = problem.sample(200, random_state=0), TabularPolicy(problem.target)
    >>> path = clip_path(PerDecisionIS(gamma=1.0), log, policy, clips=[1, 2, None])
    >>> path.frame[["parameter", "value", "difference"]].round(3)
       parameter  value  difference
    0        1.0  0.004       0.268
    1        2.0 -0.001       0.263
    2        inf -0.264       0.000
    """
    owner = "clip_path"
    _check_inputs(owner, estimator, data, policy)
    if "clip" not in estimator.get_params(deep=False):
        raise TypeError(
            f"{owner}: `estimator` must have a parameter `clip`, got {type(estimator).__name__}; pass one of the importance "
            "sampling family, such as WeightedIS(gamma=...)."
        )
    limits = [np.inf if clip is None else clip for clip in clips]
    for clip in limits:
        if not (isinstance(clip, float) and clip == np.inf):
            check_number(owner, "clips", clip, "positive limits of the weights, or None", "drop it", 0.0, above=True)
    settings = _rising(owner, "clips", limits)
    fits = [_with(estimator, clip=None if c == np.inf else c) for c in settings]
    base = _base(estimator, data, policy, name)
    return _path(
        "clip", settings, [_fit(fit, data, policy, base.policy) for fit in fits], base, level, method,
        reference=f"the estimator as given, clip={estimator.get_params(deep=False)['clip']!r}",
        moved="a limit there removes weight that matters: its bias is of the size of the difference. Report the value without "
        "a limit, or let clip='lepski' choose the limit that the data do not contradict",
        steady="no limit that was tried removes weight that matters",
    )  # fmt: skip


def gamma_path(
    estimator: OffPolicyEstimator,
    data: LoggedDataset,
    policy: Policy,
    gammas: Iterable[float],
    *,
    level: float = 0.95,
    method: Method = None,
    name: str | None = None,
) -> SensitivityPath:
    """Refit an estimator with other discount factors: other questions to the same episodes.

    Parameters
    ----------
    estimator : OffPolicyEstimator
        With the discount factor that is the base of the differences; nested estimators follow it.
    data, policy, level, method, name
        As in `clip_path`.
    gammas : iterable of float
        Discount factors in [0, 1].

    Returns
    -------
    SensitivityPath
        Values of different discount factors have different units: look at signs, orders and verdicts, or compare the paths
        of two policies.

    Raises
    ------
    TypeError, ValueError
        As `clip_path`.

    Examples
    --------
    >>> from ope.estimators import WeightedIS
    >>> from ope.policies import TabularPolicy
    >>> from ope.problems import ModelFail
    >>> problem = ModelFail()
    >>> log, policy = problem.sample(200, random_state=0), TabularPolicy(problem.target)
    >>> path = gamma_path(WeightedIS(gamma=1.0), log, policy, gammas=[0.5, 1.0])
    >>> (path.frame["value"] / path.frame["value"].iloc[-1]).tolist()
    [0.5, 1.0]
    """
    owner = "gamma_path"
    _check_inputs(owner, estimator, data, policy)
    settings = _rising(owner, "gammas", [check_gamma(owner, gamma) for gamma in gammas])
    nested = [
        key for key, value in estimator.get_params(deep=True).items() if key.endswith("__gamma") and value is not None
    ]
    fits = [_with(estimator, gamma=gamma, **dict.fromkeys(nested, gamma)) for gamma in settings]
    base = _base(estimator, data, policy, name)
    return _path(
        "gamma", settings, [_fit(fit, data, policy, base.policy) for fit in fits], base, level, method,
        reference=f"the question as asked, gamma={estimator.gamma:g}",
        moved="discounting is part of the question, so none of these values is the right one for another gamma: fix gamma before "
        "looking, and decide only what holds for all gammas that you would defend",
        steady="for these episodes the choice of gamma hardly matters",
    )  # fmt: skip


def horizon_path(
    estimator: OffPolicyEstimator,
    data: LoggedDataset,
    policy: Policy,
    horizons: Iterable[int],
    *,
    cut: Literal["horizon", "truncation"] = "horizon",
    level: float = 0.95,
    method: Method = None,
    name: str | None = None,
) -> SensitivityPath:
    """Refit an estimator on the first steps of the episodes.

    Parameters
    ----------
    estimator, data, policy, level, method, name
        As in `clip_path`; the base of the differences is the whole log.
    horizons : iterable of int
        Numbers of steps, at least 1 and at most the log's horizon.
    cut : {"horizon", "truncation"}
        "horizon": the value of the first h steps, E[sum_{t<h} gamma^t r_t]: a shorter question. "truncation": the same
        question as before, asked of a log whose recording stopped after h steps: how much rests on what came later.

    Returns
    -------
    SensitivityPath

    Raises
    ------
    TypeError, ValueError
        As `clip_path`; also if a stationary estimator is asked for the value of the first steps, which it does not answer.

    Examples
    --------
    >>> from ope.estimators import WeightedIS
    >>> from ope.policies import TabularPolicy
    >>> from ope.problems import ModelWin
    >>> problem = ModelWin(horizon=6)
    >>> log, policy = problem.sample(500, random_state=0), TabularPolicy(problem.target)
    >>> path = horizon_path(WeightedIS(gamma=1.0), log, policy, horizons=[2, 4, 6])
    >>> path.frame["difference"].tolist()[-1]
    0.0
    """
    owner = "horizon_path"
    _check_inputs(owner, estimator, data, policy)
    if cut not in ("horizon", "truncation"):
        raise ValueError(f"{owner}: `cut` must be 'horizon' or 'truncation', got {cut!r}; see its docstring.")
    most = int(data.lengths.max()) if data.horizon is None else data.horizon
    settings = _rising(owner, "horizons", [check_integer(owner, "horizons", h, 1, "drop it") for h in horizons])
    if settings[-1] > most:
        raise ValueError(
            f"{owner}: `horizons` must not exceed the {most} steps of the log, got {settings[-1]}; nothing was logged there."
        )
    end = End.HORIZON if cut == "horizon" else End.TRUNCATED
    base = _base(estimator, data, policy, name)
    estimates = [_fit(estimator, cut_episodes(data, int(h), end), policy, base.policy) for h in settings]
    _check_answers(owner, estimator, cut, settings, estimates)
    short = (
        "the value of the first steps is another question than that of all: differences say how much is earned later"
    )
    missed = "the value rests on late steps, or on a model of them: a shorter recording would have told something else"
    return _path(
        "horizon", settings, estimates, base, level, method,
        reference="the whole log",
        moved=short if cut == "horizon" else missed,
        steady="later steps change little",
    )  # fmt: skip


# -------------------------------------------------------------------- fits


def _with(estimator: OffPolicyEstimator, **parameters: Any) -> OffPolicyEstimator:
    changed = copy.deepcopy(estimator)
    changed.set_params(**parameters)
    return changed


def _base(estimator: OffPolicyEstimator, data: LoggedDataset, policy: Policy, name: str | None) -> Estimate:
    estimate: Estimate = copy.deepcopy(estimator).fit(data, policy).estimate()
    return replace(estimate, policy=name or estimate.policy)


def _fit(estimator: OffPolicyEstimator, data: LoggedDataset, policy: Policy, name: str) -> Estimate:
    # The base was fitted: what goes wrong here belongs to this setting, and is told in its row.
    try:
        estimate: Estimate = copy.deepcopy(estimator).fit(data, {name: policy}).estimate()[name]
    except Exception as error:
        return estimator.failed(data, name, f"{type(error).__name__}: {error}")
    return estimate


def _path(
    parameter: str,
    settings: Sequence[float],
    estimates: Sequence[Estimate],
    base: Estimate,
    level: float,
    method: Method,
    *,
    reference: str,
    moved: str,
    steady: str,
) -> SensitivityPath:
    rows = [_row(estimate, base, level, method) for estimate in estimates]
    frame = pd.DataFrame(rows)
    frame.insert(0, "parameter", list(settings))
    words = _in_words(parameter, frame, base, moved, steady)
    return SensitivityPath(parameter, frame, level, base.estimator, base.policy, reference, words)


def _row(estimate: Estimate, base: Estimate, level: float, method: Method) -> dict[str, Any]:
    row = estimate_row(estimate, level, method)
    # The difference of two questions is still a paired number; the subtraction of estimates is told to allow it.
    difference = replace(estimate, gamma=base.gamma, horizon=base.horizon) - base
    gap = estimate_row(difference, level, method)
    return {
        **{column: row[column] for column in COLUMNS},
        "difference": gap["value"],
        "difference_low": gap["low"],
        "difference_high": gap["high"],
        "verdict": row["verdict"],
        "reasons": row["reasons"],
    }


def _in_words(parameter: str, frame: pd.DataFrame, base: Estimate, moved: str, steady: str) -> str:
    there = frame[np.isfinite(frame["value"])]
    if there.empty:
        return f"No setting of {parameter} gives a value: the reasons stand below."
    spread = f"The value goes from {between(there['value'].min(), there['value'].max())}; as given it is {number(base.value)}."
    if there["difference_low"].isna().all():
        return f"{spread} This estimator has no interval for differences: judge them against the standard errors."
    apart = there[(there["difference_low"] > 0.0) | (there["difference_high"] < 0.0)]
    if apart.empty:
        return f"{spread} At no setting does it move by more than sampling error: {steady}."
    where = ", ".join(number(setting) for setting in apart["parameter"])
    return f"{spread} It moves by more than sampling error at {parameter} {where}: {moved}."


# -------------------------------------------------------------------- input


def _check_inputs(owner: str, estimator: Any, data: Any, policy: Any) -> None:
    for parameter, value, kind, remedy in (
        ("estimator", estimator, OffPolicyEstimator, "see ope.estimators"),
        ("data", data, LoggedDataset, "build one with LoggedDataset.from_pandas"),
        ("policy", policy, Policy, "call it for each policy, or wrap it with ope.policies"),
    ):
        if not isinstance(value, kind):
            raise TypeError(
                f"{owner}: `{parameter}` must be one {kind.__name__}, got {type(value).__name__}; {remedy}."
            )


def _rising(owner: str, parameter: str, values: Sequence[Any]) -> list[Any]:
    settings = sorted(set(values))
    if not settings or len(settings) < len(values):
        raise ValueError(
            f"{owner}: `{parameter}` must be at least one setting, each once, got {list(values)}; correct the list."
        )
    return settings


def _check_answers(
    owner: str, estimator: OffPolicyEstimator, cut: str, settings: Sequence[int], estimates: Sequence[Estimate]
) -> None:
    for steps, estimate in zip(settings, estimates, strict=True):
        if cut == "horizon" and estimate.error is None and estimate.horizon != steps:
            raise ValueError(
                f"{owner}: `estimator` must answer for the first {steps} steps, but {type(estimator).__name__} reports the value "
                "of an infinite horizon; set stationary=False, or pass cut='truncation'."
            )
