"""AWR: returns of ragged episodes, weights, losses and gradients against plain loops, and what it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_logs import batch_of, line_log, line_value, plain, random_log, same_gradients, unlike

from ope.dataset import LoggedDataset
from ope.neural.transitions import Batch, Transitions
from ope.policies._awr_step import AWRStep, lambda_returns, reverse_scan, value_unit
from ope.policies.awr import AWR
from ope.policies.behavior_cloning import BehaviorCloning
from ope.schema import End

GAMMAS, LAMBDAS, BETAS = (0.9, 0.5), (0.95, 0.3), (1.0, 0.4)


def ragged_log(*, masked: bool = False) -> LoggedDataset:
    """Episodes of 1 to 17 steps with ends of all kinds; where the fourth and the last go on is unknown."""
    rng = np.random.default_rng(3)
    lengths, (t, h, c) = np.array([17, 1, 1, 17, 2, 2, 4, 5, 1, 8, 3, 1]), End
    n, finals = int(lengths.sum()), rng.normal(size=(12, 2))
    log = LoggedDataset.from_arrays(
        rng.normal(size=(n, 2)),
        rng.integers(0, 3, n),
        rng.normal(size=n),
        lengths=lengths,
        ends=[h, t, c, h, t, c, c, t, c, t, t, c],
        final_states=finals,
        action_mask=np.ones((n, 3), dtype=bool) if masked else None,
    )
    finals[[3, 11]] = np.nan
    return log.replace(final_states=finals)


def returns_of(log: LoggedDataset, v: Any, gamma: float, trace: float) -> dict[int, float]:
    """TD(lambda) returns by the recursion, episode by episode; rows that have none are left out."""
    found: dict[int, float] = {}
    for e in range(log.n_episodes):
        rows = list(range(log.offsets[e], log.offsets[e + 1]))
        last = rows[-1]
        if log.ends[e] == End.TERMINAL:
            found[last] = float(log.rewards[last])
        elif bool(log.final_known()[e]):
            assert log.final_states is not None
            found[last] = float(log.rewards[last]) + gamma * v(log.final_states[e])
        for t in reversed(rows[:-1]):
            ahead = v(log.states[t + 1])
            mixed = ahead if t + 1 not in found else (1 - trace) * ahead + trace * found[t + 1]
            found[t] = float(log.rewards[t]) + gamma * mixed
    return found


def awr_step(log: LoggedDataset, **settings: Any) -> tuple[AWRStep, Batch]:
    batch = batch_of(log, 2)
    learners = [
        AWR(hidden=(6,), gamma=gamma, td_lambda=trace, beta=beta, **settings)
        for gamma, trace, beta in zip(GAMMAS, LAMBDAS, BETAS, strict=True)
    ]
    step = AWR._step(learners, batch.transitions, [0, 1])
    assert isinstance(step, AWRStep)
    unlike(step.v_target)
    return step, batch


# -------------------------------------------------------------------- returns


@pytest.mark.parametrize("n", [1, 2, 7, 64, 100])
def test_the_scan_is_the_recursion(n: int) -> None:
    rng = torch.Generator().manual_seed(n)
    values, decay = torch.randn(3, n, generator=rng), torch.rand(3, n, generator=rng)
    decay[torch.rand(3, n, generator=rng) < 0.1] = 0.0
    kept = values.clone(), decay.clone()
    found = reverse_scan(values, decay)
    for k in range(3):
        x = 0.0
        for i in reversed(range(n)):
            x = float(values[k, i]) + float(decay[k, i]) * x
            assert float(found[k, i]) == pytest.approx(x, rel=1e-5, abs=1e-5)
    assert torch.equal(values, kept[0])
    assert torch.equal(decay, kept[1])


@pytest.mark.filterwarnings("ignore:LoggedDataset. a log with action masks")
@pytest.mark.parametrize("masked", [False, True])
def test_returns_equal_the_recursion_at_every_kind_of_end(masked: bool) -> None:
    # With a mask but none for final states, no state behind an end can be used: all that go on are unknown.
    log = ragged_log(masked=masked)
    data = Transitions.from_dataset(log)
    values = torch.randn(2, len(data.states), generator=torch.Generator().manual_seed(0))
    at = {state.tobytes(): i for i, state in enumerate(data.states.numpy())}
    found = lambda_returns(data, values, torch.tensor(GAMMAS).unsqueeze(1), torch.tensor(LAMBDAS).unsqueeze(1))
    for k in range(2):

        def v(state: Any, k: int = k) -> float:
            return float(values[k, at[state.astype(np.float32).tobytes()]])

        usable = log.replace(final_states=None) if masked else log
        expected = returns_of(usable, v, GAMMAS[k], LAMBDAS[k])
        assert sorted(expected) == np.flatnonzero(data.bellman.numpy()).tolist()
        assert len(expected) == len(log) - data.n_excluded
        for row, value in expected.items():
            assert float(found[k, row]) == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert data.n_excluded == (7 if masked else 2)


def test_lambda_one_is_the_discounted_sum_and_lambda_zero_one_step() -> None:
    log = LoggedDataset.from_arrays(np.eye(3), [0] * 3, [1.0, 2.0, 4.0], lengths=[3], ends="terminal")
    data, values = Transitions.from_dataset(log), torch.tensor([[10.0, 20.0, 30.0]])
    assert lambda_returns(data, values, 0.5, 1.0).tolist() == [[3.0, 4.0, 4.0]]
    assert lambda_returns(data, values, 0.5, 0.0).tolist() == [[11.0, 17.0, 4.0]]


# -------------------------------------------------------------------- weights and losses


@torch.no_grad()
@pytest.mark.parametrize("normalize", [False, True])
def test_tables_equal_a_plain_loop_and_leave_out_rows_without_return(normalize: bool) -> None:
    log = ragged_log()
    data = Transitions.from_dataset(log)
    learners = [AWR(hidden=(6,), gamma=0.9, td_lambda=0.7, beta=b, normalize_advantages=normalize) for b in BETAS]
    step = AWR._step(learners, data, [0, 1])
    assert isinstance(step, AWRStep)
    unlike(step.v_target)
    returns, weights = step.tables()
    for k, beta in enumerate(BETAS):

        def v(state: Any, k: int = k) -> float:
            return float(step.unit[k, 0]) * float(plain(step.v_target, k, torch.tensor(state).float())[0])

        expected = returns_of(log, v, 0.9, 0.7)
        rows = sorted(expected)
        assert len(rows) == len(log) - 2
        gaps = np.array([expected[row] - v(log.states[row]) for row in rows])
        if normalize:
            gaps = (gaps - gaps.mean()) / (gaps.std() + 1e-5)
        np.testing.assert_allclose(
            step.unit[k] * returns[k, rows], [expected[row] for row in rows], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(weights[k, rows], np.minimum(np.exp(gaps / beta), 20.0), rtol=1e-3)
    assert float(weights.max()) <= 20.0


def test_the_unit_of_v_is_the_root_mean_square_of_the_logged_returns() -> None:
    log = ragged_log()
    gammas = torch.tensor(GAMMAS).unsqueeze(1)
    for found, gamma in zip(value_unit(Transitions.from_dataset(log), gammas), GAMMAS, strict=True):
        returns = list(returns_of(log, lambda _: 0.0, gamma, 1.0).values())
        assert float(found[0]) == pytest.approx(math.sqrt(sum(g * g for g in returns) / len(returns)), rel=1e-5)
    nothing = Transitions.from_dataset(log.replace(rewards=np.zeros(len(log))))
    assert value_unit(nothing, gammas).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("unit", [1e-4, 1e6])
def test_the_policy_does_not_depend_on_the_unit_of_the_rewards(unit: float) -> None:
    log = random_log()
    settings: dict[str, Any] = {"hidden": (8,), "n_updates": 60, "batch_size": 32, "learning_rate": 3e-3, "refresh": 20}
    one = AWR(**settings).fit(log)
    rescaled = log.replace(rewards=unit * log.rewards)
    other = AWR(**settings).fit(rescaled)
    np.testing.assert_allclose(other.predict_proba(log.states), one.predict_proba(log.states), atol=0.01)
    np.testing.assert_allclose(other.values(log.states) / unit, one.values(log.states), atol=0.05)
    assert other.score(rescaled) / unit**2 == pytest.approx(one.score(log), rel=0.02)


def test_standardised_weights_do_not_depend_on_the_unit_of_the_rewards() -> None:
    log = random_log()
    found = []
    for scale in (1.0, 1000.0):
        step, _ = awr_step(log.replace(rewards=scale * log.rewards))
        found.append(step.tables()[1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("continuous", "masked"), [(False, False), (False, True), (True, False)])
def test_losses_and_gradients_equal_a_plain_loop(continuous: bool, masked: bool) -> None:
    step, batch = awr_step(random_log(continuous=continuous, masked=masked))
    rng = torch.Generator().manual_seed(4)
    returns, weights = torch.randn(2, 24, generator=rng), 5.0 * torch.rand(2, 24, generator=rng)
    critic, actor = [], []
    for k in range(2):
        squares, terms = [], []
        for i in range(24):
            if float(batch.bellman[k, i]) == 0.0:
                continue
            squares.append((returns[k, i] - plain(step.v, k, batch.states[k, i])[0]) ** 2)
            output = plain(step.actor, k, batch.states[k, i])
            if continuous:
                std = torch.exp(step.actor.parameters.views["log_std"][k, 0])
                z = (batch.actions[k, i] - torch.tanh(output)) / std
                log_prob = (-(z**2) / 2 - torch.log(std * math.sqrt(2 * math.pi))).sum()
            else:
                open_now = [a for a in range(3) if batch.action_mask is None or bool(batch.action_mask[k, i, a])]
                log_prob = output[batch.actions[k, i]] - torch.log(torch.exp(output[open_now]).sum())
            terms.append(-weights[k, i] * log_prob)
        assert len(terms) < 24
        critic.append(torch.stack(squares).mean())
        actor.append(torch.stack(terms).mean())
    same_gradients(step.v_loss(batch, returns), torch.stack(critic), [step.v])
    same_gradients(step.actor_loss(batch, weights), torch.stack(actor), [step.actor])


def test_returns_are_computed_anew_every_refresh_updates_from_the_value_of_then() -> None:
    step, batch = awr_step(random_log(), refresh=3)
    seen, tables = [], []
    for _ in range(5):
        seen.append(step.v.parameters.flat.clone())
        step.update(batch)
        tables.append(step.tables()[0].clone())
        assert torch.equal(step.v_target.parameters.flat, seen[0 if len(seen) <= 3 else 3])
    assert torch.equal(tables[0], tables[2])
    assert not torch.equal(tables[2], tables[3])
    assert torch.equal(tables[3], tables[4])


def test_a_state_holds_no_table_of_the_log() -> None:
    step, batch = awr_step(random_log(200))
    step.update(batch)
    assert all(value.numel() < 1000 for name, value in step.state().items() if not name.startswith("generator"))


# -------------------------------------------------------------------- what it learns


def test_defaults_are_those_of_the_authors_code() -> None:
    learner = AWR()
    assert (learner.td_lambda, learner.beta, learner.normalize_advantages, learner.refresh) == (0.95, 1.0, True, 200)
    assert (learner.gamma, learner.hidden, learner.batch_size) == (0.99, (128, 64), 256)


def test_awr_beats_cloning() -> None:
    log = line_log()
    settings: dict[str, Any] = {"hidden": (32, 32), "batch_size": 64, "learning_rate": 3e-3}
    learner = AWR(**settings, gamma=0.9, td_lambda=0.5, beta=0.3, refresh=50, n_updates=300).fit(log)
    assert line_value(learner) > line_value(BehaviorCloning(**settings, n_updates=100).fit(log)) + 20.0
    drawn = learner.sample(log.states, 0)
    assert np.isfinite(learner.log_prob(log.states, drawn)).all()


def test_values_are_those_of_the_behaviour_and_score_is_their_error() -> None:
    # Three states in a row, rewards 1, 2, 4, then a terminal: worth 3, 4, 4 at gamma 1/2.
    log = LoggedDataset.from_arrays(
        np.tile(np.eye(3), (20, 1)), ["a", "b", "a"] * 20, [1.0, 2.0, 4.0] * 20, lengths=[3] * 20, ends="terminal"
    )
    learner = AWR(hidden=(16,), gamma=0.5, n_updates=400, learning_rate=0.02, refresh=20).fit(log)
    np.testing.assert_allclose(learner.values(np.eye(3)), [3.0, 4.0, 4.0], atol=0.05)
    other = ragged_log()
    fitted = AWR(hidden=(6,), n_updates=5, batch_size=8, gamma=0.8, td_lambda=0.6)
    with pytest.warns(UserWarning, match="2 of 62 transitions"):
        fitted.fit(other)
    expected = returns_of(other, lambda s: float(fitted.values(s[None])[0]), 0.8, 0.6)
    errors = [value - fitted.values(other.states[row : row + 1])[0] for row, value in expected.items()]
    assert fitted.score(other) == pytest.approx(-float(np.mean(np.square(errors))), rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"td_lambda": 1.5}, r"AWR: `td_lambda` must be a number in \[0, 1\], got 1.5; pass one."),
        ({"beta": 0.0}, r"AWR: `beta` must be a number in \(0, inf\), got 0.0; pass one."),
        ({"refresh": 0}, r"AWR: `refresh` must be an integer in \[1, inf\), got 0; pass one."),
    ],
)
def test_settings_out_of_bounds(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AWR(**setting).fit(random_log(4))
