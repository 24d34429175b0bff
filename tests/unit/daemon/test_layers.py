"""Lazy layers: fetched and checked before anything is mounted, mounted once, kept over restarts, isolated when broken."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.chunkstore.directory import Sealing
from snapshotter.daemon.layers import Layers
from snapshotter.daemon.origin import Origins
from snapshotter.daemon.sources import LayerSource, Sources
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from snapshotter.format.annotations import MetadataLayer, PackPlace
from snapshotter.format.compression import compress
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.model import ChunkVerity, Inode, Kind, RootfsContent
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import encode
from snapshotter.registry.registries import Registries
from tests.support.registry import FakeRegistry, Fault
from tests.support.sealing import FakeSealing

MESSAGE = encode(RootfsContent([[Inode(1, Kind.DIR)]], [ChunkVerity(sha256(b"chunk"), bytes(32))]))
STORED = compress(MESSAGE)


class Mounts:
    """Remembers what is mounted."""

    def __init__(self) -> None:
        self.mounted: dict[str, tuple[Path, Path, LayerSource]] = {}
        self.unmounted: list[Path] = []
        self.refuse: Exception | None = None

    def mount(self, name: str, mountpoint: Path, metadata: Path, source: LayerSource) -> None:
        if self.refuse is not None:
            raise self.refuse
        assert mountpoint.is_dir()
        assert metadata.read_bytes() == MESSAGE
        self.mounted[name] = (mountpoint, metadata, source)

    def update(self, mountpoint: Path, source: LayerSource) -> None:
        name = self.at(mountpoint)
        self.mounted[name] = (*self.mounted[name][:2], source)

    def unmount(self, mountpoint: Path) -> None:
        self.unmounted.append(mountpoint)
        self.mounted = {name: mount for name, mount in self.mounted.items() if mount[0] != mountpoint}

    def at(self, mountpoint: Path) -> str:
        return next(name for name, mount in self.mounted.items() if mount[0] == mountpoint)


class Cached:
    """A cache that has the one chunk."""

    def size(self, digest: Digest) -> int | None:
        return 4096 if digest == sha256(b"chunk") else None


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.put_blob("app", STORED)
        yield fake


@pytest.fixture
def hosts() -> Iterator[Registries]:
    with Registries() as registries:
        yield registries


@pytest.fixture
def mounts() -> Mounts:
    return Mounts()


def make(root: Path, hosts: Registries, mounts: Mounts, sealing: Sealing | None = None) -> Layers:
    origins = Origins(lambda namespace: None, lambda name: [])
    return Layers(root, origins, Sources(hosts), mounts, Cached(), lambda places, stores: None, lambda places: None, sealing)


def layer(stored: bytes = STORED, message: bytes = MESSAGE, verity: bytes | None = None) -> MetadataLayer:
    return MetadataLayer(sha256(stored), sha256(message), verity or verity_digest(message), ())


def files(root: Path) -> Sequence[Path]:
    return [path for path in (root / "layers").rglob("*") if path.is_file()]


def test_a_first_start_is_recorded_and_the_record_used_when_the_layer_is_pulled_again(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    origins, cached = Origins(lambda namespace: None, lambda name: []), Cached()
    records = tmp_path / "starts"
    layers = Layers(
        tmp_path, origins, Sources(hosts), mounts, cached, lambda places, stores: None, lambda places: None, None, records
    )
    record = records / sha256(MESSAGE).hex()
    layers.ensure(layer(), f"{registry.host}/app:1", "default")
    (_, _, source) = mounts.mounted[to_text(sha256(MESSAGE))]
    assert (source.record, source.start) == (str(record), None)
    layers.release(sha256(MESSAGE))
    records.mkdir()
    record.write_text("1 " + "0" * 64 + "\n")
    layers.ensure(layer(), f"{registry.host}/app:1", "default")
    (_, _, source) = mounts.mounted[to_text(sha256(MESSAGE))]
    assert (source.record, source.start) == (None, str(record))


def test_a_layer_is_fetched_checked_and_mounted_once(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    layers = make(tmp_path, hosts, mounts)
    image = f"{registry.host}/app:1"
    layers.ensure(layer(), image, "default")
    layers.ensure(layer(), image, "other")
    (mountpoint, metadata, source) = mounts.mounted[to_text(sha256(MESSAGE))]
    assert layers.mountpoint(sha256(MESSAGE)) == mountpoint
    assert source.images == (image,)
    assert metadata.stat().st_mode & 0o777 == 0o600
    assert len(registry.matching("blobs", "GET")) == 1


def test_a_mounted_layer_that_another_image_has_too_is_looked_for_there_first(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    layers = make(tmp_path, hosts, mounts)
    one, two = PackPlace(sha256(b"one"), 10, 5), PackPlace(sha256(b"two"), 20, 5)
    layers.ensure(replace(layer(), packs=(one,)), f"{registry.host}/app:1", "default")
    layers.ensure(replace(layer(), packs=(two,)), f"{registry.host}/app:2", "default")
    (_, _, source) = mounts.mounted[to_text(sha256(MESSAGE))]
    assert source == LayerSource((two, one), (f"{registry.host}/app:2", f"{registry.host}/app:1"), to_text(sha256(MESSAGE)))


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (layer(message=b"another"), "is not that of diff ID"),
        (layer(verity=bytes(32)), "another fs-verity digest"),
    ],
)
def test_metadata_that_is_not_what_the_labels_say_is_never_mounted(
    wanted: MetadataLayer, complaint: str, tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    layers = make(tmp_path, hosts, mounts)
    with pytest.raises(CorruptError, match=complaint) as error:
        layers.ensure(wanted, f"{registry.host}/app:1", "default")
    assert f"{registry.host}/app:1" in str(error.value)
    assert mounts.mounted == {}
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "body", [b"no zstd", compress(b"no message"), compress(encode(RootfsContent([[Inode(1, Kind.FIFO)]])))]
)
def test_what_is_no_rootfs_metadata_is_refused(
    body: bytes, tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    registry.put_blob("app", body)
    with pytest.raises(CorruptError):
        make(tmp_path, hosts, mounts).ensure(layer(stored=body), f"{registry.host}/app:1", "default")
    assert files(tmp_path) == []


def test_a_registry_that_cannot_be_asked_is_named_with_image_and_layer(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    layers = make(tmp_path, hosts, mounts)
    registry.inject(Fault(status=503), path="blobs", times=10)
    with pytest.raises(UnavailableError) as error:
        layers.ensure(layer(), f"{registry.host}/app:1", "default")
    for part in (registry.host, "app:1", to_text(sha256(MESSAGE)), "503"):
        assert part in str(error.value)
    registry.heal()
    layers.ensure(layer(), f"{registry.host}/app:1", "default")
    assert mounts.mounted


def test_the_image_that_is_pulled_is_asked_first_and_the_hint_second(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    hinted = MetadataLayer(sha256(STORED), sha256(MESSAGE), verity_digest(MESSAGE), (), source=f"{registry.host}/app:1")
    make(tmp_path, hosts, mounts).ensure(hinted, f"{registry.host}/elsewhere:1", "default")
    (_, _, source) = mounts.mounted[to_text(sha256(MESSAGE))]
    assert source.images == (f"{registry.host}/elsewhere:1", f"{registry.host}/app:1")


def test_a_layer_that_nothing_says_the_place_of_is_refused_with_the_reason(
    tmp_path: Path, hosts: Registries, mounts: Mounts
) -> None:
    with pytest.raises(InvalidError, match="nothing says where the image is from"):
        make(tmp_path, hosts, mounts).ensure(layer(), None, "default")


def test_a_restart_mounts_again_without_the_registry_at_the_same_place(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    first = make(tmp_path, hosts, mounts)
    first.ensure(layer(), f"{registry.host}/app:1", "default")
    before = first.mountpoint(sha256(MESSAGE))
    mounts.mounted.clear()
    registry.close()
    second = make(tmp_path, hosts, mounts)
    lost = MetadataLayer(sha256(b"lost"), sha256(b"lost"), bytes(32), ())
    failed = second.restore([(layer(), f"{registry.host}/app:1"), (layer(), f"{registry.host}/app:2"), (lost, None)])
    (mountpoint, _, source) = mounts.mounted[to_text(sha256(MESSAGE))]
    assert mountpoint == before
    assert source.images == (f"{registry.host}/app:1", f"{registry.host}/app:2")
    assert list(failed) == [sha256(b"lost")]
    assert "pull it again" in str(failed[sha256(b"lost")])


def test_a_layer_whose_mount_fails_does_not_stop_a_start(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    first = make(tmp_path, hosts, mounts)
    first.ensure(layer(), f"{registry.host}/app:1", "default")
    mounts.refuse = OSError("no")
    failed = make(tmp_path, hosts, mounts).restore([(layer(), f"{registry.host}/app:1")])
    assert isinstance(failed[sha256(MESSAGE)], UnavailableError)


def test_release_leaves_nothing_and_numbers_are_not_given_out_twice(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    layers = make(tmp_path, hosts, mounts)
    layers.ensure(layer(), f"{registry.host}/app:1", "default")
    first = layers.mountpoint(sha256(MESSAGE))
    layers.release(sha256(MESSAGE))
    assert not first.exists()
    assert list((tmp_path / "layers").iterdir()) == []
    with pytest.raises(NotFoundError):
        layers.mountpoint(sha256(MESSAGE))
    layers.ensure(layer(), f"{registry.host}/app:1", "default")
    assert layers.mountpoint(sha256(MESSAGE)) != first
    layers.release(sha256(b"unknown"))


def test_what_an_earlier_daemon_mounted_and_never_recorded_is_released(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    """It was killed between mounting and recording: the mount outlives it, and the next daemon must still start."""
    make(tmp_path, hosts, mounts).ensure(layer(), f"{registry.host}/app:1", "default")
    later = make(tmp_path, hosts, mounts)
    mountpoint = later.mountpoint(sha256(MESSAGE))
    later.release(sha256(MESSAGE))
    assert mounts.unmounted == [mountpoint]
    assert not mountpoint.exists()


def test_a_start_takes_off_mounts_whose_layer_is_lost(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    make(tmp_path, hosts, mounts).ensure(layer(), f"{registry.host}/app:1", "default")
    shutil.rmtree(tmp_path / "layers" / sha256(MESSAGE).hex())
    later = make(tmp_path, hosts, mounts)
    assert later.restore([(layer(), None)]).keys() == {sha256(MESSAGE)}
    assert list((tmp_path / "l").iterdir()) == []
    assert len(mounts.unmounted) == 1


def test_usage_is_the_metadata_and_the_cached_chunks(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    layers = make(tmp_path, hosts, mounts)
    layers.ensure(layer(), f"{registry.host}/app:1", "default")
    usage = layers.usage(sha256(MESSAGE))
    assert (usage.size, usage.inodes) == (len(MESSAGE) + 4096, 1)


def test_usage_leaves_out_what_layers_below_have(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    layers = make(tmp_path, hosts, mounts)
    layers.ensure(layer(), f"{registry.host}/app:1", "default")
    chunks = [ChunkVerity(sha256(name), bytes(32)) for name in (b"chunk", b"not here")]
    above = encode(RootfsContent([[Inode(1, Kind.DIR)]], chunks))
    (tmp_path / "layers" / sha256(above).hex()).mkdir()
    (tmp_path / "layers" / sha256(above).hex() / "metadata").write_bytes(above)
    assert layers.usage(sha256(above)).size == len(above) + 4096
    assert layers.usage(sha256(above), [sha256(MESSAGE)]).size == len(above)
    assert layers.usage(sha256(above), [sha256(above)]).size == 0, "a layer that is in an image twice takes nothing twice"


def test_a_full_disk_is_said_with_image_and_layer_and_leaves_nothing(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    layers = make(tmp_path, hosts, mounts)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UnavailableError, match=r"app:1.*No space left on device"):
        layers.ensure(layer(), f"{registry.host}/app:1", "default")
    assert files(tmp_path) == []
    assert mounts.mounted == {}


def damage(metadata: Path) -> None:
    """Change a bit of the file's last byte."""
    content = metadata.read_bytes()
    metadata.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_metadata_that_was_damaged_on_this_node_is_fetched_again(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    make(tmp_path, hosts, mounts).ensure(layer(), f"{registry.host}/app:1", "default")
    (_, metadata, _) = mounts.mounted.popitem()[1]
    damage(metadata)
    make(tmp_path, hosts, mounts).ensure(layer(), f"{registry.host}/app:1", "default")
    assert metadata.read_bytes() == MESSAGE
    assert list(mounts.mounted) == [to_text(sha256(MESSAGE))]


def test_metadata_that_was_damaged_is_not_mounted_again_by_a_start(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    make(tmp_path, hosts, mounts).ensure(layer(), f"{registry.host}/app:1", "default")
    (_, metadata, _) = mounts.mounted.popitem()[1]
    damage(metadata)
    failed = make(tmp_path, hosts, mounts).restore([(layer(), f"{registry.host}/app:1")])
    assert "pull it again" in str(failed[sha256(MESSAGE)])
    assert mounts.mounted == {}


def test_metadata_is_sealed_before_it_gets_its_name_and_measured_after_a_start(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeSealing()
    make(tmp_path, hosts, mounts, kernel).ensure(layer(), f"{registry.host}/app:1", "default")
    assert list(kernel.sealed.values()) == [verity_digest(MESSAGE)]
    assert not kernel.names[0].endswith("/metadata")
    mounts.mounted.clear()
    monkeypatch.setattr("hashlib.file_digest", lambda file, name: pytest.fail("hashed, though it is sealed"))
    assert make(tmp_path, hosts, mounts, kernel).restore([(layer(), f"{registry.host}/app:1")]) == {}


def test_a_label_that_lies_about_the_fs_verity_digest_spoils_no_metadata(
    tmp_path: Path, registry: FakeRegistry, hosts: Registries, mounts: Mounts
) -> None:
    kernel = FakeSealing()
    make(tmp_path, hosts, mounts, kernel).ensure(layer(), f"{registry.host}/app:1", "default")
    mounts.mounted.clear()
    assert make(tmp_path, hosts, mounts, kernel).restore([(layer(verity=bytes(32)), None)]) == {}
