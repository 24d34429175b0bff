"""The native engine's I/O: one event loop that serves many /dev/fuse descriptors, and the threads that wait for chunks.

The loop answers what is in memory. A read is planned and done by one of the *near* threads if all its chunks are on this
machine, and passed on to a *far* thread if not: so a registry that does not answer holds up nobody who does not need it.
Each thread writes its own reply; the kernel matches replies by the request's unique number, in any order.

A server may be killed at any moment. What it took and did not answer, its successor has from the kernel (`Channel.resend`) or,
before Linux 6.9, from the mount's journal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from snapshotter.errors import AlreadyExistsError, NotFoundError
from snapshotter.mount import wire
from snapshotter.mount.journal import Journal
from snapshotter.mount.session import Buffers, ReadJob, Session, StatfsJob

NEAR_THREADS = 4
"""Reads of local chunks that run at once. They use the processor more than they wait; a worker process is made per core."""
FAR_THREADS = 64
"""Reads that may wait for a network at once, over all mounts of a server: each holds 1 MiB and the chunks it comes from."""

# The kernel's answers to a reply that nobody waits for: the request was aborted (ENOENT), the mount is gone (ENODEV).
_NOBODY_WAITS = (errno.ENOENT, errno.ENODEV)


class Closer(Protocol):
    """What a mount holds and gives back when it is gone."""

    def close(self) -> None:
        """Give it back."""
        ...


class Channel:
    """One mount being served: its descriptor, session and journal, and how many reads are under way.

    The descriptor and the tree's memory must outlive the last of them: a closed descriptor's number is soon another file.
    """

    def __init__(self, name: str, fd: int, session: Session, journal: Journal, owned: Closer | None) -> None:
        self.name = name
        self.fd = fd
        self.session = session
        self.journal = journal
        self._owned = owned
        self._users = 1
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """One more read is under way."""
        with self._lock:
            self._users += 1

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


class Server:
    """Serves mounts until `stop`. `add` and `remove` may be called from any thread, while `run` runs in one."""

    def __init__(self, on_ready: Callable[[str, Session], None], on_gone: Callable[[str], None]) -> None:
        """`on_ready(name, session)` follows INIT (whether it was accepted or `session.refused`), `on_gone(name)` the unmount.

        Both are called by the loop and must not wait.
        """
        self._on_ready = on_ready
        self._on_gone = on_gone
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._channels: dict[int, Channel] = {}
        self._taken_over: deque[Channel] = deque()
        self._beats: deque[threading.Event] = deque()
        self._removed: deque[Channel] = deque()
        self._lock = threading.Lock()
        self._near = ThreadPoolExecutor(NEAR_THREADS, "near")
        self._far = ThreadPoolExecutor(FAR_THREADS, "far")
        self._stopping = False

    def add(self, name: str, fd: int, session: Session, journal: Journal, *, owned: Closer | None = None) -> bool:
        """Serve the mount behind `fd`, which is the server's to close from now on, like `journal` and `owned`.

        What another server of this mount has left unanswered is answered. The result is whether the kernel hands it out again;
        if not, it is taken from the journal.

        Raises:
            AlreadyExistsError: a mount of that name is being served.
        """
        os.set_blocking(fd, False)
        channel = Channel(name, fd, session, journal, owned)
        with self._lock:
            if any(other.name == name for other in self._channels.values()):
                raise AlreadyExistsError(f"mount {name} is being served already")
            self._channels[fd] = channel
        if channel.resend():
            self._epoll.register(fd, select.EPOLLIN)
            return True
        # The landing place is the loop's, and what is there comes before the next request.
        self._taken_over.append(channel)
        self._wake_up()
        return False

    def remove(self, name: str) -> None:
        """Serve this mount no more; reads under way are finished first, in the background.

        Raises:
            NotFoundError: there is no mount of that name.
        """
        with self._lock:
            channel = next((channel for channel in self._channels.values() if channel.name == name), None)
            if channel is None:
                raise NotFoundError(f"mount {name} is not being served")
            del self._channels[channel.fd]
        # The loop may be in the middle of a request of this mount: only it may let go of the descriptor.
        self._removed.append(channel)
        self._wake_up()

    def names(self) -> list[str]:
        """The mounts that are being served."""
        with self._lock:
            return [channel.name for channel in self._channels.values()]

    def comes_round(self, timeout: float) -> bool:
        """Whether the loop answers within `timeout` seconds: a worker whose loop is stuck lives, and serves nobody."""
        beat = threading.Event()
        self._beats.append(beat)
        self._wake_up()
        return beat.wait(timeout)

    def run(self) -> None:
        """The loop; returns after `stop`, when all reads under way are done."""
        poll = self._epoll.poll
        channels = self._channels
        while not self._stopping:
            for fd, _ in poll():
                channel = channels.get(fd)
                if channel is not None:
                    self._serve_one(channel)
                elif fd == self._wake:
                    os.eventfd_read(fd)
            while self._taken_over:
                self._take_over(self._taken_over.popleft())
            while self._beats:
                self._beats.popleft().set()
            while self._removed:
                self._let_go(self._removed.popleft())
        for channel in list(channels.values()):
            self._forget(channel)
        while self._removed:
            self._let_go(self._removed.popleft())
        self._near.shutdown()
        self._far.shutdown()
        self._epoll.close()
        os.close(self._wake)

    def stop(self) -> None:
        """Make `run` return."""
        self._stopping = True
        self._wake_up()

    def _wake_up(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _take_over(self, channel: Channel) -> None:
        for slot, request in channel.journal.unanswered():
            self._handle(channel, memoryview(request), slot)
        with self._lock:
            if self._channels.get(channel.fd) is channel:
                self._epoll.register(channel.fd, select.EPOLLIN)

    def _serve_one(self, channel: Channel) -> None:
        landing = channel.journal.landing
        try:
            length = os.readv(channel.fd, [landing])
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT):  # ENOENT: interrupted before we took it
                return
            # ENODEV: unmounted; anything else leaves nothing to serve either.
            if self._forget(channel):
                self._on_gone(channel.name)
            return
        self._handle(channel, landing[:length], None)

    def _handle(self, channel: Channel, request: memoryview, slot: int | None) -> None:
        """Answer `request`, or have it answered. `slot`: where the journal has it already."""
        fresh = channel.session.negotiated is None
        answer = channel.session.handle(request)
        if isinstance(answer, ReadJob | StatfsJob):
            if slot is None:
                slot = channel.journal.keep(request)
            channel.acquire()
            work = self._read_near if isinstance(answer, ReadJob) else self._statfs
            self._near.submit(work, channel, answer, slot)  # type: ignore[arg-type]
            return
        if fresh and channel.session.negotiated is not None:
            # Before the answer: once the kernel has that, it never sends INIT again.
            channel.journal.agree(channel.session.negotiated)
        if answer is not None:
            channel.reply(answer)
        channel.journal.done(slot)
        if fresh and (channel.session.negotiated is not None or channel.session.refused is not None):
            self._on_ready(channel.name, channel.session)

    def _read_near(self, channel: Channel, job: ReadJob, slot: int | None) -> None:
        if channel.session.is_near(job):
            self._read(channel, job, slot)
        else:
            self._far.submit(self._read, channel, job, slot)

    def _read(self, channel: Channel, job: ReadJob, slot: int | None) -> None:
        try:
            channel.reply(channel.session.read(job))
            channel.journal.done(slot)
        finally:
            channel.release()

    def _statfs(self, channel: Channel, job: StatfsJob, slot: int | None) -> None:
        try:
            channel.reply(channel.session.statfs(job))
            channel.journal.done(slot)
        finally:
            channel.release()

    def _forget(self, channel: Channel) -> bool:
        with self._lock:
            if self._channels.get(channel.fd) is not channel:
                return False  # removed in the meantime
            del self._channels[channel.fd]
        self._let_go(channel)
        return True

    def _let_go(self, channel: Channel) -> None:
        # Closing would not do it: whoever mounted keeps a descriptor of the same open file, which epoll would go on watching.
        with contextlib.suppress(OSError):
            self._epoll.unregister(channel.fd)
        channel.release()
