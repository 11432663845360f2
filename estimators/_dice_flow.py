"""A log as the Bellman flow of the DICE family sees it: features, encodings of terminals, and moments that merge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol

import numpy as np

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimators._dice_problem import DiceProblem, Terminal, absorbed_episodes
from ope.estimators._features import Basis, FeatureBlock, feature_block, history_features, richer_features
from ope.policy import Policy
from ope.validation import FloatArray, IntArray


@dataclass(frozen=True)
class FlowBlock:
    """A block of whole episodes as the Bellman flow sees it.

    Parameters
    ----------
    zeta, nu : ndarray of shape (n, p), (n, q)
        Features of zeta and of nu on the logged rows.
    nu_next : ndarray of shape (n, q)
        Candidate's expectation of the nu-features at the next state, 0 where nothing follows.
    nu_start : ndarray of shape (n_episodes, q)
        The same at the first state.
    rewards : ndarray of shape (n,)
    onward : ndarray of shape (n,)
        Weight of what follows a row, in `nu_next` already: 1, or rho where zeta is a function of the state alone.
    """

    zeta: FloatArray
    nu: FloatArray
    nu_next: FloatArray
    nu_start: FloatArray
    rewards: FloatArray
    onward: FloatArray


class FlowFeatures(Protocol):
    """Features of zeta and nu of a block of whole episodes."""

    def __call__(self, policy: Policy, block: LoggedDataset) -> FlowBlock:
        """Compute them, without those of the absorbing state."""
        ...

    def seen(self, policy: Policy, block: LoggedDataset) -> FeatureBlock:
        """Return the block as least-squares temporal differences in the features of zeta see it."""
        ...

    def instruments(self, block: LoggedDataset) -> tuple[FloatArray, FloatArray | None]:
        """Return what happened one step before, and functions that the features need not hold."""
        ...


@dataclass(frozen=True)
class ActionFeatures:
    """Features phi(s, a) of zeta, and the same or others of nu.

    Parameters
    ----------
    basis : Basis
    nu_basis : Basis or None
        None for the same.
    stationary : bool
    n_samples, random_state : int
    """

    basis: Basis
    nu_basis: Basis | None
    stationary: bool
    n_samples: int
    random_state: int

    def seen(self, policy: Policy, block: LoggedDataset) -> FeatureBlock:
        """Return the block as `LSTDQ` sees it."""
        return feature_block(block, self.basis, policy, self.stationary, self.n_samples, self.random_state)

    def instruments(self, block: LoggedDataset) -> tuple[FloatArray, FloatArray | None]:
        """Return what happened one step before, and richer features of states and actions."""
        return history_features(block), richer_features(block, self.basis)

    def __call__(self, policy: Policy, block: LoggedDataset) -> FlowBlock:
        nu_basis = self.basis if self.nu_basis is None else self.nu_basis
        seen = feature_block(block, nu_basis, policy, self.stationary, self.n_samples, self.random_state)
        zeta = seen.phi if self.nu_basis is None else self.basis.logged(block.states, block.actions)
        return FlowBlock(zeta, seen.phi, seen.phi_next, seen.start, block.rewards, np.ones(len(zeta)))


def with_absorbing(flow: FlowBlock, absorbed: FloatArray, offsets: IntArray) -> FlowBlock:
    """Add the indicator of the absorbing state as a last feature of both classes."""
    onward = np.zeros(len(flow.zeta))
    onward[offsets[1:] - 1] = absorbed
    onward *= flow.onward
    return replace(
        flow,
        zeta=_append(flow.zeta, np.zeros(len(onward))),
        nu=_append(flow.nu, np.zeros(len(onward))),
        nu_next=_append(flow.nu_next, onward),
        nu_start=_append(flow.nu_start, np.zeros(len(absorbed))),
    )


def _append(matrix: FloatArray, column: FloatArray) -> FloatArray:
    return np.hstack([matrix, column[:, None]])


class Kept:
    """Features that are computed once for a log of one block: for a solver, which looks at them many times.

    Parameters
    ----------
    inner : FlowFeatures
    data : LoggedDataset
        The only log that is asked about.
    """

    def __init__(self, inner: FlowFeatures, data: LoggedDataset) -> None:
        self.inner, self._n_rows = inner, data.n_transitions
        self._flow: FlowBlock | None = None
        self._seen: FeatureBlock | None = None

    @classmethod
    def of(cls, features: FlowFeatures, data: LoggedDataset) -> Kept:
        """Return kept features, the same if they are."""
        return features if isinstance(features, Kept) else cls(features, data)

    def seen(self, policy: Policy, block: LoggedDataset) -> FeatureBlock:
        """Return what the features see."""
        if block.n_transitions < self._n_rows:
            return self.inner.seen(policy, block)
        if self._seen is None:
            self._seen = self.inner.seen(policy, block)
        return self._seen

    def instruments(self, block: LoggedDataset) -> tuple[FloatArray, FloatArray | None]:
        """Return those of the features."""
        return self.inner.instruments(block)

    def __call__(self, policy: Policy, block: LoggedDataset) -> FlowBlock:
        if block.n_transitions < self._n_rows:
            return self.inner(policy, block)
        if self._flow is None:
            self._flow = self.inner(policy, block)
        return self._flow


# -------------------------------------------------------------------- moments


@dataclass(frozen=True)
class FlowSums:
    """Weighted sums over rows for each of S functions: Z'Z, N'N, Z'N, Z'N_next, Z'r, Z'1, and of the start features."""

    zeta_gram: FloatArray
    nu_gram: FloatArray
    here: FloatArray
    onward: FloatArray
    reward: FloatArray
    mean: FloatArray
    start: FloatArray

    def merge(self, other: FlowSums) -> FlowSums:
        """Return the sums over both parts."""
        return FlowSums(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    @property
    def parts(self) -> tuple[FloatArray, ...]:
        """The arrays, in order."""
        return (self.zeta_gram, self.nu_gram, self.here, self.onward, self.reward, self.mean, self.start)


def summarise(flow: FlowBlock, weight: FloatArray, omega: FloatArray, offsets: IntArray, n_values: int) -> FlowSums:
    """Sum a block.

    Parameters
    ----------
    flow : FlowBlock
    weight : ndarray of shape (n,)
        Of the rows; 0 where a row is not used.
    omega : ndarray of shape (n_episodes,)
    offsets : ndarray of shape (n_episodes + 1,)
    n_values : int
    """
    p, q = flow.zeta.shape[1], flow.nu.shape[1]
    shapes = ((p, p), (q, q), (p, q), (p, q), (p,), (p,))
    out = [np.zeros((n_values, *shape)) for shape in shapes]
    for s in range(min(n_values, int(np.diff(offsets).max()))):
        rows = slice(None) if n_values == 1 else ragged.step_rows(offsets, s)
        zeta, nu, w = flow.zeta[rows], flow.nu[rows], weight[rows]
        weighted = w[:, None] * zeta
        out[0][s] = weighted.T @ zeta
        out[1][s] = out[0][s] if flow.nu is flow.zeta else nu.T @ (w[:, None] * nu)
        out[2][s], out[3][s] = weighted.T @ nu, weighted.T @ flow.nu_next[rows]
        out[4][s], out[5][s] = weighted.T @ flow.rewards[rows], weighted.sum(axis=0)
    return FlowSums(out[0], out[1], out[2], out[3], out[4], out[5], omega @ flow.nu_start)


def add_absorbing_rows(sums: FlowSums, weight: FloatArray) -> FlowSums:
    """Add the rows of the absorbing state, which lead to itself; `weight` is that of each function, shape (n_values,)."""
    grams = [part.copy() for part in (sums.zeta_gram, sums.nu_gram, sums.here)]
    for gram in grams:
        gram[:, -1, -1] += weight
    onward, mean = sums.onward.copy(), sums.mean.copy()
    onward[:, -1, -1] += weight if len(weight) == 1 else np.append(weight[:-1], 0.0)
    mean[:, -1] += weight
    return FlowSums(grams[0], grams[1], grams[2], onward, sums.reward, mean, sums.start)


# -------------------------------------------------------------------- passes over a log


def encoded(flow: FlowBlock, block: LoggedDataset, terminal: Terminal, gamma: float, horizon: int | None) -> FlowBlock:
    """Return the block in the chosen encoding of terminals."""
    if terminal == "zero":
        return flow
    absorbed = absorbed_episodes(block, terminal, gamma, horizon).astype(np.float64)
    return with_absorbing(flow, absorbed, block.offsets)


def flow_blocks(
    problem: DiceProblem, features: FlowFeatures
) -> Iterator[tuple[LoggedDataset, FlowBlock, slice, slice]]:
    """Yield blocks of whole episodes, their features, and which episodes and rows of the log they are."""
    switches, first, row = problem.lagrangian, 0, 0
    for block in problem.data.blocks():
        flow = encoded(features(problem.policy, block), block, switches.terminal, problem.gamma, problem.horizon)
        yield block, flow, slice(first, first + block.n_episodes), slice(row, row + block.n_transitions)
        first, row = first + block.n_episodes, row + block.n_transitions


def flow_sums(problem: DiceProblem, features: FlowFeatures) -> FlowSums:
    """Sum a log, the absorbing rows included."""
    parts = (
        summarise(flow, problem.row_weight[rows], problem.episode_weight[episodes], block.offsets, problem.n_values)
        for block, flow, episodes, rows in flow_blocks(problem, features)
    )
    sums = reduce(FlowSums.merge, parts)
    return add_absorbing_rows(sums, problem.absorbing_weight) if problem.lagrangian.terminal == "absorbing" else sums
