"""What every `ImageStore` promises, asked of each: registries (ours in memory, Debian's docker-registry), layouts, archives."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import CorruptError, InvalidError, NotFoundError
from snapshotter.format.digest import sha256, to_text
from snapshotter.registry.base import Descriptor, ImageStore
from snapshotter.registry.credentials import Credentials, FixedCredentials
from snapshotter.registry.documents import OCI_INDEX, OCI_MANIFEST, canonical_json, descriptor_to_json
from snapshotter.registry.hosts import RegistryConfig, RegistryHost
from snapshotter.registry.registries import Registries
from snapshotter.registry.transports import open_destination, open_source, parse
from tests.support.dockerregistry import DockerRegistry
from tests.support.registry import FakeRegistry, TokenAuth

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass
class Place:
    """Opens the same place again and again: `writer` a store to put into, `reader` one that sees what was put (and closed)."""

    writer: Callable[[], ImageStore]
    reader: Callable[[], ImageStore]


@pytest.fixture(scope="module")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    registry = DockerRegistry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.stop()


@pytest.fixture(params=["fake registry", "fake registry with tokens", "docker-registry", "layout", "archive"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        config = RegistryConfig()
        if request.param == "layout":
            text = f"oci:{tmp_path}/layout:unused"
        elif request.param == "archive":
            text = f"oci-archive:{tmp_path}/image.tar:unused"
        elif request.param == "docker-registry":
            host = request.getfixturevalue("docker_registry").address
            text = f"docker://{host}/{sha256(str(tmp_path).encode()).hex()[:16]}/image:unused"
        else:
            auth = TokenAuth("ann", "secret") if "tokens" in request.param else None
            fake = stack.enter_context(FakeRegistry(auth=auth, page_size=2))
            config = RegistryConfig(credentials=Credentials("ann", "secret") if auth else None)
            text = f"docker://{fake.host}/some/image:unused"
        registries = stack.enter_context(Registries(lambda host: [RegistryHost(config)], FixedCredentials()))
        yield Place(lambda: open_destination(parse(text), registries).store, lambda: open_source(parse(text), registries).store)


def blob(data: bytes, media_type: str = LAYER) -> Descriptor:
    return Descriptor(media_type, sha256(data), len(data))


def manifest(config: Descriptor, *layers: Descriptor, **more: Any) -> tuple[Descriptor, bytes]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor_to_json(config),
        "layers": [descriptor_to_json(layer) for layer in layers],
        **more,
    }
    data = canonical_json(document)
    return blob(data, OCI_MANIFEST), data


DATA = bytes(range(256)) * 3000
CONFIG_DATA = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
LAYER_BLOB, CONFIG_BLOB = blob(DATA), blob(CONFIG_DATA, CONFIG)


def put_image(store: ImageStore, tag: str, **more: Any) -> tuple[Descriptor, bytes]:
    store.put_blob(LAYER_BLOB, io.BytesIO(DATA))
    store.put_blob(CONFIG_BLOB, io.BytesIO(CONFIG_DATA))
    descriptor, data = manifest(CONFIG_BLOB, LAYER_BLOB, **more)
    store.put_manifest(descriptor, data, tag)
    return descriptor, data


@pytest.fixture
def filled(place: Place) -> Iterator[ImageStore]:
    """A store with one image, tag ``v1``."""
    writer = place.writer()
    put_image(writer, "v1")
    writer.close()
    reader = place.reader()
    yield reader
    reader.close()


def test_an_image_comes_back_as_it_was_put(place: Place) -> None:
    writer = place.writer()
    descriptor, data = put_image(writer, "v1")
    writer.close()
    reader = place.reader()
    assert reader.manifest("v1") == (descriptor, data)
    assert reader.manifest(to_text(descriptor.digest)) == (descriptor, data)
    with reader.open_blob(LAYER_BLOB) as stream:
        assert stream.read() == DATA
    assert list(reader.tags()) == ["v1"]
    reader.close()


def test_an_index_and_its_images_come_back(place: Place) -> None:
    writer = place.writer()
    writer.put_blob(LAYER_BLOB, io.BytesIO(DATA))
    writer.put_blob(CONFIG_BLOB, io.BytesIO(CONFIG_DATA))
    children = []
    for architecture in ("amd64", "arm64"):
        child, data = manifest(CONFIG_BLOB, LAYER_BLOB, annotations={"for": architecture})
        writer.put_manifest(child, data, None)
        children.append(replace(child, platform={"architecture": architecture, "os": "linux"}))
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor_to_json(child) for child in children]}
    index_data = canonical_json(document)
    index = blob(index_data, OCI_INDEX)
    writer.put_manifest(index, index_data, "multi")
    writer.close()
    reader = place.reader()
    assert reader.manifest("multi") == (index, index_data)
    for child in children:
        descriptor, data = reader.manifest(to_text(child.digest))
        assert (descriptor.media_type, descriptor.size) == (OCI_MANIFEST, child.size)
        assert json.loads(data)["annotations"]["for"] == (child.platform or {})["architecture"]
    assert list(reader.tags()) == ["multi"]
    reader.close()


def test_a_blob_is_put_once(place: Place) -> None:
    writer = place.writer()
    assert writer.put_blob(LAYER_BLOB, io.BytesIO(DATA)) is True
    assert writer.has_blob(LAYER_BLOB.digest)
    assert writer.put_blob(LAYER_BLOB, io.BytesIO(b"not even read")) is False
    writer.close()


def test_an_empty_blob_is_a_blob(place: Place) -> None:
    writer = place.writer()
    empty = blob(b"")
    assert writer.put_blob(empty, io.BytesIO()) is True
    with writer.open_blob(empty) as stream:
        assert stream.read() == b""
    writer.close()


def test_an_unseekable_stream_can_be_put(place: Place) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *args: object) -> int:
            raise io.UnsupportedOperation

        tell = seek

    writer = place.writer()
    assert writer.put_blob(LAYER_BLOB, Pipe(DATA)) is True
    with writer.open_blob(LAYER_BLOB) as stream:
        assert stream.read() == DATA
    writer.close()


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", DATA[:-1] + b"x", b""], ids=["short", "long", "other", "nothing"])
def test_wrong_data_is_refused_and_leaves_nothing(place: Place, wrong: bytes) -> None:
    writer = place.writer()
    with pytest.raises(CorruptError):
        writer.put_blob(LAYER_BLOB, io.BytesIO(wrong))
    assert not writer.has_blob(LAYER_BLOB.digest)
    writer.close()


def test_a_failing_source_raises_its_own_error(place: Place) -> None:
    class Failing(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            raise NotFoundError("the source has gone")

    writer = place.writer()
    with pytest.raises(NotFoundError, match="the source has gone"):
        writer.put_blob(LAYER_BLOB, Failing())
    assert not writer.has_blob(LAYER_BLOB.digest)
    writer.close()


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (0, len(DATA)), (5, 70_000), (len(DATA) - 1, 1), (0, 0), (len(DATA), 0)], ids=str
)
def test_a_range_is_exact(filled: ImageStore, offset: int, length: int) -> None:
    assert filled.read_range(LAYER_BLOB.digest, offset, length) == DATA[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(len(DATA) - 1, 2), (len(DATA), 1), (1 << 40, 10)], ids=str)
def test_a_range_beyond_the_end_is_corrupt(filled: ImageStore, offset: int, length: int) -> None:
    with pytest.raises(CorruptError, match=to_text(LAYER_BLOB.digest)):
        filled.read_range(LAYER_BLOB.digest, offset, length)


def test_a_negative_range_is_invalid(filled: ImageStore) -> None:
    with pytest.raises(InvalidError):
        filled.read_range(LAYER_BLOB.digest, -1, 4)


def test_what_is_not_there_is_not_found_and_named(filled: ImageStore) -> None:
    absent = blob(b"absent")
    with pytest.raises(NotFoundError, match="v2"):
        filled.manifest("v2")
    with pytest.raises(NotFoundError, match=to_text(absent.digest)):
        filled.manifest(to_text(absent.digest))
    with pytest.raises(NotFoundError, match=to_text(absent.digest)):
        filled.open_blob(absent)
    with pytest.raises(NotFoundError, match=to_text(absent.digest)):
        filled.read_range(absent.digest, 0, 3)
    assert not filled.has_blob(absent.digest)


def test_a_wrong_size_in_the_descriptor_is_corrupt(filled: ImageStore) -> None:
    for size in (len(DATA) - 1, len(DATA) + 1):
        with pytest.raises(CorruptError, match=r"descriptor"):
            filled.open_blob(replace(LAYER_BLOB, size=size))


@pytest.mark.parametrize("reference", ["no tag", "sha256:12", "../../etc/passwd", ""])
def test_a_reference_that_is_none_finds_nothing(filled: ImageStore, reference: str) -> None:
    with pytest.raises((InvalidError, NotFoundError)):
        filled.manifest(reference)


def test_a_tag_moves_and_the_old_image_stays_by_digest(place: Place) -> None:
    writer = place.writer()
    old, old_data = put_image(writer, "v1")
    put_image(writer, "other", annotations={"other": "image"})
    new, new_data = put_image(writer, "v1", annotations={"newer": "äöü"})
    writer.close()
    reader = place.reader()
    assert reader.manifest("v1") == (new, new_data)
    assert reader.manifest(to_text(old.digest)) == (old, old_data)
    assert sorted(reader.tags()) == ["other", "v1"]
    reader.close()


def test_a_manifest_unlike_its_descriptor_is_refused(place: Place) -> None:
    writer = place.writer()
    put_image(writer, "v1")
    descriptor, data = manifest(CONFIG_BLOB, LAYER_BLOB, annotations={"a": "b"})
    with pytest.raises(CorruptError):
        writer.put_manifest(descriptor, data + b" ", "v1")
    writer.close()


@pytest.mark.parametrize("tag", ["", "-x", "a b", "../x", "a" * 300])
def test_a_tag_that_is_none_is_refused(place: Place, tag: str) -> None:
    writer = place.writer()
    put_image(writer, "v1")
    descriptor, data = manifest(CONFIG_BLOB, LAYER_BLOB)
    with pytest.raises(InvalidError):
        writer.put_manifest(descriptor, data, tag)
    writer.close()


def test_all_of_many_tags_are_listed(place: Place) -> None:
    writer = place.writer()
    names = [f"t{number}" for number in range(7)]
    for name in names:
        put_image(writer, name)
    writer.close()
    reader = place.reader()
    assert sorted(reader.tags()) == names
    reader.close()


def test_a_place_that_was_never_put_to_has_no_tags_and_no_blobs(place: Place) -> None:
    writer = place.writer()
    assert list(writer.tags()) == []
    assert not writer.has_blob(LAYER_BLOB.digest)
    with pytest.raises(NotFoundError):
        writer.manifest("v1")
    writer.close()


def test_many_threads_put_and_read(place: Place) -> None:
    writer = place.writer()
    pieces = [number.to_bytes(4, "big") * 5000 for number in range(16)]
    errors: list[BaseException] = []

    def put(data: bytes) -> None:
        try:
            writer.put_blob(blob(data), io.BytesIO(data))
            writer.put_blob(CONFIG_BLOB, io.BytesIO(CONFIG_DATA))
            descriptor, content = manifest(CONFIG_BLOB, blob(data))
            writer.put_manifest(descriptor, content, f"t{data[3]}")
            assert writer.read_range(sha256(data), 4, 8) == data[4:12]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=put, args=(data,)) for data in pieces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert errors == []
    reader = place.reader()
    assert sorted(reader.tags()) == sorted(f"t{number}" for number in range(16))
    for data in pieces:
        with reader.open_blob(blob(data)) as stream:
            assert stream.read() == data
    reader.close()


def test_its_name_tells_where_it_is(place: Place) -> None:
    writer, reader = place.writer(), place.reader()
    assert writer.name == reader.name
    assert "image" in writer.name or "layout" in writer.name
    writer.close()
    reader.close()
    writer.close()
