"""BRAC: the clone, divergences, losses and gradients against plain loops, its phases, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, plain_squared_mmd, random_log, same_gradients, unlike

from ope.neural.generators import derive_seed
from ope.neural.networks import MLP
from ope.neural.transitions import Batch
from ope.policies._brac_step import BRACStep
from ope.policies.behavior_cloning import BehaviorCloning
from ope.policies.brac import BRAC

ALPHAS, SIZE = (0.4, 3.0), 12
SMALL: dict[str, Any] = {"hidden": (7,), "actor_hidden": (6,), "gamma": 0.9, "min_weight": 0.75}


def brac_step(**settings: Any) -> tuple[BRACStep, Batch]:
    """A step past its clone and its warm start."""
    batch = batch_of(random_log(continuous=True), 2, SIZE)
    learners = [BRAC(**{**SMALL, **settings}, n_divergence_samples=3, alpha=alpha) for alpha in ALPHAS]
    step = BRAC._step(learners, batch.transitions, [0, 1])
    assert isinstance(step, BRACStep)
    unlike(step.q_target.network)
    step.counts["updates"] = 10_000
    return step, batch


def plain_law(network: MLP, k: int, state: torch.Tensor) -> Any:
    """The normal before the tanh: log standard deviations within [-5, 0] by a tanh."""
    mean, output = plain(network, k, state).chunk(2)
    return torch.distributions.Normal(mean, torch.exp(-5 + 2.5 * (torch.tanh(output) + 1)))


def plain_log_prob(law: Any, u: torch.Tensor) -> torch.Tensor:
    """Log density of tanh(u)."""
    return torch.as_tensor((law.log_prob(u) + 2 * torch.log(torch.cosh(u))).sum())


def plain_divergence(
    step: BRACStep, k: int, state: torch.Tensor, actions: torch.Tensor, u: torch.Tensor, others: torch.Tensor
) -> torch.Tensor:
    if step.form.kernel is not None:
        return plain_squared_mmd(actions, others, step.form.kernel.name, step.form.kernel.sigma)
    policy = plain_law(step.actor, k, state)
    with torch.no_grad():
        clone = plain_law(step.behavior, k, state)
    clipped = torch.atanh(actions.clamp(-1 + 1e-3, 1 - 1e-3))
    terms = [plain_log_prob(policy, u[j]) - plain_log_prob(clone, clipped[j]) for j in range(len(u))]
    return torch.stack(terms).mean()


class Noise:
    """Normal numbers that a test knows: the n-th call of a step gets the n-th ones."""

    def __init__(self, step: BRACStep) -> None:
        self.given: list[torch.Tensor] = []
        step.normal = self.draw  # type: ignore[method-assign]

    def draw(self, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(self.given))
        noise = torch.randn(2, *shape, generator=generator)
        self.given.append(noise.view(2, -1, SIZE, 2))
        return noise

    def clone_actions(self, step: BRACStep, k: int, i: int, state: torch.Tensor) -> torch.Tensor:
        if step.form.kernel is None:
            return torch.empty(0)
        law = plain_law(step.behavior, k, state)
        return torch.tanh(law.mean + law.stddev * self.given[1][k, :, i]).detach()


def mixed(values: list[torch.Tensor]) -> torch.Tensor:
    return 0.75 * torch.minimum(*values) + 0.25 * torch.maximum(*values)


# -------------------------------------------------------------------- the clone


def test_cloning_loss_and_gradients_equal_a_plain_loop() -> None:
    step, batch = brac_step()
    weight = step.variables["behavior_entropy"].constants["behavior_entropy"]
    assert weight.tolist() == [[1.0], [1.0]]
    weight.fill_(0.3)
    noise = torch.randn(2, SIZE, 2, generator=torch.Generator().manual_seed(4))
    expected, clipped = [], 0
    for k in range(2):
        terms = []
        for i in range(SIZE):
            law = plain_law(step.behavior, k, batch.states[k, i])
            logged = batch.actions[k, i].clamp(-1 + 1e-3, 1 - 1e-3)
            clipped += int((logged != batch.actions[k, i]).sum())
            drawn = plain_log_prob(law, law.mean + law.stddev * noise[k, i])
            terms.append(0.3 * drawn - plain_log_prob(law, torch.atanh(logged)))
        expected.append(torch.stack(terms).mean())
    same_gradients(step.cloning_loss(batch, noise)[0], torch.stack(expected), [step.behavior])


def test_the_clone_comes_first_and_stays_as_it_is() -> None:
    step, batch = brac_step(behavior_updates=30, behavior_learning_rate=0.02)
    step.counts["updates"] = 0
    start = {name: network.parameters.flat.clone() for name, network in step.networks.items()}
    first = step.update(batch)
    for _ in range(29):
        last = step.update(batch)
    assert (last["behavior_loss"] < first["behavior_loss"] - 0.5).all()
    assert (last["actor_loss"] == 0.0).all()
    assert {name for name, flat in start.items() if not torch.equal(step.networks[name].parameters.flat, flat)} == {
        "behavior"
    }
    clone = step.behavior.parameters.flat.clone()
    assert (step.update(batch)["behavior_loss"] == 0.0).all()
    assert torch.equal(step.behavior.parameters.flat, clone)
    for name in ("actor", "q", "q_target"):
        assert not torch.equal(step.networks[name].parameters.flat, start[name])


@pytest.mark.parametrize(("output", "start", "rises"), [(-9.0, 1.0, True), (9.0, 1.0, False), (9.0, 0.01, False)])
def test_the_weight_of_the_clones_entropy_holds_it_to_its_target_and_is_never_negative(
    output: float, start: float, rises: bool
) -> None:
    """Standard deviations of e^-5 and of 1, before the tanh, are entropies below and above -2."""
    step, batch = brac_step(behavior_learning_rate=0.05)
    weight = step.variables["behavior_entropy"].constants["behavior_entropy"].fill_(start)
    step.behavior.parameters.constants["bias1"][..., 2:] = output
    step._update_behavior(batch)
    expected = start + 0.05 if rises else max(start - 0.05, 0.0)
    assert weight[:, 0].tolist() == pytest.approx([expected, expected], abs=1e-6)


# -------------------------------------------------------------------- losses


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"value_penalty": False}, {"divergence": "mmd"}, {"temperature": 0.5}])
def test_targets_equal_a_plain_loop(settings: dict[str, Any]) -> None:
    step, batch = brac_step(**settings)
    noise = Noise(step)
    found = step.targets(batch)
    for k, alpha in enumerate(ALPHAS):
        for i in range(SIZE):
            state = batch.next_states[k, i]
            law = plain_law(step.actor, k, state)
            u = law.mean + law.stddev * noise.given[0][k, :, i]
            x = torch.cat([state, torch.tanh(u[0])])
            value = mixed([plain(step.q_target.network, 2 * k + m, x)[0] for m in (0, 1)])
            value = value - settings.get("temperature", 0.0) * plain_log_prob(law, u[0])
            if settings.get("value_penalty", True):
                assert len(u) == 4  # an action of its own for the value, three for the divergence
                others = noise.clone_actions(step, k, i, state)
                value = value - alpha * plain_divergence(step, k, state, torch.tanh(u[1:]), u[1:], others)
            expected = float(batch.rewards[k, i] + 0.9 * batch.continues[k, i] * value)
            assert float(found[k, i]) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert float(found[0, 1]) == float(batch.rewards[0, 1])


def test_critic_loss_and_gradients_equal_a_plain_loop() -> None:
    step, batch = brac_step()
    targets = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(2))
    expected = []
    for k in range(2):
        loss = torch.zeros(())
        for i in range(SIZE):
            x = torch.cat([batch.states[k, i], batch.actions[k, i]])
            for m in (0, 1):
                loss = loss + batch.bellman[k, i] * (plain(step.q.network, 2 * k + m, x)[0] - targets[k, i]) ** 2
        assert float(batch.bellman[k].sum()) < SIZE
        expected.append(loss / batch.bellman[k].sum())
    same_gradients(step.q_loss(batch, targets), torch.stack(expected), [step.q.network])


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"divergence": "mmd"}, {"divergence": "mmd", "kernel": "gaussian"}, {"temperature": 0.5}]
)
def test_actor_loss_and_gradients_equal_a_plain_loop(settings: dict[str, Any], warm: bool) -> None:
    step, batch = brac_step(**settings, warm_start_updates=6_000 if warm else 1_000)
    noise = Noise(step)
    losses = step.actor_losses(batch, *step.draws(batch.states, 4))
    expected, divergences = [], []
    for k, alpha in enumerate(ALPHAS):
        terms = []
        for i in range(SIZE):
            state = batch.states[k, i]
            law = plain_law(step.actor, k, state)
            u = law.mean + law.stddev * noise.given[0][k, :, i]
            others = noise.clone_actions(step, k, i, state)
            divergences.append(plain_divergence(step, k, state, torch.tanh(u[1:]), u[1:], others))
            term = settings.get("temperature", 0.0) * plain_log_prob(law, u[0]) + alpha * divergences[-1]
            x = torch.cat([state, torch.tanh(u[0])])
            value = mixed([plain(step.q.network, 2 * k + m, x)[0] for m in (0, 1)])
            terms.append(term if warm else term - value)
        expected.append(torch.stack(terms).mean())
    found = losses["divergence"].mean()
    torch.testing.assert_close(found, torch.stack(divergences).mean(), rtol=1e-3, atol=1e-5)
    same_gradients(losses["actor_loss"], torch.stack(expected), [step.actor])


def test_the_kl_divergence_of_many_draws_is_the_closed_form_from_policy_to_clone() -> None:
    step, batch = brac_step()
    with torch.no_grad():
        actions, log_prob = step.draws(batch.states, 4_000)
        found = step.divergence(batch.states, actions, log_prob)
    for k in range(2):
        for i in range(SIZE):
            laws = [plain_law(network, k, batch.states[k, i]) for network in (step.actor, step.behavior)]
            # The tanh of both changes no divergence.
            expected = float(torch.distributions.kl_divergence(*laws).sum().detach())
            assert float(found[k, i]) == pytest.approx(expected, rel=0.1, abs=0.1)


@pytest.mark.parametrize(("given", "start"), [(0.0, 0.0), (0.5, 0.5), (None, 1.0)])
def test_the_temperature_is_fixed_or_learned(given: float | None, start: float) -> None:
    step, batch = brac_step(temperature=given, learning_rate=0.05)
    assert step.temperature[:, 0].tolist() == pytest.approx([start, start])
    step.update(batch)
    if given is None:
        assert step.log_temperature[:, 0].abs().tolist() == pytest.approx([0.05, 0.05], rel=1e-3)  # a step of Adam
    else:
        assert step.temperature[:, 0].tolist() == pytest.approx([start, start])


# -------------------------------------------------------------------- settings, and what it learns


def test_defaults_are_the_authors() -> None:
    learner = BRAC()
    assert (learner.alpha, learner.divergence, learner.value_penalty) == (1.0, "kl", True)
    assert (learner.n_divergence_samples, learner.min_weight, learner.temperature) == (4, 1.0, 0.0)
    assert (learner.hidden, learner.actor_hidden, learner.batch_size) == ((300, 300), (200, 200), 256)
    rates = (learner.learning_rate, learner.actor_learning_rate, learner.behavior_learning_rate)
    assert (rates, learner.tau) == ((1e-3, 3e-4, 5e-4), 0.005)
    log = random_log(continuous=True)
    step = BRAC._step([BRAC(divergence="mmd")], batch_of(log, 1).transitions, [0])
    assert isinstance(step, BRACStep)
    assert step.form.kernel is not None
    # The authors' kernel: exp(-|x - y|_1 / 20).
    assert float(step.form.kernel(torch.zeros(2), torch.ones(2))) == pytest.approx(math.exp(-0.1))


FAST: dict[str, Any] = {
    "hidden": (32, 32), "actor_hidden": (32, 32), "batch_size": 64, "gamma": 0.9, "tau": 0.05, "learning_rate": 3e-3,
    "actor_learning_rate": 3e-3, "behavior_learning_rate": 3e-3, "n_updates": 350, "behavior_updates": 100,
    "warm_start_updates": 30,
}  # fmt: skip


def test_brac_beats_cloning_and_a_heavy_weight_holds_it_to_the_clone() -> None:
    log = line_log()
    learners = [BRAC(**FAST, alpha=alpha, value_penalty=v) for alpha, v in ((0.1, True), (0.1, False), (1e4, False))]
    penalized, regularized, held = BRAC.fit_many(log, learners)
    cloned = BehaviorCloning(hidden=(32, 32), batch_size=64, learning_rate=3e-3, n_updates=100).fit(log)
    for learner in (penalized, regularized):
        assert line_value(learner, draws=5) > line_value(cloned, draws=5) + 20.0
        learner.set_params(deterministic=True)
        assert line_value(learner) > line_value(cloned) + 20.0
    assert line_value(held, draws=5) < line_value(cloned, draws=5) + 10.0
    assert float(held.history_["divergence"].iloc[-1]) < 0.5 * float(regularized.history_["divergence"].iloc[-1])
    # The value pays for the divergence of all that follows.
    assert penalized.q_values(log.states, log.actions).mean() < regularized.q_values(log.states, log.actions).mean()


def test_the_discrepancy_beats_cloning_too_and_the_best_of_many_draws_is_taken() -> None:
    log = line_log()
    learner = BRAC(**FAST, alpha=30.0, divergence="mmd", value_penalty=False).fit(log)
    cloned = BehaviorCloning(hidden=(32, 32), batch_size=64, learning_rate=3e-3, n_updates=100).fit(log)
    assert line_value(learner, draws=5) > line_value(cloned, draws=5) + 20.0
    assert learner.capabilities == {"logged_prob", "density", "sample"}
    learner.set_params(n_act_samples=7)
    assert learner.capabilities == {"sample", "deterministic"}
    noise = np.random.default_rng(derive_seed(learner.seed_, "acting")).standard_normal((7, 1))
    states = torch.from_numpy(learner.origin_.states.transform(log.states[:5])).float()
    assert learner.origin_.actions is not None
    for i, state in enumerate(states):
        output = plain(learner.networks_["actor"], 0, state)
        points = torch.tanh(output[:1] + torch.exp(-5 + 2.5 * (torch.tanh(output[1:]) + 1)) * torch.from_numpy(noise))
        values = [float(plain(learner.networks_["q"], 0, torch.cat([state, point.float()]))[0]) for point in points]
        expected = learner.origin_.actions.inverse(points[int(np.argmax(values))].numpy())
        np.testing.assert_allclose(learner.predict(log.states[i : i + 1])[0], expected, rtol=1e-4, atol=1e-6)


def test_what_brac_refuses() -> None:
    with pytest.raises(TypeError, match="BRAC: `data` must have continuous actions, got discrete ones; use CQL"):
        BRAC().fit(random_log())
    log = random_log(continuous=True)
    with pytest.raises(
        ValueError, match=r"`behavior_updates` \+ `warm_start_updates` must be below `n_updates`, got 9"
    ):
        BRAC(n_updates=9, behavior_updates=5, warm_start_updates=4).fit(log)
    with pytest.raises(ValueError, match="BRAC: `divergence` must be 'kl' or 'mmd', got 'chi2'"):
        BRAC(divergence="chi2").fit(log)
    with pytest.raises(ValueError, match="BRAC: `actor_hidden` must be a tuple of widths"):
        BRAC(actor_hidden=256).fit(log)  # type: ignore[arg-type]
