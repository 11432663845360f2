"""Fitted policies as torch modules, for programs that know nothing of this library: TorchScript and ONNX."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ope.files import check_place, replace_file
from ope.neural.device import one_thread
from ope.neural.serialization import library_version, pack_labels
from ope.neural.transitions import Standardizer
from ope.policies import _distributions as laws
from ope.policies._export_transformers import Step, chain, tensor_form
from ope.policies._network_policy import Evaluation, NetworkPolicy
from ope.policies.behavior_cloning import mixture_parameters
from ope.policies.preprocessed import PreprocessedLearner
from ope.validation import FloatArray

FORMATS = ("torchscript", "onnx")
METADATA_NAME = "ope.json"
TOLERANCE = 1e-6
PROBES = 7

MeanOf = Callable[[torch.Tensor], torch.Tensor]


class ExportedPolicy(nn.Module):
    """States in the unit of the log to probabilities of discrete actions, or to the mean of continuous ones.

    Parameters
    ----------
    policy : NetworkPolicy
        Fitted; it is copied and left as it is.
    prepare : callable, optional
        From states (n, d) of the log to those that the policy was trained on.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, policy: NetworkPolicy, prepare: Step | None = None) -> None:
        super().__init__()
        self._prepare = prepare
        twin = copy.copy(policy)
        twin.networks_ = {name: network.copy() for name, network in policy.networks_.items()}
        self.register_buffer("shift", torch.from_numpy(twin.origin_.states.shift))
        self.register_buffer("scale", torch.from_numpy(twin.origin_.states.scale))
        self.discrete = twin.labels is not None
        self._act: Evaluation = twin._probabilities if self.discrete else _action_of(twin)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return probabilities (n, n_actions) or actions (n, k), float64, for states (n, d)."""
        return self._act(self._standardised(states), None)

    def masked(self, states: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        """Return probabilities of discrete actions, where some (n, n_actions) are not available."""
        return self._act(self._standardised(states), action_mask)

    def _standardised(self, states: torch.Tensor) -> torch.Tensor:
        states = states.double() if self._prepare is None else self._prepare(states.double())
        return ((states - self.shift) / self.scale).float()


def export_policy(policy: NetworkPolicy | PreprocessedLearner, path: str | Path, file_format: str) -> None:
    """Write a fitted policy as a TorchScript or ONNX file; see `NetworkPolicy.export`."""
    owner = f"{type(policy).__name__}.export"
    if file_format not in FORMATS:
        raise ValueError(f"{owner}: `format` must be one of {list(FORMATS)}, got {file_format!r}; choose one.")
    if Path(path).suffix == ".onnx" and file_format != "onnx":
        raise ValueError(
            f'{owner}: `format` must be "onnx" for a file *.onnx, got {file_format!r}; pass format="onnx".'
        )
    check_place(owner, "path", path)
    policy._fitted()
    network, transformers = _unwrapped(policy, owner)
    prepare = chain([tensor_form(own, owner) for own in transformers]) if transformers else None
    module, probes = ExportedPolicy(network, prepare).eval(), _probes(network, transformers)
    target = _Target(policy, network)
    with torch.no_grad(), one_thread(), _quiet():
        target.compare(module, probes, share=1.0)
        if file_format == "torchscript":
            replace_file(path, _torchscript(module, target, probes))
        else:
            _onnx(module, probes, path, owner)


def _unwrapped(policy: Any, owner: str) -> tuple[NetworkPolicy, list[Any]]:
    """Return the networks that act, and the transformers before them, the first one first."""
    transformers = []
    while isinstance(policy, PreprocessedLearner):
        transformers.append(policy.transformer_)
        policy = policy.learner_
    if not isinstance(policy, NetworkPolicy):
        raise TypeError(
            f"{owner}: `learner` must be one of this library's that `export` serves, got {policy!r}; store the policy with `save` "
            "or `joblib.dump`."
        )
    return policy, transformers


@dataclass(frozen=True)
class _Target:
    """What a module is to act as: a policy, and the networks in it."""

    policy: NetworkPolicy | PreprocessedLearner
    network: NetworkPolicy

    def compare(self, module: nn.Module, probes: FloatArray, *, share: float) -> None:
        """Raise unless a module acts as the policy in a share of states."""
        discrete, unit = self.policy.labels is not None, self.network.origin_.actions
        expected = np.asarray(self.policy.predict_proba(probes) if discrete else self.policy.predict(probes))
        found = module(torch.from_numpy(probes)).numpy()
        size = TOLERANCE * ((1.0 if unit is None else np.abs(unit.scale)) + np.abs(expected))
        same = found.shape == expected.shape and (np.abs(found - expected) <= size).all(axis=1)
        if np.mean(same) < share:
            raise RuntimeError(
                f"{type(self.policy).__name__}.export: the exported module must act as the policy, got other actions in "
                f"{1.0 - np.mean(same):.0%} of {PROBES} states; this is an error of the library: please report it."
            )

    def description(self) -> dict[str, Any]:
        """Return what the file says of itself."""
        labels = self.policy.labels
        return {
            "class": type(self.network).__name__,
            "library_version": library_version(),
            "feature_names": [str(name) for name in self.policy.feature_names_in_],
            "output": "actions" if labels is None else "probabilities",
            "action_labels": None if labels is None else pack_labels(labels),
        }


# -------------------------------------------------------------------- continuous actions


def _action_of(policy: NetworkPolicy) -> Evaluation:
    """Return the mean action, in the unit of the log, as a function of standardised states.

    Learners hand `_evaluate` a function in torch and build a distribution from what it returns: the function is caught, and
    the mean of that kind of distribution is taken in torch.
    """
    caught: list[Evaluation] = []

    def catch(function: Evaluation, states: FloatArray, *arguments: Any, **options: Any) -> FloatArray:
        caught.append(function)
        return NetworkPolicy._evaluate(policy, function, states, *arguments, **options)

    watched = copy.copy(policy)
    watched._evaluate = catch  # type: ignore[method-assign]
    law = watched._distribution(np.zeros((1, len(policy.origin_.feature_names))))
    (function,) = caught
    unit = policy.origin_.actions
    assert unit is not None
    mean = _mean_of(law, unit)
    return lambda states, mask: mean(function(states, mask))


def _mean_of(law: laws.ActionDistribution, unit: Standardizer) -> MeanOf:
    """Return the mean of a distribution as a function of what its networks return."""
    shift, scale = torch.from_numpy(unit.shift), torch.from_numpy(unit.scale)
    if isinstance(law, laws.TruncatedNormal):
        # Its standard deviation depends on no state.
        std, low, high = (torch.from_numpy(np.array(part)) for part in (law.std[0], law.low, law.high))
        return lambda output: _truncated_mean(output * scale + shift, std, low, high)
    if isinstance(law, laws.MixtureNormal):
        return lambda output: _mixture_mean(output, len(shift)) * scale + shift
    means: dict[type[laws.ActionDistribution], MeanOf] = {
        laws.Point: lambda output: output,
        laws.Normal: lambda output: output.chunk(2, dim=1)[0],
        laws.SquashedNormal: lambda output: _squashed_mean(*output.chunk(2, dim=1)),
    }
    mean = means[type(law)]
    return lambda output: mean(output) * scale + shift


def _mixture_mean(output: torch.Tensor, k: int) -> torch.Tensor:
    log_weights, mean, _ = mixture_parameters(output, k)
    return (log_weights.exp().unsqueeze(2) * mean).sum(dim=1)


def _squashed_mean(location: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return E tanh(u), u normal, by the quadrature of `SquashedNormal`."""
    points, weights = np.polynomial.hermite_e.hermegauss(laws.MEAN_NODES)
    z, w = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
    return (torch.tanh(location.unsqueeze(2) + std.unsqueeze(2) * z) * w).sum(dim=2)


def _truncated_mean(mean: torch.Tensor, std: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return the mean of a normal given that it lies between bounds."""
    a, b = (low - mean) / std, (high - mean) / std
    heights = (torch.exp(-0.5 * a * a) - torch.exp(-0.5 * b * b)) / math.sqrt(2.0 * math.pi)
    # ONNX runtimes have erf in single precision only. The mode lies within the bounds: no digit is lost in a tail.
    upper, lower = (torch.erf((limit / math.sqrt(2.0)).float()).double() for limit in (b, a))
    return mean + std * heights / (0.5 * (upper - lower))


# -------------------------------------------------------------------- files


def _torchscript(module: ExportedPolicy, target: _Target, probes: FloatArray) -> bytes:
    few = torch.from_numpy(probes[:2])
    inputs: dict[str, Any] = {"forward": (few,)}
    if module.discrete:
        inputs["masked"] = (few, torch.ones(2, target.network.origin_.n_actions, dtype=torch.bool))
    traced = torch.jit.trace_module(module, inputs, check_trace=False)  # type: ignore[no-untyped-call]
    # Tried with another number of rows, so that one that the trace took for a constant is seen. The last digit may differ,
    # and with it the choice between two actions of almost the same value.
    target.compare(traced, probes, share=0.5)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={METADATA_NAME: json.dumps(target.description())})
    return buffer.getvalue()


def _onnx(module: ExportedPolicy, probes: FloatArray, path: str | Path, owner: str) -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{owner}: format='onnx' needs packages that torch does not bring, got none of the name(s) {missing}; "
            f"run `pip install {' '.join(missing)}`, or pass format='torchscript'."
        )
    output = "probabilities" if module.discrete else "actions"
    program = torch.onnx.export(
        module,
        (torch.from_numpy(probes),),
        dynamo=True,
        verbose=False,
        input_names=["states"],
        output_names=[output],
        dynamic_shapes={"states": {0: torch.export.Dim("n")}},
    )
    assert program is not None
    replace_file(path, program.model_proto.SerializeToString())


def _probes(network: NetworkPolicy, transformers: Sequence[Any]) -> FloatArray:
    rng, unit = np.random.default_rng(0), network.origin_.states
    states = unit.inverse(rng.standard_normal((PROBES, len(unit.shift))))
    for transformer in reversed(transformers):
        states = np.asarray(transformer.inverse_transform(states))
    return states


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # torch calls TorchScript deprecated, though nothing else runs without Python, distrusts every shape in a trace, and misses
    # torchvision when it writes ONNX.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=DeprecationWarning)
        warnings.simplefilter("ignore", category=FutureWarning)
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
