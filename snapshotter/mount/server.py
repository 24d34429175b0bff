"""The native engine's I/O: one event loop that serves many /dev/fuse descriptors, and the threads that wait for chunks.

The loop answers what is in memory, short reads included. Other reads are done by one of the *near* threads if all their chunks
are on this machine, and passed on to a *far* thread if not: so a registry that does not answer holds up nobody who does not
need it. Each thread writes its own reply; the kernel matches replies by the request's unique number, in any order.

A read whose caller has a signal pending is answered EINTR at once, where the caller can bear it (`interrupts`). What was being
fetched for it comes all the same: others may wait for it, and the cache keeps it.

A server may be killed at any moment. What it took and did not answer, its successor has from the kernel (`Channel.resend`) or,
before Linux 6.9, from the mount's journal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from snapshotter.errors import AlreadyExistsError, NotFoundError, UnavailableError
from snapshotter.mount import wire
from snapshotter.mount.channel import Channel, Closer, Read
from snapshotter.mount.interrupts import may_interrupt
from snapshotter.mount.journal import CRASHES_MAX, Journal
from snapshotter.mount.pool import Pool
from snapshotter.mount.session import Buffers, Interrupt, ReadJob, Session
from snapshotter.mount.vigil import Vigil

NEAR_THREADS = max(2, min(4, len(os.sched_getaffinity(0))))
"""Reads of local chunks that run at once. They use the processor more than they wait: with more threads than processors a read
is done later than it could be, and so is whoever waits for it."""
FAR_THREADS = 64
"""Reads that may wait for a network at once, over all mounts of a server: each holds 1 MiB and the chunks it comes from."""

AWAKE_NS = 50_000
"""Nanoseconds for which the loop looks out for the next request without sleeping, after one that it has answered itself: to
wake a processor of a virtual machine takes about as long (docs/decisions/staying-awake.md)."""
LIVELY_NS = 100_000
"""It does so only while a request follows within this time of an answer: a walk through a tree, not a file now and then."""
_DEADLY = UnavailableError(
    f"{CRASHES_MAX} workers crashed while they had this request or one for the same, the mount is served without it: "
    "see the log for how they ended"
)
_VIGIL_INTERVAL = 0.001
"""Seconds after which it is asked whether sleep is still to be kept off."""
_INTERRUPT_INTERVAL = 0.5
"""Seconds after which callers with a signal pending are looked at again."""


class Server:
    """Serves mounts until `stop`. `add` and `remove` may be called from any thread, while `run` runs in one."""

    def __init__(
        self,
        on_ready: Callable[[str, Session], None],
        on_gone: Callable[[str], None],
        keep_awake: Callable[[bool], None] | None = None,
    ) -> None:
        """`on_ready(name, session)` follows INIT (whether it was accepted or `session.refused`), `on_gone(name)` the unmount.
        `keep_awake(True)` is to keep idle processors from sleeping, `keep_awake(False)` to let them (`vigil`).

        All are called by the loop and must not wait.
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
        self._interrupted: list[Read] = []
        self._near = Pool("near", NEAR_THREADS)
        self._far = Pool("far", FAR_THREADS)
        self._stopping = False
        self._may_stay_awake = len(os.sched_getaffinity(0)) > 1
        self._keep_awake = keep_awake if self._may_stay_awake else None
        self._vigil = Vigil()
        self._sleepless = False

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
        last = awake_until = 0
        look_ahead: Callable[[], None] | None = None
        while not self._stopping:
            events = poll(0 if awake_until else self._patience())
            if not events and awake_until:
                if look_ahead is not None:
                    look_ahead()
                    look_ahead = None
                elif time.monotonic_ns() > awake_until:
                    awake_until = 0
                continue
            arrived = time.monotonic_ns()
            at_once = False
            for fd, _ in events:
                channel = channels.get(fd)
                if channel is not None:
                    at_once = self._serve_one(channel)
                    look_ahead = channel.session.look_ahead
                elif fd == self._wake:
                    os.eventfd_read(fd)
            now = time.monotonic_ns()
            lively = at_once and arrived - last < LIVELY_NS and self._may_stay_awake
            awake_until = now + AWAKE_NS if lively else 0
            if self._keep_awake is not None and self._vigil.step(now, lively=lively) is not self._sleepless:
                self._sleepless = not self._sleepless
                self._keep_awake(self._sleepless)
            last = now
            if self._interrupted:
                self._interrupt()
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
        self._near.close()  # first: it hands reads on to the other
        self._far.close()
        self._epoll.close()
        os.close(self._wake)

    def stop(self) -> None:
        """Make `run` return."""
        self._stopping = True
        self._wake_up()

    def _patience(self) -> float | None:
        """Seconds that the loop may sleep."""
        if self._sleepless:
            return _VIGIL_INTERVAL
        return _INTERRUPT_INTERVAL if self._interrupted else None

    def _wake_up(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _take_over(self, channel: Channel) -> None:
        for slot, request in channel.journal.unanswered():
            self._handle(channel, memoryview(request), slot)
        channel.journal.taken()
        with self._lock:
            if self._channels.get(channel.fd) is channel:
                self._epoll.register(channel.fd, select.EPOLLIN)

    def _serve_one(self, channel: Channel) -> bool:
        """Take a request, if there is one; whether it is answered already."""
        landing = channel.journal.landing
        try:
            length = os.readv(channel.fd, [landing])
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT):  # ENOENT: interrupted before we took it
                return False
            # ENODEV: unmounted; anything else leaves nothing to serve either.
            if self._forget(channel):
                self._on_gone(channel.name)
            return False
        return self._handle(channel, landing[:length], None)

    def _handle(self, channel: Channel, request: memoryview, slot: int | None) -> bool:
        """Answer `request`, or have it answered. `slot`: where the journal has it already. Whether it is answered already."""
        fresh = channel.session.negotiated is None
        condemned = channel.journal.condemned
        if condemned and wire.first_unique(request) in condemned:
            answer: Buffers | ReadJob | Interrupt | None = channel.session.refuse(request, _DEADLY)
        else:
            answer = channel.session.handle(request)
        if isinstance(answer, ReadJob):
            at_hand = channel.session.at_hand(answer)
            if at_hand is None:
                read = channel.begin(answer, channel.journal.keep(request) if slot is None else slot)
                self._near.submit(partial(self._read_near, read))
                return False
            answer = at_hand
        elif isinstance(answer, Interrupt):
            waiting = channel.waiting(answer.unique)
            if waiting is not None:
                self._interrupted.append(waiting)
                self._interrupt()
            return False
        if fresh and channel.session.negotiated is not None:
            # Before the answer: once the kernel has that, it never sends INIT again.
            channel.journal.agree(channel.session.negotiated)
        if answer is not None:
            channel.reply(answer)
        channel.journal.done(slot)
        if fresh and (channel.session.negotiated is not None or channel.session.refused is not None):
            self._on_ready(channel.name, channel.session)
        return True

    def _interrupt(self) -> None:
        """Answer those interrupted reads whose callers can bear it now. The kernel does not tell when a second signal comes."""
        waiting = [read for read in self._interrupted if not read.answered]
        for read in waiting:
            if may_interrupt(read.job.pid):
                read.abandon()
        self._interrupted = [read for read in waiting if not read.answered]

    def _read_near(self, read: Read) -> None:
        handed_on = False
        try:
            if read.start(self._near):
                session = read.channel.session
                if read.do(session.read_local):
                    pass
                elif session.is_near(read.job):
                    read.do(session.read)
                elif read.stop():
                    self._far.submit(partial(self._read_far, read))
                    handed_on = True
            if read.job.ahead and not handed_on:
                self._far.submit(partial(self._sweep, read))
                handed_on = True
        finally:
            if not handed_on:
                read.end()

    def _sweep(self, read: Read) -> None:
        try:
            read.channel.session.sweep()
        finally:
            read.end()

    def _read_far(self, read: Read) -> None:
        try:
            if read.job.ahead:
                read.channel.session.sweep()
            if read.start(self._far):
                read.do(read.channel.session.read_far)
                read.channel.session.follow(read.job)
        finally:
            read.end()

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
