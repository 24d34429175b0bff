import gzip
import io
import os
import tarfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.errors import CorruptError, InvalidError, NotFoundError
from snapshotter.format.digest import sha256, to_text
from snapshotter.registry import archive
from snapshotter.registry.archive import ArchiveReader, ArchiveWriter, scan
from snapshotter.registry.base import Descriptor
from snapshotter.registry.documents import OCI_MANIFEST, canonical_json, descriptor_to_json

DATA = bytes(range(256)) * 300
BLOB = Descriptor("application/vnd.oci.image.layer.v1.tar", sha256(DATA), len(DATA))


def fill(writer: ArchiveWriter, tag: str | None = "v1", blobs: int = 1) -> Descriptor:
    writer.put_blob(BLOB, io.BytesIO(DATA))
    for number in range(blobs):
        extra = b"%d" % number
        writer.put_blob(Descriptor("a/b", sha256(extra), len(extra)), io.BytesIO(extra))
    data = canonical_json({"schemaVersion": 2, "config": descriptor_to_json(BLOB), "layers": []})
    descriptor = Descriptor(OCI_MANIFEST, sha256(data), len(data))
    writer.put_manifest(descriptor, data, tag)
    return descriptor


def test_equal_images_make_equal_archives(tmp_path: Path) -> None:
    for name, blobs in (("a", 5), ("b", 5)):
        writer = ArchiveWriter(tmp_path / name)
        fill(writer, blobs=blobs)
        writer.close()
        os.utime(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(tmp_path / "a") as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "")}
        assert tar.getnames()[:2] == ["oci-layout", "index.json"]


def test_nothing_is_there_before_it_is_closed_and_nothing_else_after(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_text("old")
    writer = ArchiveWriter(tmp_path / "image.tar")
    fill(writer)
    assert (tmp_path / "image.tar").read_text() == "old"
    writer.close()
    assert os.listdir(tmp_path) == ["image.tar"]
    assert tarfile.is_tarfile(tmp_path / "image.tar")


def test_without_a_tagged_image_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_text("old")
    writer = ArchiveWriter(tmp_path / "image.tar")
    fill(writer, tag=None)
    writer.close()
    assert os.listdir(tmp_path) == ["image.tar"]
    assert (tmp_path / "image.tar").read_text() == "old"


def test_a_failure_to_write_leaves_the_old_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image.tar").write_text("old")
    writer = ArchiveWriter(tmp_path / "image.tar")
    fill(writer)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_add", full)
    with pytest.raises(Exception, match=r"image\.tar.*No space left"):
        writer.close()
    assert os.listdir(tmp_path) == ["image.tar"]
    assert (tmp_path / "image.tar").read_text() == "old"


def test_what_is_put_after_closing_is_refused(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path / "image.tar")
    writer.close()
    with pytest.raises(InvalidError, match="closed"):
        fill(writer)
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_hold_an_archive_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="directory"):
        ArchiveWriter(tmp_path)
    with pytest.raises(InvalidError, match="no-such"):
        ArchiveWriter(tmp_path / "no-such/image.tar")


def test_a_reader_takes_nothing(tmp_path: Path) -> None:
    reader = ArchiveReader(tmp_path / "image.tar")
    with pytest.raises(InvalidError):
        reader.put_blob(BLOB, io.BytesIO(DATA))
    with pytest.raises(InvalidError):
        reader.put_manifest(BLOB, DATA, "v1")


def read(path: Path) -> None:
    with closing(ArchiveReader(path)) as reader:
        reader.manifest("v1")


def archived(path: Path, members: dict[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def members(tmp_path: Path) -> dict[str, bytes]:
    writer = ArchiveWriter(tmp_path / "source.tar")
    fill(writer)
    writer.close()
    with tarfile.open(tmp_path / "source.tar") as tar:
        found = {info.name: tar.extractfile(info) for info in tar if info.isreg()}
        return {name: file.read() for name, file in found.items() if file is not None}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_each_form_of_tar_is_read(tmp_path: Path, members: dict[str, bytes], form: int, prefix: str) -> None:
    path = archived(tmp_path / "x.tar", {prefix + name: data for name, data in members.items()}, format=form)
    reader = ArchiveReader(path)
    assert reader.manifest("v1")[0].media_type == OCI_MANIFEST
    with reader.open_blob(BLOB) as stream:
        assert stream.read() == DATA
    reader.close()


def test_extended_headers_are_understood_and_the_last_of_equal_names_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for data in (b"first", b"second"):
            info = tarfile.TarInfo("another-name")
            info.size = len(data)
            info.pax_headers = {"path": "index.json", "comment": "ä" * 300, "mtime": "1.5"}
            tar.addfile(info, io.BytesIO(data))
        tar.addfile(tarfile.TarInfo("x" * 300))
    reader = ArchiveReader(tmp_path / "x.tar")
    assert reader._files.document("index.json") == b"second"
    reader.close()


def test_links_and_devices_are_no_blobs(tmp_path: Path) -> None:
    name = f"blobs/sha256/{BLOB.digest.hex()}"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    reader = ArchiveReader(tmp_path / "x.tar")
    assert not reader.has_blob(BLOB.digest)
    reader.close()


def test_a_compressed_archive_says_what_to_do(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = archived(tmp_path / "x.tar", members)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InvalidError, match=r"gzip.*decompress"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"x" * 2000, b"\0" * 511])
def test_what_is_no_tar_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(CorruptError, match="tar"):
        read(tmp_path / "x.tar")


def test_what_is_not_there_or_not_an_oci_archive_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        read(tmp_path / "none.tar")
    path = archived(tmp_path / "docker.tar", {"manifest.json": b"[]"})
    with pytest.raises(NotFoundError, match="not an OCI archive"):
        read(path)


def test_a_truncated_archive_is_corrupt(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = archived(tmp_path / "x.tar", members)
    data = path.read_bytes()
    for length in (600, 40_000):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptError):
            read(path)


def test_too_many_members_end_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MEMBERS_MAX", 10)
    path = archived(tmp_path / "x.tar", {f"f{number}": b"" for number in range(11)})
    with pytest.raises(CorruptError, match="members"):
        read(path)


@pytest.mark.parametrize("record", [b"5 path=", b"99 path=x\n", b"0 path=x\n", b"x", b"11 size=-1\n", b"14 size=" + b"9" * 30])
def test_a_damaged_extended_header_is_corrupt_or_of_no_effect(record: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tarfile.TarInfo("index.json").tobuf() + bytes(1024)
    with suppress(CorruptError):
        assert scan(io.BytesIO(data), "x") in ({}, {"index.json": (1536, 0)})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_a_damaged_archive_is_corrupt_or_read_but_never_a_crash(members: dict[str, bytes], data: st.DataObject) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), {"comment": "x"}
            tar.addfile(info, io.BytesIO(content))
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 6000))] = data.draw(st.integers(0, 255))
    try:
        places = scan(io.BytesIO(damaged), "x")
    except (CorruptError, InvalidError):
        return
    assert all(offset + size <= len(damaged) for offset, size in places.values())


def test_the_digest_decides_in_an_archive_too(tmp_path: Path, members: dict[str, bytes]) -> None:
    name = f"blobs/sha256/{BLOB.digest.hex()}"
    path = archived(tmp_path / "x.tar", {**members, name: DATA[:-1] + b"x"})
    reader = ArchiveReader(path)
    with pytest.raises(CorruptError, match=to_text(BLOB.digest)), reader.open_blob(BLOB) as stream:
        stream.read()
    reader.close()


def test_a_failure_names_the_archive_and_not_where_it_is_gathered(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path / "x.tar")
    writer.put_blob(BLOB, io.BytesIO(DATA))
    with pytest.raises(NotFoundError, match=rf"oci-archive:{tmp_path}/x.tar has no image"):
        writer.manifest("v1")
    writer.close()
