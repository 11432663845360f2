"""Where networks live and how many threads train them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch


def resolve_device(device: str | torch.device = "auto", owner: str = "resolve_device") -> torch.device:
    """Return the device that a name stands for; "auto" is the GPU where there is one, else the CPU.

    Parameters
    ----------
    device : str or torch.device
        "auto", "cpu", "cuda", "cuda:1", ...
    owner : str
        Who asks, for the wording of errors.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If the name is unknown, or names a GPU that this process cannot use.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f'{owner}: `device` must be "auto" or a torch device, got {device!r}; try "auto" or "cpu".'
        ) from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{owner}: `device` must exist, got {device!r} where torch sees {torch.cuda.device_count()} GPU(s); "
            'pass device="auto" or "cpu".'
        )
    if resolved.type not in ("cpu", "cuda"):
        _check_usable(resolved, device, owner)
    return resolved


def _check_usable(resolved: torch.device, device: str | torch.device, owner: str) -> None:
    try:
        torch.zeros(1, device=resolved)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f'{owner}: `device` must exist, got {device!r}, which this torch cannot use; pass device="auto" or "cpu".'
        ) from error


@contextlib.contextmanager
def use_threads(n_threads: int) -> Iterator[None]:
    """Run the block with `n_threads` torch threads on the CPU, and restore their number behind it.

    Blocks of several Python threads may overlap: the last one to end restores what was there before the first.

    Examples
    --------
    >>> with use_threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = _open_block(n_threads)
    try:
        yield
    finally:
        _close_block(before)


_BLOCKS = threading.Lock()
_open = {"blocks": 0, "before": 0}


def _open_block(n_threads: int) -> int:
    with _BLOCKS:
        before = torch.get_num_threads()
        if _open["blocks"] == 0:
            _open["before"] = before
        _open["blocks"] += 1
        torch.set_num_threads(n_threads)
        return before


def _close_block(before: int) -> None:
    with _BLOCKS:
        _open["blocks"] -= 1
        torch.set_num_threads(before if _open["blocks"] else _open["before"])


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Run the block with one torch thread: products this small lose more to waiting for each other than they gain.

    Examples
    --------
    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    return use_threads(1)
