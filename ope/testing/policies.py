"""What every policy must do: keep what its capabilities promise, with verbs that agree with each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any
from unittest import SkipTest

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from ope.dataset import LoggedDataset, Rows
from ope.policy import Policy, PolicyLearner, log_prob_logged, probabilities
from ope.testing import objects
from ope.testing.logs import KINDS, make_case
from ope.testing.tools import digest, ensure, ensure_raises, first_difference
from ope.validation import BoolArray, FloatArray, IntArray

CAPABILITIES = frozenset({"logged_prob", "all_probs", "density", "sample", "deterministic"})
ROUNDING = 1e-6


class PolicySubject:
    """A policy under test, and a log on which it acts.

    Parameters
    ----------
    policy : Policy
        A learner is fitted as a clone.
    data : LoggedDataset, optional
    """

    def __init__(self, policy: Policy, data: LoggedDataset | None = None) -> None:
        self.given = policy
        self.owner = type(policy).__name__
        self._data = data

    @cached_property
    def _ready(self) -> tuple[Policy, LoggedDataset]:
        reasons = {}
        given = {} if self._data is None else {"given": self._data}
        for kind, log in (given or {kind: make_case(kind).log for kind in KINDS}).items():
            try:
                policy = clone(self.given).fit(log) if isinstance(self.given, PolicyLearner) else self.given
                _act(policy, log)
            except Exception as error:
                if self._data is not None:
                    raise
                reasons[kind] = f"{type(error).__name__}: {error}"
            else:
                return policy, log
        rule = "a policy must act on one of the default logs"
        ensure(False, self.owner, rule, f"{reasons}", "pass data=, a log on which it acts")
        raise AssertionError

    @property
    def policy(self) -> Policy:
        """The policy, fitted if it is a learner."""
        return self._ready[0]

    @property
    def data(self) -> LoggedDataset:
        """The log on which it acts."""
        return self._ready[1]

    @property
    def rows(self) -> Rows:
        """The rows of the log without its action mask, as bare verbs see them."""
        return Rows(self.data.states, self.data.feature_names, None, self.data.extras)

    @property
    def labels(self) -> npt.NDArray[Any]:
        """The log's labels."""
        labels = self.data.action_labels
        ensure(labels is not None, self.owner, "all_probs is for discrete actions", "a continuous log", "pass data=")
        assert labels is not None
        return labels

    @property
    def own_labels(self) -> npt.NDArray[Any]:
        """What predict and sample return: the policy's labels, or column numbers where it has none."""
        return np.arange(len(self.labels)) if self.policy.labels is None else np.asarray(self.policy.labels)

    def offers(self, *capabilities: str) -> bool:
        """Return whether the policy offers all of these."""
        return set(capabilities) <= self.policy.capabilities

    def need(self, *capabilities: str) -> None:
        """Skip the check unless the policy offers all of these."""
        if not self.offers(*capabilities):
            raise SkipTest(f"it does not offer {', '.join(sorted(set(capabilities) - self.policy.capabilities))}")


def _act(policy: Policy, log: LoggedDataset) -> None:
    offered = policy.capabilities
    if "all_probs" in offered:
        if log.action_labels is None:
            raise TypeError("all_probs is for discrete actions")
        probabilities(policy, log.rows(), log.action_labels)
    elif "logged_prob" in offered:
        log_prob_logged(policy, log)
    else:
        kind = "f" if log.action_labels is None else log.action_labels.dtype.kind
        if np.asarray(policy.sample(log.states, 0)).dtype.kind != kind:
            raise TypeError("the actions are not those of the log")


def predicted(policy: Policy, states: npt.ArrayLike) -> npt.NDArray[Any] | None:
    """Return what the policy predicts, or None where it has no `predict`: no capability speaks of it."""
    try:
        return np.asarray(policy.predict(states))
    except TypeError as error:
        if "has no `predict`" in str(error):
            return None
        raise


def answers(policy: Policy, log: LoggedDataset) -> dict[str, Any]:
    """Return everything that a policy says about a log."""
    offered = policy.capabilities
    said: dict[str, Any] = {}
    if "logged_prob" in offered:
        said["log_prob"] = log_prob_logged(policy, log)
    if "all_probs" in offered and log.action_labels is not None:
        said["probabilities"] = probabilities(policy, log.rows(), log.action_labels)
    if "sample" in offered:
        said["predict"] = predicted(policy, log.states)
        said["sample"] = np.asarray(policy.sample(log.states, 0))
    return said


def take(rows: Rows, index: Any) -> Rows:
    """Return some of the rows."""
    mask, extras = rows.action_mask, rows.extras
    return Rows(
        rows.states[index],
        rows.feature_names,
        None if mask is None else mask[index],
        None if extras is None else extras.iloc[index],
    )


# -------------------------------------------------------------------- objects


def check_init(subject: PolicySubject) -> None:
    """Check that the constructor only assigns."""
    objects.init_only_assigns(subject.owner, subject.given)


def check_parameters(subject: PolicySubject) -> None:
    """Check get_params and set_params."""
    objects.parameters_can_be_set(subject.owner, subject.given)


def check_clone(subject: PolicySubject) -> None:
    """Check that the clone of a learner is unfitted, and that of any other policy answers the same."""
    if isinstance(subject.given, PolicyLearner):
        objects.clone_is_unfitted(subject.owner, subject.policy)
        return
    gap = first_difference(answers(clone(subject.policy), subject.data), answers(subject.policy, subject.data))
    remedy = "leave clone to the base class"
    ensure(gap is None, subject.owner, "a clone must answer the same", f"another answer{gap}", remedy)


def check_repr(subject: PolicySubject) -> None:
    """Check repr."""
    objects.repr_shows_the_class(subject.owner, subject.given)
    objects.repr_shows_the_class(subject.owner, subject.policy)


def check_copies(subject: PolicySubject) -> None:
    """Check that pickle, copy and deepcopy answer the same bits."""
    objects.copies_behave_alike(subject.owner, subject.policy, lambda policy: answers(policy, subject.data))


# -------------------------------------------------------------------- promises


def check_capabilities(subject: PolicySubject) -> None:
    """Check that the capabilities are known ones and do not contradict each other."""
    owner, offered = subject.owner, subject.policy.capabilities
    known = isinstance(offered, frozenset) and offered <= CAPABILITIES
    ensure(known, owner, f"capabilities must be a frozenset among {sorted(CAPABILITIES)}", f"{offered!r}", "correct it")
    both = {"all_probs", "density"} <= offered
    ensure(not both, owner, "capabilities must be of one kind of action", f"{sorted(offered)}", "drop one of the two")
    implied = not offered & {"all_probs", "density"} or "logged_prob" in offered
    ensure(implied, owner, "all_probs and density must bring logged_prob", f"{sorted(offered)}", "add it")


def check_probabilities(subject: PolicySubject) -> None:
    """Check that probabilities sum to 1, and that the row alone decides them."""
    subject.need("all_probs")
    owner, policy, rows, labels = subject.owner, subject.policy, subject.data.rows(), subject.labels
    probs = probabilities(policy, rows, labels)
    gap = first_difference(probabilities(policy, rows, labels), probs)
    ensure(gap is None, owner, "probabilities must be the same again", f"others{gap}", "draw nothing in predict_proba")
    for index in (slice(None, None, -1), slice(0, 1), slice(1, None, 3)):
        part = probabilities(policy, take(rows, index), labels)
        gap = first_difference(part, probs[index], ROUNDING)
        rule = "the probabilities of a row must not depend on the other rows"
        ensure(gap is None, owner, rule, f"others{gap}", "look at each row alone")


def check_bare_states(subject: PolicySubject) -> None:
    """Check that predict_proba on bare states says what it says on logged rows, lists included."""
    subject.need("all_probs", "sample")
    owner, policy, states = subject.owner, subject.policy, subject.data.states
    probs = probabilities(policy, subject.rows, subject.labels)
    own = np.asarray(policy.predict_proba(states))
    ensure(own.shape == (len(states), len(subject.own_labels)), owner, "predict_proba must have a column per label", f"{own.shape}", "return shape (n, n_actions)")  # fmt: skip
    columns = _columns(subject)
    gap = first_difference(own[:, columns >= 0], probs[:, columns[columns >= 0]], ROUNDING)
    ensure(gap is None, owner, "predict_proba must agree with proba_rows", f"others{gap}", "define one by the other")
    listed = np.asarray(policy.predict_proba(states.tolist()))
    gap = first_difference(listed, own, ROUNDING)
    ensure(gap is None, owner, "lists must serve as states", f"others{gap}", "begin with numpy.asarray")


def _columns(subject: PolicySubject) -> IntArray:
    """Return the log's column of each of the policy's labels, -1 where the log does not know it."""
    if subject.policy.labels is None:
        return np.arange(len(subject.labels))
    known = {label: column for column, label in enumerate(subject.labels.tolist())}
    return np.array([known.get(label, -1) for label in subject.own_labels.tolist()])


def check_log_prob(subject: PolicySubject) -> None:
    """Check that log_prob is the logarithm of predict_proba, and finite where it is a density."""
    subject.need("logged_prob")
    owner, policy, data = subject.owner, subject.policy, subject.data
    logged = log_prob_logged(policy, data)
    if data.action_labels is None:
        finite = logged[np.isfinite(logged)]
        ensure(len(finite), owner, "a density must be positive at some logged action", "none", "correct log_prob")
        return
    if subject.offers("all_probs"):
        probs = probabilities(policy, data.rows(), subject.labels)[np.arange(len(data)), data.actions]
        gap = first_difference(np.exp(logged), probs, ROUNDING)
        ensure(gap is None, owner, "log_prob must be log predict_proba", f"another{gap}", "define one by the other")
    if subject.offers("all_probs", "sample"):
        own = np.asarray(policy.predict_proba(data.states))
        for column, label in enumerate(subject.own_labels):
            said = np.exp(policy.log_prob(data.states, np.full(len(data), label)))
            gap = first_difference(np.asarray(said), own[:, column], ROUNDING)
            rule = f"log_prob of {label!r} must be log predict_proba"
            ensure(gap is None, owner, rule, f"another{gap}", "define one by the other")


def check_predict(subject: PolicySubject) -> None:
    """Check that predict gives the most probable label, the mean action, or the action of a deterministic policy."""
    subject.need("sample")
    owner, policy, states = subject.owner, subject.policy, subject.data.states
    found = predicted(policy, states)
    if found is None:
        raise SkipTest("it has no predict")
    if subject.data.action_labels is None:
        shape = (len(states), subject.data.n_actions)
        fits = found.reshape(len(states), -1).shape == shape and found.dtype.kind == "f"
        ensure(fits, owner, f"predict must return floats of shape {shape}", f"{found.dtype} {found.shape}", "return the mean action")  # fmt: skip
        return
    codes = codes_of_labels(subject, found, "predict")
    if subject.offers("all_probs"):
        probs = np.asarray(policy.predict_proba(states))
        lost = probs.max(axis=1) - probs[np.arange(len(probs)), codes]
        rule = "predict must return the most probable label"
        ensure(lost.max() <= ROUNDING, owner, rule, f"one less probable by {lost.max():.3g}", "take the argmax")
        if subject.offers("deterministic"):
            sure = bool((probs.max(axis=1) == 1.0).all())
            ensure(
                sure, owner, "a deterministic policy must have probabilities 0 and 1", "others", "drop the capability"
            )


def codes_of_labels(subject: PolicySubject, actions: npt.NDArray[Any], verb: str) -> IntArray:
    """Return the column of each label that a verb returned, or raise an AssertionError if one is no label."""
    known = {label: column for column, label in enumerate(subject.own_labels.tolist())}
    odd = [action for action in actions.tolist() if action not in known]
    rule = f"{verb} must return labels among {subject.own_labels.tolist()}, one for each state"
    fits = actions.ndim == 1 and not odd
    ensure(fits, subject.owner, rule, f"{odd[:3]} of shape {actions.shape}", "return labels of shape (n,)")
    return np.array([known[action] for action in actions.tolist()])


# -------------------------------------------------------------------- rows


def check_feature_names(subject: PolicySubject) -> None:
    """Check that a policy fitted on named features, or a model in it, refuses others, as scikit-learn does."""
    models = [subject.policy, *subject.policy.get_params(deep=True).values()]
    known = [list(model.feature_names_in_) for model in models if hasattr(model, "feature_names_in_")]
    if not known:
        raise SkipTest("it knows no feature names")
    others = tuple(f"other_{i}" for i in range(subject.data.states.shape[1]))
    renamed = subject.data.replace(feature_names=others)
    ensure_raises(
        lambda: log_prob_logged(subject.policy, renamed),
        ValueError,
        subject.owner,
        f"a log with features {list(others)} instead of {known[0]}",
        (others[0], str(known[0][0])),
    )


def check_masks(subject: PolicySubject) -> None:
    """Check that masked actions get probability 0, and the others all of it."""
    subject.need("all_probs")
    rows, labels = subject.rows, subject.labels
    mask = _mask(probabilities(subject.policy, rows, labels))
    masked = probabilities(subject.policy, Rows(rows.states, rows.feature_names, mask, rows.extras), labels)
    clean = bool((masked[~mask] == 0).all() and np.allclose(masked.sum(axis=1), 1.0, atol=ROUNDING))
    remedy = "leave masks to ope.policy.probabilities, or read rows.action_mask in the log's order of labels"
    ensure(clean, subject.owner, "masked actions must have probability 0", f"{masked[:3].tolist()}", remedy)


def _mask(probs: FloatArray) -> BoolArray:
    mask: BoolArray = np.random.default_rng(0).random(probs.shape) < 0.5
    mask[np.arange(len(probs)), probs.argmax(axis=1)] = True
    return mask


def check_inputs_stay(subject: PolicySubject) -> None:
    """Check that a policy changes neither the log nor the states, nor itself when it is asked."""
    policy, data, states = subject.policy, subject.data, np.array(subject.data.states)
    before, copied = digest(data), states.copy()
    first = answers(policy, data)
    if subject.offers("sample"):
        predicted(policy, states)
        policy.sample(states, 0)
    changed = digest(data) != before or not np.array_equal(states, copied)
    ensure(not changed, subject.owner, "a policy must leave states and log alone", "others", "copy before you write")
    gap = first_difference(answers(policy, data), first)
    ensure(gap is None, subject.owner, "a question must not change the policy", f"another{gap}", "learn in fit only")


CHECKS: Mapping[str, Callable[[PolicySubject], None]] = MappingProxyType(
    {
        "init_only_assigns": check_init,
        "parameters": check_parameters,
        "clone": check_clone,
        "repr": check_repr,
        "copies": check_copies,
        "capabilities": check_capabilities,
        "probabilities": check_probabilities,
        "bare_states": check_bare_states,
        "log_prob": check_log_prob,
        "predict": check_predict,
        "feature_names": check_feature_names,
        "masks": check_masks,
        "inputs_stay": check_inputs_stay,
    }
)
