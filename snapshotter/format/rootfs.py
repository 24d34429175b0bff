"""Looks things up in a rootfs metadata message, by inode number and by name, without parsing it first.

A message with several metadata layers (upstream's deltas, newest first) is resolved here: an inode is taken from the newest
layer that has its number, a whiteout there means that it does not exist, and a directory that says `look_below` also shows
the names of the layers below it. A message with one layer shows its whiteouts: it is a layer of an image, and overlayfs
resolves them.
"""

from __future__ import annotations

import heapq
import mmap
import os
import threading
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import lt
from pathlib import Path

from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.codec import InodeStat, RootfsMessage
from snapshotter.format.digest import Digest
from snapshotter.format.filechunks import FILE_MAX, Chunk, FileChunks
from snapshotter.format.folded import FILED_MIN, Filed, FoldedReader, Unfolded
from snapshotter.format.model import ROOT_INO, ChunkVerity, DirEntry, Inode, Kind
from snapshotter.format.names import Names
from snapshotter.format.rows import RowRuns, StoredInodes

BLOCK_SIZE = 4096
"""The unit of `Survey.blocks` in bytes."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a rootfs only by looking at all its inodes.

    `inodes`: how many exist. `blocks`: of `BLOCK_SIZE` that their files take, each rounded up. `attributed`: those that have
    an extended attribute. `opaque`: directories but the root that do not look below. `names`: how many directory entries name
    an inode, for those that have more than one. `subdirectories`: how many of a directory's entries name directories, where
    there are any. `parents`: which directories name an inode. Inodes that cannot be read add only to `inodes`.
    """

    inodes: int
    blocks: int
    attributed: frozenset[int]
    opaque: frozenset[int]
    names: Mapping[int, int]
    subdirectories: Mapping[int, int]
    parents: Names = field(default_factory=Names, compare=False)


class Rootfs:
    """One image's or layer's inodes. Safe to use from several threads; opening one costs microseconds."""

    def __init__(self, message: RootfsMessage) -> None:
        """From an opened message; `open` is the usual way in."""
        self._message = message
        self._survey: Survey | CorruptError | None = None
        self._survey_lock = threading.Lock()
        self._rows: list[RowRuns] = []
        self._sizes = array("Q")
        if self.find(ROOT_INO) is None or self.kind(ROOT_INO) is not Kind.DIR:
            raise CorruptError("rootfs metadata: inode 1, the root, is missing or is no directory")

    @classmethod
    def open(cls, data: bytes | mmap.mmap) -> Rootfs:
        """The message in `data`, which must stay as it is until `close`.

        Raises:
            CorruptError: it is no rootfs metadata, of another version, or without a root directory.
        """
        return cls(RootfsMessage(data))

    @classmethod
    def filed(cls, unfolded: Unfolded, descriptor: int, size: int) -> Rootfs:
        """The message of `size` bytes in the file `descriptor`, which is its own to close. All of it stays there: see `folded`.

        Raises what `open` raises, and closes the file then.
        """
        try:
            reader = FoldedReader(Filed(descriptor, size), unfolded, descriptor, 0)
            return cls(RootfsMessage(reader))
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def of_file(cls, path: Path) -> Rootfs:
        """The message in the file `path`: in memory, or, a long one, where it is (`filed`).

        Raises:
            OSError: it cannot be read. And what `open` raises.
        """
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return cls.filed(Unfolded(), os.dup(file.fileno()), size) if size > FILED_MIN else cls.open(file.read())

    def fold(self, unfolded: Unfolded, descriptor: int) -> None:
        """Let go of the data: from now on it is kept in a third of the memory. See `RootfsMessage.fold`."""
        self._message.fold(unfolded, descriptor)

    def close(self) -> None:
        """Let go of the data. Reading afterwards is a programming error."""
        self._message.close()

    @property
    def layer_count(self) -> int:
        """How many metadata layers the message has: more than one only in upstream's delta images."""
        return self._message.layers

    @property
    def inode_count(self) -> int:
        """How many inodes all layers list together."""
        return sum(self._message.inode_count(layer) for layer in range(self._message.layers))

    def kind(self, ino: int) -> Kind:
        """The type of inode `ino`.

        Raises:
            NotFoundError: there is no such inode.
        """
        return self._message.kind_at(*self._place(ino))

    def stat(self, ino: int) -> InodeStat:
        """What lstat(2) shows of inode `ino` by itself: at a fraction of what the whole inode costs.

        Raises:
            NotFoundError: as in `inode`.
            CorruptError: it breaks a rule of the format that concerns what is shown.
        """
        layer, row = self._place(ino)
        # Of a message with one layer the survey has kept how long its files are.
        return self._message.stat_at(layer, row, self._sizes[row] if self._sizes else 0)

    def inode(self, ino: int) -> Inode:
        """Inode `ino`; a directory's entries are those that can be seen, in the order of their bytes.

        Raises:
            NotFoundError: there is no such inode, or a newer layer has a whiteout for it.
            CorruptError: it breaks a rule of the format.
        """
        layer, row = self._place(ino)
        inode = self._message.inode_at(layer, row)
        if inode.kind is not Kind.DIR:
            return inode
        if self._message.layers == 1:
            names = [entry.name for entry in inode.entries]
            if all(map(lt, names, islice(names, 1, None))):
                return inode
        entries = {entry.name: entry for entry in inode.entries}
        if self._message.layers > 1:
            self._add_from_below(ino, layer, inode, entries)
            entries = {name: entry for name, entry in entries.items() if not self._hidden(entry.ino)}
        return replace(inode, entries=[entries[name] for name in sorted(entries)])

    def chunks(self, ino: int) -> Chunk | FileChunks | None:
        """What file `ino` is made of, often a single chunk; None if it is no regular file. A fraction of what `inode` costs.

        Raises:
            NotFoundError, CorruptError: as in `inode`.
        """
        return self._message.chunks_at(*self._place(ino))

    def lookup(self, ino: int, name: bytes) -> int | None:
        """The number that `name` has in directory `ino`, None if it has none.

        Raises:
            NotFoundError: there is no such inode.
            CorruptError: it is no directory, or breaks a rule of the format.
        """
        inode = self.inode(ino)
        if inode.kind is not Kind.DIR:
            raise CorruptError(f"inode {ino} is no directory")
        return next((entry.ino for entry in inode.entries if entry.name == name), None)

    def numbers(self) -> Iterator[int]:
        """The numbers of all inodes that exist, ascending."""
        if self._message.layers == 1:
            yield from (self._message.ino_at(0, row) for row in range(self._message.inode_count(0)))
            return
        # Of several with one number the newest comes first. A list that is not sorted only loses inodes.
        last = -1
        for ino, _, kind in heapq.merge(*map(self._numbers_in, range(self._message.layers))):
            if ino > last:
                last = ino
                if kind is not Kind.WHT:
                    yield ino

    def _numbers_in(self, layer: int) -> Iterator[tuple[int, int, Kind]]:
        return ((ino, layer, kind) for ino, kind in self._message.numbers(layer))

    def highest_number(self) -> int:
        """The highest number that any layer has, be it a whiteout's."""
        return max(ino for layer in range(self._message.layers) for ino, _ in self._message.numbers(layer))

    def newest(self, ino: int) -> Inode | None:
        """Inode `ino` as the newest layer stores it that has one, be it a whiteout; of several the first.

        Raises:
            CorruptError: it breaks a rule of the format.
        """
        place = self._first(ino)
        return None if place is None else self._message.inode_at(*place)

    def newest_kind(self, ino: int) -> Kind | None:
        """The type of what `newest` gives."""
        place = self._first(ino)
        return None if place is None else self._message.kind_at(*place)

    def _first(self, ino: int) -> tuple[int, int] | None:
        place = self.find(ino)
        if place is None:
            return None
        layer, row = place
        while row and self._message.ino_at(layer, row - 1) == ino:
            row -= 1
        return layer, row

    def first_entries(self) -> Iterator[tuple[int, int]]:
        """The number of the first entry of each directory that has one, and the directory's own; nothing where several layers
        may each have some of a directory. Breaks no rule, whatever the metadata say."""
        return self._message.first_entries(0) if self._message.layers == 1 else iter(())

    def inodes(self) -> Iterator[Inode]:
        """All inodes that exist, by number."""
        return map(self.inode, self.numbers())

    def stored(self) -> list[StoredInodes]:
        """The inodes of every layer, newest first, as they are stored: nothing is resolved, whiteouts are there."""
        return [StoredInodes(self._message, layer) for layer in range(self._message.layers)]

    def link_count(self, ino: int) -> int:
        """``st_nlink`` of inode `ino`: its names, or for a directory two and its subdirectories. Found by the `survey`.

        Raises:
            NotFoundError: there is no such inode.
        """
        if self.kind(ino) is Kind.DIR:
            return 2 + self.survey().subdirectories.get(ino, 0)
        return self.survey().names.get(ino, 1)

    def name_count(self, ino: int) -> int:
        """How many directory entries name inode `ino`; 1 where there are none. More than one is an error for a directory."""
        return self.survey().names.get(ino, 1)

    def has_xattrs(self) -> bool:
        """Whether any inode has an extended attribute; found by the `survey`."""
        return bool(self.survey().attributed)

    def survey(self) -> Survey:
        """What a look at all inodes tells, made once, when it is first asked for: about 3 µs an inode.

        Raises:
            CorruptError: directories share their lists of entries, which would make the work quadratic.
        """
        survey = self._survey
        if survey is None:
            with self._survey_lock:
                if self._survey is None:
                    try:
                        self._survey = self._look_at_all()
                    except CorruptError as error:
                        self._survey = error
                survey = self._survey
        if isinstance(survey, CorruptError):
            raise CorruptError(str(survey))
        return survey

    def verity(self, digest: Digest) -> bytes | None:
        """The fs-verity digest of the chunk named `digest`, None if the message has none."""
        low, high = 0, self._message.verity_count
        while low < high:
            middle = (low + high) // 2
            pair = self._message.verity_at(middle)
            if pair.digest == digest:
                return pair.verity
            if pair.digest < digest:
                low = middle + 1
            else:
                high = middle
        return None

    def verities(self) -> Iterator[ChunkVerity]:
        """The chunks of the message and their fs-verity digests, in the order of the chunks' digests."""
        return map(self._message.verity_at, range(self._message.verity_count))

    def _place(self, ino: int) -> tuple[int, int]:
        if len(self._rows) == 1:
            row = self._rows[0].find(ino)
            if row is not None:
                return 0, row
        place = self.find(ino)
        if place is None or (self._message.layers > 1 and self._message.kind_at(*place) is Kind.WHT):
            raise NotFoundError(f"inode {ino} does not exist")
        return place

    def find(self, ino: int, first_layer: int = 0) -> tuple[int, int] | None:
        """Layer and row of inode `ino`, of the newest layer from `first_layer` on that lists it, be it a whiteout."""
        for layer in range(first_layer, self._message.layers):
            row = self._find_in(layer, ino)
            if row is not None:
                return layer, row
        return None

    def _find_in(self, layer: int, ino: int) -> int | None:
        if self._rows:
            return self._rows[layer].find(ino)
        # Numbers begin at 1 and have few gaps, so that inode n is in row n - 1 or a little before it: search backwards from
        # there in growing steps, then bisect the last one. A list that is not sorted only loses inodes.
        high = min(ino, self._message.inode_count(layer))
        row, step = high - 1, 1
        while row >= 0:
            number = self._message.ino_at(layer, row)
            if number == ino:
                return row
            if number < ino:
                break
            high, row, step = row, row - step, step * 2
        low = max(row, -1) + 1
        while low < high:
            middle = (low + high) // 2
            number = self._message.ino_at(layer, middle)
            if number == ino:
                return middle
            if number < ino:
                low = middle + 1
            else:
                high = middle
        return None

    def _hidden(self, ino: int) -> bool:
        place = self.find(ino)
        return place is None or self._message.kind_at(*place) is Kind.WHT

    def _add_from_below(self, ino: int, layer: int, inode: Inode, entries: dict[bytes, DirEntry]) -> None:
        while inode.look_below:
            place = self.find(ino, layer + 1)
            if place is None:
                return
            layer, row = place
            inode = self._message.inode_at(layer, row)
            for entry in inode.entries:
                entries.setdefault(entry.name, entry)

    def _look_at_all(self) -> Survey:
        inodes = blocks = 0
        attributed: set[int] = set()
        opaque: set[int] = set()
        directories = array("Q")
        names = Names()
        rows = []
        sizes = array("Q")
        for layer in range(self._message.layers):
            numbers = array("Q")
            for found in self._message.scan(layer):
                ino = found.ino
                numbers.append(ino)
                inodes += 1
                sizes.append(found.size if found.size <= FILE_MAX else 0)
                if found.kind is Kind.FILE:
                    if found.size <= FILE_MAX:
                        blocks += -(-found.size // BLOCK_SIZE)
                elif found.kind is Kind.DIR:
                    directories.append(ino)
                    if self._message.layers == 1:
                        names.add(ino, found.links)
                    if found.opaque and ino != ROOT_INO:
                        opaque.add(ino)
                if found.has_xattrs:
                    attributed.add(ino)
            rows.append(RowRuns(numbers))
        if self._message.layers > 1:
            inodes, blocks, directories, names = self._resolved()
        if self._message.layers == 1:
            self._sizes = sizes
        if all(each.ascending for each in rows):
            self._rows = rows
        seen = (frozenset(attributed), frozenset(opaque))
        return Survey(inodes, blocks, *seen, names.several(), names.counts(directories), names)

    def _resolved(self) -> tuple[int, int, array[int], Names]:
        """Inodes, blocks, directories and what those name, of several layers, of which newer ones hide parts of older ones."""
        inodes = blocks = 0
        directories = array("Q")
        names = Names()
        # An entry takes more than a word, unless directories share their lists, which could make this quadratic.
        left = self._message.words
        for ino in self.numbers():
            inodes += 1
            try:
                inode = self.inode(ino)
            except (CorruptError, NotFoundError):
                continue
            if inode.kind is Kind.FILE:
                blocks += -(-inode.size // BLOCK_SIZE)
            elif inode.kind is Kind.DIR:
                left -= len(inode.entries)
                if left < 0:
                    raise CorruptError("rootfs metadata: its directories have more entries than inodes could account for")
                directories.append(ino)
                names.add(ino, [entry.ino for entry in inode.entries])
        return inodes, blocks, directories, names
