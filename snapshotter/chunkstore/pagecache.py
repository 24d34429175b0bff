"""What the kernel has of a file in memory, asked without making it read anything: mincore(2) on a map of the file; and files
that are read without waiting for a disk.

preadv2(2) with RWF_NOWAIT does not tell: where a page is missing it starts to read ahead, and returns what has come if the disk
was quick (filemap_get_pages). cachestat(2) would, from Linux 6.5 on.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

_libc = ctypes.CDLL(None)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_FAILED = ctypes.c_void_p(-1).value


def resident_pages(descriptor: int, size: int) -> int:
    """How many pages of the file's first `size` bytes are in memory; 0 where the kernel does not tell.

    The file must be this user's, or the kernel says of every page that it is there (can_do_mincore).
    """
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        return 0
    try:
        pages = (ctypes.c_char * page_count(size))()
        if _libc.mincore(address, size, pages) != 0:
            return 0
        return pages.raw.count(b"\x01")  # the other bits are reserved, and 0 so far
    finally:
        _libc.munmap(address, size)


def page_count(size: int) -> int:
    """Pages that `size` bytes take."""
    return -(-size // mmap.PAGESIZE)


class PageCacheReader(threading.local):
    """Reads whole files that need no disk, into memory that each thread keeps: it is in the processor's cache, as new memory is
    not."""

    def __init__(self, longest: int) -> None:
        """`longest`: bytes of that memory; longer files are read into new memory."""
        self._scratch = memoryview(bytearray(longest))

    def read(self, descriptor: int, size: int) -> bytes | None:
        """The whole file of `size` bytes, if no disk has to be waited for; but what was missing may have come this moment."""
        view = self.view(descriptor, size)
        return None if view is None else bytes(view)

    def view(self, descriptor: int, size: int, offset: int = 0) -> memoryview | None:
        """As `read`, from `offset` on, in this thread's memory: good until it reads the next file."""
        buffer = self._scratch[:size] if size <= len(self._scratch) else memoryview(bytearray(size))
        try:
            count = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
        except OSError:  # EAGAIN: not there; EOPNOTSUPP: no such service
            return None
        return buffer if count == size else None

    def part_resident(self, descriptor: int, size: int, offset: int, length: int) -> bytes | None:
        """`length` bytes from `offset` on of a file of `size` bytes, if no disk has to be asked for any of the file; None
        otherwise, and where the file system cannot tell."""
        if resident_pages(descriptor, size) != page_count(size):
            return None
        view = self.view(descriptor, length, offset)
        return None if view is None else bytes(view)

    def read_resident(self, descriptor: int, size: int) -> bytes | None:
        """As `read`, if no disk has to be asked for it; None otherwise, and where the file system cannot tell."""
        if resident_pages(descriptor, size) != page_count(size):
            return None
        return self.read(descriptor, size)
