"""State transformers of scikit-learn as arrays and JSON: what a policy file can hold of them without code."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
Metadata = dict[str, Any]

# Loading imports these classes and no others. All they learn are public attributes: arrays, numbers and names.
TRANSFORMERS: Mapping[str, str] = {
    "StandardScaler": "sklearn.preprocessing",
    "MinMaxScaler": "sklearn.preprocessing",
    "MaxAbsScaler": "sklearn.preprocessing",
    "RobustScaler": "sklearn.preprocessing",
    "QuantileTransformer": "sklearn.preprocessing",
    "PCA": "sklearn.decomposition",
    "Pipeline": "sklearn.pipeline",
}


def pack_transformer(transformer: Any, prefix: str = "") -> tuple[Arrays, Metadata]:
    """Return a transformer's learned arrays, under names with a prefix, and the rest of it as JSON.

    Parameters
    ----------
    transformer : transformer
        Of a class in `TRANSFORMERS`, or a pipeline of such; fitted or not.
    prefix : str

    Returns
    -------
    arrays : dict of str to ndarray
    metadata : dict

    Raises
    ------
    TypeError
        If it is of another class, or a parameter has no JSON form.

    Examples
    --------
    >>> from sklearn.preprocessing import MaxAbsScaler
    >>> arrays, metadata = pack_transformer(MaxAbsScaler().fit([[2.0]]))
    >>> sorted(arrays), metadata["class"]
    (['max_abs_', 'scale_'], 'MaxAbsScaler')
    """
    name = _checked_name(transformer)
    if name == "Pipeline":
        return _pack_steps(transformer.steps, prefix)
    # Defaults are left out: another version of scikit-learn may have more parameters.
    defaults = type(transformer)().get_params(deep=False)
    params = {key: value for key, value in transformer.get_params(deep=False).items() if value != defaults[key]}
    learned = {key: value for key, value in vars(transformer).items() if key.endswith("_") and not key.startswith("_")}
    arrays = {f"{prefix}{key}": value for key, value in learned.items() if _is_numeric(value)}
    rest = {key: _json(name, key, value) for key, value in learned.items() if not _is_numeric(value)}
    packed = {key: _json(name, key, value) for key, value in params.items()}
    return arrays, {
        "class": name,
        "params": packed,
        "arrays": sorted(key for key in learned if key not in rest),
        "rest": rest,
    }


def unpack_transformer(arrays: Mapping[str, npt.NDArray[Any]], metadata: Metadata, prefix: str = "") -> Any:
    """Return the transformer that `pack_transformer` packed.

    Raises
    ------
    ValueError
        If its class is not in `TRANSFORMERS`.

    Examples
    --------
    >>> from sklearn.preprocessing import MaxAbsScaler
    >>> packed = pack_transformer(MaxAbsScaler().fit([[2.0]]))
    >>> unpack_transformer(*packed).transform([[1.0]])
    array([[0.5]])
    """
    name = metadata["class"]
    if name not in TRANSFORMERS:
        raise ValueError(
            f"load_policy: state transformers must be among {sorted(TRANSFORMERS)}, got class {name!r}; load the file with "
            "the library that wrote it."
        )
    transformer_class = getattr(importlib.import_module(TRANSFORMERS[name]), name)
    if name == "Pipeline":
        steps = enumerate(metadata["steps"])
        return transformer_class(
            [
                (step, form if isinstance(form, str) else unpack_transformer(arrays, form, f"{prefix}{i}/"))
                for i, (step, form) in steps
            ]
        )
    transformer = transformer_class(**{key: _python(value) for key, value in metadata["params"].items()})
    for key in metadata["arrays"]:
        setattr(transformer, key, arrays[f"{prefix}{key}"])
    for key, value in metadata["rest"].items():
        setattr(transformer, key, _python(value))
    return transformer


def _checked_name(transformer: Any) -> str:
    name = type(transformer).__name__
    module = TRANSFORMERS.get(name)
    if module is None or getattr(importlib.import_module(module), name) is not type(transformer):
        raise TypeError(
            f"save: state transformers must be among {sorted(TRANSFORMERS)} to be stored without code, got "
            f"{type(transformer).__module__}.{name}; use joblib.dump for others."
        )
    return name


def _pack_steps(steps: Any, prefix: str) -> tuple[Arrays, Metadata]:
    arrays: Arrays = {}
    forms: list[list[Any]] = []
    for i, (step, part) in enumerate(steps):
        if part is None or isinstance(part, str):
            forms.append([step, "passthrough"])
            continue
        learned, form = pack_transformer(part, f"{prefix}{i}/")
        arrays |= learned
        forms.append([step, form])
    return arrays, {"class": "Pipeline", "steps": forms}


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _json(owner: str, key: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"names": value.tolist()}
    if isinstance(value, tuple):
        return {"tuple": [_json(owner, key, item) for item in value]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"save: `{key}` of {owner} must be a number, string, tuple or None to be stored, got {value!r}; use joblib.dump."
    )


def _python(value: Any) -> Any:
    if isinstance(value, dict):
        return np.array(value["names"], dtype=object) if "names" in value else tuple(map(_python, value["tuple"]))
    return value
