"""A tournament of Q functions, which tells what the log contradicts by its instruments, never by squared temporal differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimator import numbered_names
from ope.estimators._crossfit import cross_fit_q, folds, temporal_differences
from ope.estimators._q import QEstimator, QPredictions
from ope.estimators.bellman_error import checked_q, half_fits
from ope.estimators.stacked_q import check_finite, check_members
from ope.policy import Policy, used_rows
from ope.validation import BoolArray, FloatArray, IntArray, check_integer, check_number

if TYPE_CHECKING:
    import pandas as pd

OWNER = "q_tournament"


@dataclass(frozen=True, eq=False)
class Matches:
    """All matches of a tournament.

    Parameters
    ----------
    moments : ndarray of shape (M, M)
        Mean of (q_i - q_j) d_i over transitions, 0 where q_i is right; L is its size.
    std_errors : ndarray of shape (M, M)
    influence : ndarray of shape (n_episodes, M, M)
    """

    moments: FloatArray
    std_errors: FloatArray
    influence: FloatArray

    @property
    def p_values(self) -> FloatArray:
        """p-value of the hypothesis that q_i is right, from its worst match, Bonferroni-corrected; shape (M,)."""
        n, m = len(self.influence), len(self.moments)
        played = self.std_errors > 0
        t = np.divide(self.moments, self.std_errors, out=np.where(self.moments != 0, np.inf, 0.0), where=played)
        return np.asarray(np.minimum(1.0, max(m - 1, 1) * 2.0 * stdtr(max(n - 1, 1), -np.abs(t)).min(axis=1)))


def play(q: FloatArray, delta: FloatArray, used: BoolArray, offsets: IntArray, weight: FloatArray) -> Matches:
    """Let every Q function meet every other.

    Parameters
    ----------
    q, delta : ndarray of shape (n, M)
        Predictions, and Bellman targets minus predictions.
    used : ndarray of shape (n,)
        Rows without a target are left out.
    offsets : ndarray of shape (n_episodes + 1,)
    weight : ndarray of shape (n_episodes,)

    Examples
    --------
    >>> q = np.array([[1.0, 0.0], [1.0, 3.0]])
    >>> play(q, np.array([[0.5, 0.0], [-0.5, 0.0]]), np.ones(2, bool), np.arange(3), np.ones(2)).moments
    array([[ 0.  , -0.75],
           [ 0.  ,  0.  ]])
    """
    m, n = q.shape[1], len(weight)
    mass = weight * ragged.segment_sum(used.astype(np.float64), offsets)
    total, moments, psi = float(mass.sum()), np.zeros((m, m)), np.zeros((n, m, m))
    d = -np.where(used[:, None], delta, 0.0)
    for i in range(m):
        sums = weight[:, None] * ragged.segment_sum((q[:, [i]] - q) * d[:, [i]], offsets)
        moments[i] = sums.sum(axis=0) / total
        psi[:, i] = n * (sums - mass[:, None] * moments[i]) / total
    std_errors = np.sqrt((psi**2).sum(axis=0) / (n * max(n - 1, 1)))
    return Matches(moments, std_errors, psi)


def lasting(full: Matches, halved: Sequence[Matches], noise: float) -> Matches:
    """Return what an endless log would leave of the matches, with standard errors that know the noise of the fitted Q.

    Parameters
    ----------
    full : Matches
    halved : sequence of Matches
        Of fits on half as many episodes; without one nothing is extrapolated.
    noise : float
        Variance of a difference of fitted and test mean over that of the test mean.

    Notes
    -----
    The errors of a right but noisy q_i are part of q_i - q_j: the moment has a bias of order 1 / n, which 2 m(n) - m(n / 2) is free of.

    Examples
    --------
    >>> full, half = (Matches(np.full((1, 1), m), np.ones((1, 1)), np.array([[[1.0]], [[-1.0]]])) for m in (3.0, 5.0))
    >>> lasting(full, [half, half], 2.0).moments, lasting(full, [], 2.0).std_errors
    (array([[1.]]), array([[1.41421356]]))
    """
    moments, psi, n = full.moments, full.influence, len(full.influence)
    if halved:
        moments = 2.0 * moments - np.mean([own.moments for own in halved], axis=0)
        psi = 2.0 * psi - np.mean([own.influence for own in halved], axis=0)
    return Matches(moments, np.sqrt(noise * (psi**2).sum(axis=0) / (n * max(n - 1, 1))), psi)


def q_tournament(
    data: LoggedDataset,
    policy: Policy,
    q: Sequence[QEstimator] | Mapping[str, QEstimator],
    *,
    gamma: float,
    n_folds: int = 5,
    level: float = 0.95,
    episode_weight: npt.ArrayLike | None = None,
    random_state: int = 0,
) -> pd.DataFrame:
    """Compare Q methods by a tournament on episodes that they have not seen (LSTD-Tournament).

    Parameters
    ----------
    data : LoggedDataset
    policy : Policy
        The candidate.
    q : list, or mapping of names, of Q-based estimators
        At least two; they inherit gamma.
    gamma : float
        Discount factor in [0, 1].
    n_folds : int
        They are fitted outside the fold of each episode, at least 2, and once more on each half of the episodes there.
    level : float
        A method is rejected where its p-value is below 1 - level.
    episode_weight : array-like of shape (n_episodes,), optional
    random_state : int
        Seed of the folds.

    Returns
    -------
    DataFrame
        A row per method, the best first: `loss` = max_j L_ij, `worst_match` (the j of it), its `std_error`, `p_value`, `rejected`,
        and `value`, the mean of its cross-fitted Vhat(s_0).

    Raises
    ------
    ValueError, TypeError
        If a parameter, the log or the policy does not fit a Q method.

    Notes
    -----
    With d_i = q_i - (r + gamma E_pi q_i(s', .)), L_ij = |mean((q_i - q_j) d_i)|: 0 where q_i is right, whatever the noise of rewards and
    transitions, and large where q_i is wrong in the direction of q_j. Squared temporal differences instead add the
    variance of the target and prefer Q functions that are flat (double sampling); they are not reported. A Q function that errs in a direction
    in which no other differs from it is not found out: offer methods of different kinds. Standard errors are clustered by episode.

    A right method has noise of its own, which biases its moments by the order of 1 / n: with a value for each step and 64 to 256 episodes the right one
    lost most matches by it. Moments are therefore 2 m(n) - m(n / 2), with m(n / 2) of fits on half as many episodes, and their variance holds
    the noise of the fits, as in `calibration_error`. Where several are left, combine them by `StackedQ`; see ``docs/choice_of_q.md``.

    References
    ----------
    Liu, Zhao, Agarwal, Liu, Huang, Amortila, Jiang (2025). Model selection for off-policy evaluation: new algorithms and experimental
    protocol. NeurIPS. arXiv 2502.08021.

    Examples
    --------
    >>> from ope.estimators import LSTDQ
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((8, 1)), [0, 1] * 4, [1.0, 0.0] * 4, lengths=[1] * 8, ends="terminal", behavior_prob=[0.5] * 8
    ... )
    >>> table = q_tournament(
    ...     log, TabularPolicy([[0.75, 0.25]]), {"plain": LSTDQ(), "shrunken": LSTDQ(ridge=1.0)}, gamma=1.0
    ... )
    >>> list(table.index)
    ['plain', 'shrunken']
    """
    names, members = _named(q)
    check_integer(OWNER, "n_folds", n_folds, 2)
    check_integer(OWNER, "random_state", random_state, 0, "pass a seed")
    check_number(OWNER, "level", level, "a number in (0, 1)", "pass 0.95 for 95 %", 0.0, above=True)
    if level >= 1.0:
        raise ValueError(f"{OWNER}: `level` must be a number in (0, 1), got {level!r}; pass 0.95 for 95 %.")
    nested = [checked_q(OWNER, member, gamma, data, policy) for member in members]
    weight = nested[0]._check_weight(data, episode_weight)
    parts = list(folds(OWNER, data, weight, n_folds, random_state))
    fitted = [cross_fit_q(member, data, policy, weight, parts) for member in nested]
    check_finite(OWNER, fitted, members)
    stationary = bool(getattr(members[0], "stationary", False)) or data.horizon is None
    smaller = [half_fits(member, data, policy, weight, parts, random_state) for member in nested]
    rounds = [fitted, *(list(own) for own in zip(*smaller, strict=True))] if all(smaller) else [fitted]
    played = [_play_on(data, own, weight, float(gamma), stationary) for own in rounds]
    found = lasting(played[0], played[1:], n_folds / (n_folds - 1))
    values = [float(np.mean(weight * own.v[data.offsets[:-1]])) for own in fitted]
    return _table(found, names, values, 1.0 - level)


def _named(q: Sequence[QEstimator] | Mapping[str, QEstimator]) -> tuple[list[str], list[QEstimator]]:
    members = list(q.values()) if isinstance(q, Mapping) else q
    check_members(OWNER, members)
    if len(members) < 2:
        raise ValueError(
            f"{OWNER}: `q` must hold at least 2 Q-based estimators, got {len(members)}; offer one of another kind."
        )
    return list(q) if isinstance(q, Mapping) else numbered_names(members), list(members)


def _play_on(
    data: LoggedDataset, fitted: Sequence[QPredictions], weight: FloatArray, gamma: float, stationary: bool
) -> Matches:
    delta = [temporal_differences(data.rewards, own, data.offsets, gamma) for own in fitted]
    return play(
        np.column_stack([own.q for own in fitted]),
        np.column_stack(delta),
        used_rows(data, stationary),
        data.offsets,
        weight,
    )


def _table(found: Matches, names: list[str], values: list[float], alpha: float) -> pd.DataFrame:
    import pandas as pd

    worst = np.abs(found.moments).argmax(axis=1)
    own = np.arange(len(names))
    table = pd.DataFrame(
        {
            "loss": np.abs(found.moments)[own, worst],
            "worst_match": [names[j] if i != j else "" for i, j in zip(own, worst, strict=True)],
            "std_error": found.std_errors[own, worst],
            "p_value": found.p_values,
            "rejected": found.p_values < alpha,
            "value": values,
        },
        index=pd.Index(names, name="q"),
    )
    return table.sort_values("loss", kind="stable")
