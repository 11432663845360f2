"""The parts of the report, in the order in which a person who was not there asks: what, by how much, is it safe, why, from which data, how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ope.baseline import LOGGED
from ope.citations import is_cited, references
from ope.display import Markup, between, bullets, number, tag
from ope.estimate import Estimate
from ope.inference import IntervalNotAvailable
from ope.report._parts import Column, badge, cards, facts, first_candidates, section, table
from ope.verdict import Level

MAX_CANDIDATES = 8
MAX_FEATURES = 20
MEANINGS = {
    "ess": "effective number of episodes that the weights leave, at the worst step",
    "ess_final": "the same at the last step",
    "mean_weight": "1 is expected; far less: the candidate's episodes are not in the log",
    "pareto_k": "shape of the weights' tail; above 0.7 means from weights are unreliable",
    "largest_share": "of the variance, by one episode",
    "influence_ess": "number of episodes that carry the variance",
    "skewness": "of the estimate's error",
    "effective_horizon": "steps until fewer than 10 effective episodes are left",
    "truncated_share": "of the episodes, whose recording stopped",
    "unlogged_mass": "probability that the candidate gives to actions never logged",
    "training_overlap": "evaluation episodes that the policy was trained on",
    "condition": "of the linear system; very large: not determined by the log",
    "clip_bias": "bound of the bias by clipping",
    "q_value": "value by the model of Q alone",
    "left_out_transitions": "whose next state is unknown",
}


def decision(selector: Any) -> Markup:
    """Return the decision: a headline, the words of the selector, and the numbers that matter."""
    kind = "deploy" if selector.deploy_ else "keep" if selector.deployed_name_ is not None else "none"
    box = tag("div", tag("h2", headline(selector)), tag("p", selector.decision_), class_=f"decision {kind}")
    return tag("section", box, cards(_cards(selector)), id="decision")


def headline(selector: Any) -> str:
    """Return the decision in a few words."""
    if selector.deploy_:
        return f"Deploy “{selector.deployed_name_}”"
    if selector.deployed_name_ is None:
        return "No candidate can be chosen"
    return f"Keep {_the(selector.deployed_name_)}"


def _the(policy: str) -> str:
    """Return what a heading calls a baseline."""
    return f"the {policy}" if policy == LOGGED else f"“{policy}”"


def _cards(selector: Any) -> Iterator[tuple[str, object, object]]:
    level = f"{selector.settings_.level:.0%}"
    chosen = selector.corrected_
    if chosen is not None:
        how = "not corrected for the choice" if chosen.method == "none" else "corrected for the choice"
        words = tag("span", f"{level} interval {between(chosen.low, chosen.high)}, {how} ", badge(chosen.verdict.level))
        yield f"Value of “{chosen.policy}”", number(chosen.value), words
    if selector.baseline_ is not None:
        yield (
            f"Value of {_the(selector.baseline_.policy)}",
            number(selector.baseline_.value),
            _interval(selector.baseline_, selector.settings_.level),
        )
    if chosen is not None and chosen.policy in selector.gates_.index:
        row = selector.gates_.loc[chosen.policy]
        known = bool(np.isfinite(row["lower_bound"]))
        least = f"at least {number(row['lower_bound'])} with {level} confidence" if known else "no bound holds"
        yield "Difference", number(row["difference"]), least
        passed = "✓ passes" if row["passes"] else "✕ does not pass"
        yield "Safety gate", passed, f"adjusted p-value {row['p_adjusted']:.2g}" if known else "the table says why"


def _interval(estimate: Estimate, level: float) -> str:
    try:
        low, high = estimate.confidence_interval(level)
    except IntervalNotAvailable:
        return "no interval applies"
    return f"{level:.0%} interval {between(low, high)}"


def _value_in_words(selector: Any) -> str:
    log = selector.log_
    if any(one.estimand == "average_reward" for table in selector.estimates_.values() for one in table.values()):
        return "the average reward per step that it earns in the long run"
    horizon = "without a fixed horizon" if log.horizon is None else f"of at most {log.horizon} steps"
    discounted = "not discounted" if log.gamma == 1 else f"discounted by {number(float(log.gamma))} a step"
    return f"the expected sum of rewards of an episode {horizon}, {discounted}"


def about(selector: Any) -> Markup:
    """Return what this is about, for a person who was not there."""
    log, n = selector.log_, len(next(iter(selector.estimates_.values())))
    words = (
        f"{n} candidate {'policy was' if n == 1 else 'policies were'} valued from a log of {number(log.described['log', 'episodes'])} episodes that another "
        f"policy acted in; none of them was tried out. The value of a policy is {_value_in_words(selector)}."
    )
    legend = [
        (
            Level.VALID,
            "nothing in the log contradicts the assumptions of the estimate: value and interval can be used.",
        ),
        (
            Level.CAUTION,
            "the interval may be too short, for the reasons given: decide only if the choice does not hang on it.",
        ),
        (Level.REFUSE, "the log cannot answer with this method: the number means nothing."),
    ]
    return section(
        "about",
        "What this is",
        tag("p", words),
        bullets(tag("span", badge(level), f" {text}") for level, text in legend),
    )


def gates(selector: Any) -> Markup:
    """Return the differences to the current policy and whether they pass."""
    title = "Difference to the current policy"
    if not len(selector.gates_):
        return section("gates", title, tag("p", _why_no_gate(selector)))
    return section("gates", title, tag("p", _rule_of_gate(selector)), _gate_table(selector))


def _why_no_gate(selector: Any) -> str:
    if selector.settings_.baseline is None:
        return "No baseline was given, so no candidate was tested against what is deployed today."
    if selector.primary_ is None:
        return "No candidate has an answer, so none can be compared with what is deployed today."
    return "The baseline is the only candidate, so there is none to compare with it."


def _gate_table(selector: Any) -> Markup:
    columns = [
        Column("candidate", "text"),
        *map(Column, ("difference", "std. error", "lower bound")),
        *(Column(name, "p") for name in ("p-value", "adjusted p-value")),
        Column("passes", "text"),
        Column("reason", "words"),
    ]
    keys = ("difference", "std_error", "lower_bound", "p_value", "p_adjusted")
    rows = [
        [name, *(row[key] for key in keys), "✓ yes" if row["passes"] else "✕ no", row["reason"]]
        for name, row in selector.gates_.iterrows()
    ]
    caption = f"Differences to {_the(selector.baseline_.policy)}"
    return table(columns, rows, caption, key="table-gates", chosen=selector.best_name_, sortable=True)


def _rule_of_gate(selector: Any) -> str:
    baseline, used = selector.baseline_, selector.settings_
    than = "better than" if not used.margin else f"worse by at most {number(float(used.margin))} than"
    error = {
        "max_t": "for all candidates at once, by the distribution of the largest statistic",
        "holm": "for all candidates at once, by Holm's procedure",
        "none": "for each candidate alone: with many candidates, some pass by luck",
    }[used.gate_adjust]
    return (
        f"A candidate passes if it is shown to be {than} {_the(baseline.policy)} (value {number(baseline.value)}, {_interval(baseline, used.level)}). "
        f"Differences are paired by episode. The error of {1 - used.level:.2g} is controlled {error}."
    )


def candidates(selector: Any) -> Markup:
    """Return the candidates by the deciding estimator, and every estimate, as sortable tables."""
    level = f"{selector.settings_.level:.0%}"
    parts: list[object] = []
    if selector.primary_ is not None:
        words = f"By {selector.primary_}, which decides because it answers for the most candidates."
        hint = tag("span", " Press a header to sort.", class_="screen")
        parts = [tag("p", words, hint), _deciding(selector, level), tag("p", _best(selector))]
    else:
        parts = [tag("p", "No estimator decides; every estimate and its reason is below.")]
    columns = [
        Column("candidate", "text"),
        Column("estimator", "text"),
        *map(Column, ("value", "std. error", f"{level} low", f"{level} high", "lower bound")),
        Column("verdict", "text"),
    ]
    rows = [
        [
            row["candidate"],
            row["estimator"],
            *(row[key] for key in ("value", "std_error", "low", "high", "lower_bound")),
            badge(row["verdict"]),
        ]
        for row in selector.results_.to_dict("records")
    ]
    every = table(
        columns,
        rows,
        "Every candidate by every estimator",
        key="table-results",
        chosen=selector.best_name_,
        sortable=True,
    )
    return section("candidates", "Candidates", *parts, tag("h3", "All estimators"), every)


def _deciding(selector: Any, level: str) -> Markup:
    columns = [
        Column("candidate", "text"),
        *map(
            Column,
            ("value", "std. error", f"{level} low", f"{level} high", "simultaneous low", "simultaneous high", "rank"),
        ),
        Column("rank range", "text"),
        Column("may be the best", "text"),
        Column("verdict", "text"),
    ]
    results = selector.results_[selector.results_["estimator"] == selector.primary_].set_index("candidate")
    rows = []
    for name, row in results.iterrows():
        wide = selector.simultaneous_.loc[name]
        ranked = selector.ranks_.loc[name] if name in selector.ranks_.index else None
        numbers = [row["value"], row["std_error"], row["low"], row["high"], wide["low"], wide["high"]]
        rank = (
            [np.nan, "–"]
            if ranked is None
            else [ranked["rank"], f"{number(float(ranked['low']))} to {number(float(ranked['high']))}"]
        )
        rows.append([name, *numbers, *rank, "yes" if name in selector.best_set_ else "no", badge(row["verdict"])])
    return table(
        columns,
        rows,
        f"Candidates by {selector.primary_}",
        key="table-candidates",
        chosen=selector.best_name_,
        sortable=True,
    )


def _best(selector: Any) -> str:
    names, level = ", ".join(f"“{name}”" for name in selector.best_set_), selector.settings_.level
    if len(selector.best_set_) == 1:
        return f"With {level:.0%} confidence the best of the candidates that are not refused is {names}."
    return f"With {level:.0%} confidence the best of the candidates that are not refused is one of {names}."


def data(selector: Any) -> Markup:
    """Return what was logged: sizes, lengths, ends, rewards, actions, propensities."""
    log = selector.log_
    parts: dict[str, list[str]] = {}
    for (part, item), value in log.described.items():
        if part != "action share" and item != "source":
            parts.setdefault(str(part), []).append(f"{item} {_value(value)}")
    features = [name for name in parts if name.startswith("state ")]
    hidden = features[MAX_FEATURES:]
    rows: list[tuple[str, object]] = [(name, ", ".join(items)) for name, items in parts.items() if name not in hidden]
    if hidden:
        rows.append(("more states", f"{len(hidden)} more features, not listed"))
    rows += [("propensities from", log.behavior_source), ("identifier of the episodes", log.data_id)]
    return section("data", "The data", facts(rows, "The log"), *_counts(log))


def _counts(log: Any) -> Iterator[Markup]:
    if log.action_counts is not None:
        total = float(log.action_counts.sum())
        rows = [[str(label), int(count), f"{count / total:.1%}"] for label, count in log.action_counts.items()]
        columns = [Column("action", "text"), Column("logged steps"), Column("share")]
        yield table(columns, rows, "How often each action was taken", key="table-actions", sortable=True)
    if len(log.lengths) > 1:
        rows = [[number(length), int(count)] for length, count in log.lengths.items()]
        name = "length from" if float(log.lengths.index[0]) % 1 or log.lengths.index.dtype.kind == "f" else "length"
        yield table([Column(name, "text"), Column("episodes")], rows, "Lengths of the episodes", key="table-lengths")


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return between(*value)
    return "none" if value is None else number(value)


def diagnostics(selector: Any) -> Markup:
    """Return what is wrong with which estimate, what it means and what to do; then the numbers behind."""
    flawed = [
        [name, method, badge(estimate.verdict.level), bullets(estimate.verdict.reasons)]
        for method, estimates in selector.estimates_.items()
        for name, estimate in estimates.items()
        if estimate.verdict.reasons
    ]
    total = len(selector.results_)
    words = (
        f"{len(flawed)} of {total} estimates have something to report, with what to do about it:"
        if flawed
        else f"None of the {total} estimates has anything to report."
    )
    columns = [
        Column("candidate", "text"),
        Column("estimator", "text"),
        Column("verdict", "text"),
        Column("what is wrong, what it means, what to do", "words"),
    ]
    advice = table(columns, flawed, "Reasons of verdicts", key="table-reasons") if flawed else ""
    return section("diagnostics", "Diagnostics and advice", tag("p", words), advice, *_numbers(selector))


def _numbers(selector: Any) -> Iterator[Markup]:
    for method, estimates in selector.estimates_.items():
        shown = first_candidates(selector, MAX_CANDIDATES)
        left = f" ({len(shown)} of {len(estimates)} candidates)" if len(estimates) > len(shown) else ""
        names = dict.fromkeys(
            key for name in shown for key, value in estimates[name].diagnostics.items() if _short(value)
        )
        if not names:
            continue
        rows = [[_explained(key), *(_diagnostic(estimates[name], key) for name in shown)] for key in names]
        columns = [Column("diagnostic", "text"), *map(Column, shown)]
        yield table(columns, rows, f"Diagnostics of {method}{left}")


def _explained(key: str) -> Markup:
    words = MEANINGS.get(key)
    name = key.replace("_", " ")
    return tag("span", name, *([] if words is None else [tag("small", f" {words}", class_="soft")]))


def _short(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) or (isinstance(value, str) and len(value) <= 24)


def _diagnostic(estimate: Estimate, key: str) -> object:
    value = estimate.diagnostics.get(key, float("nan"))
    return value if _short(value) and not isinstance(value, bool) else str(value)


def methods(selector: Any) -> Markup:
    """Return how it was computed: estimators with their settings, intervals, statements, references."""
    used = selector.settings_
    rows = [
        [name, " ".join(repr(estimator).split()), _purpose(estimator)] for name, estimator in used.estimators.items()
    ]
    columns = [Column("estimator", "text"), Column("settings", "words"), Column("method", "words")]
    choices = [(name.replace("_", " "), number(value)) for name, value in used.choices().items()]
    cited = references(*used.estimators.values(), *_statements(selector), *filter(is_cited, intervals(selector)))
    works = [
        tag("li", str(work), " ", tag("a", work.link, href=work.link)) if work.link else tag("li", str(work))
        for work in cited
    ]
    return section(
        "methods",
        "Methods and references",
        table(columns, rows, "Estimators"),
        facts([*_interval_facts(selector), *choices], "Intervals and selection"),
        tag("h3", "References"),
        tag("ol", *works),
        tag("h3", "BibTeX"),
        tag("pre", "\n\n".join(work.bibtex for work in cited), id="bibtex"),
    )


def _statements(selector: Any) -> tuple[str, ...]:
    if selector.primary_ is None:
        return ()
    return "simultaneous", selector.settings_.gate_adjust, "best_set", "ranks", "winners_curse"


def _purpose(estimator: Any) -> str:
    return (type(estimator).__doc__ or "").strip().split("\n")[0]


def intervals(selector: Any) -> dict[str, str]:
    """Return the interval methods in use, by name, with their assumptions."""
    found = {}
    for estimates in selector.estimates_.values():
        for estimate in estimates.values():
            try:
                interval = estimate.confidence_interval(selector.settings_.level)
            except IntervalNotAvailable:
                continue
            if np.isfinite(interval.low):
                found[interval.method] = interval.assumptions
    return found


def _interval_facts(selector: Any) -> Iterator[tuple[str, str]]:
    for name, assumptions in intervals(selector).items():
        yield f"interval “{name}”", assumptions or "no further assumptions"


def provenance(selector: Any) -> Markup:
    """Return versions and seeds."""
    log = selector.log_
    seeds = [(f"seed of {name}", "none" if seed is None else str(seed)) for name, seed in log.seeds.items()]
    rows = [*log.versions.items(), *seeds, ("seed of the selector", str(selector.settings_.random_state))]
    return section("versions", "Versions and seeds", facts(rows, "To compute it again"))
