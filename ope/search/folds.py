"""Parts of a log to learn from and to value on, and one estimate from what the parts say."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Parallel
from threadpoolctl import threadpool_limits

from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.estimator import OffPolicyEstimator
from ope.inference import fold_of, uniforms
from ope.policy import Policy
from ope.validation import FloatArray, IntArray
from ope.verdict import Level, Verdict

# Estimators cut their own folds from the same hash: with the same seed they would find a part in one of theirs.
_SEED_SHIFT = 0x5EA3C4
_HALVES_STREAM = -0x5EA3C4  # negative streams are free


@dataclass(frozen=True, eq=False)
class Part:
    """Positions of the episodes to learn from and to value on, and the weight of the values found there.

    Parameters
    ----------
    name : str
    train, test : ndarray of int
        Positions of episodes; no episode is in both.
    weight : float
        The weights of all parts sum to 1.
    """

    name: str
    train: IntArray
    test: IntArray
    weight: float


def fold_parts(data: LoggedDataset, n_folds: int, seed: int) -> list[Part]:
    """Return K folds by a hash of the episode: each is valued once, by what was learned from the others."""
    fold = fold_of(data.episode_keys, n_folds, seed + _SEED_SHIFT)
    parts = []
    for k in range(n_folds):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        parts.append(Part(f"fold {k + 1} of {n_folds}", train, test, len(test) / data.n_episodes))
    return parts


def half_parts(data: LoggedDataset, n_repeats: int, seed: int) -> list[Part]:
    """Return repeated half-splits by a hash of the episode; two in a row exchange their halves.

    With an even number every episode is valued equally often: no episode's luck counts more than another's.
    """
    parts = []
    for k in range(n_repeats):
        order = np.argsort(uniforms(data.episode_keys, seed, _HALVES_STREAM - k // 2), kind="stable")
        halves = (np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :]))
        parts.append(Part(f"repeat {k + 1} of {n_repeats}", halves[k % 2], halves[1 - k % 2], 1.0 / n_repeats))
    return parts


# -------------------------------------------------------------------- values of one part

# Estimates by name of the estimator and of the candidate.
Values = dict[str, dict[str, Estimate]]


def run_tasks(tasks: Iterable[Any], total: int, unit: str, n_jobs: int | None, progress: bool) -> list[Any]:
    """Run joblib's tasks, in order, with a bar if asked for."""
    results = Parallel(n_jobs=n_jobs, return_as="generator")(tasks)
    if progress:
        from tqdm.auto import tqdm

        results = tqdm(results, total=total, desc=f"{unit}s", unit=unit)
    return list(results)


def value_on_part(
    estimator: OffPolicyEstimator, data: LoggedDataset, policies: Mapping[str, Policy], failures: Mapping[str, str]
) -> dict[str, Estimate]:
    """Value policies on one part, on one thread; what fails, or failed in learning, becomes an entry that says why."""
    estimates = {name: estimator.failed(data, name, reason) for name, reason in failures.items()}
    if not policies:
        return estimates
    with threadpool_limits(limits=1):
        try:
            return {**estimates, **copy.deepcopy(estimator).fit(data, policies).estimate()}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return {**estimates, **{name: estimator.failed(data, name, reason) for name in policies}}


# -------------------------------------------------------------------- one estimate from all parts


def pool(estimates: Sequence[Estimate], parts: Sequence[Part], data: LoggedDataset) -> Estimate:
    """Return one estimate for the log from the estimates of one candidate on its parts.

    Parameters
    ----------
    estimates : sequence of Estimate
        On ``data.select(part.test)`` of each part.
    parts : sequence of Part
    data : LoggedDataset

    Returns
    -------
    Estimate
        Of the average of the policies that the parts valued.

    Notes
    -----
    V = sum_k w_k V_k, psi_i = sum_k w_k (n / n_k) psi_ik over the parts k that value episode i, n_k of n episodes, so that
    sum psi_i^2 / n^2 is the variance of V given the learned policies. For folds, w_k = n_k / n and psi is the folds' psi in
    the log's order. Terms for finite-sample bounds (`scores`, `weights`) are not kept: such bounds want independent terms,
    and the policies of two parts have learned from each other's episodes. The effective size is that of all parts' weights
    together; of repeated halves a lower limit, because what an episode weighs in one repeat is not known in another.
    """
    failed = [(part, e) for part, e in zip(parts, estimates, strict=True) if not np.isfinite(e.value)]
    verdict = _pooled_verdict(estimates, parts)
    weights = np.array([part.weight for part in parts])
    influence = None if failed else _pooled_influence(estimates, parts, data.n_episodes)
    replicates = None if failed else _pooled_replicates(estimates, weights)
    return replace(
        estimates[0],
        value=float("nan") if failed else float(weights @ [e.value for e in estimates]),
        episode_keys=data.episode_keys,
        data_id=data.data_id,
        influence=influence,
        scores=None,
        weights=None,
        replicates=replicates,
        resample_id=None if replicates is None else "+".join(str(e.resample_id) for e in estimates),
        known_propensities=data.known_propensities,
        effective_size=_pooled_size(estimates, parts, data.n_episodes),
        widening=float(weights @ [e.widening for e in estimates]),
        diagnostics=_pooled_diagnostics(estimates),
        verdict=verdict,
        error=f"{failed[0][0].name}: {failed[0][1].error}" if failed else None,
    )


def _pooled_influence(estimates: Sequence[Estimate], parts: Sequence[Part], n: int) -> FloatArray | None:
    psi = np.zeros(n)
    for part, estimate in zip(parts, estimates, strict=True):
        if estimate.influence is None:
            return None
        psi[part.test] += part.weight * n / len(part.test) * estimate.influence
    return psi


def _pooled_size(estimates: Sequence[Estimate], parts: Sequence[Part], n: int) -> float | None:
    """Return the effective number of episodes of the pooled value, None where a part has none."""
    sizes = [estimate.effective_size for estimate in estimates if estimate.effective_size is not None]
    if len(sizes) < len(estimates):
        return None
    # Weights u of sum 1 in a part have sum u^2 = 1 / ESS_k; pooled, episode i weighs sum_k w_k u_ik, which in square is at most
    # c sum_k (w_k u_ik)^2 where c parts value it: (sum u)^2 / sum u^2 is this at least, and exactly this for folds (c = 1).
    most = np.bincount(np.concatenate([part.test for part in parts]), minlength=n).max()
    shares = np.array([part.weight for part in parts])
    with np.errstate(divide="ignore"):
        return float(1.0 / (most * np.sum(shares**2 / np.array(sizes))))


def _pooled_replicates(estimates: Sequence[Estimate], weights: FloatArray) -> FloatArray | None:
    columns = [estimate.replicates for estimate in estimates if estimate.replicates is not None]
    if len(columns) < len(estimates) or len({len(column) for column in columns}) > 1:
        return None
    return np.asarray(weights @ np.stack(columns))


def _pooled_diagnostics(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Return the range over parts of every number that all parts have, and how many training episodes were valued."""
    values = [float(estimate.value) for estimate in estimates]
    ranges = {"parts": len(estimates), "lowest_part": min(values), "highest_part": max(values)}
    return {**ranges, "training_overlap": sum(int(e.diagnostics.get("training_overlap", 0)) for e in estimates)}


def _pooled_verdict(estimates: Sequence[Estimate], parts: Sequence[Part]) -> Verdict:
    """Return the worst level of all parts; sentences that differ in their numbers only are said once."""
    told: dict[str, list[tuple[Level, str, str]]] = {}
    for part, estimate in zip(parts, estimates, strict=True):
        for reason in estimate.verdict.reasons:
            told.setdefault(without_numbers(reason), []).append((estimate.verdict.level, part.name, reason))
    findings = []
    for same in told.values():
        level, name, reason = max(same, key=lambda entry: entry[0])
        where = name if len(same) == 1 else f"{len(same)} of {len(parts)} parts, here {name}"
        findings.append((level, f"In {where}: {reason}"))
    verdict = Verdict.of(findings)
    return Verdict(max(estimate.verdict.level for estimate in estimates), verdict.reasons)


def without_numbers(sentence: str) -> str:
    """Return what sentences share that differ in their numbers only."""
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", sentence)


def part_table(found: Sequence[Values], parts: Sequence[Part], name: str) -> pd.DataFrame:
    """Return a row per part, candidate and estimator."""
    rows = [
        {name: k, "candidate": candidate, "estimator": key, "n_episodes": len(part.test), **_row(estimate)}
        for k, (part, values) in enumerate(zip(parts, found, strict=True))
        for key, estimates in values.items()
        for candidate, estimate in estimates.items()
    ]
    return pd.DataFrame(rows)


def _row(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "std_error": estimate.std_error,
        "verdict": estimate.verdict.level.name,
        "reasons": " ".join(estimate.verdict.reasons),
        **estimate.diagnostics,
    }


# -------------------------------------------------------------------- what a selector is given


def pooled_estimators(
    found: Sequence[Values], parts: Sequence[Part], data: LoggedDataset, candidates: Sequence[str]
) -> dict[str, OffPolicyEstimator]:
    """Return, by name, estimators that answer with the estimates of all parts pooled."""
    pooled = {}
    for key in found[0]:
        estimates = {name: pool([values[key][name] for values in found], parts, data) for name in candidates}
        pooled[key] = PooledEstimator(gamma=next(iter(estimates.values())).gamma, estimates=estimates)
    return dict(pooled)


class HeldOutPolicies(Policy):
    """Stands in a selector for the policies that one candidate was on the parts of a log; it cannot act itself.

    Parameters
    ----------
    description : str
        What is valued.
    training_episode_keys : ndarray of uint64, optional
        Of a policy that was there before; policies learned on the parts are valued on other episodes by construction.
    """

    def __init__(self, description: str, training_episode_keys: npt.NDArray[np.uint64] | None = None) -> None:
        self.description = description
        self.training_episode_keys = training_episode_keys

    @property
    def capabilities(self) -> frozenset[str]:
        """Nothing: there is no single policy."""
        return frozenset()

    @property
    def training_episode_keys_(self) -> npt.NDArray[np.uint64] | None:
        """Episodes that a policy was trained on before."""
        return self.training_episode_keys


class PooledEstimator(OffPolicyEstimator):
    """Answers with pooled estimates, so that a selector can decide from them as from those of one log.

    Parameters
    ----------
    gamma : float
    estimates : mapping of str to Estimate
        By candidate.
    """

    laws: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, *, gamma: float, estimates: Mapping[str, Estimate]) -> None:
        self.gamma = gamma
        self.estimates = estimates

    @property
    def estimand(self) -> str:  # type: ignore[override]
        """What the pooled estimates are of."""
        return next(iter(self.estimates.values())).estimand

    def _fit_named(self, data: LoggedDataset, policy: Policy, name: str, weight: FloatArray) -> Estimate:  # noqa: ARG002
        return self.estimates[name]
