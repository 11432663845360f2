"""Whether a scikit-learn model has a fixed number of parameters, and how many: looked up through its wrappers."""

from __future__ import annotations

from typing import Any

PARAMETRIC = ("sklearn.linear_model", "sklearn.naive_bayes", "sklearn.discriminant_analysis", "sklearn.dummy")
WRAPPERS = (
    "sklearn.model_selection",
    "sklearn.multiclass",
    "sklearn.multioutput",
    "sklearn.compose._target",
    "sklearn.linear_model._ransac",
)
CALIBRATION = "sklearn.calibration"
INNER = ("best_estimator_", "regressor_", "estimator_", "estimator", "regressor")


def core_model(model: Any) -> Any:
    """Return the model inside pipelines, searches and other wrappers.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> core_model(make_pipeline(StandardScaler(), LogisticRegression()))
    LogisticRegression()
    """
    steps = getattr(model, "steps", None)
    if steps:
        return core_model(steps[-1][1])
    # A parametric calibration map keeps a parametric model parametric; an isotonic one does not.
    mapped = _module(model).startswith(CALIBRATION) and getattr(model, "method", "") != "isotonic"
    if mapped or _module(model).startswith(WRAPPERS):
        inner = [part for name in INNER if (part := getattr(model, name, None)) is not None]
        return core_model(inner[0]) if inner else model
    return model


def is_parametric(model: Any) -> bool:
    """Return whether the model inside all wrappers is linear, naive Bayes, a discriminant analysis or a constant.

    Everything else counts as flexible.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.neighbors import KNeighborsRegressor
    >>> is_parametric(Ridge()), is_parametric(KNeighborsRegressor())
    (True, False)
    """
    return any(base.__module__.startswith(PARAMETRIC) for base in type(core_model(model)).__mro__)


def n_coefficients(model: Any) -> int:
    """Return the number of coefficients and intercepts of a fitted linear regressor with one output.

    Examples
    --------
    >>> from sklearn.linear_model import LinearRegression
    >>> n_coefficients(LinearRegression().fit([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], [0.0, 1.0, 2.0]))
    3
    """
    core = core_model(model)
    coefficients = getattr(core, "coef_", None)
    return (0 if coefficients is None else int(coefficients.size)) + bool(getattr(core, "fit_intercept", True))


def _module(model: Any) -> str:
    return type(model).__module__
