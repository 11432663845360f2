"""Intervals, bounds, confidence sequences, resampling weights and multiplicity: pure functions of arrays."""

from ope.inference.best import BestSet, best_set, rank_intervals
from ope.inference.betting import betting_interval, mixture_lower, reflected_interval
from ope.inference.bounds import anderson, empirical_bernstein, hoeffding, truncated_bound
from ope.inference.checks import IntervalNotAvailable
from ope.inference.empirical_likelihood import empirical_likelihood_interval
from ope.inference.identifiers import hash_identifiers
from ope.inference.intervals import basic_interval, bca_interval, normal_interval, percentile_interval, std_error
from ope.inference.lepski import LepskiChoice, lepski_choice
from ope.inference.methods import (
    AdjustedT,
    Anderson,
    Auto,
    BayesianBootstrap,
    Betting,
    Bootstrap,
    EmpiricalBernstein,
    EmpiricalLikelihood,
    Hoeffding,
    IntervalMethod,
    Normal,
    Pick,
    ReflectedBetting,
    Sample,
    StudentizedBootstrap,
    TruncatedBound,
    resolve_method,
)
from ope.inference.multiplicity import adjust_p_values, error_draws, holm, max_t_p_values, max_t_quantile, romano_wolf
from ope.inference.selective import SelectedValue, selected_value
from ope.inference.sequences import BettingSequence, ConfidenceSequence, EmpiricalBernsteinSequence
from ope.inference.studentized import studentized_interval, t_replicates
from ope.inference.weights import fold_of, mean_replicates, one_step_replicates, resampling_weights, uniforms

__all__ = [
    "AdjustedT",
    "Anderson",
    "Auto",
    "BayesianBootstrap",
    "BestSet",
    "Betting",
    "BettingSequence",
    "Bootstrap",
    "ConfidenceSequence",
    "EmpiricalBernstein",
    "EmpiricalBernsteinSequence",
    "EmpiricalLikelihood",
    "Hoeffding",
    "IntervalMethod",
    "IntervalNotAvailable",
    "LepskiChoice",
    "Normal",
    "Pick",
    "ReflectedBetting",
    "Sample",
    "SelectedValue",
    "StudentizedBootstrap",
    "TruncatedBound",
    "adjust_p_values",
    "anderson",
    "basic_interval",
    "bca_interval",
    "best_set",
    "betting_interval",
    "empirical_bernstein",
    "empirical_likelihood_interval",
    "error_draws",
    "fold_of",
    "hash_identifiers",
    "hoeffding",
    "holm",
    "lepski_choice",
    "max_t_p_values",
    "max_t_quantile",
    "mean_replicates",
    "mixture_lower",
    "normal_interval",
    "one_step_replicates",
    "percentile_interval",
    "rank_intervals",
    "reflected_interval",
    "resampling_weights",
    "resolve_method",
    "romano_wolf",
    "selected_value",
    "std_error",
    "studentized_interval",
    "t_replicates",
    "truncated_bound",
    "uniforms",
]
