"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def check_place(owner: str, name: str, path: str | Path) -> None:
    """Raise an OSError unless a file can be written at `path`: before the work that is to fill it.

    Examples
    --------
    >>> check_place("BCQ", "checkpoint_path", "nowhere/run")
    Traceback (most recent call last):
        ...
    FileNotFoundError: BCQ: `checkpoint_path` must lie in a folder that exists, got 'nowhere/run'; create 'nowhere'.
    """
    place = Path(path)
    if place.is_dir():
        raise IsADirectoryError(f"{owner}: `{name}` must name a file, got the folder {str(path)!r}; add a name.")
    if not place.parent.is_dir():
        raise FileNotFoundError(
            f"{owner}: `{name}` must lie in a folder that exists, got {str(path)!r}; create {str(place.parent)!r}."
        )


def replace_file(path: str | Path, content: bytes) -> None:
    """Write a file atomically: beside its place, flushed to disk, then renamed.

    Parameters
    ----------
    path : str or Path
        In a folder that exists.
    content : bytes

    Raises
    ------
    OSError
        If no file can be there.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace_file(Path(folder) / "note.txt", b"whole")
    ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
    [('note.txt', 'whole')]
    """
    path = Path(path)
    check_place("replace_file", "path", path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
