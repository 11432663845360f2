"""LSTDQ against maximum-likelihood tabular models, exact logs, closed forms and the infinitesimal jackknife."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from estimator_oracles import (
    Case,
    end_goes_on,
    every_end,
    exact_log,
    final_codes,
    flow_paths,
    influence_of,
    jackknife,
    maximum_likelihood,
    one_hot_log,
    paths,
    random_case,
    sampled,
    stationary_or_not,
)
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, PolynomialFeatures

from ope import Estimate, Level, LoggedDataset
from ope.estimators import LSTD, LSTDQ, DoublyRobust, FittedQEvaluation, MarginalizedIS, StateMarginalIS
from ope.policies import FunctionPolicy, GaussianPolicy, TabularPolicy
from ope.problems import Baird, Hybrid, ModelFail, RandomMDP, RiverSwim, ScalarLQR, TabularProblem
from ope.schema import End
from ope.validation import FloatArray


def fit(case: Case, gamma: float = 0.9, weight: FloatArray | None = None, **params: Any) -> Estimate:
    estimate: Estimate = LSTDQ(gamma=gamma, **params).fit(case.log, case.policy, weight).estimate()
    return estimate


# -------------------------------------------------------------------------------- the tabular model


@stationary_or_not
@every_end
@pytest.mark.parametrize("seed", [0, 1])
def test_tabular_value_is_that_of_the_maximum_likelihood_model(
    seed: int, ends: tuple[str, ...], stationary: bool
) -> None:
    case = random_case(seed, ends=ends, zeros=True)
    model = maximum_likelihood(case, 0.9, stationary)
    assert fit(case, stationary=stationary).value == pytest.approx(model.value, rel=1e-8)


PROBLEMS = [
    RandomMDP(4, 3, max_steps=12, random_state=0),
    RandomMDP(3, 2, max_steps=40, terminals=2, reward_std=0.5, random_state=1),
    RandomMDP(4, 2, horizon=6, random_state=2),
    RandomMDP(5, 2, horizon=5, terminals=1, concentration=0.2, random_state=3),
    RiverSwim(horizon=20),
    RiverSwim(),
]


@stationary_or_not
@pytest.mark.parametrize("problem", PROBLEMS, ids=repr)
def test_model_identity_on_problems(problem: TabularProblem, stationary: bool) -> None:
    case, gamma = sampled(problem, 40), problem.default_gamma
    estimate = fit(case, gamma, stationary=stationary)
    assert estimate.value == pytest.approx(maximum_likelihood(case, gamma, stationary).value, rel=1e-8)
    assert estimate.horizon == (None if stationary else problem.horizon)


@stationary_or_not
@every_end
def test_episode_weights_enter_the_counts(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(2, ends=ends, zeros=True)
    weight = np.random.default_rng(0).exponential(size=case.log.n_episodes)
    weight[::6] = 0.0
    expected = maximum_likelihood(case, 0.9, stationary, weight).value
    assert fit(case, weight=weight, stationary=stationary).value == pytest.approx(expected, rel=1e-8)
    assert fit(case, weight=5 * weight, stationary=stationary).value == pytest.approx(expected, rel=1e-8)


def test_undiscounted_with_terminals() -> None:
    case = random_case(3)
    assert fit(case, 1.0).value == pytest.approx(maximum_likelihood(case, 1.0).value, rel=1e-8)


def test_without_discounting_and_termination_there_is_no_value() -> None:
    case = random_case(3, ends=("truncated",))
    assert fit(case, 1.0).verdict.level is Level.REFUSE
    assert fit(case, 0.99).verdict.level < Level.REFUSE


@every_end
def test_horizon_ends_to_unknown_states_are_left_out(ends: tuple[str, ...]) -> None:
    case = random_case(4, ends=ends)
    assert case.log.final_states is not None
    if "truncated" in ends:
        states = np.where((case.log.ends == 1)[:, None], np.nan, case.log.final_states)
        case = Case(case.log.replace(final_states=states), case.b, case.pi)
    else:
        case = Case(case.log.replace(final_states=None), case.b, case.pi)
    estimate = fit(case, stationary=True)
    assert estimate.value == pytest.approx(maximum_likelihood(case, 0.9, stationary=True).value, rel=1e-8)
    assert estimate.diagnostics["left_out_transitions"] == int((case.log.ends == 1).sum())
    assert fit(case).diagnostics["left_out_transitions"] == 0


@stationary_or_not
@every_end
def test_predictions_are_the_tables(ends: tuple[str, ...], stationary: bool) -> None:
    """Fitted on one log, read off on another: Q of the logged pairs, V, and V where a truncated episode went."""
    case, other = random_case(5, ends=ends, n=200), random_case(6, ends=ends, n=20)
    fitted = LSTDQ(gamma=0.9, stationary=stationary).fit(case.log, case.policy)
    model = fitted.fit_q(case.log, case.policy, np.ones(200))
    q = maximum_likelihood(case, 0.9, stationary).q
    predicted = model.predict(case.policy, other.log)
    row = 0
    for i, episode in enumerate(paths(other.log)):
        for t, (s, a, _) in enumerate(episode):
            table = q[t if len(q) > 1 else 0]
            assert predicted.q[row] == pytest.approx(table[s, a], rel=1e-8, abs=1e-10)
            assert predicted.v[row] == pytest.approx(case.pi[s] @ table[s], rel=1e-8, abs=1e-10)
            row += 1
        z, T = final_codes(other.log)[i], len(episode)
        after = q[0] if len(q) == 1 else (q[T] if len(q) > T else np.zeros_like(q[0]))
        v_final = case.pi[z] @ after[z] if end_goes_on(other.log, i, stationary) else 0.0
        assert predicted.v_final[i] == pytest.approx(v_final, rel=1e-8, abs=1e-10)


# -------------------------------------------------------------------------------- influence


@stationary_or_not
@every_end
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_influence_is_the_infinitesimal_jackknife(ends: tuple[str, ...], ridge: float, stationary: bool) -> None:
    """Of the estimator itself: every entry, and centred."""
    case = random_case(7, n=15, ends=ends, zeros=True)
    psi = influence_of(fit(case, stationary=stationary, ridge=ridge))
    numerical = jackknife(lambda w: fit(case, weight=w, stationary=stationary, ridge=ridge).value, 15)
    np.testing.assert_allclose(psi, numerical, rtol=1e-5, atol=1e-6 * np.abs(psi).max())
    assert abs(psi.sum()) < 1e-10 * np.abs(psi).sum()


@stationary_or_not
@every_end
def test_influence_is_the_jackknife_of_the_model(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(8, n=20, ends=ends)
    psi = influence_of(fit(case, stationary=stationary))
    numerical = jackknife(lambda w: maximum_likelihood(case, 0.9, stationary, w).value, 20)
    np.testing.assert_allclose(psi, numerical, rtol=1e-5, atol=1e-6 * np.abs(psi).max())


def test_weighted_influence_belongs_to_the_weighted_value() -> None:
    case = random_case(9, n=12, ends=("terminal", "truncated"))
    weight, step = np.random.default_rng(1).exponential(size=12), 1e-4
    psi = influence_of(fit(case, weight=weight))
    for i in range(12):
        up, down = weight.copy(), weight.copy()
        up[i] *= 1 + step
        down[i] *= 1 - step
        slope = (fit(case, weight=up).value - fit(case, weight=down).value) / (2 * step)
        assert psi[i] == pytest.approx(12 * slope, rel=1e-5, abs=1e-7)


# -------------------------------------------------------------------------------- exact logs


@pytest.mark.parametrize("gamma", [0.95, 1.0])
def test_time_indexed_value_is_exact_on_the_exact_law(gamma: float) -> None:
    """Paths that carry the exact law of every (s_t, a_t, s_t+1) of 20 steps: what infinite data would give."""
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, "horizon", flow_paths)
    estimate = LSTDQ(gamma=gamma).fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx({0.95: 0.7738807833, 1.0: 1.5986435503}[gamma], rel=1e-9)
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=gamma), rel=1e-11)


def test_episode_weights_enter_the_q_function() -> None:
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, "horizon", flow_paths)
    policy = TabularPolicy(problem.target)
    predicted = LSTDQ(gamma=0.95).fit_q(every.log, policy, every.weight).predict(policy, every.log)
    assert predicted.v[every.log.offsets[:-1]] == pytest.approx(0.7738807833, rel=1e-9)


@pytest.mark.parametrize(("gamma", "wrong"), [(0.95, 0.4536), (1.0, 1.248)])
def test_stationary_values_with_the_horizon_taken_for_terminal_are_wrong(gamma: float, wrong: float) -> None:
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, "terminal", flow_paths)
    estimate = LSTDQ(gamma=gamma).fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx(wrong, abs=5e-5)
    assert abs(estimate.value - problem.value(problem.target, gamma=gamma)) > 0.3


@pytest.mark.parametrize(("ends", "stationary"), [("horizon", True), ("truncated", False), ("truncated", True)])
def test_stationary_value_is_that_without_horizon(ends: str, stationary: bool) -> None:
    problem = RiverSwim(horizon=20)
    every = exact_log(problem, 20, ends, flow_paths)
    estimator = LSTDQ(gamma=0.95, stationary=stationary)
    estimate = estimator.fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx(2.4426254477, rel=1e-9)
    assert estimate.horizon is None


@pytest.mark.parametrize("ends", ["horizon", "truncated"])
def test_exact_values_with_terminal_states(ends: str) -> None:
    problem = RandomMDP(3, 2, terminals=1, horizon=4 if ends == "horizon" else None, random_state=5)
    every = exact_log(problem, 4, ends)
    estimate = LSTDQ(gamma=0.9).fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx(problem.value(problem.target, gamma=0.9), rel=1e-9)


def test_hidden_state_gives_the_known_wrong_value() -> None:
    """ModelFail: the log shows that the second step pays E_b r, whatever the candidate did before; squared error 2.32."""
    problem = ModelFail()
    every = exact_log(problem, 2, "horizon")
    estimate = LSTDQ(gamma=1.0).fit(every.log, TabularPolicy(problem.target), every.weight).estimate()
    assert estimate.value == pytest.approx(math.tanh(1), rel=1e-12)
    assert (estimate.value - problem.value(problem.target)) ** 2 == pytest.approx(2.32, abs=5e-3)


@pytest.mark.parametrize("gamma", [0.95, 1.0])
def test_sampled_value_lies_within_its_error(gamma: float) -> None:
    problem = RiverSwim(horizon=20)
    estimate = fit(sampled(problem, 4000), gamma)
    assert abs(estimate.value - problem.value(problem.target, gamma=gamma)) < 4 * estimate.std_error
    assert estimate.std_error < 0.1 * estimate.value
    assert estimate.verdict.level is Level.VALID


# -------------------------------------------------------------------------------- continuous and approximate


def quadratic_log(problem: ScalarLQR) -> tuple[LoggedDataset, FloatArray]:
    """Return one-step episodes whose first states and noise have the exact first two moments: a quadratic sees no more."""
    nodes, chances = np.array([-math.sqrt(3), 0.0, math.sqrt(3)]), np.array([1 / 6, 2 / 3, 1 / 6])
    s, u, z, weight = [], [], [], []
    for (node, chance), action, noise in itertools.product(zip(nodes, chances, strict=True), (-1.0, 0.2, 0.9), (-1, 1)):
        s.append(problem.initial_mean + problem.initial_std * node)
        u.append(action)
        z.append(problem.a * s[-1] + problem.b * action + problem.noise_std * noise)
        weight.append(chance)
    rewards = [-(problem.q * x * x + problem.c * v * v) for x, v in zip(s, u, strict=True)]
    log = LoggedDataset.from_arrays(
        np.array(s)[:, None], np.array(u)[:, None], rewards, lengths=[1] * 18, ends="truncated",
        final_states=np.array(z)[:, None],
    )  # fmt: skip
    return log, np.array(weight)


LQR_VALUES = {-0.3: -5.462013422819, -0.5: -4.353627062017, -0.7: -3.768054727241}


@pytest.mark.parametrize("gain", LQR_VALUES)
@pytest.mark.parametrize("features", ["auto", PolynomialFeatures(2)], ids=["auto", "polynomial"])
def test_quadratic_features_are_exact_for_linear_dynamics(features: Any, gain: float) -> None:
    log, weight = quadratic_log(ScalarLQR())
    policy = GaussianPolicy(mean=[gain], std=0.3)
    estimate = LSTDQ(gamma=0.95, features=features).fit(log, policy, weight).estimate()
    assert estimate.value == pytest.approx(LQR_VALUES[gain], rel=1e-9)


@pytest.mark.parametrize("gain", LQR_VALUES)
def test_linear_dynamics_from_a_sample(gain: float) -> None:
    log = ScalarLQR(max_steps=20).sample(1000, random_state=0)
    estimate = LSTDQ(gamma=0.95).fit(log, GaussianPolicy(mean=[gain], std=0.3)).estimate()
    assert abs(estimate.value - LQR_VALUES[gain]) < 4 * estimate.std_error
    assert estimate.std_error < 0.11


def test_noiseless_quadratic_is_recovered_everywhere() -> None:
    """Without noise in the dynamics any log that excites the features gives Q exactly, not just its mean."""
    problem = ScalarLQR(noise_std=0.0, max_steps=6)
    log = problem.sample(20, random_state=2)
    policy = GaussianPolicy(mean=[-0.7], std=0.3)
    estimator = LSTDQ(gamma=0.95, features=PolynomialFeatures(2)).fit(log, policy)
    other = ScalarLQR(max_steps=3).sample(5, random_state=3)
    predicted = estimator.fit_q(log, policy, np.ones(20)).predict(policy, other)
    x, y, z = problem.value_function(problem.target)
    s, u = other.states[:, 0], other.actions[:, 0]
    following = problem.a * s + problem.b * u
    q = -(problem.q * s**2 + problem.c * u**2) + 0.95 * (x * following**2 + y * following + z)
    np.testing.assert_allclose(predicted.q, q, rtol=1e-7)
    np.testing.assert_allclose(predicted.v, x * s**2 + y * s + z, rtol=1e-7)


def test_baird_gives_zero() -> None:
    problem = Baird(max_steps=30)
    estimator = LSTDQ(gamma=0.99, features="identity")
    policy = TabularPolicy(problem.target, state_code=problem.state_code)
    estimate = estimator.fit(problem.sample(50), policy).estimate()
    assert estimate.value == pytest.approx(0.0, abs=1e-10)
    assert estimate.std_error == pytest.approx(0.0, abs=1e-10)


# -------------------------------------------------------------------------------- features, ridge, singular systems


def doubled(states: FloatArray) -> FloatArray:
    return np.hstack([states, states @ np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]])])


def mixed(states: FloatArray) -> FloatArray:
    result: FloatArray = states @ np.array([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [3.0, 0.0, 1.0]])
    return result


@stationary_or_not
@pytest.mark.parametrize("transform", [doubled, mixed])
def test_bases_of_one_space_give_one_value(transform: Any, stationary: bool) -> None:
    case = random_case(10, ends=("terminal", "horizon"), n=300)
    plain = fit(case, stationary=stationary)
    other = fit(case, stationary=stationary, features=FunctionTransformer(transform))
    assert other.value == pytest.approx(plain.value, rel=1e-8)
    np.testing.assert_allclose(influence_of(other), influence_of(plain), rtol=1e-6, atol=1e-8)
    assert other.diagnostics["unsupported"] == pytest.approx(plain.diagnostics["unsupported"], abs=1e-10)


def test_encoded_labels_are_one_hot_states() -> None:
    case = random_case(11, ends=("terminal", "truncated"))
    assert case.log.final_states is not None
    codes = case.log.states.argmax(axis=1)[:, None].astype(float)
    finals = case.log.final_states.argmax(axis=1)[:, None].astype(float)
    log = case.log.replace(states=codes, final_states=finals, feature_names=("code",))
    estimator = LSTDQ(gamma=0.9, features=OneHotEncoder())
    assert estimator.fit(log, case.policy).estimate().value == pytest.approx(fit(case).value, rel=1e-10)


def ridge_value(case: Case, gamma: float, ridge: float) -> float:
    """Solve (A + ridge I) theta = b in pair indicators, every sum written out."""
    S, A = case.pi.shape
    matrix, b, start = ridge * np.eye(S * A), np.zeros(S * A), np.zeros(S * A)

    def spread(s: int) -> FloatArray:
        phi = np.zeros(S * A)
        phi[s * A : (s + 1) * A] = case.pi[s]
        return phi

    for i, episode in enumerate(paths(case.log)):
        start += spread(episode[0][0]) / case.log.n_episodes
        for t, (s, a, r) in enumerate(episode):
            last, k = t == len(episode) - 1, s * A + a
            matrix[k, k] += 1.0
            b[k] += r
            if not last or end_goes_on(case.log, i, stationary=True):
                matrix[k] -= gamma * spread(final_codes(case.log)[i] if last else episode[t + 1][0])
    return float(start @ np.linalg.solve(matrix, b))


@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
def test_ridge_is_added_to_the_matrix(ridge: float) -> None:
    case = random_case(12, ends=("terminal", "truncated"))
    assert fit(case, ridge=ridge).value == pytest.approx(ridge_value(case, 0.9, ridge), rel=1e-9)


@stationary_or_not
def test_reported_ridge_bias_is_the_first_order(stationary: bool) -> None:
    case = random_case(13, ends=("horizon",), n=100)
    plain, ridged = fit(case, stationary=stationary), fit(case, stationary=stationary, ridge=1e-4)
    assert ridged.diagnostics["ridge_bias"] == pytest.approx(ridged.value - plain.value, rel=1e-3)
    assert "ridge_bias" not in plain.diagnostics


@pytest.mark.parametrize("ridge", [-1.0, math.nan])
def test_bad_ridge_is_named(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge"):
        fit(random_case(13), ridge=ridge)


def unsupported_share(case: Case, gamma: float, stationary: bool) -> float:
    """Walk the candidate through the estimated process: its discounted share of pairs that were never logged."""
    model, log, pi = maximum_likelihood(case, gamma, stationary), case.log, case.pi
    H, (S, A) = len(model.q), pi.shape
    count, onward, d = np.zeros((H, S, A)), np.zeros((H, S, A, S)), np.zeros(S)
    for i, episode in enumerate(paths(log)):
        d[episode[0][0]] += 1 / log.n_episodes
        for t, (s, a, _) in enumerate(episode):
            k, last = (t if H > 1 else 0), t == len(episode) - 1
            count[k, s, a] += 1
            if not last or end_goes_on(log, i, stationary):
                onward[k, s, a, final_codes(log)[i] if last else episode[t + 1][0]] += 1
    lost = total = 0.0
    for t in range(H if H > 1 else 500):
        k = t if H > 1 else 0
        taken = gamma**t * d[:, None] * pi
        total, lost = total + taken.sum(), lost + taken[count[k] == 0].sum()
        d = np.einsum("sa,sab->b", d[:, None] * pi, onward[k] / np.maximum(count[k], 1)[:, :, None])
    return float(lost / total)


@stationary_or_not
@every_end
def test_unsupported_mass_is_the_share_of_unlogged_pairs(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(14, n=7, n_states=4, n_actions=4, longest=5, ends=ends)
    estimate, share = fit(case, stationary=stationary), unsupported_share(case, 0.9, stationary)
    assert share > 0.005
    assert estimate.diagnostics["unsupported"] == pytest.approx(share, rel=1e-9)
    assert estimate.value == pytest.approx(maximum_likelihood(case, 0.9, stationary).value, rel=1e-8)
    assert estimate.verdict.level > Level.VALID


def test_everything_logged_leaves_nothing_unsupported() -> None:
    assert fit(random_case(15, n=200)).diagnostics["unsupported"] == pytest.approx(0.0, abs=1e-12)


def test_an_action_that_was_never_logged_is_noticed() -> None:
    b, pi = np.array([[0.5, 0.5, 0.0]]), np.array([[0.2, 0.2, 0.6]])
    log = one_hot_log([0] * 100, [0, 1] * 50, [1.0] * 100, [1] * 100, "terminal", [0] * 100, b)
    estimate = fit(Case(log, b, pi))
    assert estimate.diagnostics["unsupported"] == pytest.approx(0.6)
    assert estimate.verdict.level is Level.REFUSE


def empty_rows_case(final: float, n_empty: int = 0, earned: float = 0.0) -> Case:
    """Return steps in a state of feature 1 that were truncated into one of feature `final`, and terminal ones in a state of feature 0."""
    g, n = np.random.default_rng(0), 200
    states = np.concatenate([np.ones(n), np.zeros(n_empty)])[:, None]
    a, last = g.integers(2, size=n + n_empty), np.full((n + n_empty, 1), final)
    rewards = np.where(states[:, 0] == 1, a + 0.1 * g.normal(size=n + n_empty), earned)
    ends = [int(End.TRUNCATED)] * n + [int(End.TERMINAL)] * n_empty
    log = LoggedDataset.from_arrays(
        states, a, rewards, lengths=[1] * (n + n_empty), ends=ends, final_states=last, behavior_prob=[0.5] * (n + n_empty)
    )  # fmt: skip
    return Case(log, np.array([[0.5, 0.5]]), np.array([[0.4, 0.6]]))


@pytest.mark.parametrize("method", [LSTDQ, LSTD])
def test_states_whose_features_are_all_0_are_unsupported(method: Any) -> None:
    def evaluate(case: Case) -> Estimate:
        policy = TabularPolicy(case.pi, state_code=lambda states: np.zeros(len(states), int))
        estimate: Estimate = method(gamma=0.9, features="identity").fit(case.log, policy).estimate()
        return estimate

    assert evaluate(empty_rows_case(1.0)).diagnostics["unsupported"] == pytest.approx(0.0, abs=1e-12)
    nobody = evaluate(empty_rows_case(0.0))
    assert nobody.diagnostics["unsupported"] == pytest.approx(0.9 / 1.9, rel=0.02)
    assert nobody.verdict.level is Level.REFUSE
    # An end that is coded as 0 says so itself: it earns nothing and leads nowhere. One that earns has no Q of 0.
    assert evaluate(empty_rows_case(0.0, 20)).diagnostics["unsupported"] == pytest.approx(0.0, abs=1e-12)
    assert evaluate(empty_rows_case(0.0, 20, earned=1.0)).diagnostics["unsupported"] > 0.4


def test_terminal_ends_are_no_states() -> None:
    log = empty_rows_case(0.0).log
    case = Case(log.replace(ends=np.full(200, int(End.TERMINAL))), np.array([[0.5, 0.5]]), np.array([[0.4, 0.6]]))
    policy = TabularPolicy(case.pi, state_code=lambda states: np.zeros(len(states), int))
    estimate = LSTDQ(gamma=0.9, features="identity").fit(case.log, policy).estimate()
    assert estimate.diagnostics["unsupported"] == pytest.approx(0.0, abs=1e-12)


# -------------------------------------------------------------------------------- a horizon that no episode reaches


@pytest.mark.parametrize("method", [LSTDQ, LSTD, MarginalizedIS, StateMarginalIS])
@pytest.mark.parametrize("ridge", [0.0, 1e-9])
def test_steps_without_rows_have_no_condition(method: Any, ridge: float) -> None:
    case = random_case(21, n=300, longest=3)
    estimates = [
        method(gamma=0.9, ridge=ridge).fit(case.log.replace(horizon=H), case.policy).estimate() for H in (3, 8)
    ]
    assert estimates[1].value == pytest.approx(estimates[0].value, rel=1e-9)
    assert estimates[1].diagnostics["condition"] == pytest.approx(estimates[0].diagnostics["condition"], rel=1e-6)
    assert estimates[1].verdict.level is estimates[0].verdict.level < Level.REFUSE


def test_episodes_cut_before_the_horizon_are_still_refused() -> None:
    case = random_case(22, n=300, longest=3, ends=("truncated",))
    assert fit(Case(case.log.replace(horizon=8), case.b, case.pi)).verdict.level is Level.REFUSE


# -------------------------------------------------------------------------------- units of features


def drifting(constant: float, factor: float = 1.0) -> LoggedDataset:
    """Return a walk on a line, written as (factor x, constant)."""
    g, n, length = np.random.default_rng(3), 150, 4
    x, a = np.zeros((n, length + 1)), g.integers(2, size=(n, length))
    x[:, 0] = g.normal(size=n)
    for t in range(length):
        x[:, t + 1] = 0.8 * x[:, t] + 0.5 * a[:, t] + 0.1 * g.normal(size=n)
    rewards = x[:, :-1] + a + 0.1 * g.normal(size=(n, length))
    states = np.stack([factor * x, np.full_like(x, constant)], axis=2)
    return LoggedDataset.from_arrays(
        states[:, :-1].reshape(-1, 2), a.ravel(), rewards.ravel(), lengths=[length] * n, ends="truncated",
        final_states=states[:, -1], behavior_prob=[0.5] * (n * length),
    )  # fmt: skip


@pytest.mark.parametrize("horizon", [None, 4])
@pytest.mark.parametrize(("constant", "factor"), [(1e4, 1.0), (1e5, 1.0), (1e7, 1.0), (1.0, 1e-6), (1e5, 1e-3)])
def test_units_of_features_play_no_part(constant: float, factor: float, horizon: int | None) -> None:
    def evaluate(log: LoggedDataset) -> Estimate:
        policy = TabularPolicy([[0.3, 0.7]], state_code=lambda states: np.zeros(len(states), int))
        log = log if horizon is None else log.replace(ends=np.full(150, int(End.HORIZON)), horizon=horizon)
        estimate: Estimate = LSTDQ(gamma=0.9, features="identity").fit(log, policy).estimate()
        return estimate

    plain, other = evaluate(drifting(1.0)), evaluate(drifting(constant, factor))
    assert other.value == pytest.approx(plain.value, rel=1e-6)
    assert other.std_error == pytest.approx(plain.std_error, rel=1e-5)
    assert other.diagnostics["condition"] == pytest.approx(plain.diagnostics["condition"], rel=1e-5)
    assert other.verdict.level is plain.verdict.level


# -------------------------------------------------------------------------------- laws


@stationary_or_not
def test_blocks_equal_one_block(stationary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(16, ends=("terminal", "horizon", "truncated"), n=40)
    whole = fit(case, stationary=stationary)
    monkeypatch.setattr(LoggedDataset.blocks, "__defaults__", (9,))
    parts = fit(case, stationary=stationary)
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(parts), influence_of(whole), rtol=1e-8, atol=1e-10)
    for key in ("ess", "condition", "unsupported", "left_out_transitions"):
        assert parts.diagnostics[key] == pytest.approx(whole.diagnostics[key], rel=1e-8)


@stationary_or_not
@pytest.mark.parametrize("factor", [-3.0, 1e5])
def test_scaled_rewards_scale_the_value(factor: float, stationary: bool) -> None:
    case = random_case(17, ends=("terminal", "horizon"))
    scaled = Case(case.log.replace(rewards=case.log.rewards * factor), case.b, case.pi)
    before, after = fit(case, stationary=stationary), fit(scaled, stationary=stationary)
    assert after.value == pytest.approx(factor * before.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(after), factor * influence_of(before), rtol=1e-7, atol=1e-9 * abs(factor))


@stationary_or_not
def test_order_of_episodes_does_not_matter(stationary: bool) -> None:
    case = random_case(18, ends=("terminal", "horizon"))
    order = np.random.default_rng(0).permutation(case.log.n_episodes)
    before = fit(case, stationary=stationary)
    after = fit(Case(case.log.select(order), case.b, case.pi), stationary=stationary)
    assert after.value == pytest.approx(before.value, rel=1e-10)
    np.testing.assert_allclose(influence_of(after), influence_of(before)[order], rtol=1e-8, atol=1e-10)


def noise_around_half(states: FloatArray, rng: np.random.Generator) -> FloatArray:
    return -0.5 * states + 0.3 * rng.normal(size=states.shape)


def density_around_half(states: FloatArray, actions: FloatArray) -> FloatArray:
    return GaussianPolicy(mean=[-0.5], std=0.3).log_prob(states, actions)


DRAWN = FunctionPolicy(log_prob=density_around_half, sample=noise_around_half)


@pytest.mark.parametrize(
    "estimator",
    [
        LSTDQ(gamma=0.9, n_samples=4),
        LSTDQ(gamma=0.9, n_samples=4, trace="retrace"),
        FittedQEvaluation(gamma=0.9, n_samples=4, regressor=LinearRegression(), features="auto", tol=1e-9),
        DoublyRobust(gamma=0.9, q=LSTDQ(n_samples=4), n_folds=2),
    ],
    ids=["lstdq", "trace", "fqe", "dr"],
)
def test_draws_belong_to_episodes(estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the order of episodes nor the blocks that a log is read in change what a sampled candidate does."""
    log = ScalarLQR(max_steps=4).sample(40, random_state=1)
    whole = estimator.fit(log, DRAWN).estimate()
    order = np.random.default_rng(0).permutation(40)
    assert estimator.fit(log.select(order), DRAWN).estimate().value == pytest.approx(whole.value, rel=1e-9)
    monkeypatch.setattr(LoggedDataset.blocks, "__defaults__", (9,))
    assert estimator.fit(log, DRAWN).estimate().value == pytest.approx(whole.value, rel=1e-9)
    params = {"random_state": 1} if not isinstance(estimator, DoublyRobust) else {"q__random_state": 1}
    assert clone(estimator).set_params(**params).fit(log, DRAWN).estimate().value != whole.value


def test_many_draws_are_the_expectation() -> None:
    log = ScalarLQR(max_steps=4).sample(60, random_state=1)
    exact = LSTDQ(gamma=0.9).fit(log, GaussianPolicy(mean=[-0.5], std=0.3)).estimate()
    drawn = LSTDQ(gamma=0.9, n_samples=400).fit(log, DRAWN).estimate()
    assert drawn.value == pytest.approx(exact.value, abs=0.1 * exact.std_error)


# -------------------------------------------------------------------------------- specification test


@pytest.mark.parametrize(
    ("problem", "stationary"),
    [
        (RandomMDP(4, 2, max_steps=12, terminals=1, random_state=1), True),
        (RandomMDP(4, 2, horizon=5, random_state=2), False),
        (RandomMDP(3, 2, horizon=4, terminals=1, reward_std=0.5, random_state=3), False),
    ],
)
def test_specification_test_keeps_its_size(problem: TabularProblem, stationary: bool) -> None:
    """300 logs of right models: a rate of .05 has a standard error of .0126."""
    p = np.array([
        fit(sampled(problem, 100, seed), stationary=stationary).diagnostics["specification_p"] for seed in range(300)
    ])  # fmt: skip
    assert np.mean(p < 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean(p < 0.2) < 0.2 + 3 * math.sqrt(0.2 * 0.8 / 300)
    assert np.mean(p < 0.2) > 0.05


@stationary_or_not
@pytest.mark.parametrize("ends", [("terminal", "truncated"), ("terminal", "horizon", "truncated")], ids="-".join)
def test_specification_test_reads_episodes_by_their_weight(ends: tuple[str, ...], stationary: bool) -> None:
    case = random_case(19, n=60, ends=ends)
    kept = np.arange(60) % 3 > 0
    weighted = fit(case, weight=kept.astype(float), stationary=stationary)
    chosen = fit(Case(case.log.select(kept), case.b, case.pi), stationary=stationary)
    p = chosen.diagnostics["specification_p"]
    assert weighted.diagnostics["specification_p"] == pytest.approx(p, rel=1e-8)
    doubled = fit(case, weight=kept + kept.astype(float), stationary=stationary)
    assert doubled.diagnostics["specification_p"] == pytest.approx(p, rel=1e-8)


@pytest.mark.parametrize("problem", [ModelFail(), Hybrid()], ids=repr)
def test_specification_test_finds_hidden_states(problem: TabularProblem) -> None:
    for seed in range(5):
        estimate = fit(sampled(problem, 500, seed), 1.0)
        assert estimate.diagnostics["specification_p"] < 1e-3
        assert estimate.verdict.level is Level.REFUSE
