"""Policies of torch modules, d3rlpy and stable-baselines3: stand-ins everywhere, the libraries where they are."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import SkipTest

import foreign
import numpy as np
import pandas as pd
import pytest
import torch
from learner_logs import random_log
from sklearn.base import clone
from torch import nn

from ope.policies import EpsilonGreedy, TorchPolicy, from_d3rlpy, from_sb3
from ope.policies.d3rlpy_policy import CLIPPED, GREEDY, SOFTMAX, SQUASHED, SURE
from ope.policy import expectation, log_prob_logged, probabilities
from ope.testing import check_policy, policy_checks

LABELS = ["a", "b", "c"]
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(40, 3))
SMALL = torch.from_numpy(STATES).float()


def softmax(logits: Any) -> Any:
    return np.array([[np.exp(x) / sum(np.exp(y) for y in row) for x in row] for row in np.asarray(logits)])


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = foreign.linear(3, 2, 0), nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean(x), self.log_std


MODULES: dict[str, nn.Module] = {
    "logits": foreign.linear(3, 3, 1),
    "probabilities": nn.Sequential(foreign.linear(3, 3, 1), nn.Softmax(dim=1)),
    "values": foreign.linear(3, 3, 1),
    "gaussian": Pair(),
    "deterministic": foreign.linear(3, 2, 2),
}


def raw(kind: str) -> Any:
    with torch.no_grad():
        output = MODULES[kind](SMALL)
    return output[0].double().numpy() if isinstance(output, tuple) else output.double().numpy()


# -------------------------------------------------------------------- TorchPolicy, discrete


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_probabilities_are_those_of_the_module(kind: str) -> None:
    policy = TorchPolicy(MODULES[kind], kind, action_labels=LABELS)
    expected = softmax(raw("logits"))
    assert policy.capabilities == {"logged_prob", "all_probs", "sample"}
    np.testing.assert_allclose(policy.predict_proba(STATES), expected, atol=1e-6)
    np.testing.assert_allclose(policy.predict_proba(STATES).sum(axis=1), 1.0, rtol=1e-12)
    assert policy.predict(STATES).tolist() == [LABELS[i] for i in expected.argmax(axis=1)]
    np.testing.assert_allclose(policy.log_prob(STATES, ["b"] * 40), np.log(expected[:, 1]), atol=1e-5)
    draws = policy.sample(np.tile(STATES[:3], (2000, 1)), 0).reshape(2000, 3)
    np.testing.assert_allclose((draws == "c").mean(axis=0), expected[:3, 2], atol=4 * 0.5 / np.sqrt(2000))
    mask = RNG.random((40, 3)) < 0.5
    mask[np.arange(40), RNG.integers(0, 3, 40)] = True
    allowed = expected * mask
    np.testing.assert_allclose(
        policy.predict_proba(STATES, mask), allowed / allowed.sum(axis=1, keepdims=True), atol=1e-6
    )
    sure = TorchPolicy(MODULES[kind], kind, action_labels=LABELS, deterministic=True)
    assert "deterministic" in sure.capabilities
    np.testing.assert_array_equal(sure.predict_proba(STATES, mask), np.eye(3)[allowed.argmax(axis=1)])


def test_values_are_taken_greedily_among_available_actions() -> None:
    policy = TorchPolicy(MODULES["values"], "values")
    assert policy.capabilities == {"logged_prob", "all_probs", "sample", "deterministic"}
    q = raw("values")
    np.testing.assert_array_equal(policy.predict_proba(STATES), np.eye(3)[q.argmax(axis=1)])
    np.testing.assert_array_equal(policy.predict(STATES), q.argmax(axis=1))
    mask = np.ones((40, 3), dtype=bool)
    mask[np.arange(40), q.argmax(axis=1)] = False
    second = np.argsort(q, axis=1)[:, 1]
    np.testing.assert_array_equal(policy.predict(STATES, mask), second)
    np.testing.assert_array_equal(policy.sample(STATES, 0, mask), second)
    np.testing.assert_array_equal(policy.log_prob(STATES, second, mask), np.zeros(40))


def test_masks_of_a_log_follow_labels_in_any_order() -> None:
    log = random_log(masked=True)
    assert log.action_mask is not None
    module = foreign.linear(3, 3, 1, 0.1)
    plain = TorchPolicy(module, "values")
    permuted = TorchPolicy(nn.Sequential(module, Reorder([2, 0, 1])), "values", action_labels=["c", "a", "b"])
    expected = probabilities(plain, log.rows(), np.array(LABELS))
    assert ((expected > 0) <= log.action_mask).all()
    np.testing.assert_array_equal(probabilities(permuted, log.rows(), np.array(LABELS)), expected)


class Reorder(nn.Module):
    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.order]


def test_a_logit_may_rule_an_action_out() -> None:
    class Never(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0], torch.full_like(x[:, 0], -torch.inf)], dim=1)

    policy = TorchPolicy(Never(), "logits")
    np.testing.assert_array_equal(policy.predict_proba(STATES), [[1.0, 0.0]] * 40)
    with pytest.raises(ValueError, match=r"must give an available action a positive probability.* rows 0"):
        policy.predict_proba(STATES[:1], [[False, True]])


def test_torch_policy_with_more_outputs_than_the_mask_has_columns() -> None:
    policy = TorchPolicy(nn.Linear(2, 3), "logits")
    with pytest.raises(
        ValueError, match=r"column for each of the 3 actions of the policy, got 2; give the policy an output"
    ):
        policy.predict_proba(np.zeros((4, 2)), np.ones((4, 2), dtype=bool))


# -------------------------------------------------------------------- TorchPolicy, continuous


def test_a_gaussian_has_the_density_that_torch_says() -> None:
    actions = RNG.normal(size=(40, 2))
    mean, log_std = (part.detach() for part in MODULES["gaussian"](SMALL))
    law = torch.distributions.Normal(mean.double(), log_std.double().exp())
    policy = TorchPolicy(MODULES["gaussian"], "gaussian")
    assert policy.capabilities == {"logged_prob", "density", "sample"}
    expected = law.log_prob(torch.from_numpy(actions)).sum(dim=1).numpy()  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(policy.log_prob(STATES, actions), expected, rtol=1e-6)
    np.testing.assert_allclose(policy.predict(STATES), mean, rtol=1e-6)

    class Joined(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean, log_std = MODULES["gaussian"](x)
            return torch.cat([mean, log_std.expand_as(mean)], dim=1)

    joined = TorchPolicy(Joined(), "gaussian")
    np.testing.assert_array_equal(joined.log_prob(STATES, actions), policy.log_prob(STATES, actions))
    log = random_log(continuous=True)
    assert policy.quadrature_rows(log.rows()) is not None
    np.testing.assert_array_equal(log_prob_logged(policy, log), policy.log_prob(log.states, log.actions))


def test_a_squashed_gaussian_has_the_density_that_torch_says() -> None:
    low, high = np.array([-1.0, 0.0]), np.array([3.0, 0.5])
    policy = TorchPolicy(MODULES["gaussian"], "gaussian", low=low, high=high, squash=True)
    mean, log_std = (part.detach() for part in MODULES["gaussian"](SMALL))
    affine = torch.distributions.AffineTransform(
        torch.from_numpy(0.5 * (low + high)), torch.from_numpy(0.5 * (high - low))
    )
    base = torch.distributions.Normal(mean.double(), log_std.double().exp())
    law = torch.distributions.TransformedDistribution(base, [torch.distributions.TanhTransform(), affine])
    actions = low + (high - low) * RNG.uniform(0.02, 0.98, size=(40, 2))
    expected = law.log_prob(torch.from_numpy(actions)).sum(dim=1).numpy()  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(policy.log_prob(STATES, actions), expected, rtol=1e-6)
    draws = policy.sample(np.tile(STATES, (3000, 1)), 0).reshape(3000, 40, 2)
    assert (draws >= low).all()
    assert (draws <= high).all()
    np.testing.assert_allclose(draws.mean(axis=0), policy.predict(STATES), atol=4 * 2.0 / np.sqrt(3000))
    mode = TorchPolicy(MODULES["gaussian"], "gaussian", low=low, high=high, squash=True, deterministic=True)
    expected_mode = 0.5 * (low + high) + 0.5 * (high - low) * np.tanh(raw("gaussian"))
    np.testing.assert_allclose(mode.predict(STATES), expected_mode, rtol=1e-6)
    assert mode.capabilities == {"sample", "deterministic"}
    with pytest.raises(TypeError, match="TorchPolicy has no `log_prob`: a single continuous action has no density"):
        mode.log_prob(STATES, actions)


def test_a_clipped_gaussian_draws_within_bounds_and_has_the_density_before_clipping() -> None:
    low, high = np.array([-1.0, 0.0]), np.array([1.5, 0.5])
    policy = TorchPolicy(MODULES["gaussian"], "gaussian", low=low, high=high)
    free: Any = TorchPolicy(MODULES["gaussian"], "gaussian")
    actions = RNG.uniform(-2, 2, size=(40, 2))
    np.testing.assert_array_equal(policy.log_prob(STATES, actions), free.log_prob(STATES, actions))
    draws, unclipped = (one.sample(np.tile(STATES, (3000, 1)), 0).reshape(3000, 40, 2) for one in (policy, free))
    np.testing.assert_array_equal(draws, np.clip(unclipped, low, high))
    z = np.linspace(-9, 9, 200_001)[:, None, None]
    weights = np.exp(-0.5 * z**2) / np.exp(-0.5 * z**2).sum()
    for rows in np.split(np.arange(40), 10):
        law = free._distribution(STATES[rows])
        expected = (weights * np.clip(law.location + law.std * z, low, high)).sum(axis=0)
        np.testing.assert_allclose(policy.predict(STATES[rows]), expected, atol=1e-8)
    mode = TorchPolicy(MODULES["gaussian"], "gaussian", low=low, high=high, deterministic=True)
    np.testing.assert_allclose(mode.predict(STATES), np.clip(raw("gaussian"), low, high), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "function"),
    [
        ({}, lambda a: a),
        ({"low": -0.5, "high": 0.75}, lambda a: np.clip(a, -0.5, 0.75)),
        ({"low": -0.5, "high": [0.5, 1.5], "squash": True}, lambda a: [0.0, 0.5] + np.tanh(a) * [0.5, 1.0]),
    ],
)
def test_a_deterministic_module_acts_as_it_says(options: dict[str, Any], function: Callable[[Any], Any]) -> None:
    policy = TorchPolicy(MODULES["deterministic"], "deterministic", **options)
    assert policy.capabilities == {"sample", "deterministic"}
    np.testing.assert_allclose(policy.predict(STATES), function(raw("deterministic")), rtol=1e-6)
    np.testing.assert_array_equal(policy.sample(STATES, 0), policy.predict(STATES))
    log = random_log(continuous=True)
    value = expectation(policy, log, lambda _, a: np.zeros(len(log)) if a is None else a.sum(axis=1))
    np.testing.assert_allclose(value, policy.predict(log.states).sum(axis=1))


# -------------------------------------------------------------------- TorchPolicy, the module


class Watched(nn.Module):
    """Notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout, self.norm = foreign.linear(3, 2, 0), nn.Dropout(0.5), nn.BatchNorm1d(2)
        self.rows: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        modes = [self.training, self.dropout.training, self.norm.training, torch.is_grad_enabled()]
        assert modes == [False] * 4
        self.rows.append(len(x))
        if len(x) == 13:
            raise RuntimeError("thirteen rows")
        output: torch.Tensor = self.dropout(self.norm(self.net(x)))
        return output


def test_the_module_is_evaluated_in_blocks_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Watched()
    module.norm.eval()
    before = copy.deepcopy(module.state_dict())
    policy = TorchPolicy(module, "deterministic")
    whole = policy.predict(STATES)
    monkeypatch.setattr("ope.policies.torch_policy.PREDICT_ROWS", 15)
    np.testing.assert_allclose(policy.predict(STATES), whole, rtol=1e-6)
    assert module.rows == [40, 15, 15, 10]
    with pytest.raises(
        ValueError, match=r"must take states of shape \(13, 3\) and dtype torch.float32, got .*thirteen"
    ):
        policy.predict(STATES[:13])
    assert (module.training, module.dropout.training, module.norm.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert policy.predict(np.zeros((0, 3))).shape == (0, 2)


def test_training_the_module_changes_the_policy_but_not_its_copies() -> None:
    module = foreign.linear(3, 2, 0)
    policy = TorchPolicy(module, "deterministic")
    copies = [clone(policy), copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))]
    before = policy.predict(STATES)
    with torch.no_grad():
        module.bias.add_(1.0)
    np.testing.assert_allclose(policy.predict(STATES), before + 1.0, rtol=1e-5)
    for one in copies:
        np.testing.assert_array_equal(one.predict(STATES), before)


def test_states_come_in_the_dtype_of_the_module() -> None:
    module = foreign.linear(3, 2, 0).double()
    exact = STATES @ module.weight.detach().numpy().T + module.bias.detach().numpy()
    np.testing.assert_allclose(TorchPolicy(module, "deterministic").predict(STATES), exact, rtol=1e-12)
    np.testing.assert_allclose(TorchPolicy(nn.Identity(), "deterministic").predict(STATES), STATES, rtol=1e-6)


def test_feature_names_are_checked_where_they_are_given() -> None:
    log = random_log()
    policy = TorchPolicy(MODULES["logits"], "logits", feature_names=["x", "y", "z"])
    expected = log_prob_logged(TorchPolicy(MODULES["logits"], "logits"), log)
    np.testing.assert_array_equal(log_prob_logged(policy, log), expected)
    with pytest.raises(ValueError, match="feature names must match"):
        log_prob_logged(policy, log.replace(feature_names=("y", "x", "z")))
    with pytest.raises(ValueError, match="feature names must match"):
        policy.predict(pd.DataFrame(STATES, columns=["z", "y", "x"]))
    assert not hasattr(TorchPolicy(MODULES["logits"], "logits"), "feature_names_in_")


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (TorchPolicy(lambda x: x, "logits"), TypeError, "`module` must be a torch.nn.Module, got function"),  # type: ignore[arg-type]
        (TorchPolicy(nn.Identity(), "softmax"), ValueError, r"`kind` must be one of .*'logits'.*, got 'softmax'"),
        (TorchPolicy(nn.Identity(), "logits", action_labels=["a", "b"]), ValueError, r"shape \(40, 2\) for 40 states, got shape\(s\) \[\(40, 3\)\]"),
        (TorchPolicy(nn.Flatten(0), "logits"), ValueError, r"shape \(40, n_actions\) for 40 states, got shape\(s\) \[\(120,\)\]"),
        (TorchPolicy(nn.Unflatten(1, (3, 1)), "deterministic"), ValueError, r"shape \(40, k\) .*got shape\(s\) \[\(40, 3, 1\)\]"),
        (TorchPolicy(nn.Identity(), "gaussian"), ValueError, r"or one tensor of shape \(40, 2 k\), got shape\(s\) \[\(40, 3\)\]"),
        (TorchPolicy(nn.Identity(), "probabilities"), ValueError, "probabilities that sum to 1, got .* pass kind='logits'"),
        (TorchPolicy(MODULES["gaussian"], "deterministic"), ValueError, r"got shape\(s\) \[\(40, 2\), \(2,\)\]"),
        (TorchPolicy(nn.Linear(4, 2), "deterministic"), ValueError, r"must take states of shape \(40, 3\)"),
        (TorchPolicy(nn.Identity(), "deterministic", squash=True), ValueError, "`low` and `high` must both be given.*which squash= needs"),
        (TorchPolicy(nn.Identity(), "deterministic", low=1.0), ValueError, r"must both be given, numbers or arrays of shape \(3,\)"),
        (TorchPolicy(nn.Identity(), "deterministic", low=[1.0, 2.0], high=3.0), ValueError, r"arrays of shape \(3,\), got \[1.0, 2.0\]"),
        (TorchPolicy(nn.Identity(), "deterministic", low=1.0, high=1.0), ValueError, "`low` must be below `high`"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(policy: TorchPolicy, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"TorchPolicy: .*{message}"):
        policy.sample(STATES, 0)


def test_output_that_is_no_tensor_or_not_finite_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {"mean": x} if x[0, 0] > 0 else x / 0.0

    with pytest.raises(TypeError, match=r"must return one tensor of shape \(1, k\) for 1 states, got dict"):
        TorchPolicy(Odd(), "deterministic").predict([[1.0]])
    with pytest.raises(ValueError, match="must return finite numbers, got NaN or infinite ones at rows 0"):
        TorchPolicy(Odd(), "deterministic").predict([[-1.0]])
    with pytest.raises(TypeError, match="kind 'gaussian' has continuous actions and no probabilities"):
        TorchPolicy(MODULES["gaussian"], "gaussian").predict_proba(STATES)
    with pytest.raises(ValueError, match=r"`actions` must have shape \(40, 2\), got \(40,\)"):
        TorchPolicy(MODULES["gaussian"], "gaussian").log_prob(STATES, np.zeros(40))


BOUNDS: dict[str, Any] = {"low": [-30.0, -90.0], "high": [30.0, 90.0]}


@pytest.mark.parametrize(
    "policy",
    [
        TorchPolicy(
            foreign.linear(3, 3, 1, 0.1), "logits", action_labels=["c", "a", "b"], feature_names=["x", "y", "z"]
        ),
        TorchPolicy(nn.Sequential(foreign.linear(3, 3, 1, 0.1), nn.Softmax(dim=1)), "probabilities"),
        TorchPolicy(foreign.linear(3, 3, 1), "values", action_labels=LABELS),
        TorchPolicy(Pair(), "gaussian", feature_names=["x", "y", "z"]),
        TorchPolicy(nn.Sequential(foreign.linear(3, 4, 1, 0.1)), "gaussian", squash=True, **BOUNDS),
        TorchPolicy(nn.Sequential(foreign.linear(3, 4, 1, 0.1)), "gaussian", **BOUNDS),
        TorchPolicy(foreign.linear(3, 2, 1), "deterministic", **BOUNDS),
    ],
    ids=lambda policy: policy.kind,
)
def test_the_laws_of_policies_hold(policy: TorchPolicy) -> None:
    results = check_policy(policy, random_log(continuous=policy.kind in {"gaussian", "deterministic"}))
    assert sum(result.status == "passed" for result in results) >= 10


# -------------------------------------------------------------------- d3rlpy's interface


def scaled(states: Any) -> torch.Tensor:
    return (torch.from_numpy(states).float() - 0.5) / 2.0


def actor_of(one: Any) -> nn.Module:
    modules = one.impl.modules
    network: nn.Module = modules.policy if hasattr(modules, "policy") else modules.imitator
    return network.eval()


def in_environment(actions: torch.Tensor) -> Any:
    return np.array([-1.0, 0.0]) + (actions.double().numpy() + 1.0) / 2.0 * np.array([4.0, 10.0])


@pytest.mark.parametrize("name", ["DDPG", "TD3", "TD3PlusBC", "ReBRAC", "PRDC", "BC"])
def test_d3rlpy_deterministic(name: str) -> None:
    one = foreign.algo(name, policy_type="deterministic" if name == "BC" else None)
    policy = from_d3rlpy(one)
    assert policy.capabilities == {"sample", "deterministic"}
    with torch.no_grad():
        np.testing.assert_allclose(
            policy.predict(STATES), in_environment(actor_of(one)(scaled(STATES)).squashed_mu), atol=1e-5
        )


@pytest.mark.parametrize("name", ["SAC", "CQL", "CalQL", "BEAR"])
def test_d3rlpy_squashed(name: str) -> None:
    one = foreign.algo(name)
    policy = from_d3rlpy(one)
    unit = RNG.uniform(-0.99, 0.99, size=(40, 2))
    with torch.no_grad():
        output = actor_of(one)(scaled(STATES))
    z = (np.arctanh(unit) - output.mu.numpy()) / np.exp(output.logstd.numpy())
    density = -0.5 * z**2 - output.logstd.numpy() - 0.5 * np.log(2 * np.pi) - np.log(1 - unit**2)
    expected = (density - np.log([2.0, 5.0])).sum(axis=1)
    np.testing.assert_allclose(
        policy.log_prob(STATES, in_environment(torch.from_numpy(unit))), expected, rtol=1e-4, atol=1e-4
    )
    if name != "BEAR":
        sure = from_d3rlpy(one, deterministic=True)
        np.testing.assert_allclose(sure.predict(STATES), in_environment(output.squashed_mu), atol=1e-5)


@pytest.mark.parametrize("name", ["AWAC", "CRR", "IQL", "BC"])
def test_d3rlpy_clipped(name: str) -> None:
    one = foreign.algo(name, policy_type="stochastic" if name == "BC" else None)
    policy, actions = from_d3rlpy(one), RNG.normal(size=(40, 2)) * [2.0, 5.0] + [1.0, 5.0]
    with torch.no_grad():
        output = actor_of(one)(scaled(STATES))
    mean, std = in_environment(output.squashed_mu), np.exp(output.logstd.numpy()) * [2.0, 5.0]
    expected = [
        sum(-0.5 * ((a - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi) for a, m, s in zip(*row, strict=True))
        for row in zip(actions, mean, std, strict=True)
    ]
    np.testing.assert_allclose(policy.log_prob(STATES, actions), expected, rtol=1e-4)
    draws = policy.sample(np.repeat(STATES, 50, axis=0), 0)
    assert (draws >= [-1.0, 0.0]).all()
    assert (draws <= [3.0, 10.0]).all()
    assert (draws == [3.0, 10.0]).any()
    np.testing.assert_allclose(from_d3rlpy(one, deterministic=True).predict(STATES), mean, atol=1e-5)


def test_d3rlpy_without_scalers_acts_in_the_unit_range() -> None:
    one = foreign.algo("SAC", scaled=False)
    policy = from_d3rlpy(one)
    with torch.no_grad():
        expected = actor_of(one)(SMALL).squashed_mu
    np.testing.assert_allclose(from_d3rlpy(one, deterministic=True).predict(STATES), expected, atol=1e-6)
    assert np.abs(policy.sample(STATES, 0)).max() < 1.0


@pytest.mark.parametrize("name", ["BCQ", "BEAR"])
def test_d3rlpy_best_of_candidates_is_a_function_of_the_state(name: str) -> None:
    one = foreign.algo(name)
    policy = from_d3rlpy(one, deterministic=True, random_state=3)
    assert policy.capabilities == {"sample", "deterministic"}
    together = policy.predict(STATES)
    np.testing.assert_allclose(np.concatenate([policy.predict(row[None]) for row in STATES]), together, rtol=1e-6)
    assert not np.array_equal(from_d3rlpy(one, deterministic=True, random_state=4).predict(STATES), together)
    modules, noise = one.impl.modules, policy.module.get_buffer("noise").numpy()
    for network in (modules.policy, modules.vae_decoder, *modules.q_funcs):
        network.eval()
    for i, state in enumerate(STATES[:5]):
        x, best = scaled(state[None]), (-np.inf, torch.zeros(1, 2))
        for row in noise:
            drawn = torch.from_numpy(row[None])
            with torch.no_grad():
                if name == "BCQ":
                    action = modules.policy(x, modules.vae_decoder(x, drawn.clamp(-0.5, 0.5))).squashed_mu
                else:
                    action = torch.tanh(modules.policy(x).mu + modules.policy(x).logstd.exp() * drawn)
                best = max(best, (float(modules.q_funcs[0](x, action).q_value), action), key=lambda pair: pair[0])
        np.testing.assert_allclose(together[i], in_environment(best[1])[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["PLAS", "PLASWithPerturbation"])
def test_d3rlpy_latent_policies(name: str) -> None:
    one = foreign.algo(name)
    modules, x = one.impl.modules, scaled(STATES)
    policy = from_d3rlpy(one)
    for network in vars(modules).values():
        network.eval()
    with torch.no_grad():
        actions = modules.vae_decoder(x, 2.0 * modules.policy(x).squashed_mu)
        if name != "PLAS":
            actions = modules.perturbation(x, actions).squashed_mu
    np.testing.assert_allclose(policy.predict(STATES), in_environment(actions), rtol=1e-5)


@pytest.mark.parametrize("name", ["DiscreteBC", "DiscreteSAC"])
def test_d3rlpy_softmax(name: str) -> None:
    one = foreign.algo(name)
    policy = from_d3rlpy(one, action_labels=LABELS)
    with torch.no_grad():
        expected = actor_of(one)(scaled(STATES)).probs.double().numpy()
    np.testing.assert_allclose(policy.predict_proba(STATES), expected, atol=1e-6)
    greedy = from_d3rlpy(one, action_labels=LABELS, deterministic=True)
    assert greedy.predict_proba(STATES).max(axis=1).tolist() == [1.0] * 40
    assert greedy.predict(STATES).tolist() == [LABELS[i] for i in expected.argmax(axis=1)]


@pytest.mark.parametrize("name", ["DQN", "DoubleDQN", "NFQ", "DiscreteCQL", "DiscreteBCQ"])
def test_d3rlpy_greedy(name: str) -> None:
    one = foreign.algo(name)
    policy, x = from_d3rlpy(one, action_labels=LABELS), scaled(STATES)
    with torch.no_grad():
        q = 0.5 * (one.impl.modules.q_funcs[0](x).q_value + one.impl.modules.q_funcs[1](x).q_value).numpy()
        if name == "DiscreteBCQ":
            probs = one.impl.modules.imitator(x).probs.numpy()
            considered = probs / probs.max(axis=1, keepdims=True) > 0.3
            assert (~considered).any()
            assert (considered.sum(axis=1) > 1).any()
            q = np.where(considered, q, q - 1000.0)
    assert policy.predict(STATES).tolist() == [LABELS[i] for i in q.argmax(axis=1)]
    mask = np.ones((40, 3), dtype=bool)
    mask[np.arange(40), q.argmax(axis=1)] = False
    assert policy.predict(STATES, mask).tolist() == [LABELS[i] for i in np.where(mask, q, -np.inf).argmax(axis=1)]
    explored = EpsilonGreedy(policy, 0.3).predict_proba(STATES)
    np.testing.assert_allclose(explored.max(axis=1), 0.8)


def test_d3rlpy_subclasses_count_as_their_base() -> None:
    one = foreign.algo("TD3PlusBC")
    mine = type("Mine", (type(one),), {})()
    mine.__dict__.update(one.__dict__)
    np.testing.assert_array_equal(from_d3rlpy(mine).predict(STATES), from_d3rlpy(one).predict(STATES))


def test_d3rlpy_what_cannot_be_imported_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"from_d3rlpy: `algo` must be one of d3rlpy's .*'TD3PlusBC'.*got DecisionTransformer"
    ):
        from_d3rlpy(type("DecisionTransformer", (), {"impl": SimpleNamespace()})())
    with pytest.raises(ValueError, match="from_d3rlpy: `algo` must be built, got a CQL without networks"):
        from_d3rlpy(foreign.algo("CQL", built=False))
    curved = foreign.algo("CQL", action_scaler=foreign.Cubed([-1.0, 0.0], [3.0, 10.0]))
    with pytest.raises(TypeError, match=r"must have a linear action scaler.*got Cubed; pass deterministic=True"):
        from_d3rlpy(curved)
    with torch.no_grad():
        expected = actor_of(curved)(scaled(STATES)).squashed_mu ** 3
    np.testing.assert_allclose(
        from_d3rlpy(curved, deterministic=True).predict(STATES), in_environment(expected), atol=1e-5
    )
    with pytest.raises(ValueError, match="from_d3rlpy: `random_state` must be an integer of at least 0"):
        from_d3rlpy(foreign.algo("BCQ"), random_state=-1)


# -------------------------------------------------------------------- stable-baselines3's interface


BOX = foreign.Box([-1.0, 0.0], [3.0, 0.5])


def test_sb3_categorical_and_greedy() -> None:
    one = foreign.ActorCritic(foreign.Discrete(3))
    policy = from_sb3(SimpleNamespace(policy=one), action_labels=LABELS)
    with torch.no_grad():
        probs = one.get_distribution(SMALL).distribution.probs.double().numpy()
    np.testing.assert_allclose(policy.predict_proba(STATES), probs, atol=1e-6)
    assert from_sb3(one, deterministic=True).predict(STATES).tolist() == probs.argmax(axis=1).tolist()
    greedy = foreign.Greedy()
    cells = np.array([[0.0], [3.0], [1.0]])
    with torch.no_grad():
        q = greedy.q_net(torch.tensor([0.0, 3.0, 1.0]))
    assert from_sb3(SimpleNamespace(policy=greedy)).predict(cells).tolist() == q.argmax(dim=1).tolist()


def test_sb3_gaussian_is_clipped_to_the_box() -> None:
    one = foreign.ActorCritic(BOX)
    policy, actions = from_sb3(SimpleNamespace(policy=one)), RNG.normal(size=(40, 2))
    with torch.no_grad():
        law = one.get_distribution(SMALL).distribution
    expected = law.log_prob(torch.from_numpy(actions)).sum(dim=1).numpy()
    np.testing.assert_allclose(policy.log_prob(STATES, actions), expected, rtol=1e-5)
    draws = policy.sample(STATES, 0)
    np.testing.assert_array_equal(draws, np.clip(draws, BOX.low, BOX.high))
    sure = from_sb3(one, deterministic=True).predict(STATES)
    np.testing.assert_allclose(sure, np.clip(law.mean.numpy(), BOX.low, BOX.high), rtol=1e-6)


@pytest.mark.parametrize("critic", [False, True])
def test_sb3_squashed_gaussian_is_stretched_to_the_box(critic: bool) -> None:
    actor = foreign.SacActor()
    one = foreign.ActorCritic(BOX, squash=True) if critic else foreign.WithActor(actor, BOX)
    policy = from_sb3(SimpleNamespace(policy=one))
    with torch.no_grad():
        law = (
            one.get_distribution(SMALL).distribution
            if isinstance(one, foreign.ActorCritic)
            else torch.distributions.Normal(actor.mu(SMALL), actor.log_std(SMALL).exp())
        )
    unit = RNG.uniform(-0.9, 0.9, size=(40, 2))
    raw_density = law.log_prob(torch.from_numpy(np.arctanh(unit))).numpy()
    expected = (raw_density - np.log(1 - unit**2) - np.log([2.0, 0.25])).sum(axis=1)
    actions = BOX.low + (unit + 1.0) / 2.0 * (BOX.high - BOX.low)
    np.testing.assert_allclose(policy.log_prob(STATES, actions), expected, rtol=1e-4, atol=1e-5)
    mode = BOX.low + (np.tanh(law.mean.numpy()) + 1.0) / 2.0 * (BOX.high - BOX.low)
    np.testing.assert_allclose(from_sb3(one, deterministic=True).predict(STATES), mode, atol=1e-6)


def test_sb3_deterministic_actor_is_stretched_to_the_box_and_squashed_once() -> None:
    actor = nn.Sequential(foreign.linear(3, 2, 0), nn.Tanh())
    policy = from_sb3(SimpleNamespace(policy=foreign.WithActor(actor, BOX)))
    assert policy.capabilities == {"sample", "deterministic"}
    with torch.no_grad():
        expected = BOX.low + (actor(SMALL).numpy() + 1.0) / 2.0 * (BOX.high - BOX.low)
    np.testing.assert_allclose(policy.predict(STATES), expected, atol=1e-6)


def test_sb3_normalised_observations_must_be_spoken_for() -> None:
    one = foreign.ActorCritic(foreign.Discrete(3))
    model = foreign.Normalized(one)
    with pytest.raises(ValueError, match=r"`vec_normalize` must be given .*get_vec_normalize_env\(\)"):
        from_sb3(model)
    bare = from_sb3(model, vec_normalize=False)
    normalised = from_sb3(model, vec_normalize=model.get_vec_normalize_env())
    seen = model.normalize_obs(STATES)
    assert (np.abs(seen) == 1.0).any()
    np.testing.assert_allclose(normalised.predict_proba(STATES), bare.predict_proba(seen), atol=1e-6)
    quiet = foreign.Normalized()
    quiet.norm_obs = False
    np.testing.assert_array_equal(from_sb3(one, vec_normalize=quiet).predict_proba(STATES), bare.predict_proba(STATES))


def test_sb3_what_cannot_be_imported_is_named() -> None:
    with pytest.raises(
        TypeError, match="from_sb3: `model` must be a model of stable-baselines3 or its policy, got int"
    ):
        from_sb3(3)
    several = foreign.ActorCritic(foreign.MultiDiscrete())
    with pytest.raises(TypeError, match=r"Discrete or Box space .* got ActorCritic in MultiDiscrete"):
        from_sb3(several)
    recurrent = foreign.ActorCritic(foreign.Discrete(3))
    recurrent.lstm_actor = nn.LSTM(1, 1)
    with pytest.raises(TypeError, match="got ActorCritic in Discrete; wrap its network in TorchPolicy"):
        from_sb3(recurrent)


@pytest.mark.parametrize(
    "policy",
    [
        from_d3rlpy(foreign.algo("CQL", action_scaler=foreign.MinMax([-99.0, -99.0], [99.0, 99.0]))),
        from_d3rlpy(foreign.algo("BCQ")),
        from_d3rlpy(foreign.algo("DiscreteBCQ"), action_labels=LABELS),
        from_sb3(foreign.ActorCritic(foreign.Discrete(3))),
        from_sb3(foreign.WithActor(foreign.SacActor(), foreign.Box([-50.0, -50.0], [50.0, 50.0]))),
    ],
    ids=["CQL", "BCQ", "DiscreteBCQ", "PPO", "SAC"],
)
def test_imported_policies_obey_the_laws(policy: TorchPolicy) -> None:
    log = random_log(continuous=policy.kind in {"gaussian", "deterministic"})
    # States of the log's scale saturate networks of a few weights.
    log = log.replace(states=log.states * [1.0, 0.1, 10.0])
    assert sum(result.status == "passed" for result in check_policy(policy, log)) >= 10


# -------------------------------------------------------------------- the libraries themselves


DISCRETE = (*SOFTMAX, *GREEDY)
CONTINUOUS = (*SQUASHED, *CLIPPED, *SURE)


def obey_laws(policy: TorchPolicy, log: Any) -> None:
    clipped = policy.kind == "gaussian" and policy.low is not None and not policy.squash
    for name, check in policy_checks(policy, log):
        # Draws that pile up at the bounds have no density there.
        if not (clipped and name == "sample"):
            with contextlib.suppress(SkipTest):
                check()


def d3rlpy_algo(name: str, **config: Any) -> Any:
    """Train d3rlpy's algorithm for five steps on scaled observations and actions."""
    d3rlpy = pytest.importorskip("d3rlpy")
    structlog = pytest.importorskip("structlog")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    log = random_log(30, 10, continuous=name in CONTINUOUS)
    ends = np.zeros(300, dtype=np.float32)
    ends[9::10] = 1.0
    columns = (log.states.astype(np.float32), log.actions, log.rewards.astype(np.float32), ends)
    actions = columns[1].astype(np.float32) if name in CONTINUOUS else columns[1].astype(np.int64)
    data = d3rlpy.dataset.MDPDataset(columns[0], actions, columns[2], columns[3])
    scalers = {"observation_scaler": d3rlpy.preprocessing.StandardObservationScaler()}
    if name in CONTINUOUS:
        scalers["action_scaler"] = d3rlpy.preprocessing.MinMaxActionScaler()
    one = getattr(d3rlpy.algos, f"{name}Config")(batch_size=16, **scalers, **config).create(device="cpu:0")
    quiet = d3rlpy.logging.NoopAdapterFactory()
    one.fit(data, n_steps=5, n_steps_per_epoch=5, show_progress=False, logger_adapter=quiet)
    return one


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*CONTINUOUS, *DISCRETE])
def test_real_d3rlpy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = d3rlpy_algo(name, **({"n_action_samples": 8} if name in {"BCQ", "BEAR"} else {}))
    log = random_log(30, 10, continuous=name in CONTINUOUS)
    policy = from_d3rlpy(one, deterministic=True, action_labels=None if name in CONTINUOUS else LABELS)
    states = log.states[:50].astype(np.float32)
    if name in {"BCQ", "BEAR"}:
        # d3rlpy draws candidates state by state: hand it ours, the same for every state.
        noise = policy.module.get_buffer("noise")
        drawn = noise.repeat(50, 1) if name == "BCQ" else noise.expand(50, -1, -1)
        monkeypatch.setattr(torch, "randn", lambda *_, **__: drawn)
    found, expected = policy.predict(states), one.predict(states)
    if name in CONTINUOUS and name != "CRR":
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    elif name in DISCRETE:
        assert found.tolist() == [LABELS[code] for code in expected]
    obey_laws(from_d3rlpy(one, action_labels=policy.action_labels), log)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["SAC", "CQL", "IQL", "AWAC", "BC"])
def test_real_d3rlpy_densities(name: str) -> None:
    d3rlpy_policies = pytest.importorskip("d3rlpy.models.torch.policies")
    one = d3rlpy_algo(name, **({"policy_type": "stochastic"} if name == "BC" else {}))
    log = random_log(30, 10, continuous=True)
    states = torch.from_numpy(log.states).float()
    scaler, actor = one.config.action_scaler, actor_of(one)
    form = "squashed_gaussian" if name in {"SAC", "CQL"} else "gaussian"
    with torch.no_grad():
        output = actor(one.config.observation_scaler.transform(states))
        law = getattr(d3rlpy_policies, f"build_{form}_distribution")(output)
        actions = law.sample().clamp(-0.99, 0.99)
        expected = law.log_prob(actions)[:, 0].double().numpy()
    slope = np.log(0.5 * (scaler.maximum - scaler.minimum)).sum()
    in_unit = scaler.reverse_transform(actions).double().numpy()
    found = from_d3rlpy(one).log_prob(log.states, in_unit)
    np.testing.assert_allclose(found, expected - slope, rtol=2e-4, atol=2e-4)


def sb3_env(continuous: bool) -> Any:
    gymnasium = pytest.importorskip("gymnasium")

    class Env(gymnasium.Env):  # type: ignore[misc, name-defined]
        observation_space = gymnasium.spaces.Box(-50.0, 50.0, (3,))
        action_space = gymnasium.spaces.Box(BOX.low, BOX.high) if continuous else gymnasium.spaces.Discrete(3)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed, options=options)
            self.t = 0
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.t += 1
            return self.observation_space.sample(), float(np.sum(action)), self.t >= 5, False, {}

    return Env


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(
    "name", ["PPO", "A2C", "DQN", "PPO box", "A2C box", "PPO sde", "SAC", "SAC sde", "TD3", "DDPG"]
)
def test_real_sb3(name: str, normalised: bool) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    discrete = name in {"PPO", "A2C", "DQN"}
    env = vec_env.DummyVecEnv([sb3_env(not discrete)])
    env = vec_env.VecNormalize(env) if normalised else env
    options: dict[str, Any] = {"n_steps": 32, "batch_size": 16} if name.startswith("PPO") else {}
    options |= {"use_sde": True} if name.endswith("sde") else {}
    model = getattr(sb3, name.split()[0])("MlpPolicy", env, seed=0, device="cpu", **options).learn(130)
    states = np.random.default_rng(0).uniform(-40, 40, size=(50, 3)).astype(np.float32)
    seen = env.normalize_obs(states) if normalised else states
    vec_normalize = env if normalised else None
    sure = from_sb3(model, deterministic=True, vec_normalize=vec_normalize)
    np.testing.assert_allclose(sure.predict(states), model.predict(seen, deterministic=True)[0], atol=1e-5)
    policy = from_sb3(model, vec_normalize=vec_normalize)
    if hasattr(model.policy, "get_distribution"):
        with torch.no_grad():
            law = model.policy.get_distribution(torch.from_numpy(seen))
            actions = law.sample()
            expected = law.log_prob(actions).numpy()
        np.testing.assert_allclose(policy.log_prob(states, actions.numpy()), expected, rtol=1e-4, atol=1e-4)
    log = random_log(continuous=not discrete)
    obey_laws(policy.set_params(action_labels=LABELS) if discrete else policy, log)
