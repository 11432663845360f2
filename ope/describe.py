"""Words about a log: one line, a table of statistics, a small HTML table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ope import ragged
from ope.display import facts_table
from ope.schema import End

if TYPE_CHECKING:
    from ope.dataset import LoggedDataset

MAX_SHOWN = 6
Statistics = dict[tuple[str, Any], Any]


def one_line(data: LoggedDataset) -> str:
    """Return the repr of a log: sizes, actions, ends and where its propensities come from."""
    parts = [
        _count(data.n_episodes, "episode"),
        _count(data.n_transitions, "transition"),
        _count(data.states.shape[1], "feature"),
        _actions(data),
        _ends(data),
        f"propensities {data.behavior_source}" if data.behavior_log_prob is not None else "no propensities",
    ]
    return f"LoggedDataset({', '.join(parts)})"


def describe(data: LoggedDataset) -> pd.Series[Any]:
    """Return the statistics of a log as a Series indexed by (part, item)."""
    ends = np.bincount(data.ends, minlength=len(End))
    items: Statistics = {
        ("log", "episodes"): data.n_episodes,
        ("log", "transitions"): data.n_transitions,
        ("log", "dropped rows"): data.n_dropped_rows,
        ("log", "horizon"): data.horizon,
    }
    items |= {("length", name): value for name, value in _spread(data.lengths).items() if name != "mean"}
    items |= {("ends", end.name.lower()): int(ends[end]) for end in End}
    items["ends", "final states known"] = (
        0 if data.final_states is None else int(np.isfinite(data.final_states).all(axis=1).sum())
    )
    items |= {(f"state {name}", key): value for name, key, value in _columns(data.states, data.feature_names)}
    items |= _action_statistics(data)
    items |= {("reward", key): value for key, value in _spread(data.rewards).items()}
    items["reward", "range a priori"] = data.reward_range
    items |= {("return", key): value for key, value in _returns(data).items()}
    items |= _propensity_statistics(data)
    index = pd.MultiIndex.from_tuples(list(items), names=["part", "item"])
    return pd.Series(list(items.values()), index=index, dtype=object, name="value")


def html(data: LoggedDataset) -> str:
    """Return a small HTML table about a log, with inline styles that suit light and dark pages."""
    return facts_table("LoggedDataset", _table(data))


def _table(data: LoggedDataset) -> Iterator[tuple[str, str]]:
    values = describe(data).to_dict()
    yield "episodes", f"{data.n_episodes:,}"
    yield "transitions", f"{data.n_transitions:,}"
    yield "steps an episode", _range(values, "length", "median")
    yield "ends", _ends(data)
    yield "features", _listing([f"{name} ({_range(values, f'state {name}')})" for name in data.feature_names])
    yield "actions", _action_words(data, values)
    yield "reward", _range(values, "reward", "mean") + (f", a priori {data.reward_range}" if data.reward_range else "")
    yield "undiscounted return", _range(values, "return", "mean")
    yield "propensities", _propensity_words(data, values)
    if data.action_mask is not None:
        yield "action mask", f"allows {values['propensities', 'mean share allowed']:.1%} of the actions on average"
    if data.extras is not None:
        yield "other columns", _listing([str(name) for name in data.extras.columns])
    if data.n_dropped_rows:
        yield "dropped rows", f"{data.n_dropped_rows:,} last rewards given up for the state after them"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _actions(data: LoggedDataset) -> str:
    if data.action_labels is None:
        return f"continuous actions of dimension {data.n_actions}"
    if data.n_actions > MAX_SHOWN:
        return f"{data.n_actions} actions"
    return f"actions {data.action_labels.tolist()}"


def _ends(data: LoggedDataset) -> str:
    counts = np.bincount(data.ends, minlength=len(End))
    steps = f" ({_count(data.horizon, 'step')})" if data.horizon is not None else ""
    words = [f"{counts[end]} {end.name.lower()}{steps if end == End.HORIZON else ''}" for end in End if counts[end]]
    if data.horizon is not None and not counts[End.HORIZON]:
        words.append(f"horizon of {_count(data.horizon, 'step')}")
    return ", ".join(words)


def _spread(values: npt.NDArray[Any]) -> dict[str, Any]:
    kind = int if values.dtype.kind in "iu" else float
    return {
        "min": kind(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean(dtype=np.float64)),
        "max": kind(values.max()),
    }


def _columns(matrix: npt.NDArray[Any], names: tuple[str, ...]) -> Iterator[tuple[str, str, float]]:
    statistics = {"min": matrix.min(axis=0), "mean": matrix.mean(axis=0, dtype=np.float64), "max": matrix.max(axis=0)}
    for i, name in enumerate(names):
        yield from ((name, key, float(values[i])) for key, values in statistics.items())


def _action_statistics(data: LoggedDataset) -> Statistics:
    if data.action_labels is None:
        names = data.columns.action if isinstance(data.columns.action, tuple) else (data.columns.action,)
        names = names if len(names) == data.n_actions else tuple(f"action_{i}" for i in range(data.n_actions))
        return {(f"action {name}", key): value for name, key, value in _columns(data.actions, names)}
    shares = np.bincount(data.actions, minlength=data.n_actions) / data.n_transitions
    return {
        ("action share", label): float(share) for label, share in zip(data.action_labels.tolist(), shares, strict=True)
    }


def _returns(data: LoggedDataset) -> dict[str, Any]:
    return _spread(ragged.segment_sum(data.rewards, data.offsets))


def _propensity_statistics(data: LoggedDataset) -> Statistics:
    items: Statistics = {("propensities", "source"): None}
    if data.behavior_log_prob is not None:
        low, high = np.exp([data.behavior_log_prob.min(), data.behavior_log_prob.max()])
        source = str(data.behavior_source)
        items = {
            ("propensities", "source"): source,
            ("propensities", "min"): float(low),
            ("propensities", "max"): float(high),
        }
    if data.action_mask is not None:
        items["propensities", "mean share allowed"] = float(data.action_mask.mean())
    return items


def _range(values: Mapping[Any, Any], part: str, centre: str | None = None) -> str:
    text = f"{values[part, 'min']:.4g} to {values[part, 'max']:.4g}"
    return text if centre is None else f"{text}, {centre} {values[part, centre]:.4g}"


def _listing(words: list[str]) -> str:
    more = f", ... ({len(words)} in all)" if len(words) > MAX_SHOWN else ""
    return ", ".join(words[:MAX_SHOWN]) + more


def _action_words(data: LoggedDataset, values: Mapping[Any, Any]) -> str:
    if data.action_labels is None:
        return f"continuous, dimension {data.n_actions}"
    return _listing([f"{label} ({values['action share', label]:.1%})" for label in data.action_labels.tolist()])


def _propensity_words(data: LoggedDataset, values: Mapping[Any, Any]) -> str:
    if data.behavior_log_prob is None:
        return "none: estimate them with ope.estimate_behavior, or use methods that need none"
    return f"{data.behavior_source}, {_range(values, 'propensities')}"
