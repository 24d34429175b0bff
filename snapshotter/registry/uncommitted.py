"""What a writer has put into a layout before a tag names it, so that a writer that fails can take it back.

Blobs that were there before are never touched. One that another writer of ours found there, and counts on, must stay too: a
writer holds a shared lock on the directory of the blobs from its first write to its tag, and files are deleted only by one that
gets it for itself alone.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path


class Uncommitted:
    """The files of one writer. Safe for use by several threads."""

    def __init__(self, blobs: Path, *, undo: bool) -> None:
        """`blobs` is the directory that they are in, which may not exist yet. Without `undo` nothing is taken back."""
        self._blobs = blobs
        self._undo = undo
        self._files: list[str] = []  # names in `blobs`: a path takes ten times as much
        self._made: list[Path] = []
        self._claim = -1
        self._guard = threading.Lock()

    def claim(self) -> None:
        """Take the shared lock; the directory exists. Waits while another writer takes back what it has put."""
        with self._guard:
            if self._undo and self._claim < 0:
                self._claim = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._claim, fcntl.LOCK_SH)

    def added(self, path: Path) -> None:
        """The file `path`, in the directory of the blobs, was put."""
        if self._undo:
            with self._guard:
                self._files.append(path.name)

    def made(self, *paths: Path) -> None:
        """The layout itself was made, of these files and directories, the innermost last."""
        if self._undo:
            with self._guard:
                self._made += paths

    def committed(self) -> None:
        """A tag names what was put. The lock is given back."""
        with self._guard:
            self._release()

    def end(self) -> None:
        """Take back what is not committed, if no other writer is at work, and give back the lock."""
        with self._guard:
            try:
                if self._claim >= 0:
                    fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._take_back()
            except OSError:
                pass  # somebody else writes here: what was put stays, without a name, as after a crash
            finally:
                self._release()

    def _take_back(self) -> None:
        for name in self._files:
            (self._blobs / name).unlink(missing_ok=True)
        if self._made and any(self._blobs.iterdir()):
            return
        for path in reversed(self._made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()

    def _release(self) -> None:
        self._files, self._made = [], []
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    def __del__(self) -> None:
        """A store that nobody closes leaves what it has put."""
        self._release()
