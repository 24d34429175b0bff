"""The layer store's paths: what exists, what is asked of whom for it, what users mean, and that nothing grows."""

from __future__ import annotations

import base64
import errno
import gc
import json
import stat
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from snapshotter.daemon.store.info import EMPTY_TAR
from snapshotter.daemon.store.state import TIMES_MAX, References, StoredLayer
from snapshotter.daemon.store.tree import FORGET_AFTER, RECHECK_AFTER, ROOT, StoreTree, name_of, reference_of
from snapshotter.daemon.store.turns import TURNS_MAX
from snapshotter.errors import NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.annotations import MetadataLayer, PackLayer
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry.reference import Reference

APP = "registry.example:5000/app:1"


def metadata(text: str) -> StoredLayer:
    """A metadata layer whose digests follow from `text`."""
    blob, diff_id = sha256(b"blob " + text.encode()), sha256(b"diff " + text.encode())
    return StoredLayer(blob, 1000, MetadataLayer(blob, diff_id, bytes(32), ()))


def pack(text: str) -> StoredLayer:
    """A pack, likewise."""
    blob = sha256(b"pack " + text.encode())
    return StoredLayer(blob, 5000, PackLayer(blob))


BASE, TOP, DATA = metadata("base"), metadata("top"), pack("data")


class Images:
    """Registries with what is in `held`; an exception there is raised."""

    def __init__(self) -> None:
        self.held: dict[str, Sequence[StoredLayer] | PuzzlefsError] = {APP: [BASE, TOP, DATA]}
        self.asked: list[str] = []

    def layers(self, reference: Reference) -> Sequence[StoredLayer]:
        self.asked.append(reference.canonical)
        found = self.held.get(reference.canonical, NotFoundError("no such image"))
        if isinstance(found, PuzzlefsError):
            raise found
        return found

    def read_blob(self, reference: Reference, digest: Digest, offset: int, length: int) -> bytes:
        return bytes(length)


class Layers:
    """Remembers which layers are mounted."""

    def __init__(self) -> None:
        self.mounted: set[Digest] = set()
        self.copies: dict[Digest, int] = {}
        self.refuse: PuzzlefsError | None = None

    def ensure(self, layer: MetadataLayer, image: str | None, namespace: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.mounted.add(layer.diff_id)

    def ensure_copies(self, diff_id: Digest, count: int) -> None:
        assert diff_id in self.mounted
        self.copies[diff_id] = count

    def mountpoint(self, diff_id: Digest, copy: int = 0) -> Path:
        return Path("/l") / f"{diff_id.hex()[:4]}.{copy}"

    def release(self, diff_id: Digest) -> None:
        self.mounted.discard(diff_id)

    def content_size(self, diff_id: Digest) -> int:
        return 8192


class Store:
    """A store over fakes, and the walks through it that containers/storage makes."""

    def __init__(self, root: Path, limit: int = 1024) -> None:
        self.root = root
        self.now = 0.0
        self.images, self.layers = Images(), Layers()
        self.limit = limit
        (root / "nothing").mkdir(exist_ok=True)
        self.restart()

    def restart(self) -> None:
        """Start again from what is on disk."""
        known = References(self.root / "references", self.limit)
        self.tree = StoreTree(known, self.images, self.layers, self.root / "nothing", lambda: self.now)

    def walk(self, *names: str | bytes) -> int | None:
        """The inode that a path leads to."""
        ino = ROOT
        for name in names:
            node = self.tree.lookup(ino, name if isinstance(name, bytes) else name.encode())
            if node is None:
                return None
            ino = node.ino
        return ino

    def key(self, reference: str, digest: Digest, *rest: str) -> int | None:
        """The inode of a path below a key."""
        return self.walk(name_of(reference), to_text(digest), *rest)

    def get(self, reference: str, digest: Digest, *rest: str) -> int:
        """The same, of a path that exists."""
        ino = self.key(reference, digest, *rest)
        assert ino is not None
        return ino

    def use(self, reference: str, digest: Digest) -> None:
        """One user more."""
        assert self.tree.create(self.get(reference, digest), b"use") == errno.ENOENT

    def release(self, reference: str, digest: Digest) -> None:
        """One user less."""
        ino = self.walk(name_of(reference))
        assert ino is not None
        assert self.tree.rmdir(ino, to_text(digest).encode()) == errno.ENOENT


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_layer_is_found_by_either_key(store: Store) -> None:
    """podman up to 5.0 asks by the blob's digest, later ones by the TOC digest."""
    assert isinstance(TOP.layer, MetadataLayer)
    assert isinstance(DATA.layer, PackLayer)
    for keys in ((TOP.blob, TOP.layer.diff_id), (DATA.blob, DATA.layer.toc_digest)):
        by_blob, by_toc = (store.get(APP, key) for key in keys)
        assert by_blob != by_toc  # a directory has one name, or the kernel's dentries move
        assert store.get(APP, keys[0], "info") == store.get(APP, keys[1], "info")


def test_a_lookup_of_diff_mounts_the_layer(store: Store) -> None:
    """Not before: an image's other layers may never be asked for."""
    assert isinstance(TOP.layer, MetadataLayer)
    key = store.get(APP, TOP.blob)
    assert not store.layers.mounted
    node = store.tree.lookup(key, b"diff")
    assert node is not None
    assert stat.S_ISLNK(node.mode)
    assert store.tree.readlink(node.ino, 1) == bytes(store.layers.mountpoint(TOP.layer.diff_id))
    assert store.layers.mounted == {TOP.layer.diff_id}


def test_whoever_follows_diff_finds_the_layer_mounted(store: Store) -> None:
    """Also where the kernel looked it up before a restart, at which it could not be mounted."""
    assert isinstance(TOP.layer, MetadataLayer)
    diff = store.get(APP, TOP.blob, "diff")
    store.layers.mounted.clear()
    store.tree.note_failed(TOP.layer.diff_id, NotFoundError("its metadata is gone"))
    store.layers.refuse = NotFoundError("it cannot be had")
    with pytest.raises(UnavailableError):
        store.tree.readlink(diff, 1)
    store.layers.refuse = None
    store.tree.readlink(diff, 1)
    assert store.layers.mounted == {TOP.layer.diff_id}
    assert store.tree.failed == {}


def test_packs_have_an_empty_directory_each(store: Store) -> None:
    """overlayfs takes no directory twice in one mount."""
    store.images.held[APP] = [BASE, DATA, pack("more")]
    targets = {store.tree.readlink(store.get(APP, layer.blob, "diff"), 1) for layer in (DATA, pack("more"))}
    assert len(targets) == 2
    assert all(Path(target.decode()).is_dir() and not list(Path(target.decode()).iterdir()) for target in targets)


def test_info_of_a_metadata_layer(store: Store) -> None:
    """Everything that containers/storage from 1.43 on wants to know."""
    assert isinstance(TOP.layer, MetadataLayer)
    ino = store.get(APP, TOP.blob, "info")
    document = store.tree.read(ino, 0, 4096)
    assert len(document) == store.tree.node(ino).size
    diff_id = to_text(TOP.layer.diff_id)
    assert json.loads(document) == {
        "compressed-diff-digest": to_text(TOP.blob),
        "compressed-size": 1000,
        "compression": 4,
        "diff-digest": diff_id,
        "diff-size": 8192,
        "flags": {"expected-layer-diffid": diff_id},
        "toc-digest": diff_id,
    }


def test_a_pack_is_recorded_under_no_digest_that_content_could_have(store: Store) -> None:
    """Else an image could list another image's layer as its pack, and have containers/storage take nothing for that layer."""
    document = json.loads(store.tree.read(store.get(APP, DATA.blob, "info"), 0, 4096))
    assert document["diff-digest"] == to_text(EMPTY_TAR)
    assert document["toc-digest"] not in (to_text(DATA.blob), to_text(EMPTY_TAR))
    assert "compressed-diff-digest" not in document


def test_blob_is_read_from_the_registry_up_to_its_end(store: Store) -> None:
    ino = store.get(APP, DATA.blob, "blob")
    assert store.tree.node(ino).size == 5000
    assert [len(store.tree.read(ino, offset, 4096)) for offset in (0, 4096, 5000, 9000)] == [4096, 904, 0, 0]


def test_an_image_without_puzzlefs_layers_does_not_exist(store: Store) -> None:
    """And its registry is asked once for all of its layers."""
    for _ in range(3):
        assert store.walk(name_of("registry.example/other:1")) is None
    assert store.images.asked == ["registry.example/other:1"]
    store.now += FORGET_AFTER
    assert store.walk(name_of("registry.example/other:1")) is None
    assert len(store.images.asked) == 2


def test_a_registry_that_cannot_be_asked_has_no_puzzlefs_image(store: Store) -> None:
    """The image may be an ordinary one, of a registry that only podman can reach: it is to be downloaded."""
    store.images.held[APP] = UnavailableError("no route to host")
    assert store.key(APP, TOP.blob) is None


def test_a_layer_that_cannot_be_had_is_an_error_and_not_missing(store: Store) -> None:
    """Of an image that is known to be one of ours: to download its blob would only end in a stranger message."""
    store.layers.refuse = NotFoundError("the blob is gone")
    with pytest.raises(UnavailableError, match="the blob is gone"):
        store.key(APP, TOP.blob, "diff")


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"x",
        b"..",
        b"sha256:" + b"0" * 64,
        b"\xff\xfe",
        b"a" * 1000,
        base64.b64encode(b"../../etc"),
        base64.b64encode(b"a/B"),
        base64.b64encode(b"\xff"),
        base64.b64encode(b"registry.example/a:1").rstrip(b"="),
        base64.b64encode(APP.encode()) + b"\n",
        base64.b64encode(b"app"),
        base64.b64encode(APP.encode() + b"@sha256:00"),
    ],
)
def test_a_name_that_is_no_reference_is_asked_of_nobody(store: Store, name: bytes) -> None:
    assert store.walk(name) is None
    assert store.images.asked == []


def test_only_the_full_form_of_a_reference_is_a_name() -> None:
    """One directory has one name."""
    assert reference_of(name_of("docker.io/library/debian:12")) is not None
    assert reference_of(name_of("debian:12")) is None


@pytest.mark.parametrize("key", [b"x", b"..", b"sha256:zz", b"sha256:" + b"0" * 64, b"SHA256:" + b"0" * 64, b"\xff"])
def test_a_key_that_is_no_layers_does_not_exist(store: Store, key: bytes) -> None:
    assert store.walk(name_of(APP), key) is None


@pytest.mark.parametrize("name", [b"use", b"x", b"..", b"Diff"])
def test_nothing_else_is_below_a_key(store: Store, name: bytes) -> None:
    """``use`` neither: it is a message."""
    assert store.walk(name_of(APP), to_text(TOP.blob), name) is None


def test_the_last_user_that_goes_unmounts_the_layer(store: Store) -> None:
    assert isinstance(TOP.layer, MetadataLayer)
    store.get(APP, TOP.blob, "diff")
    for _ in range(2):
        store.use(APP, TOP.layer.diff_id)
    store.release(APP, TOP.blob)
    assert store.layers.mounted == {TOP.layer.diff_id}
    store.release(APP, TOP.blob)
    assert not store.layers.mounted


def test_a_layer_that_another_image_uses_stays(store: Store) -> None:
    assert isinstance(BASE.layer, MetadataLayer)
    other = "registry.example:5000/app:2"
    store.images.held[other] = [BASE]
    for reference in (APP, other):
        store.get(reference, BASE.blob, "diff")
        store.use(reference, BASE.blob)
    store.release(APP, BASE.blob)
    assert store.layers.mounted == {BASE.layer.diff_id}
    store.release(other, BASE.blob)
    assert not store.layers.mounted


def test_releasing_what_nobody_uses_is_harmless(store: Store) -> None:
    store.release(APP, TOP.blob)
    store.use(APP, TOP.blob)
    assert store.tree.rmdir(ROOT, name_of(APP)) == errno.EROFS
    assert store.tree.rmdir(store.get(APP, TOP.blob), b"diff") == errno.EROFS


def test_nothing_else_can_be_created(store: Store) -> None:
    assert store.tree.create(ROOT, b"use") == errno.EROFS
    assert store.tree.create(store.get(APP, TOP.blob), b"other") == errno.EROFS


def test_paths_mean_the_same_after_a_restart_without_the_registry(store: Store) -> None:
    """containers/storage keeps them in files of its own."""
    before = store.get(APP, TOP.blob, "diff")
    store.use(APP, TOP.blob)
    store.images.held.clear()
    store.layers.mounted.clear()
    store.restart()
    store.images.asked.clear()
    assert store.get(APP, TOP.blob, "diff") == before
    assert store.images.asked == []
    assert isinstance(TOP.layer, MetadataLayer)
    assert store.layers.mounted == {TOP.layer.diff_id}
    store.release(APP, TOP.blob)
    assert not store.layers.mounted


def test_a_tag_that_moved_is_asked_for_again_for_a_layer_that_is_not_known(store: Store) -> None:
    """What is used of its old layers stays under its number; what is not, goes."""
    old = store.get(APP, TOP.blob)
    store.use(APP, TOP.blob)
    new = metadata("new")
    store.images.held[APP] = [BASE, new]
    assert store.key(APP, new.blob) is None  # asked a moment ago
    store.now += RECHECK_AFTER
    assert store.key(APP, new.blob) not in (None, old)
    assert store.get(APP, TOP.blob) == old
    assert store.key(APP, DATA.blob) is None


def test_a_tag_may_move_for_years(store: Store) -> None:
    """Numbers are not given out again, since the kernel may keep what it read under one; and they do not run out."""
    seen = set()
    for number in range(5000):
        remembered, _ = store.tree._known.learn(APP, [metadata(str(number))])
        seen |= set(remembered.layers)
    assert len(seen) == 5000
    assert store.key(APP, metadata("4999").blob) is not None


def test_a_million_lookups_keep_nothing(store: Store) -> None:
    """A hostile path is forgotten: of twenty thousand, no more memory and no file than of two thousand.

    References that are none and such that are no image, keys of an image that it does not have, names below a key.
    """
    key = store.get(APP, TOP.blob)
    image = store.walk(name_of(APP))
    assert image is not None
    files = sorted(store.root.rglob("*"))

    def look_up(numbers: range) -> None:
        for number in numbers:
            store.now += 0.001
            for parent, name in (
                (ROOT, name_of(f"registry.example/n:{number}")),
                (ROOT, b"%d" % number),
                (ROOT, b"/" * (number % 300)),
                (image, to_text(sha256(b"%d" % number)).encode()),
                (image, b"sha256:%d" % number),
                (key, b"%d" % number),
            ):
                assert store.tree.lookup(parent, name) is None

    def memory() -> int:
        gc.collect()
        store.images.asked.clear()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        look_up(range(2000))
        before = memory()
        look_up(range(2000, 20_000))
        assert memory() - before < 50_000, "18,000 of the shortest entries would take a megabyte"
    finally:
        tracemalloc.stop()
    assert sorted(store.root.rglob("*")) == files
    assert store.layers.mounted == set()


def test_a_layer_that_could_not_be_mounted_is_told_until_it_is(store: Store) -> None:
    """Or until nobody uses it any more."""
    assert isinstance(TOP.layer, MetadataLayer)
    store.get(APP, TOP.blob, "diff")
    store.use(APP, TOP.blob)
    for mend in (lambda: store.get(APP, TOP.blob, "diff"), lambda: store.release(APP, TOP.blob)):
        store.tree.note_failed(TOP.layer.diff_id, NotFoundError("its metadata is gone"))
        store.get(APP, BASE.blob, "diff")
        assert {diff_id: str(error) for diff_id, error in store.tree.failed.items()} == {
            TOP.layer.diff_id: "its metadata is gone"
        }
        mend()
        assert store.tree.failed == {}


def test_references_that_nobody_uses_are_forgotten_when_there_are_too_many(tmp_path: Path) -> None:
    """The one that was asked for longest ago first, its layers unmounted; never one that is used."""
    store = Store(tmp_path, limit=2)
    names = [f"registry.example/app:{number}" for number in range(5)]
    for number, name in enumerate(names):
        store.images.held[name] = [metadata(str(number))]
        store.get(name, metadata(str(number)).blob, "diff")
        if number == 0:
            store.use(name, metadata("0").blob)
    assert sorted(store.tree.names(ROOT)) == sorted((name_of(name), node) for name, node in _listed(store, (0, 3, 4)))
    kept = [metadata(text).layer for text in ("0", "3", "4")]
    assert store.layers.mounted == {layer.diff_id for layer in kept if isinstance(layer, MetadataLayer)}


def _listed(store: Store, numbers: Sequence[int]) -> list[tuple[str, object]]:
    nodes = dict(store.tree.names(ROOT))
    return [(name, nodes[name_of(name)]) for name in (f"registry.example/app:{number}" for number in numbers)]


def test_a_file_that_is_damaged_is_left_out(store: Store) -> None:
    """One reference lost is better than a daemon that does not start."""
    store.get(APP, TOP.blob)
    (store.root / "references" / "7").write_text("{")
    (store.root / "references" / "8").write_text('{"reference": "x", "layers": [{}], "users": {}}')
    store.restart()
    assert [name for name, _ in store.tree.names(ROOT)] == [name_of(APP)]


def test_what_is_listed_can_be_looked_up(store: Store) -> None:
    """For a person who looks around."""
    store.get(APP, TOP.blob)
    [(name, node)] = store.tree.names(ROOT)
    assert store.walk(name) == node.ino
    for key, directory in store.tree.names(node.ino):
        assert store.walk(name, key) == directory.ino
        assert {entry for entry, _ in store.tree.names(directory.ino)} == {b"diff", b"info", b"blob"}


@pytest.mark.parametrize("ino", [0, 2, 3, 1 << 20, 7 << 20 | 1, 1 << 63])
def test_an_inode_number_that_means_nothing(store: Store, ino: int) -> None:
    """From a kernel that remembers more than we do."""
    for ask in (
        store.tree.node,
        lambda ino: store.tree.readlink(ino, 1),
        store.tree.names,
        lambda ino: store.tree.read(ino, 0, 10),
    ):
        with pytest.raises(NotFoundError):
            ask(ino)


def test_a_layer_that_occurs_several_times_leads_somewhere_else_each_time(store: Store) -> None:
    """overlayfs takes no directory twice, and containers/storage knows one path: a thread that follows it n times sees n
    mounts, whatever other threads do meanwhile, and after a restart too."""
    assert isinstance(TOP.layer, MetadataLayer)
    store.images.held[APP] = [TOP, BASE, TOP, TOP]
    diff = store.get(APP, TOP.blob, "diff")
    store.use(APP, TOP.blob)
    wanted = {bytes(store.layers.mountpoint(TOP.layer.diff_id, copy)) for copy in range(3)}
    for _ in range(2):
        assert store.layers.copies == {TOP.layer.diff_id: 2}
        store.tree.readlink(diff, 1)  # somebody looked before
        seen: list[bytes] = []
        for other in range(2, 5):
            seen.append(store.tree.readlink(diff, 1))
            store.tree.readlink(diff, other)
        assert set(seen) == wanted
        assert len({store.tree.readlink(store.get(APP, BASE.blob, "diff"), 1) for _ in range(3)}) == 1
        store.restart()


def test_what_threads_were_shown_is_not_kept_for_good(store: Store) -> None:
    store.images.held[APP] = [TOP, TOP]
    diff = store.get(APP, TOP.blob, "diff")
    for thread in range(3 * TURNS_MAX):
        store.tree.readlink(diff, thread)
    assert len(store.tree._turns) == TURNS_MAX


def test_an_image_of_one_layer_a_thousand_times_is_not_mounted_so_often(store: Store) -> None:
    assert isinstance(TOP.layer, MetadataLayer)
    store.images.held[APP] = [TOP] * 1000
    store.get(APP, TOP.blob, "diff")
    assert store.layers.copies == {TOP.layer.diff_id: TIMES_MAX - 1}


@pytest.mark.parametrize("times", [2, 3, 5])
@pytest.mark.parametrize("forgetful", [True, False])
@pytest.mark.parametrize("pulls", [1, 2, 3])
def test_a_layer_that_occurs_several_times_goes_with_its_image(store: Store, times: int, forgetful: bool, pulls: int) -> None:
    """Also where containers/image gives back only one of the users that it makes while it pulls."""
    assert isinstance(TOP.layer, MetadataLayer)
    store.images.held[APP] = [TOP] * times
    for pull in range(pulls):
        store.get(APP, TOP.blob, "diff")
        for _ in range(times):
            store.use(APP, TOP.blob)
        if pull == 0:  # later ones find the layers there
            for _ in range(times):
                store.use(APP, TOP.blob)
        for _ in range(1 if forgetful else times):
            store.release(APP, TOP.blob)
        assert store.layers.mounted == {TOP.layer.diff_id}
    for _ in range(times):
        store.release(APP, TOP.blob)
    assert store.layers.mounted == set()
