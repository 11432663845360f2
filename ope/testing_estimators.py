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

from ope import testing_objects as objects
from ope.dataset import LoggedDataset
from ope.estimate import Estimate, Estimates
from ope.estimator import EXACT, STATISTICAL, OffPolicyEstimator
from ope.inference import IntervalNotAvailable
from ope.policy import Policy
from ope.testing_laws import LAWS, Fit, hold_exactly, hold_statistically
from ope.testing_logs import KINDS, Case, make_case
from ope.testing_tools import (
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
from ope.verdict import Level, Verdict

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

    def fitted(self, log: LoggedDataset, policy: Any, weight: Any = None) -> Any:
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
        nested = self.estimator.get_params(deep=True).values()
        return (self.owner, *(type(part).__name__ for part in nested if isinstance(part, OffPolicyEstimator)))

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
    """A policy that offers everything and delivers an error.

    Examples
    --------
    >>> FailingPolicy().sample([[0.0]])
    Traceback (most recent call last):
        ...
    RuntimeError: broken on purpose
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """All of them."""
        return frozenset({"logged_prob", "all_probs", "density", "sample", "deterministic"})

    def _fail(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(BROKEN)

    predict = predict_proba = log_prob = sample = proba_rows = log_prob_rows = quadrature_rows = _fail


class OfferlessPolicy(FailingPolicy):
    """A policy that offers nothing.

    Examples
    --------
    >>> OfferlessPolicy().capabilities
    frozenset()
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """None."""
        return frozenset()


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
    candidates = {"good": case.candidate, "broken": FailingPolicy(), "poor": OfferlessPolicy(), "none": "no policy"}
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


def check_requirement(subject: EstimatorSubject) -> None:
    """Check that a policy without what the method requires is a TypeError that names both."""
    if not subject.estimator.requires:
        raise SkipTest("it requires nothing of a policy")
    call = partial(subject.fitted, subject.case.log, OfferlessPolicy())
    ensure_raises(
        call, TypeError, subject.owner, "a policy that offers nothing", (subject.owner, "OfferlessPolicy", "requires")
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


# -------------------------------------------------------------------- results


def check_result(subject: EstimatorSubject) -> None:
    """Check that an estimate is complete and consistent, on every kind of log that is served."""
    for kind, (case, estimate) in subject.served.items():
        where = f"on the {kind!r} log"
        _check_identity(subject, case, estimate, where)
        _check_numbers(subject.owner, estimate, where)
        _check_verdict(subject.owner, estimate, where)
        _check_interval(subject.owner, estimate, where)


def _check_identity(subject: EstimatorSubject, case: Case, estimate: Estimate, where: str) -> None:
    expected = {
        "gamma": subject.gamma,
        "data_id": case.log.data_id,
        "episode_keys": case.log.episode_keys,
        "estimator": subject.owner,
        "known_propensities": True,
        "error": None,
    }
    gap = first_difference(parts_of(estimate, tuple(expected)), expected)
    ensure(gap is None, subject.owner, f"{where} an estimate must say whose it is", f"{gap}", "use self._result")
    told = estimate.horizon in (None, case.log.horizon)
    ensure(told, subject.owner, f"{where} the horizon must be the log's or None", f"{estimate.horizon}", "pass it on")
    overlap = estimate.diagnostics.get("training_overlap")
    rule = f"{where} diagnostics must report the training overlap"
    ensure(overlap == 0, subject.owner, rule, f"{overlap!r}", "leave _fit_named to the base class")


def _check_numbers(owner: str, estimate: Estimate, where: str) -> None:
    rule, n, psi = f"{where} the value must be a float", estimate.n_episodes, estimate.influence
    ensure(isinstance(estimate.value, float), owner, rule, type(estimate.value).__name__, "use self._result")
    if psi is not None:
        ensure(
            psi.shape == (n,), owner, f"{where} influence must have an entry per episode", f"{psi.shape}", "sum rows"
        )
        centred = abs(float(psi.mean())) <= TOLERANCE * float(np.abs(psi).max())
        ensure(centred, owner, f"{where} influence must average 0", f"{float(psi.mean())!r}", "subtract its mean")
    if estimate.scores is not None:
        gap = first_difference(float(estimate.scores.mean()), estimate.value, TOLERANCE)
        ensure(gap is None, owner, f"{where} the mean of the scores must be the value", f"a mean{gap}", "omit scores")
    if estimate.replicates is not None:
        named = estimate.resample_id is not None
        ensure(named, owner, f"{where} replicates must name their resamples", "none", "pass resample_id")


def _check_verdict(owner: str, estimate: Estimate, where: str) -> None:
    verdict = estimate.verdict
    ensure(isinstance(verdict, Verdict), owner, f"{where} verdict must be a Verdict", repr(verdict), "use Verdict.of")
    explained = bool(verdict.reasons) == (verdict.level > Level.VALID)
    ensure(explained, owner, f"{where} what is not VALID must have reasons", f"{verdict!r}", "give a sentence for each")
    open_ended = [reason for reason in verdict.reasons if not reason.rstrip().endswith(".")]
    ensure(
        not open_ended, owner, f"{where} reasons must be sentences", f"{open_ended}", "say what it means, what to do"
    )
    finite = bool(np.isfinite(estimate.value))
    ensure(finite or verdict.level == Level.REFUSE, owner, f"{where} no value must be REFUSE", f"{verdict}", "judge it")
    known = bool(np.isfinite(estimate.std_error))
    rule = f"{where} VALID must come with a standard error"
    ensure(known or verdict.level > Level.VALID, owner, rule, "none", "give influence or replicates, or CAUTION")


def _check_interval(owner: str, estimate: Estimate, where: str) -> None:
    try:
        low, high = estimate.confidence_interval()
    except IntervalNotAvailable:
        return
    if np.isfinite(estimate.value):
        ordered = low <= estimate.value <= high
        ensure(ordered, owner, f"{where} the interval must hold the value", f"{low} to {high}", "check influence")
    told = estimate.verdict.level.name in estimate.summary()
    ensure(told, owner, f"{where} the summary must show the verdict", estimate.summary(), "leave it to Estimate")


# -------------------------------------------------------------------- laws


def check_declared_laws(subject: EstimatorSubject) -> None:
    """Check that every declared law exists and has a strength, and that the universal ones are declared."""
    declared = subject.estimator.laws
    unknown = sorted(set(declared) - set(LAWS))
    ensure(not unknown, subject.owner, f"laws must be among {sorted(LAWS)}", f"{unknown}", "correct the name")
    for name, law in LAWS.items():
        if law.universal:
            rule = f"law {name} must be declared by every estimator"
            ensure(name in declared, subject.owner, rule, f"{sorted(declared)}", "add it to `laws`")
    for name, strength in declared.items():
        short = strength not in (EXACT, STATISTICAL) and len(strength.split()) < 3
        rule = f"laws[{name!r}] must be EXACT, STATISTICAL or the sentence why it does not apply"
        ensure(not short, subject.owner, rule, repr(strength), "write the sentence")


def check_law(name: str, subject: EstimatorSubject) -> None:
    """Check a law with the strength that the estimator declares."""
    law, strength = LAWS[name], subject.estimator.laws.get(name)
    if strength is None:
        ensure(not law.universal, subject.owner, f"law {name} must be declared", "nothing", "add it to `laws`")
        raise SkipTest("not declared")
    if strength not in (EXACT, STATISTICAL):
        raise SkipTest(strength)
    kinds = [kind for kind in law.kinds if kind in subject.served]
    if not kinds:
        raise SkipTest(f"it serves none of the logs of this law: {', '.join(law.kinds)}")
    if strength == EXACT:
        for kind in kinds:
            hold_exactly(subject.owner, name, subject.fit, law.case(kind), subject.gamma)
    else:
        hold_statistically(subject.owner, name, partial(_seeded_fit, subject), kinds[0], subject.gamma)


def _seeded_fit(subject: EstimatorSubject, seed: int) -> Fit:
    names = [name for name in subject.estimator.get_params(deep=True) if name.split("__")[-1] == "random_state"]
    seeded = EstimatorSubject(clone(subject.estimator).set_params(**dict.fromkeys(names, seed)))
    return seeded.fit


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
        "result": check_result,
        "declared_laws": check_declared_laws,
        **{f"law_{name}": partial(check_law, name) for name in LAWS},
    }
)
