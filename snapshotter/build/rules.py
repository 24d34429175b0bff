"""Whether a metadata message keeps the rules of the format (docs/format.md): all of it is read, and every broken rule named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.codec import RootfsMessage, encode
from snapshotter.format.digest import Digest, to_text
from snapshotter.format.model import ROOT_INO, ChunkVerity, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs


@dataclass(slots=True)
class Rules:
    """What was found. `needs`: for every chunk (its name, and whether that is of compressed bytes) the end of what files take
    of it, in raw bytes; an inode that a newer layer has is none any more. `verity`: each chunk's recorded fs-verity digest.
    """

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    inodes: int = 0
    needs: dict[tuple[Digest, bool], int] = field(default_factory=dict)
    verity: dict[Digest, bytes] = field(default_factory=dict)


def check(message: bytes) -> Rules:
    """Check a metadata message that `Rootfs.open` has accepted.

    An error is what makes a reader fail or see something wrong; a note is what upstream's program is known to do, or what
    makes the bytes other ones than canonical.
    """
    found = Rules()
    reader = RootfsMessage(message)
    layers = [list(_inodes(reader, layer, found)) for layer in range(reader.layers)]
    _add_needs(layers, found)
    _check_numbers(layers, found)
    _check_entries(layers, found)
    _check_verity(reader, found)
    found.inodes = sum(map(len, layers))
    rootfs = Rootfs(reader)
    try:
        _check_tree(rootfs, found)
        if not found.errors:
            _check_canonical(message, layers, found)
    finally:
        rootfs.close()
    return found


def _inodes(reader: RootfsMessage, layer: int, found: Rules) -> Iterator[Inode]:
    for row in range(reader.inode_count(layer)):
        try:
            inode = reader.inode_at(layer, row)
        except CorruptError as error:
            found.errors.append(str(error))
            continue
        yield inode
        if inode.kind is Kind.UNKNOWN:
            found.errors.append(f"inode {inode.ino} is of no known type")


def _add_needs(layers: list[list[Inode]], found: Rules) -> None:
    newer: set[int] = set()
    for inodes in layers:
        for inode in inodes:
            for chunk in inode.chunks if inode.ino not in newer else ():
                name = (chunk.digest, chunk.compressed)
                found.needs[name] = max(found.needs.get(name, 0), chunk.offset + chunk.length)
        newer |= {inode.ino for inode in inodes}


def _check_numbers(layers: list[list[Inode]], found: Rules) -> None:
    for inodes in layers:
        for one, other in pairwise(inodes):
            if other.ino < one.ino:
                found.errors.append(f"inode {other.ino} stands behind inode {one.ino}, so a reader may not find it")
            elif other.ino == one.ino:
                several = f"several inodes are number {one.ino}: readers find one of them"
                # Upstream's builder does so over a base layer, to what were hard links; of a single layer nobody does.
                (found.notes if len(layers) > 1 else found.errors).append(several)


def _check_entries(layers: list[list[Inode]], found: Rules) -> None:
    numbers: set[int] = set()
    for inodes in reversed(layers):
        numbers |= {inode.ino for inode in inodes}
        for inode in inodes:
            for entry in inode.entries:
                if entry.ino not in numbers:
                    found.errors.append(f"directory {inode.ino}: {entry.name!r} is inode {entry.ino}, which does not exist")


def _check_verity(reader: RootfsMessage, found: Rules) -> None:
    before: ChunkVerity | None = None
    for row in range(reader.verity_count):
        try:
            pair = reader.verity_at(row)
        except CorruptError as error:
            found.errors.append(str(error))
            continue
        if before is not None and before.digest >= pair.digest:
            found.errors.append(f"the fs-verity digests are out of order at chunk {to_text(pair.digest)}")
        found.verity[pair.digest] = pair.verity
        before = pair
    for digest in {digest for digest, _ in found.needs} - found.verity.keys():
        found.errors.append(f"no fs-verity digest is recorded for chunk {to_text(digest)}")


def _check_tree(rootfs: Rootfs, found: Rules) -> None:
    """Every directory has one parent, so there is no cycle; every inode has a name."""
    named = {ROOT_INO}
    pending = [ROOT_INO]
    while pending:
        directory = pending.pop()
        try:
            entries = rootfs.inode(directory).entries
        except CorruptError:
            continue  # named already
        for entry in entries:
            try:
                kind = rootfs.kind(entry.ino)
            except (NotFoundError, CorruptError):
                continue
            if kind is Kind.DIR:
                if entry.ino in named:
                    found.errors.append(f"directory {entry.ino} has more than one parent, one of them {directory}")
                    continue
                pending.append(entry.ino)
            named.add(entry.ino)
    nameless = sum(1 for number in rootfs.numbers() if number not in named)
    if nameless:
        found.notes.append(f"{nameless} inodes have no name")


def _check_canonical(message: bytes, layers: list[list[Inode]], found: Rules) -> None:
    verity = [ChunkVerity(digest, value) for digest, value in found.verity.items()]
    content = RootfsContent(layers, verity)
    if message not in (encode(content), encode(content, times=False)):
        found.notes.append("the message is not laid out in canonical form")
        return
    for inodes in layers:
        for inode in inodes:
            if [xattr.key for xattr in inode.xattrs] != sorted(xattr.key for xattr in inode.xattrs):
                found.notes.append("extended attributes are not in the order of their keys: not in canonical form")
                return
