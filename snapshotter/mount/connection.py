"""A FUSE connection as it is handed from process to process: two descriptors that belong together.

As long as one process holds the first, the mount lives: its users wait for a server, and none of them sees an error.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapshotter.errors import InvalidError
from snapshotter.mount import journal, mounting
from snapshotter.mount.journal import State


@dataclass(frozen=True, slots=True)
class Connection:
    """`fuse`: the descriptor of /dev/fuse; `memory`: that of the mount's memory (`journal`). Both are the holder's to close."""

    fuse: int
    memory: int

    @classmethod
    def open(cls, label: Mapping[str, str]) -> Connection:
        """A new one, for a mount of which `label` says what it is.

        Raises:
            UnsupportedError, FailedPreconditionError: as `mounting.open_fuse`.
            InvalidError: the label is too long.
        """
        memory = journal.create(label)
        try:
            return cls(mounting.open_fuse(), memory)
        except BaseException:
            os.close(memory)
            raise

    @classmethod
    def of(cls, fds: Sequence[int]) -> Connection:
        """From two descriptors, in whatever order a store of descriptors gives them back. They are closed if it fails.

        Raises:
            InvalidError: they are something else.
        """
        devices = [fd for fd in fds if stat.S_ISCHR(os.fstat(fd).st_mode)]
        memories = [fd for fd in fds if stat.S_ISREG(os.fstat(fd).st_mode)]
        if len(fds) != 2 or len(devices) != 1 or len(memories) != 1:
            for fd in fds:
                os.close(fd)
            raise InvalidError(f"{len(fds)} descriptors are no FUSE connection with its memory")
        return cls(devices[0], memories[0])

    @property
    def fds(self) -> tuple[int, int]:
        """Both, for sending."""
        return self.fuse, self.memory

    def state(self) -> State:
        """What the memory says about the mount.

        Raises:
            InvalidError: another release laid it out.
        """
        return journal.read_state(self.memory)

    def is_gone(self) -> bool:
        """Whether the mount was taken off and its last user is gone (fuse_dev_poll: an error without a mount)."""
        poll = select.poll()
        poll.register(self.fuse, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fuse)
        os.close(self.memory)
