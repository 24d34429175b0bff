"""Poly1305 (RFC 8439, 2.5) from the OpenSSL that this Python's `hashlib` uses: six times as quick as sha256 by SHA-NI.

Python's own library has no message authentication code that is quicker than sha256. `_hashlib` is linked with OpenSSL, so that
its functions are found through it: whichever OpenSSL it is, it is one that this process uses anyway.
"""

from __future__ import annotations

import ctypes
import importlib
import threading

KEY_SIZE = 32
"""Bytes of a key, which is good for one message only."""
TAG_SIZE = 16
"""Bytes of a tag."""


class Poly1305:
    """Tags of messages. Safe to use from several threads: each has a context of its own.

    Raises:
        ImportError, AttributeError, OSError: this Python's OpenSSL cannot be called so: it is built in, or older than 3.0.
        ValueError: it has no Poly1305, or is not to use it (FIPS).
    """

    def __init__(self) -> None:
        path = importlib.import_module("_hashlib").__file__
        # PyDLL: giving the interpreter's lock back and taking it again would take longer than these calls do.
        quick = ctypes.PyDLL(path)
        self._new, self._free, self._init, self._final = (
            quick.EVP_MAC_CTX_new,
            quick.EVP_MAC_CTX_free,
            quick.EVP_MAC_init,
            quick.EVP_MAC_final,
        )
        self._update = ctypes.CDLL(path).EVP_MAC_update
        quick.EVP_MAC_fetch.restype = self._new.restype = ctypes.c_void_p
        self._new.argtypes = self._free.argtypes = (ctypes.c_void_p,)
        self._init.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
        self._update.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self._final.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
        self._algorithm = quick.EVP_MAC_fetch(None, b"POLY1305", None)  # for as long as the process lives
        if not self._algorithm:
            raise ValueError("this Python's OpenSSL has no Poly1305")
        self._contexts = threading.local()

    def tag(self, key: bytes, message: bytes | memoryview) -> bytes | None:
        """The tag of `message` under `key`; None where OpenSSL refuses. A view's memory must be writable, and not empty.

        Raises:
            ValueError: the key has not `KEY_SIZE` bytes.
        """
        if len(key) != KEY_SIZE:
            raise ValueError(f"a key of {len(key)} bytes, {KEY_SIZE} are needed")
        context = getattr(self._contexts, "own", None)
        if context is None:
            context = self._contexts.own = _Context(self._new(self._algorithm), self._free)
        data = message if isinstance(message, bytes) else ctypes.byref(ctypes.c_char.from_buffer(message))
        done = (
            self._init(context.address, key, KEY_SIZE, None)
            and self._update(context.address, data, len(message))
            and self._final(context.address, context.tag, context.written, TAG_SIZE)
        )
        return context.tag.raw if done else None


class _Context:
    """What one thread computes tags with, given back when the thread ends."""

    __slots__ = ("_free", "address", "tag", "written")

    def __init__(self, address: int | None, free: ctypes._NamedFuncPointer) -> None:
        if not address:
            raise MemoryError("OpenSSL has no memory for a context")
        self.address = address
        self.tag = ctypes.create_string_buffer(TAG_SIZE)
        self.written = ctypes.byref(ctypes.c_size_t())
        self._free = free

    def __del__(self) -> None:
        self._free(self.address)
