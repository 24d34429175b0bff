"""From where the bytes of a file lie (`tree.Piece`) to the bytes: which chunks are asked for together, and what is cut out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snapshotter.chunkstore.base import AtHand, ChunkRef, ChunkStore
from snapshotter.errors import CorruptError
from snapshotter.format.digest import to_text
from snapshotter.mount.tree import Piece

BATCH_CHUNKS = 32
"""Chunks asked for at once. A 1 MiB read of 64 KiB chunks takes 17; a hostile file could ask for a million of 16 MiB."""

LONG_CHUNK = 256 << 10
"""Bytes of a chunk beyond which only those that are read are taken from it, where all are in memory."""

_LONG_MAX = 2
"""Long chunks of which a read that is done at once takes parts: one that is not longer than they are has no more."""

Ask = Callable[[Sequence[ChunkRef]], list[bytes] | None]
"""How a store is asked for chunks: by `ChunkStore.get`, which answers or raises, or by a method of `AtHand`."""


def read_pieces(pieces: Sequence[Piece], store: ChunkStore) -> list[bytes | memoryview]:
    """The bytes that `pieces` name, as buffers in order; without a copy where they are few enough to keep whole chunks.

    Raises:
        CorruptError: a chunk is shorter than the metadata says.
        ChunkMissingError, SourceUnavailableError: see `ChunkStore.get`.
    """
    buffers = read_if_there(pieces, store.get)
    assert buffers is not None  # noqa: S101 - `get` answers or raises
    return buffers


def read_if_there(pieces: Sequence[Piece], ask: Ask) -> list[bytes | memoryview] | None:
    """As `read_pieces`, of what `ask` has; None where it has not all the chunks.

    Raises:
        CorruptError: as `read_pieces`.
    """
    if len(pieces) <= BATCH_CHUNKS:
        return _ask_for(pieces, ask)
    out = bytearray()
    for start in range(0, len(pieces), BATCH_CHUNKS):
        views = _ask_for(pieces[start : start + BATCH_CHUNKS], ask)
        if views is None:
            return None
        for view in views:
            out += view
    return [memoryview(out)]


def read_at_hand(pieces: Sequence[Piece], store: AtHand) -> list[bytes | memoryview] | None:
    """As `read_pieces`, of what `store` has at hand; None where that is not all.

    Raises:
        CorruptError: as `read_pieces`.
    """
    long = [piece.known > LONG_CHUNK for piece in pieces]
    if not any(long):
        return read_if_there(pieces, store.at_hand)
    if sum(long) > _LONG_MAX:
        return None
    buffers: list[bytes | memoryview] = []
    for piece, is_long in zip(pieces, long, strict=True):
        if is_long:
            part = store.part(piece.chunk, piece.offset, piece.length)
            found: list[bytes | memoryview] | None = None if part is None else [part]
        else:
            found = read_if_there([piece], store.at_hand)
        if found is None:
            return None
        buffers += found
    return buffers


def _ask_for(pieces: Sequence[Piece], ask: Ask) -> list[bytes | memoryview] | None:
    wanted = [piece.chunk for piece in pieces]
    if len(wanted) > 1:
        wanted = list(dict.fromkeys(wanted))
    found = ask(wanted)
    if found is None:
        return None
    if len(wanted) == len(pieces):
        return _cut(pieces, found)
    chunks = dict(zip(wanted, found, strict=True))
    return _cut(pieces, [chunks[piece.chunk] for piece in pieces])


def _cut(pieces: Sequence[Piece], chunks: Sequence[bytes]) -> list[bytes | memoryview]:
    buffers: list[bytes | memoryview] = []
    for piece, raw in zip(pieces, chunks, strict=True):
        if piece.offset + piece.length > len(raw):
            raise CorruptError(
                f"chunk {to_text(piece.chunk.digest)} has {len(raw)} bytes, the metadata asks for {piece.offset}+{piece.length}"
            )
        buffers.append(raw if piece.length == len(raw) else memoryview(raw)[piece.offset : piece.offset + piece.length])
    return buffers
