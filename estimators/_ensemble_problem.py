"""A log as what probabilistic networks learn from: inputs, targets, and the box they are trusted in. Called by `ModelEnsemble`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._features import is_one_hot
from ope.estimators._neural_fqe_problem import ActionScaling, _fit_actions, time_columns
from ope.neural.transitions import Standardizer, Transitions, usable_finals
from ope.schema import End
from ope.validation import FloatArray

MARGIN = 0.1
# States farther out, in ranges of the log on either side, are moved to this border: rollouts must stay finite.
BORDER = 1.0
LARGEST_INPUT = 10.0


@dataclass(frozen=True, eq=False)
class ModelScaling:
    """How inputs and outputs of networks relate to those of the log.

    Parameters
    ----------
    states : Standardizer
    actions : ActionScaling or None
        None for discrete actions.
    n_actions : int
    one_hot : bool
        Whether the next state is one of d columns, drawn by a softmax, rather than a Gaussian step.
    input_scale : ndarray of shape (d,)
        What states are multiplied with as inputs: more than 1 for the columns of rare one-hot states, which are learned sooner.
    step : ndarray of shape (d,)
        Spread of the steps of standardised states.
    unit, offset : float
        Reward = unit (net + offset).
    reward_low, reward_high : float
        Least and largest reward that was logged, in the unit of networks.
    low, high : ndarray of shape (d,)
        Box of the logged states, standardised.
    horizon : int or None
        Where networks see the time.
    ends : {"never", "pair", "state"}
        What the probability of an end depends on: there is none; the state and action; or, where all states in which logged
        episodes ended are known, the next state.
    """

    states: Standardizer
    actions: ActionScaling | None
    n_actions: int
    one_hot: bool
    input_scale: FloatArray
    step: FloatArray
    unit: float
    offset: float
    reward_low: float
    reward_high: float
    low: FloatArray
    high: FloatArray
    horizon: int | None
    ends: str

    @property
    def n_states(self) -> int:
        """Number of state columns."""
        return len(self.low)

    @property
    def n_outputs(self) -> int:
        """Outputs of a network: of the next state, mean and log variance of the reward, a logit of the end where it follows from the pair."""
        return (1 if self.one_hot else 2) * self.n_states + 2 + int(self.ends == "pair")


def fit_scaling(
    data: LoggedDataset, by_step: bool, action_range: tuple[npt.ArrayLike, npt.ArrayLike] | None
) -> ModelScaling:
    """Take the units from a log."""
    one_hot = data.discrete and is_one_hot(data.states)
    states = Standardizer.identity(data.states.shape[1]) if one_hot else _standardizer(data.states)
    mean, spread = float(data.rewards.mean()), float(data.rewards.std())
    # The unit carries the sign of the mean reward, so that networks see the same numbers whatever the unit of the rewards.
    unit = (-1.0 if mean < 0 else 1.0) * (spread if spread > 1e-9 * abs(mean) else abs(mean) or 1.0)
    least, most = data.reward_range if data.reward_range is not None else (data.rewards.min(), data.rewards.max())
    reward_low, reward_high = sorted((float(bound) - mean) / unit for bound in (least, most))
    table = states.transform(data.states)
    low, high = table.min(axis=0), table.max(axis=0)
    return ModelScaling(
        states=states,
        actions=None if data.discrete else _fit_actions(data.actions, action_range),
        n_actions=data.n_actions,
        one_hot=one_hot,
        input_scale=_input_scale(table) if one_hot else np.ones(table.shape[1]),
        step=_steps_of(data, states),
        unit=unit,
        offset=mean / unit,
        reward_low=reward_low,
        reward_high=reward_high,
        low=low,
        high=high,
        horizon=data.horizon if by_step else None,
        ends=_ends_of(data, one_hot),
    )


def _input_scale(hot: FloatArray) -> FloatArray:
    spread = hot.std(axis=0)
    return np.asarray(np.minimum(1.0 / np.maximum(spread, 1e-9), LARGEST_INPUT))


def _ends_of(data: LoggedDataset, one_hot: bool) -> str:
    terminal = data.ends == End.TERMINAL
    if not terminal.any():
        return "never"
    return "state" if data.final_known()[terminal].all() and not one_hot else "pair"


def _standardizer(values: FloatArray) -> Standardizer:
    mean, spread = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    return Standardizer(mean, np.where(spread > 1e-9 * np.maximum(np.abs(mean), 1.0), spread, 1.0))


def _steps_of(data: LoggedDataset, states: Standardizer) -> FloatArray:
    inside = np.ones(len(data), dtype=bool)
    inside[data.offsets[1:] - 1] = False
    first = np.flatnonzero(inside)
    if len(first) < 2:
        return np.ones(data.states.shape[1])
    spread = (states.transform(data.states[first + 1]) - states.transform(data.states[first])).std(axis=0)
    return np.where(spread > 1e-9, spread, 1.0)


@dataclass(frozen=True, eq=False)
class ModelProblem:
    """What networks train on; n rows.

    Parameters
    ----------
    transitions : Transitions
        The log on the device, states standardised.
    inputs : Tensor of shape (n, p)
    following : Tensor of shape (n, d)
        Next states, standardised; anything where there is none.
    target : Tensor of shape (n, d) or (n,)
        Standardised steps of the state, or the column of the next one-hot state.
    rewards : Tensor of shape (n,)
    onward : Tensor of shape (n,)
        1 where the next state is known, else 0.
    ended, told : Tensor of shape (n,)
        1 at a terminal end, and 1 where it is known whether there was one.
    scaling : ModelScaling
    """

    transitions: Transitions
    inputs: torch.Tensor
    following: torch.Tensor
    target: torch.Tensor
    rewards: torch.Tensor
    onward: torch.Tensor
    ended: torch.Tensor
    told: torch.Tensor
    scaling: ModelScaling

    @classmethod
    def build(cls, data: LoggedDataset, scaling: ModelScaling, device: torch.device) -> ModelProblem:
        """Put a log on a device."""
        raw = Transitions.from_dataset(data, device, scaling.states, scaling.actions)
        n, last = len(data), data.offsets[1:] - 1
        onward, ended = np.ones(n), np.zeros(n)
        terminal = data.ends == End.TERMINAL
        # Where ends follow from the next state, that of a terminal end is a state like others.
        onward[last] = usable_finals(data) | (terminal & (scaling.ends == "state"))
        ended[last] = terminal

        def move(array: npt.NDArray[np.generic] | FloatArray) -> torch.Tensor:
            return torch.as_tensor(array, dtype=torch.float32, device=device)

        following = move(_following(data, scaling.states))
        step = (following - raw.states[:n]) / move(scaling.step)
        return cls(
            transitions=raw,
            inputs=torch.cat(_columns(data, raw, scaling, device), dim=1).contiguous(),
            following=following,
            target=following.argmax(dim=1) if scaling.one_hot else step,
            rewards=move(data.rewards / scaling.unit - scaling.offset),
            onward=move(onward),
            ended=move(ended),
            told=move(np.maximum(onward, ended)),
            scaling=scaling,
        )


def _following(data: LoggedDataset, states: Standardizer) -> FloatArray:
    final = data.states[data.offsets[1:] - 1].copy()
    known = data.final_known()
    if data.final_states is not None:
        final[known] = data.final_states[known]
    following: FloatArray = ragged.shift_to_next(data.states, data.offsets, final)
    return states.transform(following)


def _columns(data: LoggedDataset, raw: Transitions, scaling: ModelScaling, device: torch.device) -> list[torch.Tensor]:
    parts = [raw.states[: len(data)] * torch.as_tensor(scaling.input_scale, dtype=torch.float32, device=device)]
    if scaling.horizon is not None:
        times = time_columns(ragged.step_index(data.offsets), scaling.horizon)
        parts.append(torch.as_tensor(times, dtype=torch.float32, device=device))
    codes = raw.actions if not raw.discrete else torch.nn.functional.one_hot(raw.actions, scaling.n_actions)
    return [*parts, codes.float()]
