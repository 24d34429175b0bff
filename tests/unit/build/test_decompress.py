"""A layer's blob is decompressed by what it is, not by what it is called."""

from __future__ import annotations

import gzip
import io
import threading
from collections.abc import Callable

import pytest
import zstandard

from snapshotter.build.decompress import LayerStream, PlainLayer, open_layer
from snapshotter.errors import CorruptError, UnavailableError
from snapshotter.format.digest import sha256
from tests.support.chunks import some_chunks

DATA = b"".join(some_chunks(40, 5, 100_000))


def read(blob: bytes) -> tuple[bytes, bytes]:
    with LayerStream(io.BytesIO(blob), "layer x") as stream:
        found = bytearray()
        while block := stream.read(1 << 20):
            found += block
        assert stream.length == len(found)
        return bytes(found), stream.digest()


@pytest.mark.parametrize(
    "blob",
    [
        DATA,
        gzip.compress(DATA, 1),
        gzip.compress(DATA[:1_000_000], 1) + gzip.compress(DATA[1_000_000:], 9),
        gzip.compress(DATA, 1) + bytes(1000),
        zstandard.compress(DATA, 1),
        zstandard.compress(DATA[:7], 1) + zstandard.compress(DATA[7:], 1),
    ],
    ids=["plain", "gzip", "gzip of several members", "gzip with padding", "zstd", "zstd of several frames"],
)
def test_every_form_gives_the_same_bytes_and_digest(blob: bytes) -> None:
    assert read(blob) == (DATA, sha256(DATA))


@pytest.mark.parametrize("blob", [b"", b"x", b"\x1f"])
def test_what_is_shorter_than_any_header_is_plain(blob: bytes) -> None:
    assert read(blob)[0] == blob


@pytest.mark.parametrize(
    "blob",
    [
        gzip.compress(DATA, 1)[:-5],
        gzip.compress(DATA, 1)[:1_000_000],
        gzip.compress(DATA, 1)[:-8] + bytes(8),
        gzip.compress(b"x") + b"garbage behind it",
        b"\x1f\x8b" + b"\xff" * 100,
        b"\x28\xb5\x2f\xfd" + b"\xff" * 100,
    ],
    ids=["no checksum", "cut short", "wrong checksum", "garbage behind it", "no gzip", "no zstd"],
)
def test_what_does_not_decompress_is_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptError, match="layer x does not decompress"):
        read(blob)


def test_a_window_beyond_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = stream.compress(b"x" * 100) + stream.flush()
    with pytest.raises(CorruptError, match="does not decompress"):
        read(blob)


def test_errors_of_the_store_come_through() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise UnavailableError("the registry went away")

    with LayerStream(Failing(), "x") as stream, pytest.raises(UnavailableError, match="went away"):
        stream.read(1)


def test_leaving_early_ends_the_thread_and_closes_the_blob() -> None:
    blob = io.BytesIO(bytes(100 << 20))
    before = threading.active_count()
    with LayerStream(blob, "x") as stream:
        stream.read(1)
        with pytest.raises(ValueError, match="not been read to its end"):
            stream.digest()
    assert blob.closed
    assert threading.active_count() == before


def test_it_does_not_read_ahead_without_end() -> None:
    taken = 0

    def count(size: int) -> None:
        nonlocal taken
        taken += size

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    with LayerStream(Endless(), "x", count) as stream:  # type: ignore[arg-type]
        for _ in range(5):
            stream.read(1)
    assert taken < 40 << 20


def test_what_is_read_verified_is_not_hashed_again() -> None:
    """The digest that the store has checked is taken for that of the tar where the blob is the tar, and only there."""
    tar = bytes(10_000)
    told = sha256(b"what the store says")
    for blob, expected in ((tar, told), (gzip.compress(tar), sha256(tar)), (zstandard.compress(tar), sha256(tar))):
        with LayerStream(io.BytesIO(blob), "x", verified=told) as stream:
            while stream.read(1 << 20):
                pass
            assert stream.digest() == expected


def test_a_plain_layer_that_is_here_is_read_in_place() -> None:
    counted = []
    blob = io.BytesIO(DATA)
    with open_layer(blob, "x", counted.append, sha256(DATA)) as layer:
        assert isinstance(layer, PlainLayer)
        with pytest.raises(ValueError, match="not been read to its end"):
            layer.digest()
        buffer = memoryview(bytearray(200_000))
        found = layer.read(1 << 20) + layer.read(1 << 20)
        while count := layer.readinto(buffer):
            found += buffer[:count]
        assert found == DATA
        assert layer.length == sum(counted) == len(DATA)
        assert layer.digest() == sha256(DATA)
    assert blob.closed


def test_its_first_bytes_can_be_read_in_place_too() -> None:
    with open_layer(io.BytesIO(b"abcdefgh"), "x", lambda count: None, sha256(b"")) as layer:
        assert isinstance(layer, PlainLayer)
        buffer = memoryview(bytearray(3))
        found = b""
        while count := layer.readinto(buffer):
            found += buffer[:count]
    assert found == b"abcdefgh"


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_compressed_layer_that_is_here_is_hashed_as_it_is_decompressed(compress: Callable[[bytes], bytes]) -> None:
    with open_layer(io.BytesIO(compress(DATA)), "x", lambda count: None, sha256(b"the blob's")) as layer:
        found = b""
        while block := layer.read(1 << 20):
            found += block
        assert found == DATA
        assert layer.digest() == sha256(DATA)


def test_a_blob_that_cannot_be_opened_is_closed() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise UnavailableError("the disk went away")

    blob = Failing()
    with pytest.raises(UnavailableError, match="went away"):
        open_layer(blob, "x", lambda count: None, sha256(b""))
    assert blob.closed
