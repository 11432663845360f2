"""Learners with action values: reading them, and scoring them on other episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ope.neural.device import one_thread
from ope.policies._network_policy import PREDICT_ROWS, NetworkPolicy, mean_square_score
from ope.policies._neural import NeuralLearner
from ope.policies.discrete import codes_of
from ope.policy import expectation, used_rows
from ope.validation import FloatArray

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset


class CriticPolicy(NetworkPolicy):
    """A policy whose critic is the network "q": twins, or one for discrete actions."""

    fixed: ClassVar[tuple[str, ...]] = ("gamma",)

    gamma: float

    def q_values(self, states: npt.ArrayLike, actions: npt.ArrayLike | None = None) -> FloatArray:
        """Return what the critic believes: the learner's own estimate, no evidence of the policy's value.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        actions : array-like of shape (n, k) or (n,)
            Continuous actions, or labels; without labels all discrete actions are evaluated.

        Returns
        -------
        ndarray of shape (n,), or (n, n_actions) for all discrete actions
            In the unit of the rewards; the smaller one where there are twins.
        """
        rows = self._states(states)
        inputs = self._critic_inputs(self.origin_.states.transform(rows))
        discrete = self.origin_.action_labels is not None
        if not discrete:
            inputs = np.hstack([inputs, self._scaled(actions, len(rows))])
        with one_thread(), torch.no_grad():
            parts = [
                self.networks_["q"](part).amin(dim=0).double()
                for part in torch.split(torch.from_numpy(inputs).float(), PREDICT_ROWS)
            ]
        values = torch.cat(parts).numpy() / self.origin_.reward_scale
        if not discrete:
            return np.asarray(values[:, 0])
        return np.asarray(values if actions is None else self._of_labels(values, actions))

    def _of_labels(self, values: FloatArray, actions: npt.ArrayLike) -> FloatArray:
        codes = codes_of(actions, self._discrete_labels(), f"{type(self).__name__}.q_values", len(values))
        return values[np.arange(len(values)), codes]

    def _critic_inputs(self, states: FloatArray) -> FloatArray:
        """Return what the critic sees of standardised states."""
        return states

    def _scaled(self, actions: npt.ArrayLike | None, n_rows: int) -> FloatArray:
        owner, k, unit = type(self).__name__, self.origin_.n_actions, self.origin_.actions
        assert unit is not None
        if actions is None:
            raise ValueError(f"{owner}.q_values: `actions` must be given, shape (n, {k}), got None; pass them.")
        points = np.asarray(actions, dtype=np.float64)
        points = points[:, None] if points.ndim == 1 else points
        if points.shape != (n_rows, k):
            raise ValueError(
                f"{owner}.q_values: `actions` must have shape {(n_rows, k)}, got {points.shape}; pass one a state."
            )
        return unit.transform(points)

    def score(self, data: LoggedDataset) -> float:
        """Return minus the mean square of the critic's temporal-difference errors under this policy.

        Parameters
        ----------
        data : LoggedDataset
            Other episodes than those of the fit, with the same action labels.

        Returns
        -------
        float
            Not above 0, in squared units of the reward.

        Notes
        -----
        delta = r + gamma E_{a' ~ pi} Q(s', a') - Q(s, a), transitions to an unknown state left out. It says how well the
        critic fits, not how good the policy is: compare policies by an estimator of `ope.estimators`.
        """
        self._check_log(data)
        self._check_labels(data)

        def q(states: FloatArray, actions: npt.NDArray[Any] | None) -> FloatArray:
            return self.q_values(states, actions)

        following = expectation(self, data, q, at="next", horizon_continues=True)
        if data.discrete:
            logged = self.q_values(data.states)[np.arange(len(data)), data.actions]
        else:
            logged = self.q_values(data.states, data.actions)
        errors = data.rewards + self._at_fit("gamma") * following - logged
        return mean_square_score(type(self).__name__, errors[used_rows(data, horizon_continues=True)])


class CriticLearner(CriticPolicy, NeuralLearner):
    """Base class of learners that train a critic on `ope.neural`."""
