"""Makes the pictures of docs/report.md: every plot, and the report on screen (light, dark), on paper and on a telephone.

Run from anywhere: ``python docs/make_images.py``. It needs the `plot` extra and, for the report, chromium and chromedriver.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pandas as pd
from PIL import Image

from ope import LoggedDataset, PolicySelector, estimate_behavior
from ope import plotting as plots
from ope.estimators import LSTDQ, DoublyRobust, WeightedIS
from ope.policies import BehaviorCloning, TabularPolicy
from ope.policy import Policy
from ope.problems import RandomMDP
from ope.sensitivity import clip_path

FOLDER = Path(__file__).resolve().parent / "images"
GAMMA = 0.95
CLIPS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, None)
LIMIT = 100_000  # bytes of a picture


def problem() -> RandomMDP:
    """Return a random decision process whose logging policy differs from state to state."""
    return RandomMDP(n_states=8, n_actions=3, horizon=10, reward_std=0.5, exploration=0.3, random_state=4)


def policies() -> dict[str, Policy]:
    """Return candidates between what is done today and what would be best by today's values, and two bad ones."""
    river = problem()
    today = np.asarray(river.behavior)
    values = np.asarray(river.action_values(today, gamma=GAMMA))[0]
    greedy, worst = np.eye(3)[values.argmax(axis=1)], np.eye(3)[values.argmin(axis=1)]
    mixed = {"a small step": 0.15, "a step": 0.35, "a leap": 0.6, "by the book": 0.9}
    candidates: dict[str, Policy] = {"as today": TabularPolicy(today)}
    candidates |= {name: TabularPolicy((1 - share) * today + share * greedy) for name, share in mixed.items()}
    candidates["by chance"] = TabularPolicy(np.full_like(today, 1 / 3))
    candidates["upside down"] = TabularPolicy(0.2 * today + 0.8 * worst)
    return candidates


def log() -> LoggedDataset:
    """Return a log whose propensities are estimated."""
    logged = problem().sample(1200, random_state=0)
    return estimate_behavior(logged.replace(behavior_log_prob=None, behavior_source=None))


def draw_plots(selector: PolicySelector, data: LoggedDataset, candidates: dict[str, Policy]) -> None:
    """Write every plot."""
    chosen = str(selector.best_name_)
    paths = {
        name: clip_path(WeightedIS(gamma=GAMMA), data, candidates[name], CLIPS, name=name)
        for name in (chosen, "as today")
    }
    clone = BehaviorCloning(hidden=(16,), n_updates=2000, learning_rate=0.01, random_state=0).fit(data)
    drawn = {
        "estimates": plots.plot_estimates(selector),
        "agreement": plots.plot_agreement(selector),
        "differences": plots.plot_differences(selector),
        "returns": plots.plot_returns(selector),
        "ess": plots.plot_ess(selector),
        "weights": plots.plot_weights(selector),
        "calibration": plots.plot_calibration(selector),
        "sensitivity": plots.plot_sensitivity(paths, baseline=selector.baseline_),
        "history": plots.plot_history(clone)[0],
    }
    for name, axes in drawn.items():
        path = FOLDER / f"plot_{name}.png"
        axes.figure.savefig(path, dpi=150)
        shrink(path)


def photograph_report(selector: PolicySelector, sensitivity: Any) -> None:
    """Write the report and photograph its parts."""
    from browser import browser

    from ope.report import write_report

    with tempfile.TemporaryDirectory() as folder, browser() as page:
        page.emulate()
        page.open(write_report(selector, Path(folder) / "report.html", sensitivity=sensitivity))
        views = {
            "light": ("light", "screen", 1000, "decision", 1150),
            "dark": ("dark", "screen", 1000, "pictures", 1250),
            "print": ("light", "print", 794, "decision", 1123),
            "phone": ("dark", "screen", 390, "decision", 844),
        }
        for name, (scheme, media, width, start, height) in views.items():
            page.emulate(scheme, media, width, height)
            top = page.script(
                "return document.getElementById(arguments[0]).getBoundingClientRect().top + scrollY", start
            )
            y = 0.0 if start == "decision" else float(top)
            path = FOLDER / f"report_{name}.png"
            page.screenshot(path, {"x": 0, "y": y, "width": width, "height": height})
            shrink(path)


def shrink(path: Path) -> None:
    """Store a picture with a palette, which is smaller and looks the same."""
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    if path.stat().st_size > LIMIT:
        raise RuntimeError(f"{path.name} has {path.stat().st_size} bytes, more than {LIMIT}.")


def main() -> None:
    """Make all pictures."""
    FOLDER.mkdir(exist_ok=True)
    data, candidates = log(), policies()
    estimators = [DoublyRobust(gamma=GAMMA), WeightedIS(gamma=GAMMA), LSTDQ(gamma=GAMMA)]
    selector = PolicySelector(estimators).fit(data, candidates)
    print(selector.decision_)
    draw_plots(selector, data, candidates)
    sys.path.insert(0, str(FOLDER.parents[1] / "tests"))
    from browser import missing

    if (reason := missing()) is not None:
        print(f"The report was not photographed: {reason}")
        return
    chosen = str(selector.best_name_)
    photograph_report(selector, clip_path(WeightedIS(gamma=GAMMA), data, candidates[chosen], CLIPS, name=chosen))
    print(pd.Series({path.name: path.stat().st_size for path in sorted(FOLDER.glob("*.png"))}).to_string())


if __name__ == "__main__":
    main()
