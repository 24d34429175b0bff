"""Hostile labels: whatever they say, no path, host or socket is reached that the configuration does not allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from snapshotter.daemon.config import Config
from snapshotter.daemon.layers import Layers
from snapshotter.daemon.origin import Origins
from snapshotter.daemon.sources import LayerSource, Sources
from snapshotter.daemon.worker_main import command
from snapshotter.errors import AlreadyExistsError, InvalidError, PuzzlefsError
from snapshotter.format.annotations import DIFF_ID, METADATA, PACK, PACKS, SOURCE, VERITY, MetadataLayer, PackPlace
from snapshotter.format.compression import compress
from snapshotter.format.digest import Digest, chain_id, sha256, to_text
from snapshotter.format.model import Inode, Kind, RootfsContent
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import encode
from snapshotter.registry.policy import RegistryPolicy
from snapshotter.registry.registries import Registries
from snapshotter.snapshots.lazy import IMAGE_LABEL
from snapshotter.snapshots.model import REF_LABEL
from snapshotter.snapshots.snapshotter import Snapshotter
from tests.support.registry import FakeRegistry

MESSAGE = encode(RootfsContent([[Inode(1, Kind.DIR)]], []))
STORED = compress(MESSAGE)
DIFF = sha256(MESSAGE)
CHAIN = to_text(chain_id(None, DIFF))
LAYER = MetadataLayer(sha256(STORED), DIFF, verity_digest(MESSAGE), (PackPlace(sha256(b"pack"), 100, 10),))


class NoMounts:
    """Mounts nothing."""

    def mount(self, name: str, mountpoint: Path, metadata: Path, source: LayerSource) -> None:
        pass

    def update(self, mountpoint: Path, source: LayerSource) -> None:
        pass

    def unmount(self, mountpoint: Path) -> None:
        pass


class NoCache:
    """Has nothing."""

    def size(self, digest: Digest) -> int | None:
        return None


@dataclass(frozen=True)
class Daemon:
    """The part of a daemon between its gRPC service and the network, which may ask the hosts `allowed` only."""

    root: Path
    snapshotter: Snapshotter
    registry: FakeRegistry

    def prepare(self, **labels: str) -> PuzzlefsError:
        """Ask for the layer with these labels beside its own; what is answered."""
        told = {**LAYER.annotations(), REF_LABEL: CHAIN, **labels}
        with pytest.raises(PuzzlefsError) as raised:
            self.snapshotter.prepare("default/1/extract-1", "", told)
        return raised.value

    def files(self) -> set[str]:
        """Everything around the root, and in it."""
        return {str(path.relative_to(self.root.parent)) for path in self.root.parent.rglob("*")}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One that may ask a host that nothing here is at."""
    yield from _daemon(tmp_path / "root", RegistryPolicy(["allowed.example"]))


@pytest.fixture
def open_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One that may ask anybody."""
    yield from _daemon(tmp_path / "root", RegistryPolicy())


def _daemon(root: Path, policy: RegistryPolicy) -> Iterator[Daemon]:
    with FakeRegistry() as registry, Registries(policy=policy) as registries:
        registry.put_blob("app", STORED)
        origins = Origins(lambda namespace: None, lambda name: [])
        layers = Layers(
            root, origins, Sources(registries), NoMounts(), NoCache(), lambda places, stores: None, lambda places: None
        )
        snapshotter = Snapshotter(root, layers)
        yield Daemon(root, snapshotter, registry)
        snapshotter.close()


@pytest.mark.parametrize("key", [SOURCE, IMAGE_LABEL])
def test_a_host_that_is_not_allowed_is_not_asked(daemon: Daemon, key: str) -> None:
    """Neither by what the image says nor by what the client says; and nothing stays."""
    before = daemon.files()
    error = daemon.prepare(**{key: f"{daemon.registry.host}/app:1"})
    assert "is not among the allowed registries" in str(error)
    assert not daemon.registry.requests
    assert {name for name in daemon.files() - before if "metadata.db" not in name} == set()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "file:///etc/passwd",
            "unix:///run/containerd/containerd.sock",
            "/etc/passwd",
            "../../etc/passwd",
            "http://{host}/app:1",
        ),
        *(
            "allowed.example@{host}/app:1",
            "allowed.example/../app:1",
            "allowed.example:80@{host}/app:1",
            "allowed.example\\{host}/app",
        ),
        *(
            "{host}/app:1#allowed.example/",
            "{host}?allowed.example/app",
            "allowed.example\n{host}/app:1",
            "\x00",
            "",
            "A" * 5000,
        ),
    ],
)
def test_what_is_no_reference_is_no_place(daemon: Daemon, text: str) -> None:
    """URLs, paths, sockets, tricks with user names: refused, and no connection is made."""
    before = daemon.files()
    daemon.prepare(**{SOURCE: text.format(host=daemon.registry.host)})
    assert not daemon.registry.requests
    assert {name for name in daemon.files() - before if "metadata.db" not in name} == set()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((METADATA, value) for value in ("../../etc/passwd", "sha256:../../etc", "sha256:" + "A" * 64, "sha512:" + "a" * 128)),
        *((DIFF_ID, value) for value in ("sha256:" + "a" * 63 + "/", "", "sha256:" + "0" * 64)),
        *((VERITY, value) for value in ("zz", "../" * 20, "")),
        *((PACKS, value) for value in ("sha256:x@1+1", f"{to_text(DIFF)}@-1+5", f"{to_text(DIFF)}@{'9' * 14}+5", "," * 50)),
        (PACK, "../../pack"),
        (REF_LABEL, "sha256:" + "0" * 64),
        (REF_LABEL, "../../../etc"),
    ],
)
def test_labels_name_digests_and_nothing_else(open_daemon: Daemon, key: str, value: str) -> None:
    """Digests become paths below the root: whatever else stands in their place is refused before anything is made or asked."""
    before = open_daemon.files()
    error = open_daemon.prepare(**{SOURCE: f"{open_daemon.registry.host}/app:1", key: value})
    assert isinstance(error, InvalidError)
    assert not open_daemon.registry.requests
    assert {name for name in open_daemon.files() - before if "metadata.db" not in name} == set()


def test_the_same_labels_unchanged_are_taken(open_daemon: Daemon) -> None:
    """What the tests above change is all that is wrong with what they send."""
    assert isinstance(open_daemon.prepare(**{SOURCE: f"{open_daemon.registry.host}/app:1"}), AlreadyExistsError)


@pytest.mark.parametrize("key", ["../../../../tmp/x", "/etc/cron.d/x", "a\nb", "\x00", "s/1/fs", "é" * 1000, "."])
def test_keys_name_rows_not_files(daemon: Daemon, key: str) -> None:
    """A snapshot's directory is named by a number of ours, whatever its key."""
    daemon.snapshotter.prepare(key, "", {})
    daemon.snapshotter.commit(key + "-name", key, {})
    made = {path for path in daemon.files() if "metadata.db" not in path}
    assert made == {"root", "root/l", "root/layers", "root/lock", "root/s", "root/s/1", "root/s/1/fs", "root/s/1/work"}


def test_one_image_cannot_take_anothers_place(daemon: Daemon) -> None:
    """Metadata is what its diff ID says, and the diff ID what the chain ID says; a good layer is taken for good."""
    allowed = Registries()
    origins = Origins(lambda namespace: None, lambda name: [])
    layers = Layers(
        daemon.root, origins, Sources(allowed), NoMounts(), NoCache(), lambda places, stores: None, lambda places: None
    )
    other = replace(LAYER, diff_id=sha256(b"other"))
    with pytest.raises(PuzzlefsError, match="is not that of diff ID"):
        layers.ensure(other, f"{daemon.registry.host}/app:1", "default")
    layers.ensure(LAYER, f"{daemon.registry.host}/app:1", "default")
    allowed.close()
    foreign = to_text(chain_id(None, sha256(b"a layer of somebody else")))
    assert not isinstance(daemon.prepare(**{REF_LABEL: foreign}), AlreadyExistsError)


def test_workers_take_no_code_from_the_current_directory() -> None:
    """``python -m`` would look there first."""
    words = command(Config(), None)
    assert words.index("-P") < words.index("-m")


def test_secrets_are_not_among_a_workers_arguments() -> None:
    """Everybody on the machine can read those."""
    assert "secret" not in " ".join(command(Config(), Path("/etc/puzzlefs/config.toml")))
