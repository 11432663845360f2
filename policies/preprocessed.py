"""`PreprocessedLearner`: a learner behind transformers of scikit-learn that are fitted on the training episodes."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from typing_extensions import Self

from ope.dataset import LoggedDataset, Rows, check_log
from ope.policies._class_only import class_only
from ope.policies._front import OWNER, Front, identity
from ope.policy import PolicyLearner, RandomState
from ope.validation import FloatArray

if TYPE_CHECKING:
    import pandas as pd

    from ope.neural.history import TrainingStatus
    from ope.neural.serialization import Arrays, Metadata


class PreprocessedLearner(PolicyLearner):
    """A learner that sees transformed states: what a scikit-learn pipeline is to a classifier.

    Parameters
    ----------
    transformer : transformer
        Of scikit-learn, or one that behaves so: a scaler, PCA, a ColumnTransformer, a pipeline of several, made with
        `make_pipeline`. It gets states as a frame with the log's feature names.
    learner : PolicyLearner

    Attributes
    ----------
    transformer_ : transformer
        Fitted on the states of the training log.
    learner_ : PolicyLearner
        Fitted on the transformed log.
    feature_names_in_ : ndarray of str
        Of the log, before the transformation.
    n_features_in_ : int
        Their number.
    feature_names_out_ : tuple of str
        Of what the learner sees.
    history_ : DataFrame
        Of the learner, as are the next five: absent where it has none.
    status_ : TrainingStatus
        How training ended, as a sentence.
    n_updates_ : int
        Updates behind the policy.
    n_excluded_transitions_ : int
        Last transitions of episodes that go on to an unknown state: left out of the Bellman loss.
    seed_ : int
        The seed used.
    checkpoints_ : list of PreprocessedLearner
        Those of the learner, behind the same transformer.
    training_episode_keys_ : ndarray of uint64
        Hashes of the identifiers of the training episodes.

    Raises
    ------
    TypeError, ValueError
        In `fit`: if a parameter is of another kind, or the transformer does not return a finite row for each state.

    Notes
    -----
    `fit` fits a clone of `transformer` on the logged states, not on the final ones, then a clone of `learner` on the log whose
    states, final ones included, are transformed. Whoever evaluates the policy on other episodes thus never fits anything on
    them. Neural learners standardise what they get once more, unless ``normalize_states=False``.

    Nested parameters are set as in scikit-learn: ``set_params(learner__gamma=0.9, transformer__with_mean=False)``.

    `save` stores transformers that are StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, QuantileTransformer, PCA or
    pipelines of these as arrays, for `ope.load_policy`; others it refuses, because only code could describe them:
    `joblib.dump` stores any.

    Examples
    --------
    >>> from ope.policies import LSPI
    >>> from sklearn.preprocessing import MinMaxScaler
    >>> log = LoggedDataset.from_arrays(
    ...     states=[[0.0], [50.0]] * 2, actions=["a", "a", "b", "b"], rewards=[0.0, 1.0, 1.0, 0.0], lengths=[1] * 4,
    ...     ends="terminal",
    ... )
    >>> policy = PreprocessedLearner(MinMaxScaler(), LSPI()).fit(log)
    >>> policy.predict([[0.0], [50.0]])
    array(['b', 'a'], dtype='<U1')
    """

    learner_: Any
    _front: Front

    def __init__(self, transformer: Any, learner: PolicyLearner) -> None:
        self.transformer = transformer
        self.learner = learner

    # ---------------------------------------------------------------- fitting

    def fit(self, data: LoggedDataset) -> Self:
        """Fit the transformer and the learner.

        Parameters
        ----------
        data : LoggedDataset

        Returns
        -------
        self
        """
        self._check(data)
        front = Front.fit(self.transformer, data)
        learner = self._fresh(resume=False)
        with self._heard([learner], front):
            learner.fit(front.log(data))
        return self._adopt(front, learner)

    @class_only
    def fit_many(cls, data: LoggedDataset, learners: Sequence[Self], *, resume: bool = False) -> list[Self]:
        """Fit several to one log: a transformer once, and learners of a kind side by side where their class can.

        Parameters
        ----------
        data : LoggedDataset
        learners : sequence of PreprocessedLearner
        resume : bool
            Whether to go on with learners that were interrupted: those that had ended stay as they are, those that had not
            begun begin.

        Returns
        -------
        list of PreprocessedLearner
            The same objects, fitted.
        """
        groups: dict[tuple[str, type], list[Self]] = {}
        for member in learners:
            if not isinstance(member, cls):
                raise TypeError(
                    f"{OWNER}.fit_many: `learners` must hold {OWNER} objects, got {member!r}; wrap it in one."
                )
            member._check(data)
            if not (resume and member._has_ended()):
                groups.setdefault((identity(member.transformer), type(member.learner)), []).append(member)
        if resume and learners and not any(member._is_interrupted() for member in learners):
            raise ValueError(f"{OWNER}.fit_many: no interrupted run is kept; call it without resume.")
        waiting = list(groups.values())
        while waiting:
            members = waiting.pop(0)
            cls._fit_group(data, members, resume)
            if any(member._is_interrupted() for member in members):
                break
        for member in (member for members in waiting for member in members if not member._is_interrupted()):
            member._forget()
        return list(learners)

    @classmethod
    def _fit_group(cls, data: LoggedDataset, members: Sequence[Self], resume: bool) -> None:
        """Fit learners of a kind behind one transformer."""
        going = next((member for member in members if resume and member._is_interrupted()), None)
        front = Front.fit(members[0].transformer, data) if going is None else going._kept_front(data)
        fresh = [member._fresh(resume=resume) for member in members]
        kind, log = type(members[0].learner), front.log(data)
        with members[0]._heard(fresh, front):
            if hasattr(kind, "fit_many"):
                fresh = kind.fit_many(log, fresh, **({} if going is None else {"resume": True}))
            else:
                fresh = [_go_on(learner, log) if resume else learner.fit(log) for learner in fresh]
        for member, learner in zip(members, fresh, strict=True):
            if _is_fitted(learner):
                member._adopt(front, learner)
            else:
                member._forget()

    def resume(self, data: LoggedDataset, path: str | Path | None = None) -> Self:
        """Go on with a run of the learner that was interrupted.

        Parameters
        ----------
        data : LoggedDataset
            The log of the run.
        path : str or Path, optional
            The file that the learner wrote to its `checkpoint_path`; default: what `fit` kept when it was interrupted.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the transformer is another one than that of the run, or the learner refuses to go on.
        """
        self._check(data)
        front, learner = self._kept_front(data), self._fresh(resume=True)
        with self._heard([learner], front):
            learner.resume(front.log(data), path)
        return self._adopt(front, learner)

    def _kept_front(self, data: LoggedDataset) -> Front:
        """Return what stands before the learner of the run, fitted anew where the run left only a file."""
        front = self.__dict__.get("_front")
        if front is None:
            return Front.fit(self.transformer, data)
        if not front.is_of(self.transformer):
            raise ValueError(
                f"{OWNER}.resume: `transformer` must be that of the run, got {self.transformer!r}; set it back, or call fit."
            )
        kept: Front = front
        return kept

    def _fresh(self, *, resume: bool) -> Any:
        """Return a learner to fit, or to go on with where one was interrupted."""
        learner: Any = clone(self.learner)
        if _has_callbacks(self.learner):
            learner.callbacks = list(self.learner.callbacks)  # the user's own, where a clone has copies
        if resume and self._is_interrupted():
            learner.training_state_ = self.learner_.training_state_
        return learner

    @contextlib.contextmanager
    def _heard(self, learners: Sequence[Any], front: Front) -> Iterator[None]:
        """Let the callbacks that the user passed hear of policies that take states of the log."""
        for learner in learners:
            if _has_callbacks(learner):
                learner.callbacks = [self._translated(callback, front) for callback in learner.callbacks]
        try:
            yield
        finally:
            for learner in learners:
                if _has_callbacks(learner):
                    learner.callbacks = [callback.__wrapped__ for callback in learner.callbacks]

    def _translated(self, callback: Callable[[Any], Any], front: Front) -> Callable[[Any], Any]:
        @functools.wraps(callback)
        def call(event: Any) -> Any:
            return callback(replace(event, policy=lambda: self._around(event.policy(), front)))

        return call

    def _forget(self) -> None:
        """Become unfitted."""
        for name in ("_front", "learner_", "training_episode_keys_"):
            self.__dict__.pop(name, None)

    def _is_interrupted(self) -> bool:
        return hasattr(getattr(self, "learner_", None), "training_state_")

    def _has_ended(self) -> bool:
        return hasattr(self, "learner_") and not self._is_interrupted()

    def _check(self, data: Any) -> None:
        check_log(OWNER, data)
        if not isinstance(self.learner, PolicyLearner):
            raise TypeError(
                f"{OWNER}: `learner` must be a PolicyLearner, got {self.learner!r}; pass an object such as BCQ(), not its "
                "class."
            )
        if isinstance(self.transformer, type) or not all(
            hasattr(self.transformer, verb) for verb in ("fit", "transform")
        ):
            raise TypeError(
                f"{OWNER}: `transformer` must have fit and transform, got {self.transformer!r}; pass an object such as "
                "StandardScaler(), or several as make_pipeline(...)."
            )

    def _adopt(self, front: Front, learner: Any) -> Self:
        """Take over what was fitted."""
        self._front, self.learner_ = front, learner
        self.training_episode_keys_ = front.episode_keys
        return self

    # ---------------------------------------------------------------- acting

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "learner_")

    @property
    def capabilities(self) -> frozenset[str]:
        """What the learner's policy offers."""
        offered: frozenset[str] = self._fitted().capabilities
        return offered

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """Labels of the learner's actions; None for continuous ones."""
        labels: npt.NDArray[Any] | None = self._fitted().labels
        return labels

    @property
    def transformer_(self) -> Any:
        """The transformer, fitted on the states of the training log."""
        return self._before().transformer

    @property
    def feature_names_in_(self) -> npt.NDArray[Any]:
        """Names of the log's states."""
        return self._before().feature_names_in_

    @property
    def n_features_in_(self) -> int:
        """How many they are."""
        return len(self._before().names_in)

    @property
    def feature_names_out_(self) -> tuple[str, ...]:
        """Names of what the learner sees."""
        return self._before().names_out

    # What training left: absent (AttributeError) before `fit`, as NotFittedError is one, and where the learner has none.

    @property
    def history_(self) -> pd.DataFrame:
        """What the learner recorded while it trained."""
        history: pd.DataFrame = self._fitted().history_
        return history

    @property
    def status_(self) -> TrainingStatus:
        """How training of the learner ended, as a sentence."""
        status: TrainingStatus = self._fitted().status_
        return status

    @property
    def n_updates_(self) -> int:
        """Updates behind the policy, where the learner counts them."""
        n: int = self._fitted().n_updates_
        return n

    @property
    def n_excluded_transitions_(self) -> int:
        """Transitions that the learner left out of its Bellman loss."""
        n: int = self._fitted().n_excluded_transitions_
        return n

    @property
    def seed_(self) -> int:
        """The seed that the learner used."""
        seed: int = self._fitted().seed_
        return seed

    @property
    def checkpoints_(self) -> list[Self]:
        """The learner's checkpoints, behind the same transformer."""
        return [self._around(checkpoint, self._before()) for checkpoint in self._fitted().checkpoints_]

    def predict(self, states: npt.ArrayLike, action_mask: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """Return what the learner's policy predicts in the transformed states.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        action_mask : array-like of shape (n, n_actions), optional
            Which discrete actions are available, in the order of `labels`.

        Returns
        -------
        ndarray of shape (n,) or (n, k)
        """
        return np.asarray(self._fitted().predict(self._before().states(states), **_given(action_mask)))

    def predict_proba(self, states: npt.ArrayLike, action_mask: npt.ArrayLike | None = None) -> FloatArray:
        """Return the probability of every action in the transformed states.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        action_mask : array-like of shape (n, n_actions), optional

        Returns
        -------
        ndarray of shape (n, n_actions)
        """
        return np.asarray(self._fitted().predict_proba(self._before().states(states), **_given(action_mask)))

    def log_prob(
        self, states: npt.ArrayLike, actions: npt.ArrayLike, action_mask: npt.ArrayLike | None = None
    ) -> FloatArray:
        """Return the log probability, or density, of actions in the transformed states.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        actions : array-like of shape (n,) or (n, k)
        action_mask : array-like of shape (n, n_actions), optional

        Returns
        -------
        ndarray of shape (n,)
        """
        return np.asarray(self._fitted().log_prob(self._before().states(states), actions, **_given(action_mask)))

    def sample(
        self, states: npt.ArrayLike, random_state: RandomState = None, action_mask: npt.ArrayLike | None = None
    ) -> npt.NDArray[Any]:
        """Draw an action for each state.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        random_state : int, Generator or None
        action_mask : array-like of shape (n, n_actions), optional

        Returns
        -------
        ndarray of shape (n,) or (n, k)
        """
        return np.asarray(self._fitted().sample(self._before().states(states), random_state, **_given(action_mask)))

    def proba_rows(self, rows: Rows) -> FloatArray:
        """Return `predict_proba` on logged rows, as the learner's policy does on transformed ones."""
        return np.asarray(self._fitted().proba_rows(self._before().rows(rows)))

    def log_prob_rows(self, rows: Rows, actions: npt.NDArray[Any]) -> FloatArray:
        """Return `log_prob` of the logged actions, as the learner's policy does on transformed rows."""
        return np.asarray(self._fitted().log_prob_rows(self._before().rows(rows), actions))

    def quadrature_rows(self, rows: Rows) -> tuple[FloatArray, FloatArray] | None:
        """Return nodes and weights of the learner's policy on transformed rows, or None."""
        nodes: tuple[FloatArray, FloatArray] | None = self._fitted().quadrature_rows(self._before().rows(rows))
        return nodes

    def q_values(self, states: npt.ArrayLike, actions: npt.ArrayLike | None = None) -> FloatArray:
        """Return what the learner's critic believes, where it has one.

        Parameters
        ----------
        states : array-like of shape (n, d), or DataFrame
        actions : array-like of shape (n, k), optional
            Continuous actions.

        Returns
        -------
        ndarray of shape (n, n_actions) or (n,)
        """
        return np.asarray(self._fitted().q_values(self._before().states(states), actions))

    def score(self, data: LoggedDataset) -> float:
        """Return the learner's score on the transformed log.

        Parameters
        ----------
        data : LoggedDataset

        Returns
        -------
        float
        """
        return float(self._fitted().score(self._before().log(data)))

    def _fitted(self) -> Any:
        if not hasattr(self, "learner_"):
            raise NotFittedError(f"{OWNER} is not fitted; call fit(data) with a LoggedDataset first.")
        return self.learner_

    def _before(self) -> Front:
        self._fitted()
        return self._front

    def _around(self, learner: PolicyLearner, front: Front) -> Self:
        return copy.copy(self)._adopt(front, learner)

    # ---------------------------------------------------------------- file

    def save(self, path: str | Path) -> None:
        """Write the policy to one safetensors file; `ope.load_policy` reads it without executing code from it.

        Parameters
        ----------
        path : str or Path

        Raises
        ------
        TypeError
            If the transformer is none of those that can be stored as arrays, or the learner none of this library.
        """
        from ope.neural.serialization import save_policy

        self._fitted()
        save_policy(self, path)

    def export(self, path: str | Path, format: str = "torchscript") -> None:
        """Write the policy as a torch module that runs without this library; see `NetworkPolicy.export`.

        Parameters
        ----------
        path : str or Path
        format : {"torchscript", "onnx"}

        Raises
        ------
        TypeError
            If the transformer is another than StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PCA, without clipping, or a
            pipeline of these, or the learner has no networks.

        Notes
        -----
        The module takes states as the log has them: the transformer is part of it.
        """
        from ope.policies._export import export_policy

        export_policy(self, path, format)

    def _pack(self) -> tuple[Arrays, Metadata]:
        from ope.neural.serialization import pack_policy
        from ope.neural.stored_transformers import pack_transformer

        learned, learner = pack_policy(self.learner_)
        arrays, transformer = pack_transformer(self.transformer_, "transformer/")
        arrays |= {f"learner/{name}": array for name, array in learned.items()}
        arrays["episode_keys"] = self.training_episode_keys_
        names = {"in": self.feature_names_in_.tolist(), "out": list(self.feature_names_out_)}
        return arrays, {"learner": learner, "transformer": transformer, "feature_names": names}

    def _unpack(self, arrays: Arrays, attributes: Metadata) -> None:
        from ope.neural.serialization import unpack_policy
        from ope.neural.stored_transformers import unpack_transformer

        prefix = "learner/"
        learned = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
        front = Front(
            unpack_transformer(arrays, attributes["transformer"], "transformer/"),
            tuple(attributes["feature_names"]["in"]),
            tuple(attributes["feature_names"]["out"]),
            arrays["episode_keys"],
        )
        self._adopt(front, unpack_policy(learned, attributes["learner"], "the file"))


def _has_callbacks(learner: Any) -> bool:
    # Anything else than a list is for the learner to refuse.
    return isinstance(getattr(learner, "callbacks", None), (list, tuple)) and all(map(callable, learner.callbacks))


def _is_fitted(learner: Any) -> bool:
    try:
        check_is_fitted(learner)
    except NotFittedError:
        return False
    return True


def _go_on(learner: Any, log: LoggedDataset) -> Any:
    return learner.resume(log) if hasattr(learner, "training_state_") else learner.fit(log)


def _given(action_mask: npt.ArrayLike | None) -> dict[str, Any]:
    # A learner of the user's own may know no masks.
    return {} if action_mask is None else {"action_mask": action_mask}
