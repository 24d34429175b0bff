"""The native engine without a kernel: requests in, replies out, whatever the bytes are."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.chunkstore.base import ChunkRef
from snapshotter.errors import CorruptError, UnavailableError
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import DirEntry, FileChunk, Inode, Kind, RootfsContent, Xattr
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from snapshotter.mount import wire
from snapshotter.mount.foresight.scan import SCAN_LENGTH, SWEEP_LENGTH
from snapshotter.mount.foresight.sweep import WINDOW_FIRST
from snapshotter.mount.pieces import BATCH_CHUNKS, LONG_CHUNK
from snapshotter.mount.session import WHOLE_MAX, Buffers, Failure, Interrupt, ReadJob, Session
from snapshotter.mount.tree import Tree
from snapshotter.mount.wire import InitFlag, Negotiated, Opcode
from tests.support.chunks import StubStore
from tests.support.foresight import Foreseeing, make_tree, names, numbered

RAW = b"content of the file"
READ_BODY = struct.Struct("<QQIIQII")
INIT_BODY = struct.pack("<IIIII44x", 7, 45, 131072, int(wire.WANTED | InitFlag.POSIX_ACL) & 0xFFFFFFFF, 1 << 7)


def make_session(*, xattrs: bool = True) -> tuple[Session, StubStore, list[Failure]]:
    """A session over a small tree: 2 ``file``, 3 ``link``, 4 missing, 5 ``dir``."""
    names = [(5, b"dir"), (2, b"file"), (3, b"link"), (4, b"missing")]
    inodes = [
        Inode(1, Kind.DIR, entries=[DirEntry(ino, name) for ino, name in names]),
        Inode(
            2,
            Kind.FILE,
            0o644,
            chunks=[FileChunk(sha256(RAW), 0, len(RAW))],
            xattrs=[Xattr(b"user.a", b"one"), Xattr(b"user.b", b"")] if xattrs else [],
        ),
        Inode(3, Kind.LNK, 0o777, target=b"file"),
        Inode(5, Kind.DIR),
    ]
    store = StubStore([RAW])
    failures: list[Failure] = []
    tree = Tree(Rootfs.open(encode(RootfsContent([inodes]))))
    return Session(tree, store, failures.append, Negotiated(41, 0, 0)), store, failures


SESSION, _, _ = make_session()


def ask(session: Session, opcode: int, body: bytes = b"", nodeid: int = 1) -> tuple[int, bytes]:
    """The errno (positive, 0 for none) and payload of the answer to a request."""
    header = wire.IN_HEADER.pack(40 + len(body), opcode, 77, nodeid, 0, 0, 0, 0, 0)
    answer = finished(session, session.handle(memoryview(header + body)))
    assert answer is not None
    return reply(b"".join(answer))


def finished(session: Session, answer: Buffers | ReadJob | Interrupt | None) -> Buffers | None:
    """The answer, jobs done."""
    if isinstance(answer, ReadJob):
        session.is_near(answer)
        return session.read(answer)
    assert not isinstance(answer, Interrupt)
    return answer


def reply(data: bytes) -> tuple[int, bytes]:
    """A reply taken apart; its header must be right."""
    length, error, unique = wire.OUT_HEADER.unpack_from(data)
    assert length == len(data)
    assert unique == 77
    assert error <= 0
    assert error == 0 or length == 16
    return -error, data[16:]


def read_body(offset: int, size: int) -> bytes:
    return READ_BODY.pack(0, offset, size, 0, 0, 0, 0)


def test_lookup_found_absent_and_broken() -> None:
    session, _, failures = make_session()
    error, entry = ask(session, Opcode.LOOKUP, b"file\0")
    assert (error, struct.unpack_from("<QQQQ", entry)) == (0, (2, 0, wire.FOREVER, wire.FOREVER))
    assert ask(session, Opcode.LOOKUP, b"absent\0") == (0, wire.NEGATIVE_ENTRY)
    assert failures == []
    assert ask(session, Opcode.LOOKUP, b"missing\0") == (errno.EIO, b"")
    assert [failure.ino for failure in failures] == [1]
    assert ask(session, Opcode.LOOKUP, b"n" * 256 + b"\0")[0] == errno.ENAMETOOLONG


def test_attributes_links_and_statfs() -> None:
    session, _, _ = make_session()
    error, attr_out = ask(session, Opcode.GETATTR, bytes(16), nodeid=2)
    assert (error, attr_out) == (0, wire.pack_attr_out((2, 0o100644, 1, 0, 0, len(RAW), 1, 0, 0, 0)))
    assert ask(session, Opcode.READLINK, nodeid=3) == (0, b"file")
    assert ask(session, Opcode.STATFS) == (0, wire.pack_statfs_out(1, 4))
    assert ask(session, Opcode.GETATTR, bytes(16), nodeid=99)[0] == errno.ENOENT


def test_reads() -> None:
    session, _, failures = make_session()
    assert ask(session, Opcode.READ, read_body(0, 4096), nodeid=2) == (0, RAW)
    assert ask(session, Opcode.READ, read_body(8, 2), nodeid=2) == (0, RAW[8:10])
    assert ask(session, Opcode.READ, read_body(2**64 - 1, 2**32 - 1), nodeid=2) == (0, b"")
    assert failures == []
    assert ask(session, Opcode.READ, read_body(0, 10), nodeid=1)[0] == errno.EIO
    assert ask(session, Opcode.READ, read_body(0, 10), nodeid=99)[0] == errno.EIO
    assert len(failures) == 2


class Near(StubStore):
    """Has all its chunks on this machine, and those in `memory` at hand."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        super().__init__(chunks)
        self.memory: set[Digest] = set()
        self.tried: list[Digest] = []
        self.parts: list[tuple[Digest, int, int]] = []

    def at_hand(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        self.tried += [ref.digest for ref in wanted]
        return self.local(wanted) if self.memory.issuperset(ref.digest for ref in wanted) else None

    def part(self, ref: ChunkRef, offset: int, length: int) -> bytes | None:
        self.parts.append((ref.digest, offset, length))
        return self.chunks[ref.digest][offset : offset + length] if ref.digest in self.memory else None

    def local(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        found = [self.chunks.get(ref.digest) for ref in wanted]
        return [raw for raw in found if raw is not None] if None not in found else None


def files_session(contents: Sequence[Sequence[bytes]]) -> tuple[Session, Near]:
    """A session over files, numbered from 10 on, with a directory after every one."""
    inodes = [Inode(1, Kind.DIR)]
    for number, pieces in enumerate(contents):
        chunks = [FileChunk(sha256(piece), 0, len(piece)) for piece in pieces]
        inodes += [Inode(10 + 2 * number, Kind.FILE, chunks=chunks), Inode(11 + 2 * number, Kind.DIR)]
    store = Near([piece for pieces in contents for piece in pieces])
    store.memory = set(store.chunks)
    tree = Tree(Rootfs.open(encode(RootfsContent([inodes]))))
    return Session(tree, store, lambda failure: None, Negotiated(41, 0, 0)), store


def begun(session: Session, ino: int, size: int = 4096) -> ReadJob:
    """What `session` makes of the kernel's request for the first bytes of file `ino`."""
    header = wire.IN_HEADER.pack(40 + READ_BODY.size, Opcode.READ, 77, ino, 0, 0, 0, 0, 0)
    job = session.handle(memoryview(header + read_body(0, size)))
    assert isinstance(job, ReadJob)
    return job


def test_what_is_local_is_read_without_asking_anybody_else() -> None:
    session, store = files_session([[b"first", b"second"], [b"third"]])
    store.memory.clear()
    job = ReadJob(77, 10, 2, 7, 0)
    assert session.at_hand(job) is None
    answer = session.read_local(job)
    assert answer is not None
    assert reply(b"".join(answer)) == (0, b"rstseco")
    del store.chunks[sha256(b"second")]
    assert session.read_local(job) is None
    assert session.read_local(ReadJob(77, 1, 0, 10, 0)) is None, "it is for `read` to say what is wrong"
    assert store.asked == []
    assert make_session()[0].read_local(ReadJob(77, 2, 0, 10, 0)) is None, "a store that keeps nothing"


def test_a_read_of_many_pieces_is_not_for_the_event_loop() -> None:
    pieces = [b"%d" % number for number in range(BATCH_CHUNKS + 1)]
    session, store = files_session([pieces])
    job = ReadJob(77, 10, 0, 4096, 0)
    assert session.at_hand(job) is None
    assert store.tried == []
    answer = session.read_local(job)
    assert answer is not None
    assert reply(b"".join(answer)) == (0, b"".join(pieces))


def test_of_long_chunks_a_short_read_takes_what_it_needs() -> None:
    usual = b"u" * LONG_CHUNK
    long = [bytes([number]) * (LONG_CHUNK + 1) for number in range(3)]
    session, store = files_session([[usual, long[0], long[1]], [long[0], b"short", long[1], long[2]]])
    answer = session.at_hand(ReadJob(77, 10, LONG_CHUNK - 2, 5, 0))
    assert answer is not None
    assert reply(b"".join(answer)) == (0, b"uu" + bytes(3))
    assert (store.tried, store.parts) == ([sha256(usual)], [(sha256(long[0]), 0, 3)])
    answer = session.at_hand(ReadJob(77, 12, LONG_CHUNK, 7, 0))
    assert answer is not None
    assert reply(b"".join(answer)) == (0, b"\0short\1")
    store.memory.remove(sha256(b"short"))
    assert session.at_hand(ReadJob(77, 12, LONG_CHUNK, 7, 0)) is None
    store.memory.remove(sha256(long[0]))
    assert session.at_hand(ReadJob(77, 12, LONG_CHUNK, 1, 0)) is None


def test_a_read_of_many_long_chunks_is_not_for_the_event_loop() -> None:
    """Their parts may be short, in a file that nobody would make so."""
    whole = b"x" * (LONG_CHUNK + 10)
    _, store = files_session([[whole]])
    parts = [FileChunk(sha256(whole), LONG_CHUNK + number, 1) for number in range(3)]
    tree = Tree(Rootfs.open(encode(RootfsContent([[Inode(1, Kind.DIR), Inode(10, Kind.FILE, chunks=parts)]]))))
    session = Session(tree, store, lambda failure: None, Negotiated(41, 0, 0))
    assert session.at_hand(ReadJob(77, 10, 0, 2, 0)) is not None
    store.parts.clear()
    assert session.at_hand(ReadJob(77, 10, 0, 3, 0)) is None
    assert store.parts == []


def test_the_next_file_of_a_scan_is_looked_for_once() -> None:
    contents = [[b"content of %d" % number] for number in range(10)]
    session, store = files_session(contents)
    for number in range(SCAN_LENGTH + 1):
        session.look_ahead()
        assert len(store.tried) == number, "too short a scan yet"
        session.at_hand(begun(session, 10 + 2 * number))
    store.tried.clear()
    session.look_ahead()
    session.look_ahead()
    assert store.tried == [sha256(contents[SCAN_LENGTH + 1][0])]
    store.tried.clear()
    answer = session.at_hand(begun(session, 12 + 2 * SCAN_LENGTH))
    assert answer is not None
    assert (reply(b"".join(answer)), store.tried) == ((0, contents[SCAN_LENGTH + 1][0]), []), "its answer is there already"
    session.at_hand(begun(session, 10))
    store.tried.clear()
    session.look_ahead()
    assert store.tried == [], "somebody went back"


@pytest.mark.parametrize(("offset", "size"), [(0, 3), (2, 4096), (2, 3)])
def test_a_part_of_the_next_file_is_no_more_than_asked_for(offset: int, size: int) -> None:
    contents = [[b"content of %d" % number] for number in range(10)]
    session, _ = files_session(contents)
    for number in range(SCAN_LENGTH + 1):
        session.at_hand(begun(session, 10 + 2 * number))
    session.look_ahead()
    answer = session.at_hand(ReadJob(77, 12 + 2 * SCAN_LENGTH, offset, size, 0))
    assert answer is not None
    assert reply(b"".join(answer)) == (0, contents[SCAN_LENGTH + 1][0][offset : offset + size])


def test_of_a_long_next_file_no_answer_is_kept() -> None:
    contents = [[bytes([number]) * (WHOLE_MAX + 1)] for number in range(10)]
    session, store = files_session(contents)
    for number in range(SCAN_LENGTH + 1):
        session.at_hand(begun(session, 10 + 2 * number, 1 << 17))
    session.look_ahead()
    store.tried.clear()
    answer = session.at_hand(ReadJob(77, 12 + 2 * SCAN_LENGTH, 0, 1 << 17, 0))
    assert answer is not None
    assert (reply(b"".join(answer))[1], len(store.tried)) == (contents[SCAN_LENGTH + 1][0], 1)


class Guessing(Near):
    """A store that notes what is expected."""

    is_told = False

    def told(self) -> bool:
        return self.is_told

    def risk(self) -> int:
        return 0

    def __init__(self, chunks: Sequence[bytes]) -> None:
        super().__init__(chunks)
        self.expected: list[ChunkRef] = []

    def expect(self, wanted: Sequence[ChunkRef]) -> None:
        self.expected += wanted

    def bulk(self) -> None:
        pass

    def look(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        return self.get(wanted)


def test_nothing_is_guessed_for_a_scan_though_it_steps_from_directory_to_directory() -> None:
    contents = [[b"content of %d" % number, b"and its end"] for number in range(40)]
    near, _ = files_session(contents)
    store = Guessing([chunk for chunks in contents for chunk in chunks])
    session = Session(near.tree, store, pytest.fail)
    numbers = [10 + 2 * number for number in range(40)]
    for ino in numbers[:3]:
        session.read_far(begun(session, ino, 4))
    assert store.expected, "a read of the beginning of a file brings all of it"
    for ino in (*numbers[3:12], *numbers[30:32], *numbers[20:30]):
        job = begun(session, ino, 4)
        store.expected.clear()
        session.read_far(job)
    assert store.expected == []
    for ino in reversed(numbers[:12]):
        session.read_far(begun(session, ino, 4))
    assert store.expected, "this is no scan"


def test_what_a_reader_of_all_files_comes_to_is_brought_once_it_misses_something() -> None:
    files = numbered(400, 10000)
    tree, inos = make_tree(files)
    store = Foreseeing(files)
    session = Session(tree, store, pytest.fail)
    jobs = [begun(session, inos[f"d/{number:03}"]) for number in range(SWEEP_LENGTH + 2)]
    assert not any(job.ahead for job in jobs), "as long as all is here nothing has to be brought"
    assert session.read_far(jobs[-1])
    expected = [path for path in files if path >= f"d/{SWEEP_LENGTH + 1:03}"]
    assert names(files, store.expected) == expected[: len(names(files, store.expected))]
    assert sum(map(len, (files[path] for path in names(files, store.expected)))) >= WINDOW_FIRST
    before = len(store.expected)
    ahead = next(job for number in range(SWEEP_LENGTH + 2, 400) if (job := begun(session, inos[f"d/{number:03}"])).ahead)
    assert session.at_hand(ahead) is None, "a thread has to do more than to answer it"
    session.sweep()
    assert len(store.expected) > before


def test_what_another_reader_reads_is_still_guessed_beside_a_scan() -> None:
    files = numbered(100, 10000) | {"e/one": b"1" * 20000}
    tree, inos = make_tree(files)
    store = Foreseeing(files)
    session = Session(tree, store, pytest.fail)
    for number in range(SWEEP_LENGTH + 2):
        begun(session, inos[f"d/{number:03}"])
    session.read_far(ReadJob(77, inos["e/one"], 0, 4, 4711))
    assert names(files, store.expected) == ["e/one"]


def test_nothing_is_looked_for_after_the_last_file_or_within_one() -> None:
    session, store = files_session([[b"content of %d" % number] for number in range(SCAN_LENGTH + 1)])
    for number in range(SCAN_LENGTH + 1):
        session.at_hand(begun(session, 10 + 2 * number))
    store.tried.clear()
    session.look_ahead()
    for offset in range(4096, 8 * 4096, 4096):
        session.at_hand(ReadJob(77, 10, offset, 4096, 0))
        session.look_ahead()
    assert store.tried == []


def test_a_read_that_fails_is_eio_and_reported() -> None:
    session, store, failures = make_session()
    store.failures = [UnavailableError("registry.example does not answer")]
    assert ask(session, Opcode.READ, read_body(3, 10), nodeid=2)[0] == errno.EIO
    store.chunks.clear()
    assert ask(session, Opcode.READ, read_body(3, 10), nodeid=2)[0] == errno.EIO
    assert [failure[:3] for failure in failures] == [(2, 3, 10)] * 2


def listing(session: Session, opcode: int, size: int) -> list[bytes]:
    """All names of the root, read in steps of `size` bytes."""
    prefix = 128 if opcode == Opcode.READDIRPLUS else 0
    names: list[bytes] = []
    cookie = 0
    while True:
        error, data = ask(session, opcode, read_body(cookie, size))
        assert error == 0
        if not data:
            return names
        at = 0
        while at < len(data):
            _, cookie, length, _ = struct.unpack_from("<QQII", data, at + prefix)
            names.append(data[at + prefix + 24 : at + prefix + 24 + length])
            at += -(-(prefix + 24 + length) // 8) * 8


@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
@pytest.mark.parametrize("size", [160, 200, 4096])
def test_directories_are_read_in_steps(opcode: Opcode, size: int) -> None:
    session, _, _ = make_session()
    assert listing(session, opcode, size) == [b".", b"..", b"dir", b"file", b"link", b"missing"]


def test_what_a_walk_lists_next_is_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, failures = make_session()
    session.look_ahead()
    listing(session, Opcode.READDIRPLUS, 4096)
    for _ in range(4):
        session.look_ahead()
    with monkeypatch.context() as patch:
        patch.setattr(session.tree, "entries", pytest.fail)
        assert ask(session, Opcode.READDIRPLUS, read_body(0, 4096), nodeid=5)[0] == 0
        assert ask(session, Opcode.READDIRPLUS, read_body(2, 4096), nodeid=5) == (0, b"")
        session.look_ahead()
    assert listing(session, Opcode.READDIRPLUS, 4096) == [b".", b"..", b"dir", b"file", b"link", b"missing"]
    assert failures == []


def test_a_listing_that_fails_ahead_fails_only_whoever_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, failures = make_session()
    whole = listing(session, Opcode.READDIRPLUS, 4096)

    def fail(ino: int) -> Sequence[DirEntry]:
        raise CorruptError(f"inode {ino} is broken")

    with monkeypatch.context() as patch:
        patch.setattr(session.tree, "entries", fail)
        session.look_ahead()
        session.look_ahead()
        assert failures == []
        for _ in range(2):
            assert ask(session, Opcode.READDIRPLUS, read_body(0, 4096), nodeid=5)[0] == errno.EIO
    assert len(failures) == 2
    assert ask(session, Opcode.READDIRPLUS, read_body(0, 4096), nodeid=5)[0] == 0
    assert listing(session, Opcode.READDIRPLUS, 4096) == whole


def test_two_who_list_at_the_same_time_get_each_what_they_ask_for() -> None:
    session, _, _ = make_session()
    alone = listing(session, Opcode.READDIRPLUS, 160)
    ask(session, Opcode.READDIRPLUS, read_body(0, 160))
    ask(session, Opcode.READDIRPLUS, read_body(0, 160), nodeid=5)
    assert ask(session, Opcode.READDIRPLUS, read_body(1, 160))[1] != b""
    assert ask(session, Opcode.READDIRPLUS, read_body(2, 160), nodeid=5) == (0, b"")
    assert listing(session, Opcode.READDIRPLUS, 160) == alone


def test_readdirplus_gives_no_inode_where_there_is_none() -> None:
    session, _, _ = make_session()
    _, data = ask(session, Opcode.READDIRPLUS, read_body(5, 4096))
    assert data[:128] == wire.NO_ENTRY
    assert b"missing" in data


def test_xattrs() -> None:
    session, _, _ = make_session()
    size = struct.Struct("<II").pack
    assert ask(session, Opcode.LISTXATTR, size(0, 0), nodeid=2) == (0, size(14, 0))
    assert ask(session, Opcode.LISTXATTR, size(14, 0), nodeid=2) == (0, b"user.a\0user.b\0")
    assert ask(session, Opcode.LISTXATTR, size(13, 0), nodeid=2)[0] == errno.ERANGE
    assert ask(session, Opcode.GETXATTR, size(0, 0) + b"user.a\0", nodeid=2) == (0, size(3, 0))
    assert ask(session, Opcode.GETXATTR, size(3, 0) + b"user.a\0", nodeid=2) == (0, b"one")
    assert ask(session, Opcode.GETXATTR, size(2, 0) + b"user.a\0", nodeid=2)[0] == errno.ERANGE
    assert ask(session, Opcode.GETXATTR, size(3, 0) + b"user.b\0", nodeid=2) == (0, b"")
    assert ask(session, Opcode.GETXATTR, size(3, 0) + b"user.c\0", nodeid=2)[0] == errno.ENODATA


def test_a_layer_without_xattrs_has_none_rather_than_no_support_for_them() -> None:
    session, _, _ = make_session(xattrs=False)
    assert ask(session, Opcode.GETXATTR, struct.pack("<II", 0, 0) + b"user.a\0", nodeid=2)[0] == errno.ENODATA
    assert ask(session, Opcode.LISTXATTR, struct.pack("<II", 9, 0), nodeid=2) == (0, b"")


def test_opens_cost_one_message_for_good() -> None:
    session, _, _ = make_session()
    for opcode in (Opcode.OPEN, Opcode.OPENDIR, Opcode.FLUSH, Opcode.STATX, Opcode.LSEEK, Opcode.ACCESS, 9999):
        assert ask(session, opcode, bytes(64), nodeid=2)[0] == errno.ENOSYS


@pytest.mark.parametrize("opcode", sorted(wire.WRITING))
def test_nothing_is_written(opcode: Opcode) -> None:
    session, _, failures = make_session()
    assert ask(session, opcode, bytes(64), nodeid=2)[0] == errno.EROFS
    assert failures == []


def test_an_interrupt_names_the_request() -> None:
    session, _, _ = make_session()
    header = wire.IN_HEADER.pack(48, Opcode.INTERRUPT, 77, 0, 0, 0, 0, 0, 0)
    assert session.handle(memoryview(header + struct.pack("<Q", 4711))) == Interrupt(4711)


@pytest.mark.parametrize("opcode", sorted(wire.NO_REPLY - {Opcode.INTERRUPT}))
def test_what_wants_no_reply_gets_none(opcode: Opcode) -> None:
    session, _, _ = make_session()
    header = wire.IN_HEADER.pack(48, opcode, 77, 1, 0, 0, 0, 0, 0)
    assert session.handle(memoryview(header + bytes(8))) is None


def test_init() -> None:
    session, _, _ = make_session()
    session.negotiated = None
    error, _ = ask(session, Opcode.INIT, INIT_BODY)
    assert error == 0
    assert session.negotiated is not None
    agreed = Negotiated(*session.negotiated)
    assert (agreed.minor, agreed.can_resend) == (41, True)
    assert agreed.flags & InitFlag.POSIX_ACL


def test_a_newer_major_version_is_answered_with_ours() -> None:
    session, _, _ = make_session()
    session.negotiated = None
    assert ask(session, Opcode.INIT, struct.pack("<IIII", 8, 0, 0, 0)) == (0, struct.pack("<II", 7, 41))
    assert session.negotiated is None


def test_an_old_kernel_is_refused_with_a_reason() -> None:
    session, _, failures = make_session()
    session.negotiated = None
    assert ask(session, Opcode.INIT, struct.pack("<IIII", 7, 30, 0, 0))[0] != 0
    assert "Linux 5.4" in str(session.refused)
    assert len(failures) == 1


@given(
    opcode=st.one_of(st.sampled_from(list(Opcode)), st.integers(0, 2**32 - 1)),
    nodeid=st.one_of(st.integers(0, 6), st.integers(0, 2**64 - 1)),
    body=st.one_of(
        st.binary(max_size=100),
        st.builds(read_body, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
        st.binary(max_size=20).map(lambda name: bytes(8) + name + b"\0"),
    ),
)
def test_any_request_gets_an_answer(opcode: int, nodeid: int, body: bytes) -> None:
    header = wire.IN_HEADER.pack(40 + len(body), opcode, 77, nodeid, 0, 0, 0, 0, 0)
    answered = SESSION.handle(memoryview(header + body))
    if answered is None or isinstance(answered, Interrupt):
        assert opcode in wire.NO_REPLY
        return
    answer = finished(SESSION, answered)
    assert answer is not None
    reply(b"".join(answer))


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(data: bytes) -> None:
    answered = SESSION.handle(memoryview(data))
    answer = None if isinstance(answered, Interrupt) else finished(SESSION, answered)
    assert answer is None or wire.OUT_HEADER.unpack_from(answer[0])[0] == sum(map(len, answer))


def test_statx_is_refused_so_that_the_kernel_asks_for_what_there_is() -> None:
    session, _, failures = make_session()
    assert ask(session, Opcode.STATX, bytes(24), nodeid=2) == (errno.ENOSYS, b"")
    assert failures == []


def test_ioctl_is_refused_as_a_file_system_without_any_refuses_it() -> None:
    """Linux 5.10 shows the caller what is answered here; ENOSYS, to a program, means that there is no such system call."""
    session, _, failures = make_session()
    assert ask(session, Opcode.IOCTL, bytes(32), nodeid=2) == (errno.ENOTTY, b"")
    assert failures == []
