"""Whether a metadata message keeps the rules of the format (docs/format.md): all of it is read, and every broken rule named.

Inodes are looked at one by one. What is kept: the chunks that files need (`chunktable`), a byte for each inode, and the message
once more, as it would be in canonical form.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from snapshotter.build.chunktable import ChunkTable
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.codec import RootfsMessage
from snapshotter.format.digest import Digest, to_text
from snapshotter.format.message import Room
from snapshotter.format.model import ROOT_INO, ChunkVerity, Inode, Kind
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import build

FINDINGS_MAX = 1000
"""Most findings of one kind that are kept; all are counted."""


@dataclass(slots=True)
class Findings:
    """Lines for a person: the first `FINDINGS_MAX` of them, and how many there were."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, line: str) -> None:
        """One more."""
        self.count += 1
        if len(self.lines) < FINDINGS_MAX:
            self.lines.append(line)


@dataclass(slots=True)
class Rules:
    """What was found. `chunks`: each chunk that files need, with its recorded fs-verity digest; `unrecorded`: those that have
    none, by name, with the end of what is taken of each in raw bytes, `FINDINGS_MAX` at most.

    An inode that a newer layer has is none any more.
    """

    chunks: ChunkTable
    errors: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)
    inodes: int = 0
    unrecorded: dict[tuple[Digest, bool], int] = field(default_factory=dict)

    def needs(self) -> Iterator[tuple[Digest, bool, int]]:
        """The chunks that files need: name, whether that is of compressed bytes, and the end of what is taken, in raw bytes."""
        yield from self.chunks.needs()
        for (digest, compressed), end in self.unrecorded.items():
            yield digest, compressed, end

    def end(self, digest: Digest, *, compressed: bool) -> int:
        """The end of what files take of a chunk of that name, in raw bytes; 0 if none does."""
        return self.chunks.end(digest, compressed=compressed) or self.unrecorded.get((digest, compressed), 0)


def check(message: bytes | mmap.mmap, room: Room | None = None) -> Rules:
    """Check a metadata message that `Rootfs.open` has accepted. Its canonical form is made in `room`.

    An error is what makes a reader fail or see something wrong; a note is what upstream's program is known to do, or what
    makes the bytes other ones than canonical.
    """
    reader = RootfsMessage(message)
    rootfs = Rootfs(reader)
    try:
        return _Check(message, reader, rootfs, room).run()
    finally:
        rootfs.close()


class _SharedListsError(Exception):
    """Inodes share lists, so that going through all of them may never end."""


def _words(inode: Inode) -> int:
    """How many words the canonical form has at least for what an inode lists."""
    names = sum(len(entry.name) for entry in inode.entries)
    attributes = sum(len(xattr.key) + len(xattr.value) for xattr in inode.xattrs)
    return 2 * len(inode.entries) + 9 * len(inode.chunks) + (names + attributes >> 3)


class _Check:
    def __init__(self, message: bytes | mmap.mmap, reader: RootfsMessage, rootfs: Rootfs, room: Room | None) -> None:
        self._message = message
        self._room = room
        self._reader = reader
        self._rootfs = rootfs
        self._found = Rules(ChunkTable())
        self._layers = reader.layers
        self._counts = [reader.inode_count(layer) for layer in range(self._layers)]
        self._found.inodes = sum(self._counts)
        self._xattrs_in_order = True
        # What inodes list takes at least a word an element, unless they share lists.
        self._elements_left = reader.words
        # Of the canonical form as much is made as the message has words: what is longer is another one.
        self._canonical_left = reader.words

    def run(self) -> Rules:
        found = self._found
        self._read_verity()
        # Everything passes by here on its way into the canonical form, with which the message is compared in the end.
        pairs = (ChunkVerity(digest, verity) for digest, verity in found.chunks)
        layers = map(self._inodes, range(self._layers))
        try:
            canonical = build(self._counts, layers, len(found.chunks), pairs, times=self._reader.has_times, room=self._room)
        except _SharedListsError:
            found.errors.add("its inodes list more than the message could hold: they share lists")
            return found
        same = self._canonical_left >= 0 and not found.errors.count and self._is_same(canonical.parts())
        del canonical
        self._check_tree()
        if not found.errors.count:
            if not same:
                found.notes.add("the message is not laid out in canonical form")
            elif not self._xattrs_in_order:
                found.notes.add("extended attributes are not in the order of their keys: not in canonical form")
        return found

    def _read_verity(self) -> None:
        found = self._found
        before = b""
        for row in range(self._reader.verity_count):
            try:
                pair = self._reader.verity_at(row)
            except CorruptError as error:
                found.errors.add(str(error))
                continue
            if before and before >= pair.digest:
                found.errors.add(f"the fs-verity digests are out of order at chunk {to_text(pair.digest)}")
            found.chunks.add(pair.digest, pair.verity)
            before = pair.digest

    def _inodes(self, layer: int) -> Iterator[Inode]:
        """The layer's inodes, checked; something else in the place of one that cannot be read."""
        before = -1
        for row in range(self._counts[layer]):
            try:
                inode = self._reader.inode_at(layer, row)
            except CorruptError as error:
                self._found.errors.add(str(error))
                inode = Inode(self._reader.ino_at(layer, row), Kind.UNKNOWN)
            else:
                self._elements_left -= len(inode.entries) + len(inode.chunks) + len(inode.xattrs)
                if self._elements_left < 0:
                    raise _SharedListsError
                self._check_inode(layer, inode)
            self._check_number(inode.ino, before)
            before = inode.ino
            self._canonical_left -= _words(inode)
            yield inode if self._canonical_left >= 0 else Inode(inode.ino, Kind.UNKNOWN)

    def _check_inode(self, layer: int, inode: Inode) -> None:
        found = self._found
        if inode.kind is Kind.UNKNOWN:
            found.errors.add(f"inode {inode.ino} is of no known type")
        for entry in inode.entries:
            # A name may lead to an inode of this layer or of an older one.
            if self._rootfs.find(entry.ino, layer) is None:
                found.errors.add(f"directory {inode.ino}: {entry.name!r} is inode {entry.ino}, which does not exist")
        if inode.chunks and not self._is_replaced(layer, inode.ino):
            for chunk in inode.chunks:
                end = chunk.offset + chunk.length
                if not found.chunks.take(chunk.digest, end, compressed=chunk.compressed):
                    self._add_unrecorded((chunk.digest, chunk.compressed), end)
        if len(inode.xattrs) > 1 and [xattr.key for xattr in inode.xattrs] != sorted(xattr.key for xattr in inode.xattrs):
            self._xattrs_in_order = False

    def _is_replaced(self, layer: int, ino: int) -> bool:
        """Whether a newer layer has an inode of that number."""
        if layer == 0:
            return False
        place = self._rootfs.find(ino)
        return place is not None and place[0] < layer

    def _add_unrecorded(self, name: tuple[Digest, bool], end: int) -> None:
        unrecorded = self._found.unrecorded
        if name not in unrecorded:
            self._found.errors.add(f"no fs-verity digest is recorded for chunk {to_text(name[0])}")
            if len(unrecorded) >= FINDINGS_MAX:
                return
        unrecorded[name] = max(unrecorded.get(name, 0), end)

    def _check_number(self, ino: int, before: int) -> None:
        found = self._found
        if ino < before:
            found.errors.add(f"inode {ino} stands behind inode {before}, so a reader may not find it")
        elif ino == before:
            several = f"several inodes are number {ino}: readers find one of them"
            # Upstream's builder does so over a base layer, to what were hard links; of a single layer nobody does.
            (found.notes if self._layers > 1 else found.errors).add(several)

    def _is_same(self, parts: Iterator[bytes | memoryview]) -> bool:
        message = self._message
        at = 0
        for part in parts:
            if message[at : at + len(part)] != part:
                return False
            at += len(part)
            self._reader.rest()
        return at == len(message)

    def _check_tree(self) -> None:
        """Every directory has one parent, so there is no cycle; every inode has a name."""
        found, rootfs = self._found, self._rootfs
        named = [bytearray(count) for count in self._counts]
        root = rootfs.find(ROOT_INO)
        if root is not None:
            named[root[0]][root[1]] = True
        pending = array("Q", (ROOT_INO,))
        while pending:
            directory = pending.pop()
            try:
                entries = rootfs.inode(directory).entries
            except CorruptError:
                continue  # named already
            for entry in entries:
                place = rootfs.find(entry.ino)
                if place is None:
                    continue
                layer, row = place
                try:
                    kind = rootfs.kind(entry.ino)
                except (NotFoundError, CorruptError):
                    continue
                if kind is Kind.DIR:
                    if named[layer][row]:
                        found.errors.add(f"directory {entry.ino} has more than one parent, one of them {directory}")
                        continue
                    pending.append(entry.ino)
                named[layer][row] = True
        rows = ((layer, row) for layer, marks in enumerate(named) for row, has in enumerate(marks) if not has)
        nameless = sum(self._is_nameless(layer, row) for layer, row in rows)
        if nameless:
            found.notes.add(f"{nameless} inodes have no name")

    def _is_nameless(self, layer: int, row: int) -> bool:
        """Whether the inode in `row`, which no name leads to, is one that a reader sees."""
        if self._rootfs.find(self._reader.ino_at(layer, row)) != (layer, row):
            return False
        if self._layers == 1:
            return True
        try:
            return self._reader.kind_at(layer, row) is not Kind.WHT
        except CorruptError:
            return True
