"""What every policy that can be sampled must do: draw from its seed, and follow its own probabilities or density."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from unittest import SkipTest

import numpy as np
import numpy.typing as npt

from ope.testing.policies import ROUNDING, PolicySubject, answers, codes_of_labels, predicted
from ope.testing.tools import ensure, first_difference, global_random_states, global_seed
from ope.validation import FloatArray

Z_LIMIT = 4.0
N_DRAWS = 4000
N_STATES = 4


def check_sample_seeds(subject: PolicySubject) -> None:
    """Check that a seed decides the draws, that a Generator moves on, and that global generators stay."""
    subject.need("sample")
    owner, policy, states = subject.owner, subject.policy, subject.data.states
    found = []
    for seed in (1, 2):
        with global_seed(seed):
            before = global_random_states()
            found.append({**answers(policy, subject.data), "seed 7": np.asarray(policy.sample(states, 7))})
            after = global_random_states()
        moved = sorted(name for name in before if after[name] != before[name])
        ensure(not moved, owner, "verbs must leave global generators alone", f"{moved} moved", "use `random_state`")
    gap = first_difference(found[1], found[0])
    ensure(gap is None, owner, "a seed must give the same draws", f"others{gap}", "use ope.policy.generator")
    many = np.repeat(states[:N_STATES], 64, axis=0)
    stream = np.random.default_rng(7)
    first, second = (np.asarray(policy.sample(many, stream)) for _ in range(2))
    gap = first_difference(first, np.asarray(policy.sample(many, np.random.default_rng(7))))
    ensure(gap is None, owner, "sample must draw from a Generator", f"others{gap}", "use ope.policy.generator")
    stays = first_difference(second, first) is None
    by_state = first.reshape(len(many) // 64, 64, -1)
    random = bool((by_state != by_state[:, :1]).any())
    ensure(not (stays and random), owner, "a Generator must move on", "the same draws twice", "do not copy it")


def check_sample(subject: PolicySubject) -> None:
    """Check that draws follow the probabilities, or the density, within 4 standard errors."""
    subject.need("sample")
    states = subject.data.states[np.linspace(0, len(subject.data) - 1, N_STATES).astype(int)]
    many = np.repeat(states, N_DRAWS, axis=0)
    drawn = np.asarray(subject.policy.sample(many, 0))
    rule = "sample must return an action for each state"
    ensure(len(drawn) == len(many), subject.owner, rule, f"shape {drawn.shape}", "return shape (n,) or (n, k)")
    if subject.offers("deterministic"):
        gap = first_difference(drawn, np.asarray(subject.policy.predict(many)), ROUNDING)
        ensure(
            gap is None, subject.owner, "a deterministic policy must sample what it predicts", f"{gap}", "call predict"
        )
    elif subject.data.action_labels is not None:
        _check_frequencies(subject, states, drawn)
    else:
        _check_mean(subject, states, _by_state(subject, drawn))
        if subject.offers("density"):
            _check_density(subject, states, _by_state(subject, drawn))


def _by_state(subject: PolicySubject, drawn: npt.NDArray[Any]) -> FloatArray:
    k = subject.data.n_actions
    fits = drawn.dtype.kind == "f" and drawn.size == N_STATES * N_DRAWS * k
    rule = f"sample must return floats of shape (n, {k})"
    ensure(fits, subject.owner, rule, f"{drawn.dtype} {drawn.shape}", "return continuous actions")
    return drawn.reshape(N_STATES, N_DRAWS, k)


def _check_frequencies(subject: PolicySubject, states: FloatArray, drawn: npt.NDArray[Any]) -> None:
    codes = codes_of_labels(subject, drawn, "sample")
    if not subject.offers("all_probs"):
        return
    probs = np.asarray(subject.policy.predict_proba(states))
    counts = np.stack([np.bincount(part, minlength=probs.shape[1]) for part in codes.reshape(N_STATES, N_DRAWS)])
    error = np.sqrt(probs * (1.0 - probs) / N_DRAWS)
    gap = np.abs(counts / N_DRAWS - probs)
    # Fewer than ten expected draws are no normal distribution: one draw too many is no proof.
    bad = gap > Z_LIMIT * error + 10.0 / N_DRAWS * (probs * N_DRAWS < 10.0) * (probs > 0)
    rule = f"draws must follow predict_proba within {Z_LIMIT:g} standard errors"
    came = f"frequencies {(counts / N_DRAWS).tolist()} for {probs.round(4).tolist()}"
    ensure(not bad.any(), subject.owner, rule, came, "draw with these probabilities")


def _check_mean(subject: PolicySubject, states: FloatArray, drawn: FloatArray) -> None:
    found = predicted(subject.policy, states)
    if found is None:
        return
    mean = found.astype(np.float64).reshape(N_STATES, -1)
    error = drawn.std(axis=1, ddof=1) / np.sqrt(N_DRAWS)
    gap = np.abs(drawn.mean(axis=1) - mean)
    rule = f"predict must be the mean of the draws within {Z_LIMIT:g} standard errors"
    far = gap > Z_LIMIT * error + ROUNDING * np.abs(mean)
    ensure(not far.any(), subject.owner, rule, f"{mean.tolist()} and {drawn.mean(axis=1).tolist()}", "correct one")


def _check_density(subject: PolicySubject, states: FloatArray, drawn: FloatArray) -> None:
    """Compare the share of draws in a box with the integral of the density over it, estimated at uniform points."""
    rng = np.random.default_rng(0)
    for state, draws in zip(states, drawn, strict=True):
        low, high = np.quantile(draws, 0.1, axis=0), np.quantile(draws, 0.8, axis=0)
        points = rng.uniform(low, high, size=(N_DRAWS, draws.shape[1]))
        log_prob = subject.policy.log_prob(np.repeat(state[None], N_DRAWS, axis=0), points)
        heights = float(np.prod(high - low)) * np.exp(np.asarray(log_prob, dtype=np.float64))
        inside = ((draws >= low) & (draws <= high)).all(axis=1)
        gap = float(heights.mean() - inside.mean())
        error = float(np.sqrt((heights.var() + inside.var()) / N_DRAWS))
        rule = f"draws must follow exp(log_prob) within {Z_LIMIT:g} standard errors"
        came = f"a share of {inside.mean():.3f} in a box of probability {heights.mean():.3f}"
        ensure(abs(gap) <= Z_LIMIT * error, subject.owner, rule, came, "correct the density or the draws")


def check_quadrature(subject: PolicySubject) -> None:
    """Check that nodes and weights have the first two moments of the draws."""
    nodes_and_weights = subject.policy.quadrature_rows(subject.rows) if subject.data.action_labels is None else None
    if nodes_and_weights is None:
        raise SkipTest("it has no quadrature rule")
    nodes, weights = nodes_and_weights
    shape = (len(weights), len(subject.data), subject.data.n_actions)
    ensure(nodes.shape == shape, subject.owner, f"nodes must have shape {shape}", f"{nodes.shape}", "return (m, n, k)")
    total = float(np.sum(weights))
    ensure(abs(total - 1.0) <= ROUNDING, subject.owner, "weights of nodes must sum to 1", f"{total}", "normalise them")
    subject.need("sample")
    drawn = np.asarray(subject.policy.sample(np.repeat(subject.data.states[:1], N_DRAWS, axis=0), 0)).reshape(
        N_DRAWS, -1
    )
    for power in (1, 2):
        expected = weights @ nodes[:, 0] ** power
        error = (drawn**power).std(axis=0) / np.sqrt(N_DRAWS)
        near = np.abs((drawn**power).mean(axis=0) - expected) <= Z_LIMIT * error + ROUNDING
        rule = f"nodes must have the mean of action ** {power} within {Z_LIMIT:g} standard errors"
        ensure(near.all(), subject.owner, rule, f"{expected.tolist()}", "correct the nodes")


CHECKS: Mapping[str, Callable[[PolicySubject], None]] = MappingProxyType(
    {"sample_seeds": check_sample_seeds, "sample": check_sample, "quadrature": check_quadrature}
)
