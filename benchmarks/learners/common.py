"""What the study of learners and its peer share: settings, data and the simulator. Imports nothing of ope or d3rlpy.

`study.py` runs in this project's interpreter and `peer.py` in one that has d3rlpy; both import this file, so that data,
settings and the rollouts that score a policy are the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

ENVIRONMENTS = {"Hopper": "Hopper-v5", "HalfCheetah": "HalfCheetah-v5"}
GAMMA = 0.99
EPISODES = 10
CHECKPOINTS = 4
RESET_SEED = 10_000
EXPERT = "noise0_seed0_std1"

# Settings by learner in the words of this library; `peer.py` translates them.
SETTINGS: dict[str, dict[str, Any]] = {
    "BehaviorCloning": {"n_updates": 20_000, "batch_size": 256, "learning_rate": 3e-4, "hidden": (256, 256)},
    "TD3BC": {"n_updates": 20_000, "batch_size": 256, "learning_rate": 3e-4, "hidden": (256, 256), "alpha": 2.5},
    "IQL": {
        "n_updates": 20_000,
        "batch_size": 256,
        "learning_rate": 3e-4,
        "hidden": (256, 256),
        "expectile": 0.7,
        "beta": 3.0,
    },
    "BCQ": {
        "n_updates": 20_000,
        "batch_size": 100,
        "learning_rate": 1e-3,
        "hidden": (400, 300),
        "vae_hidden": (750, 750),
        "n_target_samples": 10,
        "n_act_samples": 10,
    },
    "CQL": {
        "n_updates": 5_000,
        "batch_size": 256,
        "learning_rate": 3e-4,
        "actor_learning_rate": 1e-4,
        "hidden": (256, 256, 256),
        "alpha": 5.0,
        "n_action_samples": 10,
    },
}
# For the timing of learners of discrete actions; d3rlpy has no knob for the other settings.
DISCRETE: dict[str, dict[str, Any]] = {
    "CQL": {"batch_size": 256, "learning_rate": 3e-4, "hidden": (256, 256), "alpha": 1.0},
    "BCQ": {"batch_size": 256, "learning_rate": 3e-4, "hidden": (256, 256), "threshold": 0.3},
}
NORMALIZED = {"BehaviorCloning": True, "TD3BC": True, "IQL": False, "BCQ": False, "CQL": False}

FloatArray = npt.NDArray[np.float64]
Act = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class Data:
    """A log as arrays; actions are clipped to [-1, 1], which is what the simulator executed."""

    states: FloatArray
    actions: FloatArray
    rewards: FloatArray
    next_states: FloatArray
    terminal: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    episode: npt.NDArray[np.int64]


def read(env: str, logs: Path) -> Data:
    frame = pd.read_parquet(logs / env / "log.parquet")

    def block(prefix: str) -> FloatArray:
        names = [name for name in frame.columns if name.startswith(prefix) and name[len(prefix) :].isdigit()]
        return frame[names].to_numpy(np.float64)

    return Data(
        states=block("state_"),
        actions=np.clip(block("action_"), -1.0, 1.0),
        rewards=frame["reward"].to_numpy(np.float64),
        next_states=block("next_state_"),
        terminal=frame["terminated"].to_numpy(bool),
        truncated=frame["truncated"].to_numpy(bool),
        episode=frame["episode"].to_numpy(np.int64),
    )


def returns(env: str, act: Act, episodes: int = EPISODES, seed: int = RESET_SEED) -> list[float]:
    """Return the undiscounted returns of episodes that are simulated side by side, the same starts for every policy."""
    import gymnasium

    worlds = [gymnasium.make(ENVIRONMENTS[env]) for _ in range(episodes)]
    states = [world.reset(seed=seed + i)[0] for i, world in enumerate(worlds)]
    totals, going = [0.0] * episodes, list(range(episodes))
    while going:
        actions = np.clip(act(np.stack([states[i] for i in going])), -1.0, 1.0)
        following = []
        for i, action in zip(going, actions, strict=True):
            states[i], reward, terminated, truncated, _ = worlds[i].step(action)
            totals[i] += float(reward)
            if not (terminated or truncated):
                following.append(i)
        going = following
    return totals


def references(env: str, logs: Path, folder: Path) -> dict[str, float]:
    """Return the mean returns of a policy that draws actions uniformly, and of the expert; the first is simulated once."""
    path = folder / f"references-{env}.json"
    if not path.exists():
        rows = json.loads((logs / env / "candidates.json").read_text())
        expert = next(row["value_1"][0] for row in rows if row["name"] == EXPERT)
        rng, size = np.random.default_rng(0), read(env, logs).actions.shape[1]
        random = returns(env, lambda states: rng.uniform(-1.0, 1.0, (len(states), size)), episodes=100)
        write(path, {"random": float(np.mean(random)), "expert": float(expert)})
    found: dict[str, float] = json.loads(path.read_text())
    return found


def write(path: Path, content: object) -> None:
    """Write JSON whole or not at all: other processes may look for the file at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(content) + "\n")
    partial.replace(path)


@dataclass(frozen=True)
class Run:
    """One training run; its file says what came out."""

    env: str
    learner: str
    library: str
    seed: int

    def path(self, folder: Path) -> Path:
        """Return the file of the run."""
        return folder / f"{self.env}-{self.learner}-{self.library}-{self.seed}.json"


def record(run: Run, folder: Path, train: Callable[[], list[Act]], versions: dict[str, str]) -> None:
    """Train, score every checkpoint, and write the file of the run."""
    began, processor = time.perf_counter(), time.process_time()
    policies = train()
    seconds, busy = time.perf_counter() - began, time.process_time() - processor
    scores = [returns(run.env, act) for act in policies]
    found = {
        "env": run.env,
        "learner": run.learner,
        "library": run.library,
        "seed": run.seed,
        "returns": [[round(value, 2) for value in row] for row in scores],
        "seconds": round(seconds, 1),
        "processor_seconds": round(busy, 1),
        "versions": versions,
    }
    write(run.path(folder), found)
    means = " ".join(f"{np.mean(row):.0f}" for row in scores)
    print(run.env, run.learner, run.library, run.seed, "returns", means, f"in {seconds:.0f} s", flush=True)


def synthetic(*, discrete: bool, n: int = 20_000, length: int = 100) -> Data:
    """Return noise of the size of a log, to time updates on: 11 features, 3 continuous actions or 4 discrete ones."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(n, 11))
    actions = rng.integers(4, size=(n, 1)).astype(float) if discrete else rng.uniform(-1.0, 1.0, (n, 3))
    last = np.arange(n) % length == length - 1
    return Data(
        states,
        actions,
        rng.normal(size=n),
        np.roll(states, -1, axis=0),
        last,
        np.zeros(n, bool),
        np.arange(n) // length,
    )


class Bursts:
    """Times bursts of updates on request, so that programs can take turns: called between bursts, true where no more are asked for.

    A line "go" on the standard input asks for one; the seconds it took go to the standard output, and what `probe` returns.
    """

    def __init__(self, probe: Callable[[], float] | None = None) -> None:
        self.probe = probe
        self.began: float | None = None

    def __call__(self, *_: object) -> bool:
        """Say how long the burst took, and wait to be asked for another."""
        now = time.perf_counter()
        if self.began is None:  # the first burst warms up
            print("READY", flush=True)
        else:
            print("SECONDS", now - self.began, *([] if self.probe is None else [self.probe()]), flush=True)
        going = sys.stdin.readline().strip() == "go"
        self.began = time.perf_counter()
        return not going
