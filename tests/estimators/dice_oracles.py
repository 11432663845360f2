"""What the tests of the DICE family share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ope.validation import FloatArray


def influence_gap(value: Callable[[FloatArray], float], found: FloatArray, every: int = 4, step: float = 1e-4) -> float:
    """Return the largest deviation from the infinitesimal jackknife at every fourth episode, relative to the largest influence.

    Weights are brought to mean 1 by the estimators, so that derivatives in them are centred.
    """
    n, worst = len(found), 0.0
    for i in range(0, n, every):
        up, down = np.ones(n), np.ones(n)
        up[i] += step
        down[i] -= step
        worst = max(worst, abs(n * (value(up) - value(down)) / (2 * step) - found[i]))
    return float(worst / np.abs(found).max())
