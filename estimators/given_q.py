"""A Q function that is given: not learned from the log, but a control variate of doubly robust methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ope.dataset import LoggedDataset, Rows
from ope.estimate import Estimate
from ope.estimators._draws import final_nodes, row_nodes
from ope.estimators._given import NOT_LEARNED, own_value
from ope.estimators._q import QEstimator, QModel, QPredictions
from ope.policy import Policy, Requirement, continuing_ends, probabilities
from ope.validation import FloatArray, check_integer


class GivenQ(QEstimator):
    """A Q function that is given: by a model fitted elsewhere, on other data, or by people who know the process.

    Its own value is refused: nothing of the log speaks for it. It is a control variate, ``DoublyRobust(q=GivenQ(q))``: with right
    propensities the value is then unbiased, and the interval holds as the log grows, however wrong `q` is.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    q : callable or object
        ``q(states, actions)`` returns a number for each row, with discrete actions for each row and label; or an object whose
        ``predict(policy, data)`` returns `QPredictions`.
    stationary : bool
        Treat a horizon end as a truncation.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of these draws.

    Raises
    ------
    TypeError, ValueError
        If `q` is no such thing, or returns something else than finite numbers.

    Notes
    -----
    X_i = Vhat(s_0) + sum_t gamma^t W_t (r_t + gamma Vhat(s_{t+1}) - Qhat(s_t, a_t)) has the mean J for any function Qhat and Vhat = E_pi
    Qhat that do not depend on the log (prediction-powered inference for sequences of decisions). `EfficientDoublyRobust`
    chooses how far to trust Qhat, so that a bad one does no harm in large logs.

    References
    ----------
    Jiang, Li (2016). Doubly robust off-policy value evaluation for reinforcement learning. ICML.
    Mandyam, Meng, Gao, Sun, Schwager, Engelhardt, Brunskill (2025). PERRY: policy evaluation with confidence intervals using
    auxiliary data. arXiv 2507.20068.

    Examples
    --------
    >>> from ope.estimators import DoublyRobust
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[1] * 8, ends="terminal", behavior_prob=[0.5] * 8
    ... )
    >>> given = GivenQ(q=lambda states, actions: 1.0 - actions)
    >>> estimate = DoublyRobust(gamma=1.0, q=given).fit(log, TabularPolicy([[0.75, 0.25]])).estimate()
    >>> round(estimate.value, 9), round(estimate.std_error, 9)
    (0.75, 0.0)
    """

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}), frozenset({"sample"}))
    laws = NOT_LEARNED

    def __init__(
        self,
        *,
        gamma: float | None = None,
        q: Any = None,
        stationary: bool = False,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.q = q
        self.stationary = stationary
        self.n_samples = n_samples
        self.random_state = random_state

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_integer(owner, "n_samples", self.n_samples, 1)
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")
        if isinstance(self.q, type) or not (callable(self.q) or hasattr(self.q, "predict")):
            raise TypeError(
                f"{owner}: `q` must be a callable q(states, actions) or an object with predict(policy, data), got {self.q!r}; pass one."
            )

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> QModel:
        """Return the Q function; nothing is learned."""
        del policy, episode_weight
        if hasattr(self.q, "predict"):
            model: QModel = self.q
            return model
        return _Function(self, self.stationary or data.horizon is None)

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        return own_value(self, data, policy, name, weight, self.stationary or data.horizon is None)


@dataclass(frozen=True, eq=False)
class _Function:
    """A function of states and actions as a Q model."""

    owner: GivenQ
    stationary: bool

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        """Value the rows of a log."""
        owner, rows = self.owner, data.rows()
        taken = data.actions if data.action_labels is None else data.action_labels[data.actions]
        v_final = np.zeros(data.n_episodes)
        on = np.flatnonzero(continuing_ends(data, self.stationary) & data.final_known())
        if len(on):
            v_final[on] = self._expected(
                policy,
                data,
                data.final_rows(on),
                lambda: final_nodes(policy, data, on, owner.n_samples, owner.random_state),
            )
        v = self._expected(policy, data, rows, lambda: row_nodes(policy, data, owner.n_samples, owner.random_state))
        return QPredictions(self._of(rows.states, taken), v, v_final)

    def _expected(
        self,
        policy: Policy,
        data: LoggedDataset,
        rows: Rows,
        nodes_of: Callable[[], tuple[FloatArray, FloatArray]],
    ) -> FloatArray:
        labels, n = data.action_labels, len(rows.states)
        if labels is not None:
            table = np.stack([self._of(rows.states, np.repeat(labels[a : a + 1], n)) for a in range(len(labels))])
            return np.asarray(np.einsum("na,an->n", probabilities(policy, rows, labels), table))
        nodes, weights = nodes_of()
        return np.asarray(sum(w * self._of(rows.states, a) for w, a in zip(weights, nodes, strict=True)))

    def _of(self, states: FloatArray, actions: npt.NDArray[Any]) -> FloatArray:
        found = np.asarray(self.owner.q(states, actions), dtype=np.float64)
        rule = f"{type(self.owner).__name__}.fit: `q` must return one finite number a row, shape {(len(states),)}, got"
        if found.shape != (len(states),):
            raise ValueError(f"{rule} shape {found.shape}; correct it.")
        wrong = np.flatnonzero(~np.isfinite(found))
        if len(wrong):
            raise ValueError(
                f"{rule} {found[wrong[0]]} in row {wrong[0]} and {len(wrong)} such row(s) in all; correct it."
            )
        return found
