"""The peer of `study.py` and `speed.py`: d3rlpy, run by an interpreter that has d3rlpy 2.8.1 and gymnasium[mujoco].

    /tmp/d3/bin/python benchmarks/learners/peer.py score --logs mujoco --env Hopper --learner TD3BC --seed 0
    /tmp/d3/bin/python benchmarks/learners/peer.py time --learner TD3BC --updates 50 [--discrete]

`study.py run --peer /tmp/d3/bin/python` and `speed.py --peer /tmp/d3/bin/python` call it.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import d3rlpy
import structlog
import torch
from common import (
    CHECKPOINTS,
    DISCRETE,
    GAMMA,
    NORMALIZED,
    SETTINGS,
    Act,
    Bursts,
    Data,
    FloatArray,
    Run,
    read,
    record,
    synthetic,
)

FOLDER = Path(__file__).resolve().parents[1] / "results" / "learners"


def episodes_of(data: Data) -> Any:
    """Return the log as d3rlpy holds it; it leaves out the last transition of a truncated episode."""
    return d3rlpy.dataset.MDPDataset(
        data.states.astype("float32"),
        data.actions.astype("float32"),
        data.rewards[:, None].astype("float32"),
        data.terminal.astype("float32"),
        data.truncated.astype("float32"),
    )


def config(name: str, **changes: Any) -> Any:
    """Return d3rlpy's configuration with the settings of `common`."""
    s = {**SETTINGS[name], **changes}
    encoder = d3rlpy.models.VectorEncoderFactory(list(s["hidden"]))
    shared: dict[str, Any] = {"batch_size": s["batch_size"], "gamma": GAMMA}
    if NORMALIZED[name]:
        shared["observation_scaler"] = d3rlpy.preprocessing.StandardObservationScaler()
    both = {
        "actor_encoder_factory": encoder,
        "critic_encoder_factory": encoder,
        "critic_learning_rate": s["learning_rate"],
    }
    made: dict[str, Callable[[], Any]] = {
        "BehaviorCloning": lambda: d3rlpy.algos.BCConfig(
            **shared, encoder_factory=encoder, learning_rate=s["learning_rate"]
        ),
        "TD3BC": lambda: d3rlpy.algos.TD3PlusBCConfig(
            **shared, **both, actor_learning_rate=s["learning_rate"], alpha=s["alpha"]
        ),
        "IQL": lambda: d3rlpy.algos.IQLConfig(
            **shared,
            **both,
            value_encoder_factory=encoder,
            actor_learning_rate=s["learning_rate"],
            expectile=s["expectile"],
            weight_temp=s["beta"],
            max_weight=100.0,
            actor_optim_factory=d3rlpy.optimizers.AdamFactory(
                lr_scheduler_factory=d3rlpy.optimizers.CosineAnnealingLRFactory(T_max=s["n_updates"])
            ),
            reward_scaler=d3rlpy.preprocessing.ReturnBasedRewardScaler(multiplier=1000.0),
        ),
        "BCQ": lambda: d3rlpy.algos.BCQConfig(
            **shared,
            **both,
            actor_learning_rate=s["learning_rate"],
            imitator_learning_rate=s["learning_rate"],
            imitator_encoder_factory=d3rlpy.models.VectorEncoderFactory(list(s["vae_hidden"])),
            n_action_samples=s["n_target_samples"],
            update_actor_interval=1,
            lam=0.75,
            action_flexibility=0.05,
        ),
        "CQL": lambda: d3rlpy.algos.CQLConfig(
            **shared,
            **both,
            actor_learning_rate=s["actor_learning_rate"],
            temp_learning_rate=s["actor_learning_rate"],
            alpha_learning_rate=0.0,
            n_action_samples=s["n_action_samples"],
            conservative_weight=s["alpha"],
        ),
    }  # fmt: skip
    return made[name]()


def train(name: str, data: Data, seed: int) -> list[Act]:
    """Train, and return the policy of each quarter; d3rlpy goes on training one object, so that its weights are copied."""
    d3rlpy.seed(seed)
    algo, dataset = config(name).create(device="cpu:0"), episodes_of(data)
    steps = SETTINGS[name]["n_updates"]
    fitting = algo.fitter(
        dataset,
        n_steps=steps,
        n_steps_per_epoch=steps // CHECKPOINTS,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    return [_copy(algo) for _ in fitting]


def _copy(algo: Any) -> Act:
    twin = copy.deepcopy(algo)

    def act(states: FloatArray) -> FloatArray:
        actions: FloatArray = twin.predict(states.astype("float32")).astype("float64")
        return actions

    return act


def quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(1)


def discrete_config(name: str) -> Any:
    """Return d3rlpy's configuration of a learner of discrete actions."""
    s = DISCRETE[name]
    shared: dict[str, Any] = {
        "batch_size": s["batch_size"],
        "gamma": GAMMA,
        "learning_rate": s["learning_rate"],
        "encoder_factory": d3rlpy.models.VectorEncoderFactory(list(s["hidden"])),
    }
    if name == "CQL":
        return d3rlpy.algos.DiscreteCQLConfig(**shared, alpha=s["alpha"], n_critics=1)
    return d3rlpy.algos.DiscreteBCQConfig(**shared, action_flexibility=s["threshold"], n_critics=1)


def clock(name: str, updates: int, *, discrete: bool) -> None:
    """Time bursts of updates."""
    dataset = episodes_of(synthetic(discrete=discrete))
    made = discrete_config(name) if discrete else config(name, batch_size=256)
    fitting = made.create(device="cpu:0").fitter(
        dataset,
        n_steps=10**6 * updates,
        n_steps_per_epoch=updates,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    enough = Bursts()
    for _ in fitting:
        if enough():
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["score", "time"])
    parser.add_argument("--learner", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--env")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--updates", type=int)
    parser.add_argument("--discrete", action="store_true")
    parser.add_argument("--medium", action="store_true", help="torch's own switch for shorter products")
    args = parser.parse_args()
    quiet()
    if args.medium:
        torch.set_float32_matmul_precision("medium")
    if args.command == "time":
        clock(args.learner, args.updates, discrete=args.discrete)
        return
    data = read(args.env, args.logs)
    versions = {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__}
    run = Run(args.env, args.learner, "d3rlpy", args.seed)
    record(run, args.folder, lambda: train(args.learner, data, args.seed), versions)


if __name__ == "__main__":
    main()
