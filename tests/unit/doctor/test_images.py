"""What is said about an image, and about its registry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapshotter.doctor.finding import Level
from snapshotter.doctor.images import ImageFacts, LayerFacts, check_image
from snapshotter.doctor.registry import RegistryFacts, check_registry

LAZY = LayerFacts(puzzlefs=True, size=10_000_000, downloaded=False, lazy=True, unpacked=False, cached=2_000_000)
ORDINARY = LayerFacts(puzzlefs=False, size=30_000_000, downloaded=True, lazy=False, unpacked=True)


@pytest.mark.parametrize(
    ("layers", "level", "said"),
    [
        ([LAZY, LAZY], Level.OK, "lazy: 2 layers; 4.0 MB of its files are here, 0.0 MB of its 20.0 MB"),
        ([LAZY, ORDINARY], Level.OK, "lazy: 1 layers and 1 ordinary ones"),
        ([ORDINARY], Level.OK, "an ordinary image of 30.0 MB"),
        ([replace(LAZY, downloaded=True)], Level.WARN, "and yet downloaded; 2.0 MB of its files are here, 10.0 MB of its 10.0"),
        ([LAZY, replace(LAZY, lazy=False, unpacked=True, downloaded=True)], Level.WARN, "1 of 2 PuzzleFS layers are lazy"),
        ([replace(LAZY, lazy=False)], Level.WARN, "not unpacked with this snapshotter"),
        ([], Level.OK, "ordinary"),
    ],
)
def test_images(layers: list[LayerFacts], level: Level, said: str) -> None:
    found = check_image(ImageFacts("default", "registry.example/app:1", layers))
    assert (found.check, found.level) == ("image.default/registry.example/app:1", level)
    assert said in found.text


def test_an_image_that_cannot_be_looked_into() -> None:
    assert check_image(ImageFacts("k8s.io", "x", error="content digest not found")).level is Level.WARN


GOOD = RegistryFacts("r.example/app:1", "r.example", layers=3, puzzlefs_layers=3, range_asked=1000, range_received=1000)


@pytest.mark.parametrize(
    ("facts", "check", "level"),
    [
        (GOOD, "registry.ranges", Level.OK),
        (replace(GOOD, range_received=50_000_000), "registry.ranges", Level.WARN),
        (replace(GOOD, range_error="it answers 404"), "registry.ranges", Level.FAIL),
        (replace(GOOD, puzzlefs_layers=0), "registry.format", Level.WARN),
        (replace(GOOD, manifest_error="refused"), "registry.manifest", Level.FAIL),
        (replace(GOOD, credentials_error="helper is missing"), "registry.credentials", Level.FAIL),
    ],
)
def test_registries(facts: RegistryFacts, check: str, level: Level) -> None:
    assert {found.check: found.level for found in check_registry(facts)}[check] is level


def test_a_login_is_advised_only_where_there_is_none() -> None:
    denied = replace(GOOD, manifest_error="denied")
    assert "docker login r.example" in check_registry(denied)[0].advice
    assert "docker login" not in check_registry(replace(denied, credentials=True))[0].advice
