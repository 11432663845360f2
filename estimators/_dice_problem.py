"""The seam of the DICE family: the Lagrangian's switches, the problem a solver is given, the functions that it fits.

`dice.py` builds a `DiceProblem`; `_dice_linear.py` solves it in closed form, `_neural_dice.py` trains networks, with
`NeuralFunctions` as settings, and solves their last layers in the same closed form. E_D is the mean over the logged rows and, in
the absorbing encoding, over the rows of the absorbing state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.policy import Policy, used_rows
from ope.schema import End
from ope.validation import BoolArray, FloatArray, IntArray, check_integer, check_number

Terminal = Literal["absorbing", "zero"]


@dataclass(frozen=True)
class Lagrangian:
    """The switches of the common Lagrangian of the DICE family.

    Parameters
    ----------
    a_nu, a_zeta : float
        Weights of the regularisers.
    reward : bool
        a_R = 1: the reward is in the Lagrangian, and nu estimates a value function; otherwise it is not one.
    norm_penalty : float
        Weight of the constraint E_D zeta = 1: 0 for none, infinite for lambda as above, in between lambda^2 / (2 norm_penalty) is
        added to the Lagrangian, which penalises (E_D zeta - 1)^2.
    positive : bool
        zeta >= 0.
    power : float
        f(x) = |x|^p / p.
    terminal : {"absorbing", "zero"}
        What follows a terminal: an absorbing state with values of its own, or nu' = 0.

    Notes
    -----
    max_zeta min_{nu, lambda} of k E_0 nu + lambda + E_D[zeta (a_R r + gamma nu' - nu - lambda)] + a_nu E_D f(nu) - a_zeta E_D f(zeta),
    where k is 1 over the discounted number of steps: 1 - gamma, or 1 / sum_t gamma^t with a horizon. The dual value is
    E_D[zeta r] / k, the primal one E_0 nu + lambda / k, and the Lagrangian one both together without the regularisers.

    Examples
    --------
    >>> Lagrangian(a_zeta=1.0, reward=True).slope(np.array([-2.0, 3.0]))
    array([-2.,  3.])
    """

    a_nu: float = 0.0
    a_zeta: float = 0.0
    reward: bool = False
    norm_penalty: float = 0.0
    positive: bool = False
    power: float = 2.0
    terminal: Terminal = "zero"

    @property
    def norm(self) -> bool:
        """Whether E_D zeta = 1 is asked for at all."""
        return self.norm_penalty > 0.0

    def f(self, x: FloatArray) -> FloatArray:
        """Return |x|^p / p."""
        return np.asarray(np.abs(x) ** self.power / self.power)

    def slope(self, x: FloatArray) -> FloatArray:
        """Return its derivative, |x|^(p - 1) sign(x)."""
        return np.asarray(np.abs(x) ** (self.power - 1.0) * np.sign(x))


@dataclass(frozen=True)
class NeuralFunctions:
    """Settings of networks for nu and zeta: pass them as ``network=`` to `DICE`.

    Parameters
    ----------
    hidden : tuple of int
        Widths of the hidden layers of both networks.
    n_updates : int
        Gradient steps, at most: an estimate that has not settled by then says so.
    batch_size : int
        Transitions a step.
    learning_rate : float
        Of nu and lambda.
    zeta_learning_rate : float or None
        Of zeta; None for three times `learning_rate`.
    weight_decay : float
        Decoupled, of both networks.
    device : str
        "auto", "cpu", "cuda".

    Raises
    ------
    ValueError, TypeError
        If a setting cannot be meant.

    Examples
    --------
    >>> NeuralFunctions(hidden=(32,), n_updates=500).hidden
    (32,)
    """

    hidden: tuple[int, ...] = (64, 64)
    n_updates: int = 5_000
    batch_size: int = 512
    learning_rate: float = 3e-3
    zeta_learning_rate: float | None = None
    weight_decay: float = 0.0
    device: str = "auto"

    def __post_init__(self) -> None:
        owner = "NeuralFunctions"
        if not isinstance(self.hidden, tuple | list):
            raise TypeError(
                f"{owner}: `hidden` must be a tuple of widths, got {self.hidden!r}; (64, 64) is two hidden layers."
            )
        for width in self.hidden:
            check_integer(owner, "hidden", width, 1, "give every layer a width")
        check_integer(owner, "n_updates", self.n_updates, 1)
        check_integer(owner, "batch_size", self.batch_size, 1)
        check_number(owner, "weight_decay", self.weight_decay, "a number of at least 0", "pass 0 for none", 0.0)
        rates = {"learning_rate": self.learning_rate, "zeta_learning_rate": self.zeta_learning_rate}
        for name, rate in rates.items():
            if rate is not None:
                check_number(owner, name, rate, "a number above 0", "3e-3 is usual", 0.0, above=True)


@dataclass(frozen=True)
class DiceProblem:
    """What a solver is given.

    Parameters
    ----------
    data : LoggedDataset
    policy : Policy
    episode_weight : ndarray of shape (n_episodes,)
        Of mean 1.
    lagrangian : Lagrangian
    gamma : float
    horizon : int or None
        Number of steps of time-indexed functions nu_t and zeta_t; None for stationary ones.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
    """

    data: LoggedDataset
    policy: Policy
    episode_weight: FloatArray
    lagrangian: Lagrangian
    gamma: float
    horizon: int | None
    n_samples: int = 16
    random_state: int = 0

    @property
    def stationary(self) -> bool:
        """Whether one nu and one zeta serve all steps."""
        return self.horizon is None

    @property
    def n_values(self) -> int:
        """Number of functions of each kind: 1, or one for each step."""
        return 1 if self.horizon is None else self.horizon

    @property
    def mass(self) -> float:
        """Discounted number of steps: J = mass E_D[zeta r]; k of the Lagrangian is 1 / mass."""
        return discounted_steps(self.gamma, self.horizon)

    @cached_property
    def used(self) -> BoolArray:
        """Return False for the last row of an end that goes on to an unknown state, shape (n,)."""
        return used_rows(self.data, self.stationary)

    @cached_property
    def row_weight(self) -> FloatArray:
        """Weight of every logged row in E_D, before division by `total`, shape (n,)."""
        return np.asarray(np.repeat(self.episode_weight, self.data.lengths) * self.used)

    @cached_property
    def absorbed(self) -> BoolArray:
        """Whether an episode goes on in the absorbing state, shape (n_episodes,)."""
        return absorbed_episodes(self.data, self.lagrangian.terminal, self.gamma, self.horizon)

    @cached_property
    def absorbing_weight(self) -> FloatArray:
        """Weight of the absorbing rows of every function (stationary: one; else of every step), shape (n_values,).

        One row at each step after the terminal; stationary: one of weight gamma / (1 - gamma), as many as their discounted number
        when the last logged row counts 1.
        """
        weight = self.episode_weight[self.absorbed]
        if not len(weight):
            return np.zeros(self.n_values)
        if self.stationary:
            return np.array([weight.sum() * self.gamma / (1.0 - self.gamma)])
        ended = np.bincount(self.data.lengths[self.absorbed], weight, self.n_values)
        return np.asarray(np.cumsum(ended[: self.n_values]))

    def absorbing_sum(self, values: FloatArray) -> FloatArray:
        """Sum values (n_values,) over the absorbing rows of each episode, shape (n_episodes,); its weight is left out."""
        if self.stationary:
            per_episode = values[0] * self.gamma / (1.0 - self.gamma) if self.absorbed.any() else 0.0
            return self.absorbed * np.float64(per_episode)
        suffix = np.append(np.cumsum(values[::-1])[::-1], 0.0)
        return np.asarray(np.where(self.absorbed, suffix[np.minimum(self.data.lengths, self.n_values)], 0.0))

    @cached_property
    def total(self) -> float:
        """Number of rows in E_D, each counted with its weight."""
        return float(self.row_weight.sum() + self.absorbing_weight.sum())

    def mean(self, rows: FloatArray, absorbing: FloatArray) -> float:
        """Return E_D of values on the logged rows (n,) and on the absorbing ones (n_values,)."""
        return float(self.row_weight @ rows + self.absorbing_weight @ absorbing) / self.total

    def start_mean(self, starts: FloatArray) -> float:
        """Return E_0 of values at the first states, shape (n_episodes,)."""
        return float(self.episode_weight @ starts / self.episode_weight.sum())

    @property
    def ratio_scale(self) -> float:
        """What turns zeta into c of `RatioModel`, J = mean over episodes of sum_t c_it r_it."""
        return self.mass * float(self.episode_weight.sum()) / self.total


def absorbed_episodes(data: LoggedDataset, terminal: Terminal, gamma: float, horizon: int | None) -> BoolArray:
    """Return whether an episode goes on in the absorbing state, shape (n_episodes,): a terminal before the horizon."""
    if terminal == "zero" or gamma == 0.0:
        return np.zeros(data.n_episodes, dtype=bool)
    before = True if horizon is None else data.lengths < horizon
    return np.asarray((data.ends == End.TERMINAL) & before)


def discounted_steps(gamma: float, horizon: int | None) -> float:
    """Return sum_t gamma^t, over the horizon or without end.

    Examples
    --------
    >>> discounted_steps(0.5, None), discounted_steps(0.5, 2)
    (2.0, 1.5)
    """
    return 1.0 / (1.0 - gamma) if horizon is None else float(np.sum(gamma ** np.arange(horizon)))


@dataclass(frozen=True)
class DiceValues:
    """The fitted functions on the rows of a log.

    Parameters
    ----------
    nu, zeta : ndarray of shape (n,)
        Of the logged state and action.
    nu_next : ndarray of shape (n,)
        E nu(s', a') under the candidate, at the next step where time-indexed; nu of the absorbing state after a terminal in that
        encoding; 0 where nothing follows.
    nu_start : ndarray of shape (n_episodes,)
        E nu(s_0, a) under the candidate.
    nu_absorbing, zeta_absorbing : ndarray of shape (n_values,)
        In the absorbing state, at every step where time-indexed; 0 in the other encoding.
    """

    nu: FloatArray
    zeta: FloatArray
    nu_next: FloatArray
    nu_start: FloatArray
    nu_absorbing: FloatArray
    zeta_absorbing: FloatArray

    @property
    def live(self) -> Functions:
        """On the logged rows."""
        return Functions(self.nu, self.nu_next, self.zeta)

    @property
    def absorbing(self) -> Functions:
        """On the rows of the absorbing state, each of shape (n_values,)."""
        return Functions(self.nu_absorbing, following(self.nu_absorbing), self.zeta_absorbing)


class Functions(NamedTuple):
    """nu, nu one step later and zeta on rows of one kind."""

    nu: FloatArray
    nu_next: FloatArray
    zeta: FloatArray


def following(values: FloatArray) -> FloatArray:
    """Return what comes one step later along the first axis: the same where there is one function, 0 after the last step.

    Examples
    --------
    >>> following(np.array([3.0])), following(np.array([1.0, 2.0]))
    (array([3.]), array([2., 0.]))
    """
    return values if len(values) == 1 else np.concatenate([values[1:], np.zeros_like(values[:1])])


def steps_of(offsets: IntArray, n_values: int) -> IntArray:
    """Return which function serves each row, shape (n,)."""
    steps = ragged.step_index(offsets)
    return steps if n_values > 1 else np.zeros_like(steps)


class DiceModel(Protocol):
    """Fitted functions: what is kept of a solution."""

    def evaluate(self, policy: Policy, data: LoggedDataset) -> DiceValues:
        """Evaluate nu and zeta on the rows of any log of the same kind."""
        ...
