"""containerd's content store as a place of blobs: what was loaded, imported or pulled whole is read without a registry.

Only the daemon, and those workers that have something to read there, import this module: gRPC takes 11 MB of memory.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from snapshotter.api import content_pb2, content_pb2_grpc, images_pb2, images_pb2_grpc
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry import deadline

TIMEOUT = 10.0
"""Seconds that containerd may take for one answer."""
ABSENT_FOR = 30.0
"""Seconds for which a blob that was not there is not asked for again: nearly all content of lazy images never is."""
LISTED_MAX = 10_000
"""Most entries of a list of containerd's that are looked at."""

_MESSAGE_MAX = 16 << 20


class ContentStore:
    """The content of one `namespace` of the containerd at `address`: a `BlobSource`. Connects when it is first asked."""

    def __init__(self, address: Path, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._namespace = namespace
        self._metadata = [("containerd-namespace", namespace)]
        self._clock = clock
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._absent: dict[Digest, float] = {}

    @property
    def name(self) -> str:
        """See `BlobSource`."""
        return f"containerd({self._address}, namespace {self._namespace})"

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """See `BlobSource`."""
        if offset < 0 or length < 0:
            raise InvalidError(f"no range of a blob: {length} bytes from {offset} on")
        if length == 0:
            return b""
        data = self._read(digest, offset, length)
        if len(data) < length:
            raise CorruptError(f"blob {to_text(digest)} of {self.name} ends before byte {offset + length}")
        return data[:length]

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        """See `BlobSource`."""
        size = self.size(digest)
        if size is None:
            raise self._missing(digest)
        if size > limit:
            raise CorruptError(f"blob {to_text(digest)} of {self.name} has {size} bytes, at most {limit} are read")
        data = self._read(digest, 0, size) if size else b""
        if sha256(data) != digest:
            raise CorruptError(f"blob {to_text(digest)} of {self.name} is corrupt: its content has the digest {_text(data)}")
        return data

    def size(self, digest: Digest) -> int | None:
        """The stored size of a blob in bytes, None where it is not there.

        Raises:
            UnavailableError: containerd does not answer.
        """
        with contextlib.suppress(NotFoundError), self._translated(digest):
            request = content_pb2.InfoRequest(digest=to_text(digest))
            size = int(self._content().Info(request, metadata=self._metadata, timeout=_timeout()).info.size)
            self._absent.pop(digest, None)  # it has come meanwhile: loaded, or pulled whole
            return size
        return None

    def labels(self, filters: Sequence[str]) -> Iterator[Mapping[str, str]]:
        """The labels of all content that one of `filters` (containerd's filter language) matches.

        Raises:
            UnavailableError: containerd does not answer.
        """
        request = content_pb2.ListContentRequest(filters=filters)
        seen = 0
        with self._translated(None):
            for answer in self._content().List(request, metadata=self._metadata, timeout=_timeout()):
                for info in answer.info:
                    yield dict(info.labels)
                    seen += 1
                    if seen >= LISTED_MAX:
                        return

    def image_names(self) -> Sequence[str]:
        """The names of all image records.

        Raises:
            UnavailableError: containerd does not answer.
        """
        with self._translated(None):
            images = images_pb2_grpc.ImagesStub(self._connected())
            answer = images.List(images_pb2.ListImagesRequest(), metadata=self._metadata, timeout=_timeout())
        return [image.name for image in answer.images[:LISTED_MAX]]

    def close(self) -> None:
        """Close the connection. A later question opens a new one."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = None

    def _read(self, digest: Digest, offset: int, length: int) -> bytes:
        until = self._absent.get(digest)
        if until is not None and self._clock() < until:
            raise self._missing(digest)
        request = content_pb2.ReadContentRequest(digest=to_text(digest), offset=offset, size=length)
        data = bytearray()
        with self._translated(digest):
            for answer in self._content().Read(request, metadata=self._metadata, timeout=_timeout()):
                data += answer.data
                if len(data) >= length:
                    break
        self._absent.pop(digest, None)
        return bytes(data)

    def _content(self) -> Any:
        return content_pb2_grpc.ContentStub(self._connected())

    def _connected(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                options = [("grpc.max_receive_message_length", _MESSAGE_MAX), ("grpc.default_authority", "localhost")]
                # containerd may start after us: a connection is tried again soon, and no question waits for it.
                options += [("grpc.max_reconnect_backoff_ms", 2000), ("grpc.initial_reconnect_backoff_ms", 200)]
                self._channel = grpc.insecure_channel(f"unix://{self._address}", options=options)
            return self._channel

    @contextlib.contextmanager
    def _translated(self, digest: Digest | None) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            details = str(error.details())[:300] if isinstance(error, grpc.Call) else str(error)[:300]
            if code is grpc.StatusCode.NOT_FOUND and digest is not None:
                if len(self._absent) > LISTED_MAX:
                    self._absent.clear()
                self._absent[digest] = self._clock() + ABSENT_FOR
                raise self._missing(digest) from None
            if code is grpc.StatusCode.OUT_OF_RANGE and digest is not None:
                raise CorruptError(f"blob {to_text(digest)} of {self.name}: {details}") from None
            raise UnavailableError(f"{self.name} cannot be asked: {details} ({code.name})") from None

    def _missing(self, digest: Digest) -> NotFoundError:
        return NotFoundError(f"blob {to_text(digest)} is not in {self.name}")


def _timeout() -> float:
    return max(0.001, min(TIMEOUT, deadline.remaining()))


def _text(data: bytes) -> str:
    return to_text(sha256(data))
