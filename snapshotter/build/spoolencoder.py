"""Encodes chunks in processes of their own, and keeps the results in a spool, in the order of the chunks.

Hashing and compressing are most of a build's work. In threads they would wait for the interpreter's lock after every few
kilobytes, so that two processors did the work of one and a half. What is in flight is bounded by a fixed number of slots.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from types import TracebackType

from snapshotter.build.chunk import CutChunk
from snapshotter.build.chunkworker import NUMBER_BYTES
from snapshotter.build.encoder import Receiver
from snapshotter.build.slots import BATCH_BYTES, BatchEncoder, Slot, Slots
from snapshotter.build.spool import ChunkSpool
from snapshotter.errors import UnavailableError
from snapshotter.format.digest import Digest
from snapshotter.format.model import CHUNK_MAX

_PATIENCE = 1.0
"""Seconds after which it is looked whether the processes that work on what is waited for are alive."""


_AHEAD = 8
"""Slots beside two for each process. Where a layer has nothing but small files, which are cut later, none is filled: the
processes then live on those that wait."""


class SpoolEncoder:
    """Takes chunks for `spool`, and puts each one's `CutChunk` into the list that it came for."""

    def __init__(
        self,
        spool: ChunkSpool,
        level: int,
        known: Sequence[Digest] = (),
        *,
        workers: int | None = None,
        chunk_max: int = CHUNK_MAX,
        expected: int = 0,
    ) -> None:
        """`level` is zstd's; `known` are chunks of which only the fs-verity digest is wanted; `workers` processes, by default
        one a core, are started when there is more than one batch, or at once if so many bytes are `expected`; `chunk_max` is
        the longest chunk in bytes.
        """
        self._spool = spool
        self._level = level
        self._known = b"".join(sorted(known))
        self._workers = workers or os.cpu_count() or 1
        self._chunk_max = chunk_max
        self._count = 2 * self._workers + _AHEAD
        self._memory = os.memfd_create("chunks")
        self._slots = Slots(self._memory, self._count, chunk_max)
        self._number = 0  # of the slot that is being filled
        self._slot: Slot | None = None
        self._receivers: list[Receiver] = []
        # Numbers of the slots that are being encoded, and for each of their chunks where it is to be put.
        self._in_flight: deque[tuple[int, list[Receiver]]] = deque()
        self._pool: _Pool | None = None
        if expected > BATCH_BYTES:
            self._start()

    def room(self, kept: int) -> memoryview:
        """See `Window`.

        Raises:
            UnavailableError: a process that works for this has ended. And what `ChunkSpool.take` raises.
        """
        slot = self._slot
        if slot is not None and slot.is_full:
            # What is behind the chunks stays as it is while the slot is encoded, and until its turn comes again.
            rest = slot.room()[:kept]
            self._submit(slot)
            slot = self._next()
            slot.room()[:kept] = rest
        return (slot or self._next()).room()

    def add(self, length: int, run: list[CutChunk], times: int = 1) -> None:
        """See `Encoder`."""
        assert self._slot is not None  # noqa: S101  # for the type checker: who adds has asked for room
        self._slot.add(length)
        self._receivers.append((run, times))

    def put(self, raw: bytes, run: list[CutChunk]) -> None:
        """Encode one chunk; the rest as `room` and `add` have it."""
        self.room(0)[: len(raw)] = raw
        self.add(len(raw), run)

    def flush(self) -> None:
        """Wait until everything added has been taken. Raises what `room` raises."""
        slot = self._slot
        if slot is not None and not slot.is_empty:
            if self._pool is not None or slot.is_full:
                self._submit(slot)
            else:
                # Less than a batch is not worth a process.
                slot.encode(BatchEncoder(self._level, self._known))
                self._take(slot, self._receivers)
                self._slot, self._receivers = None, []
        while self._in_flight:
            self._collect()

    def _next(self) -> Slot:
        if len(self._in_flight) == self._count:
            self._collect()
        self._slot = self._slots.slot(self._number)
        return self._slot

    def _start(self) -> _Pool:
        self._pool = _Pool(self._workers, self._memory, self._count, self._chunk_max, self._level, self._known)
        return self._pool

    def _submit(self, slot: Slot) -> None:
        slot.release()
        (self._pool or self._start()).submit(self._number)
        self._in_flight.append((self._number, self._receivers))
        self._number = (self._number + 1) % self._count
        self._slot, self._receivers = None, []

    def _collect(self) -> None:
        number, receivers = self._in_flight.popleft()
        if self._pool is not None:
            self._pool.wait(number)
        self._take(self._slots.slot(number), receivers)

    def _take(self, slot: Slot, receivers: list[Receiver]) -> None:
        encoded = list(slot.results())
        self._spool.take(encoded)
        for chunk, (run, times) in zip(encoded, receivers, strict=True):
            run.extend(repeat(CutChunk(chunk.digest, chunk.raw_length), times))
        del encoded
        slot.release()

    def __enter__(self) -> SpoolEncoder:
        """Use it in a with statement, so that its processes end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the processes; what has not been taken is dropped."""
        if self._pool is not None:
            self._pool.close()
        if self._slot is not None:
            self._slot.release()
        with contextlib.suppress(BufferError):  # an error's traceback may hold on to a part of it
            self._slots.close()
        os.close(self._memory)


class _Pool:
    """The processes. They share one pipe for what is to be done, so that whoever is free takes the next slot, and one back."""

    def __init__(self, workers: int, memory: int, count: int, chunk_max: int, level: int, known: bytes) -> None:
        requests, self._requests = os.pipe2(os.O_CLOEXEC)
        self._answers, answers = os.pipe2(os.O_CLOEXEC)
        names = os.memfd_create("known")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._done: set[int] = set()
        try:
            with open(names, "wb", closefd=False) as file:
                file.write(known)
            numbers = (memory, count, chunk_max, level, names, len(known))
            command = [sys.executable, "-P", "-m", "snapshotter.build.chunkworker", *map(str, numbers)]
            for _ in range(workers):
                process = subprocess.Popen(command, stdin=requests, stdout=answers, pass_fds=(memory, names))
                self._processes.append(process)
        except OSError as error:
            self.close()
            raise UnavailableError(f"no process can be started to encode chunks: {error.strerror}") from error
        finally:
            for descriptor in (requests, answers, names):
                os.close(descriptor)

    def submit(self, number: int) -> None:
        """Have a slot encoded."""
        try:
            os.write(self._requests, number.to_bytes(NUMBER_BYTES, "little"))
        except BrokenPipeError:
            raise self._ended() from None

    def wait(self, number: int) -> None:
        """Wait until a slot has been encoded."""
        while number not in self._done:
            while not select.select([self._answers], [], [], _PATIENCE)[0]:
                if any(process.poll() is not None for process in self._processes):
                    raise self._ended()
            answer = os.read(self._answers, NUMBER_BYTES)
            if not answer:
                raise self._ended()
            self._done.add(int.from_bytes(answer, "little"))
        self._done.remove(number)

    def close(self) -> None:
        """End the processes."""
        os.close(self._requests)
        os.close(self._answers)
        for process in self._processes:
            process.kill()
            process.wait()

    def _ended(self) -> UnavailableError:
        statuses = [str(process.returncode) for process in self._processes if process.poll() is not None]
        return UnavailableError(f"a process that encodes chunks has ended, with status {', '.join(statuses) or 'unknown'}")
