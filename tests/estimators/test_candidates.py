"""What candidates do in every stored state: the table against the policies asked row by row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ope import LoggedDataset
from ope.estimators._candidates import MAX_NODES, CandidateTable, gather, systematic
from ope.neural.transitions import Standardizer, Transitions
from ope.policies import FunctionPolicy, GaussianPolicy
from ope.testing.logs import make_case
from ope.validation import FloatArray


def wide_log(n: int = 40, k: int = 3) -> LoggedDataset:
    rng = np.random.default_rng(0)
    lengths = [n // 4] * 4
    return LoggedDataset.from_arrays(
        rng.normal(size=(n, 2)), rng.normal(size=(n, k)), rng.normal(size=n), lengths=lengths,
        ends=["terminal", "truncated"] * 2, final_states=rng.normal(size=(4, 2)),
    )  # fmt: skip


def test_probabilities_of_rows_then_of_known_final_states() -> None:
    case = make_case("mixed")
    table = CandidateTable.build(case.log, [case.candidate, case.other])
    data = Transitions.from_dataset(case.log)
    assert table.probs is not None
    assert table.probs.shape == (2, len(data.states), 3)
    for k, policy in enumerate((case.candidate, case.other)):
        np.testing.assert_allclose(table.probs[k], policy.predict_proba(data.states.numpy()), atol=1e-6)
    assert table.start_index.tolist() == case.log.offsets[:-1].tolist()


def test_expected_value_is_the_sum_over_all_actions() -> None:
    case = make_case("mixed")
    table = CandidateTable.build(case.log, [case.candidate, case.other])
    assert table.probs is not None
    rows = torch.tensor([3, 0, 7])
    q = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    loop = [[sum(float(table.probs[k, rows[b], a] * q[k, b, a]) for a in range(3)) for b in range(3)] for k in range(2)]
    np.testing.assert_allclose(table.expected(q, rows), loop, rtol=1e-5)
    own = torch.stack([rows, rows.flip(0)])
    np.testing.assert_allclose(table.expected(q, own)[0], table.expected(q, rows)[0], rtol=1e-6)


def test_deterministic_candidates_have_one_node_and_others_are_padded_with_weight_0() -> None:
    log = wide_log(k=1)
    exact = FunctionPolicy(predict=lambda s: 2.0 * s[:, :1])
    noisy = FunctionPolicy(predict=lambda s: s[:, :1], sample=lambda s, g: s[:, :1] + g.normal(size=(len(s), 1)))
    table = CandidateTable.build(log, [exact, GaussianPolicy([[1.0], [0.0]], 0.5)], n_samples=4)
    assert table.actions is not None
    assert table.weights is not None
    assert table.weights[0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(table.weights.sum(dim=1), 1.0, rtol=1e-6)
    states = np.concatenate([log.states, log.final_states[[1, 3]]]) if log.final_states is not None else log.states
    np.testing.assert_allclose(table.actions[0, :, 0, 0], 2.0 * states[:, 0], rtol=1e-5)
    second = torch.einsum("ns,s->n", table.actions[1, :, :, 0] ** 2, table.weights[1])
    np.testing.assert_allclose(second, states[:, 0] ** 2 + 0.25, rtol=1e-4)
    assert "deterministic" not in noisy.capabilities or table.n_candidates == 2


def test_candidates_do_not_depend_on_who_is_asked_beside_them() -> None:
    log = wide_log()
    policies = [
        FunctionPolicy(sample=lambda s, g: s[:, :1] + g.normal(size=(len(s), 3)), log_prob=_none),
        FunctionPolicy(sample=lambda s, g: g.normal(size=(len(s), 3)), log_prob=_none),
    ]
    both, alone = (CandidateTable.build(log, part, n_samples=5) for part in (policies, policies[1:]))
    assert both.actions is not None
    assert alone.actions is not None
    assert torch.equal(both.actions[1], alone.actions[0])
    assert torch.equal(both.part([1]).actions, alone.actions)  # type: ignore[arg-type]


def _none(_states: FloatArray, actions: FloatArray) -> FloatArray:
    return np.zeros(len(actions))


def test_large_quadrature_rules_are_thinned_without_bias() -> None:
    log = wide_log(n=4000)
    policy = GaussianPolicy(np.zeros((2, 3)), [1.0, 2.0, 0.5])
    assert len(policy.quadrature_rows(log.rows())[1]) > MAX_NODES
    table = CandidateTable.build(log, [policy], n_samples=16)
    assert table.actions is not None
    assert table.actions.shape == (1, 4002, 16, 3)
    squares = (table.actions[0].double() ** 2).mean(dim=1)
    error = squares.std(dim=0) / np.sqrt(len(squares))
    assert (abs(squares.mean(dim=0) - torch.tensor([1.0, 4.0, 0.25])) < 4.0 * error).all()


def test_random_nodes_have_the_expectation_of_all_nodes() -> None:
    log = wide_log(k=1)
    table = CandidateTable.build(log, [GaussianPolicy([[1.0], [0.0]], 0.5), FunctionPolicy(predict=_first)])
    rows = torch.full((40_000,), 5)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    few = table.random_nodes(rows, 2, uniform)
    nodes, weights = table.nodes(rows[:1])
    exact = torch.einsum("kbsa,ks->kba", nodes, weights)[:, 0, 0]
    gap = few.mean(dim=(1, 2))[:, 0] - exact
    assert gap.abs().max() < 4.0 * 0.5 / np.sqrt(40_000)
    own = table.random_nodes(rows.expand(2, -1), 2, uniform)
    assert torch.equal(own, few)


def _first(states: FloatArray) -> FloatArray:
    return states[:, :1]


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0 - 1e-16])
def test_systematic_sampling_never_takes_a_node_of_weight_0(u: float) -> None:
    weights = torch.tensor([[0.0, 0.3, 0.7, 0.0], [1.0, 0.0, 0.0, 0.0]])
    chosen = systematic(weights, torch.full((2, 3), u, dtype=torch.float64), 4)
    assert set(chosen[0].flatten().tolist()) <= {1, 2}
    assert set(chosen[1].flatten().tolist()) == {0}


def test_gather_of_shared_and_own_rows() -> None:
    table = torch.arange(24.0).view(2, 3, 4)
    rows = torch.tensor([2, 0])
    assert torch.equal(gather(table, rows), gather(table, rows.expand(2, 2)))


def test_actions_are_standardised_like_the_log() -> None:
    log = wide_log()
    scaler = Standardizer.fit(log.actions)
    table = CandidateTable.build(log, [FunctionPolicy(predict=_three)], actions=scaler)
    assert table.actions is not None
    np.testing.assert_allclose(table.actions[0, :40, 0], scaler.transform(_three(log.states)), rtol=1e-5, atol=1e-6)


def _three(states: FloatArray) -> FloatArray:
    return np.tile(states[:, :1], (1, 3))


@pytest.mark.parametrize(
    ("answer", "words"),
    [(np.zeros((40, 2)), "action columns of the log"), (np.full((40, 3), np.nan), "must be finite")],
)
def test_actions_that_do_not_fit_the_log_are_named(answer: npt.NDArray[np.float64], words: str) -> None:
    policy = FunctionPolicy(predict=lambda states: np.resize(answer, (len(states), answer.shape[1])))
    with pytest.raises(ValueError, match=words):
        CandidateTable.build(wide_log(), [policy])
