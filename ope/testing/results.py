"""What every estimate must be, and the laws of the field with the strengths that an estimator declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from unittest import SkipTest

import numpy as np
from sklearn.base import clone

from ope.estimate import Estimate
from ope.estimator import EXACT, STATISTICAL
from ope.inference import IntervalNotAvailable
from ope.testing.estimators import EstimatorSubject, parts_of
from ope.testing.laws import LAWS, Fit, hold_exactly, hold_statistically
from ope.testing.logs import Case
from ope.testing.tools import TOLERANCE, ensure, first_difference
from ope.verdict import Level, Verdict


def check_result(subject: EstimatorSubject) -> None:
    """Check that an estimate is complete and consistent, on every kind of log that is served."""
    for kind, (case, estimate) in subject.served.items():
        where = f"on the {kind!r} log"
        _check_identity(subject, case, estimate, where)
        _check_numbers(subject.owner, estimate, where)
        _check_verdict(subject.owner, estimate, where)
        _check_interval(subject.owner, estimate, where)


def _check_identity(subject: EstimatorSubject, case: Case, estimate: Estimate, where: str) -> None:
    expected = {
        "gamma": subject.gamma,
        "data_id": case.log.data_id,
        "episode_keys": case.log.episode_keys,
        "estimator": subject.owner,
        "known_propensities": True,
        "error": None,
    }
    gap = first_difference(parts_of(estimate, tuple(expected)), expected)
    ensure(gap is None, subject.owner, f"{where} an estimate must say whose it is", f"{gap}", "use self._result")
    told = estimate.horizon in (None, case.log.horizon)
    ensure(told, subject.owner, f"{where} the horizon must be the log's or None", f"{estimate.horizon}", "pass it on")
    overlap = estimate.diagnostics.get("training_overlap")
    rule = f"{where} diagnostics must report the training overlap"
    ensure(overlap == 0, subject.owner, rule, f"{overlap!r}", "leave _fit_named to the base class")


def _check_numbers(owner: str, estimate: Estimate, where: str) -> None:
    rule, n, psi = f"{where} the value must be a float", estimate.n_episodes, estimate.influence
    ensure(isinstance(estimate.value, float), owner, rule, type(estimate.value).__name__, "use self._result")
    if psi is not None:
        ensure(
            psi.shape == (n,), owner, f"{where} influence must have an entry per episode", f"{psi.shape}", "sum rows"
        )
        centred = abs(float(psi.mean())) <= TOLERANCE * float(np.abs(psi).max())
        ensure(centred, owner, f"{where} influence must average 0", f"{float(psi.mean())!r}", "subtract its mean")
    if estimate.scores is not None:
        gap = first_difference(float(estimate.scores.mean()), estimate.value, TOLERANCE)
        ensure(gap is None, owner, f"{where} the mean of the scores must be the value", f"a mean{gap}", "omit scores")
    if estimate.replicates is not None:
        named = estimate.resample_id is not None
        ensure(named, owner, f"{where} replicates must name their resamples", "none", "pass resample_id")


def _check_verdict(owner: str, estimate: Estimate, where: str) -> None:
    verdict = estimate.verdict
    ensure(isinstance(verdict, Verdict), owner, f"{where} verdict must be a Verdict", repr(verdict), "use Verdict.of")
    explained = bool(verdict.reasons) == (verdict.level > Level.VALID)
    ensure(explained, owner, f"{where} what is not VALID must have reasons", f"{verdict!r}", "give a sentence for each")
    open_ended = [reason for reason in verdict.reasons if not reason.rstrip().endswith(".")]
    ensure(
        not open_ended, owner, f"{where} reasons must be sentences", f"{open_ended}", "say what it means, what to do"
    )
    finite = bool(np.isfinite(estimate.value))
    ensure(finite or verdict.level == Level.REFUSE, owner, f"{where} no value must be REFUSE", f"{verdict}", "judge it")
    known = bool(np.isfinite(estimate.std_error))
    rule = f"{where} VALID must come with a standard error"
    ensure(known or verdict.level > Level.VALID, owner, rule, "none", "give influence or replicates, or CAUTION")


def _check_interval(owner: str, estimate: Estimate, where: str) -> None:
    try:
        low, high = estimate.confidence_interval()
    except IntervalNotAvailable:
        return
    if np.isfinite(estimate.value):
        ordered = low <= estimate.value <= high
        ensure(ordered, owner, f"{where} the interval must hold the value", f"{low} to {high}", "check influence")
    told = estimate.verdict.level.name in estimate.summary()
    ensure(told, owner, f"{where} the summary must show the verdict", estimate.summary(), "leave it to Estimate")


# -------------------------------------------------------------------- laws


def check_declared_laws(subject: EstimatorSubject) -> None:
    """Check that every declared law exists and has a strength, and that the universal ones are declared."""
    declared = subject.estimator.laws
    unknown = sorted(set(declared) - set(LAWS))
    ensure(not unknown, subject.owner, f"laws must be among {sorted(LAWS)}", f"{unknown}", "correct the name")
    for name, law in LAWS.items():
        if law.universal:
            rule = f"law {name} must be declared by every estimator"
            ensure(name in declared, subject.owner, rule, f"{sorted(declared)}", "add it to `laws`")
    for name, strength in declared.items():
        short = strength not in (EXACT, STATISTICAL) and len(strength.split()) < 3
        rule = f"laws[{name!r}] must be EXACT, STATISTICAL or the sentence why it does not apply"
        ensure(not short, subject.owner, rule, repr(strength), "write the sentence")


def check_law(name: str, subject: EstimatorSubject) -> None:
    """Check a law with the strength that the estimator declares."""
    law, strength = LAWS[name], subject.strength(name)
    if strength is None:
        ensure(not law.universal, subject.owner, f"law {name} must be declared", "nothing", "add it to `laws`")
        raise SkipTest("not declared")
    if strength not in (EXACT, STATISTICAL):
        raise SkipTest(strength)
    kinds = [kind for kind in law.kinds if kind in subject.served]
    if not kinds:
        raise SkipTest(f"it serves none of the logs of this law: {', '.join(law.kinds)}")
    if strength == EXACT:
        for kind in kinds:
            hold_exactly(subject.owner, name, subject.fit, law.case(kind), subject.gamma)
    else:
        hold_statistically(subject.owner, name, partial(_seeded_fit, subject), kinds[0], subject.gamma)


def _seeded_fit(subject: EstimatorSubject, seed: int) -> Fit:
    names = [name for name in subject.estimator.get_params(deep=True) if name.split("__")[-1] == "random_state"]
    seeded = EstimatorSubject(clone(subject.estimator).set_params(**dict.fromkeys(names, seed)))
    return seeded.fit


CHECKS: Mapping[str, Callable[[EstimatorSubject], None]] = MappingProxyType(
    {
        "result": check_result,
        "declared_laws": check_declared_laws,
        **{f"law_{name}": partial(check_law, name) for name in LAWS},
    }
)
