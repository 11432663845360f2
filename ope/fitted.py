"""What a fit leaves in an estimator, in scikit-learn's names: attributes that end in an underscore."""

from __future__ import annotations

from typing import Any


def forget(estimator: Any) -> None:
    """Make an estimator unfitted.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> estimator = SimpleNamespace(alpha=1.0, theta_=2.0, _sums_=3.0, _n=4)
    >>> forget(estimator)
    >>> estimator
    namespace(alpha=1.0, _n=4)
    """
    for name in [name for name in vars(estimator) if name.endswith("_") and not name.startswith("__")]:
        delattr(estimator, name)
