"""Files that are either old or new, never half; keys of ours that lie in one; and folders that are their owner's alone."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

KEY_BYTES = 32


def make_private(folder: Path) -> None:
    """Make the folder, and those above it that are missing, for its owner alone. One that is there stays as it is."""
    for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        missing.mkdir(exist_ok=True, mode=0o700)


def own_key(path: Path) -> bytes:
    """The key in the file, which its owner alone can read, or a new one. Raises OSError, or ValueError for a file without one.

    Of several processes that make one at once, all take the first.
    """
    if not path.exists():
        make_private(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link is made whole or not at all, and never in the place of a key that is there.
        with suppress(FileExistsError):
            os.link(temporary, path)
        Path(temporary).unlink()
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise ValueError("the file holds no key")
    return key


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write `content` beside `path`, flush it to the disk, and rename it into place. Raises OSError; then `path` is as it was."""
    make_private(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
        _flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def _flush_folder(folder: Path) -> None:
    """A rename survives a power cut once its folder is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
