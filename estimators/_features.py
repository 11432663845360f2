"""Linear features of states and actions, and what a block of the log looks like through them. Called by linear Q methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from ope import ragged
from ope.dataset import LoggedDataset, Rows
from ope.estimators._draws import final_nodes, row_nodes
from ope.policy import Policy, continuing_ends, probabilities, used_rows
from ope.validation import FloatArray, IntArray


@dataclass(frozen=True)
class Basis:
    """Features phi(s, a): state features in a block per discrete action, or features of the state and action together.

    Parameters
    ----------
    transformer : fitted transformer or None
        None leaves the input as it is.
    n_actions : int or None
        None for continuous actions.
    """

    transformer: Any
    n_actions: int | None

    def transform(self, inputs: FloatArray) -> FloatArray:
        """Return dense float64 features of states (discrete) or of states and actions side by side (continuous)."""
        out = inputs if self.transformer is None else self.transformer.transform(inputs)
        return np.asarray(out.toarray() if hasattr(out, "toarray") else out, dtype=np.float64)

    def logged(self, states: FloatArray, actions: npt.NDArray[Any]) -> FloatArray:
        """Return phi(s, a), shape (n, k)."""
        if self.n_actions is None:
            return self.transform(np.hstack([states, actions]))
        features = self.transform(states)
        out = np.zeros((len(features), self.n_actions, features.shape[1]))
        out[np.arange(len(features)), actions] = features
        return out.reshape(len(features), -1)

    def every_action(self, states: FloatArray) -> FloatArray:
        """Return phi(s, a) for every discrete action, shape (n, n_actions, k)."""
        assert self.n_actions is not None
        features = self.transform(states)
        eye = np.eye(self.n_actions)
        return np.asarray(np.einsum("ab,np->nabp", eye, features).reshape(len(features), self.n_actions, -1))

    def __call__(self, states: FloatArray, actions: npt.NDArray[Any] | None) -> FloatArray:
        return self.every_action(states) if actions is None else self.logged(states, actions)


def check_features(owner: str, features: Any) -> None:
    """Raise unless `features` is something that `fit_basis` takes."""
    rule = "'auto', 'identity' or a scikit-learn transformer"
    if not isinstance(features, str):
        check_model(owner, "features", features, rule, "transform")
    elif features not in ("auto", "identity"):
        raise ValueError(f"{owner}: `features` must be {rule}, got {features!r}; pass one of them.")


def check_model(owner: str, name: str, model: Any, rule: str, verb: str) -> None:
    """Raise a TypeError unless `model` is None or an object with `fit` and this verb."""
    if isinstance(model, type):
        raise TypeError(f"{owner}: `{name}` must be {rule}, got the class {model.__name__}; pass {model.__name__}().")
    if model is not None and not (hasattr(model, "fit") and hasattr(model, verb)):
        raise TypeError(f"{owner}: `{name}` must be {rule}, got {type(model).__name__}; give it fit and {verb}.")


def unfitted(model: Any, random_state: int) -> Any:
    """Return an unfitted copy of a scikit-learn model that draws from `random_state` where it has no seed of its own.

    Examples
    --------
    >>> from sklearn.tree import DecisionTreeRegressor
    >>> unfitted(DecisionTreeRegressor(), 7), unfitted(DecisionTreeRegressor(random_state=1), 7)
    (DecisionTreeRegressor(random_state=7), DecisionTreeRegressor(random_state=1))
    """
    fresh = clone(model)
    seeds = [
        name for name, value in fresh.get_params().items() if name.split("__")[-1] == "random_state" and value is None
    ]
    return fresh.set_params(**dict.fromkeys(seeds, random_state))


def fit_basis(features: Any, data: LoggedDataset, random_state: int = 0) -> Basis:
    """Fit the features on the states of a log (with continuous actions: on states and actions side by side).

    Parameters
    ----------
    features : "auto", "identity" or scikit-learn transformer
        "auto" takes one-hot states as they are and standardised polynomials of degree 2 otherwise.
    data : LoggedDataset
    random_state : int
        For a transformer whose own `random_state` is None.
    """
    n_actions = data.n_actions if data.discrete else None
    inputs = data.states if data.discrete else np.hstack([data.states, data.actions])
    if isinstance(features, str):
        if features == "identity" or (data.discrete and is_one_hot(data.states)):
            return Basis(None, n_actions)
        return Basis(_polynomials().fit(inputs), n_actions)
    return Basis(unfitted(features, random_state).fit(inputs), n_actions)


def _polynomials() -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    return make_pipeline(StandardScaler(), PolynomialFeatures(degree=2))


def is_one_hot(states: FloatArray) -> bool:
    """Return whether every row has a single 1 among zeros.

    Examples
    --------
    >>> is_one_hot(np.eye(3)), is_one_hot(np.ones((2, 2)))
    (True, False)
    """
    return bool(np.isin(states, (0.0, 1.0)).all() and (states.sum(axis=1) == 1.0).all())


@dataclass(frozen=True)
class FeatureBlock:
    """A block of whole episodes through a basis and a candidate policy.

    Parameters
    ----------
    phi : ndarray of shape (n, k)
        Features of the logged state and action.
    phi_bar : ndarray of shape (n, k)
        Their expectation under the candidate at the logged state.
    phi_next : ndarray of shape (n, k)
        The same at the state that followed; 0 where the process ended.
    used : ndarray of shape (n,)
        False for the last transition of a horizon end that goes on to an unknown state.
    ratio : ndarray of shape (n,) or None
        Weight of each row beside that of its episode: pi / b where the features are of states only.
    onward : ndarray of shape (n,) or None
        Whether a state follows that is known, so that 0 in `phi_next` are its features; None: nobody asks.
    """

    phi: FloatArray
    phi_bar: FloatArray
    phi_next: FloatArray
    used: npt.NDArray[np.bool_]
    rewards: FloatArray
    offsets: IntArray
    steps: IntArray
    ratio: FloatArray | None = None
    onward: npt.NDArray[np.bool_] | None = None

    @property
    def reach(self) -> int:
        """How many steps ahead the value functions are that targets read."""
        return 1

    @property
    def start(self) -> FloatArray:
        """Expected features at the first state of every episode, shape (n_episodes, k)."""
        return self.phi_bar[self.offsets[:-1]]

    def row_weights(self, episode_weight: FloatArray) -> FloatArray:
        """Return the weight of every row, shape (n,)."""
        weight: FloatArray = np.repeat(episode_weight, np.diff(self.offsets)) * self.used
        return weight if self.ratio is None else weight * self.ratio

    def following(self, t: int) -> Iterator[tuple[int, IntArray, FloatArray]]:
        """Yield which later values the targets of step t read: how far ahead, the rows of step t, and features (rows, k)."""
        rows = ragged.step_rows(self.offsets, t)
        yield 1, rows, self.phi_next[rows]


def feature_block(
    block: LoggedDataset, basis: Basis, policy: Policy, stationary: bool, n_samples: int, random_state: int
) -> FeatureBlock:
    """Compute the features of a block of whole episodes."""
    phi = basis.logged(block.states, block.actions)
    phi_bar = _expected(policy, block.rows(), block, basis, lambda: row_nodes(policy, block, n_samples, random_state))
    last = np.zeros((block.n_episodes, phi.shape[1]))
    known = np.flatnonzero(continuing_ends(block, stationary) & block.final_known())
    if len(known):
        last[known] = _expected(
            policy,
            block.final_rows(known),
            block,
            basis,
            lambda: final_nodes(policy, block, known, n_samples, random_state),
        )
    used = used_rows(block, stationary)
    phi_next = ragged.shift_to_next(phi_bar, block.offsets, last)
    steps, onward = ragged.step_index(block.offsets), onward_rows(block, stationary)
    return FeatureBlock(phi, phi_bar, phi_next, used, block.rewards, block.offsets, steps, onward=onward)


def onward_rows(block: LoggedDataset, stationary: bool) -> npt.NDArray[np.bool_]:
    """Return whether a known state follows each row, shape (n,)."""
    onward = np.ones(block.n_transitions, dtype=bool)
    onward[block.offsets[1:] - 1] = continuing_ends(block, stationary) & block.final_known()
    return onward


def _expected(
    policy: Policy,
    rows: Rows,
    block: LoggedDataset,
    basis: Basis,
    nodes_of: Callable[[], tuple[FloatArray, FloatArray]],
) -> FloatArray:
    if block.action_labels is not None:
        probs = probabilities(policy, rows, block.action_labels)
        features = basis.transform(rows.states)
        return np.asarray(np.einsum("na,np->nap", probs, features).reshape(len(features), -1))
    nodes, weights = nodes_of()
    total = weights[0] * basis.logged(rows.states, nodes[0])
    for weight, actions in zip(weights[1:], nodes[1:], strict=True):
        total += weight * basis.logged(rows.states, actions)
    return np.asarray(total)


N_FOURIER = 12


def richer_features(block: LoggedDataset, basis: Basis | None = None) -> FloatArray | None:
    """Return random Fourier features of state and action, shape (n, q), which no polynomial holds.

    A Q function that is in the span of its basis leaves errors that these cannot predict. None where there is nothing richer, see
    `richer_state_features`.
    """
    if not block.discrete:
        return fourier_features(np.hstack([block.states, block.actions]))
    waves = richer_state_features(block, basis)
    if waves is None:
        return None
    codes = np.eye(block.n_actions)[block.actions]
    return np.asarray(np.einsum("na,nq->naq", codes, waves).reshape(len(waves), -1))


def richer_state_features(block: LoggedDataset, basis: Basis | None = None) -> FloatArray | None:
    """Return features of the state that the basis need not hold, shape (n, q).

    Random waves; the states themselves where they are one-hot and few. None where one-hot states are what the basis (None: a
    table) takes as they are: there is nothing richer.
    """
    if not is_one_hot(block.states):
        return fourier_features(block.states)
    if basis is None or basis.transformer is None:
        return None
    few = block.states.shape[1] <= N_FOURIER
    return np.asarray(block.states, dtype=np.float64) if few else fourier_features(block.states)


def fourier_features(inputs: FloatArray) -> FloatArray:
    """Return random waves of standardised inputs, shape (n, q), the same for the same inputs.

    Examples
    --------
    >>> fourier_features(np.zeros((2, 3))).shape
    (2, 12)
    """
    spread = inputs.std(axis=0)
    standard = (inputs - inputs.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    rng = np.random.default_rng(0)
    frequencies = rng.normal(size=(inputs.shape[1], N_FOURIER)) / np.sqrt(inputs.shape[1])
    return np.asarray(np.cos(standard @ frequencies + rng.uniform(0.0, 2.0 * np.pi, N_FOURIER)))


def history_features(block: LoggedDataset, max_states: int = 8) -> FloatArray:
    """Return what happened one step before: action, reward and state, shape (n, q); 0 at the first step.

    A Q model whose state is complete leaves errors that these cannot predict.
    """
    if block.action_labels is not None:
        previous = np.eye(block.n_actions)[block.actions][:, 1:]
    else:
        previous = np.asarray(block.actions, dtype=np.float64)
    columns = [previous, block.rewards[:, None]]
    if block.states.shape[1] <= max_states:
        columns.append(np.asarray(block.states, dtype=np.float64))
    now = np.hstack(columns)
    past = np.zeros_like(now)
    past[1:] = now[:-1]
    past[block.offsets[:-1]] = 0.0
    return past
