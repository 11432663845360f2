"""A day with a log of your own: from a data frame to the policy to deploy, and a number to report with it.

The frame is made up: patients in intensive care, a row per hour, up to eight hours. Nobody recorded with which
probability the clinicians chose a treatment, some patients died, some were lost to follow-up. Everything from step 1 on
is what you would do with a frame of your own.

    python examples/own_log.py [--patients N] [--save cloned.safetensors]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ope import LoggedDataset, PolicySelector, estimate_behavior, load_policy
from ope.estimators import LSTDQ, DoublyRobust, WeightedIS
from ope.policies import BCQ, BehaviorCloning, ClassifierPolicy, EpsilonGreedy, FunctionPolicy

Array = npt.NDArray[Any]
STATES = ["lactate", "map", "age"]
TREATMENTS = np.array(["fluids", "vasopressor", "wait"])
HOURS = 8
GAMMA = 1.0  # an hour early counts as much as an hour late


# 0. The frame. In your day it is pd.read_parquet("log.parquet").
def made_up_frame(n_patients: int, seed: int = 0) -> pd.DataFrame:
    """Simulate patients, hour by hour."""
    rng = np.random.default_rng(seed)
    lactate, pressure = rng.gamma(4.0, 0.8, n_patients), rng.normal(65.0, 8.0, n_patients)
    age = rng.uniform(30.0, 90.0, n_patients)
    patient, hours = np.arange(n_patients), []
    for hour in range(HOURS):
        treatment = clinicians_choice(lactate, pressure, rng)
        row = {
            "patient": patient,
            "hour": hour,
            "lactate": lactate,
            "map": pressure,
            "age": age,
            "treatment": treatment,
        }
        helped = np.select([treatment == "vasopressor", treatment == "fluids"], [7.0, 1.5], 0.0)
        pressure = 66.0 + 0.85 * (pressure - 66.0) - 1.5 + helped + rng.normal(0.0, 3.0, len(patient))
        lactate = np.maximum(0.3, lactate + 0.08 * (63.0 - pressure) + rng.normal(0.0, 0.4, len(patient)))
        died = rng.random(len(patient)) < 1.0 / (1.0 + np.exp(6.2 - 0.45 * lactate - 0.01 * age))
        lost = ~died & (rng.random(len(patient)) < 0.01) & (hour < HOURS - 1)
        after = {"lactate_next": lactate, "map_next": pressure, "age_next": age, "died": died, "lost": lost}
        hours.append(pd.DataFrame({**row, **after}))
        stays = ~(died | lost)
        patient, lactate, pressure, age = patient[stays], lactate[stays], pressure[stays], age[stays]
    frame = pd.concat(hours, ignore_index=True)
    frame["reward"] = -1.0 * frame["died"] - 0.005 * (frame["treatment"] == "vasopressor")
    return frame


def clinicians_choice(lactate: Array, pressure: Array, rng: np.random.Generator) -> Array:
    """Draw treatments: more of them the worse a patient is."""
    chances = chances_of_treatment(np.column_stack([lactate, pressure]), eagerness=0.0)
    drawn = (rng.random((len(chances), 1)) > chances.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return np.asarray(TREATMENTS[drawn])


def chances_of_treatment(states: Array, eagerness: float) -> Array:
    """Return the probability of each treatment for lactate, pressure, ..., higher ones where someone is more eager."""
    need = 0.12 * (66.0 - states[:, 1]) + 0.3 * (states[:, 0] - 3.0)
    odds = np.exp(np.column_stack([0.2 + 0.3 * need, need - 1.5 + eagerness, np.zeros(len(need))]))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


# Two proposals: the same care with vasopressors somewhat earlier, and a rule to the letter.
def earlier(states: Array) -> Array:
    """Return probabilities of the treatments, that of a vasopressor raised."""
    return chances_of_treatment(states, eagerness=1.0)


def strict(states: Array) -> Array:
    """Return the treatment of a bedside rule."""
    return np.asarray(np.select([states[:, 1] < 66.0, states[:, 0] > 4.0], ["vasopressor", "fluids"], "wait"))


def main() -> None:
    """Go through the day."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=4000)
    parser.add_argument("--save", type=Path, help="write the cloned policy to this .safetensors file")
    arguments = parser.parse_args()
    frame = made_up_frame(arguments.patients)
    print(frame.head(3).to_string(), "\n")

    # 1. Say what the columns mean. Flaws of the frame are named here, with column, rows and remedy. Deaths are terminal,
    #    lost patients are truncated, and who is neither reached the horizon of eight hours.
    log = LoggedDataset.from_pandas(
        frame,
        episode="patient",
        time="hour",
        states=STATES,
        action="treatment",
        reward="reward",
        terminated="died",
        truncated="lost",
        next_states=[f"{name}_next" for name in STATES],
        reward_range=(-1.005, 0.0),
    )
    print(log, "\n")

    # 2. Learn on one half of the patients, evaluate on the other.
    train, test = log.split(test_size=0.5, random_state=0)

    # 3. Candidates: learned ones, a classifier of what survivors were given, the two proposals.
    clone = BehaviorCloning(hidden=(64, 64), n_updates=1000, learning_rate=1e-3).fit(train)
    bcq = BCQ(gamma=GAMMA, hidden=(64, 64), n_updates=2000, learning_rate=1e-3).fit(train)
    survived = np.repeat(train.rewards[train.offsets[1:] - 1] > -1.0, train.lengths)
    given = np.asarray(train.action_labels)[train.actions]
    classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(train.states[survived], given[survived])
    candidates = {
        "clone": clone,
        "survivors": ClassifierPolicy(classifier),
        "earlier": FunctionPolicy(predict_proba=earlier, action_labels=TREATMENTS),
        "strict": FunctionPolicy(predict=strict, action_labels=TREATMENTS),
        "bcq": EpsilonGreedy(bcq, 0.2),
    }

    # 4. The propensities were not recorded: estimate them, and look at their calibration before trusting them.
    test = estimate_behavior(test)
    if test.behavior_source is not None:
        print(f"Propensities {test.behavior_source}.")
        print(f"Expected calibration error: {test.behavior_source.calibration_error:.3f}\n")

    # 5. One candidate in full.
    estimate = DoublyRobust(gamma=GAMMA).fit(test, candidates["earlier"]).estimate()
    print(estimate.summary(), "\n")

    # 6. All candidates, several estimators, one choice.
    estimators = [DoublyRobust(gamma=GAMMA), WeightedIS(gamma=GAMMA), LSTDQ(gamma=GAMMA)]
    selector = PolicySelector(estimators, criterion="lower_bound").fit(test, candidates)
    shown = ["candidate", "estimator", "value", "std_error", "low", "high", "verdict"]
    print(selector.results_[shown].round(4).to_string(index=False), "\n")
    print(selector.decision_, "\n")

    # 7. How much better than today's care? Estimates on the same patients are compared in pairs.
    estimates = selector.estimates_["DoublyRobust"]
    difference = estimates["earlier"] - estimates["clone"]
    low, high = difference.confidence_interval(0.95)
    print(f"earlier - clone: {difference.value:.4f}, 95 % interval {low:.4f} to {high:.4f}")

    # 8. Keep a learned policy. Loading it executes no code from the file.
    if arguments.save is not None:
        clone.save(arguments.save)
        print("saved and loaded again:", load_policy(arguments.save).predict(test.states[:3]).tolist())


if __name__ == "__main__":
    main()
