import fcntl
import io
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from snapshotter.errors import CorruptError, InvalidError, NotFoundError, PuzzlefsError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry.base import LOCAL_MANIFEST_MAX, MANIFEST_MAX, Descriptor
from snapshotter.registry.documents import OCI_MANIFEST, canonical_json, descriptor_to_json
from snapshotter.registry.layout import LayoutStore

CONFIG_DATA = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
CONFIG = Descriptor("application/vnd.oci.image.config.v1+json", sha256(CONFIG_DATA), len(CONFIG_DATA))


def image(store: LayoutStore, tag: str | None, **more: object) -> Descriptor:
    store.put_blob(CONFIG, io.BytesIO(CONFIG_DATA))
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor_to_json(CONFIG), "layers": [], **more}
    data = canonical_json(document)
    descriptor = Descriptor(OCI_MANIFEST, sha256(data), len(data))
    store.put_manifest(descriptor, data, tag)
    return descriptor


def write_index(root: Path, *entries: object, **more: object) -> None:
    (root / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(entries), **more}))


def entry(digest: str, **annotations: str) -> dict[str, object]:
    return {"mediaType": OCI_MANIFEST, "digest": digest, "size": 2, "annotations": annotations}


def test_a_local_manifest_may_be_larger_than_a_registrys(tmp_path: Path) -> None:
    """Upstream's manifests list every chunk, so an image of 2 GB has one of more than 4 MiB."""
    store = LayoutStore(tmp_path, durable=False)
    data = canonical_json({"schemaVersion": 2, "layers": [], "config": {}, "annotations": {"x": "y" * MANIFEST_MAX}})
    store.put_manifest(Descriptor(OCI_MANIFEST, sha256(data), len(data)), data, "v1")
    assert store.manifest("v1")[1] == data


def test_a_manifest_that_nobody_would_read_is_not_written(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path, durable=False)
    data = b"{" + b" " * LOCAL_MANIFEST_MAX + b"}"
    with pytest.raises(InvalidError, match="at most"):
        store.put_manifest(Descriptor(OCI_MANIFEST, sha256(data), len(data)), data, "v1")


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_a_blob_without_a_name_gets_its_digest(tmp_path: Path, size: int) -> None:
    store = LayoutStore(tmp_path)
    data = os.urandom(size)

    def write(target: int) -> Digest:
        assert os.write(target, data) == size
        return sha256(data)

    assert store.put_made(write) == (sha256(data), True)
    assert store.put_made(write) == (sha256(data), False)
    assert store.blob_path(sha256(data)).read_bytes() == data
    assert [path.name for path in (tmp_path / "blobs/sha256").iterdir()] == [sha256(data).hex()]


def test_what_ends_with_an_error_gets_no_name(tmp_path: Path) -> None:
    def write(target: int) -> Digest:
        os.write(target, b"the beginning")
        raise CorruptError("it is not what it was")

    store = LayoutStore(tmp_path)
    with pytest.raises(CorruptError, match="not what it was"):
        store.put_made(write)
    assert list((tmp_path / "blobs/sha256").iterdir()) == []


def test_data_is_stored_under_its_digest_once(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path)
    assert store.put_data(b"some") == sha256(b"some")
    path = store.blob_path(sha256(b"some"))
    before = path.stat().st_ino
    assert store.put_data(b"some") == sha256(b"some")
    assert (path.read_bytes(), path.stat().st_ino) == (b"some", before)
    path.write_bytes(b"som")
    store.put_data(b"some")
    assert path.read_bytes() == b"some"


def test_a_layout_has_the_files_of_the_specification_and_canonical_json(tmp_path: Path) -> None:
    put = image(LayoutStore(tmp_path / "new/dir"), "ve")
    root = tmp_path / "new/dir"
    assert sorted(os.listdir(root)) == ["blobs", "index.json", "oci-layout"]
    assert (root / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'
    digest = to_text(put.digest)
    expected = (
        f'{{"manifests":[{{"annotations":{{"org.opencontainers.image.ref.name":"ve"}},"digest":"{digest}",'
        f'"mediaType":"{OCI_MANIFEST}","size":{put.size}}}],"schemaVersion":2}}'
    )
    assert (root / "index.json").read_text() == expected
    assert sorted(os.listdir(root / "blobs/sha256")) == sorted([put.digest.hex(), CONFIG.digest.hex()])


def test_other_tools_read_it(tmp_path: Path) -> None:
    image(LayoutStore(tmp_path / "layout"), "v1")
    shown = subprocess.run(["skopeo", "inspect", "--raw", f"oci:{tmp_path}/layout:v1"], check=True, capture_output=True)
    assert json.loads(shown.stdout)["config"]["digest"] == to_text(CONFIG.digest)


def test_a_new_tag_leaves_all_else_in_the_index_as_it_was(tmp_path: Path) -> None:
    first = {**entry("sha256:" + "1" * 64, **{"org.opencontainers.image.ref.name": "a", "x": "y"}), "urls": ["kept"]}
    untagged = entry("sha256:" + "2" * 64)
    write_index(
        tmp_path, first, untagged, entry("sha256:" + "3" * 64, **{"org.opencontainers.image.ref.name": "b"}), extra={"kept": 1}
    )
    put = image(LayoutStore(tmp_path), "b")
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["extra"] == {"kept": 1}
    assert index["manifests"][:2] == [first, untagged]
    assert [found["digest"] for found in index["manifests"][2:]] == [to_text(put.digest)]


def test_a_manifest_without_a_tag_is_not_in_the_index(tmp_path: Path) -> None:
    put = image(LayoutStore(tmp_path), None)
    assert json.loads((tmp_path / "index.json").read_text())["manifests"] == []
    assert LayoutStore(tmp_path).manifest(to_text(put.digest))[0] == put


def test_what_containerd_exports_is_found_by_its_full_name(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path)
    digest = to_text(image(store, None).digest)
    write_index(
        tmp_path,
        entry(digest, **{"io.containerd.image.name": "docker.io/library/x:1", "org.opencontainers.image.ref.name": "1"}),
    )
    assert to_text(store.manifest("docker.io/library/x:1")[0].digest) == digest == to_text(store.manifest("1")[0].digest)


def test_two_images_with_one_tag_are_not_chosen_from(tmp_path: Path) -> None:
    name = {"org.opencontainers.image.ref.name": "a"}
    write_index(tmp_path, entry("sha256:" + "1" * 64, **name), entry("sha256:" + "2" * 64, **name))
    with pytest.raises(CorruptError, match="'a'"):
        LayoutStore(tmp_path).manifest("a")


def test_a_missing_tag_names_those_that_are_there(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path)
    image(store, "v1")
    image(store, "v2")
    with pytest.raises(NotFoundError, match="its tags are v1, v2"):
        store.manifest("v3")


def test_the_only_image(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path)
    put = image(store, "v1")
    assert store.only_image() == to_text(put.digest)
    image(store, "same")
    assert store.only_image() == to_text(put.digest)
    image(store, "v2", annotations={"a": "b"})
    with pytest.raises(InvalidError, match="v2"):
        store.only_image()


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"manifests": 1}',
        '{"manifests": [1]}',
        '{"manifests": [{}]}',
        '{"manifests": [{"mediaType": "a/b", "digest": "sha256:../../etc", "size": 1}]}',
        '{"manifests": [{"mediaType": "a/b", "digest": "sha256:%s", "size": -1}]}' % ("0" * 64),
        '{"manifests": [{"mediaType": "a/b", "digest": "sha256:%s", "size": true}]}' % ("0" * 64),
        '{"manifests": [{"mediaType": "a/b", "digest": "sha256:%s", "size": 1e30}]}' % ("0" * 64),
        '{"manifests": [{"mediaType": "a/b", "digest": "sha256:%s", "size": 1, "annotations": {"a": 1}}]}' % ("0" * 64),
        '{"manifests": [{"mediaType": "a/b", "digest": "sha256:%s", "size": 1, "platform": 1}]}' % ("0" * 64),
        '{"manifests": [{"mediaType": "\\n", "digest": "sha256:%s", "size": 1}]}' % ("0" * 64),
        "[" * 100_000,
        '{"manifests": [], "x": "%s"}' % ("x" * MANIFEST_MAX),
    ],
)
def test_a_broken_index_is_corrupt(tmp_path: Path, index: str) -> None:
    write_index(tmp_path)
    (tmp_path / "index.json").write_text(index)
    store = LayoutStore(tmp_path)
    with pytest.raises(CorruptError, match=r"index\.json"):
        store.manifest("v1")
    with pytest.raises(CorruptError, match=r"index\.json"):
        list(store.tags())
    with pytest.raises(CorruptError):
        image(store, "v1")
    assert (tmp_path / "index.json").read_text() == index


@pytest.mark.parametrize("layout", ["", "{}", '{"imageLayoutVersion": "2.0.0"}', '{"imageLayoutVersion": 1}'])
def test_another_version_is_refused(tmp_path: Path, layout: str) -> None:
    write_index(tmp_path)
    (tmp_path / "oci-layout").write_text(layout)
    with pytest.raises(CorruptError, match=r"oci-layout|version"):
        LayoutStore(tmp_path).manifest("v1")


@pytest.mark.parametrize("missing", ["oci-layout", "index.json", "."])
def test_what_is_no_layout_is_not_found(tmp_path: Path, missing: str) -> None:
    write_index(tmp_path / "layout")
    shutil.rmtree(tmp_path / "layout") if missing == "." else os.unlink(tmp_path / "layout" / missing)
    with pytest.raises(NotFoundError, match="layout"):
        LayoutStore(tmp_path / "layout").manifest("v1")


def test_a_directory_with_something_else_is_not_made_a_layout(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(InvalidError, match="neither empty nor"):
        image(LayoutStore(tmp_path), "v1")
    assert os.listdir(tmp_path) == ["precious"]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidError):
        image(LayoutStore(tmp_path / "file"), "v1")
    with pytest.raises(InvalidError):
        image(LayoutStore(tmp_path / "file/below"), "v1")


@pytest.mark.parametrize("kind", ["directory", "fifo", "corrupt", "short"])
def test_a_blob_that_is_none_is_corrupt_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    store = LayoutStore(tmp_path)
    put = image(store, "v1")
    path = tmp_path / "blobs/sha256" / put.digest.hex()
    data = path.read_bytes()
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(data[:-1] + (b"]" if kind == "corrupt" else b""))
    with pytest.raises(CorruptError):
        store.manifest("v1")
    with pytest.raises(CorruptError), store.open_blob(put) as stream:
        stream.read()


def test_a_blob_of_the_wrong_size_is_replaced(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path)
    image(store, "v1")
    path = tmp_path / "blobs/sha256" / CONFIG.digest.hex()
    path.write_bytes(b"cut")
    assert store.put_blob(CONFIG, io.BytesIO(CONFIG_DATA)) is True
    assert path.read_bytes() == CONFIG_DATA


def test_a_link_is_read_and_never_written_through(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path / "layout")
    image(store, "v1")
    outside = tmp_path / "outside"
    outside.write_bytes(CONFIG_DATA)
    path = tmp_path / "layout/blobs/sha256" / CONFIG.digest.hex()
    path.unlink()
    path.symlink_to(outside)
    with store.open_blob(CONFIG) as stream:
        assert stream.read() == CONFIG_DATA
    outside.write_bytes(b"short")
    store.put_blob(CONFIG, io.BytesIO(CONFIG_DATA))
    assert outside.read_bytes() == b"short"
    assert not path.is_symlink()


def test_nothing_temporary_stays_behind_a_failure(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path)
    image(store, "v1")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorruptError):
        store.put_blob(Descriptor("a/b", sha256(b"x"), 1), io.BytesIO(b"y"))
    with pytest.raises(PuzzlefsError):
        store.put_manifest(Descriptor(OCI_MANIFEST, sha256(b"x"), 1), b"y", "v1")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_index_is_changed_under_a_lock(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path)
    image(store, "v1")
    before = (tmp_path / "index.json").read_bytes()
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    writer = threading.Thread(target=image, args=(LayoutStore(tmp_path), "v2"))
    writer.start()
    writer.join(0.1)
    held = (writer.is_alive(), (tmp_path / "index.json").read_bytes())
    os.close(descriptor)
    writer.join()
    assert held == (True, before)
    assert list(store.tags()) == ["v1", "v2"]
