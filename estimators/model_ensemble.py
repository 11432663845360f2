"""Model-based evaluation with networks: an ensemble of probabilistic models of resampled episodes, in which candidates are rolled out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import _with_overlap
from ope.estimators import _model_verdicts as models
from ope.estimators import _verdicts as verdicts
from ope.estimators._importance import unlogged_mass
from ope.estimators._simulation import SimulatingEstimator
from ope.estimators.neural_fqe import _check_hidden, _check_range, _in_key_order
from ope.policy import Policy, overlap
from ope.validation import FloatArray, check_integer, check_number
from ope.verdict import Level, Verdict

if TYPE_CHECKING:
    from ope.estimators._ensemble_fit import Configuration, EnsembleFit

REMEDY_UPDATES = "1000 is a first look, 4000 the default"
SHOWN = (
    "outside", "moved", "cut", "novelty", "ess", "alive", "unsettled", "diverged", "n_updates", "held_out", "n_steps",
)  # fmt: skip
# Of the variance between members, what is left at least when the noise of their rollouts is taken out.
LEAST_SHARE = 0.25


class ModelEnsemble(SimulatingEstimator):
    """Probabilistic networks fitted to resampled episodes; the value is the mean return of the candidate's simulated episodes in them.

    Parameters
    ----------
    gamma : float
        Discount factor in [0, 1].
    hidden : tuple of int
        Widths of the hidden layers.
    n_members : int
        Networks, each of a resample of the episodes; a 95 % interval takes 39.
    n_updates : int
        Gradient steps at most, shared by all members.
    batch_size : int
    learning_rate : float
        Of Adam; it falls to a tenth over the second half.
    n_rollouts : int
        Simulated episodes for each member and candidate; at least 2.
    action_range : pair of float or array-like of shape (k,), optional
        Lowest and highest continuous action of the system, where it treats those beyond as those at the border: networks
        then see clipped actions. Default: none.
    homogeneous : bool
        With a horizon: networks do not see the step.
    stationary : bool
        Treat a horizon end as a truncation and report the infinite-horizon value.
    random_state : int
        Seed of resamples, networks, batches, first states and noise.
    device : str
        "auto" takes the GPU where there is one.
    n_threads : int
        Torch threads on a CPU.
    progress : bool
        Whether to show a progress bar.

    Notes
    -----
    A network gives mean and variance of the step s' - s and of the reward, Gaussian and independent given (s, a) (one-hot
    states: probabilities of the next one), and the probability that the episode ends. A truncation is no evidence of an end;
    where a last next state is unknown, only the reward counts. Training maximises the likelihood (gradients are weighted by
    the variance to the power of one half [3]_) on Poisson(1) resamples of the episodes, by hashes of their identifiers; each
    member keeps the network at which the likelihood of the episodes that it left out was highest.

    A candidate is rolled out in all members and from all first states as one batch, an episode in one member from end to end;
    all candidates see the same networks, first states and noise, and none depends on the others. Ends are not drawn: rewards
    count by the probability that the episode still runs. Where the states in which episodes ended were recorded
    (``next_states=``), a network of its own learns which states end an episode, else the end follows from state and action.
    States beyond the logged ones by more than their range are moved back to that border, rewards beyond the logged ones by a
    tenth of theirs are cut there, and both are counted. Without a horizon an episode has as many steps as carry all but 1e-4 of the discount.

    The value is the mean of the members. `replicates` are their values, with the noise of their rollouts taken out of the
    variance (down to a quarter of it). They know the noise of the log and the chance of training, not what all members have in
    common: the verdict asks in addition whether they disagree, whether simulated episodes go where nothing was logged or only a
    few episodes went (``ess``), and whether members had stopped learning.

    References
    ----------
    .. [1] Chua, Calandra, McAllister, Levine (2018). Deep reinforcement learning in a handful of trials using probabilistic
       dynamics models. NeurIPS.
    .. [2] Zhang, Paine, Nachum, Paduraru, Tucker, Wang, Norouzi (2021). Autoregressive dynamics models for offline policy
       evaluation and optimization. ICLR.
    .. [3] Seitzer, Tavakoli, Antic, Martius (2022). On the pitfalls of heteroscedastic uncertainty estimation with
       probabilistic neural networks. ICLR.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> log = LoggedDataset.from_arrays(np.ones((40, 1)), [0, 1] * 20, [1.0, 0.0] * 20, lengths=[1] * 40, ends="terminal")
    >>> ensemble = ModelEnsemble(gamma=1.0, hidden=(8,), n_members=4, n_updates=500, n_rollouts=500)
    >>> estimate = ensemble.fit(log, TabularPolicy([[0.75, 0.25]])).estimate()
    >>> abs(estimate.value - 0.75) < 0.05, estimate.replicates.shape
    (True, (4,))
    """

    def __init__(
        self,
        *,
        gamma: float | None = None,
        hidden: Sequence[int] = (128, 128),
        n_members: int = 40,
        n_updates: int = 4000,
        batch_size: int = 256,
        learning_rate: float = 5e-3,
        n_rollouts: int = 64,
        action_range: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        homogeneous: bool = False,
        stationary: bool = False,
        random_state: int = 0,
        device: str = "auto",
        n_threads: int = 1,
        progress: bool = False,
    ) -> None:
        self.gamma = gamma
        self.hidden = hidden
        self.n_members = n_members
        self.n_updates = n_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.n_rollouts = n_rollouts
        self.action_range = action_range
        self.homogeneous = homogeneous
        self.stationary = stationary
        self.random_state = random_state
        self.device = device
        self.n_threads = n_threads
        self.progress = progress

    # ---------------------------------------------------------------- checks at the door

    def _validate(self) -> None:
        super()._validate()
        owner = type(self).__name__
        check_integer(owner, "n_members", self.n_members, 2, "40 is the default; a 95 % interval takes 39")
        check_integer(owner, "n_updates", self.n_updates, 1, REMEDY_UPDATES)
        check_integer(owner, "n_rollouts", self.n_rollouts, 2, "two from each first state tell the noise")
        for name in ("batch_size", "n_threads"):
            check_integer(owner, name, getattr(self, name), 1)
        check_integer(owner, "random_state", self.random_state, 0, "pass a seed")
        check_number(owner, "learning_rate", self.learning_rate, "positive", "5e-3 is usual", 0.0, above=True)
        _check_hidden(owner, self.hidden)
        _check_range(owner, self.action_range)

    def _is_stationary(self, data: LoggedDataset) -> bool:
        return bool(self.stationary) or data.horizon is None

    def _configuration(self, data: LoggedDataset) -> Configuration:
        from ope.estimators._ensemble_fit import Configuration
        from ope.estimators._ensemble_training import Settings

        stationary = self._is_stationary(data)
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
            horizon=None if stationary else data.horizon,
            by_step=not stationary and not self.homogeneous,
            n_members=int(self.n_members),
            n_rollouts=int(self.n_rollouts),
            action_range=None if data.discrete else self.action_range,
            device=self.device,
            owner=type(self).__name__,
            training=training,
        )

    # ---------------------------------------------------------------- fitting

    def _fit_one(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:
        fit = self._train(data, [policy], weight)[0]
        if isinstance(fit, Exception):
            raise fit
        return self._to_estimate(data, policy, name, fit)

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
            name: self._entry(data, policy, name, refused.get(name) or fits[name]) for name, policy in policies.items()
        }

    def _entry(self, data: LoggedDataset, policy: Policy, name: str, fit: EnsembleFit | Exception) -> Estimate:
        if isinstance(fit, Exception):
            return self.failed(data, name, f"{type(fit).__name__}: {fit}")
        return _with_overlap(self._to_estimate(data, policy, name, fit), overlap(policy, data), data.n_episodes)

    def _train(self, data: LoggedDataset, policies: Sequence[Policy], weight: FloatArray) -> list[Any]:
        from ope.estimators._ensemble_fit import fit_candidates

        self._check_mask(data)
        log, sorted_weight, _ = _in_key_order(data, weight)
        return list(fit_candidates(log, policies, sorted_weight, self._configuration(data)))

    # ---------------------------------------------------------------- results

    def _to_estimate(self, data: LoggedDataset, policy: Policy, name: str, fit: EnsembleFit) -> Estimate:
        gamma, stationary = self._gamma, self._is_stationary(data)
        value = float(fit.values.mean())
        replicates, share = shrunk(fit.values, fit.member_noise)
        spread = float(np.std(replicates, ddof=1))
        noise = float(np.sqrt(fit.member_noise / len(fit.values)))
        noisy, widening = models.judge_noise(noise, spread, "n_rollouts=")
        diagnostics = {
            "member_spread": spread,
            "monte_carlo_error": noise,
            "monte_carlo_share": share,
            **{name: getattr(fit, name) for name in SHOWN},
            "truncated_share": verdicts.truncated_share(data),
        }
        findings = [
            models.judge_value(value),
            verdicts.judge_range(value, data, gamma, stationary, Level.REFUSE),
            models.judge_replicates(len(replicates)),
            models.judge_few(data.n_episodes),
            *models.ensemble_findings(diagnostics),
            models.judge_spread(spread, data, gamma, stationary),
            noisy,
            models.judge_alive(fit.alive, stationary and gamma == 1.0),
            verdicts.judge_unlogged(*unlogged_mass(data, policy)),
        ]
        resample_id = f"{data.data_id}-poisson-{self.random_state}-{self.n_members}"
        return self._result(
            data,
            name,
            value=value,
            replicates=replicates,
            resample_id=resample_id,
            widening=widening,
            horizon=None if stationary else data.horizon,
            diagnostics=diagnostics,
            verdict=Verdict.of(findings),
        )


def shrunk(values: FloatArray, noise: float) -> tuple[FloatArray, float]:
    """Return members' values drawn to their mean until the variance of their noise is out, and its share of the variance.

    Examples
    --------
    >>> values, share = shrunk(np.array([0.0, 2.0, 4.0]), 3.0)
    >>> values, share
    (array([1., 2., 3.]), 0.75)
    """
    variance = float(np.var(values, ddof=1))
    share = noise / variance if variance > 0 else 0.0
    factor = np.sqrt(max(1.0 - share, LEAST_SHARE))
    return np.asarray(values.mean() + factor * (values - values.mean())), share
