"""Write the policy files that every later version must load: `python tests/policies/keep_files.py`, once a version.

Files of earlier versions stay as they are: `test_kept_files.py` loads them all, and compares what they do with the answers
that were written beside them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from learner_logs import random_log
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ope.policies
from ope.neural.serialization import library_version
from ope.policies import PreprocessedLearner

FOLDER = Path(__file__).parent / "kept"
TINY: dict[str, Any] = {"n_updates": 20, "batch_size": 8, "log_every": 10, "learning_rate": 3e-3, "random_state": 5}
# Cases whose learner stands behind transformers.
PREPROCESSED = ("bcq_preprocessed",)
# Name of the file, class, whether actions are continuous, settings.
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "cloning_discrete": ("BehaviorCloning", False, {"hidden": (6,), "weight_decay": 0.01}),
    "cloning_continuous": ("BehaviorCloning", True, {"hidden": (4, 4), "normalize_states": False}),
    "bcq_discrete": ("BCQ", False, {"hidden": (6,), "gamma": 0.9}),
    "bcq_continuous": ("BCQ", True, {"hidden": (4,), "vae_hidden": (4,), "n_target_samples": 2, "n_act_samples": 4}),
    "bcq_preprocessed": ("BCQ", False, {"hidden": (4,)}),
    "iql_continuous": ("IQL", True, {"hidden": (4,), "action_bounds": ((-9.0, -99.0), (9.0, 99.0))}),
}


def answers(policy: Any) -> dict[str, Any]:
    """Return what a policy says in fixed states, as JSON."""
    log = random_log(3, 4, continuous=policy.labels is None, seed=9)
    learner = learner_of(policy)
    said: dict[str, Any] = {
        "class": type(policy).__name__,
        "feature_names": policy.feature_names_in_.tolist(),
        "labels": None if policy.labels is None else policy.labels.tolist(),
        "n_updates": policy.n_updates_,
        "seed": learner.seed_,
        "status": str(learner.status_),
        "loss": learner.history_["loss"].tolist(),
        "training_episode_keys": [str(key) for key in policy.training_episode_keys_],
        "states": log.states.tolist(),
        "predict": policy.predict(log.states).tolist(),
        "sample": policy.sample(log.states, 3).tolist(),
    }
    if "all_probs" in policy.capabilities:
        said["predict_proba"] = policy.predict_proba(log.states).tolist()
    if "density" in policy.capabilities:
        said |= {"actions": log.actions.tolist(), "log_prob": policy.log_prob(log.states, log.actions).tolist()}
    if hasattr(learner, "q_values"):
        said["q_values"] = policy.q_values(log.states, None if policy.labels is not None else log.actions).tolist()
    return said


def learner_of(policy: Any) -> Any:
    return getattr(policy, "learner_", policy)


def keep() -> None:
    """Fit, save, and write down the answers; what is kept already must not change, and stays."""
    for name, (class_name, continuous, settings) in CASES.items():
        path = FOLDER / f"{name}-{library_version()}.safetensors"
        if path.exists():
            continue
        learner = getattr(ope.policies, class_name)(**TINY, **settings)
        if name in PREPROCESSED:
            learner = PreprocessedLearner(make_pipeline(StandardScaler(), PCA(2)), learner)
        policy = learner.fit(random_log(4, 5, continuous=continuous, seed=1))
        policy.save(path)
        kept = {"settings": {**TINY, **settings}, **answers(policy)}
        path.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    keep()
