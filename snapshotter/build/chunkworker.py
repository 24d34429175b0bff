"""A process that encodes chunks for a build: ``python -m snapshotter.build.chunkworker``, started by `spoolencoder`.

Numbers of slots come by standard input, and go back by standard output when the slot is done; both are pipes that several such
processes share. It ends when its standard input does.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys

from snapshotter.build.slots import BatchEncoder, Slots

NUMBER_BYTES = 4
"""A slot's number, little-endian. So few bytes are read and written as one, whoever else uses the pipe."""


_BEHIND = 5
"""How much nicer than the build: what feeds these processes must not wait for a processor that they hold, or all run dry."""


def main(memory: int, count: int, chunk_max: int, level: int, known: int, known_bytes: int) -> None:
    """Work until the input ends: on `count` slots in the memory of descriptor `memory`, as `Slots` says.

    `known` is a file of `known_bytes` with the sorted names of chunks that need not be encoded.
    """
    slots = Slots(memory, count, chunk_max)
    names = mmap.mmap(known, known_bytes, prot=mmap.PROT_READ) if known_bytes else b""
    encoder = BatchEncoder(level, names)
    while number := os.read(0, NUMBER_BYTES):
        slots.slot(int.from_bytes(number, "little")).encode(encoder)
        os.write(1, number)


if __name__ == "__main__":
    # Who interrupts the build's process group means the build, which then ends this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_BEHIND)
    main(*map(int, sys.argv[1:]))
