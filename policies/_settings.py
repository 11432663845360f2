"""Rules that the settings of learners obey, worded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Number:
    """A number within bounds.

    Parameters
    ----------
    low, high : float
    integer : bool
    open_low, open_high : bool
        Whether the bound itself is excluded.
    or_none : bool
        Whether None is allowed besides.

    Examples
    --------
    >>> Number(0, 1, open_high=True).rule
    'a number in [0, 1)'
    """

    low: float = -math.inf
    high: float = math.inf
    integer: bool = False
    open_low: bool = False
    open_high: bool = False
    or_none: bool = False

    @property
    def rule(self) -> str:
        """The rule in words."""
        kind = "an integer" if self.integer else "a number"
        left, right = "(" if self.open_low else "[", ")" if self.open_high or self.high == math.inf else "]"
        return f"{kind} in {left}{self.low:g}, {self.high:g}{right}{' or None' if self.or_none else ''}"

    def check(self, owner: str, name: str, value: Any) -> None:
        """Raise a TypeError or ValueError that says what is wrong with `value`."""
        if value is None and self.or_none:
            return
        kinds = (int, np.integer) if self.integer else (int, float, np.integer, np.floating)
        message = f"{owner}: `{name}` must be {self.rule}, got {value!r}; pass one."
        if isinstance(value, bool | np.bool_) or not isinstance(value, kinds):
            raise TypeError(message)
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high or self.high == math.inf else value <= self.high
        if not (above and below):
            raise ValueError(message)


@dataclass(frozen=True)
class Flag:
    """True or False.

    Examples
    --------
    >>> Flag().check("CQL", "max_target_backup", True)
    """

    def check(self, owner: str, name: str, value: Any) -> None:
        """Raise a TypeError that says what is wrong with `value`."""
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{owner}: `{name}` must be True or False, got {value!r}; pass one.")


@dataclass(frozen=True)
class Choice:
    """One of a few words.

    Parameters
    ----------
    options : tuple of str

    Examples
    --------
    >>> Choice(("gaussian", "mixture")).check("BehaviorCloning", "form", "mixture")
    """

    options: tuple[str, ...]

    def check(self, owner: str, name: str, value: Any) -> None:
        """Raise a ValueError that says what is wrong with `value`."""
        if not isinstance(value, str) or value not in self.options:
            *others, last = map(repr, self.options)
            options = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"{owner}: `{name}` must be {options}, got {value!r}; pass one of them.")


Rule = Number | Flag | Choice

COUNT = Number(1, integer=True)
NATURAL = Number(0, integer=True)
POSITIVE = Number(0, open_low=True)
NONNEGATIVE = Number(0)
DISCOUNT = Number(0, 1)
SHARE = Number(0, 1)
POLYAK = Number(0, 1, open_low=True)
FLAG = Flag()


def check_settings(owner: str, params: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Check every setting that has a rule, and those that all neural learners share.

    Examples
    --------
    >>> check_settings("BCQ", {"tau": 2.0}, {"tau": Number(0, 1, open_low=True)})
    Traceback (most recent call last):
        ...
    ValueError: BCQ: `tau` must be a number in (0, 1], got 2.0; pass one.
    """
    for name, rule in rules.items():
        rule.check(owner, name, params[name])
    for name, value in params.items():
        if name in _SHARED:
            _SHARED[name](owner, value)


def _check_hidden(owner: str, hidden: Any, name: str = "hidden") -> None:
    if not isinstance(hidden, tuple | list) or not all(map(_is_width, hidden)):
        raise ValueError(
            f"{owner}: `{name}` must be a tuple of widths of hidden layers, got {hidden!r}; try (256, 256)."
        )


def _is_width(n: Any) -> bool:
    return isinstance(n, int | np.integer) and not isinstance(n, bool) and bool(n > 0)


def check_warm_start(owner: str, names: str, before: int, n_updates: int, after: str) -> None:
    """Raise a ValueError unless something follows the warm start."""
    if before >= n_updates:
        raise ValueError(
            f"{owner}: {names} must be below `n_updates`, got {before} and {n_updates}; lower it: {after}."
        )


def _check_random_state(owner: str, seed: Any) -> None:
    if seed is None:
        return
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"{owner}: `random_state` must be an integer or None, got {seed!r}; pass a seed.")
    if seed < 0:
        raise ValueError(f"{owner}: `random_state` must not be negative, got {seed!r}; pass a seed from 0 up.")


def _check_callbacks(owner: str, callbacks: Any) -> None:
    if callbacks is None:
        return
    if not isinstance(callbacks, list | tuple) or not all(callable(callback) for callback in callbacks):
        raise TypeError(
            f"{owner}: `callbacks` must be a list of functions of one argument, got {callbacks!r}; pass [function]."
        )


_SHARED: dict[str, Callable[[str, Any], None]] = {
    "hidden": _check_hidden,
    "vae_hidden": lambda owner, value: _check_hidden(owner, value, "vae_hidden"),
    "actor_hidden": lambda owner, value: _check_hidden(owner, value, "actor_hidden"),
    "random_state": _check_random_state,
    "callbacks": _check_callbacks,
    "normalize_states": lambda owner, value: FLAG.check(owner, "normalize_states", value),
    "progress": lambda owner, value: FLAG.check(owner, "progress", value),
}
