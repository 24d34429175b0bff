"""Tar streams of every kind: read as those who wrote them meant, and refused in one line where they are broken."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.build import tar as tar_module
from snapshotter.build.tar import TarReader
from snapshotter.build.tarheader import TarHeader
from snapshotter.errors import CorruptError
from tests.support.chunks import some_chunks
from tests.support.images import Layer


def members(data: bytes, step: int = 1 << 20) -> list[tuple[TarHeader, bytes]]:
    """All members with their data; the source gives `step` bytes at a time."""
    source = io.BytesIO(data)

    class Source:
        def read(self, size: int) -> bytes:
            return source.read(min(size, step))

    reader = TarReader(Source())
    found = []
    for header in reader:
        content = bytearray()
        buffer = memoryview(bytearray(10_000))
        while count := reader.readinto(buffer):
            content += buffer[:count]
        found.append((header, bytes(content)))
    return found


def test_large_members_are_read_in_place() -> None:
    """From room for 64 KiB on, what the source gives at once goes where it is wanted; the same bytes come out."""
    contents = {b"small": b"s" * 100, b"large": os.urandom(700_000), b"after": b"a" * 513}
    archive = b"".join(block(name, b"%011o" % len(data)) + data + bytes(-len(data) % 512) for name, data in contents.items())
    source = io.BytesIO(archive + bytes(1024))
    in_place = 0

    class Source:
        def read(self, size: int) -> bytes:
            return source.read(2000)

        def readinto(self, buffer: memoryview) -> int:
            nonlocal in_place
            count = source.readinto(buffer)
            in_place += count
            return count

    reader = TarReader(Source())
    buffer = memoryview(bytearray(200_000))
    for header in reader:
        found = b""
        while count := reader.readinto(buffer):
            found += buffer[:count]
        assert found == contents.pop(header.name)
    assert not contents
    assert in_place > 600_000


def test_an_archive_that_ends_within_a_member_that_is_read_in_place_is_corrupt() -> None:
    archive = block(b"large", b"%011o" % 700_000) + bytes(300_000)
    reader = TarReader(io.BytesIO(archive))
    buffer = memoryview(bytearray(100_000))

    def read() -> None:
        for _ in reader:
            while reader.readinto(buffer):
                pass

    with pytest.raises(CorruptError, match="within the data of b'large'"):
        read()


def written(form: int, infos: list[tuple[tarfile.TarInfo, bytes]], pax: dict[str, str] | None = None) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form, encoding="utf-8", errors="surrogateescape", pax_headers=pax) as tar:
        for info, data in infos:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def block(name: bytes, size: bytes = b"00000000000", kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    """A header with these raw fields and a right checksum."""
    raw = bytearray(512)
    raw[0 : len(name)] = name
    raw[100:108], raw[108:116], raw[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    raw[124 : 124 + len(size)] = size
    raw[136:148] = b"00000000000\0"
    raw[156:157] = kind
    raw[257:265] = magic
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def pax_block(records: bytes, kind: bytes = b"x") -> bytes:
    return block(b"PaxHeaders/x", b"%011o" % len(records), kind) + records + bytes(-len(records) % 512)


END = bytes(1024)

name_bytes = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/"))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(
        st.tuples(
            name_bytes,
            st.binary(max_size=2000),
            st.integers(0, 0o7777),
            st.integers(0, 1 << 21 - 1),
            st.integers(0, 1 << 33 - 1),
        ),
        max_size=6,
    ),
    st.sampled_from([1, 511, 512, 513, 1 << 20]),
)
def test_what_python_writes_is_read_back(form: int, entries: list[tuple[bytes, bytes, int, int, int]], step: int) -> None:
    infos = []
    for name, data, mode, owner, time in entries:
        info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
        info.mode, info.uid, info.gid, info.mtime = mode, owner, owner // 2, time
        infos.append((info, data))
    try:
        raw = written(form, infos)
    except ValueError:
        return  # ustar has no place for every name
    found = members(raw, step)
    assert [(h.type, h.name, h.mode, h.uid, h.gid, h.mtime, h.size, data) for h, data in found] == [
        (b"0", name, mode, owner, owner // 2, time, len(data), data) for name, data, mode, owner, time in entries
    ]


def test_every_type_of_member() -> None:
    layer = Layer()
    layer.directory(b"d")
    layer.symlink(b"l", b"t" * 200)
    layer.hardlink(b"h", b"d/f" + b"\xff" * 120)
    layer.fifo(b"p")
    layer.character_device(b"c", (5, 300))
    layer.block_device(b"b", (8, 1))
    found = [(h.type, h.name.rstrip(b"/"), h.linkname, h.device) for h, _ in members(layer.tar())]
    assert found == [
        (b"5", b"d", b"", (0, 0)),
        (b"2", b"l", b"t" * 200, (0, 0)),
        (b"1", b"h", b"d/f" + b"\xff" * 120, (0, 0)),
        (b"6", b"p", b"", (0, 0)),
        (b"3", b"c", b"", (5, 300)),
        (b"4", b"b", b"", (8, 1)),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1700000000.123456789", (1_700_000_000, 123_456_789)),
        (b"1700000000.1", (1_700_000_000, 100_000_000)),
        (b"1700000000.1234567899", (1_700_000_000, 123_456_789)),
        (b"1700000000", (1_700_000_000, 0)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-3", (-3, 0)),
    ],
)
def test_pax_times_keep_their_nanoseconds(text: bytes, expected: tuple[int, int]) -> None:
    record = b" mtime=" + text + b"\n"
    length = len(record) + 2
    header = members(pax_block(b"%d" % length + record) + block(b"f") + END)[0][0]
    assert (header.mtime, header.mtime_nsec) == expected


def test_xattrs_are_bytes() -> None:
    value = bytes(range(256))
    layer = Layer()
    layer.file(b"f", b"", xattrs={"user.all": value, "user.empty": b""})
    assert members(layer.tar())[0][0].xattrs == {b"user.all": value, b"user.empty": b""}


def test_global_headers_change_nothing() -> None:
    raw = written(tarfile.PAX_FORMAT, [(tarfile.TarInfo("f"), b"data")], pax={"mtime": "5", "uid": "7", "comment": "x"})
    header, data = members(raw)[0]
    assert (header.name, header.uid, header.mtime, data) == (b"f", 0, 0, b"data")


def test_the_last_pax_header_counts_and_empty_values_do_not() -> None:
    raw = pax_block(b"10 uid=77\n") + pax_block(b"10 gid=88\n7 uid=\n") + block(b"f") + END
    header = members(raw)[0][0]
    assert (header.uid, header.gid) == (0, 88)


def test_a_v7_directory_is_told_by_its_slash() -> None:
    assert members(block(b"dir/", kind=b"\0", magic=bytes(8)) + END)[0][0].type == b"5"
    assert members(block(b"file", kind=b"\0", magic=bytes(8)) + END)[0][0].type == b"0"


def test_links_have_no_data_whatever_their_size_says() -> None:
    raw = block(b"h", b"00000001000", b"1") + block(b"next") + END
    assert [header.name for header, _ in members(raw)] == [b"h", b"next"]


def test_an_archive_may_end_without_its_end_blocks() -> None:
    assert len(members(block(b"f"))) == 1
    assert members(b"") == []


@pytest.mark.parametrize("form", ["oldgnu", "gnu", "posix-0.0", "posix-0.1", "posix-1.0"])
def test_sparse_files_as_gnu_tar_writes_them(tmp_path: Path, form: str) -> None:
    """Enough data runs that the map goes beyond the first header."""
    size, runs = 3_000_000, {n * 100_000: some_chunks(1, n, 5000)[0] for n in range(29)}
    with (tmp_path / "sparse").open("wb") as file:
        for offset, data in runs.items():
            file.seek(offset)
            file.write(data)
        file.truncate(size)
    (tmp_path / "after").write_bytes(b"after")
    style, _, version = form.partition("-")
    options = [f"--sparse-version={version}"] if version else []
    tar = subprocess.run(
        [
            "tar",
            "-C",
            tmp_path,
            "--hole-detection=raw",
            "--sparse",
            f"--format={style}",
            *options,
            "-cf",
            "-",
            "sparse",
            "after",
        ],
        check=True,
        capture_output=True,
    ).stdout
    (first, content), (second, after) = members(tar)
    assert (first.name, first.type, first.size) == (b"sparse", b"0", size)
    assert content == (tmp_path / "sparse").read_bytes()
    assert (second.name, after) == (b"after", b"after")
    assert len(tar) < 400_000


def test_data_that_is_not_read_is_skipped() -> None:
    raw = written(tarfile.GNU_FORMAT, [(tarfile.TarInfo("a"), b"x" * 3_000_000), (tarfile.TarInfo("b"), b"y")])
    assert [header.name for header in TarReader(io.BytesIO(raw))] == [b"a", b"b"]


# What is broken or hostile.


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"not a tar" * 100, "number|checksum"),
        (block(b"f")[:200], "within a header"),
        (block(b"f") + b"\1" * 512 + END, "number|checksum"),
        (bytes(512) + block(b"f") + END, "after a block of zeros"),
        (block(b"f", b"00000001000"), "ends at byte 512, within the data of b'f'"),
        (block(b"f", b"\xff" * 12), "has a size of -1"),
        (block(b"f", b"\x80" + b"\xff" * 11), "out of range"),
        (block(b"f", b"0x000000000"), "not a number"),
        (block(b"f", b"1_000000000"), "not a number"),
        (block(b"L", b"77777777777", b"L"), "GNU long name of"),
        (block(b"x", b"77777777777", b"x"), "PAX header of"),
        (block(b"x", b"\xff" * 12, b"x"), "PAX header of -1"),
        (pax_block(b"99 path=x\n") + block(b"f"), "malformed PAX record"),
        (pax_block(b"9 path=x\n\n") + block(b"f"), "malformed PAX record"),
        (pax_block(b"11 uid=-xy\n") + block(b"f"), "uid is not a number"),
        (pax_block(b"12 path=a\0b\n") + block(b"f"), "NUL"),
        (pax_block(b"12 size=-50\n") + block(b"f") + END, "size of -50"),
        (pax_block(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + block(b"f"), "does not end"),
        (pax_block(b"24 GNU.sparse.map=0,5,3\n") + block(b"f"), "odd number"),
        (pax_block(b"22 GNU.sparse.map=5,1\n") + block(b"f"), "not in order or exceeds"),
        (block(b"s", kind=b"S"), "without a GNU header"),
    ],
)
def test_broken_archives(raw: bytes, says: str) -> None:
    with pytest.raises(CorruptError, match=says):
        members(raw)


def test_a_sparse_map_cannot_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "SPARSE_MAX", 4096)
    raw = bytearray(block(b"s", kind=b"S", magic=b"ustar  \0"))
    raw[482] = 1
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    endless = bytearray(512)
    endless[504] = 1
    with pytest.raises(CorruptError, match="sparse map of more than 4096"):
        members(bytes(raw) + bytes(endless) * 20)


def test_a_sparse_map_that_stores_less_than_it_says() -> None:
    records = b"22 GNU.sparse.map=0,9\n" + b"26 GNU.sparse.realsize=99\n"
    with pytest.raises(CorruptError, match="stores 0 bytes, its sparse map says 9"):
        members(pax_block(records) + block(b"f") + END)


SAMPLE = written(
    tarfile.PAX_FORMAT,
    [(tarfile.TarInfo("a" * 150), b"x" * 700), (tarfile.TarInfo("b"), b""), (tarfile.TarInfo("c"), b"y" * 512)],
)


@pytest.mark.parametrize("length", range(0, len(SAMPLE), 97))
def test_a_stream_that_is_cut_short_gives_a_prefix_or_an_error(length: int) -> None:
    whole = members(SAMPLE)
    try:
        found = members(SAMPLE[:length])
    except CorruptError:
        return
    assert found == whole[: len(found)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_give_members_or_an_error(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(SAMPLE)
    for position, value in changes:
        raw[position] = value
    try:
        for header, data in members(bytes(raw)):
            assert len(data) == (0 if header.type in (b"1", b"2", b"3", b"4", b"5", b"6") else header.size)
    except CorruptError:
        pass


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_an_error(seed: int) -> None:
    with pytest.raises(CorruptError):
        members(some_chunks(2, seed, 5000)[1])


def test_memory_stays_bounded() -> None:
    """64 MiB of one file pass through without being held."""

    class Zeros:
        def __init__(self) -> None:
            self.left = 64 << 20
            self.head: bytes | None = block(b"large", b"%011o" % self.left)

        def read(self, size: int) -> bytes:
            if self.head is not None:
                head, self.head = self.head, None
                return head
            count = min(size, self.left)
            self.left -= count
            return bytes(count)

    reader = TarReader(Zeros())
    tracemalloc.start()
    try:
        for _ in reader:
            buffer = memoryview(bytearray(65536))
            total = 0
            while count := reader.readinto(buffer):
                total += count
            assert total == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
