"""Checks of what problems are built from. Called once, at construction."""

from __future__ import annotations

from typing import Any

import numpy as np

from ope.problems import exact
from ope.validation import BoolArray, FloatArray, IntArray, float_array

SUM_TOLERANCE = 1e-9


def integer(owner: str, name: str, value: Any, least: int = 1) -> int:
    """Return `value` as an int of at least `least`, or raise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{owner}: `{name}` must be an integer of at least {least}, got {value!r}; correct it.")
    return int(value)


def finite_number(owner: str, name: str, value: Any, least: float = -np.inf, most: float = np.inf) -> float:
    """Return `value` as a finite float within bounds, or raise."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or not (
        np.isfinite(value) and least <= value <= most
    ):
        raise ValueError(
            f"{owner}: `{name}` must be a finite number from {least} to {most}, got {value!r}; correct it."
        )
    return float(value)


def process_of(
    owner: str, transitions: Any, rewards: Any, initial: Any, terminal: Any, reward_std: float
) -> exact.TabularProcess:
    """Return the process after checking its arrays."""
    P = float_array(owner, "transitions", transitions, np.asarray(transitions).ndim)
    if P.ndim not in (3, 4) or P.shape[-3] != P.shape[-1]:
        raise ValueError(
            f"{owner}: `transitions` must have shape (S, A, S) or (horizon, S, A, S), got {P.shape}; reshape them."
        )
    n_states = P.shape[-1]
    ends = np.zeros(n_states, bool) if terminal is None else np.asarray(terminal, dtype=bool)
    if ends.shape != (n_states,):
        raise ValueError(f"{owner}: `terminal` must have shape {(n_states,)}, got {ends.shape}; one entry per state.")
    live = ~ends
    P = np.where(ends[:, None, None], 0.0, P)
    P[..., live, :, :] = distributions(owner, "transitions", P[..., live, :, :])
    start = distributions(owner, "initial", float_array(owner, "initial", initial, 1))
    if start.shape != (n_states,) or start[ends].any():
        raise ValueError(
            f"{owner}: `initial` must be a distribution over the {n_states} states, 0 at terminal ones, got {start}; "
            "correct it."
        )
    std = finite_number(owner, "reward_std", reward_std, least=0.0)
    return exact.TabularProcess(P, _rewards(owner, rewards, P), start, ends, std)


def _rewards(owner: str, rewards: Any, P: FloatArray) -> FloatArray:
    R = float_array(owner, "rewards", rewards, np.asarray(rewards).ndim)
    if R.ndim == 2:
        R = R[:, :, None]
    if not 3 <= R.ndim <= P.ndim or R.shape[-3:-1] != P.shape[-3:-1] or R.shape[-1] not in (1, P.shape[-1]):
        raise ValueError(
            f"{owner}: `rewards` must have shape (S, A), (S, A, S) or that of `transitions` {P.shape}, got "
            f"{np.shape(rewards)}; reshape them."
        )
    return np.array(np.broadcast_to(R, P.shape))


def observation_codes(owner: str, observation: Any, terminal: BoolArray) -> IntArray:
    """Return the code that every true state shows, by default its rank among the live states."""
    if observation is None:
        return np.where(terminal, -1, np.cumsum(~terminal) - 1)
    codes = np.asarray(observation)
    if codes.shape != terminal.shape or codes.dtype.kind not in "iu":
        raise ValueError(
            f"{owner}: `observation` must hold one integer code per true state ({len(terminal)}), got "
            f"{observation!r}; complete it."
        )
    shown = np.unique(codes[codes >= 0])
    if (codes[~terminal] < 0).any() or codes.min() < -1 or not np.array_equal(shown, np.arange(len(shown))):
        raise ValueError(
            f"{owner}: `observation` must use codes 0, 1, ... without gaps, and -1 for terminal states only, got "
            f"{codes.tolist()}; renumber the codes."
        )
    return codes.astype(np.int64)


def feature_matrix(owner: str, encoding: Any, n_states: int) -> FloatArray:
    """Return what the log holds for each code, shape (n_states, d)."""
    if isinstance(encoding, str):
        known = {"one_hot": np.eye(n_states), "index": np.arange(n_states, dtype=np.float64)[:, None]}
        if encoding not in known:
            raise ValueError(
                f"{owner}: `encoding` must be one of {sorted(known)} or an array, got {encoding!r}; pass one of them."
            )
        return known[encoding]
    array = float_array(owner, "encoding", encoding, 2)
    if len(array) != n_states or len(np.unique(array, axis=0)) != n_states:
        raise ValueError(
            f"{owner}: `encoding` must have a distinct row for each of the {n_states} observed states, got "
            f"{array.tolist()}; change the features."
        )
    return array.copy()


def distributions(owner: str, name: str, probs: FloatArray) -> FloatArray:
    """Return probabilities whose last axis sums to 1 to machine precision, or raise."""
    total = probs.sum(axis=-1, keepdims=True)
    if (probs < 0).any() or (np.abs(total - 1.0) > SUM_TOLERANCE).any():
        raise ValueError(
            f"{owner}: `{name}` must be probabilities that sum to 1 over the last axis, got sums from "
            f"{float(total.min())!r} to {float(total.max())!r}, least entry {float(probs.min())!r}; normalise them."
        )
    return np.asarray(probs / total)
