"""The laws of the field, each with the logs it is tried on: what must happen to a value when its log is changed.

A law yields pairs of what an estimator says and what the law demands. `hold` compares them with the strength that the
estimator declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ope import ragged
from ope.dataset import LoggedDataset
from ope.estimate import Estimate
from ope.policy import Policy, log_prob_logged
from ope.testing.logs import Case, make_case, padded_pair, sharded
from ope.testing.tools import TOLERANCE, ensure, first_difference
from ope.validation import FloatArray

N_SEEDS = 200
Z_LIMIT = 4.0
# Powers of two scale without rounding, which would break the ties of trees another way.
FACTORS = (-2.0, 2.0**20)
SHIFT = 2.5

Fit = Callable[[LoggedDataset, Policy], Estimate]


@dataclass(frozen=True)
class Demand:
    """What came of a change, what the law demands, and the size of the rewards for a sense of scale."""

    change: str
    found: float
    expected: float
    scale: float
    found_influence: FloatArray | None = None
    expected_influence: FloatArray | None = None


@dataclass(frozen=True)
class Law:
    """A law of off-policy estimators.

    Parameters
    ----------
    statement : str
    universal : bool
        Whether every estimator must say how strongly it holds.
    kinds : tuple of str
        The logs of `make_case` on which it is tried.
    demands : callable
        ``demands(fit, case, gamma)`` yields what is demanded of the estimator behind `fit`.
    longest : int
        Length of the longest episode of these logs.
    """

    statement: str
    universal: bool
    kinds: tuple[str, ...]
    demands: Callable[[Fit, Case, float], Iterator[Demand]]
    longest: int = 5

    def case(self, kind: str, seed: int = 0) -> Case:
        """Draw a log to try the law on."""
        return make_case(kind, seed, longest=self.longest)


def _scale(log: LoggedDataset) -> float:
    return float(np.abs(log.rewards).max())


def _returns(log: LoggedDataset, gamma: float) -> FloatArray:
    return ragged.segment_sum(gamma ** ragged.step_index(log.offsets) * log.rewards, log.offsets)


def scale_rewards(fit: Fit, case: Case, _gamma: float) -> Iterator[Demand]:
    """Demand that rewards in another unit give the value in that unit, and the influence too."""
    base = fit(case.log, case.candidate)
    for factor in FACTORS:
        scaled = fit(case.log.replace(rewards=factor * case.log.rewards), case.candidate)
        yield Demand(
            f"with rewards times {factor:g}",
            scaled.value,
            factor * base.value,
            abs(factor) * _scale(case.log),
            scaled.influence,
            None if base.influence is None else factor * base.influence,
        )


def permute_episodes(fit: Fit, case: Case, _gamma: float) -> Iterator[Demand]:
    """Demand that the order of the episodes changes nothing but the order of the influence vector."""
    base = fit(case.log, case.candidate)
    order = np.random.default_rng(1).permutation(case.log.n_episodes)
    turned = fit(case.log.select(order), case.candidate)
    yield Demand(
        "with episodes in another order",
        turned.value,
        base.value,
        _scale(case.log),
        turned.influence,
        None if base.influence is None else base.influence[order],
    )


def on_policy_mean(fit: Fit, case: Case, gamma: float) -> Iterator[Demand]:
    """Demand the mean discounted return for the policy that logged, whose propensities are known."""
    value = fit(case.log, case.behavior).value
    yield Demand("for the policy that logged", value, float(np.mean(_returns(case.log, gamma))), _scale(case.log))


def one_step_bandit(fit: Fit, case: Case, _gamma: float) -> Iterator[Demand]:
    """Demand inverse propensity scoring, or its self-normalised form, for episodes of one step."""
    log = case.log
    assert log.behavior_log_prob is not None
    ratio = np.exp(log_prob_logged(case.candidate, log) - log.behavior_log_prob)
    found = fit(log, case.candidate).value
    forms = (float(np.mean(ratio * log.rewards)), float(ratio @ log.rewards / ratio.sum()))
    nearest = min(forms, key=lambda value: abs(value - found))
    yield Demand("with episodes of one step", found, nearest, _scale(log))


def shards_merge(fit: Fit, case: Case, _gamma: float) -> Iterator[Demand]:
    """Demand that a log read in many small blocks gives what it gives in one."""
    base, parts = fit(case.log, case.candidate), fit(sharded(case.log), case.candidate)
    yield Demand(
        "with the log in small blocks", parts.value, base.value, _scale(case.log), parts.influence, base.influence
    )


def padding(fit: Fit, case: Case, _gamma: float) -> Iterator[Demand]:
    """Demand that steps in an absorbing state of reward 0, added to terminal episodes, change nothing."""
    short, long = padded_pair(case.seed)
    base, padded = fit(short.log, short.candidate), fit(long.log, long.candidate)
    yield Demand(
        "with steps of reward 0 after terminals",
        padded.value,
        base.value,
        _scale(short.log),
        padded.influence,
        base.influence,
    )


def shift_rewards(fit: Fit, case: Case, gamma: float) -> Iterator[Demand]:
    """Demand that a constant added to all rewards adds its discounted sum to the value, where no episode ends early."""
    base = fit(case.log, case.candidate)
    shifted = fit(case.log.replace(rewards=case.log.rewards + SHIFT), case.candidate)
    endless = 1.0 / (1.0 - gamma) if gamma < 1.0 else np.inf
    total = SHIFT * float(endless if base.horizon is None else (gamma ** np.arange(base.horizon)).sum())
    yield Demand(f"with {SHIFT:g} added to all rewards", shifted.value, base.value + total, _scale(case.log))


ENDED = ("terminal", "horizon", "continuous", "continuous_horizon")
EVERY = ("terminal", "horizon", "mixed", "continuous", "continuous_horizon", "deterministic")

LAWS: MappingProxyType[str, Law] = MappingProxyType(
    {
        "scale_rewards": Law("scaling the rewards must scale the value", True, EVERY, scale_rewards),
        "permute_episodes": Law("the order of episodes must not matter", True, EVERY, permute_episodes),
        "on_policy_mean": Law("the logging policy must get its mean return", False, ENDED, on_policy_mean),
        "one_step_bandit": Law("one step must give the bandit estimator", False, ENDED, one_step_bandit, longest=1),
        "shards_merge": Law("a log in parts must give what the whole gives", False, EVERY, shards_merge),
        "padding": Law("steps of reward 0 after a terminal must not matter", False, ("terminal",), padding),
        "shift_rewards": Law(
            "shifting the rewards must shift the value", False, ("horizon", "continuous_horizon"), shift_rewards
        ),
    }
)


# -------------------------------------------------------------------- strengths


def hold_exactly(owner: str, name: str, fit: Fit, case: Case, gamma: float) -> None:
    """Raise an AssertionError unless what comes is what is demanded, to 1e-8 relative."""
    law = LAWS[name]
    for demand in law.demands(fit, case, gamma):
        remedy = f"correct the estimator, or declare laws[{name!r}] STATISTICAL, or the sentence why it does not apply"
        what = f"law {name} (exact): {law.statement}; on the {case.kind!r} log {demand.change}"
        gap = first_difference(demand.found, demand.expected, TOLERANCE, demand.scale)
        ensure(gap is None, owner, f"{what} the value must be {demand.expected!r}", f"{demand.found!r}", remedy)
        if demand.expected_influence is None:
            continue
        gap = first_difference(demand.found_influence, demand.expected_influence, TOLERANCE)
        ensure(gap is None, owner, f"{what} the influence vector must obey too", f"a value{gap}", remedy)


def hold_statistically(
    owner: str, name: str, fit_of_seed: Callable[[int], Fit], kind: str, gamma: float, n_seeds: int = N_SEEDS
) -> None:
    """Raise an AssertionError unless the mean deviation over the seeds is within 4 of its standard errors."""
    law = LAWS[name]
    rows = [list(law.demands(fit_of_seed(seed), law.case(kind, seed), gamma)) for seed in range(n_seeds)]
    for demands in zip(*rows, strict=True):
        scale = np.array([demand.scale for demand in demands])
        gaps = np.array([demand.found - demand.expected for demand in demands]) / scale
        z = standard_score(gaps)
        what = f"law {name} (statistical): {law.statement}; on the {kind!r} log {demands[0].change}"
        rule = f"{what} the deviation must average 0 over {n_seeds} seeds within {Z_LIMIT:g} standard errors"
        remedy = f"correct the estimator, or declare laws[{name!r}] with the sentence why it does not apply"
        ensure(abs(z) <= Z_LIMIT, owner, rule, f"{np.mean(gaps):.3g} of a reward, {z:.1f} standard errors", remedy)


def standard_score(gaps: npt.NDArray[np.float64]) -> float:
    """Return the mean over its standard error; 0 where all gaps are rounding, infinite where they are all the same.

    Examples
    --------
    >>> round(standard_score(np.array([1.0, -1.0, 2.0, -2.0])), 3), standard_score(np.array([0.5, 0.5]))
    (0.0, inf)
    """
    mean, error = float(np.mean(gaps)), float(np.std(gaps, ddof=1)) / np.sqrt(len(gaps))
    if not np.isfinite(mean):
        return float("nan")
    if abs(mean) <= TOLERANCE:
        return 0.0
    return float(np.sign(mean)) * float("inf") if error == 0.0 else float(mean / error)
