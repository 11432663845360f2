"""Checks that estimators and policies share: scikit-learn's parameters, clone, repr, and copies of every kind."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

from sklearn.base import clone

from ope.testing.tools import ensure, ensure_raises, first_difference


def init_only_assigns(owner: str, thing: Any) -> None:
    """Check that the constructor keeps what it is given, unchecked and uncopied, and does nothing else."""
    params = thing.get_params(deep=False)
    fresh = type(thing)(**params)
    for name, value in fresh.get_params(deep=False).items():
        rule = f"__init__ must assign `{name}` as it is"
        ensure(value is params[name], owner, rule, f"{value!r} for {params[name]!r}", "convert and copy it in fit")
    extra = sorted(name for name in vars(fresh) if name not in params and not name.startswith("_"))
    ensure(not extra, owner, "__init__ must set nothing but its parameters", f"attributes {extra}", "set them in fit")
    for name in params:
        marker = object()
        try:
            odd = type(thing)(**{**params, name: marker})
        except Exception as error:
            message = f"{owner}: __init__ must not check `{name}`, got {error!r}; check it in fit, where it is used."
            raise AssertionError(message) from error
        ensure(
            odd.get_params(deep=False)[name] is marker, owner, f"__init__ must assign `{name}`", "another", "assign it"
        )


def parameters_can_be_set(owner: str, thing: Any) -> None:
    """Check get_params and set_params, nested parameters included."""
    arguments = inspect.signature(type(thing)).parameters.values()
    names = [one.name for one in arguments if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    found = sorted(thing.get_params(deep=False))
    ensure(
        found == sorted(names), owner, "get_params must name the arguments of __init__", f"{found}", f"return {names}"
    )
    own = set(names)
    for name in sorted(thing.get_params(deep=True)):
        if name not in own and "__" not in name:
            continue
        twin, marker = clone(thing), object()
        returned = twin.set_params(**{name: marker})
        ensure(returned is twin, owner, "set_params must return self", f"{returned!r}", "return self")
        now = twin.get_params(deep=True)[name]
        ensure(now is marker, owner, f"set_params must set `{name}`", f"{now!r}", "let BaseEstimator do it")
        untouched = thing.get_params(deep=True)[name] is not marker
        ensure(untouched, owner, f"a clone must not share `{name}`", "a change in both", "let clone copy it")
    wrong = {"no_such_parameter": 1}
    ensure_raises(lambda: clone(thing).set_params(**wrong), ValueError, owner, "set_params of an unknown name")


def clone_is_unfitted(owner: str, fitted: Any) -> None:
    """Check that scikit-learn's clone gives equal parameters and forgets what was learned."""
    twin = clone(fitted)
    ensure(type(twin) is type(fitted), owner, "clone must keep the class", type(twin).__name__, "let clone do it")
    ensure(
        repr(twin) == repr(type(fitted)(**fitted.get_params(deep=False))),
        owner,
        "a clone must have equal parameters",
        repr(twin),
        "keep __init__ from changing them",
    )
    learned = sorted(name for name in vars(twin) if name.endswith("_") and not name.endswith("__"))
    ensure(not learned, owner, "a clone must not be fitted", f"attributes {learned}", "set them in fit only")


def repr_shows_the_class(owner: str, thing: Any) -> None:
    """Check that repr works and names the class, in a notebook too."""
    text = repr(thing)
    ensure(owner in text, owner, "repr must name the class", repr(text), "leave repr to BaseEstimator")
    for view in ("_repr_html_", "__str__"):
        shown = getattr(thing, view)()
        ensure(isinstance(shown, str) and shown, owner, f"{view} must return text", repr(shown), "return a string")


def copies_behave_alike(owner: str, fitted: Any, fingerprint: Callable[[Any], Any]) -> None:
    """Check that pickle, copy and deepcopy give an object that answers the same bits."""
    expected = fingerprint(fitted)
    ways: dict[str, Callable[[], Any]] = {
        "pickle": lambda: pickle.loads(pickle.dumps(fitted)),
        "copy.copy": lambda: copy.copy(fitted),
        "copy.deepcopy": lambda: copy.deepcopy(fitted),
    }
    for name, duplicate in ways.items():
        try:
            twin = duplicate()
        except Exception as error:
            message = (
                f"{owner}: a fitted object must survive {name}, got {type(error).__name__}: {error}; "
                "keep lambdas, open files and other things that cannot be copied out of attributes."
            )
            raise AssertionError(message) from error
        gap = first_difference(fingerprint(twin), expected)
        remedy = "keep all state in attributes"
        ensure(gap is None, owner, f"a copy made by {name} must answer the same", f"another answer{gap}", remedy)
