"""Least-squares temporal differences (LSTD) of state values, off-policy by one-step importance ratios."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import EXACT, OffPolicyEstimator
from ope.estimators import _linear as linear
from ope.estimators import _linear_fit as passes
from ope.estimators import _verdicts as verdicts
from ope.estimators._features import (
    Basis,
    FeatureBlock,
    check_features,
    fit_basis,
    history_features,
    onward_rows,
    richer_state_features,
)
from ope.estimators._importance import unlogged_mass
from ope.estimators._specification import past_p_value
from ope.estimators.state_marginal_is import action_ratios, final_features, fit_state_basis
from ope.policy import Policy, Requirement, continuing_ends
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Verdict


def state_p_value(view: passes.LinearView, eps: FloatArray, omega: FloatArray, *, time_indexed: bool) -> float:
    """Return the p-value of the hypothesis that what follows a state and action does not depend on what was before.

    Without ratios, whose rare large values hide a missing state: given the action, the mean of eps is a function of the state.
    """
    block, phi = view.block, view.seen.phi
    if block.discrete:
        by_action = np.einsum("na,nk->nak", np.eye(block.n_actions)[block.actions], phi).reshape(len(phi), -1)
    else:
        by_action = np.hstack([phi, fit_basis("auto", block).logged(block.states, block.actions)])
    return past_p_value(by_action, history_features(block), eps, block.offsets, omega, time_indexed=time_indexed)


class LSTD(OffPolicyEstimator):
    """Least-squares temporal differences: linear state values, each transition weighted by pi / b of its action.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    features : "auto", "identity" or scikit-learn transformer
        Features of the states. "auto": one-hot states as they are, else standardised polynomials of degree 2.
    ridge : float
        Penalty on the squared coefficients; its first-order bias is reported.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value.
    random_state : int
        Seed of features whose own `random_state` is None.

    Notes
    -----
    A = sum rho phi(s) (phi(s) - gamma phi(s'))', b = sum rho phi(s) r, theta = A^-1 b and V = phibar_0' theta. With a horizon there is
    one theta per step, solved backwards. psi_i = n u' sum_t rho_it phi_it eps_it + theta' (phi_0i - phibar_0) with u = A^-T phibar_0.

    The ratio of the one step is enough: E[rho (r + gamma V(s') - V(s)) | s] = 0 holds for the candidate's V in every state,
    whatever brought the log there. Products of ratios would count states by the candidate's visits, which moves the
    solution only where the features are poor, at a variance that grows with the horizon.

    It asks the candidate for nothing but the probability of logged actions. Propensities are taken as they are: psi leaves
    their estimation out, which is conservative for in-sample parametric ones. With b(a|s) = N(s, a) / N(s) and one-hot
    states the value is that of the maximum-likelihood model, and of `LSTDQ`.

    References
    ----------
    Bradtke, Barto (1996). Linear least-squares algorithms for temporal difference learning. Machine Learning 22.
    Yu (2010). Convergence of least squares temporal difference methods under general conditions. ICML.

    Examples
    --------
    >>> from ope.policies import ColumnPolicy
    >>> import pandas as pd
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal",
    ...     behavior_prob=[0.5] * 4, extras=pd.DataFrame({"p": [0.75, 0.25, 0.75, 0.25]}),
    ... )
    >>> round(LSTD(gamma=1.0).fit(log, ColumnPolicy("p")).estimate().value, 9)
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"logged_prob"}),)
    needs_propensities: ClassVar[bool] = True
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "scale_rewards": EXACT,
            "permute_episodes": EXACT,
            "shards_merge": EXACT,
            "on_policy_mean": "fitted values share rewards between the episodes that pass a state",
            "one_step_bandit": "ratios are normalised within what the features tell apart, not over the log",
            "padding": "an absorbing state is one more state to fit",
            "shift_rewards": "features need not be able to express a constant",
        }
    )

    def __init__(
        self,
        *,
        gamma: float | None = None,
        features: Any = "auto",
        ridge: float = 0.0,
        stationary: bool = False,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.features = features
        self.ridge = ridge
        self.stationary = stationary
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_features(owner, self.features)
        check_number(owner, "ridge", self.ridge, "a number of at least 0", "pass ridge=0 for none", 0.0)
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        stationary = self.stationary or data.horizon is None
        basis = fit_state_basis(self.features, data, self.random_state)
        log = passes.LinearLog(data, lambda block: self._look(block, policy, basis, stationary))
        solution = linear.solve(log.sums(weight, 1 if stationary else int(data.horizon or 1)), self._gamma, self.ridge)
        instruments = passes.Instruments(
            partial(richer_state_features, basis=basis), partial(state_p_value, time_indexed=not stationary)
        )
        stats = passes.second_pass(log, weight, solution, self._gamma, instruments)
        diagnostics, findings = passes.diagnose(
            data, solution, stats, self._gamma, stationary=stationary, ridge=self.ridge
        )
        diagnostics["mean_ratio"] = stats.mean_ratio
        findings += [
            verdicts.judge_mean_weight(stats.mean_ratio),
            verdicts.judge_propensities(data, orthogonal=False),
            verdicts.judge_unlogged(*unlogged_mass(data, policy)),
        ]
        return self._result(
            data,
            name,
            value=solution.value,
            influence=stats.influence,
            horizon=None if stationary else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )

    def _look(self, block: LoggedDataset, policy: Policy, basis: Basis, stationary: bool) -> passes.LinearView:
        phi = basis.transform(block.states)
        goes_on = continuing_ends(block, stationary)
        used = np.ones(len(phi), dtype=bool)
        used[block.offsets[1:][goes_on & ~block.final_known()] - 1] = False
        seen = FeatureBlock(
            phi=phi,
            phi_bar=phi,
            phi_next=ragged.shift_to_next(phi, block.offsets, final_features(block, basis, stationary)),
            used=used,
            rewards=block.rewards,
            offsets=block.offsets,
            steps=ragged.step_index(block.offsets),
            ratio=action_ratios(policy, block, False, type(self).__name__),
            onward=onward_rows(block, stationary),
        )
        return passes.LinearView(block, seen, seen, None)
