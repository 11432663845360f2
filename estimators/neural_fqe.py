"""Neural fitted Q evaluation: all candidates train as one batched product, each episode is valued by networks that have not seen it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import _with_overlap
from ope.estimators import _neural_fqe_verdicts as judge
from ope.estimators import _verdicts as verdicts
from ope.estimators._q import QEstimator, QModel
from ope.estimators.importance_sampling import unlogged_mass
from ope.policy import Policy, Requirement, log_prob_logged, overlap
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Level, Verdict

if TYPE_CHECKING:
    from ope.estimators._neural_fqe_fit import CandidateFit, Configuration

REMEDY_BUDGET = "500 is a first look, 2000 the default"


class NeuralFittedQEvaluation(QEstimator):
    """Fitted Q evaluation with networks, cross-fitted by episode; candidates and replicates train side by side.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    hidden : tuple of int
        Widths of the hidden layers.
    n_updates : int
        Gradient steps, shared by all candidates.
    batch_size : int
    learning_rate : float
        Of Adam; it falls to a tenth over the second half.
    n_folds : int
        Networks a candidate, each trained without one fold of the episodes; at least 2.
    n_bootstrap : int
        Further networks a candidate, trained on resampled episodes: `replicates` of the estimate. 0 for none; the
        influence vector needs none.
    action_range : pair of float or array-like of shape (k,), optional
        Lowest and highest continuous action of the system, where it treats those beyond as those at the border: networks
        then see clipped actions. Default: none.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value.
    n_samples : int
        Draws per state for continuous policies without a quadrature rule.
    random_state : int
        Seed of networks, batches, draws, folds and resamples.
    device : str
        "auto" takes the GPU where there is one.
    n_threads : int
        Torch threads on a CPU.
    progress : bool
        Whether to show a progress bar.

    Notes
    -----
    Loss: (Q(s, a) - r - gamma E_pi Q'(s', .))^2 with Adam and Polyak targets of rate .05; the expectation is over all
    discrete actions in one product, or over random nodes of a continuous policy. Layers are normalised, which bounds
    extrapolation. With a horizon H the networks see the time and values are 0 at H. Where iterations are slow (a shift of
    all values decays by gamma a sweep) the last layer is solved in closed form: LSTDQ on the last hidden layer phi, drawn to
    where the gradient left it, twelve times on the way and once at the end, there with its adjoint
    u = (sum phi (phi - gamma phibar')')^-T sum phibar_0. Of the episodes that a network has not seen

        X_i = Vhat(s_0) + sum_t u' phi_t (r_t + gamma Vhat(s_{t+1}) - Qhat(s_t, a_t)),

    the value is their mean and psi_i = X_i - V: double reinforcement learning [1]_ with a linear ratio on learned
    features, whose error is of second order in those of Q and of the ratio. The verdict asks in addition whether values
    still moved, whether networks agree that were trained on different episodes, whether the correction is more than noise,
    how many episodes carry the ratios, how far the candidate acts from anything logged, and (with propensities) how much of
    the log it would have done itself. Intervals are widened by two standard deviations of what members differ by beyond the
    noise of the log.

    References
    ----------
    .. [1] Kallus, Uehara (2020). Double reinforcement learning for efficient off-policy evaluation in Markov decision
       processes. JMLR 21.
    .. [2] Hao, Ji, Duan, Lu, Szepesvari, Wang (2021). Bootstrapping fitted Q-evaluation. ICML.
    .. [3] Yue, Lu, Kang, Song, Huang (2023). Understanding, predicting and better resolving Q-value divergence in offline-RL.
       NeurIPS.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(
    ...     np.ones((40, 1)), [0, 1] * 20, [1.0, 0.0] * 20, lengths=[1] * 40, ends="terminal", behavior_prob=[0.5] * 40
    ... )
    >>> fqe = NeuralFittedQEvaluation(gamma=1.0, hidden=(8,), n_updates=200, learning_rate=1e-2)
    >>> round(fqe.fit(log, TabularPolicy([[0.75, 0.25]])).estimate().value, 2)
    0.75
    """

    requires: ClassVar[Requirement] = (frozenset({"all_probs"}), frozenset({"sample"}))
    laws: ClassVar[Mapping[str, str]] = MappingProxyType(dict(QEstimator.laws))

    def __init__(
        self,
        *,
        gamma: float | None = None,
        hidden: Sequence[int] = (256, 256),
        n_updates: int = 2000,
        batch_size: int = 256,
        learning_rate: float = 3e-4,
        n_folds: int = 2,
        n_bootstrap: int = 0,
        action_range: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        stationary: bool = False,
        n_samples: int = 16,
        random_state: int = 0,
        device: str = "auto",
        n_threads: int = 1,
        progress: bool = False,
    ) -> None:
        self.gamma = gamma
        self.hidden = hidden
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.n_folds = n_folds
        self.n_bootstrap = n_bootstrap
        self.action_range = action_range
        self.stationary = stationary
        self.n_samples = n_samples
        self.random_state = random_state
        self.device = device
        self.n_threads = n_threads
        self.progress = progress

    # ---------------------------------------------------------------- checks at the door

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_integer(owner, "n_updates", self.n_updates, 1, REMEDY_BUDGET)
        check_integer(owner, "n_folds", self.n_folds, 2, "a network must not value the episodes it was trained on")
        for name, least in (("batch_size", 1), ("n_samples", 1), ("n_threads", 1)):
            check_integer(owner, name, getattr(self, name), least)
        check_integer(owner, "n_bootstrap", self.n_bootstrap, 0, "pass 0 for none")
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")
        check_number(owner, "learning_rate", self.learning_rate, "positive", "3e-4 is usual", 0.0, above=True)
        _check_hidden(owner, self.hidden)
        _check_range(owner, self.action_range)

    def _check_folds(self, data: LoggedDataset) -> None:
        if data.n_episodes < self.n_folds:
            raise ValueError(
                f"{type(self).__name__}.fit: cross-fitting in n_folds={self.n_folds} needs as many episodes, got {data.n_episodes}; log more, or lower n_folds=."
            )

    def _configuration(self, data: LoggedDataset) -> Configuration:
        from ope.estimators._neural_fqe_fit import Configuration
        from ope.estimators._neural_fqe_training import Settings

        training = Settings(
            hidden=tuple(int(width) for width in self.hidden),
            n_updates=int(self.n_updates),
            batch_size=int(self.batch_size),
            learning_rate=float(self.learning_rate),
            n_threads=int(self.n_threads),
            progress=bool(self.progress),
            seed=int(self.random_state),
        )
        return Configuration(
            gamma=self._gamma,
            stationary=self._is_stationary(data),
            n_folds=int(self.n_folds),
            n_bootstrap=int(self.n_bootstrap),
            n_samples=int(self.n_samples),
            action_range=None if data.discrete else self.action_range,
            device=self.device,
            owner=type(self).__name__,
            training=training,
        )

    def _is_stationary(self, data: LoggedDataset) -> bool:
        return bool(self.stationary) or data.horizon is None

    # ---------------------------------------------------------------- fitting

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> QModel:
        """Train one network on all episodes and return the Q function."""
        from ope.estimators._neural_fqe_fit import fit_model

        log, weight, _ = _in_key_order(data, episode_weight)
        return fit_model(log, policy, weight, self._configuration(data))

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        fit = self._train(data, [policy], weight)[0]
        if isinstance(fit, Exception):
            raise fit
        return self._to_estimate(data, policy, name, weight, fit)

    def _fit_many(self, data: LoggedDataset, policies: Mapping[str, Policy], weight: FloatArray) -> dict[str, Estimate]:
        refused: dict[str, Exception] = {}
        for name, policy in policies.items():
            try:
                self._check_policy(data, policy, name)
            except TypeError as error:
                refused[name] = error
        able = {name: policy for name, policy in policies.items() if name not in refused}
        fits = dict(zip(able, self._train(data, list(able.values()), weight), strict=True)) if able else {}
        return {
            name: self._entry(data, policy, name, weight, refused.get(name) or fits[name])
            for name, policy in policies.items()
        }

    def _entry(
        self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray, fit: CandidateFit | Exception
    ) -> Estimate:
        if isinstance(fit, Exception):
            return self.failed(data, name, f"{type(fit).__name__}: {fit}")
        estimate = self._to_estimate(data, policy, name, weight, fit)
        return _with_overlap(estimate, overlap(policy, data), data.n_episodes)

    def _train(
        self, data: LoggedDataset, policies: Sequence[Policy], weight: FloatArray
    ) -> list[CandidateFit | Exception]:
        from ope.estimators._neural_fqe_fit import fit_candidates, in_order

        self._check_folds(data)
        log, sorted_weight, order = _in_key_order(data, weight)
        fits = fit_candidates(log, policies, sorted_weight, self._configuration(data))
        back = np.argsort(order)
        return [fit if isinstance(fit, Exception) else in_order(fit, back) for fit in fits]

    # ---------------------------------------------------------------- results

    def _overlap(self, data: LoggedDataset, policy: Policy, weight: FloatArray) -> float:
        """Return in how many effective horizons of the log the candidate would do what was done, NaN if unknown."""
        if data.behavior_log_prob is None or not policy.capabilities & {"all_probs", "logged_prob"}:
            return float("nan")
        log_ratio = log_prob_logged(policy, data) - data.behavior_log_prob
        lengths = np.add.reduceat(self._gamma ** ragged.step_index(data.offsets), data.offsets[:-1])
        return judge.effective_horizons(log_ratio, np.repeat(weight, data.lengths), float(np.mean(weight * lengths)))

    def _to_estimate(
        self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray, fit: CandidateFit
    ) -> Estimate:
        psi = weight * (fit.scores - fit.value)
        psi -= weight * psi.mean()
        diagnostics = judge.diagnose(fit, psi, weight)
        diagnostics["overlap"] = self._overlap(data, policy, weight)
        mass, labels = unlogged_mass(data, policy)
        stationary, widening = self._is_stationary(data), judge.WIDENING * diagnostics["member_error"]
        findings = [
            verdicts.judge_finite(fit.value, psi),
            verdicts.judge_range(fit.value, data, self._gamma, stationary, Level.REFUSE),
            verdicts.judge_width(psi, data, self._gamma, stationary, widening),
            *judge.findings(diagnostics, verdicts.standard_error(psi)),
            verdicts.judge_unlogged(mass, labels),
        ]
        resample_id = f"{data.data_id}-bayesian-{self.random_state}-{self.n_bootstrap}"
        return self._result(
            data,
            name,
            value=fit.value,
            influence=psi,
            widening=widening,
            replicates=None if fit.replicates is None else fit.value + fit.replicates,
            resample_id=None if fit.replicates is None else resample_id,
            horizon=None if stationary else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )


def _in_key_order(data: LoggedDataset, weight: FloatArray) -> tuple[LoggedDataset, FloatArray, npt.NDArray[np.int64]]:
    # Batches are drawn by position: one order for all logs of the same episodes.
    order = np.argsort(data.episode_keys, kind="stable")
    return data.select(order), weight[order], order


def _check_hidden(owner: str, hidden: Any) -> None:
    if isinstance(hidden, (str, bytes)) or not hasattr(hidden, "__len__"):
        raise TypeError(f"{owner}: `hidden` must be a sequence of widths, got {hidden!r}; pass e.g. (256, 256).")
    for width in hidden:
        check_integer(owner, "hidden", width, 1, "pass widths such as (256, 256)")


def _check_range(owner: str, action_range: Any) -> None:
    rule = f"{owner}: `action_range` must be None or a pair (low, high) of numbers or arrays with low < high"
    if action_range is None:
        return
    try:
        low, high = (np.asarray(bound, dtype=np.float64) for bound in action_range)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{rule}, got {action_range!r}; pass e.g. (-1.0, 1.0).") from error
    if not np.all(low < high):
        raise ValueError(f"{rule}, got {action_range!r}; pass e.g. (-1.0, 1.0).")
