"""ModelEnsemble: its likelihood against automatic differentiation, closed forms, the three ends, replicates, verdicts."""

from __future__ import annotations

import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from ope import End, Estimate, Level, LoggedDataset
from ope.estimators import LinearGaussianModel, ModelBased, ModelEnsemble
from ope.estimators import _ensemble_fit as fitting
from ope.estimators import _ensemble_training as training
from ope.estimators._ensemble_problem import ModelProblem, fit_scaling
from ope.estimators.model_ensemble import shrunk
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.policy import Policy
from ope.problems import RandomMDP, RiverSwim, ScalarLQR
from ope.testing.logs import make_case
from ope.validation import FloatArray, IntArray

SMALL: dict[str, Any] = {"hidden": (16,), "n_members": 4, "n_updates": 400, "batch_size": 128}
TINY: dict[str, Any] = {"hidden": (8,), "n_members": 3, "n_updates": 20, "batch_size": 16, "n_rollouts": 4}


def fit(log: LoggedDataset, policy: Any, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Any:
    return ModelEnsemble(gamma=gamma, **{**SMALL, **params}).fit(log, policy, weight).estimate()


# -------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("kind", ["horizon", "continuous", "mixed"])
def test_derivatives_are_those_of_automatic_differentiation(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BETA", 0.0)
    log = make_case(kind).log
    problem = ModelProblem.build(log, fit_scaling(log, False, None), torch.device("cpu"))
    settings = training.Settings((4,), 10, 8, 1e-3)
    step = training.ModelStep(problem, settings, torch.zeros(2, 1, dtype=torch.int64))
    outputs = torch.randn(2, 30, problem.scaling.n_outputs, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = torch.arange(60).view(2, 30)
    total, derivative = step.loss(outputs, rows)
    (expected,) = torch.autograd.grad(total.sum(), outputs)
    torch.testing.assert_close(derivative, expected, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_likelihood_of_plain_formulas() -> None:
    log = make_case("mixed").log
    scaling = fit_scaling(log, False, None)
    problem = ModelProblem.build(log, scaling, torch.device("cpu"))
    assert scaling.ends == "pair"
    step = training.ModelStep(problem, training.Settings((4,), 10, 8, 1e-3), torch.zeros(1, 1, dtype=torch.int64))
    outputs = torch.randn(1, len(log), scaling.n_outputs, generator=torch.Generator().manual_seed(1))
    loss = step.loss(outputs, torch.arange(len(log))[None])[0][0].numpy()
    z = (log.states - log.states.mean(axis=0)) / log.states.std(axis=0)
    inside = np.setdiff1d(np.arange(len(log)), log.offsets[1:] - 1)
    unit = (z[inside + 1] - z[inside]).std(axis=0)
    r = (log.rewards - log.rewards.mean()) / log.rewards.std()
    out, episode = outputs[0].numpy().astype(float), np.repeat(np.arange(log.n_episodes), log.lengths)
    assert log.final_states is not None
    for row in range(0, len(log), 7):
        i, last = episode[row], row == log.offsets[episode[row] + 1] - 1
        end = End(int(log.ends[i])) if last else None
        inner = 2.0 - np.log1p(np.exp(2.0 - out[row, [2, 3, 5]]))
        log_v = -12.0 + np.log1p(np.exp(inner + 12.0))
        expected = 0.5 * ((out[row, 4] - r[row]) ** 2 * np.exp(-log_v[2]) + log_v[2])
        if end is not End.TERMINAL:
            following = log.final_states[i] if last else log.states[row + 1]
            jump = ((following - log.states.mean(axis=0)) / log.states.std(axis=0) - z[row]) / unit
            expected += np.sum(0.5 * ((out[row, :2] - jump) ** 2 * np.exp(-log_v[:2]) + log_v[:2]))
        chance = 1.0 / (1.0 + np.exp(-out[row, 6]))
        expected -= np.log(chance if end is End.TERMINAL else 1.0 - chance)
        assert loss[row] == pytest.approx(expected, rel=1e-4)


def test_members_learn_from_their_own_resamples_and_are_judged_on_the_rest() -> None:
    log = make_case("mixed").log
    weight = np.random.default_rng(0).uniform(0.5, 1.5, log.n_episodes)
    weight[:5] = 0.0
    settings = ModelEnsemble(gamma=0.9, n_members=50)._configuration(log)
    table, held = fitting.member_weights(log, weight, settings)
    counts = table[:, 5:] / weight[5:]
    assert set(np.round(np.unique(counts)).astype(int)) <= set(range(9))
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-12)
    assert abs(counts.mean() - 1.0) < 4.0 / np.sqrt(counts.size)
    np.testing.assert_array_equal(held > 0, (table == 0) & (weight > 0))


# -------------------------------------------------------------------- values


def beside(
    log: LoggedDataset, policy: Policy, gamma: float, counted: Any, **params: Any
) -> tuple[FloatArray, FloatArray]:
    """Return the values of the members, and what a closed form says of the resample of each."""
    ensemble = ModelEnsemble(gamma=gamma, **{**SMALL, "n_members": 3, **params})
    order = np.argsort(log.episode_keys, kind="stable")
    log, settings = log.select(order), ensemble._configuration(log)
    weight = np.ones(log.n_episodes)
    (found,) = fitting.fit_candidates(log, [policy], weight, settings)
    assert isinstance(found, fitting.EnsembleFit)
    table, _ = fitting.member_weights(log, weight, settings)
    return found.values, np.array([counted.fit(log, policy, own).estimate().value for own in table])


@cache
def table() -> tuple[LoggedDataset, TabularPolicy]:
    problem = RandomMDP(4, 2, horizon=5, random_state=1)
    return problem.sample(150, random_state=1), TabularPolicy(problem.target)


@pytest.mark.parametrize("homogeneous", [False, True])
def test_one_hot_states_get_the_values_of_counts(homogeneous: bool) -> None:
    log, policy = table()
    counted = ModelBased(gamma=1.0, homogeneous=True)
    params = {"hidden": (32,), "n_updates": 300, "n_rollouts": 400, "homogeneous": homogeneous}
    values, exact = beside(log, policy, 1.0, counted, **params)
    error = counted.fit(log, policy).estimate().std_error
    # Networks that see the time have more to learn from as many rows.
    slack = 1.0 if homogeneous else 2.0
    assert np.abs(values - exact).max() < 1.5 * slack * error
    assert abs(np.mean(values - exact)) < 0.8 * slack * error


def test_rare_states_are_learned() -> None:
    """The reward is in one state of six, which is seen in 2 % of the rows."""
    problem = RiverSwim(horizon=8, behavior=0.9)
    log, policy = problem.sample(200, random_state=1), TabularPolicy(problem.target)
    values, exact = beside(log, policy, 1.0, ModelBased(gamma=1.0), hidden=(32,), n_updates=600, homogeneous=True)
    assert 0.5 < values.mean() / exact.mean() < 1.5


def test_linear_quadratic_control() -> None:
    log = ScalarLQR().sample(100, random_state=0)
    closed = LinearGaussianModel(gamma=0.9)
    for policy in (GaussianPolicy([[-0.7]], 0.3), FunctionPolicy(predict=lambda s: -0.7 * s)):
        values, exact = beside(log, policy, 0.9, closed, hidden=(32, 32), n_updates=500, n_rollouts=200)
        assert np.abs(values - exact).max() < 0.1 * np.abs(exact).mean()
        assert np.corrcoef(values, exact)[0, 1] > 0.5


def test_members_spread_like_the_influence_vector() -> None:
    log, policy = table()
    counted = ModelBased(gamma=1.0, homogeneous=True).fit(log, policy).estimate()
    found = fit(log, policy, 1.0, n_members=20, n_updates=200, n_rollouts=100, homogeneous=True)
    assert 0.6 < found.std_error / counted.std_error < 1.6
    low, high = found.confidence_interval(0.8)
    assert low < counted.value < high
    assert found.horizon == 5
    assert found.diagnostics["novelty"] < 0.02
    # Visits of one-hot states count for their equals: nearly the ratios of visits of the tabular model.
    assert found.diagnostics["ess"] == pytest.approx(counted.diagnostics["ess"], rel=0.1)


def walk(kind: End, final: bool, n: int = 150, seed: int = 1) -> LoggedDataset:
    """Draw walks of reward 1 that end where they leave (-1, 1), whose recording stops after 12 steps."""
    rng = np.random.default_rng(seed)
    states, actions, lengths, ends, finals = [], [], [], [], []
    for _ in range(n):
        s, kind_here, steps = rng.uniform(-0.5, 0.5), kind, 0
        while steps < 12:
            a = rng.normal()
            states.append(s)
            actions.append(a)
            s, steps = s + 0.3 * a, steps + 1
            if abs(s) >= 1.0:
                kind_here = End.TERMINAL
                break
        lengths.append(steps)
        ends.append(int(kind_here))
        finals.append(s if final or kind_here is not End.TERMINAL else np.nan)
    column = np.array(states)[:, None]
    return LoggedDataset.from_arrays(
        column, np.array(actions)[:, None], np.ones(len(column)), lengths=lengths, ends=ends,
        final_states=np.array(finals)[:, None], continuous=True, horizon=12 if kind is End.HORIZON else None,
    )  # fmt: skip


def walked(gamma: float, n_steps: int, spread: float) -> float:
    """Simulate the walk itself."""
    rng = np.random.default_rng(0)
    s, alive, total = rng.uniform(-0.5, 0.5, 40_000), np.ones(40_000), 0.0
    for t in range(n_steps):
        total += gamma**t * alive.mean()
        s = s + 0.3 * spread * rng.normal(size=len(s))
        alive *= np.abs(s) < 1.0
    return total


@pytest.mark.parametrize(
    ("kind", "final"), [(End.TRUNCATED, True), (End.TRUNCATED, False), (End.HORIZON, True)], ids=str
)
def test_ends_are_learned_from_terminal_states_alone(kind: End, final: bool) -> None:
    log = walk(kind, final)
    assert fit_scaling(log, False, None).ends == ("state" if final else "pair")
    finite = kind is End.HORIZON
    gamma, policy = (1.0 if finite else 0.9), GaussianPolicy([[0.0]], 0.5)
    truth = walked(gamma, 12 if finite else 88, 0.5)
    found = fit(log, policy, gamma, hidden=(32,), n_updates=400, homogeneous=True)
    assert abs(found.value - truth) < 0.08 * truth
    assert found.horizon == (12 if finite else None)


# -------------------------------------------------------------------- workflow


@pytest.mark.parametrize("kind", ["mixed", "continuous", "horizon"])
def test_candidates_are_rolled_out_together_as_alone_to_the_bit(kind: str) -> None:
    case = make_case(kind)
    policies: dict[str, Policy] = {"a": case.candidate, "b": case.other, "c": case.behavior}
    together = fit(case.log, policies, **TINY)
    for name, policy in policies.items():
        alone = fit(case.log, policy, **TINY)
        assert together[name].value == alone.value
        np.testing.assert_array_equal(together[name].replicates, alone.replicates)
        assert together[name].diagnostics == alone.diagnostics
    gap = together["a"] - together["b"]
    assert gap.replicates is not None


def test_a_candidate_that_fails_on_the_way_does_not_disturb_the_others() -> None:
    case = make_case("continuous")

    def far(states: FloatArray, _: np.random.Generator) -> FloatArray:
        if np.abs(states - case.log.states.mean()).max() > 4.0 * case.log.states.std():
            raise ValueError("no idea out here")
        return 5.0 * states

    wild = FunctionPolicy(sample=lambda s, g: far(s, g) if len(s) == 12 else 5.0 * s)
    shape = FunctionPolicy(sample=lambda s, _: np.zeros((len(s), 2)))
    found = fit(case.log, {"good": case.candidate, "wild": wild, "shape": shape}, **TINY)
    assert found["good"].value == fit(case.log, case.candidate, **TINY).value
    assert "actions must have 1 columns" in found["shape"].error


def test_pickles_hold_numbers_only() -> None:
    case = make_case("mixed")
    ensemble = ModelEnsemble(gamma=0.9, **TINY).fit(case.log, case.candidate)
    assert len(pickle.dumps(ensemble)) < 20_000


def test_noise_of_rollouts_is_taken_out_of_the_spread() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(size=(400, 1))
    start = np.repeat(rng.normal(size=(400, 10)), 2, axis=1)
    returns = level + start + rng.normal(0.0, 2.0, size=(400, 20))
    assert fitting.member_noise(returns) == pytest.approx(4.0 / 20.0, rel=0.1)
    replicates, share = shrunk(returns.mean(axis=1), fitting.member_noise(returns))
    assert share == pytest.approx(0.2 / 1.3, rel=0.3)
    assert np.var(replicates) == pytest.approx(1.1, rel=0.2)
    assert replicates.mean() == pytest.approx(returns.mean())
    squeezed, share = shrunk(np.array([0.0, 1.0]), 10.0)
    assert share == 20.0
    np.testing.assert_allclose(squeezed, [0.25, 0.75])


def test_zero_weights_leave_episodes_out() -> None:
    case = make_case("continuous")
    poor = np.add.reduceat(case.log.rewards, case.log.offsets[:-1]) < np.median(case.log.rewards)
    values = [fit(case.log, case.candidate, 0.9, own.astype(float), n_updates=60).value for own in (poor, ~poor)]
    assert values[0] < values[1] - 0.5


# -------------------------------------------------------------------- verdicts


def says(estimate: Estimate, fragment: str) -> bool:
    return any(fragment in reason for reason in estimate.verdict.reasons)


def test_a_candidate_far_from_the_log_is_refused() -> None:
    log = ScalarLQR().sample(60, random_state=0)
    near, far = GaussianPolicy([[-0.5]], 0.3), GaussianPolicy([[0.9]], 0.3)
    found = fit(log, {"near": near, "far": far}, 0.95, n_updates=300)
    assert found["near"].diagnostics["outside"] < 0.01
    assert found["near"].diagnostics["novelty"] < 0.2
    assert found["far"].verdict.level is Level.REFUSE
    assert says(found["far"], "states beyond those logged")
    assert says(found["far"], "unlike anything logged")
    assert np.isfinite(found["far"].value)


def test_what_is_missing_for_an_interval_is_told() -> None:
    case = make_case("continuous")
    few = fit(case.log, case.candidate, **TINY)
    assert says(few, "there is no 95 % interval")
    assert says(fit(case.log.select(slice(0, 10)), case.candidate, **TINY), "resamples of 10 episodes")
    assert says(fit(ScalarLQR().sample(30), GaussianPolicy([[-0.5]], 0.3), 1.0, **TINY), "Without discounting")


@pytest.mark.parametrize("n_updates", [1, 20, 60])
def test_training_that_was_cut_short_is_told(n_updates: int) -> None:
    log = ScalarLQR().sample(60, random_state=0)
    short = fit(log, GaussianPolicy([[-0.5]], 0.3), 0.95, n_updates=n_updates, n_rollouts=4)
    assert short.diagnostics["unsettled"] == 1.0
    assert says(short, "Raise n_updates=")


def by_hand(visits: FloatArray, pairs: FloatArray, episode: IntArray, weight: FloatArray, usual: float) -> float:
    """Give each visit to the pairs that are as near as is usual, or to the nearest, by their weights."""
    mass = np.zeros(int(episode.max()) + 1)
    for visit in visits:
        distance = np.sqrt(((pairs - visit) ** 2).sum(axis=1))
        near = distance <= max(usual, distance.min() * (1.0 + 1e-6))
        for row in np.flatnonzero(near):
            mass[episode[row]] += weight[row] / weight[near].sum()
    return float(mass.sum() ** 2 / (mass**2).sum())


def test_effective_episodes_behind_simulated_visits_by_hand() -> None:
    rng = np.random.default_rng(0)
    log = make_case("continuous").log
    problem = ModelProblem.build(log, fit_scaling(log, False, None), torch.device("cpu"))
    weight = rng.uniform(0.5, 1.5, log.n_episodes)
    weight[::4] = 0.0
    support = fitting._Support.build(problem, log, weight, 0)
    row_weight, episode = np.repeat(weight, log.lengths), np.repeat(np.arange(log.n_episodes), log.lengths)
    assert (weight[support.episodes.numpy()] > 0).all()
    assert len(support.pairs) == int((row_weight > 0).sum())
    visits = 1.5 * rng.normal(size=(40, problem.scaling.n_states + problem.scaling.n_actions))
    novelty, ess = support.compare(visits, problem.scaling)
    queries = fitting._spaced(torch.as_tensor(visits, dtype=torch.float32), problem.scaling).double().numpy()
    kept = row_weight > 0
    pairs = support.pairs.double().numpy()
    assert ess == pytest.approx(by_hand(queries, pairs, episode[kept], row_weight[kept], support.usual), rel=0.02)
    nearest = np.sqrt(((queries[:, None] - pairs[None]) ** 2).sum(axis=2)).min(axis=1)
    assert novelty == pytest.approx(np.mean(nearest > support.usual), abs=0.03)


def test_few_episodes_behind_a_candidate_are_told() -> None:
    """The candidate does what one logged episode in twelve did, and nothing of it is novel."""
    n = 120
    states = np.eye(2)[np.tile([0, 1], n)]
    actions = np.repeat((np.arange(n) % 12 == 0).astype(int), 2)
    log = LoggedDataset.from_arrays(states, actions, states[:, 1] * actions, lengths=[2] * n, ends="horizon")
    found = fit(log, TabularPolicy([[0.0, 1.0], [0.0, 1.0]]), 1.0, n_updates=100, n_rollouts=20, homogeneous=True)
    assert found.diagnostics["ess"] == pytest.approx(10.0, abs=0.5)
    assert found.diagnostics["novelty"] == 0.0
    assert found.verdict.level is Level.CAUTION
    assert says(found, "pairs that simulated visits are like leave an effective sample of 10.0 episodes")


def test_held_out_rows_are_judged_equally_often() -> None:
    weight = np.repeat([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 2.0, 0.0]], 50, axis=1)
    rows = training._draw(weight, 0).numpy()
    assert rows.shape == (2, 200)
    for own, found in zip(weight, rows, strict=True):
        counts = np.bincount(found, minlength=200)
        assert (counts[own == 0] == 0).all()
        share = own * 200 / own.sum()
        assert (np.abs(counts - share) < 1.0 + 1e-9).all()


# -------------------------------------------------------------------- bad parameters


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"n_members": 1}, ValueError),
        ({"n_updates": 0}, ValueError),
        ({"n_rollouts": 1}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"learning_rate": 0.0}, ValueError),
        ({"learning_rate": "fast"}, TypeError),
        ({"hidden": 64}, TypeError),
        ({"hidden": (0,)}, ValueError),
        ({"action_range": (1.0, -1.0)}, ValueError),
        ({"random_state": -1}, ValueError),
        ({"device": "nowhere"}, ValueError),
    ],
)
def test_bad_parameters_are_named(params: dict[str, Any], error: type[Exception]) -> None:
    case = make_case("continuous")
    with pytest.raises(error, match=f"ModelEnsemble: `{next(iter(params))}`"):
        fit(case.log, case.candidate, **params)


def test_masks_are_refused() -> None:
    case = make_case("mixed")
    masked = case.log.replace(action_mask=np.ones((len(case.log), 3), bool))
    with pytest.raises(ValueError, match=r"ModelEnsemble\.fit: `data` must leave all actions available"):
        fit(masked, case.candidate, **TINY)
