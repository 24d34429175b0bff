"""What every place of blobs promises (see `registry.base.BlobSource`), run by every one of them.

A place supplies a factory that builds it over the same `MemoryBlobs`, served by what it is made for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapshotter.daemon.contentstore import ContentStore
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from snapshotter.format.digest import sha256
from snapshotter.registry.base import BlobSource
from snapshotter.registry.credentials import Credentials, FixedCredentials
from snapshotter.registry.failures import DeniedError
from snapshotter.registry.hosts import RegistryConfig, RegistryHost
from snapshotter.registry.httpdirectory import HttpDirectory
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.objectstorage import S3Directory
from snapshotter.registry.reference import parse
from snapshotter.registry.registries import Registries
from tests.support.blobserver import BlobServer, ContentServer, signed_with
from tests.support.chunks import MemoryBlobs
from tests.support.registry import FakeRegistry, TokenAuth

DATA = bytes(range(256)) * 40
EMPTY = b""
ABSENT = sha256(b"nobody has this")
KEY = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")

Make = Callable[[MemoryBlobs, Path, ExitStack], BlobSource]


def http(blobs: MemoryBlobs, path: Path, after: ExitStack) -> BlobSource:
    server = BlobServer(blobs, "/some/place")
    after.callback(server.close)
    source = HttpDirectory(server.url + "/", RegistryConfig())
    after.callback(source.close)
    return source


def http_without_ranges(blobs: MemoryBlobs, path: Path, after: ExitStack) -> BlobSource:
    server = BlobServer(blobs, "/some/place")
    server.ranges = False
    after.callback(server.close)
    source = HttpDirectory(server.url, RegistryConfig())
    after.callback(source.close)
    return source


def s3(blobs: MemoryBlobs, path: Path, after: ExitStack) -> BlobSource:
    server = BlobServer(blobs, "/bucket/some/place", signed_with(KEY.username, KEY.password))
    after.callback(server.close)
    return S3Directory("s3://bucket/some/place/", endpoint=server.endpoint, credentials=KEY)


def content(blobs: MemoryBlobs, path: Path, after: ExitStack) -> BlobSource:
    server = ContentServer(blobs, path / "c.sock", "k8s.io")
    after.callback(server.close)
    store = ContentStore(path / "c.sock", "k8s.io")
    after.callback(store.close)
    return store


def layout(blobs: MemoryBlobs, path: Path, after: ExitStack) -> BlobSource:
    store = LayoutStore(path / "layout")
    for digest, data in blobs.blobs.items():
        file = path / "layout/blobs/sha256" / digest.hex()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return store


def registry(blobs: MemoryBlobs, path: Path, after: ExitStack, mirror: str | None = None) -> BlobSource:
    fake = after.enter_context(FakeRegistry(auth=TokenAuth("ann", "secret", expires_in=1)))
    held = fake.repository("a/b")
    held.blobs = {f"sha256:{digest.hex()}": data for digest, data in blobs.blobs.items()}
    config = RegistryConfig(endpoint=fake.host, plain_http=True, credentials=Credentials("ann", "secret"))
    hosts = [RegistryHost(config, mirror)]
    opened = after.enter_context(Registries(lambda host: hosts, FixedCredentials()))
    return opened.readers(parse("registry.x/a/b"))[0]


SOURCES: dict[str, Make] = {
    "web server": http,
    "web server without ranges": http_without_ranges,
    "S3": s3,
    "containerd's content store": content,
    "OCI layout": layout,
    "registry": registry,
    "mirror": lambda blobs, path, after: registry(blobs, path, after, "mirror.x"),
}
THAT_FAIL = ["web server", "S3", "containerd's content store"]


@pytest.fixture
def blobs() -> MemoryBlobs:
    made = MemoryBlobs()
    made.add(DATA)
    made.add(EMPTY)
    made.blobs[sha256(b"wrong")] = b"something else"
    return made


@pytest.fixture
def source(request: pytest.FixtureRequest, blobs: MemoryBlobs, tmp_path: Path) -> Iterator[BlobSource]:
    with ExitStack() as after:
        yield SOURCES[request.param](blobs, tmp_path, after)


every = pytest.mark.parametrize("source", SOURCES, indirect=True)
failing = pytest.mark.parametrize("source", THAT_FAIL, indirect=True)


@every
@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, len(DATA)), (1234, 4321), (len(DATA) - 1, 1), (5, 0)])
def test_a_range_is_what_was_asked_for(source: BlobSource, offset: int, length: int) -> None:
    assert source.read_range(sha256(DATA), offset, length) == DATA[offset : offset + length]


@every
@pytest.mark.parametrize(("offset", "length"), [(0, len(DATA) + 1), (len(DATA) - 1, 2), (len(DATA) + 10, 1)])
def test_a_range_beyond_the_end_is_corrupt(source: BlobSource, offset: int, length: int) -> None:
    with pytest.raises(CorruptError, match=sha256(DATA).hex()[:12]):
        source.read_range(sha256(DATA), offset, length)


@every
def test_what_is_no_range_is_invalid(source: BlobSource) -> None:
    with pytest.raises(InvalidError):
        source.read_range(sha256(DATA), -1, 5)


@every
def test_what_is_not_there_is_not_found(source: BlobSource) -> None:
    with pytest.raises(NotFoundError, match=ABSENT.hex()[:12]):
        source.read_range(ABSENT, 0, 1)
    with pytest.raises(NotFoundError, match=ABSENT.hex()[:12]):
        source.read_blob(ABSENT, 100)


@every
def test_a_whole_blob_is_checked(source: BlobSource) -> None:
    assert source.read_blob(sha256(DATA), len(DATA)) == DATA
    with pytest.raises(CorruptError, match=sha256(b"wrong").hex()[:12]):
        source.read_blob(sha256(b"wrong"), 100)


@every
def test_a_whole_blob_has_a_limit(source: BlobSource) -> None:
    with pytest.raises(CorruptError, match=str(len(DATA) - 1)):
        source.read_blob(sha256(DATA), len(DATA) - 1)


@failing
def test_a_place_that_does_not_answer_is_unavailable_until_it_is_back(source: BlobSource, blobs: MemoryBlobs) -> None:
    def refuse(*_: object) -> None:
        raise UnavailableError("the network is down")

    honest, blobs.before = blobs.before, refuse
    for ask in (lambda: source.read_range(sha256(DATA), 0, 5), lambda: source.read_blob(sha256(DATA), len(DATA))):
        with pytest.raises(UnavailableError) as caught:
            ask()
        assert any(host in str(caught.value) for host in ("127.0.0.1", "c.sock")), "no host is named"
    blobs.before = honest
    assert source.read_range(sha256(DATA), 0, 5) == DATA[:5]


@pytest.mark.parametrize("url", ["ftp://h/x", "http://", "http://user@h/x", "http://h/x?query", "nothing"])
def test_a_url_that_is_no_web_servers_directory_is_refused(url: str) -> None:
    with pytest.raises(InvalidError):
        HttpDirectory(url, RegistryConfig())


def test_a_web_server_gets_the_credentials_that_it_is_meant_to_get(blobs: MemoryBlobs) -> None:
    wanted = "Basic YW5uOnNlY3JldA=="
    server = BlobServer(blobs, "/x", lambda request: request.headers.get("Authorization") == wanted)
    try:
        source = HttpDirectory(server.url, RegistryConfig(), Credentials("ann", "secret"))
        assert source.read_range(sha256(DATA), 0, 3) == DATA[:3]
        stranger = HttpDirectory(server.url, RegistryConfig(), Credentials("ann", "wrong"))
        with pytest.raises(DeniedError, match=r"127\.0\.0\.1") as caught:
            stranger.read_range(sha256(DATA), 0, 3)
        assert "wrong" not in str(caught.value)
        source.close()
        stranger.close()
    finally:
        server.close()


def test_object_storage_refuses_who_has_not_the_key(blobs: MemoryBlobs) -> None:
    server = BlobServer(blobs, "/bucket", signed_with(KEY.username, KEY.password))
    try:
        wrong = Credentials(KEY.username, "another secret")
        for source in (
            S3Directory("s3://bucket", endpoint=server.endpoint, credentials=wrong),
            S3Directory("s3://bucket", endpoint=server.endpoint, anonymous=True),
        ):
            with pytest.raises(DeniedError, match=r"127\.0\.0\.1") as caught:
                source.read_range(sha256(DATA), 0, 3)
            assert "another secret" not in str(caught.value)
    finally:
        server.close()


def test_object_storage_that_is_gone_is_unavailable(blobs: MemoryBlobs) -> None:
    server = BlobServer(blobs, "/bucket")
    server.close()
    source = S3Directory("s3://bucket", endpoint=server.endpoint, anonymous=True, answer_timeout=5)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
        source.read_range(sha256(DATA), 0, 3)


def test_digits_of_a_url_are_no_status(blobs: MemoryBlobs) -> None:
    """Whatever is at such a port, it does not say that the blob ends early."""
    source = S3Directory("s3://bucket", endpoint="http://127.0.0.1:41641", anonymous=True, answer_timeout=5)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:41641"):
        source.read_range(sha256(DATA), 0, 3)


def test_content_that_was_absent_is_not_asked_for_all_the_time(blobs: MemoryBlobs, tmp_path: Path) -> None:
    server = ContentServer(blobs, tmp_path / "c.sock", "ns")
    now = [0.0]
    store = ContentStore(tmp_path / "c.sock", "ns", clock=lambda: now[0])
    try:
        for _ in range(5):
            with pytest.raises(NotFoundError):
                store.read_range(ABSENT, 0, 1)
        assert server.reads == 1
        now[0] = 31.0
        with pytest.raises(NotFoundError):
            store.read_range(ABSENT, 0, 1)
        assert server.reads == 2
        other = ContentStore(tmp_path / "c.sock", "other")
        with pytest.raises(NotFoundError, match="namespace other"):
            other.read_blob(sha256(DATA), len(DATA))
        other.close()
    finally:
        store.close()
        server.close()
