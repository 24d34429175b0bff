import io
import json
import threading
from collections.abc import Iterator

import pytest

from snapshotter.errors import CorruptError, InvalidError, NotFoundError, PuzzlefsError, UnsupportedError
from snapshotter.format.digest import sha256, to_text
from snapshotter.registry.base import MANIFEST_MAX, Descriptor
from snapshotter.registry.client import RegistryStore
from snapshotter.registry.credentials import FixedCredentials
from snapshotter.registry.documents import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from snapshotter.registry.failures import DeniedError, RegistryUnavailableError
from snapshotter.registry.hosts import RegistryConfig, RegistryHost
from snapshotter.registry.multirange import ASK_AGAIN
from snapshotter.registry.ranges import RANGE_SKIP_MAX
from snapshotter.registry.reference import parse
from snapshotter.registry.registries import Registries
from snapshotter.registry.session import RegistrySession
from snapshotter.registry.transport import Transport
from tests.support.registry import FakeRegistry, Fault, TokenAuth

DATA = bytes(range(256)) * 40
MANIFEST = {"schemaVersion": 2, "config": {}, "layers": []}
INDEX = {"schemaVersion": 2, "manifests": []}


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def registries() -> Iterator[Registries]:
    config = RegistryConfig(plain_http=True, read_timeout=5)
    with Registries(lambda host: [RegistryHost(config)], FixedCredentials()) as opened:
        yield opened


@pytest.fixture
def store(registry: FakeRegistry, registries: Registries) -> RegistryStore:
    return registries.open(parse(f"{registry.host}/a/b"))


@pytest.fixture
def blob(registry: FakeRegistry) -> Descriptor:
    return registry.put_blob("a/b", DATA)


# Ranges


def test_a_range_costs_its_bytes(
    registry: FakeRegistry, store: RegistryStore, registries: Registries, blob: Descriptor
) -> None:
    assert store.read_range(blob.digest, 100, 50) == DATA[100:150]
    assert registry.sent() == 50 == registries.traffic.received
    assert registry.requests[0].range == "bytes=100-149"


def test_a_server_that_ignores_ranges_is_read_up_to_the_end_of_the_range(
    registry: FakeRegistry, store: RegistryStore, registries: Registries, blob: Descriptor
) -> None:
    registry.inject(Fault(ignore_range=True))
    assert store.read_range(blob.digest, 300, 50) == DATA[300:350]
    # A short rest is read, so that the connection can be used again.
    assert registries.traffic.received == len(DATA)


def test_a_server_that_ignores_ranges_is_not_read_for_a_far_range(
    registry: FakeRegistry, store: RegistryStore, blob: Descriptor
) -> None:
    size = str(RANGE_SKIP_MAX * 2)
    registry.inject(Fault(ignore_range=True, headers={"Content-Length": size}, stall=0))
    with pytest.raises(RegistryUnavailableError, match="range requests") as caught:
        store.read_range(blob.digest, RANGE_SKIP_MAX + 1, 50)
    assert not caught.value.retryable


def test_a_server_that_ignores_ranges_may_have_too_little(
    registry: FakeRegistry, store: RegistryStore, blob: Descriptor
) -> None:
    registry.inject(Fault(ignore_range=True))
    with pytest.raises(CorruptError, match="ends before"):
        store.read_range(blob.digest, len(DATA) - 10, 11)


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-49/10240",
        "bytes 101-150/10240",
        "bytes 100-150/10240",
        "bytes 100-99/5",
        "",
        "items 100-149/*",
        "bytes 100-149",
    ],
)
def test_another_range_than_asked_for_is_corrupt(
    registry: FakeRegistry, store: RegistryStore, blob: Descriptor, content_range: str
) -> None:
    registry.inject(Fault(headers={"Content-Range": content_range}))
    with pytest.raises(CorruptError, match=to_text(blob.digest)):
        store.read_range(blob.digest, 100, 50)


def test_a_range_without_a_total_is_taken(registry: FakeRegistry, store: RegistryStore, blob: Descriptor) -> None:
    registry.inject(Fault(headers={"Content-Range": "bytes 100-149/*"}))
    assert store.read_range(blob.digest, 100, 50) == DATA[100:150]


def test_416_is_a_blob_that_ends_before(registry: FakeRegistry, store: RegistryStore, blob: Descriptor) -> None:
    with pytest.raises(CorruptError, match="416"):
        store.read_range(blob.digest, len(DATA), 1)


@pytest.mark.parametrize("fault", [Fault(truncate=20), Fault(cut=20), Fault(drop=True)], ids=["truncated", "cut", "dropped"])
def test_a_short_body_is_worth_a_retry(registry: FakeRegistry, store: RegistryStore, blob: Descriptor, fault: Fault) -> None:
    registry.inject(fault, times=2)
    with pytest.raises(RegistryUnavailableError, match=registry.host) as caught:
        store.read_range(blob.digest, 100, 50)
    assert caught.value.retryable
    registry.heal()
    assert store.read_range(blob.digest, 100, 50) == DATA[100:150]


def test_a_stall_within_a_range_is_a_timeout(registry: FakeRegistry, blob: Descriptor) -> None:
    config = RegistryConfig(plain_http=True, read_timeout=0.1)
    with Registries(lambda host: [RegistryHost(config)], FixedCredentials()) as registries:
        registry.inject(Fault(stall=20))
        with pytest.raises(RegistryUnavailableError, match="timeout") as caught:
            registries.open(parse(f"{registry.host}/a/b")).read_range(blob.digest, 100, 50)
        assert caught.value.retryable


# Several ranges

EXTENTS = [(100, 50), (4000, 1000), (9, 1)]


def several(store: RegistryStore, blob: Descriptor) -> dict[int, bytes]:
    """The bytes of `EXTENTS` as they come."""
    return dict(store.read_ranges(blob.digest, EXTENTS))


WHOLE = {offset: DATA[offset : offset + length] for offset, length in EXTENTS}


def test_several_ranges_are_one_request_once_the_registry_has_answered_one(
    registry: FakeRegistry, store: RegistryStore, blob: Descriptor
) -> None:
    assert store.ranges_at_once == 1
    assert several(store, blob) == WHOLE
    assert [request.range for request in registry.requests] == ["bytes=100-149", "bytes=4000-4999", "bytes=9-9"]
    assert store.ranges_at_once > 1
    assert several(store, blob) == WHOLE
    assert [request.range for request in registry.requests[3:]] == ["bytes=100-149,4000-4999,9-9"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(ignore_range=True),
        Fault(status=501),
        Fault(status=400),
        Fault(headers={"Content-Type": "text/plain"}),
        Fault(corrupt=3),
    ],
)
def test_a_registry_that_does_not_do_several_is_asked_one_by_one_and_not_tried_again(
    registry: FakeRegistry, store: RegistryStore, blob: Descriptor, fault: Fault
) -> None:
    store.read_range(blob.digest, 0, 1)
    registry.inject(fault)
    assert several(store, blob) == WHOLE
    assert store.ranges_at_once == 1
    before = len(registry.requests)
    assert several(store, blob) == WHOLE
    assert len(registry.requests) - before == 3


def test_a_registry_that_did_not_do_several_is_looked_at_anew_after_a_while(registry: FakeRegistry, blob: Descriptor) -> None:
    """It is asked for one range, and as that goes well for several again."""
    now = [1000.0]
    transport = Transport(registry.host, RegistryConfig(plain_http=True))
    session = RegistrySession(transport, FixedCredentials(), clock=lambda: now[0])
    store = RegistryStore(session, "a/b")
    store.read_range(blob.digest, 0, 1)
    registry.inject(Fault(status=501))
    assert several(store, blob) == WHOLE
    now[0] += ASK_AGAIN - 1
    assert several(store, blob) == WHOLE
    assert store.ranges_at_once == 1
    now[0] += 1
    assert store.ranges_at_once == 1
    store.read_range(blob.digest, 0, 1)
    assert store.ranges_at_once > 1
    before = len(registry.requests)
    assert several(store, blob) == WHOLE
    assert len(registry.requests) - before == 1
    session.close()


def test_what_came_before_an_answer_went_wrong_is_not_asked_for_again(
    registry: FakeRegistry, store: RegistryStore, blob: Descriptor
) -> None:
    store.read_range(blob.digest, 0, 1)
    registry.inject(Fault(corrupt=150))  # behind the first part
    assert several(store, blob) == WHOLE
    assert [request.range for request in registry.requests[2:]] == ["bytes=4000-4999", "bytes=9-9"]


def test_an_answer_with_several_ranges_that_breaks_off_is_worth_a_retry(
    registry: FakeRegistry, store: RegistryStore, blob: Descriptor
) -> None:
    store.read_range(blob.digest, 0, 1)
    registry.inject(Fault(cut=200))
    with pytest.raises(RegistryUnavailableError) as caught:
        several(store, blob)
    assert caught.value.retryable
    assert store.ranges_at_once > 1
    assert several(store, blob) == WHOLE


def test_object_storage_is_never_asked_for_several(registry: FakeRegistry, store: RegistryStore, blob: Descriptor) -> None:
    with FakeRegistry() as storage:
        storage.put_blob("bucket", DATA)
        registry.inject(Fault(redirect=f"{storage.url}/v2/bucket/blobs/{to_text(blob.digest)}"), times=4)
        store.read_range(blob.digest, 0, 1)
        assert store.ranges_at_once == 1
        assert several(store, blob) == WHOLE
        assert len(storage.requests) == 4


def test_a_range_from_object_storage(registry: FakeRegistry, store: RegistryStore, blob: Descriptor) -> None:
    with FakeRegistry() as storage:
        storage.put_blob("bucket", DATA)
        registry.inject(Fault(redirect=f"{storage.url}/v2/bucket/blobs/{to_text(blob.digest)}"))
        assert store.read_range(blob.digest, 100, 50) == DATA[100:150]
        assert storage.sent() == 50


def test_object_storage_that_refuses_is_worth_a_retry_and_no_login(
    registry: FakeRegistry, store: RegistryStore, blob: Descriptor
) -> None:
    with FakeRegistry() as storage:
        for status in (400, 401, 403):
            registry.inject(Fault(redirect=f"{storage.url}/v2/bucket/blobs/x?signature=expired"))
            storage.inject(Fault(status=status))
            with pytest.raises(RegistryUnavailableError, match="redirects") as caught:
                store.read_range(blob.digest, 100, 50)
            assert caught.value.retryable
            assert "signature" not in str(caught.value)


# Statuses


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (404, NotFoundError, None),
        (403, DeniedError, None),
        (400, InvalidError, None),
        (418, InvalidError, None),
        (408, RegistryUnavailableError, True),
        (429, RegistryUnavailableError, True),
        (500, RegistryUnavailableError, True),
        (501, RegistryUnavailableError, False),
        (503, RegistryUnavailableError, True),
    ],
)
def test_each_status_has_its_category_and_names_what_and_where(
    registry: FakeRegistry, store: RegistryStore, status: int, kind: type[PuzzlefsError], retryable: bool | None
) -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "said\n\x1b[31mby the registry" + "y" * 1000}]}).encode()
    registry.inject(Fault(status=status, body=body, headers={"Retry-After": "3"}))
    with pytest.raises(kind, match=f"tag 'v1' of {store.name}") as caught:
        store.manifest("v1")
    text = str(caught.value)
    assert "said" in text
    assert text.isprintable()
    assert len(text) < 600
    if isinstance(caught.value, RegistryUnavailableError):
        assert (caught.value.retryable, caught.value.retry_after) == (retryable, 3)


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[]", b'{"errors": []}', b'{"errors": [1]}', b'{"errors": {}}', b"[" * 60_000]
)
def test_an_error_with_a_strange_body_is_still_the_error(registry: FakeRegistry, store: RegistryStore, body: bytes) -> None:
    registry.inject(Fault(status=404, body=body))
    with pytest.raises(NotFoundError):
        store.manifest("v1")


# Manifests


@pytest.mark.parametrize(
    ("media_type", "content"),
    [(OCI_MANIFEST, MANIFEST), (DOCKER_MANIFEST, MANIFEST), (OCI_INDEX, INDEX), (DOCKER_LIST, INDEX)],
)
def test_all_four_kinds_are_asked_for_and_told_apart(
    registry: FakeRegistry, store: RegistryStore, media_type: str, content: dict[str, object]
) -> None:
    put = registry.put_manifest("a/b", content, "v1", media_type)
    assert store.manifest("v1")[0] == put


@pytest.mark.parametrize(
    ("headers", "content", "kind"),
    [
        ({"Docker-Content-Digest": to_text(sha256(b"other"))}, MANIFEST, CorruptError),
        ({"Content-Type": OCI_INDEX}, MANIFEST, CorruptError),
        ({"Content-Type": OCI_MANIFEST}, INDEX, CorruptError),
        ({"Content-Type": OCI_MANIFEST}, {**MANIFEST, "mediaType": DOCKER_MANIFEST}, CorruptError),
        ({}, {**MANIFEST, **INDEX}, CorruptError),
        ({}, {"schemaVersion": 2}, CorruptError),
        ({}, b"[]", CorruptError),
        ({}, b"", CorruptError),
        ({}, b"[" * 100_000, CorruptError),
        ({}, b'{"a":"' + b"x" * MANIFEST_MAX + b'"}', CorruptError),
        ({}, {**MANIFEST, "mediaType": "text/plain"}, UnsupportedError),
        ({}, {"schemaVersion": 1, "fsLayers": []}, UnsupportedError),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    registry: FakeRegistry, store: RegistryStore, headers: dict[str, str], content: bytes, kind: type[PuzzlefsError]
) -> None:
    registry.put_manifest("a/b", content, "v1")
    registry.inject(Fault(headers=headers))
    with pytest.raises(kind, match="v1"):
        store.manifest("v1")


@pytest.mark.parametrize("content_type", ["application/json", "", f"{OCI_MANIFEST}; charset=utf-8"])
def test_a_manifest_with_a_vague_type_is_known_by_its_content(
    registry: FakeRegistry, store: RegistryStore, content_type: str
) -> None:
    registry.put_manifest("a/b", MANIFEST, "v1")
    registry.inject(Fault(headers={"Content-Type": content_type}))
    assert store.manifest("v1")[0].media_type == OCI_MANIFEST


def test_a_manifest_changed_under_its_digest_is_corrupt(registry: FakeRegistry, store: RegistryStore) -> None:
    put = registry.put_manifest("a/b", MANIFEST, "v1")
    registry.inject(Fault(corrupt=3))
    with pytest.raises(CorruptError, match="digest"):
        store.manifest(to_text(put.digest))


# Whole blobs


def test_a_corrupt_blob_is_never_given_out_whole(registry: FakeRegistry, store: RegistryStore) -> None:
    blob = registry.put_blob("a/b", DATA * 100)
    registry.inject(Fault(corrupt=5))
    with store.open_blob(blob) as stream:
        got = stream.read(blob.size - 400_000)
        with pytest.raises(CorruptError, match=to_text(blob.digest)):
            stream.read()
        with pytest.raises(CorruptError):
            stream.read(1)
    assert len(got) < blob.size


def test_a_blob_of_another_length_is_refused_before_it_is_read(
    registry: FakeRegistry, store: RegistryStore, blob: Descriptor
) -> None:
    registry.inject(Fault(truncate=100))
    with pytest.raises(CorruptError, match="100 bytes"):
        store.open_blob(blob)


def test_a_blob_cut_on_its_way_is_unavailable(registry: FakeRegistry, store: RegistryStore, blob: Descriptor) -> None:
    registry.inject(Fault(cut=100))
    with store.open_blob(blob) as stream, pytest.raises(RegistryUnavailableError):
        stream.read()


# Tags


def test_pages_are_followed(registry: FakeRegistry, store: RegistryStore) -> None:
    registry.page_size = 3
    names = sorted(f"t{number}" for number in range(10))
    for name in names:
        registry.put_manifest("a/b", MANIFEST, name)
    assert list(store.tags()) == names
    assert len(registry.matching("tags")) == 4


def test_a_list_of_pages_without_end_ends(
    registry: FakeRegistry, store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapshotter.registry.client.TAG_PAGES_MAX", 5)
    link = {"Link": '</v2/a/b/tags/list>; rel="next"'}
    registry.inject(Fault(status=200, body=b'{"tags":["x"]}', headers=link), times=100)
    with pytest.raises(CorruptError, match="pages"):
        list(store.tags())


def test_a_next_page_at_another_host_is_not_asked(registry: FakeRegistry, store: RegistryStore) -> None:
    link = {"Link": '<http://other.example/v2/>; rel="next"'}
    registry.inject(Fault(status=200, body=b'{"tags":["x"]}', headers=link))
    with pytest.raises(CorruptError, match="another host"):
        list(store.tags())


@pytest.mark.parametrize("body", [b'{"tags":null}', b'{"tags":[]}', b'{"tags":["../x", 1, "a b", null]}'])
def test_strange_tags_are_none(registry: FakeRegistry, store: RegistryStore, body: bytes) -> None:
    registry.inject(Fault(status=200, body=body))
    assert list(store.tags()) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"[" * 100_000])
def test_what_is_no_list_of_tags_is_corrupt(registry: FakeRegistry, store: RegistryStore, body: bytes) -> None:
    registry.inject(Fault(status=200, body=body))
    with pytest.raises(CorruptError, match="tags"):
        list(store.tags())


# Uploads


def test_a_blob_that_is_there_is_not_sent(registry: FakeRegistry, store: RegistryStore, blob: Descriptor) -> None:
    assert store.put_blob(blob, io.BytesIO(b"never read")) is False
    assert [exchange.method for exchange in registry.requests] == ["HEAD"]


def test_threads_that_put_the_same_blob_send_it_once(registry: FakeRegistry, registries: Registries) -> None:
    blob = Descriptor("x/y", sha256(DATA), len(DATA))
    hold = threading.Event()
    registry.inject(Fault(hold=hold), method="PUT")
    sent: list[bool] = []

    def put() -> None:
        # Each through a store of its own, as layers of one image are.
        sent.append(registries.open(parse(f"{registry.host}/a/b")).put_blob(blob, io.BytesIO(DATA)))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    hold.set()
    for thread in threads:
        thread.join()
    assert sorted(sent) == [False] * 7 + [True]
    assert len(registry.matching(method="PUT")) == 1


def test_a_failed_upload_leaves_the_turn_to_the_next(registry: FakeRegistry, store: RegistryStore) -> None:
    blob = Descriptor("x/y", sha256(DATA), len(DATA))
    registry.inject(Fault(status=503), method="PUT")
    with pytest.raises(RegistryUnavailableError):
        store.put_blob(blob, io.BytesIO(DATA))
    assert store.put_blob(blob, io.BytesIO(DATA)) is True


def test_an_upload_is_one_request_of_known_length(registry: FakeRegistry, store: RegistryStore) -> None:
    data = DATA * 100
    store.put_blob(Descriptor("x/y", sha256(data), len(data)), io.BytesIO(data))
    put = registry.matching(method="PUT")[0]
    assert (put.headers["content-length"], put.received) == (str(len(data)), len(data))
    assert "transfer-encoding" not in put.headers
    assert put.query["_state"] == "kept"


def test_a_token_that_expires_during_an_upload_is_renewed_and_the_data_read_again(registries: Registries) -> None:
    with FakeRegistry(auth=TokenAuth()) as registry:
        store = registries.open(parse(f"{registry.host}/a/b"))
        challenge = {"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'}
        registry.inject(Fault(status=401, headers=challenge), method="PUT")
        assert store.put_blob(Descriptor("x/y", sha256(DATA), len(DATA)), io.BytesIO(DATA))
        assert [exchange.received for exchange in registry.matching(method="PUT")] == [len(DATA), len(DATA)]


def test_an_upload_refused_by_the_registry_is_an_error(registry: FakeRegistry, store: RegistryStore) -> None:
    registry.inject(Fault(status=413), method="PUT")
    with pytest.raises(InvalidError, match="upload"):
        store.put_blob(Descriptor("x/y", sha256(DATA), len(DATA)), io.BytesIO(DATA))


@pytest.mark.parametrize("location", ["", "file:///tmp/x", "ftp://host/x"])
def test_a_place_for_an_upload_that_is_none_is_refused(registry: FakeRegistry, store: RegistryStore, location: str) -> None:
    registry.inject(Fault(status=202, headers={"Location": location}), method="POST")
    with pytest.raises(InvalidError, match="upload"):
        store.put_blob(Descriptor("x/y", sha256(DATA), len(DATA)), io.BytesIO(DATA))


def test_an_upload_elsewhere_gets_no_authorization(registries: Registries) -> None:
    with FakeRegistry(auth=TokenAuth()) as registry, FakeRegistry() as storage:
        storage.uploads["there"] = bytearray()
        store = registries.open(parse(f"{registry.host}/a/b"))
        store.has_blob(sha256(b"x"))
        registry.inject(Fault(status=202, headers={"Location": f"{storage.url}/v2/x/blobs/uploads/there"}), method="POST")
        assert store.put_blob(Descriptor("x/y", sha256(DATA), len(DATA)), io.BytesIO(DATA))
        assert ["authorization" in exchange.headers for exchange in storage.requests] == [False]


def test_a_manifest_stored_as_something_else_is_noticed(registry: FakeRegistry, store: RegistryStore) -> None:
    data = json.dumps(MANIFEST).encode()
    registry.inject(Fault(headers={"Docker-Content-Digest": to_text(sha256(b"x"))}))
    with pytest.raises(CorruptError, match="stored"):
        store.put_manifest(Descriptor(OCI_MANIFEST, sha256(data), len(data)), data, "v1")


# Sharing


def test_repositories_of_a_host_share_its_tokens_and_connections(registries: Registries) -> None:
    with FakeRegistry(auth=TokenAuth()) as registry:
        blob = registry.put_blob("a/b", DATA)
        for _ in range(3):
            assert registries.open(parse(f"{registry.host}/a/b")).has_blob(blob.digest)
        assert len(registry.matching("token")) == 1


def test_many_threads_read_at_once(registry: FakeRegistry, store: RegistryStore, blob: Descriptor) -> None:
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda n=n: got.append(store.read_range(blob.digest, n * 10, 10))) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(DATA[n * 10 : n * 10 + 10] for n in range(24))
