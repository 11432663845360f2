"""One safetensors file for a policy or for the state of a run: arrays and a JSON header, sealed by a checksum.

Reading such a file executes nothing that it holds: arrays are bytes, settings are JSON, and the class is looked up by
name in a table of this library.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from ope.files import replace_file
from ope.neural.stored_transformers import pack_transformer, unpack_transformer

Arrays = dict[str, npt.NDArray[Any]]
Metadata = dict[str, Any]

FORMAT_VERSION = 1
POLICY_KIND = "ope-policy"

# Loading imports these classes and no others.
POLICY_CLASSES: Mapping[str, str] = {
    "BehaviorCloning": "ope.policies.behavior_cloning",
    "BCQ": "ope.policies.bcq",
    "BEAR": "ope.policies.bear",
    "BRAC": "ope.policies.brac",
    "EDAC": "ope.policies.edac",
    "CQL": "ope.policies.cql",
    "LSPI": "ope.policies.lspi",
    "CRR": "ope.policies.crr",
    "AWAC": "ope.policies.awac",
    "AWR": "ope.policies.awr",
    "REM": "ope.policies.rem",
    "UWAC": "ope.policies.uwac",
    "DoubleDQN": "ope.policies.double_dqn",
    "ATAC": "ope.policies.atac",
    "TD3BC": "ope.policies.td3bc",
    "IQL": "ope.policies.iql",
    "PreprocessedLearner": "ope.policies.preprocessed",
}

# All metadata are one JSON text under one key, so that equal contents are equal files; the seal's place in it, as bytes.
_KEY = "ope"
_SEAL = r"\"seal\": \""
_BLANK = "0" * 64


@runtime_checkable
class StorablePolicy(Protocol):
    """What `save_policy` and `load_policy` need of a policy; its parameters they take from `get_params`.

    `_pack` returns the learned arrays and the learned rest as JSON; `_unpack` restores both on a fresh object.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]: ...  # noqa: D102

    def _pack(self) -> tuple[Arrays, Metadata]: ...

    def _unpack(self, arrays: Arrays, attributes: Metadata) -> None: ...


def library_version() -> str:
    """Return the installed version of this library."""
    from importlib.metadata import version

    return version("ope-learn")


# -------------------------------------------------------------------- sealed files


def write_sealed(path: str | Path, kind: str, arrays: Mapping[str, npt.NDArray[Any]], metadata: Metadata) -> None:
    """Write arrays and metadata to one safetensors file, atomically.

    Parameters
    ----------
    path : str or Path
    kind : str
        What the file is; `read_sealed` refuses other kinds.
    arrays : mapping of str to ndarray
    metadata : dict
        Anything JSON holds.

    Notes
    -----
    The file appears whole or not at all: it is written beside its place, flushed to disk and renamed. The seal is the
    SHA-256 of the file with the seal's own digits set to 0.
    """
    from safetensors.numpy import save

    header = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
        "content": metadata,
        "seal": _BLANK,
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    blank = save(contiguous, metadata={_KEY: json.dumps(header, allow_nan=False, sort_keys=True)})
    seal = hashlib.sha256(blank).hexdigest()
    replace_file(path, blank.replace(f"{_SEAL}{_BLANK}".encode(), f"{_SEAL}{seal}".encode(), 1))


def read_sealed(path: str | Path, kind: str, owner: str) -> tuple[Arrays, Metadata]:
    """Read what `write_sealed` wrote.

    Returns
    -------
    arrays : dict of str to ndarray
    metadata : dict

    Raises
    ------
    ValueError
        If the file is truncated, altered, of another origin or kind, or of a newer format.
    """
    from safetensors.numpy import load

    content = Path(path).read_bytes()
    header = _header(content, path, owner)
    if header.get("kind") != kind:
        raise ValueError(
            f"{owner}: `path` must name a file of kind {kind!r}, got {str(path)!r} of kind "
            f"{header.get('kind', 'unknown')!r}; pass a file that this library wrote for the purpose."
        )
    _check_version(header, path, owner)
    seal = header.get("seal", "")
    blank = content.replace(f"{_SEAL}{seal}".encode(), f"{_SEAL}{_BLANK}".encode(), 1)
    if hashlib.sha256(blank).hexdigest() != seal:
        raise _damaged(path, owner, "its checksum does not match its content")
    return load(content), header["content"]


def _header(content: bytes, path: str | Path, owner: str) -> Metadata:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise _damaged(path, owner, "it is no safetensors file, or ends within its header")
    try:
        entries = json.loads(content[8 : 8 + length])
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        metadata = json.loads(entries.get("__metadata__", {}).get(_KEY, "{}"))
        kind = metadata.get("kind")
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise _damaged(path, owner, "its header is no safetensors header") from error
    if kind is not None and max(ends, default=0) != len(content) - 8 - length:
        raise _damaged(path, owner, "it is shorter or longer than its header says")
    return dict(metadata)


def _check_version(header: Metadata, path: str | Path, owner: str) -> None:
    written = header.get("format_version")
    if written != FORMAT_VERSION:
        raise ValueError(
            f"{owner}: `path` must name a file of format version {FORMAT_VERSION}, got version {written!r} in "
            f"{str(path)!r} of ope-learn {header.get('library_version', 'unknown')}; load it with that version."
        )


def _damaged(path: str | Path, owner: str, flaw: str) -> ValueError:
    return ValueError(
        f"{owner}: `path` must name an intact file written by this library, got {str(path)!r}: {flaw}; "
        "copy the file again from its source, or save again."
    )


# -------------------------------------------------------------------- policies


def save_policy(policy: StorablePolicy, path: str | Path) -> None:
    """Write a fitted policy to one safetensors file.

    Parameters
    ----------
    policy : Policy
        Of a class in `POLICY_CLASSES`.
    path : str or Path

    Raises
    ------
    TypeError
        If the class is not in the table, or a parameter has no JSON form.

    Notes
    -----
    Callbacks are code and are not stored: a loaded learner has ``callbacks=None``.
    """
    arrays, content = pack_policy(policy)
    write_sealed(path, POLICY_KIND, arrays, content)


def pack_policy(policy: Any) -> tuple[Arrays, Metadata]:
    """Return the learned arrays of a fitted policy, and the rest of it as JSON: class, parameters, attributes."""
    content = _described(policy)
    arrays, attributes = policy._pack()
    return arrays, {**content, "attributes": attributes}


def unpack_policy(arrays: Arrays, content: Metadata, path: str | Path) -> Any:
    """Return the policy that `pack_policy` packed into a file of this name."""
    policy = _unfitted(content, path)
    policy._unpack(arrays, content["attributes"])
    return policy


def _described(policy: Any) -> Metadata:
    name = type(policy).__name__
    if POLICY_CLASSES.get(name) != type(policy).__module__ or not isinstance(policy, StorablePolicy):
        raise TypeError(
            f"save_policy: `policy` must be of a class that can be loaded again ({sorted(POLICY_CLASSES)}), got "
            f"{type(policy).__module__}.{name}; use pickle for your own classes."
        )
    params = {key: _json_param(name, key, value) for key, value in policy.get_params(deep=False).items()}
    return {"class": name, "params": params}


def _json_param(owner: str, key: str, value: Any) -> Any:
    if key == "callbacks":
        return None
    if isinstance(value, tuple | list):
        return {"tuple": [_json_param(owner, key, item) for item in value]}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return _json_param(owner, key, value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if key == "device":
        return str(value)
    if key == "learner":
        return {"policy": _described(value)}
    if key == "transformer":
        return {"transformer": pack_transformer(clone(value))[1]}
    raise TypeError(f"{owner}.save: `{key}` must be a number, string, tuple or None to be stored, got {value!r}.")


def _python_param(value: Any, path: str | Path) -> Any:
    if not isinstance(value, dict):
        return value
    if "policy" in value:
        return _unfitted(value["policy"], path)
    if "transformer" in value:
        return unpack_transformer({}, value["transformer"])
    return tuple(_python_param(item, path) for item in value["tuple"])


def _unfitted(content: Metadata, path: str | Path) -> Any:
    name = content["class"]
    if name not in POLICY_CLASSES:
        raise ValueError(
            f"load_policy: `path` must hold a policy of this library ({sorted(POLICY_CLASSES)}), got class {name!r} in "
            f"{str(path)!r}; load it with the library that wrote it."
        )
    policy_class = getattr(importlib.import_module(POLICY_CLASSES[name]), name)
    unknown = sorted(set(content["params"]) - set(policy_class._get_param_names()))
    if unknown:
        raise ValueError(
            f"load_policy: {name} has no parameter(s) {unknown}, which {str(path)!r} sets; "
            "load it with the version that wrote it."
        )
    return policy_class(**{key: _python_param(value, path) for key, value in content["params"].items()})


def load_policy(path: str | Path) -> Any:
    """Read a policy that `save` or `save_policy` wrote; no code from the file is executed.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Policy

    Raises
    ------
    ValueError
        If the file is truncated, altered, not a policy file, or names a class or parameters that this version lacks.

    Notes
    -----
    A parameter that the file lacks, because a later version of the library added it, has its default: a new parameter
    of a learner must default to what the learner did before.
    """
    arrays, content = read_sealed(path, POLICY_KIND, "load_policy")
    return unpack_policy(arrays, content, path)


# -------------------------------------------------------------------- labels


def pack_labels(labels: npt.NDArray[Any]) -> Metadata:
    """Return labels as JSON that keeps their type.

    Examples
    --------
    >>> pack_labels(np.array(["a", "b"]))
    {'dtype': '<U1', 'values': ['a', 'b']}
    """
    values = labels.tolist()
    if labels.dtype.kind not in "biufUO" or not all(isinstance(value, bool | int | float | str) for value in values):
        raise TypeError(
            f"save: action labels must be numbers, strings or booleans to be stored, got dtype {labels.dtype}; "
            "relabel the actions."
        )
    return {"dtype": labels.dtype.str, "values": values}


def unpack_labels(packed: Metadata) -> npt.NDArray[Any]:
    """Return the labels that `pack_labels` packed.

    Examples
    --------
    >>> unpack_labels({"dtype": "<U1", "values": ["a", "b"]})
    array(['a', 'b'], dtype='<U1')
    """
    return np.array(packed["values"], dtype=packed["dtype"])
