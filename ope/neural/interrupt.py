"""Ctrl-C between updates, never within one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether the user asked to stop.

    Examples
    --------
    >>> StopRequest().made
    False
    """

    def __init__(self) -> None:
        self.made = False


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[StopRequest]:
    """Note the first Ctrl-C instead of raising KeyboardInterrupt, so that no update is cut in two; raise at the second.

    Only the main thread receives signals; elsewhere, and where interrupts are ignored, nothing changes.

    Examples
    --------
    >>> with deferred_interrupt() as stop:
    ...     n_updates = 0
    ...     while n_updates < 100 and not stop.made:
    ...         n_updates += 1
    >>> n_updates
    100
    """
    request = StopRequest()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield request
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    signal.signal(signal.SIGINT, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
