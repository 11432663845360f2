"""The checks that every plug-in passes: run `check_estimator` or `check_policy` on yours before you trust it.

Estimators are checked for the protocol (parameters, copies, seeds, inputs, errors, results) and for the laws of the field,
each with the strength that the class declares in `laws`. With pytest, parametrise over the generators instead::

    @pytest.mark.parametrize(("name", "check"), estimator_checks(Mine(gamma=0.9)))
    def test_mine(name, check):
        check()

A check that does not apply raises `unittest.SkipTest` with the reason, which pytest reports as skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from ope.estimator import OffPolicyEstimator
from ope.policy import Policy, PolicyLearner
from ope.testing import draws, estimators, learners, policies, results

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset

__all__ = ["CheckResult", "check_estimator", "check_policy", "estimator_checks", "policy_checks"]

Check = Callable[[], None]


@dataclass(frozen=True)
class CheckResult:
    """A check that was passed or skipped.

    Parameters
    ----------
    name : str
    status : {"passed", "skipped"}
    reason : str
        Why it was skipped.

    Examples
    --------
    >>> CheckResult("law_padding", "skipped", "not declared")
    CheckResult(name='law_padding', status='skipped', reason='not declared')
    """

    name: str
    status: str
    reason: str = ""


def estimator_checks(estimator: OffPolicyEstimator) -> Iterator[tuple[str, Check]]:
    """Yield the checks of an estimator, each with its name.

    Parameters
    ----------
    estimator : OffPolicyEstimator
        With the settings to check, `gamma` included; it is cloned, never fitted.

    Yields
    ------
    name : str
    check : callable
        Without arguments; raises an AssertionError that says what is wrong, or SkipTest with the reason.

    Raises
    ------
    TypeError
        If it is no estimator.

    Examples
    --------
    >>> from ope.estimators import PerDecisionIS
    >>> [name for name, _ in estimator_checks(PerDecisionIS(gamma=0.9))][:3]
    ['init_only_assigns', 'parameters', 'clone']
    """
    if not isinstance(estimator, OffPolicyEstimator):
        raise TypeError(
            f"check_estimator: `estimator` must be an OffPolicyEstimator, got {type(estimator).__name__}; pass an object of a subclass, with its gamma."
        )
    subject = estimators.EstimatorSubject(estimator)
    for name, check in {**estimators.CHECKS, **results.CHECKS}.items():
        yield name, partial(_run, subject.owner, name, partial(check, subject))


def check_estimator(estimator: OffPolicyEstimator) -> list[CheckResult]:
    """Check an estimator for the protocol and the laws of the field.

    Parameters
    ----------
    estimator : OffPolicyEstimator
        With the settings to check, `gamma` included; it is cloned, never fitted.

    Returns
    -------
    list of CheckResult
        What was passed, and what was skipped and why.

    Raises
    ------
    AssertionError
        That lists every check that fails, with the rule, what came and the remedy.
    TypeError
        If it is no estimator.

    Notes
    -----
    Logs are small, random and the same each time: discrete and continuous actions, one-hot states and features, ends of all
    kinds. A log that the method cannot serve is refused by a TypeError or ValueError that begins with the class's name.
    Exact laws hold to 1e-8 relative; statistical ones have a mean deviation within 4 standard errors over 200 seeds.

    Examples
    --------
    >>> from ope.estimators import PerDecisionIS
    >>> results = check_estimator(PerDecisionIS(gamma=0.9))
    >>> [result.name for result in results if result.status == "skipped"]
    ['law_shift_rewards']
    """
    return _run_all(type(estimator).__name__, estimator_checks(estimator))


def policy_checks(policy: Policy, data: LoggedDataset | None = None) -> Iterator[tuple[str, Check]]:
    """Yield the checks of a policy or learner, each with its name.

    Parameters
    ----------
    policy : Policy
        A learner is fitted to `data` as a clone.
    data : LoggedDataset, optional
        A log on which the policy can act; default: a small random one.

    Yields
    ------
    name : str
    check : callable

    Raises
    ------
    TypeError
        If it is no policy.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> [name for name, _ in policy_checks(TabularPolicy([[0.2, 0.5, 0.3]] * 3))][:3]
    ['init_only_assigns', 'parameters', 'clone']
    """
    if not isinstance(policy, Policy):
        raise TypeError(
            f"check_policy: `policy` must be a Policy, got {type(policy).__name__}; wrap it in an adapter of ope.policies, or pass an object of a subclass."
        )
    subject = policies.PolicySubject(policy, data)
    more = learners.CHECKS if isinstance(policy, PolicyLearner) else {}
    for name, check in {**policies.CHECKS, **draws.CHECKS, **more}.items():
        yield name, partial(_run, subject.owner, name, partial(check, subject))


def check_policy(policy: Policy, data: LoggedDataset | None = None) -> list[CheckResult]:
    """Check that a policy or learner keeps what its capabilities promise.

    Parameters
    ----------
    policy : Policy
        A learner is fitted to `data` as a clone.
    data : LoggedDataset, optional
        A log on which the policy can act; default: a small random one with states of the width that the policy knows.

    Returns
    -------
    list of CheckResult

    Raises
    ------
    AssertionError
        That lists every check that fails, with the rule, what came and the remedy.
    TypeError
        If it is no policy.

    Examples
    --------
    >>> from ope.policies import TabularPolicy
    >>> results = check_policy(TabularPolicy([[0.2, 0.5, 0.3]] * 3))
    >>> sorted({result.status for result in results})
    ['passed', 'skipped']
    """
    return _run_all(type(policy).__name__, policy_checks(policy, data))


def _run(owner: str, name: str, check: Check) -> None:
    try:
        check()
    except SkipTest:
        raise
    except Exception as error:
        if isinstance(error, AssertionError) and str(error).startswith(f"{owner}: "):
            raise
        message = f"{owner}: check {name} must run, got {type(error).__name__}: {error}; see the error above this one."
        raise AssertionError(message) from error


def _run_all(owner: str, checks: Iterable[tuple[str, Check]]) -> list[CheckResult]:
    results: list[CheckResult] = []
    failures: dict[str, Any] = {}
    for name, check in checks:
        try:
            check()
        except SkipTest as reason:
            results.append(CheckResult(name, "skipped", str(reason)))
        except AssertionError as error:
            failures[name] = error
        else:
            results.append(CheckResult(name, "passed"))
    if failures:
        total = len(failures) + len(results)
        listed = "\n".join(f"- {name}: {error}" for name, error in failures.items())
        raise AssertionError(f"{owner} fails {len(failures)} of {total} checks:\n{listed}") from next(
            iter(failures.values())
        )
    return results
