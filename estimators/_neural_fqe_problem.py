"""A log and K candidates on the device, in the unit of the networks. Called by neural fitted Q evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._candidates import CandidateTable
from ope.neural.transitions import Standardizer, Transitions, usable_finals
from ope.schema import End
from ope.validation import FloatArray, IntArray

TIME_WAVES = 6
MARGIN = 0.1


@dataclass(frozen=True, eq=False)
class ActionScaling(Standardizer):
    """Standardise continuous actions after moving those beyond the range of the system to its border."""

    low: FloatArray
    high: FloatArray

    def transform(self, values: npt.NDArray[np.floating]) -> FloatArray:
        """Clip, then standardise."""
        return super().transform(np.clip(values, self.low, self.high))


@dataclass(frozen=True)
class Scaling:
    """How inputs and values of networks relate to those of the log: Q = unit (net + offset).

    Parameters
    ----------
    states : Standardizer
    actions : ActionScaling or None
        None for discrete actions.
    horizon : int or None
        Of time-indexed values, whose networks see the time too.
    unit, offset : float
    low, high : float
        What rewards like the logged ones can add up to, and a tenth of that range more, in the unit of networks.
    """

    states: Standardizer
    actions: ActionScaling | None
    horizon: int | None
    unit: float
    offset: float
    low: float
    high: float

    def value(self, net: FloatArray) -> FloatArray:
        """Return values in the unit of the log."""
        return np.asarray(self.unit * (net + self.offset))


@dataclass(frozen=True, eq=False)
class Problem:
    """What networks train on.

    Parameters
    ----------
    transitions : Transitions
        States standardised, with time in columns of their own where values are time-indexed; rewards such that
        net(s, a) = reward + gamma continues E net(s', .).
    table : CandidateTable
    inputs : Tensor of shape (n, d) or (n, d + k)
        What networks see of the logged rows.
    gamma : float
    scaling : Scaling
    """

    transitions: Transitions
    table: CandidateTable
    inputs: torch.Tensor
    gamma: float
    scaling: Scaling

    @property
    def n_outputs(self) -> int:
        """Outputs of a network: one an action where these are discrete."""
        return self.transitions.n_actions if self.transitions.discrete else 1

    @classmethod
    def build(
        cls, data: LoggedDataset, table: CandidateTable, scaling: Scaling, gamma: float, device: torch.device
    ) -> Problem:
        """Put a log on a device, beside the candidates that are there."""
        raw = Transitions.from_dataset(
            data, device, scaling.states, scaling.actions, horizon_ends=scaling.horizon is not None
        )
        rewards = torch.as_tensor(data.rewards / scaling.unit - scaling.offset, dtype=torch.float64)
        rewards = rewards + gamma * scaling.offset * raw.continues.double().cpu()
        states = raw.states
        if scaling.horizon is not None:
            time = torch.as_tensor(time_columns(_steps(data), scaling.horizon), dtype=torch.float32, device=device)
            states = torch.cat([states, time], dim=1)
        transitions = replace(raw, states=states, rewards=rewards.float().to(device))
        n = len(transitions)
        inputs = states[:n] if data.discrete else torch.cat([states[:n], raw.actions], dim=1)
        return cls(transitions, table, inputs.contiguous(), gamma, scaling)


def _steps(data: LoggedDataset) -> IntArray:
    return np.concatenate([ragged.step_index(data.offsets), data.lengths[usable_finals(data)]])


def time_columns(steps: IntArray, horizon: int) -> FloatArray:
    """Return what networks see of the time: t / H and cosines of it, shape (n, 1 + min(H - 1, 6)).

    Examples
    --------
    >>> time_columns(np.array([0, 2]), horizon=2).round(3)
    array([[-1.,  1.],
           [ 1., -1.]])
    """
    share = steps[:, None] / horizon
    waves = np.cos(np.pi * np.arange(1, min(horizon, TIME_WAVES + 1)) * share)
    return np.hstack([2.0 * share - 1.0, waves])


def fit_scaling(
    data: LoggedDataset,
    gamma: float,
    *,
    stationary: bool,
    action_range: tuple[npt.ArrayLike, npt.ArrayLike] | None,
) -> Scaling:
    """Take the units from a log.

    Notes
    -----
    The unit carries the sign of the mean return, so that networks see the same numbers whatever the unit of the rewards.
    """
    actions = None if data.discrete else _fit_actions(data.actions, action_range)
    horizon = None if stationary else data.horizon
    returns = rough_returns(data, gamma, stationary)
    mean, spread = float(returns.mean()), float(returns.std())
    largest = max(float(np.abs(data.rewards).max()), np.finfo(float).tiny)
    unit = (-1.0 if mean < 0 else 1.0) * max(spread, 0.1 * abs(mean), 0.1 * largest)
    offset = mean / unit
    low, high = sorted(bound / unit for bound in attainable(data, gamma, horizon))
    # Networks near the border are off by noise to both sides: cutting it on one would be a bias.
    slack = MARGIN * (high - low) if np.isfinite(high - low) else 0.0
    ends = (low - slack - offset, high + slack - offset)
    return Scaling(Standardizer.fit(data.states), actions, horizon, unit, offset, *ends)


def _fit_actions(actions: FloatArray, action_range: tuple[npt.ArrayLike, npt.ArrayLike] | None) -> ActionScaling:
    low, high = (-np.inf, np.inf) if action_range is None else action_range
    bounds = [np.broadcast_to(np.asarray(bound, dtype=np.float64), actions.shape[1:]) for bound in (low, high)]
    inside = Standardizer.fit(np.clip(actions, *bounds))
    return ActionScaling(inside.shift, inside.scale, *bounds)


def attainable(data: LoggedDataset, gamma: float, horizon: int | None) -> tuple[float, float]:
    """Return what rewards like the logged ones (or in `reward_range`) can add up to, infinite without discounting."""
    if horizon is not None:
        steps = float(np.sum(gamma ** np.arange(horizon)))
    else:
        steps = 1.0 / (1.0 - gamma) if gamma < 1.0 else np.inf
    least, most = data.reward_range if data.reward_range is not None else (data.rewards.min(), data.rewards.max())
    low, high = min(float(least), 0.0), max(float(most), 0.0)
    return (low * steps if low else 0.0), (high * steps if high else 0.0)


def rough_returns(data: LoggedDataset, gamma: float, stationary: bool) -> FloatArray:
    """Return the discounted rest of its episode at every row, shape (n,); where it goes on, with the mean reward for ever.

    Examples
    --------
    >>> log = LoggedDataset.from_arrays([[0.0]] * 3, [0] * 3, [1.0, 2.0, 3.0], lengths=[2, 1], ends="terminal")
    >>> rough_returns(log, 0.5, stationary=True)
    array([2., 2., 3.])
    """
    ended = (data.ends == End.TERMINAL) | ((data.ends == End.HORIZON) & (not stationary))
    endless = float(data.rewards.mean()) / (1.0 - gamma) if gamma < 1.0 else 0.0
    ahead = np.where(ended, 0.0, endless)
    out = np.empty(len(data))
    for back in range(1, int(data.lengths.max()) + 1):
        alive = np.flatnonzero(data.lengths >= back)
        row = data.offsets[1:][alive] - back
        ahead[alive] = data.rewards[row] + gamma * ahead[alive]
        out[row] = ahead[alive]
    return out
