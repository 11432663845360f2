"""Minimax Q learning with networks: trained against each other, then their last layers solved in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ope.dataset import LoggedDataset
from ope.estimators import _verdicts as verdicts
from ope.estimators._dice_base import feature_diagnostics
from ope.estimators._dice_problem import DiceProblem, Lagrangian, NeuralFunctions, following
from ope.estimators._linear import value_index
from ope.estimators._neural_dice import Learned, in_key_order, learn
from ope.estimators._neural_dice_checks import judge_outside, try_outside
from ope.estimators._neural_dice_features import NetworkFeatures
from ope.estimators._q import QPredictions
from ope.estimators.minimax_q import FittedQ, MinimaxQFit, influence, solve
from ope.policy import Policy
from ope.validation import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class NetworkQModel:
    """Q_t(s, a) = phi(s, a)' theta_t in features that networks have learned.

    Parameters
    ----------
    features : NetworkFeatures
    theta : ndarray of shape (n_values, k)
    """

    features: NetworkFeatures
    theta: FloatArray

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        """Value the rows of a log."""
        parts = [self._predict_block(policy, block) for block in data.blocks()]
        return QPredictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _predict_block(self, policy: Policy, block: LoggedDataset) -> tuple[FloatArray, FloatArray, FloatArray]:
        seen = self.features.seen(policy, block)
        s, last = value_index(seen, len(self.theta)), block.offsets[1:] - 1
        ahead = following(self.theta)[s[last]]
        return (
            np.einsum("nk,nk->n", seen.phi, self.theta[s]),
            np.einsum("nk,nk->n", seen.phi_bar, self.theta[s]),
            np.einsum("nk,nk->n", seen.phi_next[last], ahead),
        )


@dataclass(frozen=True, eq=False)
class NetworkQ(FittedQ):
    """A fitted Q function that values other logs too."""

    model: NetworkQModel


def fit_q_network(problem: DiceProblem, settings: NeuralFunctions) -> NetworkQ:
    """Train networks for q and its discriminator, and solve their last layers.

    Notes
    -----
    min_q max_g E_D[g (r + gamma q' - q)] - E_D g^2 / 2: the Lagrangian of the DICE family with a_zeta = 1 and the reward, but
    without the term of the first states. Full gradients through q(s') make it a regression without double sampling.
    """
    switches = Lagrangian(a_zeta=1.0, reward=True)
    ordered, order = in_key_order([replace(problem, lagrangian=switches)])
    learned = learn(ordered, settings, start=0.0)[0]
    if isinstance(learned, Exception):
        raise learned
    fit = solve(learned.problem, learned.remembered, 0.0, False)
    psi, c = influence(learned.problem, learned.remembered, fit)
    diagnostics, findings = _report(learned, fit, psi, c)
    model = NetworkQModel(learned.features, fit.theta)
    rows = _rows_back(problem, order)
    return NetworkQ(fit, psi[np.argsort(order)], c[rows], diagnostics, findings, model)


def _rows_back(problem: DiceProblem, order: IntArray) -> IntArray:
    """Return where each row of the log stands among the ordered ones."""
    lengths = problem.data.lengths
    first = np.concatenate([[0], np.cumsum(lengths[order])[:-1]])[np.argsort(order)]
    return np.arange(len(problem.data)) + np.repeat(first - problem.data.offsets[:-1], lengths)


def _report(
    learned: Learned, fit: MinimaxQFit, psi: FloatArray, c: FloatArray
) -> tuple[dict[str, Any], list[verdicts.Finding]]:
    problem, scaling = learned.problem, learned.features.scaling
    std_error = verdicts.standard_error(psi)
    tests = feature_diagnostics(problem, learned.remembered, c)
    outside = try_outside(problem, learned.remembered, c, tests["lstdq"])
    own = scaling.unit * problem.mass * learned.features.own_start(problem.policy, problem.data)
    diagnostics, findings = learned.report(fit.value, problem.start_mean(own), std_error)
    return {**tests, **outside.diagnostics(), **diagnostics}, [*findings, judge_outside(outside.shift, std_error)]
