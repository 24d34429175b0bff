"""Runs the work that each chunk costs (hashing, compressing) in threads, and hands the results back in order.

Everything else of a build happens on one thread. What is in flight is bounded in bytes, so a fast source waits for the
compressor instead of filling memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from types import TracebackType
from typing import Protocol

from snapshotter.build.chunk import CutChunk, Memory, Window

BATCH = 1 << 20
"""Raw bytes that one task takes: a chunk alone is too little work to pay for waking a thread."""


Encode = Callable[[bytes], CutChunk]
"""Called in threads."""

Take = Callable[[CutChunk], None]
"""Called on the thread that feeds the encoder, in the order of the chunks."""

Receiver = tuple[list[CutChunk], int]
"""What a chunk is appended to, and how many times."""


class Encoder(Window, Protocol):
    """What chunks are cut in, and what encodes them."""

    def add(self, length: int, run: list[CutChunk], times: int = 1) -> None:
        """Encode the next `length` bytes. By the next `flush` at the latest `run` has their `CutChunk`, `times` times."""
        ...

    def flush(self) -> None:
        """Wait until everything added has been dealt with."""
        ...


class ParallelEncoder:
    """Feeds chunks to `encode` in threads, and each result to `take` and to the list that its chunk was put for."""

    def __init__(self, encode: Encode, take: Take, chunk_max: int, workers: int | None = None) -> None:
        """`chunk_max` is the longest chunk in bytes; `workers` threads, by default one a core."""
        count = workers or os.cpu_count() or 1
        self._encode = encode
        self._take = take
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="encode")
        self._in_flight: deque[tuple[Future[list[CutChunk]], list[Receiver]]] = deque()
        self._most = 2 * count + 2
        self._batch: list[tuple[bytes, Receiver]] = []
        self._batch_bytes = 0
        self._memory = Memory(chunk_max)

    def room(self, kept: int) -> memoryview:
        """See `Window`."""
        return self._memory.room(kept)

    def add(self, length: int, run: list[CutChunk], times: int = 1) -> None:
        """See `Encoder`. Raises what `encode` or `take` raised."""
        self._batch.append((bytes(self._memory.take(length)), (run, times)))
        self._batch_bytes += length
        if self._batch_bytes >= BATCH:
            self._submit()

    def flush(self) -> None:
        """Wait until everything added has been taken. Raises what `encode` or `take` raised."""
        self._submit()
        while self._in_flight:
            self._collect()

    def _submit(self) -> None:
        if not self._batch:
            return
        raws = [raw for raw, _ in self._batch]
        receivers = [receiver for _, receiver in self._batch]
        self._batch, self._batch_bytes = [], 0
        while len(self._in_flight) >= self._most:
            self._collect()
        self._in_flight.append((self._pool.submit(self._encode_all, raws), receivers))

    def _encode_all(self, raws: list[bytes]) -> list[CutChunk]:
        return [self._encode(raw) for raw in raws]

    def _collect(self) -> None:
        future, receivers = self._in_flight.popleft()
        for chunk, (run, times) in zip(future.result(), receivers, strict=True):
            self._take(chunk)
            run.extend(repeat(chunk, times))

    def __enter__(self) -> ParallelEncoder:
        """Use it in a with statement, so that its threads end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the threads; what has not been started is dropped."""
        self._pool.shutdown(cancel_futures=True)
        self._in_flight.clear()
