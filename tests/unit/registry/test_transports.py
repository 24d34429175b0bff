import io
import json
import subprocess
from pathlib import Path

import pytest

from snapshotter.errors import InvalidError, NotFoundError
from snapshotter.format.digest import sha256, to_text
from snapshotter.registry.base import Descriptor
from snapshotter.registry.documents import OCI_MANIFEST, canonical_json, descriptor_to_json
from snapshotter.registry.registries import Registries
from snapshotter.registry.transports import Location, open_destination, open_source, parse, parse_any, parse_layout

DIGEST = to_text(sha256(b""))


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("docker://debian", "docker://docker.io/library/debian"),
        ("docker://localhost:5000/a/b:1", "docker://localhost:5000/a/b:1"),
        (f"docker://h.x/a:1@{DIGEST}", f"docker://h.x/a:1@{DIGEST}"),
        ("oci:/srv/images:v1", "oci:/srv/images:v1"),
        ("oci:images", "oci:images"),
        ("oci:images:docker.io/library/x:1", "oci:images:docker.io/library/x:1"),
        ("oci-archive:/srv/x.tar", "oci-archive:/srv/x.tar"),
        ("oci-archive:x.tar:v1", "oci-archive:x.tar:v1"),
    ],
)
def test_what_skopeo_takes_is_taken_alike(text: str, full: str) -> None:
    assert str(parse(text)) == full
    assert parse(full) == parse(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "docker://"),
        ("debian:12", "docker://"),
        ("/srv/images", "oci:DIR:TAG"),
        ("docker:debian", "docker://debian"),
        ("docker:/debian", "docker://debian"),
        ("docker://Debian", "lower case"),
        ("docker://", "reference"),
        ("oci:", "oci:DIR:TAG"),
        ("oci::v1", "oci:DIR:TAG"),
        ("oci:x:", "oci:DIR:TAG"),
        ("oci-archive:", "oci-archive:FILE:TAG"),
        ("oci:a\0b:v1", "oci:DIR:TAG"),
        ("docker-daemon:debian:12", "skopeo copy"),
        ("containers-storage:x", "skopeo copy"),
        ("dir:x", "skopeo copy"),
        ("x" * 100_000, "docker://"),
    ],
)
def test_what_is_no_location_says_what_is(text: str, hint: str) -> None:
    with pytest.raises(InvalidError, match=hint) as caught:
        parse(text)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_upstreams_commands_name_a_layout_without_a_transport() -> None:
    assert str(parse_layout("/srv/images:v1")) == "oci:/srv/images:v1" == str(parse_layout("oci:/srv/images:v1"))
    for text in ("/srv/images", "/srv/images:", ":v1", ""):
        with pytest.raises(InvalidError, match="OCI_DIR:TAG"):
            parse_layout(text)


def put(location: Location, registries: Registries, **more: object) -> str:
    store, tag = open_destination(location, registries)
    config = Descriptor("application/vnd.oci.image.config.v1+json", sha256(b"{}"), 2)
    store.put_blob(config, io.BytesIO(b"{}"))
    data = canonical_json({"schemaVersion": 2, "config": descriptor_to_json(config), "layers": [], **more})
    store.put_manifest(Descriptor(OCI_MANIFEST, sha256(data), len(data)), data, tag)
    store.close()
    return to_text(sha256(data))


@pytest.mark.parametrize("form", ["oci:{}/x:v1", "oci-archive:{}/x:v1"])
def test_without_a_tag_the_only_image_is_meant(tmp_path: Path, form: str) -> None:
    with Registries() as registries:
        digest = put(parse(form.format(tmp_path)), registries)
        store, reference = open_source(parse(form.format(tmp_path).removesuffix(":v1")), registries)
        assert reference == digest
        assert store.manifest(reference)[0].media_type == OCI_MANIFEST
        store.close()


def test_several_images_are_not_chosen_from(tmp_path: Path) -> None:
    with Registries() as registries:
        put(parse(f"oci:{tmp_path}/x:v1"), registries)
        put(parse(f"oci:{tmp_path}/x:v2"), registries, annotations={"a": "b"})
        with pytest.raises(InvalidError, match="v1, v2"):
            open_source(parse(f"oci:{tmp_path}/x"), registries)


def test_a_source_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with Registries() as registries:
        for text in (f"oci:{tmp_path}/x", f"oci-archive:{tmp_path}/x"):
            with pytest.raises(NotFoundError, match=str(tmp_path)):
                open_source(parse(text), registries)


def test_a_destination_has_a_tag_and_no_digest(tmp_path: Path) -> None:
    with Registries() as registries:
        with pytest.raises(InvalidError, match="digest"):
            open_destination(parse(f"docker://h.x/a@{DIGEST}"), registries)
        with pytest.raises(InvalidError, match="tag"):
            open_destination(parse(f"oci:{tmp_path}"), registries)
        for text in (f"oci:{tmp_path}:a b", f"oci-archive:{tmp_path}/x:{DIGEST}"):
            with pytest.raises(InvalidError, match="not a tag"):
                open_destination(parse(text), registries)
        assert open_destination(parse("docker://h.x/a"), registries).reference == "latest"
        assert open_destination(parse(f"oci-archive:{tmp_path}/x"), registries).reference == "latest"


@pytest.mark.parametrize("form", ["oci:{}/x:v1", "oci-archive:{}/x:v1"])
def test_skopeo_reads_what_we_write_and_we_what_it_writes(tmp_path: Path, form: str) -> None:
    with Registries() as registries:
        ours = form.format(tmp_path)
        digest = put(parse(ours), registries)
        theirs = form.format(tmp_path / "copy")
        (tmp_path / "copy").mkdir()
        shown = subprocess.run(["skopeo", "inspect", "--raw", ours], check=True, capture_output=True)
        assert json.loads(shown.stdout)["schemaVersion"] == 2
        subprocess.run(["skopeo", "copy", "--preserve-digests", ours, theirs], check=True, capture_output=True)
        store, reference = open_source(parse(theirs), registries)
        assert to_text(store.manifest(reference)[0].digest) == digest
        store.close()


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("docker://debian:12", "docker://docker.io/library/debian:12"),
        ("oci:images:v1", "oci:images:v1"),
        ("oci-archive:x.tar:v1", "oci-archive:x.tar:v1"),
        ("images:v1", "oci:images:v1"),
        ("a/b:v1", "oci:a/b:v1"),
        ("./a.b/c:v1", "oci:a.b/c:v1"),
        ("../x:v1", "oci:../x:v1"),
        ("/srv/images:v1", "oci:/srv/images:v1"),
        ("registry.example/app:1", "docker://registry.example/app:1"),
        ("localhost/app:1", "docker://localhost/app:1"),
        ("127.0.0.1:5000/a/b:1", "docker://127.0.0.1:5000/a/b:1"),
        (f"h.x/a@{DIGEST}", f"docker://h.x/a@{DIGEST}"),
    ],
)
def test_a_location_without_a_transport(text: str, full: str) -> None:
    assert str(parse_any(text)) == full


def test_a_directory_that_looks_like_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "registry.example" / "app").mkdir(parents=True)
    assert str(parse_any("registry.example/app:1")) == "oci:registry.example/app:1"


@pytest.mark.parametrize("text", ["", "debian", "images", "sif:x:1", "ftp://host/image"])
def test_what_is_no_location_at_all(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_any(text)
