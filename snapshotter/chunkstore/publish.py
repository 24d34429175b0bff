"""Writes a small file so that it is whole or not there: temporary name, fsync, rename, fsync of the directory."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

TEMPORARY = ".tmp"
"""The directory, beside the chunks' own, in which files are written before they are renamed; at a start it is swept."""


def publish(path: Path, content: bytes, seal: Callable[[int], None] | None = None) -> None:
    """Write the file `path`; see `publish_parts`."""
    publish_parts(path, (content,), seal)


def publish_parts(path: Path, parts: Iterable[bytes | memoryview], seal: Callable[[int], None] | None = None) -> None:
    """Write the file `path`, mode 0600, whatever happens to the machine meanwhile; its directory is made if need be.

    `seal` is called with the written file, open for reading only, before it gets its name (`format.fsverity.enable`).

    Raises:
        OSError: it cannot be written; nothing of it stays.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if seal is not None:
            descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            try:
                seal(descriptor)
            finally:
                os.close(descriptor)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
