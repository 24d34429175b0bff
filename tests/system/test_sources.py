"""Where data comes from, on a real node: containerd's content store, mirrors, stores of the configuration."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from snapshotter.daemon.containerd import Containerd
from snapshotter.errors import AlreadyExistsError
from snapshotter.format.annotations import MEDIA_TYPE_PACK
from snapshotter.format.digest import chain_id, from_text, to_text
from tests.support.processes import CommandError, run
from tests.support.relay import Relay
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root

READ = ("/bin/busybox", "md5sum", "/data/first", "/more/file")


def load(node: Node, server: Server, image: str, directory: Path, *, hint: bool) -> None:
    """The image in containerd's content store, as ``nerdctl load`` brings it there, and its layers as snapshots: containerd 1.6
    does not ask us for them by itself when an image is imported."""
    archive = directory / "image.tar"
    reference = f"docker://{server.relay.address}/{image}"
    run("skopeo", "copy", "--src-tls-verify=false", reference, f"oci-archive:{archive}:loaded:1")
    node.containerd.ctr("images", "import", "--no-unpack", "--digests", "--base-name", "loaded", archive)
    repository, _, tag = image.rpartition(":")
    manifest = server.registry.manifest(repository, tag)
    config = json.loads(server.registry.blob(repository, manifest["config"]["digest"]))
    chain = None
    # with a lease, or containerd might collect a layer before the next one is there
    with Containerd(node.containerd.socket, node.containerd.namespace) as containerd, containerd.lease():
        for layer, text in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
            parent, chain = chain, chain_id(chain, from_text(text))
            labels = {
                **layer["annotations"],
                "containerd.io/snapshot.ref": to_text(chain),
            }
            if not hint:  # what the image says of itself, where it was pushed to
                labels.pop("containerd.io/snapshot/puzzlefs.source", None)
            key = f"extract-{secrets.token_hex(4)} {to_text(chain)}"
            with pytest.raises(AlreadyExistsError):
                containerd.prepare("puzzlefs", key, to_text(parent) if parent else "", labels)
        used = {"containerd.io/gc.ref.snapshot.puzzlefs": to_text(chain)} if chain else {}
        containerd.label_content(from_text(manifest["config"]["digest"]), used)


def test_an_image_that_was_loaded_needs_no_registry(node: Node, server: Server, plain: Published, tmp_path: Path) -> None:
    """Every byte of it comes from containerd's content store: nobody names a registry at all."""
    load(node, server, plain.lazy, tmp_path, hint=False)
    with node.relay.gone(), node.containerd.snapshot(server.chain_id(plain.lazy), node.directory / "v", "puzzlefs") as root:
        for name in ("data/first", "more/file", "bin/busybox"):
            assert (root / name).read_bytes()
    assert list((node.snapshotter.root / "chunks").rglob("*")), "the chunks were kept, so they were fetched"


def test_content_that_is_collected_later_is_had_from_the_registry(
    node: Node, server: Server, plain: Published, tmp_path: Path
) -> None:
    """A layer that was read from the content store goes on from the registry when the content is gone."""
    load(node, server, plain.lazy, tmp_path, hint=True)
    packs = [str(layer["digest"]) for layer in server.layers(plain.lazy) if layer["mediaType"] == MEDIA_TYPE_PACK]
    with node.containerd.snapshot(server.chain_id(plain.lazy), node.directory / "v", "puzzlefs") as root:
        assert (root / "bin/busybox").read_bytes()
        before = node.relay.received
        node.containerd.ctr("content", "rm", *packs)
        assert (root / "data/first").read_bytes()
        assert (root / "more/file").read_bytes()
    assert node.relay.received > before


def test_where_an_image_was_pulled_from_is_known_after_a_restart(node: Node, server: Server, plain: Published) -> None:
    """The daemon starts with neither registry nor containerd to ask, and reads from where it did before."""
    reference = node.pull_lazily(plain.lazy)
    node.snapshotter.terminate()
    node.start_again()
    assert node.containerd.run(reference, *READ, snapshotter="puzzlefs").text


def test_a_mirror_of_hosts_toml_serves_while_the_registry_is_gone(node: Node, server: Server, plain: Published) -> None:
    """What containerd's ``hosts.toml`` says of a registry holds for its lazily read layers, at once."""
    mirror = Relay(server.registry.endpoint)
    try:
        directory = node.snapshotter.hosts / node.relay.address
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(f'[host."http://{mirror.address}"]\ncapabilities = ["pull"]\n')
        reference = node.pull_lazily(plain.lazy)
        assert mirror.received, "metadata and indexes come from the mirror as well"
        with node.relay.gone():
            assert node.containerd.run(reference, *READ, snapshotter="puzzlefs").text
    finally:
        mirror.close()


def test_puzzlefs_pull_goes_through_mirrors(node: Node, server: Server, plain: Published) -> None:
    """As the layers do: the registry is gone the whole time, a first mirror too; and when nobody is there all are named."""
    mirror, gone = Relay(server.registry.endpoint), Relay(server.registry.endpoint)
    gone.close()
    try:
        directory = node.snapshotter.hosts / node.relay.address
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(f'[host."http://{gone.address}"]\n[host."http://{mirror.address}"]\n')
        with node.relay.gone():
            reference = node.reference(plain.lazy)
            node.snapshotter.pull(reference, node.containerd.namespace)
            assert node.containerd.run(reference, *READ, snapshotter="puzzlefs").text
            mirror.close()
            failed = node.snapshotter.pull(node.reference("plain:other"), node.containerd.namespace, check=False)
        assert failed.returncode == 4
        for host in (gone.address, mirror.address, node.relay.address):
            assert f"{host}/plain: cannot reach" in failed.stderr
    finally:
        mirror.close()


def test_a_store_of_the_configuration_is_read_before_the_registry(
    node: Node, server: Server, plain: Published, tmp_path: Path
) -> None:
    """An OCI layout on the machine has the image: the registry serves the pull's manifest and not one byte more."""
    layout = tmp_path / "layout"
    image = f"docker://{server.relay.address}/{plain.lazy}"
    run("skopeo", "copy", "--src-tls-verify=false", image, f"oci:{layout}:any")
    node.snapshotter.terminate()
    with node.snapshotter.config.open("a") as config:
        config.write(f'[[store]]\nurl = "oci:{layout}"\n')
    node.start_again()
    reference = node.pull_lazily(plain.lazy)
    with node.relay.gone():
        assert node.containerd.run(reference, *READ, snapshotter="puzzlefs").text


def test_a_registry_that_is_not_allowed_is_not_asked(node: Node, plain: Published) -> None:
    """The pull fails at once, saying which registry is not allowed and by what."""
    node.snapshotter.terminate()
    with node.snapshotter.config.open("a") as config:
        config.write('[policy]\nallowed_registries = ["registry.example", "*.internal"]\n')
    node.start_again()
    with pytest.raises(CommandError, match=rf"{node.relay.address} is not among the allowed registries"):
        node.pull_lazily(plain.lazy)
