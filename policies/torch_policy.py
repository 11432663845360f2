"""`TorchPolicy`: any `torch.nn.Module` as a policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ope.inputs import as_rows
from ope.policies._discrete_q import greedy
from ope.policies._distributions import ActionDistribution, ClippedNormal, Normal, Point, SquashedNormal
from ope.policies._losses import masked, masked_log_softmax
from ope.policies._network_policy import PREDICT_ROWS
from ope.policies._verbs import ActingPolicy
from ope.policies.discrete import label_array
from ope.policy import check_feature_names
from ope.validation import BoolArray, FloatArray, first_positions, float_array

if TYPE_CHECKING:
    from ope.dataset import Rows

OWNER = "TorchPolicy"
DISCRETE = ("logits", "probabilities", "values")
CONTINUOUS = ("gaussian", "deterministic")
# Single precision leaves sums of many probabilities this far from 1.
SUM_ERROR = 1e-4

Bounds = tuple[FloatArray, FloatArray]


class TorchPolicy(ActingPolicy):
    """A policy that a torch module makes of states.

    Parameters
    ----------
    module : torch.nn.Module
        Maps states (n, d), in the dtype and on the device of its parameters, to what `kind` says.
    kind : {"logits", "probabilities", "values", "gaussian", "deterministic"}
        What the module returns. Discrete actions, shape (n, n_actions): logits of a softmax, probabilities, or action
        values of which the policy takes the highest. Continuous actions: "gaussian", a pair of mean (n, k) and log standard
        deviation (n, k) or (k,), or both side by side in one tensor (n, 2 k); "deterministic", the action itself (n, k).
    action_labels : array-like of shape (n_actions,), optional
        Labels of the columns of discrete actions; default: the log's labels, in order.
    low, high : float or array-like of shape (k,), optional
        Bounds of continuous actions, both or neither: actions are clipped to them, or squashed into them.
    squash : bool
        Whether continuous actions are tanh of what the module describes, stretched from [-1, 1] to `low` and `high`.
    deterministic : bool
        Whether to take the most probable action, or the module's mean, squashed or clipped, and never another.
    feature_names : sequence of str, optional
        Names of the states in the order in which the module reads them; logs with others are refused. Default: unchecked.

    Raises
    ------
    TypeError, ValueError
        At first use: if a parameter, or the form of what the module returns, is not as described.

    Notes
    -----
    The module is evaluated where it lives, in evaluation mode, without gradients, some 16,000 states at a time; its training
    modes are then as they were. The policy holds the module itself: training it further changes the policy.

    `predict` is the mean of the actions, whose best estimate of a squashed or clipped normal is not its mode; with
    `deterministic` it is the mode. Of a normal that is clipped to bounds `log_prob` is the density before clipping: at the
    bounds themselves, where clipped actions pile up, it is no probability.

    Masked actions have probability 0 and the others share the rest; greedy policies take the best of those available.

    Examples
    --------
    >>> states = [[0.5, -1.0]]
    >>> choice = TorchPolicy(torch.nn.Identity(), "logits", action_labels=["stay", "go"])
    >>> choice.predict_proba(states).round(4), choice.predict(states)
    (array([[0.8176, 0.1824]]), array(['stay'], dtype='<U4'))
    >>> throttle = TorchPolicy(torch.nn.Identity(), "gaussian", low=0.0, high=10.0, squash=True)
    >>> throttle.log_prob(states, [7.0]).round(4)
    array([-1.3756])
    """

    def __init__(
        self,
        module: torch.nn.Module,
        kind: str,
        *,
        action_labels: npt.ArrayLike | None = None,
        low: float | npt.ArrayLike | None = None,
        high: float | npt.ArrayLike | None = None,
        squash: bool = False,
        deterministic: bool = False,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.module = module
        self.kind = kind
        self.action_labels = action_labels
        self.low = low
        self.high = high
        self.squash = squash
        self.deterministic = deterministic
        self.feature_names = feature_names

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """Labels of the columns of discrete actions, or None for those of the log."""
        return label_array(self.action_labels, OWNER)

    @property
    def feature_names_in_(self) -> npt.NDArray[Any]:
        """Feature names that the module reads, where they were given."""
        if self.feature_names is None:
            raise AttributeError(f"{OWNER}: `feature_names` were not given.")
        return np.array(self.feature_names, dtype=object)

    # ---------------------------------------------------------------- how it acts

    def _is_discrete(self) -> bool:
        if not isinstance(self.module, torch.nn.Module):
            raise TypeError(
                f"{OWNER}: `module` must be a torch.nn.Module, got {type(self.module).__name__}; wrap a function in "
                "FunctionPolicy."
            )
        if self.kind not in DISCRETE + CONTINUOUS:
            raise ValueError(
                f"{OWNER}: `kind` must be one of {[*DISCRETE, *CONTINUOUS]}, got {self.kind!r}; say what the module returns."
            )
        return self.kind in DISCRETE

    def _acts_surely(self, discrete: bool) -> bool:  # noqa: ARG002
        return self.deterministic or self.kind in {"values", "deterministic"}

    def _check_names(self, rows: Rows) -> None:
        check_feature_names(self, rows.feature_names, OWNER)

    def _states(self, states: npt.ArrayLike) -> FloatArray:
        if isinstance(states, pd.DataFrame):
            check_feature_names(self, states.columns, OWNER)
        return float_array(OWNER, "states", as_rows(states, OWNER, feature_names=self.feature_names).states, 2)

    def _proba(self, states: FloatArray, mask: BoolArray | None) -> FloatArray:
        if not self._is_discrete():
            raise TypeError(f"{OWNER}: a policy of kind {self.kind!r} has continuous actions and no probabilities.")
        (scores,) = self._outputs(states)
        if self.kind == "probabilities":
            scores = _checked_probabilities(scores).log()
        self._check_width(mask, scores.shape[1])
        available = None if mask is None else torch.from_numpy(mask.copy())
        _check_mass(masked(scores, available))
        sure = self._acts_surely(discrete=True)
        probs = greedy(scores, available) if sure else masked_log_softmax(scores, available).exp()
        return probs.numpy()

    def _distribution(self, states: FloatArray) -> ActionDistribution:
        parts = [part.numpy() for part in self._outputs(states)]
        bounds = self._bounds(parts[0].shape[1])
        if self._acts_surely(discrete=False):
            return Point(_within(parts[0], bounds, squash=self.squash))
        mean, std = parts[0], np.exp(parts[1])
        if bounds is None:
            return Normal(mean, std)
        low, high = bounds
        if self.squash:
            return SquashedNormal(mean, std, 0.5 * (low + high), 0.5 * (high - low))
        return ClippedNormal(mean, std, low, high)

    def _dimension(self, law: ActionDistribution) -> int:
        assert isinstance(law, Normal | SquashedNormal | ClippedNormal)
        return int(law.location.shape[1])

    def _bounds(self, k: int) -> Bounds | None:
        given = [bound for bound in (self.low, self.high) if bound is not None]
        if not given and not self.squash:
            return None
        try:
            low, high = (np.broadcast_to(np.asarray(bound, dtype=np.float64), (k,)).copy() for bound in given)
        except ValueError as error:
            raise ValueError(
                f"{OWNER}: `low` and `high` must both be given, numbers or arrays of shape {(k,)}, got {self.low!r} and "
                f"{self.high!r}; pass the range of the actions{', which squash= needs' if self.squash else ''}."
            ) from error
        if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
            raise ValueError(
                f"{OWNER}: `low` must be below `high`, both finite, got {self.low!r} and {self.high!r}; correct them."
            )
        return low, high

    # ---------------------------------------------------------------- the module

    def _outputs(self, states: FloatArray) -> list[torch.Tensor]:
        """Return what the module makes of all states, on the CPU in double precision: one tensor, or two."""
        self._is_discrete()
        tensors = chain(self.module.parameters(), self.module.buffers())
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(0))
        blocks = []
        with evaluating(self.module):
            for low in range(0, max(len(states), 1), PREDICT_ROWS):
                x = torch.from_numpy(states[low : low + PREDICT_ROWS].copy()).to(like.device, like.dtype)
                blocks.append([part.cpu().double() for part in self._parts(self._call(x), len(x))])
        parts = [torch.cat(column) for column in zip(*blocks, strict=True)]
        for part in parts:
            # A logit of -inf is an action that is never taken; nothing else may be infinite.
            bad = ~(torch.isfinite(part) | (part == -np.inf) & (self.kind == "logits")).all(dim=1).numpy()
            if bad.any():
                raise ValueError(
                    f"{OWNER}: `module` must return finite numbers, got NaN or infinite ones at {first_positions(bad)}; "
                    "look for states far from those of its training."
                )
        return parts

    def _call(self, x: torch.Tensor) -> Any:
        try:
            return self.module(x)
        except RuntimeError as error:
            raise ValueError(
                f"{OWNER}: `module` must take states of shape {tuple(x.shape)} and dtype {x.dtype}, got the error "
                f"{error}; pass the states that it was trained on."
            ) from error

    def _parts(self, output: Any, n: int) -> Sequence[torch.Tensor]:
        parts = output if isinstance(output, tuple | list) else (output,)
        if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
            raise TypeError(f"{OWNER}: `module` must return {self._form(n)}, got {type(output).__name__}; wrap it.")
        first, shapes = parts[0], [tuple(part.shape) for part in parts]
        if first.ndim == 2 and len(first) == n and first.shape[1] > 0:
            halves = _mean_and_log_std(parts) if self.kind == "gaussian" else None
            if halves is not None:
                return halves
            columns = first.shape[1] if self.labels is None or not self._is_discrete() else len(self.labels)
            if self.kind != "gaussian" and shapes == [(n, columns)]:
                return parts
        raise ValueError(
            f"{OWNER}: `module` must return {self._form(n)}, got shape(s) {shapes}; wrap it in a module that does."
        )

    def _form(self, n: int) -> str:
        if self.kind == "gaussian":
            return f"mean and log standard deviation, each of shape ({n}, k), or one tensor of shape ({n}, 2 k)"
        columns = "k" if self.kind == "deterministic" else "n_actions" if self.labels is None else len(self.labels)
        return f"one tensor of shape ({n}, {columns}) for {n} states"


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Run the block with a module in evaluation mode and without gradients, and give each part its mode back.

    Examples
    --------
    >>> dropout = torch.nn.Dropout()
    >>> with evaluating(dropout):
    ...     dropout.training
    False
    >>> dropout.training
    True
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _mean_and_log_std(parts: Sequence[torch.Tensor]) -> Sequence[torch.Tensor] | None:
    """Return the two parts (n, k) of a Gaussian, or None if these are none."""
    n, width = parts[0].shape
    if len(parts) == 1:
        return parts[0].chunk(2, dim=1) if width % 2 == 0 else None
    fits = len(parts) == 2 and tuple(parts[1].shape) in {(n, width), (1, width), (width,)}
    return (parts[0], parts[1].expand(n, width)) if fits else None


def _within(actions: FloatArray, bounds: Bounds | None, *, squash: bool) -> FloatArray:
    if bounds is None:
        return actions
    low, high = bounds
    return 0.5 * (low + high) + 0.5 * (high - low) * np.tanh(actions) if squash else np.clip(actions, low, high)


def _checked_probabilities(probs: torch.Tensor) -> torch.Tensor:
    bad = ((probs < 0).any(dim=1) | ((probs.sum(dim=1) - 1.0).abs() > SUM_ERROR)).numpy()
    if bad.any():
        raise ValueError(
            f"{OWNER}: `module` must return probabilities that sum to 1, got {probs[bad.argmax()].tolist()} at "
            f"{first_positions(bad)}; if it returns logits, pass kind='logits'."
        )
    return probs


def _check_mass(scores: torch.Tensor) -> None:
    lost = (scores == -np.inf).all(dim=1).numpy()
    if lost.any():
        raise ValueError(
            f"{OWNER}: `module` must give an available action a positive probability, got all its mass on masked actions "
            f"at {first_positions(lost)}; correct the mask."
        )
