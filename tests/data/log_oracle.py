"""Random frames, a reader of frames in plain loops, and the comparison of two logs field by field."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from ope.dataset import LoggedDataset
from ope.schema import End

STATES = ["x", "y"]
NEXT = ["x_next", "y_next"]
LABELS = ["a", "b", "c"]
MASK = [f"may_{label}" for label in LABELS]
NAMES: dict[str, Any] = {"episode": "id", "time": "t", "states": STATES, "action": "act", "reward": "r"}
FLAGS = {"terminated": "dead", "truncated": "lost"}
HORIZON = 5
MODES = ("next_states", "state_only", "drop")


def random_frame(seed: int, mode: str, n_episodes: int = 12, *, shuffle: bool = True) -> pd.DataFrame:
    """Draw episodes of 1 to HORIZON steps, all ends mixed, in the form of `mode`, and shuffle their rows."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for identifier in rng.permutation(1000)[:n_episodes]:
        rows += _episode(rng, int(identifier), mode)
    frame = pd.DataFrame(rows)
    if mode != "next_states":
        frame = frame.drop(columns=NEXT)
    if shuffle:
        frame = frame.sample(frac=1, random_state=seed)
    return frame


def _episode(rng: np.random.Generator, identifier: int, mode: str) -> list[dict[str, Any]]:
    end = End(int(rng.integers(3)))
    steps = HORIZON if end == End.HORIZON else int(rng.integers(1, HORIZON + 1))
    extra = mode == "state_only" or (mode == "drop" and end == End.TRUNCATED)
    start = int(rng.integers(-3, 4))
    rows = [_step(rng, identifier, start + t) for t in range(steps + extra)]
    for before, after in pairwise(rows):
        before["x_next"], before["y_next"] = after["x"], after["y"]
    if mode == "next_states" and (end == End.TRUNCATED or rng.random() < 0.5):
        rows[-1]["x_next"], rows[-1]["y_next"] = rng.normal(size=2)
    if mode == "state_only":
        rows[-1] |= {"act": np.nan, "r": np.nan, "p": np.nan}
    flagged = rows[-1 - int(mode == "state_only" and rng.random() < 0.5)] if len(rows) > 1 else rows[-1]
    flagged["dead"], flagged["lost"] = end == End.TERMINAL, end == End.TRUNCATED
    return rows


def _step(rng: np.random.Generator, identifier: int, time: int) -> dict[str, Any]:
    action = str(rng.choice(LABELS))
    mask = {f"may_{label}": bool(rng.random() < 0.7) or label == action for label in LABELS}
    return {
        "id": identifier,
        "t": time,
        "x": rng.normal(),
        "y": rng.normal(),
        "act": action,
        "r": rng.normal(),
        "p": rng.uniform(0.05, 1.0),
        "dead": False,
        "lost": False,
        "x_next": np.nan,
        "y_next": np.nan,
        **mask,
        "note": f"note {rng.integers(100)}",
        "dose": int(rng.integers(100)),
    }


def mode_arguments(mode: str) -> dict[str, Any]:
    """Return the arguments of `from_pandas` for a frame of this form."""
    how = {"next_states": NEXT} if mode == "next_states" else {"final_row": mode}
    return {**NAMES, **FLAGS, **how, "behavior_prob": "p", "actions": LABELS, "action_mask": MASK}


def plain_log(frame: pd.DataFrame, mode: str) -> dict[str, list[Any]]:
    """Read a frame of `random_frame` row by row with dictionaries and lists."""
    episodes: dict[int, list[dict[str, Any]]] = {}
    for values in frame.itertuples(index=False):
        row = dict(zip(frame.columns, values, strict=True))
        episodes.setdefault(row["id"], []).append(row)
    log: dict[str, list[Any]] = {name: [] for name in ("ids", "lengths", "ends", "finals", "final_dose", "final_mask")}
    log |= {name: [] for name in ("x", "y", "act", "r", "log_p", "t", "note", "dose", "mask")}
    for identifier in sorted(episodes):
        rows = sorted(episodes[identifier], key=lambda row: int(row["t"]))
        dead, lost = any(row["dead"] for row in rows), any(row["lost"] for row in rows)
        last = None
        if mode == "state_only" or (mode == "drop" and lost):
            last = rows.pop()
        final = [rows[-1].get(name, math.nan) for name in NEXT] if last is None else [last["x"], last["y"]]
        log["ids"].append(identifier)
        log["lengths"].append(len(rows))
        log["ends"].append(End.TERMINAL if dead else End.TRUNCATED if lost else End.HORIZON)
        log["finals"].append(final)
        log["final_dose"].append(math.nan if last is None else last["dose"])
        log["final_mask"].append([True] * 3 if last is None else [last[name] for name in MASK])
        for row in rows:
            for name in ("x", "y", "r", "t", "note", "dose"):
                log[name].append(row[name])
            log["act"].append(LABELS.index(row["act"]))
            log["log_p"].append(math.log(row["p"]))
            log["mask"].append([row[name] for name in MASK])
    return log


def assert_same_log(left: LoggedDataset, right: LoggedDataset) -> None:
    """Assert that all fields of two logs are equal, types included."""
    for field in dataclasses.fields(LoggedDataset):
        assert_same(getattr(left, field.name), getattr(right, field.name), field.name)


def assert_same(left: Any, right: Any, name: str) -> None:
    """Assert that two values of a field are equal, types included."""
    assert type(left) is type(right), name
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name, strict=True)
    elif isinstance(left, pd.DataFrame):
        pd.testing.assert_frame_equal(left, right, obj=name)
    elif dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name), f"{name}.{field.name}")
    else:
        assert left == right, name
