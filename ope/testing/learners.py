"""What every learner must do beyond what every policy must: fit as scikit-learn's estimators do, and be stored."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from unittest import SkipTest

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from ope.policy import PolicyLearner, overlap
from ope.testing.policies import PolicySubject, answers
from ope.testing.tools import (
    digest,
    ensure,
    ensure_raises,
    first_difference,
    global_random_states,
    global_seed,
    kept_data,
)


def check_fit_contract(subject: PolicySubject) -> None:
    """Check that fit returns self, names what it learns with a final underscore, and leaves its inputs alone."""
    owner, fresh = subject.owner, clone(subject.given)
    before, content, log = fresh.get_params(), digest(fresh.get_params()), digest(subject.data)
    returned = fresh.fit(subject.data)
    ensure(returned is fresh, owner, "fit must return self", repr(returned), "end it with `return self`")
    params = fresh.get_params()
    kept = digest(params) == content and all(params[name] is before[name] for name in before)
    ensure(kept, owner, "fit must leave the parameters alone", f"{params}", "store what is learned under names with _")
    ensure(digest(subject.data) == log, owner, "fit must leave the log alone", "another", "copy before you write")
    public = sorted(name for name in set(vars(fresh)) - set(params) if not name.endswith("_") and name[0] != "_")
    ensure(not public, owner, "what fit learns must have names that end in an underscore", f"{public}", "rename them")


def check_repeated_fits(subject: PolicySubject) -> None:
    """Check that equal seeds give equal bits, whatever the global seed and earlier fits."""
    if "random_state" in subject.given.get_params() and subject.given.get_params()["random_state"] is None:
        raise SkipTest("random_state=None asks for another fit each time")
    owner, learner = subject.owner, clone(subject.given)
    for seed in (1, 2):
        with global_seed(seed):
            before = global_random_states()
            learner.fit(subject.data)
            after = global_random_states()
        moved = sorted(name for name in before if after[name] != before[name])
        ensure(not moved, owner, "fit must leave global generators alone", f"{moved} moved", "use `random_state`")
        gap = first_difference(answers(learner, subject.data), answers(subject.policy, subject.data))
        rule = "a fit must give the same bits again"
        ensure(gap is None, owner, rule, f"another policy{gap}", "start afresh, and draw from `random_state` alone")


def check_training_episodes(subject: PolicySubject) -> None:
    """Check that the learner remembers which episodes it has seen, so that estimates can report the overlap."""
    found, n = overlap(subject.policy, subject.data), subject.data.n_episodes
    remedy = "call self._remember(data) in fit"
    ensure(
        found == n, subject.owner, "training_episode_keys_ must name the training episodes", f"{found} of {n}", remedy
    )


def check_unfitted(subject: PolicySubject) -> None:
    """Check that a learner that was not fitted says so."""
    learner = clone(subject.given)
    ensure_raises(
        lambda: learner.predict(subject.data.states), NotFittedError, subject.owner, "predict before fit", ("fit",)
    )


def check_wrong_type(subject: PolicySubject) -> None:
    """Check that what is no log is a TypeError that names the remedy."""
    fragments = (subject.owner, "`data`", "LoggedDataset")
    ensure_raises(
        lambda: clone(subject.given).fit(np.zeros((3, 2))), TypeError, subject.owner, "data that is no log", fragments
    )


def check_no_data_kept(subject: PolicySubject) -> None:
    """Check that a fitted learner holds no rows of the log."""
    path = kept_data(subject.policy, subject.data, subject.policy.get_params(deep=False))
    remedy = "let go of the log at the end of fit"
    ensure(path is None, subject.owner, "a fitted learner must keep no data", f"the log's rows in {path}", remedy)


def check_file(subject: PolicySubject) -> None:
    """Check that a saved policy comes back with the same answers."""
    from ope.neural.serialization import POLICY_CLASSES, load_policy

    policy = subject.policy
    assert isinstance(policy, PolicyLearner)
    if POLICY_CLASSES.get(subject.owner) != type(policy).__module__:
        raise SkipTest("ope.load_policy loads the classes of this library only; store it with pickle")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.safetensors"
        policy.save(path)
        gap = first_difference(answers(load_policy(path), subject.data), answers(policy, subject.data))
    ensure(
        gap is None, subject.owner, "a stored policy must answer the same", f"another answer{gap}", "store all of it"
    )


CHECKS: Mapping[str, Callable[[PolicySubject], None]] = MappingProxyType(
    {
        "fit_contract": check_fit_contract,
        "repeated_fits": check_repeated_fits,
        "training_episodes": check_training_episodes,
        "unfitted": check_unfitted,
        "wrong_type": check_wrong_type,
        "no_data_kept": check_no_data_kept,
        "file": check_file,
    }
)
