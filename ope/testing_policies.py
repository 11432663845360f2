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

from ope import testing_objects as objects
from ope.dataset import LoggedDataset, Rows
from ope.policy import Policy, PolicyLearner, log_prob_logged, probabilities
from ope.testing_logs import KINDS, make_case
from ope.testing_tools import digest, ensure, ensure_raises, first_difference, global_random_states, global_seed
from ope.validation import BoolArray, FloatArray, IntArray

CAPABILITIES = frozenset({"logged_prob", "all_probs", "density", "sample", "deterministic"})
ROUNDING = 1e-6
Z_LIMIT = 4.0
N_DRAWS = 4000
N_STATES = 4


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
    elif np.asarray(policy.predict(log.states)).dtype.kind != (
        "f" if log.action_labels is None else log.action_labels.dtype.kind
    ):
        raise TypeError("the actions are not those of the log")


def answers(policy: Policy, log: LoggedDataset) -> dict[str, Any]:
    """Return everything that a policy says about a log."""
    offered, said = policy.capabilities, {}
    if "logged_prob" in offered:
        said["log_prob"] = log_prob_logged(policy, log)
    if "all_probs" in offered and log.action_labels is not None:
        said["probabilities"] = probabilities(policy, log.rows(), log.action_labels)
    if "sample" in offered:
        said["predict"] = np.asarray(policy.predict(log.states))
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
    predicted = np.asarray(policy.predict(states))
    if subject.data.action_labels is None:
        shape = (len(states), subject.data.n_actions)
        fits = predicted.reshape(len(states), -1).shape == shape and predicted.dtype.kind == "f"
        ensure(fits, owner, f"predict must return floats of shape {shape}", f"{predicted.dtype} {predicted.shape}", "return the mean action")  # fmt: skip
        return
    codes = _codes(subject, predicted, "predict")
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


def _codes(subject: PolicySubject, actions: npt.NDArray[Any], verb: str) -> IntArray:
    known = {label: column for column, label in enumerate(subject.own_labels.tolist())}
    odd = [action for action in actions.tolist() if action not in known]
    rule = f"{verb} must return labels among {subject.own_labels.tolist()}, one for each state"
    fits = actions.ndim == 1 and not odd
    ensure(fits, subject.owner, rule, f"{odd[:3]} of shape {actions.shape}", "return labels of shape (n,)")
    return np.array([known[action] for action in actions.tolist()])


# -------------------------------------------------------------------- draws


def check_sample_seeds(subject: PolicySubject) -> None:
    """Check that a seed decides the draws, that a Generator moves on, and that global generators stay."""
    subject.need("sample")
    owner, policy, states = subject.owner, subject.policy, subject.data.states
    found = []
    for seed in (1, 2):
        with global_seed(seed):
            before = global_random_states()
            found.append({**answers(policy, subject.data), "seed 7": np.asarray(policy.sample(states, 7))})
            after = global_random_states()
        moved = sorted(name for name in before if after[name] != before[name])
        ensure(not moved, owner, "verbs must leave global generators alone", f"{moved} moved", "use `random_state`")
    gap = first_difference(found[1], found[0])
    ensure(gap is None, owner, "a seed must give the same draws", f"others{gap}", "use ope.policy.generator")
    many = np.repeat(states[:N_STATES], 64, axis=0)
    stream = np.random.default_rng(7)
    first, second = (np.asarray(policy.sample(many, stream)) for _ in range(2))
    gap = first_difference(first, np.asarray(policy.sample(many, np.random.default_rng(7))))
    ensure(gap is None, owner, "sample must draw from a Generator", f"others{gap}", "use ope.policy.generator")
    stays = first_difference(second, first) is None
    random = not subject.offers("deterministic") and len(np.unique(first, axis=0)) > N_STATES
    ensure(not (stays and random), owner, "a Generator must move on", "the same draws twice", "do not copy it")


def check_sample(subject: PolicySubject) -> None:
    """Check that draws follow the probabilities, or the density, within 4 standard errors."""
    subject.need("sample")
    states = subject.data.states[np.linspace(0, len(subject.data) - 1, N_STATES).astype(int)]
    many = np.repeat(states, N_DRAWS, axis=0)
    drawn = np.asarray(subject.policy.sample(many, 0))
    rule = "sample must return an action for each state"
    ensure(len(drawn) == len(many), subject.owner, rule, f"shape {drawn.shape}", "return shape (n,) or (n, k)")
    if subject.offers("deterministic"):
        gap = first_difference(drawn, np.asarray(subject.policy.predict(many)), ROUNDING)
        ensure(
            gap is None, subject.owner, "a deterministic policy must sample what it predicts", f"{gap}", "call predict"
        )
    elif subject.data.action_labels is not None:
        _check_frequencies(subject, states, drawn)
    else:
        _check_mean(subject, states, _by_state(subject, drawn))
        if subject.offers("density"):
            _check_density(subject, states, _by_state(subject, drawn))


def _by_state(subject: PolicySubject, drawn: npt.NDArray[Any]) -> FloatArray:
    k = subject.data.n_actions
    fits = drawn.dtype.kind == "f" and drawn.size == N_STATES * N_DRAWS * k
    rule = f"sample must return floats of shape (n, {k})"
    ensure(fits, subject.owner, rule, f"{drawn.dtype} {drawn.shape}", "return continuous actions")
    return drawn.reshape(N_STATES, N_DRAWS, k)


def _check_frequencies(subject: PolicySubject, states: FloatArray, drawn: npt.NDArray[Any]) -> None:
    codes = _codes(subject, drawn, "sample")
    if not subject.offers("all_probs"):
        return
    probs = np.asarray(subject.policy.predict_proba(states))
    counts = np.stack([np.bincount(part, minlength=probs.shape[1]) for part in codes.reshape(N_STATES, N_DRAWS)])
    error = np.sqrt(probs * (1.0 - probs) / N_DRAWS)
    gap = np.abs(counts / N_DRAWS - probs)
    # Fewer than ten expected draws are no normal distribution: one draw too many is no proof.
    bad = gap > Z_LIMIT * error + 10.0 / N_DRAWS * (probs * N_DRAWS < 10.0) * (probs > 0)
    rule = f"draws must follow predict_proba within {Z_LIMIT:g} standard errors"
    came = f"frequencies {(counts / N_DRAWS).tolist()} for {probs.round(4).tolist()}"
    ensure(not bad.any(), subject.owner, rule, came, "draw with these probabilities")


def _check_mean(subject: PolicySubject, states: FloatArray, drawn: FloatArray) -> None:
    mean = np.asarray(subject.policy.predict(states), dtype=np.float64).reshape(N_STATES, -1)
    error = drawn.std(axis=1, ddof=1) / np.sqrt(N_DRAWS)
    gap = np.abs(drawn.mean(axis=1) - mean)
    rule = f"predict must be the mean of the draws within {Z_LIMIT:g} standard errors"
    far = gap > Z_LIMIT * error + ROUNDING * np.abs(mean)
    ensure(not far.any(), subject.owner, rule, f"{mean.tolist()} and {drawn.mean(axis=1).tolist()}", "correct one")


def _check_density(subject: PolicySubject, states: FloatArray, drawn: FloatArray) -> None:
    """Compare the share of draws in a box with the integral of the density over it, estimated at uniform points."""
    rng = np.random.default_rng(0)
    for state, draws in zip(states, drawn, strict=True):
        low, high = np.quantile(draws, 0.1, axis=0), np.quantile(draws, 0.8, axis=0)
        points = rng.uniform(low, high, size=(N_DRAWS, draws.shape[1]))
        log_prob = subject.policy.log_prob(np.repeat(state[None], N_DRAWS, axis=0), points)
        heights = float(np.prod(high - low)) * np.exp(np.asarray(log_prob, dtype=np.float64))
        inside = ((draws >= low) & (draws <= high)).all(axis=1)
        gap = float(heights.mean() - inside.mean())
        error = float(np.sqrt((heights.var() + inside.var()) / N_DRAWS))
        rule = f"draws must follow exp(log_prob) within {Z_LIMIT:g} standard errors"
        came = f"a share of {inside.mean():.3f} in a box of probability {heights.mean():.3f}"
        ensure(abs(gap) <= Z_LIMIT * error, subject.owner, rule, came, "correct the density or the draws")


def check_quadrature(subject: PolicySubject) -> None:
    """Check that nodes and weights have the first two moments of the draws."""
    nodes_and_weights = subject.policy.quadrature_rows(subject.rows) if subject.data.action_labels is None else None
    if nodes_and_weights is None:
        raise SkipTest("it has no quadrature rule")
    nodes, weights = nodes_and_weights
    shape = (len(weights), len(subject.data), subject.data.n_actions)
    ensure(nodes.shape == shape, subject.owner, f"nodes must have shape {shape}", f"{nodes.shape}", "return (m, n, k)")
    total = float(np.sum(weights))
    ensure(abs(total - 1.0) <= ROUNDING, subject.owner, "weights of nodes must sum to 1", f"{total}", "normalise them")
    subject.need("sample")
    drawn = np.asarray(subject.policy.sample(np.repeat(subject.data.states[:1], N_DRAWS, axis=0), 0)).reshape(
        N_DRAWS, -1
    )
    for power in (1, 2):
        expected = weights @ nodes[:, 0] ** power
        error = (drawn**power).std(axis=0) / np.sqrt(N_DRAWS)
        near = np.abs((drawn**power).mean(axis=0) - expected) <= Z_LIMIT * error + ROUNDING
        rule = f"nodes must have the mean of action ** {power} within {Z_LIMIT:g} standard errors"
        ensure(near.all(), subject.owner, rule, f"{expected.tolist()}", "correct the nodes")


# -------------------------------------------------------------------- rows


def check_feature_names(subject: PolicySubject) -> None:
    """Check that a policy fitted on named features refuses others, as scikit-learn does."""
    names = getattr(subject.policy, "feature_names_in_", None)
    if names is None:
        raise SkipTest("it knows no feature names")
    others = tuple(f"other_{i}" for i in range(len(names)))
    renamed = subject.data.replace(feature_names=others)
    ensure_raises(
        lambda: log_prob_logged(subject.policy, renamed),
        ValueError,
        subject.owner,
        f"a log with features {list(others)} instead of {list(names)}",
        ("feature names", others[0], str(names[0])),
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
        policy.predict(states)
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
        "sample_seeds": check_sample_seeds,
        "sample": check_sample,
        "quadrature": check_quadrature,
        "feature_names": check_feature_names,
        "masks": check_masks,
        "inputs_stay": check_inputs_stay,
    }
)
