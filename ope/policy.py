"""`Policy`, `PolicyLearner`, and the functions through which estimators use a policy on logged rows.

Estimators never call a policy's methods on a log themselves: `log_prob_logged`, `probabilities` and `expectation` align
action labels, apply action masks and check what comes back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from typing_extensions import Self

from ope import ragged
from ope.schema import End
from ope.validation import FloatArray, IntArray, first_positions
from ope.verdict import Level

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset, Rows
    from ope.neural.history import TrainingStatus

RandomState = int | np.random.Generator | None
Capability = Literal["logged_prob", "all_probs", "density", "sample", "deterministic"]
Requirement = tuple[frozenset[str], ...]
QFunction = Callable[["FloatArray", "npt.NDArray[Any] | None"], "FloatArray"]

SUM_TOLERANCE = 1e-6


class Policy(BaseEstimator):  # type: ignore[misc]
    """A rule that chooses actions from states; the base class of adapters and learners.

    A subclass defines the verbs it has (`predict`, `predict_proba`, `log_prob`, `sample`) and says so in `capabilities`:

    - ``logged_prob``: the probability or density of the logged actions,
    - ``all_probs``: `predict_proba`, for discrete actions,
    - ``density``: `log_prob` for continuous actions,
    - ``sample``: `sample`, on new states too,
    - ``deterministic``: always `predict`.

    The methods ending in ``_rows`` receive logged rows (states, action mask, extra columns) instead of bare states; override
    them only if a policy reads more than the states.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """What this policy offers."""
        raise NotImplementedError

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """Labels of the columns of `predict_proba`; None where they are the log's labels, in order."""
        return None

    def predict(self, states: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the most probable label, shape (n,), or the mean action, shape (n, k)."""
        raise _lacks(self, "predict")

    def predict_proba(self, states: npt.ArrayLike) -> FloatArray:
        """Return the probability of every action, shape (n, n_actions), in the order of the labels."""
        raise _lacks(self, "predict_proba")

    def log_prob(self, states: npt.ArrayLike, actions: npt.ArrayLike) -> FloatArray:
        """Return the log probability (density) of given actions, shape (n,)."""
        raise _lacks(self, "log_prob")

    def sample(self, states: npt.ArrayLike, random_state: RandomState = None) -> npt.NDArray[Any]:
        """Draw an action for each state: labels of shape (n,), or floats of shape (n, k)."""
        raise _lacks(self, "sample")

    def proba_rows(self, rows: Rows) -> FloatArray:
        """Return `predict_proba` on logged rows."""
        return self.predict_proba(rows.states)

    def log_prob_rows(self, rows: Rows, actions: npt.NDArray[Any]) -> FloatArray:
        """Return `log_prob` of the logged actions on logged rows."""
        return self.log_prob(rows.states, actions)

    def quadrature_rows(self, rows: Rows) -> tuple[FloatArray, FloatArray] | None:
        """Return actions (m, n, k) and weights (m,) whose weighted mean is an expectation, or None to draw samples."""
        return None

    @property
    def training_doubt(self) -> tuple[Level, str] | None:
        """What the end of its training has against every estimate of this policy: a level and a reason, or None.

        Read off `status_` (a `TrainingStatus`, where there is one) of the policy and of those that it acts through.
        """
        doubts = (_doubt_of(status) for status in _statuses(self))
        return max((doubt for doubt in doubts if doubt is not None), key=lambda doubt: doubt[0], default=None)

    def __sklearn_clone__(self) -> Self:
        # An adapter holds fitted parts as parameters; scikit-learn's clone would unfit them.
        return copy.deepcopy(self)


class PolicyLearner(Policy):
    """A policy that is learned from a log: ``fit(data)``, then a policy.

    Attributes
    ----------
    training_episode_keys_ : ndarray of uint64
        Hashes of the episodes learned from; estimates report their overlap with the evaluation data.
    """

    training_episode_keys_: npt.NDArray[np.uint64]

    def fit(self, data: LoggedDataset) -> Self:
        """Learn from a log and return self."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write the policy to one safetensors file that `ope.load_policy` reads without executing code from it."""
        raise NotImplementedError

    def _remember(self, data: LoggedDataset) -> None:
        self.training_episode_keys_ = np.sort(data.episode_keys)

    def __sklearn_clone__(self) -> Self:
        clone: Self = type(self)(**{name: copy.deepcopy(value) for name, value in self.get_params(deep=False).items()})
        return clone


def _lacks(policy: Policy, verb: str) -> TypeError:
    return TypeError(f"{type(policy).__name__} has no `{verb}`; it offers {sorted(policy.capabilities)}.")


def check_feature_names(policy: Any, names: Iterable[str], owner: str) -> None:
    """Raise a ValueError if a fitted model saw other feature names than the log has, as scikit-learn does."""
    expected = getattr(policy, "feature_names_in_", None)
    if expected is not None and list(expected) != list(names):
        raise ValueError(
            f"{owner}: feature names must match those at fit, in the same order; fitted with {list(expected)}, got {list(names)}; "
            "build the log with states= in that order, or pass columns=."
        )


def overlap(policy: Any, data: LoggedDataset) -> int:
    """Count the evaluation episodes that the policy was trained on, be 17 written as a number or as text."""
    keys = getattr(policy, "training_episode_keys_", None)
    if keys is None:
        return 0
    shared = np.isin(data.episode_keys, keys)
    rows, rewritten = data.rewritten_keys
    shared[rows] |= np.isin(rewritten, keys)
    return int(shared.sum())


def within(policy: Policy) -> list[Policy]:
    """Return a policy and those that it acts through: all that an adapter holds, and what a learner has fitted."""
    found: dict[int, Policy] = {}
    waiting = [policy]
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            waiting += _parts(one)
    return list(found.values())


def _parts(policy: Policy) -> list[Policy]:
    # A learner's parameter is what it fits copies of; what it fitted has a name that ends in an underscore.
    learner = isinstance(policy, PolicyLearner)
    held = vars(policy).items()
    return [part for name, part in held if isinstance(part, Policy) and (name.endswith("_") or not learner)]


def _statuses(policy: Policy) -> list[TrainingStatus]:
    found = [status for part in within(policy) if (status := getattr(part, "status_", None)) is not None]
    if not found:
        return []
    from ope.neural.history import TrainingStatus  # loads torch

    return [status for status in found if isinstance(status, TrainingStatus)]


def interrupted(policy: Policy) -> bool:
    """Return whether Ctrl-C ended the training of the policy, or of one that it acts through."""
    return any(status.outcome.name == "INTERRUPTED" for status in _statuses(policy))


def _doubt_of(status: TrainingStatus) -> tuple[Level, str] | None:
    """Return what a status has against an estimate; a checkpoint, whose run went on, is what it was meant to be."""
    what = {"DIVERGED": "diverged", "INTERRUPTED": "was interrupted"}.get(status.outcome.name)
    if what is None:
        return None
    remedy = "Lower the learning rate, or scale the rewards, and fit" if what == "diverged" else "Resume it, or fit"
    if status.n_updates == 0:
        return Level.REFUSE, (
            f"Training of the policy {what} before it had learned anything: its networks are random, and the value says nothing of what "
            f"the learner can do. {remedy} it again."
        )
    return Level.CAUTION, (
        f"Training of the policy {what}: valued is what {status.n_updates} of {status.planned} updates made of it, not what its "
        f"settings stand for. {remedy} it again."
    )


def generator(random_state: RandomState) -> np.random.Generator:
    """Return a numpy Generator from a seed, a Generator or None."""
    return random_state if isinstance(random_state, np.random.Generator) else np.random.default_rng(random_state)


# -------------------------------------------------------------------- policies on logged rows


def probabilities(policy: Policy, rows: Rows, action_labels: npt.NDArray[Any]) -> FloatArray:
    """Return pi(a|s) for every row and label of the log; masked actions get 0 and the rest is renormalised.

    Parameters
    ----------
    policy : Policy
        With capability ``all_probs``.
    rows : Rows
    action_labels : ndarray of shape (n_actions,)

    Returns
    -------
    ndarray of shape (n, n_actions)

    Raises
    ------
    ValueError
        If the policy returns no distribution, or uses labels that the log does not know.
    """
    owner = type(policy).__name__
    probs = np.asarray(policy.proba_rows(rows), dtype=np.float64)
    probs = _aligned(probs, policy.labels, action_labels, owner)
    if probs.shape != (len(rows), len(action_labels)):
        raise ValueError(
            f"{owner}.predict_proba: must return shape {(len(rows), len(action_labels))} (rows, actions of the log), got {probs.shape}; "
            "give the policy a column for every label, or build the log with actions=."
        )
    if not _are_distributions(probs):
        with np.errstate(invalid="ignore"):
            bad = ~((probs >= 0).all(axis=1) & (np.abs(probs.sum(axis=1) - 1.0) <= SUM_TOLERANCE))
        raise ValueError(
            f"{owner}.predict_proba: every row must hold probabilities that sum to 1, got {probs[bad][0].tolist()} at {first_positions(bad)}; normalise them."
        )
    return probs if rows.action_mask is None else _masked(probs, rows.action_mask, owner)


def _are_distributions(probs: FloatArray) -> bool:
    # One product instead of a reduction per row: this check runs on every row of every log. NaN compares false.
    with np.errstate(invalid="ignore"):
        sums = probs @ np.ones(probs.shape[1])
        return bool(probs.min() >= 0.0 and np.abs(sums - 1.0).max() <= SUM_TOLERANCE)


def _aligned(probs: FloatArray, have: npt.NDArray[Any] | None, want: npt.NDArray[Any], owner: str) -> FloatArray:
    if have is None or (len(have) == len(want) and bool(np.all(have == want))):
        return probs
    import pandas as pd

    if probs.ndim != 2 or probs.shape[1] != len(have):
        raise ValueError(
            f"{owner}.predict_proba: must return one column per label {list(have)}, got shape {probs.shape}."
        )
    codes = pd.Index(want).get_indexer(pd.Index(have))
    unknown = codes < 0
    if unknown.any() and (probs[:, unknown] > 0).any():
        raise ValueError(
            f"{owner}: the policy takes actions {np.asarray(have)[unknown].tolist()} that the log does not know (labels {want.tolist()}); "
            "if they exist but were never logged, build the log with actions=."
        )
    out = np.zeros((len(probs), len(want)))
    out[:, codes[~unknown]] = probs[:, ~unknown]
    return out


def _masked(probs: FloatArray, mask: npt.NDArray[np.bool_], owner: str) -> FloatArray:
    allowed = np.where(mask, probs, 0.0)
    total = allowed.sum(axis=1)
    if (total <= 0).any():
        raise ValueError(
            f"{owner}: the policy must give an available action a positive probability, got all its mass on masked actions at "
            f"{first_positions(total <= 0)}; train it with the mask, or correct the mask."
        )
    return np.asarray(allowed / total[:, None])


def log_prob_logged(policy: Policy, data: LoggedDataset) -> FloatArray:
    """Return log pi(a|s) of every logged action, shape (n,); -inf where the candidate never takes it.

    Raises
    ------
    ValueError
        If the policy returns NaN, +inf, or (discrete) a log probability above 0.
    """
    rows = data.rows()
    if data.action_labels is not None and "all_probs" in policy.capabilities:
        probs = probabilities(policy, rows, data.action_labels)[np.arange(len(rows)), data.actions]
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(probs))
    actions = data.actions if data.action_labels is None else data.action_labels[data.actions]
    log_prob = np.asarray(policy.log_prob_rows(rows, actions), dtype=np.float64)
    if log_prob.shape != (len(rows),):
        raise ValueError(
            f"{type(policy).__name__}.log_prob: must return one number per row, shape {(len(rows),)}, got {log_prob.shape}."
        )
    bad = np.isnan(log_prob) | np.isposinf(log_prob)
    if data.discrete:
        bad |= log_prob > SUM_TOLERANCE
    if bad.any():
        raise ValueError(
            f"{type(policy).__name__}.log_prob: must be a log {'probability (at most 0)' if data.discrete else 'density (finite or -inf)'}, got "
            f"{float(log_prob[bad][0])!r} at {first_positions(bad)}; correct the policy."
        )
    return log_prob


def action_nodes(
    policy: Policy, rows: Rows, n_samples: int, random_state: RandomState
) -> tuple[FloatArray, FloatArray]:
    """Return continuous actions (m, n, k) and weights (m,) that stand for the candidate's distribution in every row.

    A deterministic policy gives its action, a policy with a quadrature rule its nodes, any other `n_samples` draws.
    """
    if "deterministic" in policy.capabilities:
        return _action_matrix(policy.predict(rows.states))[None], np.ones(1)
    nodes = policy.quadrature_rows(rows)
    if nodes is not None:
        return nodes
    rng = generator(random_state)
    draws = np.stack([_action_matrix(policy.sample(rows.states, rng)) for _ in range(n_samples)])
    return draws, np.full(n_samples, 1.0 / n_samples)


def _action_matrix(actions: npt.NDArray[Any]) -> FloatArray:
    array = np.asarray(actions, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


def expectation_rows(
    policy: Policy,
    rows: Rows,
    q: QFunction,
    action_labels: npt.NDArray[Any] | None,
    *,
    n_samples: int = 16,
    random_state: RandomState = 0,
) -> FloatArray:
    """Return E_{a~pi} q(s, a) for every row: over all actions where discrete, over nodes or samples where continuous."""
    if action_labels is not None:
        probs = probabilities(policy, rows, action_labels)
        return np.asarray(np.einsum("na,na...->n...", probs, q(rows.states, None)))
    nodes, weights = action_nodes(policy, rows, n_samples, random_state)
    total = weights[0] * q(rows.states, nodes[0])
    for weight, actions in zip(weights[1:], nodes[1:], strict=True):
        total = total + weight * q(rows.states, actions)
    return np.asarray(total)


def expectation(
    policy: Policy,
    data: LoggedDataset,
    q: QFunction,
    at: Literal["current", "next"] = "current",
    *,
    horizon_continues: bool = False,
    n_samples: int = 16,
    random_state: RandomState = 0,
) -> FloatArray:
    """Return the candidate's expectation of q at the state of every logged row, or at the state that followed it.

    Parameters
    ----------
    policy : Policy
    data : LoggedDataset
    q : callable
        ``q(states, None)`` gives (n, n_actions, ...) for discrete actions; ``q(states, actions)`` gives (n, ...) for
        continuous ones.
    at : {"current", "next"}
        "next" is 0 after a terminal and, unless `horizon_continues`, after a horizon end; after a truncated end it is taken
        at the final state. Where the process goes on and the final state is unknown (`LoggedDataset.final_known`) the result is
        NaN.
    horizon_continues : bool
    n_samples : int
        Draws per state for a continuous policy that is neither deterministic nor has a quadrature rule.
    random_state : int, Generator or None

    Returns
    -------
    ndarray of shape (n, ...)
    """
    options: dict[str, Any] = {"n_samples": n_samples, "random_state": random_state}
    current = expectation_rows(policy, data.rows(), q, data.action_labels, **options)
    if at == "current":
        return current
    last = np.zeros((data.n_episodes, *current.shape[1:]))
    goes_on = continuing_ends(data, horizon_continues)
    known = goes_on & data.final_known()
    last[goes_on] = np.nan
    if known.any():
        chosen: IntArray = np.flatnonzero(known)
        last[known] = expectation_rows(policy, data.final_rows(chosen), q, data.action_labels, **options)
    return ragged.shift_to_next(current, data.offsets, last)


def continuing_ends(data: LoggedDataset, horizon_continues: bool) -> npt.NDArray[np.bool_]:
    """Return where the process goes on after the last logged step, shape (n_episodes,).

    A truncation at the very end of the horizon leaves nothing out, unless the horizon itself is taken for a truncation.
    """
    if horizon_continues:
        return np.asarray(data.ends != End.TERMINAL)
    return np.asarray((data.ends == End.TRUNCATED) & (data.lengths != data.horizon))


def used_rows(data: LoggedDataset, horizon_continues: bool) -> npt.NDArray[np.bool_]:
    """Return False for the last row of an episode that goes on to an unknown state: it has no Bellman target, shape (n,)."""
    used = np.ones(data.n_transitions, dtype=bool)
    used[data.offsets[1:][continuing_ends(data, horizon_continues) & ~data.final_known()] - 1] = False
    return used
