"""Writes a rootfs out into a directory.

Nothing outside the directory is touched, whatever the metadata says and whoever else works in it: every operation is
relative to an open directory, and none follows a symlink. What an unprivileged user may not set is left out and reported.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from snapshotter.chunkstore.base import ChunkRef, ChunkStore
from snapshotter.errors import AlreadyExistsError, CorruptError, FailedPreconditionError, PuzzlefsError
from snapshotter.format.digest import Digest, to_text
from snapshotter.format.model import ROOT_INO, FileChunk, Inode, Kind
from snapshotter.format.rootfs import Rootfs

_FORMATS = {Kind.FIFO: stat.S_IFIFO, Kind.CHR: stat.S_IFCHR, Kind.BLK: stat.S_IFBLK, Kind.SOCK: stat.S_IFSOCK}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DENIED = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL)
_BATCH = 8
"""Chunks that are asked for at once."""
_HELD = 8
"""Chunks that are held for the next files: small ones share chunks."""
_PROBLEMS_LISTED = 100

_Place = tuple[bytes, ...]


@dataclass(slots=True)
class Extracted:
    """What was written: inodes, bytes of files, and what could not be set (the first hundred, and how many there were)."""

    inodes: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    def problem(self, place: _Place, what: str, error: OSError) -> None:
        """Note that `what` of the entry at `place` was not set."""
        self.problem_count += 1
        if len(self.problems) < _PROBLEMS_LISTED:
            self.problems.append(f"/{_text(place)}: {what}: {error.strerror}")


def extract(rootfs: Rootfs, store: ChunkStore, directory: str | bytes | os.PathLike[str]) -> Extracted:
    """Write `rootfs` into `directory`, which must be empty or not exist; it gets the root's owner, mode and times.

    If that fails, or is interrupted, the directory is empty again, or gone if it was not there.

    Raises:
        AlreadyExistsError: `directory` is not empty.
        FailedPreconditionError: it cannot be written.
        CorruptError: the metadata breaks a rule. And what `store` raises.
    """
    path = os.fsencode(directory)
    existed = os.path.lexists(path)
    try:
        os.makedirs(path, exist_ok=True)
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPreconditionError(f"cannot extract into {os.fsdecode(path)}: {error.strerror}") from None
    try:
        if os.listdir(top):
            raise AlreadyExistsError(f"{os.fsdecode(path)} is not empty; extract into a directory of its own")
        try:
            return _Extraction(rootfs, _Chunks(store), top, os.fsdecode(path)).run()
        except BaseException:
            _clear(top)
            if not existed:
                with suppress(OSError):
                    os.rmdir(path)
            raise
    finally:
        os.close(top)


def _clear(top: int) -> None:
    """Delete what was written so far, so that nothing takes it for the image, and the next attempt finds room."""
    for name in os.listdir(top):
        try:
            os.unlink(name, dir_fd=top)
        except IsADirectoryError:
            shutil.rmtree(name, ignore_errors=True, dir_fd=top)
        except OSError:
            continue


class _Extraction:
    def __init__(self, rootfs: Rootfs, chunks: _Chunks, top: int, name: str) -> None:
        self._rootfs = rootfs
        self._chunks = chunks
        self._top = top
        self._name = name
        self._first: dict[int, _Place] = {}  # of inodes with several names
        self._done = Extracted()

    def run(self) -> Extracted:
        visited = {ROOT_INO}
        pending: list[tuple[_Place, int]] = [((), ROOT_INO)]
        directories: list[tuple[_Place, int]] = []
        while pending:
            place, ino = pending.pop()
            directories.append((place, ino))
            inode = self._rootfs.inode(ino)
            with self._opened(place) as fd:
                for entry in inode.entries:
                    if entry.name in (b"", b".", b"..") or b"/" in entry.name or b"\0" in entry.name:
                        raise CorruptError(f"directory {ino} holds the name {entry.name[:100]!r}, which no directory may hold")
                    child = self._rootfs.inode(entry.ino)
                    below = (*place, entry.name)
                    if child.kind is Kind.DIR:
                        if entry.ino in visited:
                            raise CorruptError(f"directory {entry.ino} has more than one parent")
                        visited.add(entry.ino)
                        pending.append((below, entry.ino))
                    self._entry(fd, below, child)
        # Children first: a directory's time changes when something is made in it, and its mode may forbid that.
        for place, ino in reversed(directories):
            self._finish_directory(place, self._rootfs.inode(ino))
        return self._done

    def _entry(self, fd: int, place: _Place, inode: Inode) -> None:
        with self._failing(place):
            if inode.kind is Kind.DIR:
                os.mkdir(place[-1], 0o700, dir_fd=fd)
                return
            if self._rootfs.link_count(inode.ino) > 1:
                first = self._first.setdefault(inode.ino, place)
                if first is not place:
                    self._link(fd, first, place)
                    return
            self._done.inodes += 1
            if inode.kind is Kind.FILE:
                self._file(fd, place, inode)
            elif inode.kind is Kind.LNK:
                os.symlink(inode.target or b"", place[-1], dir_fd=fd)
                self._attributes(fd, place, inode, f"/proc/self/fd/{fd}/".encode() + place[-1])
            elif inode.kind in _FORMATS:
                self._node(fd, place, inode)

    def _link(self, fd: int, first: _Place, place: _Place) -> None:
        with self._opened(first[:-1]) as source:
            try:
                os.link(first[-1], place[-1], src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError as error:
                self._done.problem(place, "hard link not made", error)  # its first name could not be made either

    def _file(self, fd: int, place: _Place, inode: Inode) -> None:
        file = os.open(place[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            for piece in self._chunks.pieces(inode.chunks):
                rest = memoryview(piece)
                while len(rest):
                    rest = rest[os.write(file, rest) :]
                self._done.bytes += len(piece)
            self._attributes(fd, place, inode, f"/proc/self/fd/{file}".encode())
        finally:
            os.close(file)

    def _node(self, fd: int, place: _Place, inode: Inode) -> None:
        try:
            os.mknod(place[-1], _FORMATS[inode.kind] | 0o600, os.makedev(*inode.device), dir_fd=fd)
        except PermissionError as error:
            self._done.problem(place, "device not made", error)
            return
        made = os.open(place[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            self._attributes(fd, place, inode, f"/proc/self/fd/{made}".encode())
        finally:
            os.close(made)

    def _finish_directory(self, place: _Place, inode: Inode) -> None:
        with self._failing(place), self._opened(place) as fd:
            self._done.inodes += 1
            self._attributes(fd, (*place, b"."), inode, f"/proc/self/fd/{fd}".encode())

    def _attributes(self, fd: int, place: _Place, inode: Inode, path: bytes) -> None:
        """Owner, then xattrs (setting the owner drops capabilities), then mode (it drops setuid), then times.

        `path` leads to the inode itself through /proc, where a call does not take a directory's descriptor.
        """
        permissions = inode.permissions
        name = place[-1]
        try:
            os.chown(name, inode.uid, inode.gid, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _DENIED:
                raise
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if (status.st_uid, status.st_gid) != (inode.uid, inode.gid):
                self._done.problem(place, f"owner {inode.uid}:{inode.gid} not set", error)
                permissions &= ~(stat.S_ISUID | stat.S_ISGID)  # they would lend the rights of somebody else
        link = inode.kind is Kind.LNK
        for xattr in inode.xattrs:
            try:
                os.setxattr(path, xattr.key, xattr.value, follow_symlinks=not link)
            except OSError as error:
                if error.errno not in _DENIED:
                    raise
                self._done.problem(place, f"extended attribute {os.fsdecode(xattr.key)} not set", error)
        if not link:
            os.chmod(path, permissions)
        nanoseconds = inode.mtime * 1_000_000_000 + inode.mtime_nsec
        os.utime(name, ns=(nanoseconds, nanoseconds), dir_fd=fd, follow_symlinks=False)

    @contextmanager
    def _opened(self, place: Sequence[bytes]) -> Iterator[int]:
        """The directory at `place`, reached one name after another, so that neither a symlink nor PATH_MAX comes in."""
        fd = os.dup(self._top)
        try:
            for name in place:
                try:
                    following = os.open(name, _DIRECTORY, dir_fd=fd)
                except OSError as error:
                    raise FailedPreconditionError(
                        f"{self._name}/{_text(place)} changed while it was written: {error.strerror}"
                    ) from None
                os.close(fd)
                fd = following
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _failing(self, place: _Place) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FailedPreconditionError(f"cannot write {self._name}/{_text(place)}: {error.strerror}") from None
        except PuzzlefsError as error:
            error.add_note(f"while {self._name}/{_text(place)} was written")
            raise


class _Chunks:
    """File data by chunk; the last few chunks are kept."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._held: OrderedDict[Digest, bytes] = OrderedDict()

    def pieces(self, chunks: Sequence[FileChunk]) -> Iterator[bytes]:
        """The bytes of a file, in order."""
        for start in range(0, len(chunks), _BATCH):
            batch = chunks[start : start + _BATCH]
            found = self._get(batch)
            for chunk in batch:
                raw = found[chunk.digest]
                if chunk.offset + chunk.length > len(raw):
                    raise CorruptError(f"a file takes bytes beyond the end of its chunk {to_text(chunk.digest)}")
                yield raw[chunk.offset : chunk.offset + chunk.length]

    def _get(self, batch: Sequence[FileChunk]) -> dict[Digest, bytes]:
        wanted = {chunk.digest: ChunkRef(chunk.digest, chunk.compressed) for chunk in batch}
        found = {digest: self._held[digest] for digest in wanted if digest in self._held}
        missing = [ref for digest, ref in wanted.items() if digest not in found]
        for ref, raw in zip(missing, self._store.get(missing) if missing else (), strict=True):
            found[ref.digest] = raw
            self._held[ref.digest] = raw
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
        return found


def _text(place: Sequence[bytes]) -> str:
    return os.fsdecode(b"/".join(place))[:300]
