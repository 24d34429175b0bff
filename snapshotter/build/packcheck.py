"""Checks the chunks of one pack, read once from its first byte to its last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from snapshotter.build.chunktable import ChunkTable
from snapshotter.build.rules import FINDINGS_MAX
from snapshotter.errors import CorruptError
from snapshotter.format.compression import Codec, decode_chunk, decode_group
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.pack import PackEntry, PackIndex
from snapshotter.format.verity import verity_digest
from snapshotter.registry.base import Descriptor, ImageStore

_RANGE = 4 << 20


@dataclass(slots=True)
class BadChunks:
    """What is wrong with chunks, `FINDINGS_MAX` of them; `more` counts the others."""

    problems: dict[Digest, str] = field(default_factory=dict)
    more: int = 0

    def add(self, digest: Digest, problem: str) -> None:
        """Something about one chunk, in place of what was said of it before."""
        if digest in self.problems or len(self.problems) < FINDINGS_MAX:
            self.problems[digest] = problem
        else:
            self.more += 1


def check_chunks(stream: WholeBlob, index: PackIndex, tables: Sequence[ChunkTable], bad: BadChunks) -> int:
    """Whether each chunk of a pack decodes, is what its name says, and has the fs-verity digest that `tables` record, if any.

    Returns how many chunks were looked at. Raises what `WholeBlob.take` raises.
    """
    at = count = 0
    for (offset, length), entries in index.by_place():
        if offset < at:
            for entry in entries:
                bad.add(entry.digest, "overlaps another chunk")
            continue
        stream.take(offset - at)
        stored = stream.take(length)
        at = offset + length
        for entry, raw in _decoded(entries, stored):
            count += 1
            if isinstance(raw, CorruptError):
                bad.add(entry.digest, f"does not decode: {raw}")
            elif sha256(raw) != entry.digest:
                bad.add(entry.digest, f"holds something else: its bytes have the digest {to_text(sha256(raw))}")
            elif _recorded(tables, entry.digest) not in (None, verity_digest(raw)):
                bad.add(entry.digest, "has another fs-verity digest than the metadata records")
    return count


def _recorded(tables: Sequence[ChunkTable], digest: Digest) -> bytes | None:
    return next((verity for table in tables if (verity := table.verity(digest)) is not None), None)


def _decoded(entries: Sequence[PackEntry], stored: bytes) -> Iterator[tuple[PackEntry, bytes | CorruptError]]:
    """The raw bytes of the chunks that are stored in one place: one chunk, or a group."""
    group: bytes | CorruptError | None = None
    for entry in entries:
        try:
            if entry.codec is not Codec.GROUP:
                yield entry, decode_chunk(entry.codec, stored, entry.raw_length)
                continue
            if group is None:
                group = decode_group(stored)
        except CorruptError as error:
            if entry.codec is not Codec.GROUP:
                yield entry, error
                continue
            group = error
        yield entry, group if isinstance(group, CorruptError) else group[entry.within : entry.within + entry.raw_length]


class WholeBlob:
    """A blob from its first byte to its last, unverified, so that a wrong one can be looked into; and its digest."""

    def __init__(self, store: ImageStore, blob: Descriptor, count: Callable[[int], None]) -> None:
        self._store = store
        self._blob = blob
        self._count = count
        self._at = 0
        self._held = b""
        self._hash = hashlib.sha256()

    def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises what `ImageStore.read_range` raises."""
        while len(self._held) < size:
            length = min(max(_RANGE, size - len(self._held)), self._blob.size - self._at)
            piece = self._store.read_range(self._blob.digest, self._at, length)
            self._at += length
            self._hash.update(piece)
            self._count(length)
            self._held += piece
        data, self._held = self._held[:size], self._held[size:]
        return data

    def digest(self) -> Digest:
        """That of all bytes; what was not taken is read now."""
        self._held = b""
        while self._at < self._blob.size:
            self.take(min(_RANGE, self._blob.size - self._at))
        return Digest(self._hash.digest())
