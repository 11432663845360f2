"""Real clicks, valued both ways: what each of two campaigns would have earned, from the log of the other.

The Open Bandit Dataset holds impressions of a fashion site, logged in the same week by two policies: uniformly random,
and Bernoulli Thompson sampling (bts). Each policy's click rate can be estimated from the log of the other and compared
with the click rate that it really had.

    python examples/open_bandit.py [FOLDER]

FOLDER holds random_men.parquet and bts_men.parquet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from ope import LoggedDataset
from ope.estimators import DoublyRobust, PerDecisionIS, WeightedIS
from ope.policies import TabularPolicy
from ope.policy import Policy

HERE = Path(__file__).resolve().parent
DEFAULT_FOLDER = HERE.parent.parent / "shared" / "open_bandit"
N_ITEMS = 34
POSITIONS = [1, 2, 3]
HOW_TO_GET_IT = """\
No {name} in {folder}.
The data are the small sample of the Open Bandit Dataset (ZOZO, Inc., CC BY 4.0) that comes with the Python package obp
0.4.1: obp/dataset/obd/<policy>/men/men.csv. Save its columns item_id, position, click and propensity_score as
random_men.parquet and bts_men.parquet, and pass the folder: python examples/open_bandit.py FOLDER"""


# 1. A log from a frame. One impression is an episode of one step that ends there. The state is the position on the page,
#    one-hot: both policies look at nothing else. The action is the item shown, the reward a click.
def read(folder: Path, name: str) -> pd.DataFrame:
    """Read the impressions of one policy."""
    path = folder / f"{name}_men.parquet"
    if not path.is_file():
        sys.exit(HOW_TO_GET_IT.format(name=path.name, folder=folder))
    return pd.read_parquet(path)


def as_log(impressions: pd.DataFrame) -> LoggedDataset:
    """Make one-step episodes of impressions."""
    shown_at = {f"position_{p}": (impressions["position"] == p).astype(float) for p in POSITIONS}
    return LoggedDataset.from_pandas(
        impressions.assign(impression=np.arange(len(impressions)), step=0, over=True, **shown_at),
        episode="impression",
        time="step",
        states=list(shown_at),
        action="item_id",
        reward="click",
        behavior_prob="propensity_score",
        terminated="over",
        actions=range(N_ITEMS),  # all items, shown or not
        reward_range=(0.0, 1.0),
    )


# 2. The candidates. The random policy shows every item with probability 1/34. Thompson sampling changes its mind as clicks
#    come in: the same item has propensities from .0002 to .7 over the week. Its average policy is what it showed, the
#    share of each item at each position. (The mean propensity of an item would be too high, and not sum to 1: a row is
#    in the log because its item was drawn, which happens more often while its probability is high.)
def uniform() -> Policy:
    """Return the random policy."""
    return TabularPolicy(np.full((len(POSITIONS), N_ITEMS), 1.0 / N_ITEMS))


def thompson_average(impressions: pd.DataFrame) -> Policy:
    """Return the share of each item at each position."""
    counts = pd.crosstab(impressions["position"], impressions["item_id"])
    counts = counts.reindex(index=POSITIONS, columns=range(N_ITEMS), fill_value=0)
    return TabularPolicy(counts.div(counts.sum(axis=1), axis=0).to_numpy())


# 3. The estimates: importance sampling (in bandits: IPS), its self-normalised form (SNIPS), doubly robust.
def report(title: str, log: LoggedDataset, candidate: Policy, own_clicks: pd.Series[int]) -> None:
    """Print three estimates of a candidate's click rate beside the click rate of its own campaign."""
    print(f"{title}\n  {log}")
    for estimator in (PerDecisionIS(gamma=1.0), WeightedIS(gamma=1.0), DoublyRobust(gamma=1.0)):
        estimate = estimator.fit(log, candidate).estimate()
        low, high = estimate.confidence_interval(0.95)
        print(f"  {type(estimator).__name__:<16} {_rate(estimate.value, estimate.std_error)}", end="")
        print(f"   95 % interval {low:.4f} to {high:.4f}   {estimate.verdict.level.name}")
        for reason in estimate.verdict.reasons:
            print(f"    - {reason}")
    print(
        f"  {'its own log':<16} {_rate(float(own_clicks.mean()), float(own_clicks.std() / np.sqrt(len(own_clicks))))}\n"
    )


def _rate(value: float, std_error: float) -> str:
    return f"{value:.4f} +- {std_error:.4f}"


def main() -> None:
    """Value each policy from the log of the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    folder = parser.parse_args().folder
    random, bts = read(folder, "random"), read(folder, "bts")
    report("Thompson sampling, from the random log", as_log(random), thompson_average(bts), bts["click"])
    report("Random, from the log of Thompson sampling", as_log(bts), uniform(), random["click"])


if __name__ == "__main__":
    main()
