"""What every estimator must do, whatever its method: parameters, inputs, errors, seeds and results."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NoReturn
from unittest import SkipTest

import numpy as np
import numpy.typing as npt
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from ope.dataset import LoggedDataset
from ope.estimate import Estimate, Estimates
from ope.estimator import EXACT, STATISTICAL, OffPolicyEstimator
from ope.policy import Policy
from ope.testing import objects
from ope.testing.logs import KINDS, Case, make_case
from ope.testing.tools import (
    TOLERANCE,
    digest,
    ensure,
    ensure_raises,
    first_difference,
    global_random_states,
    global_seed,
    kept_data,
)
from ope.validation import FloatArray
from ope.verdict import Level

PARTS = tuple(part.name for part in fields(Estimate))
NUMBERS = ("value", "influence", "scores", "replicates")
BYTES_PER_ROW = 1.0
BROKEN = "broken on purpose"


class EstimatorSubject:
    """An estimator under test, and the logs that it serves.

    Parameters
    ----------
    estimator : OffPolicyEstimator
        With the settings to check, gamma included.
    """

    def __init__(self, estimator: OffPolicyEstimator) -> None:
        self.estimator = estimator
        self.owner = type(estimator).__name__

    def fitted(self, log: Any, policy: Any, weight: Any = None) -> Any:
        """Return a fitted clone."""
        return clone(self.estimator).fit(log, policy, weight)

    def fit(self, log: LoggedDataset, policy: Policy, weight: Any = None) -> Estimate:
        """Return the estimate of a fitted clone."""
        estimate: Estimate = self.fitted(log, policy, weight).estimate()
        return estimate

    @property
    def gamma(self) -> float:
        """The discount factor under test."""
        return float(self.estimator.gamma or 0.0)

    @cached_property
    def served(self) -> Mapping[str, tuple[Case, Estimate]]:
        """The kinds of log that the estimator does not refuse by an error of its own, each with an estimate."""
        served, refused = {}, {}
        for kind in KINDS:
            case = make_case(kind)
            try:
                served[kind] = case, self.fit(case.log, case.candidate)
            except (TypeError, ValueError) as error:
                if not str(error).startswith(self._speakers):
                    raise
                refused[kind] = str(error)
        rule = "an estimator must serve one of the logs it is checked on"
        ensure(served, self.owner, rule, f"refusals {refused}", "serve one of them, or give the estimator its gamma")
        return served

    @property
    def _speakers(self) -> tuple[str, ...]:
        return (self.owner, *(type(part).__name__ for part in self._parts))

    def strength(self, law: str) -> str | None:
        """Return how strongly a law is declared to hold; no method is more exact than those nested in it."""
        own = self.estimator.laws.get(law)
        nested = [part.laws.get(law) for part in self._parts]
        return STATISTICAL if own == EXACT and STATISTICAL in nested else own

    @property
    def _parts(self) -> list[OffPolicyEstimator]:
        nested = self.estimator.get_params(deep=True).values()
        return [part for part in nested if isinstance(part, OffPolicyEstimator)]

    @property
    def case(self) -> Case:
        """The first kind of log that is served."""
        return next(iter(self.served.values()))[0]

    @property
    def estimate(self) -> Estimate:
        """The estimate on `case`."""
        return next(iter(self.served.values()))[1]


def parts_of(estimate: Estimate, names: tuple[str, ...] = PARTS) -> dict[str, Any]:
    """Return the fields of an estimate by name."""
    return {name: getattr(estimate, name) for name in names}


# -------------------------------------------------------------------- objects


def check_init(subject: EstimatorSubject) -> None:
    """Check that the constructor only assigns."""
    objects.init_only_assigns(subject.owner, subject.estimator)


def check_parameters(subject: EstimatorSubject) -> None:
    """Check get_params and set_params, nested ones too."""
    objects.parameters_can_be_set(subject.owner, subject.estimator)


def check_clone(subject: EstimatorSubject) -> None:
    """Check that a clone has equal parameters and is not fitted."""
    objects.clone_is_unfitted(subject.owner, subject.fitted(subject.case.log, subject.case.candidate))


def check_repr(subject: EstimatorSubject) -> None:
    """Check repr before and after fit."""
    for thing in (subject.estimator, subject.fitted(subject.case.log, subject.case.candidate)):
        objects.repr_shows_the_class(subject.owner, thing)


def check_copies(subject: EstimatorSubject) -> None:
    """Check that pickle, copy and deepcopy keep what was learned."""
    fitted = subject.fitted(subject.case.log, subject.case.candidate)
    objects.copies_behave_alike(subject.owner, fitted, lambda thing: parts_of(thing.estimate()))


# -------------------------------------------------------------------- fit


def check_fit_contract(subject: EstimatorSubject) -> None:
    """Check that fit returns self, names what it learns with a final underscore and leaves the parameters alone."""
    owner, case, fresh = subject.owner, subject.case, clone(subject.estimator)
    before, content = fresh.get_params(deep=True), digest(fresh.get_params(deep=True))
    returned = fresh.fit(case.log, case.candidate)
    ensure(returned is fresh, owner, "fit must return self", repr(returned), "end it with `return self`")
    params = fresh.get_params(deep=True)
    changed = sorted(name for name in before if params.get(name) is not before[name])
    remedy = "work on a clone, and store what is learned under a name that ends in an underscore"
    ensure(not changed, owner, "fit must leave the parameters alone", f"others in {changed}", remedy)
    same = digest(params) == content
    ensure(same, owner, "fit must leave the parameters alone", "one that was changed in place", remedy)
    public = sorted(name for name in set(vars(fresh)) - set(params) if not name.endswith("_") and name[0] != "_")
    rule = "what fit learns must have names that end in an underscore"
    ensure(not public, owner, rule, f"{public}", "rename them")
    first, second = fresh.estimate(), fresh.estimate()
    gap = first_difference(parts_of(second), parts_of(first))
    ensure(gap is None, owner, "estimate() must change nothing", f"another answer{gap}", "compute in fit")


def check_repeated_fits(subject: EstimatorSubject) -> None:
    """Check that a fit gives the same bits again, whatever was fitted before."""
    owner, case = subject.owner, subject.case
    other = make_case(case.kind, seed=1)
    again = clone(subject.estimator).fit(other.log, other.other).fit(case.log, case.candidate).estimate()
    gap = first_difference(parts_of(again), parts_of(subject.estimate))
    remedy = "start every fit afresh, and draw from `random_state` alone"
    ensure(gap is None, owner, "a fit must not depend on earlier ones", f"another answer{gap}", remedy)


def check_seeds(subject: EstimatorSubject) -> None:
    """Check that the randomness of a fit is its `random_state`: global generators are neither read nor moved."""
    owner, case, found = subject.owner, subject.case, []
    for seed in (1, 2):
        with global_seed(seed):
            before = global_random_states()
            found.append(parts_of(subject.fit(case.log, case.candidate)))
            after = global_random_states()
        moved = sorted(name for name in before if after[name] != before[name])
        ensure(not moved, owner, "fit must leave global generators alone", f"{moved} moved", "use `random_state`")
    gap = first_difference(found[1], found[0])
    rule = "equal `random_state` must give equal bits, whatever the global seed"
    ensure(gap is None, owner, rule, f"another answer{gap}", "draw from numpy.random.default_rng(self.random_state)")


def check_inputs_stay(subject: EstimatorSubject) -> None:
    """Check that fit changes neither the log, nor the policy, nor the weights."""
    for case, _ in subject.served.values():
        weight: FloatArray = np.linspace(0.5, 1.5, case.log.n_episodes)
        inputs = {"log": case.log, "policy": case.candidate, "episode_weight": weight}
        before = {name: digest(value) for name, value in inputs.items()}
        subject.fitted(case.log, case.candidate, weight)
        changed = [name for name, value in inputs.items() if digest(value) != before[name]]
        remedy = "copy an array before you write to it; arrays of a log are shared"
        ensure(not changed, subject.owner, "fit must leave its inputs alone", f"{changed} changed", remedy)


def check_no_data_kept(subject: EstimatorSubject) -> None:
    """Check that a fitted estimator holds no rows of the log, and that its pickle does not grow with their number."""
    owner = subject.owner
    for case, _ in subject.served.values():
        fitted = subject.fitted(case.log, case.candidate)
        path = kept_data(fitted, case.log, fitted.get_params(deep=False))
        remedy = "keep what follows from the log: sums, coefficients, a number per episode"
        ensure(path is None, owner, "a fitted estimator must keep no data", f"the log's rows in {path}", remedy)
    sizes = []
    for longest in (2, 40):
        case = make_case(subject.case.kind, longest=longest)
        sizes.append((len(pickle.dumps(subject.fitted(case.log, case.candidate))), case.log.n_transitions))
    grown, rows = (after - before for before, after in zip(*sizes, strict=True))
    rule = "the pickle of a fitted estimator must not grow with the number of transitions"
    remedy = "let go of models and columns as long as the log at the end of fit"
    ensure(grown < BYTES_PER_ROW * rows, owner, rule, f"{grown} more bytes for {rows} more transitions", remedy)


# -------------------------------------------------------------------- candidates


class FailingPolicy(Policy):
    """A policy that delivers errors.

    Parameters
    ----------
    offered : frozenset of str
        Its capabilities.

    Examples
    --------
    >>> FailingPolicy(frozenset({"sample"})).sample([[0.0]])
    Traceback (most recent call last):
        ...
    RuntimeError: broken on purpose
    """

    def __init__(self, offered: frozenset[str]) -> None:
        self.offered = offered

    @property
    def capabilities(self) -> frozenset[str]:
        """What it was told to offer."""
        return self.offered

    def _fail(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(BROKEN)

    predict = predict_proba = log_prob = sample = proba_rows = log_prob_rows = quadrature_rows = _fail


def check_mapping(subject: EstimatorSubject) -> None:
    """Check that a mapping of policies gives, in its order, what each policy gives alone."""
    owner, case = subject.owner, subject.case
    policies = {"second": case.other, "first": case.candidate}
    together = subject.fitted(case.log, policies).estimate()
    is_mapping = isinstance(together, Estimates) and list(together) == list(policies)
    ensure(is_mapping, owner, "a mapping must give Estimates in its order", repr(together), "build Estimates")
    for name, policy in policies.items():
        alone = subject.fit(case.log, policy)
        gap = first_difference(parts_of(together[name], NUMBERS), parts_of(alone, NUMBERS), TOLERANCE)
        rule = "a policy must get the same estimate in a mapping and alone"
        ensure(gap is None, owner, rule, f"for {name!r} another{gap}", "keep candidates apart in _fit_many")
        named = together[name].policy == name
        ensure(named, owner, "an estimate must carry its name", repr(together[name].policy), "pass `name` on")


def check_failing_candidate(subject: EstimatorSubject) -> None:
    """Check that a candidate that fails becomes an entry that says why, and the others are not lost."""
    owner, case = subject.owner, subject.case
    broken = FailingPolicy(case.candidate.capabilities)
    candidates = {"good": case.candidate, "broken": broken, "poor": FailingPolicy(frozenset()), "none": "no policy"}
    estimates = subject.fitted(case.log, candidates).estimate()
    gap = first_difference(parts_of(estimates["good"], NUMBERS), parts_of(subject.estimate, NUMBERS), TOLERANCE)
    remedy = "catch the error of each candidate in _fit_many"
    ensure(gap is None, owner, "a candidate must not suffer from another that fails", f"another{gap}", remedy)
    for name, fragment in (("broken", BROKEN), ("none", "Policy")):
        entry = estimates[name]
        said = np.isnan(entry.value) and entry.verdict.level == Level.REFUSE and fragment in (entry.error or "")
        rule = f"a candidate that fails must be NaN, REFUSE and say {fragment!r}"
        ensure(said, owner, rule, f"{entry!r}, error {entry.error!r}", "return self.failed(data, name, reason)")


def check_wrong_types(subject: EstimatorSubject) -> None:
    """Check that what is no log or no policy is a TypeError that names the remedy."""
    owner, case = subject.owner, subject.case
    bad_log = partial(subject.fitted, np.zeros((3, 2)), case.candidate)
    ensure_raises(bad_log, TypeError, owner, "data that is no log", (owner, "`data`", "LoggedDataset"))
    for policy in (object(), np.ones((3, 2)), None):
        bad_policy = partial(subject.fitted, case.log, policy)
        ensure_raises(bad_policy, TypeError, owner, f"policy={policy!r}", (owner, "`policy`", "Policy"))
    kind = "density" if case.log.discrete else "all_probs"
    other = partial(subject.fitted, case.log, FailingPolicy(case.candidate.capabilities | {kind}))
    ensure_raises(other, TypeError, owner, "a policy for another kind of action", (owner, "FailingPolicy", "actions"))


def check_requirement(subject: EstimatorSubject) -> None:
    """Check that a policy without what the method requires is a TypeError that names both."""
    if not subject.estimator.requires:
        raise SkipTest("it requires nothing of a policy")
    call = partial(subject.fitted, subject.case.log, FailingPolicy(frozenset()))
    ensure_raises(
        call, TypeError, subject.owner, "a policy that offers nothing", (subject.owner, "FailingPolicy", "requires")
    )


# -------------------------------------------------------------------- parameters and weights


def check_gamma(subject: EstimatorSubject) -> None:
    """Check that a discount factor is needed, and that one outside [0, 1] is refused."""
    for gamma, error in ((None, ValueError), (1.5, ValueError), (float("nan"), ValueError), ("0.9", TypeError)):

        def fit(gamma: Any = gamma) -> Any:
            return clone(subject.estimator).set_params(gamma=gamma).fit(subject.case.log, subject.case.candidate)

        ensure_raises(fit, error, subject.owner, f"gamma={gamma!r}", (subject.owner, "`gamma`"))


def check_unfitted(subject: EstimatorSubject) -> None:
    """Check that estimate() before fit is scikit-learn's NotFittedError."""
    call = clone(subject.estimator).estimate
    ensure_raises(call, NotFittedError, subject.owner, "estimate() before fit", (subject.owner, "fit"))


def check_propensities(subject: EstimatorSubject) -> None:
    """Check that `needs_propensities` is true exactly where a log without them is refused."""
    log, candidate = subject.case.log, subject.case.candidate
    bare = log.replace(behavior_log_prob=None, behavior_source=None)
    if subject.estimator.needs_propensities:
        call = partial(subject.fitted, bare, candidate)
        fragments = (subject.owner, "propensities", "behavior_prob")
        ensure_raises(call, ValueError, subject.owner, "a log without propensities", fragments)
    else:
        subject.fitted(bare, candidate)


def check_episode_weight(subject: EstimatorSubject) -> None:
    """Check that equal weights change nothing, whatever their size, and that bad weights are refused."""
    owner, case, n = subject.owner, subject.case, subject.case.log.n_episodes
    for size in (1.0, 3.0):
        weighted = subject.fit(case.log, case.candidate, np.full(n, size))
        names = tuple(name for name in NUMBERS if getattr(weighted, name) is not None or name == "value")
        gap = first_difference(parts_of(weighted, names), parts_of(subject.estimate, names), TOLERANCE)
        rule = "equal weights of episodes must change nothing"
        ensure(gap is None, owner, rule, f"with {size:g} for each another{gap}", "divide weights by their mean")
    uneven = subject.fit(case.log, case.candidate, np.linspace(0.0, 2.0, n))
    ensure(
        uneven.value != subject.estimate.value,
        owner,
        "`episode_weight` must count",
        "the same value with weights 0 to 2",
        "weigh every sum over episodes",
    )
    bad: dict[str, npt.ArrayLike] = {
        "a weight too few": np.ones(n - 1),
        "a negative weight": np.where(np.arange(n) == 3, -1.0, 1.0),
        "a missing weight": np.where(np.arange(n) == 3, np.nan, 1.0),
        "weights that are all 0": np.zeros(n),
    }
    for occasion, weight in bad.items():
        call = partial(subject.fitted, case.log, case.candidate, weight)
        ensure_raises(call, ValueError, owner, occasion, (owner, "`episode_weight`"))


CHECKS: Mapping[str, Callable[[EstimatorSubject], None]] = MappingProxyType(
    {
        "init_only_assigns": check_init,
        "parameters": check_parameters,
        "clone": check_clone,
        "repr": check_repr,
        "copies": check_copies,
        "fit_contract": check_fit_contract,
        "repeated_fits": check_repeated_fits,
        "seeds": check_seeds,
        "inputs_stay": check_inputs_stay,
        "no_data_kept": check_no_data_kept,
        "mapping": check_mapping,
        "failing_candidate": check_failing_candidate,
        "wrong_types": check_wrong_types,
        "requirement": check_requirement,
        "gamma": check_gamma,
        "unfitted": check_unfitted,
        "propensities": check_propensities,
        "episode_weight": check_episode_weight,
    }
)
