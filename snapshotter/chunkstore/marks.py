"""Marks on the cache's files, by which content that was checked once is checked again more quickly.

A mark is a message authentication code of the whole content, in an extended attribute of the file. It is made only of bytes
whose sha256 was the chunk's name, and compared with bytes that were read since the process started: it is another hash of
what is served, not a reason to serve something unseen. Content that has changed by a bit, a file under another's name, a mark
from elsewhere: none of these fits, and then sha256 has the last word, as where there is no mark at all.

The key is made of a secret beside the chunks, which only the cache's user can read, and of the number that the kernel drew when
the machine started (boot_id, random(4)), which is on no disk. So a mark means nothing after the next start, when a disk may
have lost what it was given, or have been in other hands; and whoever can read both can as well have the worker serve what they
like. Each chunk has a key of its own, made of that one and of its name (BLAKE2b): Poly1305 asks for a key to be used for one
message, and a name has one content.

The attribute lies in the file's inode and goes with the file: it takes no space, and no bookkeeping (the ``user`` attributes of
ext4 up to some 100 bytes, XFS, Btrfs). Where attributes or Poly1305 cannot be had there are no marks.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Self

from snapshotter.chunkstore.poly1305 import KEY_SIZE, Poly1305
from snapshotter.chunkstore.publish import TEMPORARY
from snapshotter.format.digest import Digest

ATTRIBUTE = "user.puzzlefs.checked"
"""The extended attribute that holds a mark."""

MARKED_MIN = 16 << 10
"""Bytes of the shortest content that is marked: sha256 takes 9 µs for it, looking for a mark and comparing it 6."""

KEY_FILE = ".key"
"""The file beside the chunks' directories that holds the cache's secret."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Where the kernel says which start of the machine this is."""

_SECRET_SIZE = 32

_log = logging.getLogger(__name__)


class Marks:
    """The marks of one cache. Safe to use from several threads; processes that share a cache share its key."""

    def __init__(self, key: bytes) -> None:
        """`key`: `KEY_SIZE` bytes that nobody else knows.

        Raises:
            ImportError, AttributeError, OSError, ValueError: see `Poly1305`.
        """
        self._key = key
        self._poly1305 = Poly1305()

    @classmethod
    def of(cls, directory: Path, boot_id: Path = BOOT_ID) -> Self | None:
        """Those of the cache whose files are below `directory`, where its secret is, or is made; None where there can be no
        marks."""
        try:
            start = boot_id.read_bytes()
            return cls(hashlib.blake2b(start, digest_size=KEY_SIZE, key=_secret(directory / KEY_FILE)).digest())
        except (ImportError, AttributeError, OSError, ValueError) as error:
            _log.info("chunks of %s are checked by their sha256 alone when a worker has started: %s", directory, error)
            return None

    def fits(self, digest: Digest, descriptor: int, raw: bytes | memoryview) -> bool:
        """Whether the file `descriptor` has a mark that says that `raw` is the chunk `digest`. Never raises."""
        if len(raw) < MARKED_MIN:
            return False
        try:
            mark = os.getxattr(descriptor, ATTRIBUTE)
        except OSError:
            return False
        # not compare_digest: nobody can ask often, or for anything but what the cache's files hold
        return mark == self._mark(digest, raw)

    def set(self, digest: Digest, descriptor: int, raw: bytes) -> None:
        """Mark the file `descriptor`, whose content is `raw`, of which the caller knows that its sha256 is `digest`. That
        changes the file's ctime. Never raises: where it cannot be marked it is not."""
        if len(raw) < MARKED_MIN:
            return
        mark = self._mark(digest, raw)
        if mark is not None:
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, ATTRIBUTE, mark)

    def _mark(self, digest: Digest, raw: bytes | memoryview) -> bytes | None:
        own = hashlib.blake2b(digest, digest_size=KEY_SIZE, key=self._key)
        return self._poly1305.tag(own.digest(), raw)


def _secret(path: Path) -> bytes:
    """The secret in the file `path`; a new one where there is none that is whole and its reader's alone.

    Raises:
        OSError: it can be neither read nor made.
    """
    found = _read_secret(path)
    if found is not None:
        return found
    temporary = path.parent / TEMPORARY / f"{path.name}-{secrets.token_hex(8)}"  # where a process that dies may leave it
    temporary.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            os.write(descriptor, secrets.token_bytes(_SECRET_SIZE))  # what a power cut leaves of it means nothing afterwards
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):  # another process was quicker, unless what is there is none
            os.link(temporary, path)
        found = _read_secret(path)
        if found is None:
            os.replace(temporary, path)
            found = _read_secret(path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    if found is None:
        raise OSError(f"the secret {path} cannot be made")
    return found


def _read_secret(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        alone = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077 and status.st_uid == os.geteuid()
        secret = os.read(descriptor, _SECRET_SIZE + 1) if alone else b""
        return secret if len(secret) == _SECRET_SIZE else None
    finally:
        os.close(descriptor)
