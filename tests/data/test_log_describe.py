"""The words about a log, against statistics taken from the frame."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from log_oracle import mode_arguments, random_frame

from ope.dataset import LoggedDataset
from ope.schema import BehaviorSource


@pytest.mark.filterwarnings("ignore:.*final state of a truncated episode:UserWarning")
def test_describe_agrees_with_the_frame() -> None:
    frame = random_frame(0, "next_states", 30)
    log = LoggedDataset.from_pandas(frame, **mode_arguments("next_states"), reward_range=(-9, 9))
    found = log.describe()
    groups = frame.groupby("id")
    lengths, returns = groups.size(), groups["r"].sum()
    assert found["log", "episodes"] == 30
    assert found["log", "transitions"] == len(frame)
    assert found["log", "horizon"] == 5
    assert [found["length", key] for key in ("min", "median", "max")] == [
        lengths.min(),
        lengths.median(),
        lengths.max(),
    ]
    assert found["ends", "terminal"] == frame["dead"].sum()
    assert found["ends", "truncated"] == frame["lost"].sum()
    assert found["ends", "horizon"] == 30 - frame["dead"].sum() - frame["lost"].sum()
    assert found["ends", "final states known"] == (groups["x_next"].count() == lengths).sum()
    for part, values in (("state x", frame["x"]), ("reward", frame["r"]), ("return", returns)):
        assert found[part, "min"] == pytest.approx(values.min(), abs=1e-12)
        assert found[part, "mean"] == pytest.approx(values.mean(), abs=1e-12)
        assert found[part, "max"] == pytest.approx(values.max(), abs=1e-12)
    shares = frame["act"].value_counts(normalize=True)
    assert {label: found["action share", label] for label in "abc"} == pytest.approx(shares.to_dict())
    assert found["propensities", "source"] == "known"
    assert found["propensities", "min"] == pytest.approx(frame["p"].min())
    assert found["propensities", "mean share allowed"] == frame[["may_a", "may_b", "may_c"]].to_numpy().mean()
    assert found["reward", "range a priori"] == (-9.0, 9.0)


def test_describe_groups_statistics_by_column() -> None:
    log = LoggedDataset.from_arrays(np.zeros((2, 2)), np.zeros((2, 2)), [0.0, 1.0], lengths=[2], ends="terminal")
    parts = log.describe().index.get_level_values("part")
    shown = [part for k, part in enumerate(parts) if k == 0 or part != parts[k - 1]]
    assert len(shown) == len(set(shown))
    assert [key for part, key in log.describe().index if part == "state state_1"] == ["min", "mean", "max"]


def test_describe_continuous_actions() -> None:
    log = LoggedDataset.from_arrays([0.0, 1.0], [[1.0, 2.0], [3.0, 4.0]], [0.0, 1.0], lengths=[2], ends="terminal")
    found = log.describe()
    assert [found["action action_1", key] for key in ("min", "mean", "max")] == [2.0, 3.0, 4.0]
    assert repr(log).count("continuous actions of dimension 2") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "LoggedDataset(2 episodes, 3 transitions, 1 feature, actions [0, 1], 2 terminal, no propensities)"),
        ({"horizon": 4}, "2 terminal, horizon of 4 steps"),
        ({"ends": ["truncated", "terminal"], "final_states": [1.0, np.nan]}, "1 terminal, 1 truncated"),
        ({"ends": ["horizon", "terminal"]}, "1 terminal, 1 horizon (2 steps)"),
        ({"action_labels": range(20)}, "20 actions"),
        ({"behavior_prob": [0.5, 0.5, 1.0]}, "propensities known"),
    ],
)
def test_one_line(changes: dict[str, object], words: str) -> None:
    arguments = {"lengths": [2, 1], "ends": "terminal"} | changes
    assert words in repr(LoggedDataset.from_arrays([0.0, 1.0, 2.0], [0, 1, 0], [0.0, 1.0, 2.0], **arguments))  # type: ignore[arg-type]


def test_one_line_names_the_model_of_estimated_propensities() -> None:
    log = LoggedDataset.from_arrays([0.0], [0], [0.0], lengths=[1], ends="terminal", behavior_prob=[0.5])
    log = log.replace(behavior_source=BehaviorSource(kind="estimated", model="LogisticRegression()"))
    assert "propensities estimated by LogisticRegression()" in repr(log)


class _Table(HTMLParser):
    """Collect the cells, and check that every tag is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        assert {name for name, _ in attrs} <= {"style", "scope"}
        self.cells += [""] if tag in ("td", "th") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_html_is_well_formed_and_escaped() -> None:
    name = "<script>alert('&\"')</script>"
    frame = random_frame(1, "drop").rename(columns={"x": name, "note": "<b>note"}).replace({"act": {"a": "<i>a"}})
    arguments = mode_arguments("drop") | {"states": [name, "y"], "actions": None, "action_mask": None}
    log = LoggedDataset.from_pandas(frame.drop(columns=["may_a", "may_b", "may_c"]), **arguments)
    page = log._repr_html_()
    table = _Table()
    table.feed(page)
    table.close()
    assert not table.open
    assert "<script" not in page
    assert "<b>" not in page
    assert "<i>" not in page
    cells = dict(zip(table.cells[::2], table.cells[1::2], strict=True))
    assert name in cells["features"]
    assert "<i>a (" in cells["actions"]
    assert "<b>note" in cells["other columns"]
    assert cells["dropped rows"].startswith(str(log.n_dropped_rows))
    assert cells["episodes"] == "12"


def test_html_of_every_kind_of_log() -> None:
    states, rewards = np.zeros((3, 40)), [0.0, 1.0, 2.0]
    logs = [
        LoggedDataset.from_arrays(states, [0.5, 1.0, 2.0], rewards, lengths=[2, 1], ends="terminal", horizon=9),
        LoggedDataset.from_arrays(states, [0, 1, 0], rewards, lengths=[3], ends="horizon", action_mask=np.ones((3, 2))),
        LoggedDataset.from_arrays(
            states, list("aba"), rewards, lengths=[3], ends="horizon", extras=pd.DataFrame({"e": rewards})
        ),
    ]
    for log, words in zip(
        logs, ["continuous, dimension 1", "allows 100.0% of the actions", "other columns"], strict=True
    ):
        assert words in log._repr_html_()
        assert "(40 in all)" in log._repr_html_()
