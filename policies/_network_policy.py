"""`NetworkPolicy`: a policy that networks make, and its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.exceptions import NotFittedError
from typing_extensions import Self

from ope.dataset import check_log
from ope.files import check_place
from ope.inputs import as_rows
from ope.neural.device import one_thread
from ope.neural.history import Outcome, TrainingStatus
from ope.neural.networks import MLP
from ope.neural.serialization import Arrays, Metadata, pack_labels, save_policy, unpack_labels
from ope.neural.transitions import Standardizer
from ope.policies._distributions import ActionDistribution
from ope.policies._runs import Origin
from ope.policies._verbs import ActingPolicy
from ope.policy import PolicyLearner, check_feature_names
from ope.validation import BoolArray, FloatArray, float_array

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset, Rows

PREDICT_ROWS = 1 << 14
RECORD_ENDS = (
    "flag terminal ends (terminated=), or record the states where the others went (next_states=, or a last row of states "
    'alone with final_row="state_only"), with an action mask their available actions too'
)

Evaluation = Callable[[torch.Tensor, "torch.Tensor | None"], torch.Tensor]


class NetworkPolicy(ActingPolicy, PolicyLearner):
    """The fitted side of a learner: what it knows of its log, its networks, and how it acts.

    Attributes
    ----------
    networks_ : dict of str to MLP
        The networks that make the policy, on the CPU.
    origin_ : Origin
        Names, labels and units of the training log.
    history_ : DataFrame
        Column "update" and metrics, averaged since the row before.
    status_ : TrainingStatus
        How training ended, as a sentence.
    checkpoints_ : list of policies
        Fitted copies after evenly spaced updates.
    n_updates_ : int
        Updates behind this policy.
    n_excluded_transitions_ : int
        Last transitions of episodes that go on to an unknown state: left out of the Bellman loss.
    seed_ : int
        The seed used: `random_state`, or the one drawn for None.
    feature_names_in_ : ndarray of str
    n_features_in_ : int
    training_episode_keys_ : ndarray of uint64
    """

    # Settings that the fitted policy reads.
    fixed: ClassVar[tuple[str, ...]] = ()

    networks_: dict[str, MLP]
    origin_: Origin
    history_: pd.DataFrame
    status_: TrainingStatus
    checkpoints_: list[Self]
    n_updates_: int

    def _probabilities(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return probabilities of discrete actions (n, n_actions), float64, for standardised states (n, d)."""
        raise NotImplementedError

    # ---------------------------------------------------------------- the fitted state

    def _become(self, origin: Origin, networks: dict[str, MLP], status: TrainingStatus, history: pd.DataFrame) -> Self:
        self.origin_, self.networks_, self.status_, self.history_ = origin, networks, status, history
        self.n_updates_ = status.n_updates
        self.checkpoints_ = []
        self.feature_names_in_ = np.array(origin.feature_names, dtype=object)
        self.n_features_in_ = len(origin.feature_names)
        self.training_episode_keys_ = origin.episode_keys
        self.n_excluded_transitions_ = origin.n_excluded
        self.seed_ = origin.seed
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "networks_")

    def _fitted(self) -> Origin:
        if not hasattr(self, "networks_"):
            raise NotFittedError(f"{type(self).__name__} is not fitted; call fit(data) with a LoggedDataset first.")
        return self.origin_

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """Labels of the actions in the order of `predict_proba`; None for continuous actions."""
        return self._fitted().action_labels

    # ---------------------------------------------------------------- how it acts

    def _is_discrete(self) -> bool:
        return self._fitted().action_labels is not None

    def _proba(self, states: FloatArray, mask: BoolArray | None) -> FloatArray:
        self._discrete_labels()
        return self._evaluate(self._probabilities, states, mask)

    def _dimension(self, law: ActionDistribution) -> int:  # noqa: ARG002
        return self.origin_.n_actions

    # ---------------------------------------------------------------- input

    def _discrete_labels(self) -> npt.NDArray[Any]:
        labels = self._fitted().action_labels
        if labels is None:
            raise TypeError(f"{type(self).__name__} was fitted to continuous actions and has no action probabilities.")
        return labels

    def _check_names(self, rows: Rows) -> None:
        self._fitted()
        check_feature_names(self, rows.feature_names, type(self).__name__)

    def _check_log(self, data: Any) -> None:
        check_log(f"{type(self).__name__}.score", data)
        self._check_names(data.rows())

    def _check_labels(self, data: LoggedDataset) -> None:
        ours, theirs = self.labels, data.action_labels
        if _named(ours) != _named(theirs):
            raise ValueError(
                f"{type(self).__name__}.score: `data` must have the actions of the fit ({_named(ours)}), got "
                f"{_named(theirs)}; build the log with actions= of the training log."
            )

    def _fixed(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.fixed}

    def _at_fit(self, name: str) -> Any:
        """Return a setting as it was at the fit: a policy does not change by what its next fit is to use."""
        return self._fitted().settings[name]

    def _states(self, states: npt.ArrayLike) -> FloatArray:
        owner, names = type(self).__name__, self._fitted().feature_names
        if isinstance(states, pd.DataFrame) and list(states.columns) != list(names):
            raise ValueError(
                f"{owner}: feature names must match those at fit, in the same order; fitted with {list(names)}, got "
                f"{list(states.columns)}; pass states[policy.feature_names_in_]."
            )
        return float_array(owner, "states", as_rows(states, owner, feature_names=names).states, 2)

    def _evaluate(
        self,
        function: Evaluation,
        states: FloatArray,
        mask: BoolArray | None = None,
        *,
        n_rows: int | None = None,
    ) -> FloatArray:
        """Apply a function of standardised states to all rows, `n_rows` at a time."""
        standardizer, parts, step = self._fitted().states, [], n_rows or PREDICT_ROWS
        with one_thread(), torch.no_grad():
            for low in range(0, max(len(states), 1), step):
                rows = slice(low, low + step)
                x = torch.from_numpy(standardizer.transform(states[rows])).float()
                parts.append(function(x, None if mask is None else torch.from_numpy(mask[rows].copy())).numpy())
        return np.concatenate(parts)

    # ---------------------------------------------------------------- file

    def save(self, path: str | Path) -> None:
        """Write the policy to one safetensors file; `ope.load_policy` reads it without executing code from it.

        Parameters
        ----------
        path : str or Path

        Notes
        -----
        Stored are settings, networks, standardisation, labels, feature names, hashes of the training episodes, history
        and status. Not stored are `callbacks`, which are code, and `checkpoints_`, which are policies of their own.
        """
        self._fitted()
        check_place(f"{type(self).__name__}.save", "path", path)
        save_policy(self, path)

    def export(self, path: str | Path, format: str = "torchscript") -> None:
        """Write the policy as a torch module that runs without this library.

        Parameters
        ----------
        path : str or Path
        format : {"torchscript", "onnx"}
            "onnx" needs the packages onnx and onnxscript.

        Raises
        ------
        ImportError
            If a package is missing.

        Notes
        -----
        The module takes states (n, d) in the unit of the log and returns, in float64, `predict_proba` of discrete actions or
        `predict` of continuous ones. In a TorchScript file a policy of discrete actions has a second method,
        ``masked(states, action_mask)``, and the extra file ``ope.json`` names features and labels. The policy itself stays as
        it is, and can be trained further. Unlike `save`, whose file only `ope.load_policy` reads, this is code: load such
        files from people you trust. `TorchPolicy` turns the module back into a policy.

        Examples
        --------
        >>> import tempfile
        >>> from ope.dataset import LoggedDataset
        >>> from ope.policies import TD3BC
        >>> log = LoggedDataset.from_arrays([[0.0], [1.0]], [[0.1], [0.9]], [0.0, 1.0], lengths=[2], ends="terminal")
        >>> policy = TD3BC(hidden=(8,), n_updates=5, batch_size=4).fit(log)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     policy.export(f"{folder}/policy.pt")  # elsewhere: torch.jit.load("policy.pt")(states)
        ...     [file.name for file in Path(folder).iterdir()]
        ['policy.pt']
        """
        from ope.policies._export import export_policy

        export_policy(self, path, format)

    def _pack(self) -> tuple[Arrays, Metadata]:
        origin = self.origin_
        arrays: Arrays = {f"network/{name}": net.parameters.flat.numpy() for name, net in self.networks_.items()}
        arrays |= {"states/shift": origin.states.shift, "states/scale": origin.states.scale}
        if origin.actions is not None:
            arrays |= {"actions/shift": origin.actions.shift, "actions/scale": origin.actions.scale}
        arrays |= {"episode_keys": origin.episode_keys, "history": self.history_.to_numpy(dtype=np.float64)}
        return arrays, {
            "networks": {name: net.settings for name, net in self.networks_.items()},
            "labels": None if origin.action_labels is None else pack_labels(origin.action_labels),
            "feature_names": list(origin.feature_names),
            "n_actions": origin.n_actions,
            "n_excluded": origin.n_excluded,
            "seed": origin.seed,
            "reward_scale": origin.reward_scale,
            "n_episodes_used": origin.n_episodes_used,
            "settings": dict(origin.settings),
            "history": list(self.history_.columns),
            "status": [int(self.status_.outcome), self.status_.n_updates, self.status_.planned],
        }

    def _unpack(self, arrays: Arrays, attributes: Metadata) -> None:
        has_actions = "actions/shift" in arrays
        origin = Origin(
            feature_names=tuple(attributes["feature_names"]),
            action_labels=None if attributes["labels"] is None else unpack_labels(attributes["labels"]),
            n_actions=attributes["n_actions"],
            states=Standardizer(arrays["states/shift"], arrays["states/scale"]),
            actions=Standardizer(arrays["actions/shift"], arrays["actions/scale"]) if has_actions else None,
            episode_keys=arrays["episode_keys"],
            n_excluded=attributes["n_excluded"],
            seed=attributes["seed"],
            reward_scale=attributes.get("reward_scale", 1.0),
            n_episodes_used=attributes.get("n_episodes_used"),
            settings=attributes.get("settings", self._fixed()),
        )
        networks = {
            name: _network(form).with_rows(torch.from_numpy(arrays[f"network/{name}"]))
            for name, form in attributes["networks"].items()
        }
        outcome, n_updates, planned = attributes["status"]
        history = pd.DataFrame(arrays["history"], columns=attributes["history"]).astype({"update": np.int64})
        self._become(origin, networks, TrainingStatus(Outcome(outcome), n_updates, planned), history)


def mean_square_score(owner: str, errors: FloatArray) -> float:
    """Return minus the mean square of errors, or raise where there are none."""
    if len(errors) == 0:
        raise ValueError(
            f"{owner}.score: `data` must hold a transition with a Bellman target, got none; {RECORD_ENDS}."
        )
    return -float(np.mean(np.square(errors)))


def _named(labels: npt.NDArray[Any] | None) -> str:
    return "continuous ones" if labels is None else f"labels {labels.tolist()}"


def _network(form: Metadata) -> MLP:
    return MLP(form["sizes"], 1, extras=form["extras"], layer_norm=form.get("layer_norm", False))
