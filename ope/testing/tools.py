"""What the checks of plug-ins share: their wording, comparisons to the bit, random states, and a search for kept data."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import joblib
import numpy as np
import pandas as pd

from ope.dataset import LoggedDataset, Rows

TOLERANCE = 1e-8
ATOMS = (str, bytes, bytearray, int, float, complex, bool, type(None), type, types.ModuleType, np.generic, np.dtype)


def ensure(ok: Any, owner: str, rule: str, came: str, remedy: str) -> None:
    """Raise an AssertionError that names owner, rule, what came and remedy unless `ok`.

    Examples
    --------
    >>> ensure(1 > 2, "Mine", "one must exceed two", "one", "count again")
    Traceback (most recent call last):
        ...
    AssertionError: Mine: one must exceed two, got one; count again.
    """
    if not ok:
        raise AssertionError(f"{owner}: {rule}, got {came}; {remedy}.")


def ensure_raises(
    call: Callable[[], Any],
    error: type[Exception] | tuple[type[Exception], ...],
    owner: str,
    occasion: str,
    fragments: tuple[str, ...] = (),
) -> None:
    """Raise an AssertionError unless `call` raises `error` with a message that holds all `fragments`."""
    kinds = error if isinstance(error, tuple) else (error,)
    wanted = " or ".join(kind.__name__ for kind in kinds)
    rule = f"{occasion} must raise a {wanted}" + (f" that names {', '.join(fragments)}" if fragments else "")
    try:
        call()
    except kinds as raised:
        missing = [fragment for fragment in fragments if fragment not in str(raised)]
        ensure(not missing, owner, rule, f"{str(raised)!r} without {missing}", "say owner, parameter, rule and remedy")
    except Exception as raised:
        message = f"{owner}: {rule}, got {type(raised).__name__}: {raised}; check the input at the door."
        raise AssertionError(message) from raised
    else:
        ensure(False, owner, rule, "no error", "check the input at the door")


# -------------------------------------------------------------------- comparisons


def first_difference(found: Any, expected: Any, rtol: float = 0.0, scale: float = 0.0) -> str | None:
    """Say where two results differ, or return None; NaN equals NaN.

    Parameters
    ----------
    found, expected : any
        Numbers, arrays, frames, mappings, sequences, or objects with equality.
    rtol : float
        Tolerance relative to the largest absolute value of the array (or number), or to `scale` if that is larger.
    scale : float

    Examples
    --------
    >>> first_difference({"a": 1.0}, {"a": 1.5})
    "['a']: 1.0 instead of 1.5"
    >>> first_difference(np.array([1.0, np.nan]), np.array([1.0 + 1e-12, np.nan]), rtol=1e-8) is None
    True
    """
    if isinstance(expected, pd.DataFrame | pd.Series):
        return None if expected.equals(found) else "another frame"
    if isinstance(expected, Mapping):
        return _mapping_difference(found, expected, rtol, scale)
    if isinstance(expected, float | np.floating | np.ndarray):
        return _array_difference(found, expected, rtol, scale)
    return None if bool(found == expected) else f": {found!r} instead of {expected!r}"


def _mapping_difference(found: Any, expected: Mapping[Any, Any], rtol: float, scale: float) -> str | None:
    if not isinstance(found, Mapping) or list(found) != list(expected):
        return f": {found!r} instead of {expected!r}"
    for name, value in expected.items():
        if (gap := first_difference(found[name], value, rtol, scale)) is not None:
            return f"[{name!r}]{gap}"
    return None


def _array_difference(found: Any, expected: Any, rtol: float, scale: float) -> str | None:
    a, b = np.asarray(found), np.asarray(expected)
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return f": {a.dtype} of shape {a.shape} instead of {b.dtype} of shape {b.shape}"
    same = (a == b) | ((a != a) & (b != b))
    if rtol and a.dtype.kind == "f":
        size = max(float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b))), scale)
        with np.errstate(invalid="ignore"):
            same |= np.abs(a - b) <= rtol * size
    if same.all():
        return None
    return f": {a[~same].ravel()[0].item()!r} instead of {b[~same].ravel()[0].item()!r}"


def digest(thing: Any) -> str:
    """Return a hash of an object's content; of a log, that of its columns (it caches what follows from them)."""
    if isinstance(thing, LoggedDataset):
        thing = {column.name: getattr(thing, column.name) for column in fields(thing)}
    return str(joblib.hash(thing))


# -------------------------------------------------------------------- random states


def global_random_states() -> dict[str, str]:
    """Return hashes of the states of Python's, NumPy's and (where it is loaded) torch's global generator."""
    states: dict[str, Any] = {"random": random.getstate(), "numpy.random": np.random.get_state()}  # noqa: NPY002
    if (torch := sys.modules.get("torch")) is not None:
        states["torch"] = torch.get_rng_state().numpy()
    return {name: digest(state) for name, state in states.items()}


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators, and put them back as they were afterwards."""
    torch = sys.modules.get("torch")
    before = random.getstate(), np.random.get_state(), None if torch is None else torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if torch is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        if torch is not None:
            torch.set_rng_state(before[2])


# -------------------------------------------------------------------- kept data


def kept_data(fitted: Any, log: LoggedDataset, spared: Mapping[str, Any]) -> str | None:
    """Name something inside a fitted object that holds the log's rows, or return None.

    Parameters
    ----------
    fitted : object
    log : LoggedDataset
        Whose number of transitions no other size should equal by chance.
    spared : mapping
        Attributes that are not searched: the parameters, which belong to the user.
    """
    columns = [value for value in vars(log).values() if isinstance(value, np.ndarray) and len(value) == len(log)]
    seen: set[int] = set()
    pending = [(f".{name}", value) for name, value in vars(fitted).items() if name not in spared]
    while pending:
        path, thing = pending.pop()
        if id(thing) in seen or isinstance(thing, ATOMS):
            continue
        seen.add(id(thing))
        if _holds_rows(thing, columns, len(log)):
            return f"{path} ({type(thing).__name__})"
        pending.extend((path + step, part) for step, part in _parts(thing))
    return None


def _holds_rows(thing: Any, columns: list[Any], n: int) -> bool:
    if isinstance(thing, LoggedDataset | Rows):
        return True
    if isinstance(thing, np.ndarray) and any(np.may_share_memory(thing, column) for column in columns):
        return True
    shape = getattr(thing, "shape", None)
    if isinstance(shape, tuple):
        return n in shape
    return isinstance(thing, list | tuple | set | frozenset) and len(thing) == n


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, np.ndarray):
        yield from ((f"[{i}]", part) for i, part in enumerate(thing.ravel()) if thing.dtype == object)
    elif isinstance(thing, Mapping):
        yield from ((f"[{name!r}]", part) for name, part in thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from ((f"[{i}]", part) for i, part in enumerate(thing))
    elif isinstance(thing, types.FunctionType):
        yield from ((f"<cell {i}>", cell.cell_contents) for i, cell in enumerate(thing.__closure__ or ()))
    elif isinstance(thing, types.MethodType):
        yield ".__self__", thing.__self__
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    for name in [*getattr(thing, "__dict__", {}), *slots]:
        if isinstance(name, str) and hasattr(thing, name):
            yield f".{name}", getattr(thing, name)
