"""Files of earlier versions load, and their policies say what they said; `keep_files.py` writes those of this version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keep_files
import numpy as np
import pytest
from learner_logs import random_log

import ope.policies
from ope.neural.networks import MLP
from ope.neural.serialization import POLICY_KIND, library_version, load_policy, read_sealed, write_sealed
from ope.policies import BCQ, IQL

FILES = sorted(keep_files.FOLDER.glob("*.safetensors"))
# Forward passes in single precision: the last digits are the processor's.
FLOATS = ("predict", "sample", "predict_proba", "log_prob", "q_values")


def test_this_version_has_kept_its_files() -> None:
    kept = {path.stem for path in FILES}
    assert {f"{name}-{library_version()}" for name in keep_files.CASES} <= kept
    assert all(path.with_suffix(".json").exists() for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_kept_file_says_what_it_said(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    policy = load_policy(path)
    params = json.loads(json.dumps(keep_files.learner_of(policy).get_params()))
    assert {name: params[name] for name in expected["settings"]} == expected["settings"]
    found = keep_files.answers(policy)
    assert len(found["training_episode_keys"]) == 4
    for name, value in found.items():
        if name in FLOATS and not isinstance(value[0], str):
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            assert value == expected[name], name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_kept_file_can_be_saved_and_loaded_again(path: Path, tmp_path: Path) -> None:
    policy = load_policy(path)
    policy.save(tmp_path / "again")
    again = load_policy(tmp_path / "again")
    assert repr(again) == repr(policy)
    assert keep_files.answers(again) == keep_files.answers(policy)


# -------------------------------------------------------------------- parameters that come and go


def rewritten(source: Path, target: Path, **params: Any) -> Path:
    """Write a policy file anew with other parameters; `...` leaves one out."""
    arrays, metadata = read_sealed(source, POLICY_KIND, "test")
    metadata["params"] = {name: value for name, value in {**metadata["params"], **params}.items() if value is not ...}
    write_sealed(target, POLICY_KIND, arrays, metadata)
    return target


def test_a_parameter_that_a_file_lacks_has_its_default(tmp_path: Path) -> None:
    log = random_log(4, 5, continuous=True)
    BCQ(hidden=(4,), vae_hidden=(4,), n_updates=2, batch_size=4, gamma=0.5, n_act_samples=3).fit(log).save(
        tmp_path / "now"
    )
    before = load_policy(rewritten(tmp_path / "now", tmp_path / "before", n_act_samples=..., min_weight=...))
    assert (before.n_act_samples, before.min_weight, before.gamma) == (100, 0.75, 0.5)
    now = load_policy(tmp_path / "now")
    assert now.n_act_samples == 3
    np.testing.assert_array_equal(before.set_params(n_act_samples=3).predict(log.states), now.predict(log.states))


@pytest.mark.parametrize("name", sorted(set(keep_files.CASES) - set(keep_files.PREPROCESSED)))
def test_any_single_parameter_may_be_missing(name: str, tmp_path: Path) -> None:
    source = keep_files.FOLDER / f"{name}-0.1.0.safetensors"
    policy_class = getattr(ope.policies, keep_files.CASES[name][0])
    stored, defaults = load_policy(source).get_params(), policy_class().get_params()
    for param in set(read_sealed(source, POLICY_KIND, "test")[1]["params"]):
        loaded = load_policy(rewritten(source, tmp_path / "file", **{param: ...}))
        assert loaded.get_params() == {**stored, param: defaults[param]}


def test_a_parameter_that_this_version_lacks_is_refused(tmp_path: Path) -> None:
    source = keep_files.FOLDER / "iql_continuous-0.1.0.safetensors"
    with pytest.raises(ValueError, match=r"load_policy: IQL has no parameter\(s\) \['n_critics'\].* load it with the"):
        load_policy(rewritten(source, tmp_path / "file", n_critics=10))


def test_a_file_without_a_later_field_of_its_networks_loads(tmp_path: Path) -> None:
    log = random_log(4, 5, continuous=True)
    policy = IQL(hidden=(4,), n_updates=2, batch_size=4).fit(log)
    policy.save(tmp_path / "now")
    arrays, metadata = read_sealed(tmp_path / "now", POLICY_KIND, "test")
    for form in metadata["attributes"]["networks"].values():
        assert form.pop("layer_norm") is False
    del metadata["attributes"]["reward_scale"]
    write_sealed(tmp_path / "before", POLICY_KIND, arrays, metadata)
    before = load_policy(tmp_path / "before")
    np.testing.assert_array_equal(before.predict(log.states), policy.predict(log.states))
    assert before.origin_.reward_scale == 1.0


def test_layer_normalisation_survives_the_file(tmp_path: Path) -> None:
    log = random_log(4, 5, continuous=True)
    policy = IQL(hidden=(4,), n_updates=2, batch_size=4).fit(log)
    plain = policy.predict(log.states)
    for name, network in policy.networks_.items():
        normed = MLP(network.sizes, 1, extras=network.extras, layer_norm=True)
        policy.networks_[name] = normed.with_rows(network.parameters.flat)
    normalised = policy.predict(log.states)
    assert not np.allclose(plain, normalised)
    policy.save(tmp_path / "policy")
    np.testing.assert_array_equal(load_policy(tmp_path / "policy").predict(log.states), normalised)
