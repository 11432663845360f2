"""Learning many policies for a search: side by side where the learner can, failures kept as reasons, checkpoints named."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from threadpoolctl import threadpool_limits

from ope.dataset import LoggedDataset
from ope.estimator import OffPolicyEstimator
from ope.policy import Policy, PolicyLearner, interrupted
from ope.selection import PolicySelector


@dataclass(frozen=True, order=True)
class Candidate:
    """One thing to choose: a setting, and the updates after which its training is cut (None: it has no checkpoints)."""

    setting: int
    n_updates: int | None = None


@dataclass
class Learned:
    """What was learned from one part of a log: policies, or why there is none, and the seconds of each setting."""

    policies: dict[Candidate, Policy] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)


def learn(learners: Mapping[int, Policy], data: LoggedDataset, *, checkpoints: bool) -> Learned:
    """Fit copies of the learners to a log, on one thread; a policy that is no learner stays what it is.

    Parameters
    ----------
    learners : mapping of int to Policy
        By number of the setting.
    data : LoggedDataset
    checkpoints : bool
        Whether every checkpoint is a candidate, or the last policy only.

    Returns
    -------
    Learned

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C ended the training of one.
    """
    result = Learned()
    with threadpool_limits(limits=1):
        for members in _batches(learners).values():
            start = time.perf_counter()
            fitted = _fit_all({i: clone(learners[i]) for i in members}, data, result.failures)
            share = (time.perf_counter() - start) / len(members)
            result.seconds |= dict.fromkeys(members, share)
            for i, policy in fitted.items():
                result.policies |= {Candidate(i, n): p for n, p in stages(policy, checkpoints=checkpoints).items()}
    return result


def _batches(learners: Mapping[int, Policy]) -> dict[tuple[type, str], list[int]]:
    """Return which learners train as one: those of a class whose networks have equal shapes, where it tells.

    A call of `fit_many` for each: a setting that fails, or Ctrl-C, concerns no others than those that train with it.
    """
    groups: dict[tuple[type, str], list[int]] = {}
    for i, learner in learners.items():
        shapes = getattr(learner, "_group_key", str)()
        groups.setdefault((type(learner), shapes), []).append(i)
    return groups


def _fit_all(fresh: Mapping[int, Policy], data: LoggedDataset, failures: dict[int, str]) -> dict[int, Policy]:
    """Fit as one, and one after another where that is not possible: a setting that fails must not lose the others."""
    kind = type(next(iter(fresh.values())))
    if len(fresh) > 1 and hasattr(kind, "fit_many"):
        try:
            together = kind.fit_many(data, [clone(learner) for learner in fresh.values()])
            return dict(zip(fresh, map(_complete, together), strict=True))
        except Exception:
            pass  # told below, for the setting that is to blame
    fitted: dict[int, Policy] = {}
    for i, learner in fresh.items():
        try:
            fitted[i] = fit_whole(learner, data)
        except Exception as error:
            failures[i] = f"{type(error).__name__}: {error}"
    return fitted


def fit_whole(learner: Policy, data: LoggedDataset) -> Policy:
    """Return a learner fitted to a log, a policy as it is; raise a KeyboardInterrupt if Ctrl-C ended its training.

    Learners keep what they have learned by then and return; a search that went on would take it for all they can learn.
    """
    return _complete(learner.fit(data)) if isinstance(learner, PolicyLearner) else learner


def _complete(policy: Policy) -> Policy:
    if interrupted(policy):
        raise KeyboardInterrupt(f"training of {type(policy).__name__} was interrupted")
    return policy


@contextlib.contextmanager
def all_or_nothing(owner: str) -> Iterator[None]:
    """Say what Ctrl-C leaves of the work in the block: nothing."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"{owner}: interrupted, and nothing of it is kept: a half-trained policy must not be valued as a whole one; start "
            "again to get a result."
        ) from error


def warn_of_failures(owner: str, failures: Sequence[Mapping[Any, str]], name: Callable[[Any], str]) -> None:
    """Warn as scikit-learn's searches do if fits failed, with the first reason of each setting.

    Parameters
    ----------
    owner : str
    failures : sequence of mappings
        Of each part, reasons by setting.
    name : callable
        Puts a setting into words.
    """
    told: dict[Any, list[str]] = {}
    for part in failures:
        for setting, reason in part.items():
            told.setdefault(setting, []).append(reason)
    if told:
        lines = [f"{name(one)} ({len(all_)} of {len(failures)} fits): {all_[0]}" for one, all_ in told.items()]
        warnings.warn(
            f"{owner}: some fits failed; what they should have given is refused. Correct these settings, or leave them out:\n"
            + "\n".join(lines),
            FitFailedWarning,
            stacklevel=2,
        )


def stages(policy: Policy, *, checkpoints: bool = True) -> dict[int | None, Policy]:
    """Return the checkpoints of a fitted learner and its last policy, by the number of updates behind each."""
    kept = {int(p.n_updates_): p for p in getattr(policy, "checkpoints_", ())} if checkpoints else {}
    last = getattr(policy, "n_updates_", None)
    if not kept:
        return {None: policy}
    if last is not None:
        kept[int(last)] = policy
    return dict(sorted(kept.items()))


_SEED = re.compile(r"(learner__)*random_state")


def with_setting(learner: PolicyLearner, params: Mapping[str, Any], seed: int | None = None) -> PolicyLearner:
    """Return a copy of the learner with this setting, and with this seed where it has one that the setting does not name.

    A learner within the learner, behind transformers say, is seeded too.
    """
    changes = dict(params)
    if seed is not None:
        names = [name for name in learner.get_params() if _SEED.fullmatch(name) and name not in params]
        changes |= dict.fromkeys(names, seed)
    fresh: PolicyLearner = clone(learner)
    fresh.set_params(**changes)
    return fresh


def seeds_of(random_state: int, n: int) -> list[int]:
    """Return n seeds for the runs of n parts."""
    return [int(seed) for seed in np.random.SeedSequence(random_state).generate_state(n, np.uint32)]


# -------------------------------------------------------------------- checks at the door


def named_estimators(owner: str, estimators: Any) -> dict[str, OffPolicyEstimator]:
    """Return estimators by name, or raise before any work is done."""
    if isinstance(estimators, (OffPolicyEstimator, type)) or not isinstance(estimators, (Mapping, Sequence)):
        raise TypeError(
            f"{owner}: `estimators` must be a sequence or mapping of estimators, got {estimators!r}; pass a list of them."
        )
    named: dict[str, Any] = {}
    if isinstance(estimators, Mapping):
        named.update(estimators)
    else:
        for estimator in estimators:
            base = type(estimator).__name__
            same = sum(name == base or name.startswith(f"{base}_") for name in named)
            named[f"{base}_{same + 1}" if same else base] = estimator
    wrong = [type(e).__name__ for e in named.values() if not isinstance(e, OffPolicyEstimator)]
    if wrong or not named:
        raise TypeError(
            f"{owner}: `estimators` must be at least one OffPolicyEstimator, got {wrong or 'none'}; see ope.estimators."
        )
    check_one_question(owner, named)
    return named


def check_one_question(owner: str, named: Mapping[str, OffPolicyEstimator]) -> None:
    """Raise unless all estimators have one gamma and one estimand; their other parameters are checked too."""
    for estimator in named.values():
        estimator._validate()
    gammas = {name: estimator.gamma for name, estimator in named.items()}
    if len(set(gammas.values())) > 1:
        raise ValueError(
            f"{owner}: all estimators must have one `gamma`, got {gammas}; different gammas answer different questions."
        )
    estimands = {name: estimator.estimand for name, estimator in named.items()}
    if len(set(estimands.values())) > 1:
        raise ValueError(
            f"{owner}: all estimators must have one `estimand`, got {estimands}; a sum of rewards and a reward per step answer "
            "different questions, choose by one of them."
        )


def seed_of(owner: str, random_state: Any) -> int:
    """Return the seed, or raise; None is not accepted, because learning and valuing must cut the log alike."""
    if isinstance(random_state, bool) or not isinstance(random_state, (int, np.integer)) or random_state < 0:
        raise ValueError(
            f"{owner}: `random_state` must be an integer of at least 0, got {random_state!r}; the seed decides how the log "
            "is cut."
        )
    return int(random_state)


def new_selector(
    owner: str,
    estimators: Mapping[str, OffPolicyEstimator],
    data: LoggedDataset,
    criterion: str,
    options: Mapping[str, Any] | None,
    candidates: Sequence[str] = ("candidate",),
    taken: Sequence[str] = ("estimators", "criterion"),
) -> PolicySelector:
    """Return a selector whose parameters are checked now, as its `fit` checks them, before the long work."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(
            f"{owner}: `selection` must be a mapping of PolicySelector's parameters, got {options!r}; pass {{'baseline': None}}."
        )
    _check_options(owner, options or {}, taken)
    selector = PolicySelector(estimators, criterion, **(options or {}))
    selector._named_estimators()
    selector._validate(data, dict.fromkeys(candidates))
    return selector


def _check_options(owner: str, options: Mapping[str, Any], taken: Sequence[str]) -> None:
    """Raise for parameters that the owner gives the selector itself, in `taken`, and for those that it does not have."""
    twice = [name for name in options if name in taken]
    if twice:
        raise ValueError(
            f"{owner}: `selection` must hold parameters of PolicySelector that {owner} has no own ones for, got {twice}; pass "
            f"{', '.join(f'{name}=' for name in twice)} to {owner} itself."
        )
    known = [name for name in PolicySelector._get_param_names() if name not in taken]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"{owner}: `selection` must hold parameters of PolicySelector, got {unknown}; choose among {', '.join(known)}."
        )
