"""Builds what upstream's own program builds from the same tree, byte for byte, so that both have the same digests.

One stream of all files, no times, xattrs in the order in which the file system lists them, a descriptor for every chunk that
was cut. Where that program is wrong, equal bytes are wrong too, and there are images for which this cannot be helped: with
compression the fs-verity digest of a chunk that stays raw is that of its compressed form, and names that were hard links in
the image below and are none any more share a number (`report` is told). `layout.build_layout` makes neither mistake. What
makes that program fail, or depend on chance, is done right here: a name that comes back, mounts that share an inode number.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from snapshotter.build.chunk import UPSTREAM_CUTTING, CutChunk
from snapshotter.build.content import layer_from_directory
from snapshotter.build.encoder import ParallelEncoder
from snapshotter.build.entries import Node, inode, number
from snapshotter.build.image import Options
from snapshotter.build.inodelist import InodeList
from snapshotter.build.layout import BuiltLayout, LayoutChunks, chunk_descriptors, publish_layout, read_rootfs
from snapshotter.build.progress import Progress, Report, silent
from snapshotter.build.segments import SegmentFiles
from snapshotter.build.shelf import Shelf
from snapshotter.build.veritytable import VerityTable
from snapshotter.format.digest import Digest, Digests
from snapshotter.format.model import ROOT_INO, ChunkVerity, DirEntry, Inode, Kind, Xattr
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import build
from snapshotter.registry.base import NamingStore


def build_upstream(
    tree: str | bytes | Path,
    layout: NamingStore,
    tag: str,
    *,
    base: str | None = None,
    compress: bool = False,
    options: Options | None = None,
    report: Report = silent,
) -> BuiltLayout:
    """Build the directory `tree` into `layout` under `tag`, as a delta over the image with the tag `base` if one is named.

    Of `options` the number of workers counts. Raises what `layout.build_layout` raises.
    """
    chosen = options or Options()
    below = read_rootfs(layout, base, chosen.temporary) if base is not None else None
    chunks = _UpstreamChunks(layout, compress=compress)
    with ExitStack() as stack:
        shelf = stack.enter_context(closing(Shelf(chosen.temporary)))
        if below is not None:
            stack.callback(below.close)
        with ParallelEncoder(chunks.encode, chunks.take, UPSTREAM_CUTTING.maximum, chosen.workers) as encoder:
            root = layer_from_directory(tree, encoder, UPSTREAM_CUTTING, report, shelf, every_xattr=True)
        room = SegmentFiles(chosen.temporary)
        if below is None:
            numbering = number(root)
            inodes = (_inode(ino, node, numbering.entries(node)) for ino, node in numbering)
            digests = sorted(digest for digest, _ in chunks.verities())
            pairs = (ChunkVerity(digest, chunks.verity(digest)) for digest in digests)
            message = build([len(numbering)], [inodes], len(digests), pairs, times=False, room=room)
        else:
            new = stack.enter_context(closing(upstream_inodes(root, below, chosen.temporary)))
            layers = _over(below, new, os.fsdecode(tree), report)
            verity = VerityTable()
            for pair in below.verities():
                verity.put(pair.digest, pair.verity)
            for digest, recorded in chunks.verities():
                verity.put(digest, recorded)
            message = build(list(map(len, layers)), layers, len(verity), verity.pairs(), times=False, room=room)
    return publish_layout(layout, tag, message, chunk_descriptors(chunks.order(), chunks.size, compressed=compress))


def _over(below: Rootfs, new: InodeList, name: str, report: Report) -> list[Collection[Inode]]:
    """The metadata layers of the image `below` with those `new` inodes of the tree `name` over it."""
    layers: list[Collection[Inode]] = [*below.stored()]
    for ino in sorted({one for one, other in pairwise(new.numbers()) if one == other}):
        lost = f"several inodes are number {ino}, as upstream's program has it: readers find one of them"
        report(Progress("note", f"{name}: {lost}"))
    return layers if any(_same(new, layer) for layer in layers) else [new, *layers]


def upstream_inodes(root: Node, base: Rootfs, temporary: Path | None = None) -> InodeList:
    """The inodes of `root`, whose files are cut, over the image `base`, in their order. To be closed.

    All inodes are there. A name that the newest layer has keeps its number; a new number is counted before it is noticed that
    a name is a hard link. A name that is gone has a whiteout and an entry, before all other entries of its directory.
    """
    following = 1 + base.highest_number()
    numbers: dict[int, int] = {}  # of what may have several names, by identity
    found = InodeList(temporary)
    # The order of inodes that share a number: whiteouts, then directories, files and the rest, each as they were come by.
    come_by = 1
    pending: list[tuple[Node, int, int, int | None]] = [(root, ROOT_INO, _DIRECTORY, ROOT_INO)]
    while pending:
        directory, own, order, in_image = pending.pop()
        old = None if in_image is None else base.newest(in_image)
        names = directory.listed()
        present = {name for name, _ in names}
        before = old.entries if old is not None and old.kind is Kind.DIR else ()
        entries = []
        for entry in before:
            if entry.name not in present:
                found.add_whiteout(entry.ino)
                entries.append(DirEntry(entry.ino, entry.name))
        numbered = {entry.name: entry.ino for entry in reversed(before)}
        below: list[tuple[Node, int, int, int | None]] = []
        for name, node in names:
            earlier = numbered.get(name)
            if earlier is None or base.newest_kind(earlier) in (None, Kind.WHT):
                ino, earlier = following, None
                following += 1
            else:
                ino = earlier
            is_directory = node.kind is Kind.DIR
            is_new = True
            if is_directory or node.is_shared:
                is_new = id(node) not in numbers
                ino_of = numbers.setdefault(id(node), ino)
            else:
                ino_of = ino
            entries.append(DirEntry(ino_of, name))
            if not is_new:
                continue
            come_by += 1
            if is_directory:
                below.append((node, ino, _DIRECTORY + come_by, earlier))
            else:
                found.add(_inode(ino, node, ()), (_FILE if node.kind is Kind.FILE else _OTHER) + come_by)
        pending.extend(reversed(below))
        found.add(_inode(own, directory, entries), order)
    return found


_DIRECTORY, _FILE, _OTHER = 1 << 60, 2 << 60, 3 << 60


def _inode(ino: int, node: Node, entries: Sequence[DirEntry]) -> Inode:
    xattrs = [Xattr(key, value) for key, value in node.xattrs.items()]
    return replace(inode(ino, node, entries), look_below=False, xattrs=xattrs, mtime=0, mtime_nsec=0)


def _same(one: Collection[Inode], other: Collection[Inode]) -> bool:
    return len(one) == len(other) and all(map(_equal, one, other))


def _equal(one: Inode, other: Inode) -> bool:
    lists = [(tuple(found.entries), tuple(found.chunks), tuple(found.xattrs)) for found in (one, other)]
    bare = [replace(found, entries=(), chunks=(), xattrs=(), mtime=0, mtime_nsec=0) for found in (one, other)]
    return lists[0] == lists[1] and bare[0] == bare[1]


class _UpstreamChunks(LayoutChunks):
    """Stores chunks as `LayoutChunks` does, records upstream's fs-verity digests, and remembers every chunk that was cut."""

    def __init__(self, layout: NamingStore, *, compress: bool) -> None:
        super().__init__(layout, compress=compress)
        self._order = bytearray()

    def recorded(self, stored: bytes, encoded: bytes) -> bytes:
        """That of the encoded form, also where this is not what is stored."""
        return verity_digest(encoded)

    def take(self, chunk: CutChunk) -> None:
        """See `LayoutChunks`."""
        self._order += chunk.digest

    def order(self) -> Sequence[Digest]:
        """The blob of every chunk, repeats included."""
        return Digests(self._order)
