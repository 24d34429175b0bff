"""Writes packs in processes of their own.

A thread would wait for the interpreter's lock after every megabyte that it reads, hashes or writes, 5 ms each time as long as
another one makes the metadata, which is all Python: packs stood still until that was done.
"""

from __future__ import annotations

import os
import subprocess
import sys
from array import array

from snapshotter.build.pack import PackLayout
from snapshotter.build.packworker import ANSWER, Pieces, UnreadableError, put_together
from snapshotter.errors import UnavailableError
from snapshotter.format.digest import Digest
from snapshotter.format.pack import HEADER

ALONE_MIN = 16 << 20
"""Bytes of a pack from which on it is worth a process, which takes 40 ms to start."""


def write_pack(pack: PackLayout, source: int, target: int) -> Digest:
    """Write `pack` to the descriptor `target`, the chunks from the descriptor `source` that it was laid out for; its digest.

    Raises:
        OSError: it cannot be written. UnavailableError: the source cannot be read, the process not be started, or it has ended.
    """
    pieces = _pieces(pack)
    try:
        return put_together(pieces, source, target) if pack.size < ALONE_MIN else _elsewhere(pieces, source, target)
    except UnreadableError as error:
        raise UnavailableError(f"temporary data cannot be read: {error}") from None


def _elsewhere(pieces: Pieces, source: int, target: int) -> Digest:
    command = [sys.executable, "-P", "-m", "snapshotter.build.packworker", str(source), str(target)]
    try:
        done = subprocess.run(command, input=pieces.to_bytes(), stdout=subprocess.PIPE, pass_fds=(source, target), check=False)
    except OSError as error:
        raise UnavailableError(f"no process can be started to write a pack: {error.strerror}") from error
    if done.returncode or len(done.stdout) != ANSWER.size:
        raise UnavailableError(f"a process that writes a pack has ended, with status {done.returncode}")
    number, digest = ANSWER.unpack(done.stdout)
    if number < 0:
        raise UnreadableError(-number)
    if number:
        raise OSError(number, os.strerror(number))
    return Digest(digest)


def _pieces(pack: PackLayout) -> Pieces:
    runs = array("Q")
    ends = [*pack.starts[1:], pack.index_offset]
    for start, end, source in zip(pack.starts, ends, pack.sources, strict=True):
        runs.extend((source, end - start))
    return Pieces(HEADER, runs, pack.end)
