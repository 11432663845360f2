"""DICE: ratios of visits from one Lagrangian, whose switches give DualDICE, GenDICE, BestDICE and AlgaeDICE."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from typing_extensions import Self

from ope.estimators._dice_base import SaddleEstimator, check_terminal
from ope.estimators._dice_problem import Lagrangian, NeuralFunctions, Terminal
from ope.validation import check_number

__all__ = ["DICE", "NeuralFunctions"]

POINTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "dual": {"nu_regularizer": 0.0, "zeta_regularizer": 1.0, "reward": False, "norm": False, "positive": False},
        "gen": {"nu_regularizer": 1.0, "zeta_regularizer": 0.0, "reward": False, "norm": True, "positive": True},
        "best": {"nu_regularizer": 0.0, "zeta_regularizer": 1.0, "reward": True, "norm": True, "positive": True},
        "algae": {"nu_regularizer": 0.0, "zeta_regularizer": 1.0, "reward": True, "norm": False, "positive": False},
    }
)


class DICE(SaddleEstimator):
    """Ratios of visits zeta and a function nu at the saddle point of one Lagrangian, in linear classes or networks.

    The defaults are those of `DICE.best()`; `DICE.dual()`, `.gen()` and `.algae()` are the other named points.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1]; below 1 without a horizon.
    nu_regularizer, zeta_regularizer : float
        Weights a_nu and a_zeta of E f(nu) and E f(zeta).
    reward : bool
        Keep the reward in the Lagrangian (a_R), which makes nu a value function, shrunk by `zeta_regularizer`.
    norm : bool
        Ask for E zeta = 1, with the multiplier lambda.
    positive : bool
        Ask for zeta >= 0 on the logged rows.
    power : float
        f(x) = |x|^p / p, above 1. Other than 2 in linear classes only with nu_regularizer=0.
    terminal : {"auto", "absorbing", "zero"}
        What follows a terminal: an absorbing state with nu and zeta of its own, or nu = 0. With "zero" the ratios do not average
        to 1, so that `norm` needs "absorbing". "auto": "absorbing" with `norm`, else "zero".
    features : "auto", "identity" or scikit-learn transformer
        Features of nu and zeta, as for `LSTDQ`; tabular with one-hot states.
    network : NeuralFunctions or None
        Settings of networks for nu and zeta; None for linear classes.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value. Otherwise, with a horizon in the log, there is
        a nu_t and a zeta_t for every step.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of these draws, of networks, and of features whose own `random_state` is None.

    Notes
    -----
    max_{zeta >= 0} min_{nu, lambda} of k E_0 nu + lambda + E_D[zeta (a_R r + gamma nu' - nu - lambda)] + a_nu E_D f(nu) - a_zeta E_D f(zeta),
    with k = 1 - gamma (1 / sum_t gamma^t with a horizon). The value is the dual one, E_D[zeta r] / k, the only one of the three that the
    regularisers leave unbiased (Yang et al.); ``primal`` E_0 nu + lambda / k (NaN without `reward`) and ``lagrangian``, both together, are
    among the diagnostics, and a difference to the dual that regularisers do not explain is a finding.

    In linear classes with the same features for both, nu binds zeta to the flow A'u = k phibar_0 where nu_regularizer=0: without a
    constraint in the way every point has the value of `LSTDQ`. Where no ratio of the class is positive and normalised as asked for and
    meets the flow, the Lagrangian has no saddle point; the limit of small a_nu is taken, the allowed ratio that is nearest to the
    flow, and ``flow_shift`` says by how much it moves the value. zeta >= 0 is a convex program, solved exactly; ``residual`` is
    what is left of its optimality conditions.

    psi is the derivative of the saddle point in the weights of the episodes, rows on which zeta = 0 binds staying bound. With both a_nu > 0
    and the reward in the Lagrangian the value does not scale with the rewards.

    Networks descend in nu and lambda and ascend in zeta at once, by optimistic Adam. The value is not theirs, which is
    ``network_value``: their hidden units, as trained and as drawn, and their outputs become the features of the linear problem
    without zeta >= 0, as many of them as Lepski's rule finds that the log can carry, and it is solved in closed form. psi
    takes these features as given; ``drift`` is how far the value still moved as training went on, ``richer_shift`` what it would move by
    with random waves among the features. ``features`` must then be "auto".

    References
    ----------
    Yang, Nachum, Dai, Li, Schuurmans (2020). Off-policy evaluation via the regularized Lagrangian. NeurIPS.
    Nachum, Chow, Dai, Li (2019). DualDICE: behavior-agnostic estimation of discounted stationary distribution corrections. NeurIPS.
    Zhang, Dai, Li, Schuurmans (2020). GenDICE: generalized offline estimation of stationary values. ICLR.
    Nachum, Dai, Kostrikov, Chow, Li, Schuurmans (2019). AlgaeDICE: policy gradient from arbitrary experience.

    Examples
    --------
    >>> from ope import LoggedDataset
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((4, 1)), [0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0], lengths=[1] * 4, ends="terminal", behavior_prob=[0.5] * 4
    ... )
    >>> estimate = DICE.best(gamma=0.9).fit(log, TabularPolicy([[0.75, 0.25]])).estimate()
    >>> round(estimate.value, 9), round(estimate.diagnostics["lagrangian"], 9)
    (0.75, 0.75)
    """

    def __init__(
        self,
        *,
        gamma: float | None = None,
        nu_regularizer: float = 0.0,
        zeta_regularizer: float = 1.0,
        reward: bool = True,
        norm: bool = True,
        positive: bool = True,
        power: float = 2.0,
        terminal: Literal["auto", "absorbing", "zero"] = "auto",
        features: Any = "auto",
        network: NeuralFunctions | None = None,
        stationary: bool = False,
        n_samples: int = 16,
        random_state: int = 0,
    ) -> None:
        self.gamma = gamma
        self.nu_regularizer = nu_regularizer
        self.zeta_regularizer = zeta_regularizer
        self.reward = reward
        self.norm = norm
        self.positive = positive
        self.power = power
        self.terminal = terminal
        self.features = features
        self.network = network
        self.stationary = stationary
        self.n_samples = n_samples
        self.random_state = random_state

    @classmethod
    def dual(cls, **params: Any) -> Self:
        """Return DualDICE: zeta regularised, no reward, no norm, zeta of any sign.

        Examples
        --------
        >>> DICE.dual(gamma=0.9).positive
        False
        """
        return cls(**{**POINTS["dual"], **params})

    @classmethod
    def gen(cls, **params: Any) -> Self:
        """Return GenDICE: nu regularised, no reward, E zeta = 1 and zeta >= 0.

        Examples
        --------
        >>> DICE.gen(gamma=0.9).nu_regularizer
        1.0
        """
        return cls(**{**POINTS["gen"], **params})

    @classmethod
    def best(cls, **params: Any) -> Self:
        """Return BestDICE: zeta regularised, with the reward, E zeta = 1 and zeta >= 0.

        Examples
        --------
        >>> DICE.best(gamma=0.9).reward
        True
        """
        return cls(**{**POINTS["best"], **params})

    @classmethod
    def algae(cls, **params: Any) -> Self:
        """Return AlgaeDICE as an evaluator: zeta regularised, with the reward, no norm, zeta of any sign.

        Examples
        --------
        >>> DICE.algae(gamma=0.9).norm
        False
        """
        return cls(**{**POINTS["algae"], **params})

    # ---------------------------------------------------------------- checks

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        for name in ("nu_regularizer", "zeta_regularizer"):
            value = getattr(self, name)
            check_number(owner, name, value, "a number of at least 0", "pass 0 for none", 0.0)
        check_number(owner, "power", self.power, "a number above 1", "2 is usual", 1.0, above=True)
        for name in ("reward", "norm", "positive"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"{owner}: `{name}` must be True or False, got {value!r}; pass one of them.")
        check_terminal(owner, self.terminal, bool(self.norm), "norm=True", "norm=False")
        if self.network is None and self.power != 2.0 and self.nu_regularizer > 0.0:
            raise ValueError(
                f"{owner}: `power` must be 2 in linear classes with nu_regularizer > 0, got {self.power!r}; pass power=2, nu_regularizer=0 or a network."
            )

    # ---------------------------------------------------------------- workflow

    def _lagrangian(self) -> Lagrangian:
        terminal: Terminal = "absorbing" if self.terminal == "absorbing" or self.norm else "zero"
        return Lagrangian(
            float(self.nu_regularizer),
            float(self.zeta_regularizer),
            bool(self.reward),
            np.inf if self.norm else 0.0,
            bool(self.positive),
            float(self.power),
            terminal,
        )
