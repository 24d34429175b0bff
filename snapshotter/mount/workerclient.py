"""The daemon's side of a mount worker: starts the process or finds it, gives it mounts, hears from it."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from snapshotter.errors import InvalidError, PuzzlefsError, UnavailableError
from snapshotter.mount import messages, processes, workerproto
from snapshotter.mount.connection import Connection
from snapshotter.mount.messages import Message
from snapshotter.mount.processes import Process
from snapshotter.mount.workerproto import AddMount, Event, Hello

KIND = "worker"
"""Begins the names of workers' sockets."""
REPLY_TIMEOUT = 30.0
"""Seconds to wait for an answer. A worker answers from memory; one that does not is stuck, and better replaced."""
HELLO_TIMEOUT = 5.0
"""Seconds in which a worker that is found has to say who it is."""
END_TIMEOUT = 5.0
"""Seconds that a worker which has hung up may take to end."""

_log = logging.getLogger(__name__)

Answer = tuple[Message, list[int]]


class WorkerClient:
    """One worker process. Safe to use from several threads.

    A worker that has ended stays ended: make a new one, and add the mounts again.
    """

    def __init__(
        self,
        path: Path,
        sock: socket.socket,
        process: Process,
        on_event: Callable[[Event], None],
        on_exit: Callable[[int | None], None],
    ) -> None:
        """From a process that listens at `path` and is connected to `sock`; `start` and `find` are the usual ways in."""
        self._path = path
        self._sock = sock
        self._process = process
        self._on_event = on_event
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._seq = 0
        self._waiting: dict[int, Future[Answer]] = {}
        self._ended = False
        self.answered = False
        """Whether it has said anything yet."""
        self._detached = False
        # One that does not read what it is told is stuck: then nobody here waits for it for long.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(END_TIMEOUT), 0))
        self._reader = threading.Thread(target=self._read, name=f"worker-{process.pid}", daemon=True)
        self._reader.start()

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        directory: Path,
        on_event: Callable[[Event], None],
        on_exit: Callable[[int | None], None] = lambda status: None,
    ) -> WorkerClient:
        """Start a worker by `command`, to which ``--socket-fd N`` is added; its socket is in `directory`.

        `on_event` and `on_exit` are called from a thread of this object's; `on_exit` once, with the exit status as far as it
        is known, when the process has ended, whether by `stop` or by itself, and not after `detach`.

        Raises:
            UnavailableError: the process does not start.
        """
        return cls(*processes.start(command, directory, KIND), on_event, on_exit)

    @classmethod
    def find(
        cls, path: Path, on_event: Callable[[Event], None], on_exit: Callable[[int | None], None] = lambda status: None
    ) -> tuple[WorkerClient, Hello]:
        """The worker that listens at `path`, started by another daemon, which is gone. The rest as in `start`.

        Raises:
            UnavailableError: there is none any more, or it does not say who it is.
            InvalidError: it says something else.
        """
        sock = processes.connect(path)
        try:
            sock.settimeout(HELLO_TIMEOUT)
            messages.send(sock, {"seq": 0, "do": "hello"})
            while True:
                received = messages.receive(sock)
                if received is None:
                    raise UnavailableError(f"the mount worker at {path} has hung up")
                message, fds = received
                if message.get("re") == 0 and len(fds) == 1:
                    break
                messages.close_all(fds)
            sock.settimeout(None)
        except OSError as error:
            sock.close()
            raise UnavailableError(f"the mount worker at {path} does not answer: {error}") from error
        except BaseException:
            sock.close()
            raise
        try:
            hello = workerproto.parse_hello(message)
        except InvalidError:
            sock.close()
            messages.close_all(fds)
            raise
        return cls(path, sock, Process(hello.pid, fds[0], child=False), on_event, on_exit), hello

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the process runs."""
        try:
            self._process.wait(0)
        except TimeoutError:
            return True
        return False

    def add(self, mount: AddMount, connection: Connection) -> bool:
        """Have `mount` served; `connection` stays the caller's.

        Whether the kernel hands out again what an earlier worker took along; where it cannot (before 6.9), the worker has it
        from the connection's memory.

        Raises:
            NotFoundError, CorruptError, AlreadyExistsError: the metadata, or the mount's id.
            UnavailableError: the worker is gone or does not answer.
        """
        return bool(self._ask(workerproto.add_message(mount), connection.fds).get("resent"))

    def begin_add(self, mount: AddMount, connection: Connection, on_answer: Callable[[PuzzlefsError | None], None]) -> None:
        """As `add`, without waiting: `on_answer` is called with the error, if there is one, by a thread of this object's.

        Raises:
            UnavailableError: the worker is gone.
        """

        def answered(future: Future[Answer]) -> None:
            try:
                _taken(future.result())
            except PuzzlefsError as error:
                on_answer(error)
            else:
                on_answer(None)

        self._begin(workerproto.add_message(mount), connection.fds)[1].add_done_callback(answered)

    def held(self, mount_id: str) -> tuple[AddMount | None, Connection]:
        """A mount that the worker serves, and goes on serving: what it was told, and the connection, the caller's to close.

        What a worker of another release was told may not be understood; its connections are (None).

        Raises:
            NotFoundError: it does not serve it.
            InvalidError, UnavailableError: as in `add`.
        """
        message, fds = self._asked({"do": "descriptors", "mount_id": mount_id})
        connection = Connection.of(fds)
        try:
            return workerproto.parse_add(message), connection
        except InvalidError:
            return None, connection

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

    def begin_ping(self) -> Callable[[float], bool]:
        """Ask whether the worker is alive and its event loop comes round; whether it has said so within so many seconds from
        the call of what this returns. Neither raises."""
        try:
            seq, future = self._begin({"do": "ping"}, ())
        except PuzzlefsError:
            return lambda timeout: False

        def answers(timeout: float) -> bool:
            try:
                return self._answer(seq, future, max(0.0, timeout))[0].get("alive") is True
            except PuzzlefsError:
                return False

        return answers

    def ping(self, timeout: float) -> bool:
        """Whether it is, within `timeout` seconds: `begin_ping` at once."""
        return self.begin_ping()(timeout)

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
        except TimeoutError:
            _log.warning("mount worker %d did not end within %g s and is killed", self.pid, timeout)
            self._process.kill()
        self._reader.join()

    def begin_kill(self) -> None:
        """End the worker without asking; `on_exit` is called when it has."""
        self._process.kill()

    def kill(self) -> None:
        """End the worker without asking, and wait until it has ended."""
        self._process.kill()
        self._process.wait()

    def detach(self) -> None:
        """Hang up, and leave the worker serving until its last mount is gone, or another daemon comes."""
        self._detached = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()

    def _ask(self, message: Message, fds: tuple[int, ...] = (), timeout: float = REPLY_TIMEOUT) -> Message:
        answer, given = self._asked(message, fds, timeout)
        messages.close_all(given)
        return answer

    def _asked(self, message: Message, fds: tuple[int, ...] = (), timeout: float = REPLY_TIMEOUT) -> Answer:
        return self._answer(*self._begin(message, fds), timeout)

    def _answer(self, seq: int, future: Future[Answer], timeout: float) -> Answer:
        try:
            return _taken(future.result(timeout))
        except FutureTimeoutError:
            with self._lock:
                self._waiting.pop(seq, None)
            raise UnavailableError(f"mount worker {self.pid} did not answer within {timeout:g} s") from None

    def _begin(self, message: Message, fds: tuple[int, ...]) -> tuple[int, Future[Answer]]:
        future: Future[Answer] = Future()
        with self._lock:
            if self._ended:
                raise UnavailableError(f"mount worker {self.pid} has ended")
            self._seq += 1
            seq = self._seq
            self._waiting[seq] = future
            try:
                messages.send(self._sock, {"seq": seq, **message}, fds)
            except OSError as error:
                del self._waiting[seq]
                raise UnavailableError(f"mount worker {self.pid} cannot be reached: {error}") from error
            except BaseException:
                del self._waiting[seq]
                raise
        return seq, future

    def _read(self) -> None:
        while True:
            try:
                received = messages.receive(self._sock)
                if received is None:
                    break
                self._dispatch(*received)
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
        self._sock.close()
        if self._detached:
            self._process.abandon()
            return
        try:
            status = self._process.wait(END_TIMEOUT)
        except TimeoutError:
            # It serves nobody that could be told of it.
            self._process.kill()
            status = self._process.wait()
        self._path.unlink(missing_ok=True)
        self._on_exit(status)

    def _dispatch(self, message: Message, fds: list[int]) -> None:
        self.answered = True
        if "event" in message:
            messages.close_all(fds)
            self._on_event(workerproto.parse_event(message))
            return
        seq = message.get("re")
        with self._lock:
            future = self._waiting.pop(seq, None) if isinstance(seq, int) else None
        if future is None:
            messages.close_all(fds)
        else:
            future.set_result((message, fds))


def _taken(answer: Answer) -> Answer:
    """The answer, or the error that it is."""
    message, fds = answer
    if "error" in message:
        messages.close_all(fds)
        raise messages.parse_error(message)
    return answer
