"""DICE with networks: trained at the saddle point, then their last layers solved in closed form. Called by `DICE`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from ope.estimators import _verdicts as verdicts
from ope.estimators._candidates import CandidateTable
from ope.estimators._dice_base import Fitted, feature_diagnostics, solve_linear
from ope.estimators._dice_linear import LinearDiceModel
from ope.estimators._dice_problem import DiceProblem, NeuralFunctions
from ope.estimators._neural_dice_checks import (
    ValuePath,
    judge_drift,
    judge_network,
    judge_outside,
    path_of_values,
    try_outside,
)
from ope.estimators._neural_dice_choice import Rung, choose_features, learned_features
from ope.estimators._neural_dice_features import NetworkFeatures, Remembered
from ope.estimators._neural_dice_training import TrainedSaddle, fit_scaling, train_saddle
from ope.estimators._neural_fqe_problem import Scaling
from ope.neural.device import resolve_device
from ope.neural.history import TrainingStatus
from ope.validation import IntArray


@dataclass(frozen=True, eq=False)
class Learned:
    """Trained networks of one candidate, and the features of them that its log can carry.

    Parameters
    ----------
    problem : DiceProblem
        Of the last layers, which correct a ratio that is positive already: linear corrections that had to keep its sign in every
        single row would not meet the flow, and move the value by far more than the little that is negative.
    features : NetworkFeatures
    remembered : Remembered
        The same, for the log of the problem.
    rungs : list of Rung
        What they were chosen from.
    status : TrainingStatus
    path : ValuePath
    """

    problem: DiceProblem
    features: NetworkFeatures
    remembered: Remembered
    rungs: list[Rung]
    status: TrainingStatus
    path: ValuePath

    def report(
        self, value: float, network_value: float, std_error: float
    ) -> tuple[dict[str, Any], list[verdicts.Finding]]:
        """Return what there is to say of the training, beside a value and that of the networks alone."""
        diagnostics = {
            "network_value": network_value,
            "drift": self.path.drift,
            "path": tuple(self.path.values.tolist()),
            "ladder": tuple(rung.value for rung in self.rungs),
            "n_features": self.features.n_features,
            "n_updates": self.status.n_updates,
        }
        return diagnostics, [
            verdicts.judge_solver(self.status.ok, f"training {self.status}"),
            judge_drift(self.path.drift, self.path.unit * std_error),
            judge_network(network_value, value, std_error),
        ]


def learn(
    problems: Sequence[DiceProblem], settings: NeuralFunctions, *, start: float = 1.0
) -> list[Learned | Exception]:
    """Train the networks of K candidates side by side and choose the features of each.

    Parameters
    ----------
    problems : sequence of K DiceProblem
        The same but for the candidate.
    settings : NeuralFunctions
    start : float
        Weight of the first states in the Lagrangian.

    Returns
    -------
    list of K Learned or Exception
        A candidate that fails becomes the exception, and leaves the others alone.
    """
    scaling = fit_scaling(problems[0])
    asked = [_ask(problem, scaling, settings) for problem in problems]
    tables = [table for table in asked if isinstance(table, CandidateTable)]
    if not tables:
        return [error for error in asked if isinstance(error, Exception)]
    trained, places = train_saddle(problems[0], CandidateTable.join(tables), scaling, settings, start), count()
    return [
        table if isinstance(table, Exception) else _choose(problem, trained, next(places))
        for problem, table in zip(problems, asked, strict=True)
    ]


def in_key_order(problems: Sequence[DiceProblem]) -> tuple[list[DiceProblem], IntArray]:
    """Return the problems with their episodes ordered by key, and the order.

    Batches are drawn by position, and rounding depends on it: one order for all logs of the same episodes.
    """
    order = np.argsort(problems[0].data.episode_keys, kind="stable")
    data, weight = problems[0].data.select(order), problems[0].episode_weight[order]
    return [replace(problem, data=data, episode_weight=weight) for problem in problems], order


def _ask(problem: DiceProblem, scaling: Scaling, settings: NeuralFunctions) -> CandidateTable | Exception:
    try:
        return CandidateTable.build(
            problem.data,
            [problem.policy],
            device=resolve_device(settings.device, "NeuralFunctions"),
            actions=scaling.actions,
            n_samples=problem.n_samples,
            random_state=problem.random_state,
        )
    except Exception as error:
        return error


def _choose(problem: DiceProblem, trained: TrainedSaddle, k: int) -> Learned | Exception:
    free = replace(problem, lagrangian=replace(problem.lagrangian, positive=False))
    positive = problem.lagrangian.positive
    try:
        rich = learned_features(trained.networks[k], trained, free, positive)
        features, rungs = choose_features(free, Remembered(rich, free.data, free.policy))
        path = path_of_values(free, trained, k, features.inner)
    except Exception as error:
        return error
    return Learned(free, features.inner, features, rungs, trained.statuses[k], path)


# -------------------------------------------------------------------- ratios of visits


def fit_candidates(problems: Sequence[DiceProblem], settings: NeuralFunctions) -> list[Fitted | Exception]:
    """Train the networks of K candidates side by side and solve their last layers; see `learn`."""
    if not problems:
        return []
    ordered, order = in_key_order(problems)
    results: list[Fitted | Exception] = []
    for learned in learn(ordered, settings):
        try:
            results.append(learned if isinstance(learned, Exception) else _finish(learned, np.argsort(order)))
        except Exception as error:
            results.append(error)
    return results


def _finish(learned: Learned, back: IntArray) -> Fitted:
    problem, features = learned.problem, learned.remembered
    fitted = solve_linear(problem, features)
    assert isinstance(fitted.model, LinearDiceModel)
    assert fitted.influence is not None
    values = replace(fitted.model, features=features).evaluate(problem.policy, problem.data)
    c = problem.ratio_scale * np.where(problem.used, values.zeta, 0.0)
    tests, std_error = feature_diagnostics(problem, features, c), verdicts.standard_error(fitted.influence)
    outside = try_outside(problem, features, c, tests["lstdq"])
    zeta = learned.features.own_zeta(problem.data)
    network_value = problem.mass * problem.mean(zeta * problem.data.rewards, np.zeros(problem.n_values))
    diagnostics, findings = learned.report(fitted.value, network_value, std_error)
    names = ("lstdq", "condition", "specification_p", "features_p", "unsupported")
    return Fitted(
        replace(fitted.model, features=learned.features),
        fitted.value,
        fitted.influence[back],
        {**fitted.diagnostics, **{name: tests[name] for name in names}, **outside.diagnostics(), **diagnostics},
        [
            *fitted.findings,
            *findings,
            verdicts.judge_condition(tests["condition"]),
            verdicts.judge_specification(tests["specification_p"]),
            verdicts.judge_unsupported(tests["unsupported"]),
            judge_outside(outside.shift, std_error),
        ],
    )
