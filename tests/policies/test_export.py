"""Exported policies act as the policies do, in any number of states, and leave the learner as it was."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import random_log, same_policy
from sklearn.exceptions import NotFittedError
from test_learner_laws import CASES, interrupt, log_of, make

from ope.dataset import LoggedDataset
from ope.neural.serialization import unpack_labels
from ope.policies import BCQ, IQL, LSPI, TD3BC, BehaviorCloning, TorchPolicy, _export
from ope.policies._network_policy import NetworkPolicy

SMALL: dict[str, Any] = {"hidden": (6,), "n_updates": 10, "batch_size": 8}
# Learners that the shared laws do not run, and other forms of those that they do.
MORE: dict[str, tuple[NetworkPolicy, bool]] = {
    "cloning": (BehaviorCloning(**SMALL), False),
    "cloning continuous": (BehaviorCloning(**SMALL), True),
    "cloning deterministic": (BehaviorCloning(form="deterministic", **SMALL), True),
    "cloning mixture": (BehaviorCloning(form="mixture", n_components=3, **SMALL), True),
    "LSPI": (LSPI(gamma=0.3, degree=2), False),
    "IQL sure": (IQL(deterministic=True, **SMALL), False),
    "BCQ threshold 0": (BCQ(threshold=0.0, **SMALL), False),
    "not normalised": (TD3BC(normalize_states=False, **SMALL), True),
}


def sure(name: str) -> bool:
    return CASES[name][1] and "deterministic" in make(name).get_params()


SURE = {f"{name} sure": name for name in CASES if sure(name)}


def fitted(name: str) -> tuple[Any, LoggedDataset]:
    if name in MORE:
        learner, continuous = MORE[name]
        log = random_log(continuous=continuous)
        return learner.fit(log), log
    log = log_of(SURE.get(name, name))
    return make(SURE.get(name, name), **({"deterministic": True} if name in SURE else {})).fit(log), log


def load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(path))  # type: ignore[no-untyped-call]


def expected(policy: Any, states: Any) -> Any:
    return policy.predict(states) if policy.labels is None else policy.predict_proba(states)


def size(policy: Any) -> Any:
    """The unit of what a module returns: half the range of an action."""
    return 1.0 if policy.origin_.actions is None else policy.origin_.actions.scale


@pytest.mark.parametrize("name", [*CASES, *SURE, *MORE])
def test_a_torchscript_module_acts_as_the_policy(name: str, tmp_path: Path) -> None:
    policy, log = fitted(name)
    path = tmp_path / "policy.pt"
    policy.export(path)
    module = load(path)
    # More rows than any block, one, and none; far states too.
    for states in (np.tile(log.states, (2, 1)), 3.0 * log.states[:1], log.states[:0]):
        found = module(torch.from_numpy(states.copy())).numpy()
        assert found.dtype == np.float64
        assert (np.abs(found - expected(policy, states)) <= 1e-6 * size(policy)).all()
    single = module(torch.from_numpy(log.states.astype(np.float32))).numpy()
    assert np.mean(np.abs(single - expected(policy, log.states)) < 1e-4 * size(policy)) > 0.98


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name][1]] + ["cloning", "LSPI"])
def test_masks_are_respected_by_a_module(name: str, tmp_path: Path) -> None:
    policy, log = fitted(name)
    policy.export(tmp_path / "policy.pt")
    mask = random_log(masked=True).action_mask
    assert mask is not None
    found = load(tmp_path / "policy.pt").masked(torch.from_numpy(log.states.copy()), torch.from_numpy(mask.copy()))
    np.testing.assert_allclose(found.numpy(), policy.predict_proba(log.states, mask), atol=1e-6)
    assert (found.numpy()[~mask] == 0).all()


def test_the_file_says_what_it_takes_and_returns(tmp_path: Path) -> None:
    policy, _ = fitted("BCQ")
    policy.export(tmp_path / "policy.pt")
    extra: dict[str, Any] = {"ope.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.load(str(tmp_path / "policy.pt"), _extra_files=extra)  # type: ignore[no-untyped-call]
    said = json.loads(extra["ope.json"])
    assert (said["class"], said["output"], said["feature_names"]) == ("BCQ", "probabilities", ["x", "y", "z"])
    assert unpack_labels(said["action_labels"]).tolist() == ["a", "b", "c"]
    assert not hasattr(load(tmp_path / "policy.pt"), "nonsense")


def test_a_module_becomes_a_policy_again(tmp_path: Path) -> None:
    for name, kind in (("BCQ", "probabilities"), ("BCQ continuous", "deterministic")):
        policy, log = fitted(name)
        policy.export(tmp_path / "policy.pt")
        back = TorchPolicy(load(tmp_path / "policy.pt"), kind, action_labels=policy.labels)
        np.testing.assert_allclose(expected(back, log.states), expected(policy, log.states), rtol=1e-6)


@pytest.mark.parametrize("name", ["TD3BC", "BCQ", "IQL continuous"])
def test_export_leaves_the_learner_as_it_was(name: str, tmp_path: Path) -> None:
    log = log_of(name)
    plain, exported = (make(name, checkpoints=2, callbacks=[interrupt]) for _ in range(2))
    for learner in (plain, exported):
        with pytest.warns(UserWarning, match="interrupted"):
            learner.fit(log)
    flats = {key: network.parameters.flat.data_ptr() for key, network in exported.networks_.items()}
    before = expected(exported, log.states)
    exported.export(tmp_path / "policy.pt")
    np.testing.assert_array_equal(expected(exported, log.states), before)
    assert {key: network.parameters.flat.data_ptr() for key, network in exported.networks_.items()} == flats
    assert "_evaluate" not in vars(exported)
    same_policy(exported, plain)
    for learner in (plain, exported):
        learner.set_params(callbacks=None).resume(log)
    assert exported.n_updates_ == 24
    same_policy(exported, plain)
    # The file holds the policy of its time.
    old = load(tmp_path / "policy.pt")(torch.from_numpy(log.states.copy())).numpy()
    np.testing.assert_allclose(old, before, rtol=1e-5, atol=1e-5)
    exported.fit(log.select(slice(0, 20)))


def test_a_checkpoint_is_exported_as_a_policy(tmp_path: Path) -> None:
    log = log_of("TD3BC")
    first = make("TD3BC", checkpoints=2).fit(log).checkpoints_[0]
    first.export(tmp_path / "policy.pt")
    found = load(tmp_path / "policy.pt")(torch.from_numpy(log.states.copy())).numpy()
    np.testing.assert_allclose(found, first.predict(log.states), rtol=1e-5)


# -------------------------------------------------------------------- errors


def test_bad_calls_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match="TD3BC is not fitted"):
        TD3BC().export(tmp_path / "policy.pt")
    policy, _ = fitted("TD3BC")
    with pytest.raises(
        ValueError, match=r"TD3BC.export: `format` must be one of \['torchscript', 'onnx'\], got 'pickle'"
    ):
        policy.export(tmp_path / "policy.pt", format="pickle")
    assert not (tmp_path / "policy.pt").exists()


def test_onnx_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else real(name))
    policy, _ = fitted("TD3BC")
    with pytest.raises(
        ImportError, match=r"TD3BC.export: .* \['onnx', 'onnxscript'\]; run `pip install onnx onnxscript`"
    ):
        policy.export(tmp_path / "policy.onnx", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_acts_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = fitted("TD3BC")
    monkeypatch.setattr(_export, "_mean_of", lambda _law, _unit: lambda output: output + 1e-3)
    with pytest.raises(RuntimeError, match="the exported module must act as the policy, got other actions in 100%"):
        policy.export(tmp_path / "policy.pt")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------- ONNX, where its packages are


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["BCQ", "BCQ continuous", "CQL continuous", "IQL continuous", "TD3BC", "AWAC", "LSPI", "cloning mixture"]
)
def test_real_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    policy, log = fitted(name)
    policy.export(tmp_path / "policy.onnx", format="onnx")
    session = runtime.InferenceSession(str(tmp_path / "policy.onnx"))
    for states in (np.tile(log.states, (2, 1)), log.states[:1].copy()):
        (found,) = session.run(None, {"states": states})
        assert (np.abs(found - expected(policy, states)) <= 1e-6 * size(policy)).all()
    assert session.get_outputs()[0].name == ("actions" if policy.labels is None else "probabilities")
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]
