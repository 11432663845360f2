"""Interval methods by name: what is passed as `method=` to a confidence interval."""

from __future__ import annotations

from ope.inference.automatic import Auto
from ope.inference.bootstrap_methods import BayesianBootstrap, Bootstrap, BootstrapKind, StudentizedBootstrap
from ope.inference.bound_methods import (
    Anderson,
    Betting,
    EmpiricalBernstein,
    Hoeffding,
    ReflectedBetting,
    TruncatedBound,
)
from ope.inference.checks import IntervalNotAvailable
from ope.inference.large_sample_methods import AdjustedT, EmpiricalLikelihood, Normal
from ope.inference.protocol import IntervalMethod, Pick, Sample

__all__ = [
    "AdjustedT",
    "Anderson",
    "Auto",
    "BayesianBootstrap",
    "Betting",
    "Bootstrap",
    "BootstrapKind",
    "EmpiricalBernstein",
    "EmpiricalLikelihood",
    "Hoeffding",
    "IntervalMethod",
    "IntervalNotAvailable",
    "Normal",
    "Pick",
    "ReflectedBetting",
    "Sample",
    "StudentizedBootstrap",
    "TruncatedBound",
    "resolve_method",
]

_BY_NAME: dict[str, IntervalMethod] = {
    "adjusted_t": AdjustedT(),
    "normal": Normal(),
    "percentile": Bootstrap(kind="percentile"),
    "basic": Bootstrap(kind="basic"),
    "bca": Bootstrap(kind="bca"),
    "bayesian": Bootstrap(kind="bayesian"),
    "bootstrap": Bootstrap(kind="bayesian"),
    "studentized": StudentizedBootstrap(),
    "empirical_likelihood": EmpiricalLikelihood(),
    "auto": Auto(),
}
_RANGED = {
    "hoeffding": "Hoeffding(low, high)",
    "empirical_bernstein": "EmpiricalBernstein(low, high)",
    "anderson": "Anderson(low)",
    "truncated": "TruncatedBound(low)",
    "betting": "Betting(low, high)",
    "reflected_betting": "ReflectedBetting(low, high)",
}


def resolve_method(method: IntervalMethod | str) -> IntervalMethod:
    """Turn the name of an interval method into the method; pass objects through.

    Parameters
    ----------
    method : IntervalMethod or str
        "normal", "percentile", "basic", "bca", "bayesian", "bootstrap" (the Bayesian one), "studentized",
        "empirical_likelihood" or "auto".

    Returns
    -------
    IntervalMethod

    Raises
    ------
    ValueError
        If the name is unknown, or the method needs a range.
    TypeError
        If `method` is neither.

    Examples
    --------
    >>> resolve_method("bca")
    Bootstrap(kind='bca', n_replicates=2000, random_state=0)
    """
    if isinstance(method, IntervalMethod):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"confidence_interval: `method` must be a name or an object such as Normal(), got {method!r}; "
            f"names are {', '.join(_BY_NAME)}."
        )
    if method in _RANGED:
        raise ValueError(
            f"confidence_interval: `method` {method!r} needs a range that is known before the data; "
            f"pass {_RANGED[method]} with the smallest and largest value an episode could contribute."
        )
    if method not in _BY_NAME:
        raise ValueError(
            f"confidence_interval: `method` must be one of {', '.join(_BY_NAME)} or an object such as "
            f"{_RANGED['hoeffding']}, got {method!r}."
        )
    return _BY_NAME[method]
