"""verify, inspect and diff of images in a real registry, in a layout and in an archive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import samples
from tests.support.images import Layer, write_image
from tests.support.processes import run
from tests.support.snapshotter import puzzlefs
from tests.system.conftest import Published, Server

pytestmark = pytest.mark.root


def ask(command: str, *images: str) -> dict[str, object]:
    """What the command says to a program."""
    answer: dict[str, object] = json.loads(puzzlefs(command, *images, "--json").stdout)
    return answer


def test_an_image_with_every_oddity_is_right(server: Server, odd: Published) -> None:
    done = ask("verify", f"docker://{server.relay.address}/{odd.lazy}")
    assert (done["errors"], done["findings"]) == (0, [])
    assert "not a PuzzleFS image" in puzzlefs("verify", f"{server.relay.address}/{odd.ordinary}", check=False).stderr


def test_wherever_it_is_it_is_the_same(server: Server, plain: Published, tmp_path: Path) -> None:
    """Copied by skopeo, which knows nothing of packs."""
    registry = f"docker://{server.relay.address}/{plain.lazy}"
    run("skopeo", "copy", "--src-tls-verify=false", registry, f"oci:{tmp_path}/layout:v")
    run("skopeo", "copy", f"oci:{tmp_path}/layout:v", f"oci-archive:{tmp_path}/archive.tar:v")
    places = [registry, f"oci:{tmp_path}/layout:v", f"{tmp_path}/layout:v", f"oci-archive:{tmp_path}/archive.tar:v"]
    figures = [{key: value for key, value in ask("inspect", place).items() if key != "name"} for place in places]
    assert figures == [figures[0]] * 4
    for place in places:
        assert ask("verify", place)["errors"] == 0
        assert ask("diff", registry, place)["total"] == 0


def test_what_the_next_version_costs_is_what_its_conversion_stored(server: Server, tmp_path: Path) -> None:
    for version in (1, 2):
        layer = Layer()
        layer.file(b"same", samples.noise(2_000_000, 1))
        layer.file(b"changed", samples.noise(500_000, 10 + version))
        image = write_image(tmp_path / f"v{version}", "v", [layer.tar()])
        server.push(image, f"versions:plain{version}")
        server.convert(f"versions:plain{version}", f"versions:v{version}")
    found = ask("diff", *(f"docker://{server.relay.address}/versions:v{version}" for version in (1, 2)))
    assert [file["path"] for file in found["files"]] == ["/changed"]  # type: ignore[attr-defined]
    new = {str(layer["digest"]) for layer in server.layers("versions:v2")} - {
        str(layer["digest"]) for layer in server.layers("versions:v1")
    }
    stored = sum(int(str(layer["size"])) for layer in server.layers("versions:v2") if layer["digest"] in new)
    fetched = sum(int(str(found[key])) for key in ("metadata", "indexes", "chunk_bytes"))
    assert 0 <= stored - fetched < 100  # a pack's magic and footer are never fetched
