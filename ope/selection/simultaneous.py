"""Statements that hold for all candidates of a selection at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.special import stdtr

from ope.comparison import Comparison
from ope.estimate import Estimate
from ope.inference.multiplicity import max_t_quantile
from ope.validation import FloatArray


def simultaneous(answers: Mapping[str, Estimate], level: float) -> pd.DataFrame:
    """Return values with intervals and bounds that hold for all candidates at once; NaN without an influence vector."""
    index = pd.Index(list(answers), name="candidate")
    frame = pd.DataFrame(
        {
            "value": [e.value for e in answers.values()],
            "std_error": [e.std_error for e in answers.values()],
            "low": np.nan,
            "high": np.nan,
            "lower_bound": np.nan,
            "verdict": [e.verdict.level.name for e in answers.values()],
        },
        index=index,
    )
    known = {name: e for name, e in answers.items() if e.influence is not None and np.isfinite(e.std_error)}
    if not known:
        return frame
    psi = np.column_stack([np.asarray(e.influence) for e in known.values()])
    two, one = (_single_level(psi, 1.0 - level, two_sided) for two_sided in (True, False))
    for name, e in known.items():
        frame.loc[name, ["low", "high"]] = [*e.confidence_interval(two)]
        frame.loc[name, "lower_bound"] = e.lower_bound(one)
    return frame


def _single_level(psi: FloatArray, alpha: float, two_sided: bool) -> float:
    """Return the level at which each may be stated so that all hold at once."""
    critical = max_t_quantile(psi, alpha, two_sided=two_sided)
    return 1.0 - (2.0 if two_sided else 1.0) * float(stdtr(len(psi) - 1, -critical))


def compared(eligible: Mapping[str, Estimate], baseline: Estimate | None) -> Comparison | None:
    """Return the paired differences of the eligible candidates, and to the baseline where it answers the same question."""
    if not eligible:
        return None
    if baseline is None or baseline.question not in {e.question for e in eligible.values()}:
        return Comparison(eligible)
    return Comparison({**eligible, baseline.policy: baseline})


def among(comparison: Comparison | None, level: float) -> tuple[tuple[str, ...], pd.DataFrame]:
    """Return the set of those that may be the best and the ranks; whatever cannot be compared may be the best, with any rank."""
    if comparison is None:
        return (), _any_rank((), 0)
    names, known = comparison.names, comparison.compared
    if not known:
        return names, _any_rank(names, len(names))
    best, ranks = comparison.best_names(level), comparison.ranks(level)
    others = tuple(name for name in names if name not in known)
    if not others:
        return best, ranks
    # Each of the others may lie above any: every interval reaches as many ranks further down.
    ranks = ranks.astype(float)
    ranks["high"] += len(others)
    ranks = pd.concat([ranks, _any_rank(others, len(names))]).loc[list(names)]
    return tuple(name for name in names if name in best or name in others), ranks


def _any_rank(names: tuple[str, ...], last: int) -> pd.DataFrame:
    index = pd.Index(list(names), name="candidate")
    return pd.DataFrame({"rank": np.nan, "low": 1.0, "high": float(last)}, index=index)
