"""Transitions on the device against a plain loop over episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ope.dataset import LoggedDataset
from ope.neural.transitions import CHUNK, Batch, BatchSampler, Standardizer, Transitions, _inverse
from ope.schema import End

# Next states and `from_arrays` may leave the masks of final states unknown: tests/data/test_log_care.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*final state of a truncated episode:UserWarning")

NAN = float("nan")


def mixed_log(**changes: Any) -> LoggedDataset:
    """Five episodes: terminal, horizon with and without final state, truncated, terminal of one step."""
    options: dict[str, Any] = {
        "states": np.arange(11.0).reshape(-1, 1) * [1.0, 10.0],
        "actions": [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1],
        "rewards": np.arange(11.0) / 2,
        "lengths": [2, 3, 3, 2, 1],
        "ends": [End.TERMINAL, End.HORIZON, End.HORIZON, End.TRUNCATED, End.TERMINAL],
        "final_states": [[NAN, NAN], [50.0, 51.0], [NAN, NAN], [70.0, 71.0], [90.0, 91.0]],
        "horizon": 3,
    }
    return LoggedDataset.from_arrays(**{**options, **changes})


def expected_rows(log: LoggedDataset, masks: bool = False) -> list[dict[str, Any]]:
    """Return what every row should hold, one episode at a time."""
    rows = []
    for episode in range(log.n_episodes):
        low, high = int(log.offsets[episode]), int(log.offsets[episode + 1])
        for row in range(low, high):
            inside = row + 1 < high
            terminal = not inside and log.ends[episode] == End.TERMINAL
            known = log.final_states is not None and not np.isnan(log.final_states[episode]).any()
            if masks and not inside:
                known = known and log.final_action_mask is not None and bool(log.final_action_mask[episode].any())
            usable = inside or known
            next_state, next_mask = None, None
            if inside:
                next_state = log.states[row + 1]
                next_mask = log.action_mask[row + 1] if log.action_mask is not None else None
            elif usable and log.final_states is not None:
                next_state = log.final_states[episode]
                next_mask = log.final_action_mask[episode] if log.final_action_mask is not None else None
            rows.append(
                {
                    "continues": 0.0 if terminal else 1.0,
                    "bellman": 1.0 if terminal or usable else 0.0,
                    "next_state": None if terminal else next_state,
                    "next_mask": None if terminal else next_mask,
                }
            )
    return rows


def check_against_loop(log: LoggedDataset, masks: bool = False) -> Transitions:
    found = Transitions.from_dataset(log)
    batch = Batch(found, torch.arange(len(log)).unsqueeze(0))
    np.testing.assert_allclose(batch.states[0], log.states)
    np.testing.assert_array_equal(batch.actions[0], log.actions)
    np.testing.assert_allclose(batch.rewards[0], log.rewards)
    rows = expected_rows(log, masks)
    for i, row in enumerate(rows):
        assert float(batch.continues[0, i]) == row["continues"], i
        assert float(batch.bellman[0, i]) == row["bellman"], i
        if row["next_state"] is not None:
            np.testing.assert_allclose(batch.next_states[0, i], row["next_state"])
        if row["next_mask"] is not None:
            assert batch.next_action_mask is not None
            np.testing.assert_array_equal(batch.next_action_mask[0, i], row["next_mask"])
    assert found.n_excluded == sum(row["bellman"] == 0.0 for row in rows)
    assert torch.isfinite(batch.next_states).all()
    return found


def test_ends_and_successors_equal_a_plain_loop() -> None:
    assert check_against_loop(mixed_log()).n_excluded == 1


def test_no_final_states_at_all() -> None:
    log = mixed_log(final_states=None, ends=["terminal", "horizon", "horizon", "terminal", "terminal"])
    assert check_against_loop(log).n_excluded == 2


def test_masks_follow_the_states_and_unknown_final_masks_are_left_out() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((11, 3)) < 0.5
    mask[np.arange(11), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]] = True
    final = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 1, 0], [1, 1, 1]], dtype=bool)
    found = check_against_loop(mixed_log(action_mask=mask, final_action_mask=final), masks=True)
    assert found.n_excluded == 1
    found = check_against_loop(mixed_log(action_mask=mask), masks=True)
    assert found.n_excluded == 3


def test_a_final_state_without_an_available_action_has_no_target() -> None:
    final = np.ones((5, 3), dtype=bool)
    final[3] = False
    log = mixed_log(action_mask=np.ones((11, 3), dtype=bool)).replace(final_action_mask=final)
    assert check_against_loop(log, masks=True).n_excluded == 2


def test_continuous_actions_and_standardisation() -> None:
    actions = np.linspace(-3, 5, 22).reshape(11, 2)
    log = mixed_log(actions=actions)
    states, scaler = Standardizer.fit(log.states), Standardizer.fit(actions)
    found = Transitions.from_dataset(log, states=states, actions=scaler)
    assert not found.discrete
    assert found.n_actions == 2
    np.testing.assert_allclose(
        found.states[:11], (log.states - log.states.mean(0)) / (log.states.std(0) + 1e-3), rtol=1e-6
    )
    np.testing.assert_allclose(
        found.states[11:], (np.array([[50, 51], [70, 71.0]]) - states.shift) / states.scale, rtol=1e-6
    )
    np.testing.assert_allclose(found.actions, (actions - actions.mean(0)) / (actions.std(0) + 1e-3), rtol=1e-6)
    np.testing.assert_allclose(scaler.inverse(scaler.transform(actions)), actions, rtol=1e-12)


def test_identity_standardizer() -> None:
    values = np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(Standardizer.identity(2).transform(values), values)


# -------------------------------------------------------------------- batches


def test_batches_of_a_model_do_not_depend_on_neighbours() -> None:
    transitions = Transitions.from_dataset(mixed_log())
    together, alone = BatchSampler(transitions, [4, 5, 6], 7), BatchSampler(transitions, [5], 7)
    for _ in range(CHUNK + 3):
        ours, theirs = together.next(), alone.next()
        assert torch.equal(ours.states[1], theirs.states[0])
        assert torch.equal(ours.actions[1], theirs.actions[0])


@pytest.mark.parametrize("used", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_sampler_goes_on_with_the_same_batches(used: int, weighted: bool) -> None:
    transitions = Transitions.from_dataset(mixed_log())
    weights = np.arange(11.0) if weighted else None
    sampler = BatchSampler(transitions, [0, 1], 5, weights)
    for _ in range(used):
        sampler.next()
    state = {name: value.clone() for name, value in sampler.state().items()}
    expected = [sampler.next().rewards for _ in range(CHUNK + 2)]
    other = BatchSampler(transitions, [7, 8], 5, weights)
    other.next()
    other.load_state(state)
    assert all(torch.equal(other.next().rewards, batch) for batch in expected)


def test_rows_are_drawn_uniformly() -> None:
    transitions = Transitions.from_dataset(mixed_log())
    sampler = BatchSampler(transitions, [0], 500)
    counts = np.bincount(
        np.concatenate([(sampler.next().rewards[0] * 2).int().numpy() for _ in range(40)]), minlength=11
    )
    expected = 20000 / 11
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)


def test_weighted_rows_are_drawn_in_proportion_each_model_by_its_own() -> None:
    transitions = Transitions.from_dataset(mixed_log())
    weights = np.array([[0.0, 1, 2, 0, 0, 3, 0, 1, 1, 0, 0], [1.0] + [0.0] * 10])
    sampler = BatchSampler(transitions, [0, 1], 500, weights)
    rows = np.concatenate([(sampler.next().rewards * 2).int().numpy() for _ in range(40)], axis=1)
    counts = np.bincount(rows[0], minlength=11)
    expected = 20000 * weights[0] / weights[0].sum()
    assert (counts[weights[0] == 0] == 0).all()
    assert (np.abs(counts - expected) <= 4 * np.sqrt(expected)).all()
    assert (rows[1] == 0).all()


def test_no_draw_on_a_boundary_finds_a_row_of_weight_zero() -> None:
    cumulated = torch.tensor([0.0, 1.0, 1.0, 4.0, 4.0], dtype=torch.float64)
    draws = torch.tensor([0.0, 0.2499, 0.25, 0.9999, 1.0], dtype=torch.float64)
    assert _inverse(cumulated, draws).tolist() == [1, 1, 3, 3, 3]


def test_bellman_mean_averages_over_rows_with_a_target() -> None:
    transitions = Transitions.from_dataset(mixed_log())
    batch = Batch(transitions, torch.tensor([[6, 7, 7, 0], [7, 7, 7, 7]]))
    values = torch.tensor([[1.0, 100.0, 100.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
    assert batch.bellman_mean(values).tolist() == [3.0, 0.0]
