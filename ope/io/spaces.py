"""Flattening batches of observations of a Gymnasium space into columns of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gymnasium.spaces import Space

Encoding = Literal["one_hot", "integer"]
Batch = npt.NDArray[Any]
Columns = tuple[list[str], Callable[[Any], Batch]]


def flatten(space: Space[Any], discrete: Encoding, owner: str) -> tuple[tuple[str, ...], Callable[[Any], Batch]]:
    """Return the names of the columns of a flattened space, and the function that flattens a batch of its samples.

    Parameters
    ----------
    space : gymnasium.Space
        Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of such spaces.
    discrete : {"one_hot", "integer"}
        Whether a discrete value becomes a column per value or one column.
    owner : str
        Who speaks in errors.

    Returns
    -------
    names : tuple of str
        "observation", or the keys that lead to a part, followed by positions or values within the part.
    flat : callable
        Maps samples stacked along their first axis to an array of shape (n, len(names)).

    Raises
    ------
    TypeError
        If a part has no fixed number of numbers.
    ValueError
        If `discrete` is something else.

    Examples
    --------
    >>> from gymnasium import spaces
    >>> space = spaces.Dict(arm=spaces.Box(-1.0, 1.0, (2,)), mode=spaces.Discrete(2))
    >>> names, flat = flatten(space, "one_hot", "doctest")
    >>> names
    ('arm_0', 'arm_1', 'mode=0', 'mode=1')
    >>> flat({"arm": np.array([[0.5, 0.25]]), "mode": np.array([1])})
    array([[0.5 , 0.25, 0.  , 1.  ]])
    """
    if discrete not in ("one_hot", "integer"):
        raise ValueError(
            f'{owner}: `discrete_observations` must be "one_hot" or "integer", got {discrete!r}; "integer" suits '
            "tabular policies."
        )
    parts = [(path, _columns(part, _name(path), discrete, owner)) for path, part in _parts(space, ())]

    def flat(batch: Any) -> Batch:
        return np.concatenate([encode(reduce(getitem, path, batch)) for path, (_, encode) in parts], axis=1)

    return tuple(name for _, (names, _) in parts for name in names), flat


def _parts(space: Space[Any], path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Space[Any]]]:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _parts(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for position, part in enumerate(space.spaces):
            yield from _parts(part, (*path, position))
    else:
        yield path, space


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path)) or "observation"


def _columns(space: Space[Any], name: str, discrete: Encoding, owner: str) -> Columns:
    from gymnasium import spaces

    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        positions = list(np.ndindex(space.shape or ()))
        return ["_".join([name, *map(str, position)]) for position in positions], _rows
    if isinstance(space, spaces.Discrete):
        return _discrete([(name, int(space.start), int(space.n))], discrete, owner)
    if isinstance(space, spaces.MultiDiscrete):
        sizes, starts = space.nvec.ravel(), np.broadcast_to(space.start, space.nvec.shape).ravel()
        places = enumerate(zip(starts, sizes, strict=True))
        return _discrete([(f"{name}_{i}", int(start), int(size)) for i, (start, size) in places], discrete, owner)
    raise TypeError(
        f"{owner}: observations must consist of Box, Discrete, MultiDiscrete and MultiBinary spaces, got "
        f"{type(space).__name__} in {name!r}, which has no fixed number of columns; leave this part out with an "
        "observation wrapper, or build the log with LoggedDataset.from_arrays."
    )


def _rows(batch: Any) -> Batch:
    array = np.asarray(batch)
    single = array.dtype == np.float32
    return array.reshape(len(array), -1).astype(np.float32 if single else np.float64, copy=False)


def _discrete(parts: list[tuple[str, int, int]], discrete: Encoding, owner: str) -> Columns:
    def encode(batch: Any) -> Batch:
        values = _rows(batch)
        for (name, start, size), column in zip(parts, values.T, strict=True):
            if not np.isin(column, np.arange(start, start + size)).all():
                raise ValueError(
                    f"{owner}: {name!r} must lie in {start} to {start + size - 1}, got {float(column.min())} to "
                    f"{float(column.max())}; correct the observation space of the data set."
                )
        if discrete == "integer":
            return values
        hot = [
            column[:, None] == np.arange(start, start + size)
            for (_, start, size), column in zip(parts, values.T, strict=True)
        ]
        return np.concatenate(hot, axis=1).astype(np.float64)

    if discrete == "integer":
        return [name for name, _, _ in parts], encode
    return [f"{name}={start + value}" for name, start, size in parts for value in range(size)], encode
