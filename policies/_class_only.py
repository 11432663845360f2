"""`class_only`: a class method that an object refuses to pass on, since it would not look at the object's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    class_only = classmethod
else:

    class class_only(classmethod):  # noqa: N801
        """A classmethod that raises a TypeError where it is called on an object.

        Examples
        --------
        >>> class Cup:
        ...     @class_only
        ...     def fill_many(cls, cups):
        ...         return cls.__name__
        >>> Cup.fill_many([])
        'Cup'
        >>> Cup().fill_many([])
        Traceback (most recent call last):
            ...
        TypeError: Cup.fill_many must be called on the class, got a call on an object, whose settings it would not use; call Cup.fill_many.
        """

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            if instance is None:
                return super().__get__(None, owner)
            name = f"{type(instance).__name__}.{self.__func__.__name__}"

            def refuse(*_: Any, **__: Any) -> None:
                raise TypeError(
                    f"{name} must be called on the class, got a call on an object, whose settings it would not use; call {name}."
                )

            return refuse
