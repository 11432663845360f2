"""`PolicySelector` where it must take care: p-values that vanish, logs that do not vary, names that clash, settings changed later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ope import Estimate, LoggedDataset, PolicySelector
from ope.estimators import LSTDQ, DoublyRobust, PerDecisionIS, WeightedIS
from ope.inference.weights import hash_identifiers
from ope.policies import TabularPolicy
from ope.policy import Policy
from ope.problems import RiverSwim
from ope.selection.decision import choose_and_correct, choosing_half
from ope.selection.gate import one_sided

BOLD, CAUTIOUS = TabularPolicy([[0.7, 0.3]]), TabularPolicy([[0.3, 0.7]])
UP = TabularPolicy([[0.3, 0.7]] * 6)


def bandit(actions: Any, rewards: Any, p: tuple[float, float] = (0.5, 0.5)) -> LoggedDataset:
    a, r = np.asarray(actions), np.asarray(rewards, dtype=float)
    n = len(a)
    return LoggedDataset.from_arrays(
        np.ones((n, 1)), a, r, lengths=[1] * n, ends="terminal", behavior_prob=np.asarray(p)[a], action_labels=[0, 1]
    )


def noisy(n: int = 200, seed: int = 0) -> LoggedDataset:
    a = np.arange(n) % 2
    return bandit(a, (a == 0) + np.random.default_rng(seed).normal(0.0, 0.5, n))


# -------------------------------------------------------------------- p-values


def test_a_p_value_that_vanishes_speaks_for_the_candidate() -> None:
    psi = np.random.default_rng(0).standard_normal((20_000, 2))
    psi -= psi.mean(axis=0)
    found = one_sided(np.array([1.0, 0.02]), psi, np.zeros(2))
    assert found.p_value[0] == 0.0
    assert found.p_adjusted[0] == 0.0
    assert found.rejected.tolist() == (found.p_adjusted <= 0.05).tolist()
    psi[:, 0] = 0.0
    still = one_sided(np.array([1.0, 0.02]), psi, np.zeros(2))
    assert (still.p_value[0], still.p_adjusted[0], still.rejected[0]) == (0.0, 0.0, True)
    below = one_sided(np.array([-1.0, 0.02]), psi, np.zeros(2))
    assert (below.p_value[0], below.p_adjusted[0], below.rejected[0]) == (1.0, 1.0, False)


def test_words_of_a_clear_case_are_not_those_of_a_lost_one() -> None:
    decision = PolicySelector([PerDecisionIS(gamma=1.0)]).fit(noisy(20_000), {"bold": BOLD, "caut": CAUTIOUS}).decision_
    assert decision.startswith("Deploy 'bold'")
    assert "(adjusted p-value 0)" in decision


@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.01, 1e-4, 1e-6])
@pytest.mark.parametrize("n_candidates", [1, 2, 12])
def test_bounds_and_adjusted_p_values_tell_the_same(alpha: float, n_candidates: int) -> None:
    rng = np.random.default_rng(n_candidates)
    for seed in range(6):
        psi = np.random.default_rng(seed).exponential(1.0, (300, n_candidates))
        psi -= psi.mean(axis=0)
        found = one_sided(rng.uniform(-0.05, 0.45, n_candidates), psi, np.zeros(n_candidates), alpha=alpha)
        assert (found.p_adjusted >= found.p_value).all()
        assert (found.p_adjusted <= np.minimum(n_candidates * found.p_value, 1.0)).all()
        assert (found.rejected == (found.p_adjusted <= alpha)).all()
        assert (found.rejected == (found.lower_bound > 0.0)).all()


def test_near_the_border_bounds_and_adjusted_p_values_still_agree() -> None:
    psi = np.random.default_rng(0).exponential(1.0, (300, 3))
    psi -= psi.mean(axis=0)
    for border in np.linspace(0.1145, 0.1445, 301):
        found = one_sided(np.array([border, 0.0, 0.0]), psi, np.zeros(3))
        assert found.rejected[0] == (found.p_adjusted[0] <= 0.05)


def test_the_p_value_of_a_single_test_is_not_adjusted() -> None:
    psi = np.random.default_rng(0).standard_normal((50, 1))
    psi -= psi.mean(axis=0)
    found = one_sided(np.array([0.25]), psi, np.zeros(1))
    assert found.p_adjusted.tolist() == found.p_value.tolist()


def test_the_order_of_candidates_changes_nothing() -> None:
    psi = np.random.default_rng(0).standard_normal((100, 4))
    psi -= psi.mean(axis=0)
    gains, order = np.array([0.2, 0.17, 0.15, 0.1]), [2, 0, 3, 1]
    first = one_sided(gains, psi, np.zeros(4))
    again = one_sided(gains[order], psi[:, order], np.zeros(4))
    np.testing.assert_allclose(again.p_adjusted, first.p_adjusted[order], rtol=1e-9)
    np.testing.assert_allclose(again.lower_bound, first.lower_bound[order], rtol=0.0, atol=1e-12)


# -------------------------------------------------------------------- logs that do not vary


def test_a_log_that_does_not_vary_shows_nothing() -> None:
    log = bandit([0] * 24, [1.0] * 24, (0.95, 0.05))
    for adjust in ("max_t", "holm", "none"):
        selector = PolicySelector([PerDecisionIS(gamma=1.0)], gate_adjust=adjust)
        selector.fit(log, {"always": TabularPolicy([[1.0, 0.0]])})
        row: Any = selector.gates_.loc["always"]
        assert row["difference"] == pytest.approx(1.0 / 0.95 - 1.0)
        assert row["std_error"] == 0.0
        assert not row["passes"]
        assert "The log does not vary where 'always' differs from the logged policy" in row["reason"]
        assert not selector.deploy_
        assert "the gate cannot be passed. The log does not vary" in selector.decision_


@pytest.mark.parametrize("reward", [0.1, 1.0, 1e6 / 3.0])
def test_rounding_is_no_spread(reward: float) -> None:
    log = bandit([0] * 37, [reward] * 37, (0.95, 0.05))
    selector = PolicySelector([PerDecisionIS(gamma=1.0)]).fit(log, {"a": TabularPolicy([[1.0, 0.0]]), "b": BOLD})
    assert selector.gates_["std_error"].tolist() == [0.0, 0.0]
    assert not selector.gates_["passes"].any()


def test_what_the_log_cannot_tell_counts_as_a_test_that_is_open() -> None:
    log = noisy()
    baseline = PerDecisionIS(gamma=1.0).fit(log, {"old": CAUTIOUS}).estimate()["old"]

    class Shifted(PerDecisionIS):
        def _fit_one(self, *arguments: Any) -> Any:
            found = super()._fit_one(*arguments)
            return replace(baseline, value=baseline.value + 1.0) if found.policy == "stuck" else found

    selector = PolicySelector([Shifted(gamma=1.0)], baseline=baseline, gate_adjust="holm")
    selector.fit(log, {"stuck": BOLD, "bold": BOLD})
    rows: Any = selector.gates_
    assert not rows.loc["stuck", "passes"]
    assert rows.loc["bold", "p_adjusted"] == pytest.approx(2.0 * rows.loc["bold", "p_value"])


# -------------------------------------------------------------------- names that clash


def test_an_estimate_that_shares_a_name_is_not_the_candidate() -> None:
    log = noisy()
    base = PerDecisionIS(gamma=1.0).fit(log, {"x": TabularPolicy([[0.9, 0.1]])}).estimate()["x"]
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=base).fit(log, {"x": CAUTIOUS})
    assert not selector.gates_.loc["x", "passes"]
    assert (selector.deploy_, selector.deployed_name_) == (False, "x (baseline)")
    assert selector.decision_.startswith("Keep 'x (baseline)': 'x' has the highest lower bound")
    assert selector.comparison_ is not None
    assert selector.comparison_.names == ("x", "x (baseline)")
    assert "itself" not in selector.decision_
    better = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=replace(base, value=0.0)).fit(log, {"x": BOLD})
    assert (better.deploy_, better.deployed_name_) == (True, "x")


@pytest.mark.parametrize("name", ["logged", "logged policy"])
def test_names_of_the_logged_policy_are_taken(name: str) -> None:
    with pytest.raises(ValueError, match=f"^PolicySelector.fit: `candidates` must not be named '{name}' .*rename"):
        PolicySelector([PerDecisionIS(gamma=1.0)]).fit(noisy(), {"caut": CAUTIOUS, name: BOLD})
    with pytest.raises(ValueError, match="must not be named"):
        PolicySelector([PerDecisionIS(gamma=1.0)], baseline=name).fit(noisy(), {"caut": CAUTIOUS, name: BOLD})
    free = PolicySelector([PerDecisionIS(gamma=1.0)], baseline="caut").fit(noisy(), {"caut": CAUTIOUS, name: BOLD})
    assert (free.deploy_, free.deployed_name_) == (True, name)


# -------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"allow_overlap": "no"}, TypeError, "`allow_overlap` must be True or False, got 'no'"),
        ({"allow_overlap": 1}, TypeError, "`allow_overlap` must be True or False, got 1"),
        ({"progress": "no"}, TypeError, "`progress` must be True or False, got 'no'"),
        ({"level": "a"}, TypeError, r"`level` must be a number in \(0, 1\), got 'a'; pass 0.95"),
        ({"level": True}, TypeError, r"`level` must be a number in \(0, 1\), got True"),
        ({"level": 1.0}, ValueError, r"`level` must lie in \(0, 1\), got 1.0"),
        ({"level": float("nan")}, ValueError, r"`level` must be a number in \(0, 1\), got nan"),
    ],
)
def test_bad_settings_are_told(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^PolicySelector: {words}"):
        PolicySelector([PerDecisionIS(gamma=1.0)], **settings).fit(noisy(), {"bold": BOLD})


def test_settings_that_change_later_change_no_words() -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    from ope.citations import citation
    from ope.plotting import plot_estimates
    from ope.report import report_html

    def shown(selector: PolicySelector) -> list[str]:
        page = report_html(selector).split("<footer>")[0]
        ends = [
            np.asarray(path.vertices).tolist()
            for line in plot_estimates(selector).collections
            for path in line.get_paths()
        ]
        return [page, selector.decision_, selector.summary(), selector._repr_html_(), citation(selector), str(ends)]

    nested = DoublyRobust(gamma=1.0, q=LSTDQ(ridge=0.5))
    selector = PolicySelector([PerDecisionIS(gamma=1.0), nested]).fit(noisy(), {"bold": BOLD, "caut": CAUTIOUS})
    before = shown(selector)
    selector.set_params(level=0.5, margin=9.0, gate_adjust="none", criterion="value", baseline=None, random_state=7)
    nested.set_params(q__ridge=9.0)
    assert shown(selector) == before
    selector.set_params(estimators=[WeightedIS(gamma=1.0)], correction="none", top_k=1, allow_overlap=True)
    assert shown(selector) == before
    assert (selector.settings_.level, selector.settings_.baseline) == (0.95, "logged policy")


# -------------------------------------------------------------------- halves


@pytest.mark.parametrize("n", [4, 5, 6, 8])
def test_split_serves_small_logs(n: int) -> None:
    found = PerDecisionIS(gamma=1.0).fit(noisy(n), {"bold": BOLD, "caut": CAUTIOUS}).estimate()
    scores = {name: estimate.value for name, estimate in found.items()}
    for seed in range(30):
        corrected = choose_and_correct(found, scores, level=0.95, method="split", seed=seed)
        assert (corrected.method, np.isfinite(corrected.low)) == ("split", True)
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], correction="split").fit(noisy(n), {"bold": BOLD})
    assert selector.decision_


def test_halves_are_balanced_and_of_identifier_and_seed() -> None:
    keys = hash_identifiers(range(101))
    half, order = choosing_half(keys, 3), np.random.default_rng(0).permutation(101)
    assert half.sum() == 50
    assert choosing_half(keys[order], 3).tolist() == half[order].tolist()
    assert choosing_half(keys, 4).tolist() != half.tolist()


def test_too_few_episodes_to_split_are_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[Any] = []
    monkeypatch.setattr(PerDecisionIS, "fit", lambda *_: fits.append(1))
    with pytest.raises(ValueError, match=r"`correction` 'split' must have at least 4 episodes, .* got 3; use 'hybrid'"):
        PolicySelector([PerDecisionIS(gamma=1.0)], correction="split").fit(noisy(3), {"bold": BOLD})
    assert fits == []


def test_a_refit_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    selector = PolicySelector([PerDecisionIS(gamma=1.0)]).fit(noisy(), {"bold": BOLD})
    with pytest.raises(TypeError):
        selector.fit(noisy(), {"bold": "always"})  # type: ignore[dict-item]
    assert selector.best_name_ == "bold"

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("ope.selection.selector.choose_and_correct", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        selector.fit(noisy(), {"caut": CAUTIOUS})
    assert [name for name in vars(selector) if name.endswith("_")] == []


# -------------------------------------------------------------------- the baseline


def test_a_named_baseline_is_kept_when_all_is_refused() -> None:
    bare = noisy().replace(behavior_log_prob=None, behavior_source=None)
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], baseline="today").fit(bare, {"today": BOLD, "x": CAUTIOUS})
    assert (selector.deploy_, selector.deployed_name_, selector.baseline_) == (False, "today", None)
    assert selector.decision_.startswith("Keep 'today'. No candidate can be chosen: every estimator refuses")


def test_the_report_keeps_a_named_baseline_when_all_is_refused() -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    from ope.report import report_html

    bare = noisy().replace(behavior_log_prob=None, behavior_source=None)
    selector = PolicySelector([PerDecisionIS(gamma=1.0)], baseline="today").fit(bare, {"today": BOLD, "x": CAUTIOUS})
    page = report_html(selector)
    assert "Keep “today”" in page
    assert "No baseline was given" not in page


def test_a_baseline_of_another_gamma_is_told_at_the_door() -> None:
    data = RiverSwim(horizon=4).sample(50, random_state=0)
    base = PerDecisionIS(gamma=0.9).fit(data, {"old": UP}).estimate()["old"]
    words = (
        "`baseline` must have the gamma of the estimators, 1.0, got an estimate of gamma 0.9; .* fit it with gamma=1.0"
    )
    with pytest.raises(ValueError, match=words):
        PolicySelector([PerDecisionIS(gamma=1.0)], baseline=base).fit(data, {"up": UP})
    other = replace(base, horizon=None, gamma=1.0)
    reason = PolicySelector([PerDecisionIS(gamma=1.0)], baseline=other).fit(data, {"up": UP}).gates_.loc["up", "reason"]
    assert "the candidate's value is for horizon 4, the baseline's for an infinite horizon" in str(reason)


# -------------------------------------------------------------------- scores, ranks, horizons


class NoInfluence(PerDecisionIS):
    """An estimator that has bounds by replicates only, and only of some candidates where `resamples` says so."""

    resamples: tuple[str, ...] = ()

    def _fit_one(self, *arguments: Any) -> Estimate:
        found = super()._fit_one(*arguments)
        rng = np.random.default_rng(len(found.policy))
        draws = found.value + 0.01 * rng.standard_normal(200)
        same = not self.resamples or found.policy in self.resamples
        return replace(found, influence=None, scores=None, replicates=draws, resample_id="one" if same else None)


def test_the_estimator_that_has_what_the_criterion_compares_decides() -> None:
    pool: dict[str, Policy] = {"bold": BOLD, "caut": CAUTIOUS}
    both = [NoInfluence(gamma=1.0), WeightedIS(gamma=1.0)]
    assert PolicySelector(both).fit(noisy(), pool).primary_ == "NoInfluence"
    joint = PolicySelector(both, "simultaneous").fit(noisy(), pool)
    assert (joint.primary_, joint.best_name_, joint.deploy_) == ("WeightedIS", "bold", True)
    alone = PolicySelector(both[:1], "simultaneous").fit(noisy(), pool)
    assert (alone.primary_, alone.best_name_, alone.deployed_name_) == (None, None, "logged policy")
    assert "has a simultaneous lower bound by any estimator" in alone.decision_
    assert "refuses every candidate" not in alone.decision_


def test_a_candidate_without_a_score_is_not_called_refused() -> None:
    class Partial(PerDecisionIS):
        def _fit_one(self, *arguments: Any) -> Estimate:
            found = super()._fit_one(*arguments)
            return replace(found, influence=None, scores=None) if found.policy == "bold" else found

    decision = PolicySelector([Partial(gamma=1.0)]).fit(noisy(), {"bold": BOLD, "caut": CAUTIOUS}).decision_
    assert "Not eligible because Partial gives no lower bound: 'bold'." in decision
    assert "refused" not in decision


def test_what_cannot_be_compared_may_be_the_best() -> None:
    class Some(NoInfluence):
        resamples = ("a", "bbb")

    pool: dict[str, Policy] = {"a": TabularPolicy([[0.55, 0.45]]), "bb": BOLD, "bbb": CAUTIOUS}
    selector = PolicySelector([Some(gamma=1.0)], baseline=None).fit(noisy(), pool)
    assert selector.best_name_ == "bb"
    assert selector.best_set_ == ("a", "bb")
    ranks: Any = selector.ranks_
    assert ranks.index.tolist() == ["a", "bb", "bbb"]
    assert ranks["low"].tolist() == [1.0, 1.0, 2.0]
    assert ranks["high"].tolist() == [2.0, 3.0, 3.0]
    assert "does not tell it apart from 'a'" in selector.decision_


def test_two_horizons_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    data = RiverSwim(horizon=20).sample(50, random_state=0)
    fits: list[Any] = []
    monkeypatch.setattr(WeightedIS, "fit", lambda *_: fits.append(1))
    endless = LSTDQ(gamma=0.95, stationary=True)
    words = "must have one horizon, got '.*': 20, '.*': infinite; .* pass stationary=True to all of them or to none"
    for finite in (WeightedIS(gamma=0.95), LSTDQ(gamma=0.95), DoublyRobust(gamma=0.95)):
        with pytest.raises(ValueError, match=words):
            PolicySelector([finite, endless]).fit(data, {"up": UP})
    assert fits == []


def test_two_horizons_that_only_estimates_tell_are_refused() -> None:
    class Endless(LSTDQ):
        def _fit_many(self, *arguments: Any) -> Any:
            return {name: replace(e, horizon=None) for name, e in super()._fit_many(*arguments).items()}

        def _fit_one(self, *arguments: Any) -> Estimate:
            return replace(super()._fit_one(*arguments), horizon=None)

    data = RiverSwim(horizon=5).sample(200, random_state=0)
    selector = PolicySelector([LSTDQ(gamma=0.95), Endless(gamma=0.95)])
    with pytest.raises(ValueError, match="must have one horizon, got 'LSTDQ': 5, 'Endless': infinite"):
        selector.fit(data, {"up": UP})
    assert not hasattr(selector, "results_")
    all_endless = [DoublyRobust(gamma=0.95, q=LSTDQ(stationary=True)), LSTDQ(gamma=0.95, stationary=True)]
    assert PolicySelector(all_endless, baseline=None).fit(data, {"up": UP}).primary_ is not None
