"""A tiny builder for the tests of mounts: a directory becomes a metadata file and a directory of chunks. And their store.

It is written against the format alone, so that the engines are not tested through the real builder's eyes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from snapshotter.chunkstore.base import ChunkMissingError, ChunkRef
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import DirEntry, FileChunk, Inode, Kind, RootfsContent, Xattr
from snapshotter.format.writer import encode

OPAQUE = "trusted.overlay.opaque"
PIECE = 40_000
"""Length of a large file's chunks: no multiple of a page, so that reads meet borders at odd places."""

_KINDS = {
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHR,
    stat.S_IFDIR: Kind.DIR,
    stat.S_IFBLK: Kind.BLK,
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.LNK,
    stat.S_IFSOCK: Kind.SOCK,
}


class Builder:
    """Collects inodes and chunks. Small files share one chunk per directory."""

    def __init__(self, piece: int = PIECE) -> None:
        """`piece`: length of a large file's chunks."""
        self._piece = piece
        self.inodes: dict[int, Inode] = {}
        self.chunks: dict[Digest, bytes] = {}
        self._numbers: dict[tuple[int, int], int] = {}

    def add_tree(self, source: Path) -> None:
        """The tree in `source`; overlayfs' whiteouts and opaque directories there become the format's."""
        self._add(os.fsencode(source))

    def content(self) -> RootfsContent:
        """What was collected."""
        return RootfsContent([[self.inodes[ino] for ino in sorted(self.inodes)]])

    def write(self, image: Path) -> Path:
        """Write ``metadata`` and ``chunks/`` into the new directory `image`."""
        (image / "chunks").mkdir(parents=True)
        (image / "metadata").write_bytes(encode(self.content()))
        for digest, raw in self.chunks.items():
            (image / "chunks" / digest.hex()).write_bytes(raw)
        return image

    def _add(self, path: bytes) -> int:
        status = os.lstat(path)
        key = (status.st_dev, status.st_ino)
        if key in self._numbers:
            return self._numbers[key]
        ino = self._numbers[key] = len(self._numbers) + 1
        inode = _inode(ino, path, status)
        if inode.kind is Kind.DIR:
            names = sorted(os.listdir(path))
            shared = b"".join(_small(os.path.join(path, name)) for name in names)
            if shared:
                self.chunks[sha256(shared)] = shared
            offset = 0
            entries = []
            for name in names:
                below = os.path.join(path, name)
                child = self._add(below)
                entries.append(DirEntry(child, name))
                data = _small(below)
                if data:
                    piece = FileChunk(sha256(shared), offset, len(data))
                    self.inodes[child] = replace(self.inodes[child], chunks=[piece])
                    offset += len(data)
            inode = replace(inode, entries=entries)
        elif inode.kind is Kind.FILE and status.st_size >= PIECE:
            inode = replace(inode, chunks=self._cut(Path(os.fsdecode(path)).read_bytes()))
        self.inodes[ino] = inode
        return ino

    def _cut(self, data: bytes) -> Sequence[FileChunk]:
        pieces = [data[at : at + self._piece] for at in range(0, len(data), self._piece)]
        self.chunks.update((sha256(piece), piece) for piece in pieces)
        return [FileChunk(sha256(piece), 0, len(piece)) for piece in pieces]


def _small(path: bytes) -> bytes:
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size >= PIECE:
        return b""
    with open(path, "rb") as file:
        return file.read()


def _inode(ino: int, path: bytes, status: os.stat_result) -> Inode:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    if kind is Kind.CHR and device == (0, 0):
        kind = Kind.WHT
    keys = sorted(os.listxattr(path, follow_symlinks=False))
    return Inode(
        ino=ino,
        kind=kind,
        permissions=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=status.st_mtime_ns // 10**9,
        mtime_nsec=status.st_mtime_ns % 10**9,
        device=device if kind in (Kind.CHR, Kind.BLK) else (0, 0),
        look_below=kind is Kind.DIR and OPAQUE not in keys,
        xattrs=[Xattr(os.fsencode(key), os.getxattr(path, key, follow_symlinks=False)) for key in keys if key != OPAQUE],
        target=os.readlink(path) if kind is Kind.LNK else None,
    )


class DirectoryStore:
    """The chunk store over a directory of chunks.

    Beside a chunk there may be a FIFO ``<digest>.wait``: then the chunk is not on this machine, and asking for it waits until
    somebody has opened and closed the FIFO for writing. So a test can hold a read where it wants it, without sleeping.
    """

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._directory = directory

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        """The chunks, unverified."""
        return [self._get(ref.digest) for ref in wanted]

    def has(self, digest: Digest) -> bool:
        """Whether nothing has to be waited for."""
        return (self._directory / digest.hex()).exists() and not self._gate(digest).exists()

    def close(self) -> None:
        """Nothing to do."""

    def _gate(self, digest: Digest) -> Path:
        return self._directory / f"{digest.hex()}.wait"

    def _get(self, digest: Digest) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            self._gate(digest).read_bytes()
        try:
            return (self._directory / digest.hex()).read_bytes()
        except FileNotFoundError:
            raise ChunkMissingError(f"{self.name} lacks {digest.hex()}", [digest]) from None
