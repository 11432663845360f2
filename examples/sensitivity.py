"""Which estimator to believe, and how much the answer rests on what nobody can check.

First on a problem whose true values are known: how well do estimators rank, choose and cover? Then for one candidate: does the
value depend on clipping, on the discount factor, on how long was recorded, and how strong would an unobserved cause of the logged
actions have to be to overturn the decision?

    python examples/sensitivity.py [--episodes N]
"""

from __future__ import annotations

import argparse

import numpy as np

from ope import evaluate_estimators, metrics
from ope.estimators import LSTDQ, DoublyRobust, PerDecisionIS, WeightedIS
from ope.policies import TabularPolicy
from ope.problems import RandomMDP
from ope.sensitivity import clip_path, confounding_path, gamma_path, horizon_path

GAMMA = 1.0
STEPS = 5


def main() -> None:
    """Evaluate the estimators, then walk along the assumptions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=2000)
    arguments = parser.parse_args()

    # 1. A problem with known values, a log of its behaviour policy, candidates between that and the target policy, and a bad one.
    problem = RandomMDP(horizon=STEPS, random_state=3)
    log = problem.sample(arguments.episodes, random_state=0)
    behavior, target = np.asarray(problem.behavior), np.asarray(problem.target)
    candidates = {
        f"{share:.0%}": TabularPolicy((1 - share) * behavior + share * target) for share in (0.1, 0.3, 0.6, 1.0)
    }
    candidates["opposite"] = TabularPolicy(target[:, ::-1])
    truth = {name: problem.value(policy, gamma=GAMMA) for name, policy in candidates.items()}
    truth["logged"] = problem.value(behavior, gamma=GAMMA)

    # 2. A row per estimator: ranks, regret, errors, coverage, and what a safety gate by lower bounds would have done.
    estimators = (PerDecisionIS(gamma=GAMMA), WeightedIS(gamma=GAMMA), DoublyRobust(gamma=GAMMA), LSTDQ(gamma=GAMMA))
    estimates = {type(estimator).__name__: estimator.fit(log, candidates).estimate() for estimator in estimators}
    table = evaluate_estimators(estimates, truth, baseline="logged", k=2)
    print(table.round(3).astype(object).T.to_string(), "\n")

    # 3. What trying the best 1, 2, ... by one estimator would have risked and gained.
    values = [estimate.value for estimate in estimates["WeightedIS"].values()]
    true = [truth[name] for name in candidates]
    print(metrics.top_k_risk_return(values, true, baseline=truth["logged"]).round(3).to_string(), "\n")

    # 4. One candidate along each assumption.
    chosen = candidates["60%"]
    for path in (
        clip_path(WeightedIS(gamma=GAMMA), log, chosen, clips=[0.5, 2.0, 8.0, None], name="60%"),
        gamma_path(DoublyRobust(gamma=GAMMA), log, chosen, gammas=[0.8, 0.95, 1.0], name="60%"),
        horizon_path(LSTDQ(gamma=GAMMA), log, chosen, horizons=[1, 3, STEPS], name="60%"),
        confounding_path(log, chosen, gamma=GAMMA, odds_ratios=[1.0, 1.05, 1.1, 1.25], name="60%"),
    ):
        print(path.summary(), "\n")


if __name__ == "__main__":
    main()
