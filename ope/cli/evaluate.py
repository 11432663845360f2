"""``python -m ope evaluate``: a user's own log and candidates, from files to a decision."""

from __future__ import annotations

import argparse
import ast
import difflib
import io
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import ope.estimators
from ope.behavior import estimate_behavior
from ope.cli.table import WIDTH, results_text
from ope.dataset import LoggedDataset
from ope.estimator import OffPolicyEstimator
from ope.files import check_place, replace_file
from ope.neural.serialization import load_policy
from ope.plotting import require_matplotlib
from ope.policies import ColumnPolicy
from ope.policy import Policy
from ope.selection import PolicySelector

WITH_PROPENSITIES = ("WeightedIS", "DoublyRobust", "LSTDQ")
WITHOUT_PROPENSITIES = ("LSTDQ",)
POLICY_SUFFIX = ".safetensors"


def evaluate(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if a candidate was chosen, else 1."""
    check_output(arguments.output)
    check_report(arguments.report)
    estimators = read_estimators(arguments)
    frame = read_table(Path(arguments.log), arguments.episode, arguments.action)
    candidates = read_candidates(arguments.candidate, frame)
    data = read_log(with_copies(frame, candidates, arguments), arguments)
    print(textwrap.fill(str(data), WIDTH, subsequent_indent="    "))
    selector = PolicySelector(
        estimators,
        criterion=arguments.criterion,
        baseline=None if arguments.baseline == "none" else arguments.baseline,
        margin=arguments.margin,
        level=arguments.level,
        allow_overlap=arguments.allow_overlap,
        n_jobs=arguments.jobs,
        progress=sys.stderr.isatty(),
    ).fit(data, candidates)
    decisive = (selector.best_name_, selector.primary_)
    print("", results_text(selector.results_, selector.estimates_, arguments.level, decisive), sep="\n")
    print("", textwrap.fill(selector.decision_, WIDTH), sep="\n")
    if arguments.output is not None:
        write_table(selector.results_, Path(arguments.output))
        print(f"Results with all diagnostics: {arguments.output}")
    if arguments.report is not None:
        selector.report(arguments.report)
        print(f"Report: {arguments.report}")
    return 0 if selector.best_name_ is not None else 1


# -------------------------------------------------------------------- the log


def read_table(path: Path, episode: str, action: Sequence[str]) -> pd.DataFrame:
    """Read a Parquet or CSV file; of a CSV file, episodes stay the text that they are, and only blanks are missing actions."""
    if not path.exists():
        raise ValueError(f"LOG must be a file that exists, got {str(path)!r}; check the path.")
    if path.is_dir() or path.suffix in (".parquet", ".pq"):
        return pd.read_parquet(path)
    if path.name.endswith((".csv", ".csv.gz")):
        return _read_csv(path, episode, action[0] if len(action) == 1 else None)
    raise ValueError(f"LOG must end in .parquet, .csv or .csv.gz, got {str(path)!r}; convert it.")


def _read_csv(path: Path, episode: str, action: str | None) -> pd.DataFrame:
    # Numbers would merge the episodes 01 and 1, and "None" may be the name of an action.
    frame = pd.read_csv(path, dtype={episode: str}, low_memory=False)
    if action is None or action not in frame or frame[action].notna().all():
        return frame
    text = pd.read_csv(path, usecols=[action], keep_default_na=False, na_values=[""], low_memory=False)
    return frame.assign(**{action: text[action].array})


def read_log(frame: pd.DataFrame, arguments: argparse.Namespace) -> LoggedDataset:
    """Build the log that the arguments describe; estimate its propensities where asked."""
    action = arguments.action[0] if len(arguments.action) == 1 else arguments.action
    data = LoggedDataset.from_pandas(
        frame,
        episode=arguments.episode,
        time=arguments.time,
        states=arguments.states,
        action=action,
        reward=arguments.reward,
        behavior_prob=arguments.behavior_prob,
        behavior_log_prob=arguments.behavior_log_prob,
        terminated=arguments.terminated,
        truncated=arguments.truncated,
        next_states=arguments.next_states,
        final_row=arguments.final_row,
        actions=_labels(arguments.actions, frame, action),
        action_mask=arguments.action_mask,
        horizon=arguments.horizon,
        reward_range=None if arguments.reward_range is None else tuple(arguments.reward_range),
    )
    return estimate_behavior(data) if arguments.estimate_behavior else data


def _labels(labels: list[str] | None, frame: pd.DataFrame, action: str | list[str]) -> list[Any] | None:
    """Return the labels in the type of the action's column."""
    if labels is None or not isinstance(action, str) or action not in frame:
        return labels
    if pd.api.types.is_bool_dtype(frame[action]):
        return [{"true": True, "false": False}.get(label.lower(), label) for label in labels]
    if not pd.api.types.is_numeric_dtype(frame[action]):
        return labels
    try:
        return [float(label) if "." in label else int(label) for label in labels]
    except ValueError as error:
        raise ValueError(f"--actions must be numbers as in column {action!r}, got {labels}.") from error


# -------------------------------------------------------------------- candidates and estimators


def read_candidates(given: list[str], frame: pd.DataFrame) -> dict[str, Policy]:
    """Return the policies that ``NAME=SOURCE`` describe."""
    candidates: dict[str, Policy] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise ValueError(
                f"--candidate must be NAME=SOURCE, got {text!r}; SOURCE is a policy file or columns of LOG."
            )
        if name in candidates:
            raise ValueError(f"--candidate must have a name of its own, got {name!r} twice; rename one.")
        candidates[name] = _policy(name, source, frame)
    return candidates


def _policy(name: str, source: str, frame: pd.DataFrame) -> Policy:
    if source.endswith(POLICY_SUFFIX):
        if not Path(source).is_file():
            raise ValueError(f"--candidate {name}: there is no policy file {source!r}; check the path.")
        policy: Policy = load_policy(source)
        return policy
    columns = source.split(",")
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(
            f"--candidate {name} must name a policy file ({POLICY_SUFFIX}) or columns of LOG, got {missing}; "
            + _suggestion(missing[0], list(map(str, frame)))
        )
    return ColumnPolicy(columns[0] if len(columns) == 1 else columns)


def with_copies(frame: pd.DataFrame, candidates: Mapping[str, Policy], arguments: argparse.Namespace) -> pd.DataFrame:
    """Copy the propensities for a candidate that reads them: the logging policy itself, valued as a candidate."""
    logged = arguments.behavior_prob
    readers = [
        policy for policy in candidates.values() if isinstance(policy, ColumnPolicy) and policy.columns == logged
    ]
    if not readers:
        return frame
    for policy in readers:
        policy.columns = f"{logged} (candidate)"
    return frame.assign(**{f"{logged} (candidate)": frame[logged]})


def read_estimators(arguments: argparse.Namespace) -> list[OffPolicyEstimator]:
    """Return the estimators of the given names (and settings), or those that suit the log, all with one gamma."""
    propensities = arguments.behavior_prob or arguments.behavior_log_prob or arguments.estimate_behavior
    names = arguments.estimators or (WITH_PROPENSITIES if propensities else WITHOUT_PROPENSITIES)
    return [_estimator(text, arguments.gamma) for text in names]


def _estimator(text: str, gamma: float) -> OffPolicyEstimator:
    name, settings = parse_call(text)
    known = ope.estimators.__all__
    if name not in known:
        raise ValueError(f"--estimators must be among {', '.join(known)}, got {name!r}; {_suggestion(name, known)}")
    if "gamma" in settings:
        raise ValueError(f"--estimators must not set gamma, got {text!r}; pass --gamma.")
    try:
        estimator: OffPolicyEstimator = getattr(ope.estimators, name)(gamma=gamma, **settings)
    except TypeError as error:
        raise ValueError(f"--estimators: {error}; its settings are those of ope.estimators.{name}.") from error
    return estimator


def parse_call(text: str) -> tuple[str, Mapping[str, Any]]:
    """Return name and keyword arguments of ``Name`` or ``Name(key=literal, ...)``; nothing is executed.

    Examples
    --------
    >>> parse_call("ImportanceSampling(clip=10, self_normalized=True)")
    ('ImportanceSampling', {'clip': 10, 'self_normalized': True})
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            settings = {str(item.arg): ast.literal_eval(item.value) for item in tree.keywords if item.arg}
            if len(settings) == len(tree.keywords):
                return tree.func.id, settings
    except (SyntaxError, ValueError):
        pass
    raise ValueError(f"--estimators must be Name or Name(setting=value, ...), got {text!r}; quote it in a shell.")


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "check the spelling."


# -------------------------------------------------------------------- output


def check_output(output: str | None) -> None:
    """Raise an error before the work starts if its results could not be written."""
    if output is None:
        return
    path = Path(output)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--output must end in .csv or .parquet, got {output!r}.")
    check_place("evaluate", "--output", path)


def check_report(report: str | None) -> None:
    """Raise an error before the work starts if the report could not be drawn or written."""
    if report is None:
        return
    if Path(report).suffix not in (".html", ".htm"):
        raise ValueError(f"--report must end in .html, got {report!r}.")
    check_place("evaluate", "--report", report)
    require_matplotlib()


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV or Parquet, atomically."""
    if path.suffix == ".csv":
        replace_file(path, frame.to_csv(index=False).encode())
        return
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    replace_file(path, buffer.getvalue())
