"""The daemon's side of a mount worker: starts the process, gives it mounts, hears from it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from snapshotter.errors import InvalidError, UnavailableError
from snapshotter.mount import workerproto
from snapshotter.mount.workerproto import AddMount, Event, Message

REPLY_TIMEOUT = 30.0
"""Seconds to wait for an answer. A worker answers from memory; one that does not is stuck, and better replaced."""

_log = logging.getLogger(__name__)


class WorkerClient:
    """One worker process. Safe to use from several threads.

    A worker that has ended stays ended: make a new one, and add the mounts again with `takeover`.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        sock: socket.socket,
        on_event: Callable[[Event], None],
        on_exit: Callable[[], None],
    ) -> None:
        """From a started process; `start` is the usual way in."""
        self._process = process
        self._sock = sock
        self._on_event = on_event
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._seq = 0
        self._waiting: dict[int, Future[Message]] = {}
        self._ended = False
        self._reader = threading.Thread(target=self._read, name=f"worker-{process.pid}", daemon=True)
        self._reader.start()

    @classmethod
    def start(
        cls, command: Sequence[str], on_event: Callable[[Event], None], on_exit: Callable[[], None] = lambda: None
    ) -> WorkerClient:
        """Start a worker by `command`, to which ``--socket-fd N`` is added, in a session of its own.

        `on_event` and `on_exit` are called from a thread of this object's; `on_exit` once, when the process has ended, whether
        by `stop` or by itself.

        Raises:
            UnavailableError: the process does not start.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = subprocess.Popen(
                    [*command, "--socket-fd", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise UnavailableError(f"starting a mount worker ({command[0]}): {error}") from error
        return cls(process, ours, on_event, on_exit)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def add(self, mount: AddMount, fd: int) -> bool:
        """Have `mount` served; `fd` stays the caller's. False only on takeover, where the kernel cannot resend (before 6.9).

        Raises:
            NotFoundError, CorruptError, AlreadyExistsError: the metadata, or the mount's id.
            UnavailableError: the worker is gone or does not answer.
        """
        return bool(self._ask(workerproto.add_message(mount), (fd,)).get("resent"))

    def remove(self, mount_id: str) -> None:
        """Serve this mount no more; reads under way are finished.

        Raises:
            NotFoundError: the worker does not serve it.
            UnavailableError: as in `add`.
        """
        self._ask({"do": "remove", "mount_id": mount_id})

    def update(self, mount_id: str, store: Mapping[str, Any]) -> None:
        """Have the mount's chunks come from the store that `store` describes, as in `AddMount`, from now on.

        Raises:
            NotFoundError: the worker does not serve it.
            UnavailableError: as in `add`.
        """
        self._ask({"do": "update", "mount_id": mount_id, "store": dict(store)})

    def stats(self) -> dict[str, Any]:
        """What the worker holds: ``mounts`` (ids) and ``cached`` (weight of its decoded metadata).

        Raises:
            UnavailableError: as in `add`.
        """
        return self._ask({"do": "stats"})

    def stop(self, timeout: float = 5.0) -> None:
        """End the worker: ask it to, and kill it if it has not ended after `timeout` seconds. Never raises."""
        with contextlib.suppress(UnavailableError):
            self._ask({"do": "stop"}, timeout=timeout)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            _log.warning("mount worker %d did not end within %g s and is killed", self.pid, timeout)
            self.kill()
        self._reader.join()

    def kill(self) -> None:
        """End the worker without asking, and wait until it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def detach(self) -> None:
        """Hang up, and leave the worker serving until its last mount is gone."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, message: Message, fds: tuple[int, ...] = (), timeout: float = REPLY_TIMEOUT) -> Message:
        future: Future[Message] = Future()
        with self._lock:
            if self._ended:
                raise UnavailableError(f"mount worker {self.pid} has ended")
            self._seq += 1
            seq = self._seq
            self._waiting[seq] = future
            try:
                workerproto.send(self._sock, {"seq": seq, **message}, fds)
            except OSError as error:
                del self._waiting[seq]
                raise UnavailableError(f"mount worker {self.pid} cannot be reached: {error}") from error
            except BaseException:
                del self._waiting[seq]
                raise
        try:
            answer = future.result(timeout)
        except FutureTimeoutError:
            with self._lock:
                self._waiting.pop(seq, None)
            raise UnavailableError(f"mount worker {self.pid} did not answer within {timeout:g} s") from None
        if "error" in answer:
            raise workerproto.parse_error(answer)
        return answer

    def _read(self) -> None:
        while True:
            try:
                received = workerproto.receive(self._sock)
                if received is None:
                    break
                message, fds = received
                for fd in fds:
                    os.close(fd)
                self._dispatch(message)
            except InvalidError as error:
                _log.warning("mount worker %d: %s", self.pid, error)
            except OSError:
                break
            except Exception:
                _log.exception("mount worker %d: handling an event failed", self.pid)
        with self._lock:
            self._ended = True
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(UnavailableError(f"mount worker {self.pid} ended before it answered"))
        self._process.wait()
        self._sock.close()
        self._on_exit()

    def _dispatch(self, message: Message) -> None:
        if "event" in message:
            self._on_event(workerproto.parse_event(message))
            return
        seq = message.get("re")
        with self._lock:
            future = self._waiting.pop(seq, None) if isinstance(seq, int) else None
        if future is not None:
            future.set_result(message)
