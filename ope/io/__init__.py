"""Logs from the formats of other libraries, each of which is imported only when it is read."""

from ope.io.minari import from_minari

__all__ = ["from_minari"]
