"""The forms of cloning: mixtures, and a share of the log, its best episodes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import SMALL, batch_of, plain, random_log, same_gradients, same_policy
from scipy import integrate, stats
from test_gridworld import BEHAVIOR, SETTINGS, N, grid_log, value_of

from ope.dataset import LoggedDataset
from ope.neural.history import Outcome
from ope.neural.serialization import POLICY_KIND, load_policy, read_sealed, write_sealed
from ope.policies._distributions import MixtureNormal
from ope.policies._runs import TRAINING_KIND, LearnerEvent
from ope.policies.behavior_cloning import BehaviorCloning, CloningStep, top_weights
from ope.policy import log_prob_logged

NEW = ("form", "n_components", "top_share", "action_bounds")

# -------------------------------------------------------------------- the distribution


def example() -> MixtureNormal:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet([1.0, 1.0, 1.0], size=4)
    return MixtureNormal(np.log(weights), rng.normal(size=(4, 3, 2)), rng.uniform(0.2, 1.5, size=(4, 3, 2)))


def test_density_equals_the_sum_over_components_and_draws_have_it() -> None:
    law, rng = example(), np.random.default_rng(1)
    actions = rng.normal(size=(4, 2))
    for i in range(4):
        total = sum(
            math.exp(law.log_weights[i, c]) * math.prod(stats.norm.pdf(actions[i], law.location[i, c], law.std[i, c]))
            for c in range(3)
        )
        assert law.log_density(actions)[i] == pytest.approx(math.log(total), rel=1e-10)
    draws = np.stack([law.sample(rng) for _ in range(8000)])
    np.testing.assert_allclose(draws.mean(axis=0), law.mean(), atol=4 * 2.5 / math.sqrt(8000))
    # The probability integral transform of the first dimension is uniform.
    parts = stats.norm.cdf(draws[:, :, None, 0], law.location[:, :, 0], law.std[:, :, 0])
    ranks = np.einsum("snc,nc->sn", parts, np.exp(law.log_weights))
    assert all(stats.kstest(ranks[:, i], "uniform").pvalue > 0.001 for i in range(4))
    # Dimensions depend on each other through the component alone.
    product = np.einsum("nc,nc->n", np.exp(law.log_weights), law.location.prod(axis=2))
    np.testing.assert_allclose(draws.prod(axis=2).mean(axis=0), product, atol=4 * 4.0 / math.sqrt(8000))
    assert law.nodes() is None


def test_density_integrates_to_one_and_a_far_action_has_a_finite_log_density() -> None:
    law = MixtureNormal(np.log([[0.3, 0.7]]), np.array([[[-2.0], [1.0]]]), np.array([[[0.1], [0.8]]]))
    grid = np.linspace(-8, 8, 20001)
    many = MixtureNormal(*(np.repeat(part, 20001, axis=0) for part in (law.log_weights, law.location, law.std)))
    assert float(integrate.trapezoid(np.exp(many.log_density(grid[:, None])), grid)) == pytest.approx(1.0, abs=1e-8)
    assert np.isfinite(law.log_density(np.array([[1e4]])))


# -------------------------------------------------------------------- mixtures


def test_mixture_loss_and_gradients_equal_a_plain_loop() -> None:
    batch = batch_of(random_log(continuous=True), 2)
    learners = [BehaviorCloning(hidden=(8,), form="mixture", n_components=3, random_state=k) for k in (0, 1)]
    step = BehaviorCloning._step(learners, batch.transitions, [0, 1])
    assert isinstance(step, CloningStep)
    expected = []
    for k in range(2):
        terms = []
        for i in range(24):
            output = plain(step.policy, k, batch.states[k, i])
            weights = torch.exp(output[:3]) / torch.exp(output[:3]).sum()
            density = torch.zeros(())
            for c in range(3):
                part = output[3 + 4 * c : 7 + 4 * c]
                std = torch.exp(-5 + 3.5 * (1 + torch.tanh(part[2:])))
                z = (batch.actions[k, i] - part[:2]) / std
                density = density + weights[c] * torch.prod(torch.exp(-(z**2) / 2) / (std * math.sqrt(2 * math.pi)))
            terms.append(-torch.log(density))
        expected.append(torch.stack(terms).mean())
    same_gradients(step.losses(batch)["loss"], torch.stack(expected), [step.policy])


def test_actions_far_from_all_components_have_a_finite_loss_and_gradient() -> None:
    batch = batch_of(random_log(continuous=True), 1)
    step = BehaviorCloning._step([BehaviorCloning(hidden=(8,), form="mixture")], batch.transitions, [0])
    assert isinstance(step, CloningStep)
    batch.__dict__["actions"] = torch.full_like(batch.actions, 1e3)
    loss = step.losses(batch)["loss"].sum()
    gradients = torch.autograd.grad(loss, list(step.policy.parameters.views.values()))
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def two_sided_log(n: int = 2000) -> LoggedDataset:
    """Actions around 200 + 100 s with probability .3, else around -300 - 200 s: none in between."""
    rng = np.random.default_rng(0)
    states, right = rng.uniform(-1, 1, (n, 1)), rng.random(n) < 0.3
    mean = np.where(right, 200 + 100 * states[:, 0], -300 - 200 * states[:, 0])
    actions = mean + np.where(right, 30.0, 20.0) * rng.normal(size=n)
    return LoggedDataset.from_arrays(states, actions[:, None], np.zeros(n), lengths=[1] * n, ends="terminal")


def test_a_mixture_finds_both_modes_of_a_behaviour_in_the_unit_of_the_actions() -> None:
    log = two_sided_log()
    settings: dict[str, Any] = {"hidden": (32,), "n_updates": 500, "batch_size": 128, "learning_rate": 5e-3}
    policy = BehaviorCloning(**settings, form="mixture", n_components=3).fit(log)
    s = log.states[:, 0]
    densities = 0.3 * stats.norm.pdf(log.actions[:, 0], 200 + 100 * s, 30) + 0.7 * stats.norm.pdf(
        log.actions[:, 0], -300 - 200 * s, 20
    )
    truth = float(np.log(densities).mean())
    assert truth - 0.15 < policy.score(log) < truth + 0.02
    assert BehaviorCloning(**settings).fit(log).score(log) < truth - 1.0
    draws = policy.sample(np.zeros((4000, 1)), 0)[:, 0]
    assert float(np.mean(draws > 0)) == pytest.approx(0.3, abs=0.05)
    assert float(np.mean((draws > -200) & (draws < 100))) < 0.02
    assert float(policy.predict([[0.0]])[0, 0]) == pytest.approx(0.3 * 200 - 0.7 * 300, abs=40.0)
    np.testing.assert_array_equal(log_prob_logged(policy, log), policy.log_prob(log.states, log.actions))
    assert policy.capabilities == {"logged_prob", "density", "sample"}
    # What the fitted network means, it says itself.
    before = policy.predict(log.states)
    policy.set_params(form="gaussian", n_components=9)
    np.testing.assert_array_equal(policy.predict(log.states), before)


def test_one_component_is_a_gaussian() -> None:
    log = random_log(continuous=True)
    policy = BehaviorCloning(**SMALL, form="mixture", n_components=1).fit(log)
    law = policy._distribution(log.states)
    assert isinstance(law, MixtureNormal)
    assert float(np.abs(law.log_weights).max()) == 0.0
    assert policy.score(log) == pytest.approx(BehaviorCloning(**SMALL).fit(log).score(log), abs=0.5)


# -------------------------------------------------------------------- one action a state


def test_squared_loss_and_gradients_equal_a_plain_loop() -> None:
    batch = batch_of(random_log(continuous=True), 2)
    learners = [BehaviorCloning(hidden=(8,), form="deterministic", random_state=k) for k in (0, 1)]
    step = BehaviorCloning._step(learners, batch.transitions, [0, 1])
    assert isinstance(step, CloningStep)
    expected = []
    for k in range(2):
        total = torch.zeros(())
        for i in range(24):
            for d in range(2):
                error = torch.tanh(plain(step.policy, k, batch.states[k, i])[d]) - batch.actions[k, i, d]
                total = total + error**2 / 48
        expected.append(total)
    same_gradients(step.losses(batch)["loss"], torch.stack(expected), [step.policy])


def test_the_deterministic_form_is_the_mean_action_within_its_range() -> None:
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (2000, 1))
    # The noise depends on the state: a Gaussian fitted by likelihood would weigh the states by it.
    actions = 200.0 + 100.0 * states + np.where(states > 0, 40.0, 5.0) * rng.uniform(-1, 1, (2000, 1))
    log = LoggedDataset.from_arrays(states, actions, np.zeros(2000), lengths=[1] * 2000, ends="terminal")
    settings: dict[str, Any] = {"hidden": (32,), "n_updates": 800, "batch_size": 128, "learning_rate": 5e-3}
    policy = BehaviorCloning(**settings, form="deterministic").fit(log)
    probes = np.array([[-0.8], [-0.3], [0.3], [0.8]])
    np.testing.assert_allclose(policy.predict(probes)[:, 0], 200.0 + 100.0 * probes[:, 0], atol=8.0)
    assert policy.capabilities == {"sample", "deterministic"}
    np.testing.assert_array_equal(policy.sample(probes, 0), policy.predict(probes))
    noise = np.mean(np.where(states > 0, 40.0, 5.0) ** 2 / 3.0)
    assert policy.score(log) == pytest.approx(-noise, rel=0.1)
    assert policy.predict([[50.0]])[0, 0] <= actions.max() + 1e-6
    wide = BehaviorCloning(**settings, form="deterministic", action_bounds=(-1000.0, 1000.0)).fit(log)
    np.testing.assert_allclose(wide.predict(probes)[:, 0], 200.0 + 100.0 * probes[:, 0], atol=12.0)
    with pytest.raises(ValueError, match="BehaviorCloning: `action_bounds` must hold every logged action"):
        BehaviorCloning(**settings, form="deterministic", action_bounds=(0.0, 100.0)).fit(log)
    # What the fitted network means, it says itself.
    before = policy.predict(log.states)
    policy.set_params(form="gaussian", n_components=9)
    np.testing.assert_array_equal(policy.predict(log.states), before)


def test_discrete_actions_have_a_softmax_whatever_the_form() -> None:
    log = random_log()
    same_policy(BehaviorCloning(**SMALL, form="deterministic").fit(log), BehaviorCloning(**SMALL).fit(log))


def test_a_run_file_from_before_a_parameter_resumes_with_its_default(tmp_path: Path) -> None:
    log, path = random_log(continuous=True), tmp_path / "run"
    with pytest.warns(UserWarning, match="interrupted"):
        BehaviorCloning(**SMALL, checkpoint_path=path, callbacks=[interrupt]).fit(log)
    arrays, run = read_sealed(path, TRAINING_KIND, "test")
    for name in NEW:
        del run["settings"][name]
    write_sealed(path, TRAINING_KIND, arrays, run)
    same_policy(BehaviorCloning(**SMALL).resume(log, path), BehaviorCloning(**SMALL).fit(log))
    with pytest.raises(ValueError, match=r'settings must be those of the run \(form="gaussian"\)'):
        BehaviorCloning(**SMALL, form="mixture").resume(log, path)


# -------------------------------------------------------------------- the best episodes


@pytest.mark.parametrize(
    ("returns", "lengths", "share", "weights"),
    [
        ([1.0, 5.0, 3.0, 4.0], [3] * 4, 0.5, [0, 1, 0, 1]),
        ([1.0, 5.0, 3.0, 4.0], [3] * 4, 0.3, [0, 1, 0, 0.2]),
        ([1.0, 5.0, 3.0, 4.0], [3] * 4, 0.01, [0, 0.04, 0, 0]),
        ([1.0, 5.0, 3.0, 4.0], [10, 60, 10, 20], 0.7, [0, 1, 0, 0.5]),
        ([1.0, 5.0, 3.0, 4.0], [90, 1, 8, 1], 0.1, [0, 1, 1, 1]),
        ([2.0, 2.0, 2.0, 2.0], [1, 2, 3, 4], 0.5, [0.5, 0.5, 0.5, 0.5]),
        ([0.0, 1.0, 0.0, 0.0], [2, 2, 1, 3], 0.5, [1 / 3, 1, 1 / 3, 1 / 3]),
        (list(range(100)), [7] * 100, 0.07, [0] * 93 + [1] * 7),  # 0.07 * 700 is above 49 in floating point
    ],
)
def test_weights_of_the_best_episodes(
    returns: list[float], lengths: list[int], share: float, weights: list[float]
) -> None:
    found = top_weights(np.array(returns), np.array(lengths), share)
    np.testing.assert_allclose(found, weights, atol=1e-12)
    assert found @ np.array(lengths) == pytest.approx(share * sum(lengths))


def mixed_log() -> LoggedDataset:
    """Episodes of 1 to 3 steps; "b" in the two with returns of 5, long ones of many small rewards among them."""
    return LoggedDataset.from_arrays(
        np.zeros((12, 1)),
        ["a", "a", "a", "b", "b", "b", "a", "b", "a", "a", "a", "a"],
        [1.0, 1.0, 2.0, 1.0, 2.0, 2.0, 3.0, 5.0, 2.0, 2.0, 0.0, -1.0],
        lengths=[3, 3, 1, 1, 2, 2],
        ends="terminal",
    )


def test_only_the_best_episodes_are_imitated_by_their_undiscounted_returns() -> None:
    log = mixed_log()
    settings: dict[str, Any] = {"hidden": (8,), "n_updates": 300, "batch_size": 256, "learning_rate": 0.01}
    top = BehaviorCloning(**settings, top_share=1 / 3).fit(log)
    assert top.n_episodes_used_ == 2
    assert float(top.predict_proba([[0.0]])[0, 1]) > 0.98
    everything = BehaviorCloning(**settings).fit(log)
    assert everything.n_episodes_used_ == 6
    assert float(everything.predict_proba([[0.0]])[0, 1]) == pytest.approx(1 / 3, abs=0.03)
    # Third is a tie of two at 4, which share what is left of 6 rows: 2 of "a" beside 4 of "b".
    half = BehaviorCloning(**settings, top_share=0.5).fit(log)
    assert half.n_episodes_used_ == 4
    assert float(half.predict_proba([[0.0]])[0, 1]) == pytest.approx(4 / 6, abs=0.04)
    # Episodes that may be chosen count as seen in training, chosen or not.
    np.testing.assert_array_equal(top.training_episode_keys_, everything.training_episode_keys_)


def test_the_best_episodes_beat_all_of_a_poor_log() -> None:
    # The best are the short ones that reach the goal soon: 3 % of the transitions are more than 3 % of the episodes.
    log = grid_log()
    learned = BehaviorCloning(**SETTINGS, top_share=0.03).fit(log)
    assert learned.n_episodes_used_ >= 15
    assert value_of(learned.predict_proba(np.eye(N))) > value_of(np.tile(BEHAVIOR, (N, 1))) + 3.0


def test_a_share_of_one_is_all_episodes_to_the_bit() -> None:
    log = random_log()
    same_policy(BehaviorCloning(**SMALL, top_share=1.0).fit(log), BehaviorCloning(**SMALL).fit(log))


# -------------------------------------------------------------------- the laws, for the new forms


FORMS = [
    pytest.param({"form": "mixture", "n_components": 3}, True, id="mixture"),
    pytest.param({"form": "deterministic", "action_bounds": ((-9.0, -99.0), (9.0, 99.0))}, True, id="deterministic"),
    pytest.param({"top_share": 0.3}, False, id="best, discrete"),
    pytest.param({"form": "mixture", "top_share": 0.3}, True, id="best, mixture"),
]


def interrupt(event: LearnerEvent) -> None:
    if event.update == 60:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("form", "continuous"), FORMS)
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(
    form: dict[str, Any], continuous: bool, tmp_path: Path
) -> None:
    log, path = random_log(continuous=continuous), tmp_path / "run"
    learner = BehaviorCloning(**SMALL, **form, checkpoint_path=path, callbacks=[interrupt])
    with pytest.warns(UserWarning, match="training interrupted after 60 of 120 updates"):
        learner.fit(log)
    assert learner.status_.outcome is Outcome.INTERRUPTED
    same_policy(BehaviorCloning(**SMALL, **form).resume(log, path), BehaviorCloning(**SMALL, **form).fit(log))


@pytest.mark.parametrize(("form", "continuous"), FORMS)
def test_a_file_holds_the_whole_policy(form: dict[str, Any], continuous: bool, tmp_path: Path) -> None:
    log = random_log(continuous=continuous)
    learner = BehaviorCloning(**SMALL, **form, checkpoints=1).fit(log)
    learner.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    same_policy(loaded, learner)
    assert loaded.get_params() == learner.get_params()
    assert loaded.n_episodes_used_ == learner.n_episodes_used_ == learner.checkpoints_[0].n_episodes_used_
    assert loaded.n_episodes_used_ == (12 if "top_share" in form else 40)
    if "logged_prob" in learner.capabilities:
        np.testing.assert_array_equal(log_prob_logged(loaded, log), log_prob_logged(learner, log))
    np.testing.assert_array_equal(loaded.sample(log.states, 0), learner.sample(log.states, 0))


@pytest.mark.parametrize(("form", "continuous"), FORMS)
def test_many_side_by_side_are_what_each_is_alone(form: dict[str, Any], continuous: bool) -> None:
    log = random_log(continuous=continuous)
    learners = [BehaviorCloning(**SMALL, **form, random_state=seed) for seed in (0, 1)]
    together = BehaviorCloning.fit_many(log, [*learners, BehaviorCloning(**SMALL)])
    for learner, seed in zip(together[:2], (0, 1), strict=True):
        alone = BehaviorCloning(**SMALL, **form, random_state=seed).fit(log)
        ours, theirs = (policy.networks_["policy"].parameters.flat for policy in (learner, alone))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert together[2].n_episodes_used_ == 40


@pytest.mark.parametrize("continuous", [False, True])
def test_a_file_from_before_the_new_parameters_loads_with_their_defaults(continuous: bool, tmp_path: Path) -> None:
    log = random_log(continuous=continuous)
    learner = BehaviorCloning(**SMALL).fit(log)
    learner.save(tmp_path / "new")
    arrays, metadata = read_sealed(tmp_path / "new", POLICY_KIND, "test")
    for name in NEW:
        del metadata["params"][name]
    del metadata["attributes"]["n_episodes_used"]
    write_sealed(tmp_path / "old", POLICY_KIND, arrays, metadata)
    loaded = load_policy(tmp_path / "old")
    same_policy(loaded, learner)
    assert [getattr(loaded, name) for name in NEW] == ["gaussian", 5, None, None]
    assert loaded.n_episodes_used_ == 40
    np.testing.assert_array_equal(loaded.predict(log.states), learner.predict(log.states))


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        (
            {"form": "flow"},
            ValueError,
            "BehaviorCloning: `form` must be 'gaussian', 'mixture' or 'deterministic', got 'flow'; pass one",
        ),
        (
            {"form": None},
            ValueError,
            "BehaviorCloning: `form` must be 'gaussian', 'mixture' or 'deterministic', got None; pass one",
        ),
        ({"action_bounds": (0, 1)}, ValueError, "BehaviorCloning: `action_bounds` must be None with form='gaussian'"),
        ({"n_components": 0}, ValueError, r"BehaviorCloning: `n_components` must be an integer in \[1, inf\), got 0"),
        ({"top_share": 0.0}, ValueError, r"BehaviorCloning: `top_share` must be a number in \(0, 1\] or None, got 0.0"),
        ({"top_share": "10 %"}, TypeError, "BehaviorCloning: `top_share` must be a number"),
    ],
)
def test_settings_out_of_bounds(setting: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BehaviorCloning(**{**SMALL, **setting}).fit(random_log(4))
