"""Methods that `frontier.py` tries and that are not in the library: STAR, SOPE, stationary-weighted fitted Q, deep debiasing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from sklearn.cluster import KMeans

from ope import LoggedDataset, Policy, ragged
from ope.estimate import Estimate
from ope.estimators import LSTDQ, MarginalizedIS
from ope.estimators._crossfit import HALVES_STREAM, temporal_differences
from ope.estimators._features import feature_block, fit_basis
from ope.estimators._linear import RANK_TOLERANCE
from ope.estimators._q import QEstimator, QModel, QPredictions
from ope.estimators._verdicts import standard_error
from ope.inference import lepski_choice
from ope.inference.weights import uniforms
from ope.policy import Requirement, continuing_ends, log_prob_logged
from ope.validation import FloatArray, IntArray

Fit = Callable[[LoggedDataset, Policy], Estimate]

NAMES = frozenset({"STAR", "SOPE", "fitted Q"})  # they say nothing of their verdict


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """Return an estimate in another unit."""
    assert estimate.influence is not None
    return replace(estimate, value=factor * estimate.value, influence=factor * estimate.influence, scores=None)


def _estimate(data: LoggedDataset, gamma: float, name: str, value: float, psi: FloatArray | None) -> Estimate:
    """Return an estimate without a verdict."""
    keys = data.episode_keys
    return Estimate(value, gamma, data.horizon, keys, data.data_id, name, "candidate", psi)


def _log_ratios(data: LoggedDataset, policy: Policy) -> FloatArray:
    assert data.behavior_log_prob is not None
    return log_prob_logged(policy, data) - data.behavior_log_prob


def _window(log_ratios: FloatArray, offsets: IntArray, c: int | None) -> FloatArray:
    """Return the product of the last c ratios up to every step, of all for None."""
    total = ragged.segment_cumsum(log_ratios, offsets)
    if c is not None:
        late = np.flatnonzero(ragged.step_index(offsets) >= c)
        before = total[late - c]
        total[late] -= before
    return np.asarray(np.exp(total))


# -------------------------------------------------------------------- STAR (Chaudhari et al. 2024)


def abstract_process(
    data: LoggedDataset, code: IntArray, final: IntArray, weight: FloatArray, gamma: float
) -> tuple[float, FloatArray]:
    """Solve the reward process of weighted counts between abstract states: its value and influence.

    Rows count by gamma^t times their weight, ends of the horizon as ends, so that with the product of all ratios every abstraction is
    consistent.
    """
    k, offsets = int(max(code.max(), final.max(initial=0))) + 1, data.offsets
    row = weight * gamma ** ragged.step_index(offsets)
    last = np.where(continuing_ends(data, False), final, -1)
    following = ragged.shift_to_next(code, offsets, last)
    z, ahead = np.eye(k)[code], np.where((following >= 0)[:, None], np.eye(k)[following], 0.0)
    a, b = (row[:, None] * z).T @ (z - gamma * ahead), (row[:, None] * z).T @ data.rewards
    inverse, start = np.linalg.pinv(a), np.eye(k)[code[offsets[:-1]]]
    theta, mean = inverse @ b, start.mean(axis=0)
    eps = data.rewards + gamma * ahead @ theta - z @ theta
    psi = data.n_episodes * ragged.segment_sum(row * (z @ (inverse.T @ mean)) * eps, offsets)
    return float(mean @ theta), psi + start @ theta - mean @ theta


class Clusters:
    """The clusters of one log, kept until another comes."""

    def __init__(self) -> None:
        self._log: LoggedDataset | None = None
        self._found: dict[int, tuple[IntArray, IntArray]] = {}

    def of(self, data: LoggedDataset, k: int) -> tuple[IntArray, IntArray]:
        """Return the clusters of all rows, and of the final states."""
        if self._log is not data:
            self._log, self._found = data, {}
        if k not in self._found:
            k_means = KMeans(min(k, len(np.unique(data.states, axis=0))), n_init=1, random_state=0).fit(data.states)
            final = np.zeros(data.n_episodes, dtype=np.int64)
            if data.final_states is not None and data.final_known().all():
                final = k_means.predict(data.final_states)
            self._found[k] = np.asarray(k_means.labels_, dtype=np.int64), np.asarray(final, dtype=np.int64)
        return self._found[k]


CLUSTERS = Clusters()


def star(gamma: float, sizes: Sequence[int], windows: Sequence[int | None]) -> Fit:
    """Return STAR with k and c chosen by Lepski on paired influence, the options in the order of their standard errors."""

    def fit(data: LoggedDataset, policy: Policy) -> Estimate:
        log_ratios, options = _log_ratios(data, policy), []
        for k in sizes:
            code, final = CLUSTERS.of(data, k)
            for c in windows:
                weight = _window(log_ratios, data.offsets, c)
                options.append(abstract_process(data, code, final, weight, gamma))
        options.sort(key=lambda option: -standard_error(option[1]))
        chosen = 0
        if len(options) > 1:
            chosen = lepski_choice([value for value, _ in options], np.stack([psi for _, psi in options], axis=1)).index
        return _estimate(data, gamma, "STAR", *options[chosen])

    return fit


def star_methods(gamma: float, sizes: Sequence[int]) -> dict[str, Fit]:
    """Return the choice, and every fixed setting."""
    windows: tuple[int | None, ...] = (None, 4, 2, 1)
    fixed = {
        f"STAR, k = {k}, c = {c if c is not None else 'all'}": star(gamma, [k], [c]) for k in sizes for c in windows
    }
    return {"STAR, Lepski": star(gamma, sizes, windows), **fixed}


# -------------------------------------------------------------------- SOPE (Yuan et al. 2021)


def sope_parts(data: LoggedDataset, policy: Policy, ratio: MarginalizedIS, n: int) -> tuple[float, FloatArray]:
    """Return importance sampling of the first n rewards plus the marginal estimate of the reward n steps on, times the n ratios.

    The second is the marginal estimate with rewards gamma^n rho_{t+1} ... rho_{t+n} r_{t+n}: its influence comes with it.
    """
    gamma, offsets, step = float(ratio.gamma or 0.0), data.offsets, ragged.step_index(data.offsets)
    log_ratios = _log_ratios(data, policy)
    w = np.exp(ragged.segment_cumsum(log_ratios, offsets))
    first = ragged.segment_sum(np.where(step < n, gamma**step * w * data.rewards, 0.0), offsets)
    ends = np.repeat(offsets[1:], data.lengths)
    rows = np.arange(len(data))
    on = rows[rows + n < ends]
    later = np.zeros(len(data))
    total = ragged.segment_cumsum(log_ratios, offsets)
    later[on] = gamma**n * np.exp(total[on + n] - total[on]) * data.rewards[on + n]
    rest = ratio.fit(data.replace(rewards=later, reward_range=None), policy).estimate()
    assert rest.influence is not None
    return float(first.mean()) + rest.value, first - first.mean() + rest.influence


def sope(ratio: MarginalizedIS, windows: Sequence[int]) -> Fit:
    """Return SOPE with the largest n first, chosen by Lepski on paired influence."""

    def fit(data: LoggedDataset, policy: Policy) -> Estimate:
        options = [sope_parts(data, policy, ratio, n) for n in windows]
        values, psi = [value for value, _ in options], np.stack([own for _, own in options], axis=1)
        chosen = lepski_choice(values, psi).index if len(options) > 1 else 0
        return _estimate(data, float(ratio.gamma or 0.0), "SOPE", values[chosen], psi[:, chosen])

    return fit


def sope_methods(ratio: MarginalizedIS, horizon: int) -> dict[str, Fit]:
    """Return the choice, and every fixed setting; n = 0 is the marginal estimate, n = horizon per-decision importance sampling."""
    windows = [horizon, *(n for n in (8, 4, 2, 1, 0) if n < horizon)]
    return {"SOPE, Lepski": sope(ratio, windows), **{f"SOPE, n = {n}": sope(ratio, [n]) for n in windows}}


# -------------------------------------------------------------------- stationary-weighted fitted Q (arXiv 2512.23805)


def fitted_q(gamma: float, features: Any, ratio_features: Any = None, n_iter: int = 1500) -> Fit:
    """Return linear fitted Q iteration, each regression weighted with a ratio of visits where there are features for it; without an interval."""

    def fit(data: LoggedDataset, policy: Policy) -> Estimate:
        seen = feature_block(data, fit_basis(features, data), policy, True, 16, 0)
        w = np.where(seen.used, 1.0, 0.0)
        if ratio_features is not None:
            ratio = MarginalizedIS(gamma=gamma, features=ratio_features, stationary=True)
            w = w * np.maximum(ratio.fit_ratio(data, policy, np.ones(data.n_episodes)).predict(policy, data), 0.0)
        gram = (w[:, None] * seen.phi).T @ seen.phi
        inverse = np.linalg.pinv(gram, rcond=RANK_TOLERANCE, hermitian=True)
        onward, reward = (
            inverse @ ((w[:, None] * seen.phi).T @ seen.phi_next),
            inverse @ (seen.phi.T @ (w * seen.rewards)),
        )
        theta = np.ones(len(reward))
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(n_iter):
                theta = reward + gamma * onward @ theta
        return _estimate(data, gamma, "fitted Q", float(seen.start.mean(axis=0) @ theta), None)

    return fit


# -------------------------------------------------------------------- deep debiasing (Shi et al. 2021), linear


@dataclass(frozen=True, eq=False)
class _Sum:
    """The mean of Q models with the linear models of what is wrong with each."""

    pairs: Sequence[tuple[QModel, QModel]]

    def predict(self, policy: Policy, data: LoggedDataset) -> QPredictions:
        """Value the rows of a log."""
        parts = [model.predict(policy, data) for pair in self.pairs for model in pair]
        columns = ([getattr(part, name) for part in parts] for name in ("q", "v", "v_final"))
        return QPredictions(*(np.sum(column, axis=0) / len(self.pairs) for column in columns))


class DebiasedQ(QEstimator):
    """Q on one half of the episodes, plus what its temporal differences on the other half add by a linear conditional ratio; and the other way round.

    With a linear ratio tau(s', a'; s, a) the second-order term E[tau delta] is `LSTDQ` of the temporal differences delta as rewards:
    the true Q less Qhat solves the Bellman equation with the reward E delta.
    """

    requires: ClassVar[Requirement] = LSTDQ.requires

    def __init__(self, *, gamma: float | None = None, q: QEstimator | None = None, features: Any = "auto") -> None:
        self.gamma = gamma
        self.q = q
        self.features = features

    def fit_q(self, data: LoggedDataset, policy: Policy, episode_weight: FloatArray) -> _Sum:
        """Fit both models both ways."""
        gamma = self._gamma
        order = np.argsort(uniforms(data.episode_keys, 1, HALVES_STREAM))
        halves = np.sort(order[::2]), np.sort(order[1::2])
        q = LSTDQ() if self.q is None else self.q
        nested = type(q)(**{**q.get_params(deep=False), "gamma": gamma})
        pairs = []
        for own, other in (halves, halves[::-1]):
            model = nested.fit_q(data.select(own), policy, episode_weight[own])
            rest = data.select(other)
            delta = temporal_differences(rest.rewards, model.predict(policy, rest), rest.offsets, gamma)
            errors = rest.replace(rewards=delta, reward_range=None)
            linear = LSTDQ(gamma=gamma, features=self.features).fit_q(errors, policy, episode_weight[other])
            pairs.append((model, linear))
        return _Sum(pairs)
