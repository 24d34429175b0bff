"""The kubelet's credential providers are asked as the kubelet asks them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapshotter.errors import InvalidError, UnavailableError
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.kubelet import KubeletProviders, best, duration, matches

ANSWER = {
    "kind": "CredentialProviderResponse",
    "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
    "cacheKeyType": "Registry",
    "cacheDuration": "1h",
    "auth": {"*.registry.x": {"username": "ann", "password": "s:cret"}},
}
ANN = Credentials("ann", "s:cret")
CONFIG = """
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: helper
    matchImages: ["*.registry.x", "other.x:5000/team"]
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get-credentials]
    env:
      - {name: WHO, value: node}
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        (path / "config.yaml").write_text(CONFIG)
        self.answer(ANSWER)
        self.providers = KubeletProviders(path / "config.yaml", path, self.clock)

    def answer(self, value: object, status: int = 0) -> None:
        """What the program says from now on."""
        text = value if isinstance(value, str) else json.dumps(value)
        (self.path / "answer").write_text(text)
        program = self.path / "helper"
        log = self.path / "log"
        program.write_text(f"#!/bin/sh\necho $WHO $1 $(cat) >>{log}\ncat {self.path}/answer\nexit {status}\n")
        program.chmod(0o755)

    def asked(self) -> list[str]:
        log = self.path / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_program_is_asked_for_an_image_that_matches(world: World) -> None:
    assert world.providers.find("a.registry.x", "app") == ANN
    (asked,) = world.asked()
    assert asked.startswith("node get-credentials ")
    assert json.loads(asked.split(" ", 2)[2]) == {
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderRequest",
        "image": "a.registry.x/app",
    }
    assert world.providers.find("elsewhere.x", "app") is None
    assert len(world.asked()) == 1


@pytest.mark.parametrize(
    ("kind", "second", "runs"),
    [("Image", "b", 2), ("Image", "a", 1), ("Registry", "b", 1), ("Global", "b", 1)],
)
def test_an_answer_is_good_for_what_it_says(world: World, kind: str, second: str, runs: int) -> None:
    world.answer({**ANSWER, "cacheKeyType": kind})
    world.providers.find("a.registry.x", "a")
    assert world.providers.find("a.registry.x", second) == ANN
    assert len(world.asked()) == runs


def test_an_answer_is_good_as_long_as_it_says_or_until_it_is_refused(world: World) -> None:
    world.providers.find("a.registry.x", "a")
    world.clock.now = 3599
    world.providers.find("a.registry.x", "a")
    assert len(world.asked()) == 1
    world.clock.now = 3601
    world.providers.find("a.registry.x", "a")
    assert len(world.asked()) == 2
    world.answer({**ANSWER, "auth": {"*.registry.x": {"username": "ann", "password": "newer"}}})
    assert world.providers.find("a.registry.x", "a", refused=[ANN]) == Credentials("ann", "newer")
    assert world.providers.find("a.registry.x", "a", refused=[Credentials("ann", "newer")]) is None


def test_an_answer_without_a_duration_has_the_configurations(world: World) -> None:
    world.answer({**ANSWER, "cacheDuration": None})
    world.providers.find("a.registry.x", "a")
    world.clock.now = 11 * 3600
    world.providers.find("a.registry.x", "a")
    assert len(world.asked()) == 1


@pytest.mark.parametrize(
    "answer", ["no json secret", {"kind": "Other"}, {**ANSWER, "cacheKeyType": "Secret"}, "[" * 100_000], ids=range(4)
)
def test_an_answer_that_is_none_gives_no_secret_away(world: World, answer: object) -> None:
    world.answer(answer)
    with pytest.raises(UnavailableError, match="helper") as caught:
        world.providers.find("a.registry.x", "a")
    assert "secret" not in str(caught.value)


def test_an_answer_may_know_nobody(world: World) -> None:
    world.answer({**ANSWER, "auth": None})
    assert world.providers.find("a.registry.x", "a") is None


def test_a_program_that_fails_is_named(world: World) -> None:
    world.answer("s:cret", status=3)
    with pytest.raises(UnavailableError, match=r"helper, asked for a\.registry\.x/a, failed with 3") as caught:
        world.providers.find("a.registry.x", "a")
    assert "s:cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "providers: 1", "providers: [{name: ../sh, matchImages: [], apiVersion: x}]", "providers: [1]", ": :"]
)
def test_a_configuration_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(InvalidError, match=str(tmp_path / "c")):
        KubeletProviders(tmp_path / "c", tmp_path).find("h.x", "a")
    with pytest.raises(UnavailableError, match="none"):
        KubeletProviders(tmp_path / "none", tmp_path).find("h.x", "a")


@pytest.mark.parametrize(
    ("pattern", "image", "good"),
    [
        ("*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.eu-west-1.amazonaws.com/app", True),
        ("*.dkr.ecr.*.amazonaws.com", "dkr.ecr.eu-west-1.amazonaws.com/app", False),
        ("registry.io", "registry.io/a/b", True),
        ("registry.io", "registry.io:8080/a", False),
        ("registry.io:8080/path", "registry.io:8080/path/deeper", True),
        ("registry.io:8080/path", "registry.io:8080/other", False),
        ("*", "localhost/a", True),
        ("*.x", "a.b.x/c", False),
        ("https://gcr.io", "gcr.io/a", True),
    ],
)
def test_patterns_match_as_the_kubelets(pattern: str, image: str, good: bool) -> None:
    assert matches(pattern, image) is good


def test_the_pattern_that_says_most_wins() -> None:
    found = {"a.x": Credentials("one"), "a.x/team": Credentials("two"), "*.x": Credentials("three")}
    assert best(found, "a.x/team/app") == Credentials("two")
    assert best(found, "b.x/app") == Credentials("three")
    assert best(found, "c.y/app") is None


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("0s", 0), ("1h30m", 5400), ("1.5s", 1.5), ("9999h", 86400)])
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert duration(text, 7) == seconds
    assert duration(None, 7) == 7
    with pytest.raises(InvalidError):
        duration("soon", 7)
