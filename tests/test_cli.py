"""The command line: a log and candidates from files, mistakes without tracebacks, and the demo in small."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

import ope.cli.demo
from ope import __version__
from ope.__main__ import main
from ope.cli.arguments import parser
from ope.cli.demo import Size
from ope.cli.evaluate import parse_call, read_log, read_table
from ope.cli.table import WIDTH, columns_text
from ope.dataset import LoggedDataset
from ope.estimators import DoublyRobust
from ope.files import replace_file
from ope.frame import FrameArguments
from ope.policies import BehaviorCloning
from ope.policy import overlap

GAMMA = 0.9
LENGTH = 3
NAMES = ["--episode", "patient", "--time", "hour", "--states", "pain", "age", "--action", "drug", "--reward", "reward"]
KNOWN = ["--behavior-prob", "p_drug"]
COLUMNS = FrameArguments(
    episode="patient", time="hour", states=["pain", "age"], action="drug", reward="reward", behavior_prob="p_drug"
)


def _frame(n_episodes: int = 300) -> pd.DataFrame:
    """Make a log of three steps whose actions pay off where pain is high."""
    rng = np.random.default_rng(0)
    n = n_episodes * LENGTH
    frame = pd.DataFrame(
        {"patient": np.repeat(np.arange(n_episodes), LENGTH), "hour": np.tile(np.arange(LENGTH), n_episodes)}
    )
    frame["pain"], frame["age"] = rng.random(n), rng.random(n)
    p_yes = 0.3 + 0.4 * frame["pain"].to_numpy()
    given = rng.random(n) < p_yes
    frame["drug"] = np.where(given, "yes", "no")
    frame["p_drug"] = np.where(given, p_yes, 1.0 - p_yes)
    frame["reward"] = np.where(given, frame["pain"], 0.3) + rng.normal(0.0, 0.1, n)
    frame["more_yes"] = 0.2 + 0.7 * frame["pain"]
    frame["more_no"] = 1.0 - frame["more_yes"]
    frame["more"] = np.where(given, frame["more_yes"], frame["more_no"])
    return frame.sample(frac=1.0, random_state=0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.parquet"
    _frame().to_parquet(path)
    return path


def _evaluate(log: Path, *arguments: str | Path) -> int:
    return main(["evaluate", str(log), *NAMES, "--gamma", str(GAMMA), *map(str, arguments)])


def _weighted_is(frame: pd.DataFrame) -> float:
    """Compute sum_t gamma^t (sum_i W_it r_it) / (sum_i W_it) with plain loops."""
    above, below = [0.0] * LENGTH, [0.0] * LENGTH
    for _, rows in frame.sort_values(["patient", "hour"]).groupby("patient"):
        weight = 1.0
        for t, (more, logged, reward) in enumerate(rows[["more", "p_drug", "reward"]].to_numpy().tolist()):
            weight *= more / logged
            above[t] += weight * reward
            below[t] += weight
    return sum(GAMMA**t * above[t] / below[t] for t in range(LENGTH))


# -------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
@pytest.mark.parametrize("source", ["more", "more_no,more_yes"])
def test_value_is_that_of_plain_loops(tmp_path: Path, suffix: str, source: str) -> None:
    frame, log, results = _frame(), tmp_path / f"log{suffix}", tmp_path / "results.csv"
    frame.to_parquet(log) if suffix == ".parquet" else frame.to_csv(log, index=False)
    code = _evaluate(
        log, *KNOWN, "--candidate", f"more={source}", "--estimators", "TrajectoryIS", "WeightedIS", "--output", results
    )
    assert code == 0
    table = pd.read_csv(results).set_index("estimator")
    assert table.loc["WeightedIS", "value"] == pytest.approx(_weighted_is(frame), rel=1e-9)
    assert table["candidate"].unique().tolist() == ["more"]
    assert list(tmp_path.glob(".*")) == []


def test_table_and_decision_are_printed(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = _evaluate(
        log, *KNOWN, "--candidate", "more=more_no,more_yes", "--candidate", "today=p_drug", "--level", "0.9"
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "LoggedDataset(300 episodes, 900 transitions, 2 features, actions ['no', 'yes']" in out
    assert "90% interval" in out
    assert "'more': it has the highest lower bound by" in " ".join(out.split())
    rows = [line.split() for line in out.splitlines()]
    assert sum(row[:1] == [">"] for row in rows) == 1
    assert [row[:2] for row in rows if "today" in row[:2]] == [["today", "WeightedIS"]]
    assert max(map(len, out.splitlines())) <= WIDTH


def test_parquet_output_holds_every_diagnostic(log: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.parquet"
    assert _evaluate(log, *KNOWN, "--candidate", "more=more", "--output", results) == 0
    table = pd.read_parquet(results)
    assert table["estimator"].tolist() == ["WeightedIS", "DoublyRobust", "LSTDQ"]
    assert {"value", "low", "high", "lower_bound", "verdict", "reasons", "ess"} <= set(table.columns)


def test_report_is_written_and_named(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    report = tmp_path / "report.html"
    code = _evaluate(log, *KNOWN, "--candidate", "more=more", "--estimators", "WeightedIS", "--report", report)
    assert code in (0, 1)
    assert f"Report: {report}" in capsys.readouterr().out
    text = report.read_text(encoding="utf-8")
    assert f"{_weighted_is(_frame()):.4g}" in text


def test_policy_file(log: Path, tmp_path: Path) -> None:
    from ope import LoggedDataset

    policy, results = tmp_path / "cloned.safetensors", tmp_path / "results.csv"
    data = LoggedDataset.from_pandas(
        _frame(),
        episode="patient",
        time="hour",
        states=["pain", "age"],
        action="drug",
        reward="reward",
        behavior_prob="p_drug",
    )
    train, test = data.split(random_state=1)
    clone = BehaviorCloning(hidden=(8,), n_updates=50).fit(train)
    clone.save(policy)
    test.to_pandas().to_parquet(log)
    assert (
        _evaluate(
            log,
            *KNOWN,
            "--candidate",
            f"cloned={policy}",
            "--estimators",
            "DoublyRobust(n_folds=3)",
            "--output",
            results,
        )
        == 0
    )
    expected = DoublyRobust(gamma=GAMMA, n_folds=3).fit(test, clone).estimate()
    assert pd.read_csv(results)["value"].tolist() == pytest.approx([expected.value], rel=1e-9)


def test_policy_that_learned_from_the_log_is_refused_unless_allowed(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "cloned.safetensors"
    BehaviorCloning(hidden=(8,), n_updates=5).fit(LoggedDataset.from_parquet(log, **COLUMNS)).save(policy)
    assert _evaluate(log, *KNOWN, "--candidate", f"cloned={policy}") == 1
    assert "trained on 300 of the 300 evaluation episodes" in " ".join(capsys.readouterr().out.split())
    assert _evaluate(log, *KNOWN, "--candidate", f"cloned={policy}", "--allow-overlap") == 0


def test_estimated_propensities(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _evaluate(log, "--estimate-behavior", "--candidate", "more=more") == 0
    assert "propensities estimated by" in capsys.readouterr().out


def test_without_propensities_the_default_needs_none(log: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    assert _evaluate(log, "--candidate", "more=more_no,more_yes", "--output", results) == 0
    assert pd.read_csv(results)["estimator"].tolist() == ["LSTDQ"]


def test_actions_that_were_never_logged(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _evaluate(log, *KNOWN, "--actions", "no", "yes", "double", "--candidate", "more=more") == 0
    assert "actions ['double', 'no', 'yes']" in capsys.readouterr().out


def test_numbers_as_labels_keep_the_type_of_the_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    _frame().assign(drug=lambda f: (f["drug"] == "yes").astype(int)).to_csv(log, index=False)
    assert _evaluate(log, *KNOWN, "--actions", "0", "1", "2", "--candidate", "more=more") == 0
    assert "actions [0, 1, 2]" in capsys.readouterr().out
    assert _evaluate(log, *KNOWN, "--actions", "0", "one", "--candidate", "more=more") == 2


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidate", "more"], "--candidate must be NAME=SOURCE, got 'more'"),
        (["--candidate", "more=more", "--candidate", "more=p_drug"], "got 'more' twice"),
        (["--candidate", "more=mor"], "got ['mor']; did you mean 'more'?"),
        (["--candidate", "more=none.safetensors"], "there is no policy file 'none.safetensors'"),
        (["--candidate", "more=more", "--estimators", "WeightdIS"], "did you mean 'WeightedIS'?"),
        (["--candidate", "more=more", "--estimators", "LSTDQ(ridg=1)"], "unexpected keyword argument 'ridg'"),
        (["--candidate", "more=more", "--estimators", "LSTDQ(ridge=-1)"], "`ridge` must be a number of at least 0"),
        (["--candidate", "more=more", "--estimators", "LSTDQ(gamma=1)"], "must not set gamma"),
        (["--candidate", "more=more", "--estimators", "LSTDQ(ridge=open('x'))"], "must be Name or Name(setting=value"),
        (["--candidate", "more=more", "--output", "nowhere/results.csv"], "in a folder that exists"),
        (["--candidate", "more=more", "--output", "folder.csv"], "must name a file, got the folder 'folder.csv'"),
        (["--candidate", "more=more", "--report", "folder.html"], "must name a file, got the folder 'folder.html'"),
        (["--candidate", "more=more", "--output", "results.txt"], "--output must end in .csv or .parquet"),
        (["--candidate", "more=more", "--report", "report.pdf"], "--report must end in .html"),
        (["--candidate", "more=more", "--report", "nowhere/report.html"], "in a folder that exists"),
        (["--candidate", "more=more", "--behavior-prob", "p_drugs"], "`behavior_prob` must name a column"),
        (["--candidate", "more=more", "--gamma", "1.5"], "`gamma` must be in [0, 1], got 1.5"),
        (["--candidate", "more=more", "--level", "95"], "`level` must lie in (0, 1), got 95.0"),
    ],
)
def test_mistakes_are_one_line_on_stderr(
    log: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(log.parent)
    for name in ("folder.csv", "folder.html"):
        Path(name).mkdir()
    assert _evaluate(log, *arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("ope evaluate: error: ")
    assert message in err
    assert err.count("\n") == 1
    if "must name a file" in message:
        assert out == ""


def test_no_processes_are_refused(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        _evaluate(log, "--candidate", "more=more", "--jobs", "0")
    assert stop.value.code == 2
    assert "--jobs: must be at least 1, or -1 for all cores, got 0" in capsys.readouterr().err


def test_csv_files_keep_episodes_and_actions_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("e,t,x,a,r\n01,0,0.5,None,1\n1,0,0.5,drug,2\n2,0,0.5,,3\n")
    frame = read_table(path, "e", ["a"])
    assert frame["e"].tolist() == ["01", "1", "2"]
    assert frame["a"].fillna("missing").tolist() == ["None", "drug", "missing"]
    path.write_text("e,t,x,a,r\n1,0,0.5,1,1\n1,1,0.5,,\n")
    assert read_table(path, "e", ["a"])["a"].dtype == float
    assert read_table(path, "e", ["a", "x"])["e"].tolist() == ["1", "1"]


def test_overlap_is_found_behind_another_file_type(tmp_path: Path) -> None:
    frame = _frame()
    numbers = frame.assign(patient=pd.factorize(frame["patient"])[0])
    numbers.astype({"patient": str}).to_parquet(tmp_path / "log.parquet")
    numbers.to_csv(tmp_path / "log.csv", index=False)
    arguments = parser().parse_args(["evaluate", "log", *NAMES, "--gamma", "1", "--candidate", "more=more"])
    columns = arguments.episode, arguments.action
    logs = [read_log(read_table(tmp_path / f"log.{kind}", *columns), arguments) for kind in ("parquet", "csv")]
    logs.append(LoggedDataset.from_pandas(numbers, **COLUMNS))
    for learned, valued in itertools.permutations(logs, 2):

        class Learned:
            training_episode_keys_ = np.sort(learned.episode_keys)

        assert overlap(Learned(), valued) == valued.n_episodes


@pytest.mark.parametrize(
    ("name", "message"), [("no.parquet", "LOG must be a file that exists"), ("log.txt", "LOG must end in")]
)
def test_log_that_cannot_be_read(tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.txt").write_text("?")
    assert _evaluate(tmp_path / name, "--candidate", "more=more") == 2
    assert message in capsys.readouterr().err


def test_broken_parquet_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.parquet"
    log.write_bytes(b"PAR1 no")
    assert _evaluate(log, "--candidate", "more=more") == 2
    assert "ope evaluate: error: " in capsys.readouterr().err


def test_traceback_on_request(log: Path) -> None:
    with pytest.raises(ValueError, match="NAME=SOURCE"):
        _evaluate(log, "--candidate", "more", "--traceback")


def test_missing_arguments_are_argparse_errors(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(log), "--gamma", "1"])
    assert stop.value.code == 2
    assert "--candidate" in capsys.readouterr().err


def test_interrupt(log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pd, "read_parquet", interrupted)
    assert _evaluate(log, "--candidate", "more=more") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_old_results_stay_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.csv"
    replace_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# -------------------------------------------------------------------- the rest


def test_version_as_a_process() -> None:
    done = subprocess.run([sys.executable, "-m", "ope", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ope {__version__}\n"


def test_reader_that_stops_early(log: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ope",
        "evaluate",
        str(log),
        *NAMES,
        "--gamma",
        "1",
        "--candidate",
        "more=more_no,more_yes",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("text", ["LSTDQ", " LSTDQ() ", "LSTDQ(ridge=0.1, stationary=True)"])
def test_calls_are_read(text: str) -> None:
    name, settings = parse_call(text)
    assert name == "LSTDQ"
    assert dict(settings) == ({"ridge": 0.1, "stationary": True} if "ridge" in text else {})


@pytest.mark.parametrize("text", ["", "LSTDQ(1)", "a.b", "LSTDQ(**{'ridge': 1})", "LSTDQ(ridge=x)", "LSTDQ)"])
def test_other_code_is_not_a_call(text: str) -> None:
    with pytest.raises(ValueError, match="must be Name or Name"):
        parse_call(text)


def test_columns_line_up() -> None:
    lines = columns_text(("a", "value"), [("one", "1.0"), ("x", "22.0")], right=(1,)).splitlines()
    assert len({line.rindex(".") for line in lines[2:]}) == 1


def test_demo_from_log_to_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ope.cli.demo, "FAST", Size(episodes=300, cloning=20, q_learning=20, rollouts=50))
    code = main(["demo", "--fast", "--seed", "3", "--output", str(tmp_path / "kept here")])
    out = capsys.readouterr().out
    assert code == 0
    for words in (
        "1. A log.",
        "2. Candidates.",
        "3. Estimates",
        "Choice: ",
        "4. The truth",
        "Regret",
        "Intervals that hold",
    ):
        assert words in out
    results = pd.read_csv(tmp_path / "kept here" / "results.csv")
    assert len(results) == 3 * 7
    assert (tmp_path / "kept here" / "report.html").exists() == ("read the report" in out)
    command = shlex.split(out[out.index("python -m ope evaluate") :].split("\n\n")[0].replace("\\\n", " "))
    again = tmp_path / "again.csv"
    assert main([*command[3:], "--estimators", "LSTDQ", "--output", str(again)]) == 0
    _assert_same_values(pd.read_csv(again), results)


def _assert_same_values(again: pd.DataFrame, results: pd.DataFrame) -> None:
    first = results[results["estimator"] == "LSTDQ"].assign(
        candidate=lambda frame: frame["candidate"].str.replace(" ", "_")
    )
    values: npt.NDArray[np.float64] = first.set_index("candidate").loc[again["candidate"], "value"].to_numpy()
    np.testing.assert_allclose(again["value"].to_numpy(), values, rtol=1e-9)
    assert len(again) == 3


def test_demo_keeps_nothing_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ope.cli.demo, "FAST", Size(episodes=200, cloning=5, q_learning=5, rollouts=10))
    assert main(["demo", "--fast"]) in (0, 1)
    assert list(tmp_path.iterdir()) == []
