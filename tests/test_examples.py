"""The examples run as they stand and say what they promise."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from ope.estimators import PerDecisionIS

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
OPEN_BANDIT = ROOT.parent / "shared" / "open_bandit"
needs_open_bandit = pytest.mark.skipif(
    not (OPEN_BANDIT / "bts_men.parquet").is_file(), reason="the Open Bandit data are not beside the repository"
)


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_log(tmp_path: Path) -> None:
    saved = tmp_path / "cloned.safetensors"
    done = _run("own_log.py", "--patients", "600", "--save", str(saved))
    assert done.returncode == 0, done.stderr
    for words in (
        "LoggedDataset(600 episodes",
        "DoublyRobust of",
        "has the highest lower bound by",
        "earlier - clone:",
    ):
        assert words in done.stdout
    assert saved.is_file()


def test_sensitivity() -> None:
    done = _run("sensitivity.py", "--episodes", "400")
    assert done.returncode == 0, done.stderr
    assert "sharpe_ratio_at_2" in done.stdout
    for parameter in ("clip", "gamma", "horizon", "odds ratio"):
        assert f" of 60% along {parameter}: " in done.stdout


@needs_open_bandit
def test_open_bandit_shows_both_directions_beside_the_clicks() -> None:
    done = _run("open_bandit.py")
    assert done.returncode == 0, done.stderr
    assert "its own log      0.0069 +- 0.0008" in done.stdout
    assert "its own log      0.0046 +- 0.0007" in done.stdout
    assert done.stdout.count("95 % interval") == 6


@needs_open_bandit
def test_open_bandit_estimate_is_the_plain_formula() -> None:
    example = _module("open_bandit")
    random, bts = (example.read(OPEN_BANDIT, name) for name in ("random", "bts"))
    estimate = PerDecisionIS(gamma=1.0).fit(example.as_log(bts), example.uniform()).estimate()
    assert estimate.value == pytest.approx((bts["click"] / 34 / bts["propensity_score"]).mean(), rel=1e-12)

    share = bts.groupby(["position", "item_id"]).size() / bts.groupby("position").size()
    shown = pd.MultiIndex.from_frame(random[["position", "item_id"]])
    weights = share.reindex(shown).fillna(0.0).to_numpy() * 34
    estimate = PerDecisionIS(gamma=1.0).fit(example.as_log(random), example.thompson_average(bts)).estimate()
    assert estimate.value == pytest.approx(np.mean(weights * random["click"].to_numpy()), rel=1e-6)


def test_open_bandit_says_where_the_data_are(tmp_path: Path) -> None:
    done = _run("open_bandit.py", str(tmp_path))
    assert done.returncode == 1
    assert "No random_men.parquet in" in done.stderr
    assert "Open Bandit Dataset" in done.stderr
