"""How long a million updates take on a GPU, one by one and as CUDA graphs, and what more seeds at once cost.

    python benchmarks/learners/gpu.py [--learner TD3BC] [--device cuda] [--updates 20000] [--seeds 16]

Batches of 256 of 100,000 synthetic transitions, 2 x 256 networks, 32-bit and TF32 products. Wanted on an H200-class GPU: a million updates of
TD3BC and of IQL in under 2 minutes, 16 seeds at once in under 4 times the time of one. It has not been run on a GPU so far; on a CPU it shows
that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import time

import torch
from common import synthetic
from speed import log_of, made

from ope import LoggedDataset
from ope.policies import cuda_graphs

WANTED = ("TD3BC", "IQL")


def seconds_of_an_update(name: str, log: LoggedDataset, updates: int, seeds: int, **settings: str) -> float:
    """Return the seconds of an update of so many seeds side by side, without what a run, or the first one, costs once."""
    spent = []
    for count in (20, updates // 5, updates // 5 + updates):
        learners = [made(name, n_updates=count, **settings).set_params(random_state=seed) for seed in range(seeds)]
        began = time.perf_counter()
        type(learners[0]).fit_many(log, learners)
        spent.append(time.perf_counter() - began)
    return (spent[2] - spent[1]) / updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learner", choices=WANTED, action="append")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=16)
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    print(f"{name}, torch {torch.__version__}")
    log = log_of(synthetic(discrete=False, n=100_000), discrete=False)
    for learner in args.learner or WANTED:
        for graphs in (False, True):
            for precision in ("float32", "tf32"):
                with cuda_graphs() if graphs else contextlib.nullcontext():
                    settings = {"device": args.device, "precision": precision}
                    one = seconds_of_an_update(learner, log, args.updates, 1, **settings)
                    many = seconds_of_an_update(learner, log, args.updates, args.seeds, **settings)
                how = "as a graph" if graphs else "one by one"
                minutes = f"{1e6 * one / 60:.1f} minutes a million updates"
                print(
                    f"{learner} {precision} {how}: {minutes}; {args.seeds} seeds take {many / one:.1f} times one",
                    flush=True,
                )


if __name__ == "__main__":
    main()
