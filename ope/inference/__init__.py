"""Intervals, bounds, resampling weights and multiplicity: pure functions of arrays."""

from ope.inference.bounds import anderson, empirical_bernstein, hoeffding
from ope.inference.checks import IntervalNotAvailable
from ope.inference.identifiers import hash_identifiers
from ope.inference.intervals import basic_interval, bca_interval, normal_interval, percentile_interval, std_error
from ope.inference.lepski import LepskiChoice, lepski_choice
from ope.inference.methods import (
    Anderson,
    Bootstrap,
    EmpiricalBernstein,
    Hoeffding,
    IntervalMethod,
    Normal,
    Sample,
    resolve_method,
)
from ope.inference.multiplicity import holm, max_t_quantile
from ope.inference.weights import fold_of, mean_replicates, one_step_replicates, resampling_weights, uniforms

__all__ = [
    "Anderson",
    "Bootstrap",
    "EmpiricalBernstein",
    "Hoeffding",
    "IntervalMethod",
    "IntervalNotAvailable",
    "LepskiChoice",
    "Normal",
    "Sample",
    "anderson",
    "basic_interval",
    "bca_interval",
    "empirical_bernstein",
    "fold_of",
    "hash_identifiers",
    "hoeffding",
    "holm",
    "lepski_choice",
    "max_t_quantile",
    "mean_replicates",
    "normal_interval",
    "one_step_replicates",
    "percentile_interval",
    "resampling_weights",
    "resolve_method",
    "std_error",
    "uniforms",
]
