"""The parts of neural fitted Q evaluation against NumPy: scaling, features, last layers, ratios."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ope import LoggedDataset, ragged
from ope.estimators import _neural_fqe_values as values
from ope.estimators._candidates import CandidateTable
from ope.estimators._neural_fqe_inference import solve_last_layers
from ope.estimators._neural_fqe_last_layer import LayerSums, RowSet, adjoint, anchored_solution, look, sum_rows
from ope.estimators._neural_fqe_problem import Problem, attainable, fit_scaling, rough_returns, time_columns
from ope.estimators._neural_fqe_support import action_novelty
from ope.estimators._neural_fqe_training import Members, Path, Trained, start_table
from ope.estimators._neural_fqe_values import QNetworks
from ope.neural.device import use_threads
from ope.neural.networks import MLP
from ope.neural.optimizer import FlatAdam
from ope.neural.regression import Regression
from ope.policies import FunctionPolicy
from ope.testing.logs import make_case
from ope.validation import FloatArray

CPU = torch.device("cpu")
GAMMA = 0.9
RIDGE = 0.01


def problem_of(kind: str, *, stationary: bool = True, n_samples: int = 4) -> tuple[LoggedDataset, Problem]:
    case = make_case(kind)
    scaling = fit_scaling(case.log, GAMMA, stationary=stationary, action_range=None)
    policies = [case.candidate, case.other]
    table = CandidateTable.build(case.log, policies, actions=scaling.actions, n_samples=n_samples)
    return case.log, Problem.build(case.log, table, scaling, GAMMA, CPU)


def networks(problem: Problem, n_members: int = 2, hidden: Sequence[int] = (6,)) -> QNetworks:
    n_models = problem.table.n_candidates * n_members
    network = MLP([problem.inputs.shape[1], *hidden, problem.n_outputs], n_models, layer_norm=True)
    network.initialize([torch.Generator().manual_seed(i) for i in range(n_models)])
    return QNetworks(problem, network, n_members)


# -------------------------------------------------------------------- scaling


def test_returns_of_every_row_by_a_loop() -> None:
    case = make_case("mixed")
    log, endless = case.log, float(case.log.rewards.mean()) / (1.0 - GAMMA)
    expected = []
    for i, (low, high) in enumerate(zip(log.offsets[:-1], log.offsets[1:], strict=True)):
        ahead = 0.0 if log.ends[i] == 0 else endless
        rest = []
        for row in range(high - 1, low - 1, -1):
            ahead = log.rewards[row] + GAMMA * ahead
            rest.append(ahead)
        expected += rest[::-1]
    np.testing.assert_allclose(rough_returns(log, GAMMA, stationary=True), expected)


def test_networks_see_the_same_numbers_whatever_the_unit_of_the_rewards() -> None:
    log = make_case("terminal").log
    for factor in (-2.0, 2.0**20):
        scaled = log.replace(rewards=factor * log.rewards)
        one, other = (fit_scaling(part, GAMMA, stationary=True, action_range=None) for part in (log, scaled))
        assert (other.offset, other.low, other.high) == (one.offset, one.low, one.high)
        assert other.unit == factor * one.unit


def test_attainable_values() -> None:
    log = make_case("horizon").log.replace(reward_range=(-1.0, 2.0))
    assert attainable(log, 0.5, None) == (-2.0, 4.0)
    assert attainable(log, 1.0, 5) == (-5.0, 10.0)
    assert attainable(log, 1.0, None) == (-np.inf, np.inf)


def test_time_is_told_apart_at_every_step() -> None:
    columns = time_columns(np.arange(21), 20)
    assert columns.shape == (21, 7)
    assert abs(columns).max() <= 1.0
    gaps = np.linalg.norm(columns[:, None] - columns[None], axis=2) + np.eye(21)
    assert gaps.min() > 0.09


# -------------------------------------------------------------------- features and last layers


@pytest.mark.parametrize("kind", ["terminal", "mixed", "continuous"])
@pytest.mark.parametrize("tied", [False, True])
def test_values_are_linear_in_the_features(kind: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tied:
        monkeypatch.setattr(values, "MAX_BLOCK_FEATURES", 0)
    _, problem = problem_of(kind)
    nets = networks(problem)
    rows = torch.tensor([[0, 3, 5], [1, 2, 4]])
    for seen in (nets.logged(rows), nets.candidate(rows)):
        linear = torch.einsum("mbp,mp->mb", nets.features(seen).double(), nets.coefficients())
        np.testing.assert_allclose(linear, nets.q(seen).detach(), rtol=2e-5, atol=2e-6)
    wanted = nets.coefficients() + torch.randn(nets.coefficients().shape, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("mbp,mp->mb", nets.features(nets.logged(rows)).double(), wanted)
    nets.set_coefficients(wanted)
    np.testing.assert_allclose(nets.q(nets.logged(rows)).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mixed", "continuous", "deterministic"])
def test_values_by_a_loop_over_models_rows_and_actions(kind: str) -> None:
    _, problem = problem_of(kind)
    nets, table, data = networks(problem), problem.table, problem.transitions
    rows = torch.tensor([[0, 3], [1, len(problem.transitions.states) - 1]])
    found = nets.q(nets.candidate(rows)).detach()
    for k in range(2):
        for r in range(2):
            net = nets.network.with_rows(nets.network.parameters.flat[2 * k + r : 2 * k + r + 1])
            for b, row in enumerate(rows[r]):
                state = data.states[row]
                if table.probs is not None:
                    value = float((net(state[None])[0, 0] * table.probs[k, row]).sum())
                else:
                    assert table.actions is not None
                    assert table.weights is not None
                    pairs = [torch.cat([state, action]) for action in table.actions[k, row]]
                    value = sum(float(w * net(p[None])[0, 0, 0]) for w, p in zip(table.weights[k], pairs, strict=True))
                assert float(found[2 * k + r, b]) == pytest.approx(value, abs=1e-5)


def lstdq_by_numpy(
    log: LoggedDataset, nets: QNetworks, weight: FloatArray, model: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return theta, u, w and eps of one model with plain sums in float64, all nodes in every expectation."""
    start = nets.coefficients()[model].numpy()
    rows = torch.arange(len(log)).expand(nets.n_members, -1)
    phi, ahead, rewards = (x[model].double().numpy() for x in look(nets, rows, 99, torch.Generator()))
    used = nets.problem.transitions.bellman.double().numpy()
    row_weight = np.repeat(weight, log.lengths) * used
    a, b = np.zeros((phi.shape[1], phi.shape[1])), np.zeros(phi.shape[1])
    for i in range(len(log)):
        a += row_weight[i] * np.outer(phi[i], phi[i] - GAMMA * ahead[i])
        b += row_weight[i] * rewards[i] * phi[i]
    starts = nets.features(nets.candidate(torch.as_tensor(log.offsets[:-1].copy()).expand(nets.n_members, -1)))[model]
    ridge = RIDGE + len(a) * np.sum(row_weight**2) / np.sum(row_weight) ** 2
    damped = a + ridge * np.eye(len(a)) * np.sum(row_weight * (phi**2).sum(axis=1)) / len(a)
    theta = start + np.linalg.solve(damped, b - a @ start)
    u = np.linalg.solve(damped.T, weight @ starts.double().numpy())
    return theta, u, phi @ u, rewards + (GAMMA * ahead - phi) @ theta


@pytest.mark.parametrize("kind", ["mixed", "continuous"])
def test_last_layer_and_adjoint_are_lstdq_on_the_hidden_layer(kind: str) -> None:
    log, problem = problem_of(kind)
    nets = networks(problem, n_members=1)
    weight = np.linspace(0.5, 1.5, log.n_episodes)
    row_weight = torch.as_tensor(np.repeat(weight, log.lengths)) * problem.transitions.bellman
    chosen = RowSet(torch.arange(len(log))[None], row_weight[None].float())
    sums = sum_rows(nets, chosen, 99, torch.Generator())
    theta = anchored_solution(sums, nets.coefficients(), RIDGE)
    for model in range(2):
        expected, _, _, _ = lstdq_by_numpy(log, nets, weight, model)
        np.testing.assert_allclose(theta[model], expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    for _ in range(2000):
        theta = anchored_solution(sums, theta, RIDGE)
    # No ridge bias is left once the network solves the equations.
    rest = sums.reward - (sums.system @ theta[..., None]).squeeze(-1)
    assert rest.abs().max() < 1e-6 * sums.reward.abs().max()


def test_an_anchored_solution_stays_where_the_log_says_nothing() -> None:
    _, problem = problem_of("terminal")
    nets = networks(problem, n_members=1)
    nothing = RowSet(torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5))
    sums = sum_rows(nets, nothing, 2, torch.Generator())
    assert torch.equal(anchored_solution(sums, nets.coefficients(), 0.1), nets.coefficients())
    assert torch.isfinite(adjoint(sums, torch.ones_like(nets.coefficients()), 0.1)).all()


@pytest.mark.parametrize("kind", ["mixed", "deterministic"])
def test_corrections_and_visits_of_unseen_episodes(kind: str) -> None:
    log, problem = problem_of(kind, n_samples=3)
    nets = networks(problem, hidden=(4,))
    held = np.arange(log.n_episodes) % 2 == np.array([[0], [1]])
    members = Members(np.where(held, 0.0, 1.0), held)
    trained = Trained(nets, Path(np.zeros((1, 4)), np.zeros((1, 4)), np.zeros((1, 4))), (), np.zeros(4))
    expected = [lstdq_by_numpy(log, nets, members.weight[m % 2], m) for m in range(4)]
    fitted = solve_last_layers(trained, members, log.offsets, RIDGE, 0)
    episode = ragged.episode_index(log.offsets)
    used = problem.transitions.bellman.numpy() > 0
    for m in range(4):
        _, _, w, eps = expected[m]
        unseen = held[m % 2][episode] & used
        scale = abs(w * eps).max()
        np.testing.assert_allclose(fitted.ratios[m], np.where(unseen, w, 0.0), rtol=1e-3, atol=1e-3 * abs(w).max())
        products = np.bincount(episode, np.where(unseen, w * eps, 0.0))
        np.testing.assert_allclose(fitted.correction[m], products, rtol=1e-3, atol=1e-3 * scale)
        np.testing.assert_allclose(fitted.visits[m], np.bincount(episode, fitted.ratios[m]), rtol=1e-9)
    np.testing.assert_allclose(fitted.layer_start, start_table(nets).detach(), rtol=1e-6)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
def test_gradients_written_out_are_those_of_autograd(layer_norm: bool, hidden: tuple[int, ...]) -> None:
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    network = MLP([4, *hidden, 2], 3, layer_norm=layer_norm).initialize(generators)
    twin = network.copy(trainable=True)
    regression = Regression(network, FlatAdam([network.parameters], [1e-2] * 3, [0.0] * 3))
    optimizer = FlatAdam([twin.parameters], [1e-2] * 3, [0.0] * 3)
    x, y = (torch.randn(3, 7, size, generator=generators[0]) for size in (4, 2))
    for _ in range(3):
        regression.step(2.0 * (regression.forward(x) - y))
        optimizer.minimize((twin(x) - y).square().sum())
        np.testing.assert_allclose(regression.optimizer.gradients[0], optimizer.gradients[0], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(network.parameters.flat, twin.parameters.flat, rtol=1e-4, atol=1e-5)


def test_many_wide_systems_are_solved_whatever_the_threads() -> None:
    """torch.linalg.solve fails here with two threads: "Pivots given to lu_solve must all be greater or equal to 1"."""
    rng = np.random.default_rng(0)
    systems, right = rng.normal(size=(24, 257, 257)) + 30.0 * np.eye(257), rng.normal(size=(24, 257))
    ones = torch.ones(24, dtype=torch.float64)
    sums = LayerSums(torch.from_numpy(systems), torch.from_numpy(right), 0.0 * ones, ones)
    with use_threads(2):
        for _ in range(3):
            found = anchored_solution(sums, torch.zeros(24, 257, dtype=torch.float64), 0.0)
    expected = np.linalg.solve(systems + np.eye(257), right[..., None])[..., 0]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_singular_system_has_no_solution() -> None:
    ones = torch.ones(2, dtype=torch.float64)
    systems = torch.stack([-torch.eye(3), torch.eye(3)]).double()  # a trace of 0 adds the identity
    found = anchored_solution(
        LayerSums(systems, torch.ones(2, 3).double(), 0.0 * ones, ones), torch.zeros(2, 3).double(), 0.0
    )
    assert found[0].isnan().all()
    assert (found[1] == 0.5).all()


# -------------------------------------------------------------------- support


def test_novelty_tells_far_actions_from_logged_ones() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(2000, 2))
    actions = states[:, :1] + rng.normal(size=(2000, 1))
    log = LoggedDataset.from_arrays(states, actions, rng.normal(size=2000), lengths=[20] * 100, ends="terminal")
    scaling = fit_scaling(log, GAMMA, stationary=True, action_range=None)
    near = FunctionPolicy(sample=lambda s, g: s[:, :1] + g.normal(size=(len(s), 1)), predict=lambda s: s[:, :1])
    far = FunctionPolicy(predict=lambda s: s[:, :1] + 8.0)
    table = CandidateTable.build(log, [near, far], actions=scaling.actions)
    problem = Problem.build(log, table, scaling, GAMMA, CPU)
    shares = action_novelty(problem, log.offsets, np.ones((2, 2000)), 0)
    assert shares[0] < 0.17  # one in ten logged actions is unlike the rest
    assert shares[1] > 0.95
