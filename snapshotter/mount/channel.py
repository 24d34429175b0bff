"""One mount that a server serves: its descriptor, and the reads under way, each of which is answered exactly once."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import Protocol

from snapshotter.mount import wire
from snapshotter.mount.journal import Journal
from snapshotter.mount.pool import Pool
from snapshotter.mount.session import Buffers, ReadJob, Session

# The kernel's answers to a reply that nobody waits for: the request was aborted (ENOENT), the mount is gone (ENODEV).
_NOBODY_WAITS = (errno.ENOENT, errno.ENODEV)


class Closer(Protocol):
    """What a mount holds and gives back when it is gone."""

    def close(self) -> None:
        """Give it back."""
        ...


class Channel:
    """The descriptor, session and journal of a mount, and the reads under way.

    The descriptor and the tree's memory must outlive the last of them: a closed descriptor's number is soon another file.
    """

    def __init__(self, name: str, fd: int, session: Session, journal: Journal, owned: Closer | None) -> None:
        self.name = name
        self.fd = fd
        self.session = session
        self.journal = journal
        self._owned = owned
        self._users = 1
        self._reads: dict[int, Read] = {}
        self._lock = threading.Lock()

    def begin(self, job: ReadJob, slot: int | None) -> Read:
        """One more read is under way, which the journal has in `slot`."""
        read = Read(self, job, slot)
        with self._lock:
            self._users += 1
            self._reads[job.unique] = read
        return read

    def waiting(self, unique: int) -> Read | None:
        """The unanswered read for the request `unique`, if there is one."""
        with self._lock:
            return self._reads.get(unique)

    def answered(self, read: Read, buffers: Buffers) -> None:
        """Write the answer of `read`, and forget that it waits."""
        with self._lock:
            self._reads.pop(read.job.unique, None)
        self.reply(buffers)
        self.journal.done(read.slot)

    def release(self) -> None:
        """A read is done, or the server let go; the last one closes."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        os.close(self.fd)
        self.journal.close()
        if self._owned is not None:
            self._owned.close()

    def reply(self, buffers: Buffers) -> None:
        """Write an answer. A reply that the kernel refuses otherwise than expected is answered with EIO instead."""
        try:
            os.writev(self.fd, buffers)
        except OSError as error:
            if error.errno in _NOBODY_WAITS:
                return
            unique = wire.OUT_HEADER.unpack_from(buffers[0])[2]
            with contextlib.suppress(OSError):
                os.write(self.fd, wire.pack_header(unique, 0, errno.EIO))

    def resend(self) -> bool:
        """Ask for the requests that an earlier server took along; False where the kernel cannot (before Linux 6.9)."""
        if self.session.negotiated is not None and not self.session.negotiated.can_resend:
            return False
        try:
            os.write(self.fd, wire.pack_resend())
        except OSError:
            return False
        self.journal.forget()
        return True


class Read:
    """A READ under way: done by a thread, or abandoned before. Every one that was begun has to `end`."""

    __slots__ = ("_lent", "_lock", "_pool", "answered", "channel", "job", "slot")

    def __init__(self, channel: Channel, job: ReadJob, slot: int | None) -> None:
        """See `Channel.begin`."""
        self.channel = channel
        self.job = job
        self.slot = slot
        self._lock = threading.Lock()
        self.answered = False
        self._pool: Pool | None = None
        self._lent: Pool | None = None

    def start(self, pool: Pool) -> bool:
        """A thread of `pool` takes it up; False if nobody waits for it any more."""
        with self._lock:
            self._pool = pool
            return not self.answered

    def stop(self) -> bool:
        """The thread puts it down again, for another one; False if nobody waits for it any more."""
        with self._lock:
            if not self.answered:
                self._pool = None
            return not self.answered

    def do(self, read: Callable[[ReadJob], Buffers | None]) -> bool:
        """Have `read`, a method of the session, read, however long it takes, and answer if somebody still waits.

        False if it has no answer: another method has to.
        """
        buffers = read(self.job)
        if buffers is None:
            return False
        with self._lock:
            if self.answered:
                return True
            self.answered = True
        self.channel.answered(self, buffers)
        return True

    def abandon(self) -> None:
        """Answer EINTR now. A thread that is at work for it is left to it, and another takes its place in the pool."""
        with self._lock:
            if self.answered:
                return
            self.answered = True
            if self._pool is not None and self._pool.lend():
                self._lent = self._pool
        self.channel.answered(self, [wire.pack_header(self.job.unique, 0, errno.EINTR)])

    def end(self) -> None:
        """Nothing is done for it any more."""
        with self._lock:
            lent, self._lent = self._lent, None
        if lent is not None:
            lent.give_back()
        self.channel.release()
