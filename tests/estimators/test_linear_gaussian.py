"""LinearGaussianModel against regressions in plain loops, exact values of linear-quadratic control, the jackknife and simulation."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from estimator_oracles import influence_of, jackknife

from ope import End, Estimate, Level, LoggedDataset
from ope.estimators import LinearGaussianModel
from ope.estimators import _linear_gaussian as linear
from ope.estimators import _linear_gaussian_values as valued
from ope.estimators._linear_rollouts import fit_hazard, rollout_steps
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.policy import Policy
from ope.problems import RiverSwim, ScalarLQR
from ope.problems.lqr import LinearGaussian
from ope.testing.logs import make_case
from ope.validation import FloatArray

QUICK: dict[str, Any] = {"n_bootstrap": 40, "n_rollouts": 2000}


def fit(
    log: LoggedDataset, policy: Policy, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any
) -> Estimate:
    found: Estimate = LinearGaussianModel(gamma=gamma, **{**QUICK, **params}).fit(log, policy, weight).estimate()
    return found


A = np.array([[0.8, 0.1], [-0.2, 0.7]])
B = np.array([[0.3, 0.0], [0.1, 0.4]])
GAIN, OFFSET = np.array([[-0.3, 0.1], [0.2, -0.5]]), np.array([0.1, -0.2])


@cache
def plane_log(n: int = 40, n_steps: int = 8, kind: End = End.HORIZON, seed: int = 0) -> LoggedDataset:
    """Draw episodes of two states and two actions, linear and quadratic."""
    rng = np.random.default_rng(seed)
    s = rng.normal(1.0, 0.5, size=(n, 2))
    states, actions, rewards = [], [], []
    for _ in range(n_steps):
        a = s @ (0.5 * GAIN).T + rng.normal(size=(n, 2))
        r = s[:, 0] - 0.5 * (s**2).sum(axis=1) - 0.2 * a[:, 0] * s[:, 1] + 0.3 * rng.normal(size=n)
        states.append(s)
        actions.append(a)
        rewards.append(r)
        s = 0.2 + s @ A.T + a @ B.T + rng.normal(size=(n, 2)) * [0.3, 0.1]
    return LoggedDataset.from_arrays(
        np.stack(states, axis=1).reshape(-1, 2), np.stack(actions, axis=1).reshape(-1, 2),
        np.stack(rewards, axis=1).ravel(), lengths=[n_steps] * n, ends=[int(kind)] * n, final_states=s,
        continuous=True,
    )  # fmt: skip


CANDIDATE = GaussianPolicy(GAIN.T, [0.5, 0.7], intercept=OFFSET)


# -------------------------------------------------------------------- the same number by other ways


def loop_value(log: LoggedDataset, gamma: float, n_steps: int, weight: FloatArray, by_step: bool) -> float:
    """Regress in the unit of the log, with rows counted by loops, and carry mean and covariance forward instead of values backward."""
    horizon = log.lengths[0]
    models = []
    for t in range(horizon if by_step else 1):
        rows, following, own = [], [], []
        for i in range(log.n_episodes):
            for k in range(horizon):
                if by_step and k != t:
                    continue
                row = log.offsets[i] + k
                ends = k == horizon - 1
                assert log.final_states is not None
                rows.append(row)
                following.append(log.final_states[i] if ends else log.states[row + 1])
                own.append(weight[i])
        x = np.hstack([np.ones((len(rows), 1)), log.states[rows], log.actions[rows]])
        root = np.sqrt(np.array(own))[:, None]
        theta = np.linalg.lstsq(root * x, root * np.array(following), rcond=None)[0]
        gap = np.array(following) - x @ theta
        pairs = [(i, j) for i in range(5) for j in range(i + 1)]
        phi = np.stack([x[:, i] * x[:, j] for i, j in pairs], axis=1)
        beta = np.linalg.lstsq(root * phi, root[:, 0] * log.rewards[rows], rcond=None)[0]
        matrix = np.zeros((5, 5))
        for (i, j), value in zip(pairs, beta, strict=True):
            matrix[i, j] += value / 2.0
            matrix[j, i] += value / 2.0
        models.append((theta, (gap * root**2).T @ gap / np.sum(own), matrix))
    first = log.states[log.offsets[:-1]]
    mean = weight @ first / weight.sum()
    cov = ((first - mean) * weight[:, None]).T @ (first - mean) / weight.sum()
    total = 0.0
    for t in range(n_steps):
        theta, noise, matrix = models[t if by_step else 0]
        z_mean = np.concatenate([[1.0], mean, GAIN @ mean + OFFSET])
        lift = np.vstack([np.zeros((1, 2)), np.eye(2), GAIN])
        z_cov = lift @ cov @ lift.T
        z_cov[3:, 3:] += np.diag([0.25, 0.49])
        total += gamma**t * (z_mean @ matrix @ z_mean + np.sum(matrix * z_cov))
        mean, cov = z_mean @ theta, theta.T @ z_cov @ theta + noise
    return float(total)


@pytest.mark.parametrize("by_step", [False, True])
def test_value_with_a_horizon_is_that_of_moments_carried_forward(by_step: bool) -> None:
    log = plane_log(60)
    weight = np.random.default_rng(1).uniform(0.5, 1.5, 60)
    found = fit(log, CANDIDATE, 0.9, weight, homogeneous=not by_step)
    assert found.value == pytest.approx(loop_value(log, 0.9, 8, weight, by_step), rel=1e-8)
    assert found.diagnostics["method"] == "closed form"
    assert found.horizon == 8


def test_endless_value_is_the_limit_of_a_long_horizon() -> None:
    log = plane_log(40, kind=End.TRUNCATED)
    found = fit(log, CANDIDATE)
    assert found.value == pytest.approx(loop_value(log, 0.9, 400, np.ones(40), False), rel=1e-8)
    same = fit(plane_log(40), CANDIDATE, stationary=True)
    assert same.value == pytest.approx(found.value, rel=1e-12)
    assert same.horizon is None


@pytest.mark.parametrize("params", [{}, {"homogeneous": False}, {"stationary": True}], ids=str)
def test_influence_is_the_jackknife(params: dict[str, Any]) -> None:
    log = plane_log(20)
    weight = np.random.default_rng(2).uniform(0.5, 1.5, 20)
    weight /= weight.mean()
    psi = jackknife(lambda w: fit(log, CANDIDATE, 0.9, w * weight, **params).value, 20)
    found = fit(log, CANDIDATE, 0.9, weight, **params)
    # The jackknife divides by the sum of weights, the influence by n: both are centred by the weights.
    np.testing.assert_allclose(influence_of(found), psi - weight * psi.mean(), rtol=1e-4, atol=1e-5 * np.abs(psi).max())


@pytest.mark.parametrize(
    "policy", [LinearGaussian(-0.7, 0.3), LinearGaussian(-0.3, 0.0, 0.4), LinearGaussian(-0.5, 0.3)]
)
def test_the_true_model_has_the_exact_value(policy: LinearGaussian) -> None:
    p = ScalarLQR()
    beta = np.zeros(6)
    beta[[3, 5]] = -p.q, -p.c  # products 1 1, 1 s, 1 a, s s, s a, a a
    model = linear.LinearModel(
        np.array([[[0.0], [p.a], [p.b]]]), np.full((1, 1, 1), p.noise_std**2), beta[None],
        np.eye(3)[None], np.eye(6)[None], np.eye(6)[None], np.ones(1), 1.0,
    )  # fmt: skip
    candidate = valued.LinearPolicy(np.array([[policy.offset], [policy.gain]]), np.array([[policy.std**2]]))
    start = np.array([[1.0, p.initial_mean], [p.initial_mean, p.initial_mean**2 + p.initial_std**2]])
    found = valued.evaluate(model, candidate, start, 0.95, None)
    assert found.value == pytest.approx(p.value(policy, 0.95), rel=1e-10)
    square, slope, constant = p.value_function(policy, 0.95)
    np.testing.assert_allclose(found.first, [[constant, slope / 2.0], [slope / 2.0, square]], atol=1e-9)
    long = valued.evaluate(model, candidate, start, 0.95, 600)
    assert long.value == pytest.approx(found.value, rel=1e-9)


def test_logs_of_linear_quadratic_control() -> None:
    problem = ScalarLQR()
    truth, policy = problem.value(problem.target, 0.95), GaussianPolicy([[-0.7]], 0.3)
    scores, held = [], []
    for seed in range(40):
        found = fit(problem.sample(40, random_state=seed), policy, 0.95)
        scores.append((found.value - truth) / found.std_error)
        held.append(truth in found.confidence_interval())
    assert abs(np.mean(scores)) < 4.0 / np.sqrt(40) + 0.2
    assert 0.6 < np.std(scores) < 1.5
    assert np.mean(held) > 0.8


# -------------------------------------------------------------------- candidates


def correlated(states: FloatArray, actions: FloatArray) -> FloatArray:
    gap = actions - states @ GAIN.T
    precision = np.array([[2.0, 0.5], [0.5, 1.0]])
    return np.asarray(
        0.5 * np.log(np.linalg.det(precision))
        - np.log(2.0 * np.pi)
        - 0.5 * np.einsum("ni,ij,nj->n", gap, precision, gap)
    )


def recognised(policy: Policy) -> valued.LinearPolicy | None:
    log = plane_log()
    return valued.linear_policy(policy, log.states, linear.Units.fit(log))


def test_linear_gaussian_candidates_are_found_by_probing_and_others_are_not() -> None:
    log = plane_log()
    units = linear.Units.fit(log)
    found = recognised(
        FunctionPolicy(predict=lambda s: s @ GAIN.T, log_prob=correlated, sample=lambda s, _: s @ GAIN.T)
    )
    assert found is not None
    scale = np.outer(units.action_scale, units.action_scale)
    np.testing.assert_allclose(found.noise * scale, np.linalg.inv([[2.0, 0.5], [0.5, 1.0]]), rtol=1e-6)
    deterministic = recognised(FunctionPolicy(predict=lambda s: s @ GAIN.T + OFFSET))
    assert deterministic is not None
    np.testing.assert_array_equal(deterministic.noise, np.zeros((2, 2)))
    assert recognised(FunctionPolicy(predict=lambda s: np.tanh(s @ GAIN.T))) is None
    assert recognised(GaussianPolicy(GAIN.T, lambda s: 0.1 + np.abs(s))) is None
    assert recognised(FunctionPolicy(log_prob=correlated, sample=lambda s, _: s @ GAIN.T)) is None
    laplace = FunctionPolicy(
        predict=lambda s: s @ GAIN.T, log_prob=lambda s, a: -np.abs(a - s @ GAIN.T).sum(axis=1) - 2.0 * np.log(2.0),
        sample=lambda s, _: s @ GAIN.T,
    )  # fmt: skip
    assert recognised(laplace) is None


@pytest.mark.parametrize("params", [{}, {"homogeneous": False}, {"stationary": True}], ids=str)
def test_simulation_agrees_with_the_closed_form(params: dict[str, Any]) -> None:
    log = plane_log(40)
    hidden = FunctionPolicy(sample=lambda s, g: s @ GAIN.T + OFFSET + g.normal(size=(len(s), 2)) * [0.5, 0.7])
    exact = fit(log, CANDIDATE, 0.8, **params)
    drawn = fit(log, hidden, 0.8, n_rollouts=8000, **params)
    assert drawn.diagnostics["method"] == "simulation"
    assert abs(drawn.value - exact.value) < 4.0 * drawn.diagnostics["monte_carlo_error"]
    assert 0.6 < drawn.std_error / exact.std_error < 1.6
    assert drawn.influence is None
    assert drawn.horizon == exact.horizon


# -------------------------------------------------------------------- ends, and discrete actions


def walk(n: int, chance: float, kind: End, seed: int = 1, codes: bool = False) -> LoggedDataset:
    """Draw walks that earn 1 a step and end with a constant probability; recording stops after 15 steps."""
    rng = np.random.default_rng(seed)
    lives = rng.geometric(chance, n)
    lengths, cut = np.minimum(lives, 15), lives > 15
    total = int(lengths.sum())
    states, actions = rng.normal(size=(total, 1)), rng.normal(size=(total, 1))
    return LoggedDataset.from_arrays(
        states, rng.integers(0, 2, total) if codes else actions, np.ones(total), lengths=lengths,
        ends=np.where(cut, int(kind), int(End.TERMINAL)), final_states=np.where(cut[:, None], 0.3, np.nan),
        continuous=not codes,
    )  # fmt: skip


@pytest.mark.parametrize("codes", [False, True])
def test_terminal_states_end_and_truncations_do_not(codes: bool) -> None:
    log = walk(400, 0.1, End.TRUNCATED, codes=codes)
    policy: Policy = (
        FunctionPolicy(predict_proba=lambda s: np.full((len(s), 2), 0.5)) if codes else GaussianPolicy([[0.0]], 1.0)
    )
    found = fit(log, policy, 0.9)
    share = np.sum(log.ends == End.TERMINAL) / log.n_transitions
    assert found.value == pytest.approx(1.0 / (1.0 - 0.9 * (1.0 - share)), rel=0.02)
    assert found.diagnostics["method"] == "simulation"
    low, high = found.confidence_interval()
    assert low < 1.0 / (1.0 - 0.81) < high


def test_ends_of_the_horizon_are_steps_like_others() -> None:
    log = walk(400, 0.1, End.HORIZON)
    found = fit(log, GaussianPolicy([[0.0]], 1.0), 1.0)
    assert found.horizon == 15
    # The mean length of an episode of at most 15 steps.
    assert found.value == pytest.approx(np.sum(0.9 ** np.arange(15)), rel=0.06)
    assert found.value == pytest.approx(log.lengths.mean(), rel=0.02)


def test_a_logistic_regression_has_the_gradient_zero() -> None:
    rng = np.random.default_rng(0)
    x = np.hstack([np.ones((500, 1)), rng.normal(size=(500, 2))])
    y = (rng.random(500) < 1.0 / (1.0 + np.exp(-(x @ [-1.0, 2.0, 0.0])))).astype(float)
    weight = rng.uniform(0.5, 1.5, 500)
    w = fit_hazard(x, y, weight, None)
    p = 1.0 / (1.0 + np.exp(-(x @ w)))
    np.testing.assert_allclose(x.T @ (weight * (y - p)), 1e-5 * weight.sum() * w, atol=1e-6)
    assert rollout_steps(0.0, None, 5) == 1


def test_equal_weights_change_nothing_and_doubled_weights_are_doubled_episodes() -> None:
    case = make_case("mixed")
    weight = np.random.default_rng(3).uniform(0.5, 2.0, case.log.n_episodes)
    one = fit(case.log, case.candidate, 0.9, weight)
    two = fit(case.log, case.candidate, 0.9, 2.0 * weight)
    assert one.value == pytest.approx(two.value, rel=1e-12)
    np.testing.assert_allclose(np.asarray(one.replicates), np.asarray(two.replicates), rtol=1e-10)
    assert fit(case.log, case.candidate).value != one.value


# -------------------------------------------------------------------- verdicts


def says(estimate: Estimate, fragment: str) -> bool:
    return any(fragment in reason for reason in estimate.verdict.reasons)


def test_what_the_log_contradicts_is_told() -> None:
    log = plane_log(200)
    assert fit(log, CANDIDATE).verdict.level is Level.VALID
    curved = log.replace(rewards=log.rewards + np.sin(3.0 * log.states[:, 0]))
    assert says(fit(curved, CANDIDATE), "contradicts linear transitions or a quadratic reward")
    late = log.replace(rewards=log.rewards + 0.3 * np.tile(np.arange(8.0), 200))
    together = fit(late, CANDIDATE)
    assert together.verdict.level is Level.REFUSE
    assert says(together, "depend on the step")
    assert not says(fit(late, CANDIDATE, homogeneous=False), "depend on the step")
    memory = log.replace(rewards=log.rewards + np.concatenate([[0.0], log.actions[:-1, 0]]))
    assert says(fit(memory, CANDIDATE), "depend on the past")


def test_an_unstable_candidate_has_no_value() -> None:
    log = ScalarLQR().sample(30)
    found = fit(log, GaussianPolicy([[0.5]], 0.3), 0.95)
    assert np.isnan(found.value)
    assert found.verdict.level is Level.REFUSE
    assert says(found, "transitions grow without bound")
    assert not says(found, "no logged episode follows the candidate")
    hidden = FunctionPolicy(sample=lambda s, _: 9.0 * s)
    drawn = fit(log, hidden, 0.95)
    assert drawn.verdict.level is Level.REFUSE
    assert says(drawn, "lies outside") or says(drawn, "run away")
    assert says(drawn, "beyond those logged")


def test_few_replicates_and_endless_sums_are_told() -> None:
    case = make_case("continuous")
    assert says(fit(case.log, case.candidate, n_bootstrap=5), "there is no 95 % interval")
    endless = walk(50, 0.1, End.TRUNCATED).replace(
        ends=np.full(50, End.TRUNCATED, np.int8), final_states=np.zeros((50, 1))
    )
    hidden = FunctionPolicy(sample=lambda s, _: 0.1 * s)
    assert says(fit(endless, hidden, 1.0), "Without discounting")


# -------------------------------------------------------------------- bad input


def test_bad_input_is_named() -> None:
    river = RiverSwim(horizon=4)
    with pytest.raises(
        ValueError, match=r"LinearGaussianModel\.fit: the states of `data` must be numbers .* ModelBased"
    ):
        fit(river.sample(20), TabularPolicy(river.target))
    case = make_case("mixed")
    masked = case.log.replace(action_mask=np.ones((len(case.log), 3), bool))
    with pytest.raises(ValueError, match=r"must leave all actions available, got an action mask"):
        fit(masked, case.candidate)
    bad: list[dict[str, Any]] = [{"n_bootstrap": -1}, {"n_rollouts": 1}, {"random_state": -1}]
    for params in bad:
        with pytest.raises(ValueError, match=f"LinearGaussianModel: `{next(iter(params))}`"):
            fit(case.log, case.candidate, **params)
