"""What every member of the chunk store promises (see `chunkstore.base`), run by every member.

A member supplies a factory that builds it over a `World`: the same chunks as a stub store, as a pack and as blobs. Members
that fetch are wrapped in `verify`, as the contract says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.build.chunk import Cutting
from snapshotter.chunkstore.base import ChunkCorruptError, ChunkMissingError, ChunkRef, ChunkStore, SourceUnavailableError
from snapshotter.chunkstore.blobs import BlobStore
from snapshotter.chunkstore.cache import CachedStore, ChunkCache
from snapshotter.chunkstore.chain import Node, layout_chain, packs_chain
from snapshotter.chunkstore.fallback import Fallback
from snapshotter.chunkstore.flying import Flying
from snapshotter.chunkstore.foreseen import Foreseen
from snapshotter.chunkstore.packmap import PackMap
from snapshotter.chunkstore.packs import PackStore
from snapshotter.chunkstore.peers import Peers
from snapshotter.chunkstore.pool import FetchPool
from snapshotter.chunkstore.reads import Observed, Reads
from snapshotter.chunkstore.recent import RecentChunks, RecentStore
from snapshotter.chunkstore.recorder import Recorded
from snapshotter.chunkstore.retry import Retry, RetryPolicy
from snapshotter.chunkstore.singleflight import SingleFlight
from snapshotter.chunkstore.stats import Stats
from snapshotter.chunkstore.verify import Verify
from snapshotter.daemon.contentstore import ContentStore
from snapshotter.daemon.peerserver import PeerServer
from snapshotter.daemon.startwindow import Started, StartWindow
from snapshotter.errors import PuzzlefsError, UnavailableError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.pack import PackIndex
from snapshotter.registry.base import BlobSource
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.hosts import RegistryConfig
from snapshotter.registry.httpdirectory import HttpDirectory
from snapshotter.registry.objectstorage import S3Directory
from tests.support.blobserver import BlobServer, ContentServer, signed_with
from tests.support.chunks import MemoryBlobs, MemoryLocal, StubStore, at_once, make_pack, refs, some_chunks
from tests.support.nodes import LOOPBACK, ServedChunks

CHUNKS = [*some_chunks(10), *some_chunks(2, 1, Cutting().longest - 5)]
ABSENT = ChunkRef(sha256(b"nobody has this"))
PLACE, PACK, ENTRIES = make_pack(CHUNKS)


@dataclass
class World:
    """The sources of one test, and what must be closed after it."""

    path: Path
    stub: StubStore = field(default_factory=lambda: StubStore(CHUNKS))
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)
    stats: Stats = field(default_factory=Stats)
    after: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        for blob in (*CHUNKS, PACK):
            self.blobs.add(blob)

    def size_of(self, digest: Digest) -> int | None:
        blob = self.blobs.blobs.get(digest)
        return None if blob is None else len(blob)

    def source(self) -> ChunkStore:
        return Verify(self.stub, stats=self.stats)

    def pack(self) -> PackMap:
        return PackMap(
            PLACE.pack, lambda: PackIndex.parse(PACK[PLACE.index_offset :][: PLACE.index_length], PLACE.index_offset)
        )

    def corrupt(self, number: int) -> None:
        """Garble chunk `number` wherever it is."""
        digest = sha256(CHUNKS[number])
        self.stub.chunks[digest] = CHUNKS[number][:-1] + b"!"
        self.blobs.flip(digest, 5)
        self.blobs.flip(PLACE.pack, ENTRIES[number].offset + ENTRIES[number].stored_length // 2)

    def go_away(self) -> None:
        """Make every source unavailable, for good."""
        gone = f"chunk {to_text(sha256(CHUNKS[0]))} from stub: the network is down"

        def refuse(*_: object) -> None:
            raise UnavailableError("the network is down")

        self.blobs.before = refuse
        self.stub.failures = [SourceUnavailableError(gone) for _ in range(100)]

    def come_back(self) -> None:
        self.blobs.before = lambda digest, offset, length: None
        self.stub.failures = []


def cache(world: World) -> ChunkStore:
    kept = ChunkCache(world.path, stats=world.stats)
    world.after.callback(kept.close)
    return CachedStore(kept, world.source())


def packs(world: World, *, ahead: bool) -> ChunkStore:
    pool = FetchPool()
    world.after.callback(pool.close)
    local = MemoryLocal() if ahead else None
    return Verify(
        PackStore([world.pack()], world.blobs, pool=pool, stats=world.stats, local=local), stats=world.stats, local=local
    )


def from_web_server(world: World) -> ChunkStore:
    server = BlobServer(world.blobs, "/memory")
    world.after.callback(server.close)
    return fetched(world, HttpDirectory(server.url, RegistryConfig()))


def from_object_storage(world: World) -> ChunkStore:
    server = BlobServer(world.blobs, "/memory", signed_with("key", "secret"))
    world.after.callback(server.close)
    return fetched(world, S3Directory("s3://memory", endpoint=server.endpoint, credentials=Credentials("key", "secret")))


def from_containerd(world: World) -> ChunkStore:
    server = ContentServer(world.blobs, world.path / "memory.sock", "ns")
    world.after.callback(server.close)
    store = ContentStore(world.path / "memory.sock", "ns")
    world.after.callback(store.close)
    return fetched(world, store)


def beside_other_nodes(world: World) -> ChunkStore:
    """One node has some of the chunks, right or as they are garbled; what is not to be had there comes from the pack."""
    served = ServedChunks({})
    served.chunks = world.stub.chunks  # where they are garbled
    server = PeerServer(LOOPBACK, served, stats=world.stats)
    world.after.callback(server.close)
    served.before = lambda digest: world.blobs.before(digest, 0, 0)
    del served.chunks[sha256(CHUNKS[3])]
    near = Peers([server.address], stats=world.stats)
    world.after.callback(near.close)
    return Verify(PackStore([world.pack()], world.blobs, stats=world.stats, near=near), stats=world.stats)


def fetched(world: World, source: BlobSource) -> ChunkStore:
    return Verify(PackStore([world.pack()], source, stats=world.stats), stats=world.stats)


def node(world: World) -> ChunkStore:
    made = Node(world.path, read_timeout=0.5)
    world.after.callback(made.close)
    made.fetch_indexes([PLACE], [world.blobs])
    return made.chain([PLACE], [world.blobs])


class AllExpected(Foreseen):
    """Everything that is asked for is expected the moment before."""

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        self.expect(wanted)
        return super().get(wanted)


def foreseen(world: World) -> ChunkStore:
    pool = FetchPool()
    world.after.callback(pool.close)
    local, flying = MemoryLocal(), Flying()
    store = PackStore([world.pack()], world.blobs, pool=pool, stats=world.stats, local=local, flying=flying)
    checked = Verify(store, stats=world.stats, local=local)
    return AllExpected(checked, checked, lambda: store)


def recorded(world: World) -> ChunkStore:
    made = Recorded(world.source(), world.path / "record")
    world.after.callback(made.close)
    return made


def started(world: World) -> ChunkStore:
    window = StartWindow(world.path, profile=False)
    world.after.callback(window.end)
    return Started(world.source(), window)


def impatient(world: World) -> ChunkStore:
    policy = RetryPolicy(attempts=2)
    return Retry(world.source(), stats=world.stats, policy=policy, sleep=lambda seconds: None)


MEMBERS: dict[str, Callable[[World], ChunkStore]] = {
    "verify": World.source,
    "recent": lambda world: RecentStore(RecentChunks(), world.source()),
    "cache": cache,
    "single-flight": lambda world: SingleFlight(world.source(), stats=world.stats),
    "retry": impatient,
    "fallback": lambda world: Fallback([Verify(StubStore(name="empty"), stats=world.stats), world.source()]),
    "packs": lambda world: packs(world, ahead=False),
    "packs reading ahead": lambda world: packs(world, ahead=True),
    "packs from a web server": from_web_server,
    "packs from object storage": from_object_storage,
    "packs from containerd": from_containerd,
    "packs beside other nodes' caches": beside_other_nodes,
    "blobs": lambda world: Verify(BlobStore(world.blobs, world.size_of, stats=world.stats), stats=world.stats),
    "noted": lambda world: Observed(world.source(), Reads(), "read", "layer"),
    "recorded": recorded,
    "started": started,
    "foreseen": foreseen,
    "a worker's chain": node,
    "a layout's chain of packs": lambda world: packs_chain([PLACE], world.blobs, world.stats),
    "a layout's chain of blobs": lambda world: layout_chain(world.blobs, world.size_of, world.stats),
}


@contextmanager
def worlds(path: Path) -> Iterator[World]:
    world = World(path)
    with world.after:
        yield world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with worlds(tmp_path) as made:
        yield made


@pytest.fixture(params=MEMBERS)
def member(request: pytest.FixtureRequest) -> Callable[[World], ChunkStore]:
    return MEMBERS[request.param]


@pytest.fixture
def store(member: Callable[[World], ChunkStore], world: World) -> ChunkStore:
    return member(world)


def names_it(error: PuzzlefsError, wanted: Sequence[ChunkRef]) -> bool:
    """Whether the text tells which of the chunks it is about, and where it was looked for."""
    text = str(error)
    return any(f"chunk {to_text(ref.digest)}" in text for ref in wanted) and ("stub" in text or "memory" in text)


def test_answers_are_in_the_order_of_the_question_repetitions_included(store: ChunkStore) -> None:
    wanted = [CHUNKS[7], CHUNKS[0], CHUNKS[7], CHUNKS[11], CHUNKS[3]]
    assert store.get(refs(wanted)) == wanted


def test_asking_again_gives_the_same(store: ChunkStore) -> None:
    assert store.get(refs(CHUNKS[2:5])) == CHUNKS[2:5]
    assert store.get(refs(CHUNKS[2:5])) == CHUNKS[2:5]
    assert store.get(refs(CHUNKS)) == CHUNKS


def test_asking_for_nothing_gives_nothing(store: ChunkStore) -> None:
    assert store.get([]) == []


def test_one_missing_chunk_raises_missing_and_the_others_can_still_be_had(store: ChunkStore) -> None:
    with pytest.raises(ChunkMissingError) as caught:
        store.get([*refs(CHUNKS[:3]), ABSENT])
    assert caught.value.digests == {ABSENT.digest}
    assert names_it(caught.value, [ABSENT])
    assert store.get(refs(CHUNKS[:3])) == CHUNKS[:3]


@pytest.mark.parametrize("number", [4, 5], ids=["compressible", "incompressible"])
def test_corrupt_bytes_are_never_answered_and_the_others_can_still_be_had(store: ChunkStore, world: World, number: int) -> None:
    world.corrupt(number)
    with pytest.raises(ChunkCorruptError) as caught:
        store.get(refs(CHUNKS[:8]))
    assert caught.value.digest == sha256(CHUNKS[number])
    assert names_it(caught.value, refs([CHUNKS[number]]))
    rest = CHUNKS[:number] + CHUNKS[number + 1 :]
    assert store.get(refs(rest)) == rest


def test_an_unavailable_source_raises_unavailable_and_works_again_when_it_is_back(store: ChunkStore, world: World) -> None:
    world.go_away()
    with pytest.raises(SourceUnavailableError, match=r"network is down|503") as caught:
        store.get(refs(CHUNKS[:2]))
    assert names_it(caught.value, refs(CHUNKS[:2]))
    world.come_back()
    assert store.get(refs(CHUNKS[:2])) == CHUNKS[:2]


def test_has_is_false_for_what_nobody_has(store: ChunkStore) -> None:
    assert not store.has(ABSENT.digest)


def test_the_name_tells_the_source(store: ChunkStore) -> None:
    assert "stub" in store.name or "memory" in store.name


def test_closing_twice_is_as_closing_once(store: ChunkStore) -> None:
    store.get(refs(CHUNKS[:1]))
    store.close()
    store.close()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(questions=st.lists(st.lists(st.sampled_from(CHUNKS), max_size=8), min_size=2, max_size=6))
def test_many_threads_each_get_what_they_asked_for(
    member: Callable[[World], ChunkStore], questions: Sequence[Sequence[bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as path, worlds(Path(path)) as world:
        store = member(world)
        answers = at_once([lambda asked=asked: store.get(refs(asked)) for asked in questions])  # type: ignore[misc]
        assert answers == [list(asked) for asked in questions]
