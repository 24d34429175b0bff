"""What the doctor says of podman and the layer store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.daemon.config import load
from snapshotter.doctor.finding import Level
from snapshotter.doctor.podman import (
    STORAGE_CONF,
    PodmanFacts,
    StorageConf,
    Whose,
    check_podman,
    parse_storage_conf,
    storage_confs,
)
from tests.support import tools

STORE = Path("/var/lib/puzzlefs-store")
CONF = Path("/etc/containers/storage.conf")
DEPLOYED = tools.ROOT / "deploy" / "podman" / "storage.conf"


def levels(facts: PodmanFacts) -> dict[str, Level]:
    return {finding.check: finding.level for finding in check_podman(facts)}


def test_all_is_well() -> None:
    facts = PodmanFacts(STORE, mounted=True, version="4.3.1", storage_conf=CONF, storage=StorageConf([f"{STORE}:ref"]))
    assert set(levels(facts).values()) == {Level.OK}


def test_a_store_that_is_not_mounted() -> None:
    assert levels(PodmanFacts(STORE, storage_conf=CONF, storage=StorageConf([f"{STORE}:ref"])))["podman.mounted"] is Level.FAIL


@pytest.mark.parametrize(
    ("whose", "present", "level", "advice"),
    [
        (Whose.ROOT, True, Level.FAIL, "systemctl restart puzzlefs-snapshotter"),
        (Whose.USER_INSIDE, True, Level.FAIL, "systemctl --user restart puzzlefs-store"),
        (Whose.USER, True, Level.WARN, "podman unshare puzzlefs doctor"),
        (Whose.ROOT, False, Level.FAIL, f"mkdir -p {STORE}"),
        # then not even `podman unshare` starts
        (Whose.USER, False, Level.FAIL, f"mkdir -p {STORE}"),
        (Whose.USER_INSIDE, False, Level.FAIL, f"mkdir -p {STORE}"),
    ],
)
def test_what_to_do_about_a_store_that_is_not_mounted(whose: Whose, present: bool, level: Level, advice: str) -> None:
    """A user's store is mounted in namespaces of its own, and nobody else sees whether it is."""
    finding = check_podman(PodmanFacts(STORE, present=present, whose=whose))[0]
    assert (finding.check, finding.level) == ("podman.mounted", level)
    assert advice in finding.advice


@pytest.mark.parametrize(("whose", "place"), [(Whose.ROOT, str(STORAGE_CONF[0])), (Whose.USER, "~/.config")])
def test_where_to_write_a_configuration(whose: Whose, place: str) -> None:
    assert f"write {place}" in check_podman(PodmanFacts(STORE, whose=whose))[-1].advice


@pytest.mark.parametrize(
    ("version", "level"), [("4.3.1", Level.OK), ("5.4.2", Level.OK), ("5.5.0", Level.WARN), ("5.8.6", Level.WARN)]
)
def test_versions_that_forget(version: str, level: Level) -> None:
    assert levels(PodmanFacts(STORE, version=version))["podman.version"] is level


@pytest.mark.parametrize(
    ("stores", "says"),
    [([], "does not name"), ([str(STORE)], "without :ref"), (["/other:ref"], "does not name")],
)
def test_a_configuration_that_does_not_lead_there(stores: list[str], says: str) -> None:
    """And what to write is said."""
    [finding] = [
        f
        for f in check_podman(PodmanFacts(STORE, storage_conf=CONF, storage=StorageConf(stores)))
        if f.check == "podman.storage"
    ]
    assert finding.level is Level.FAIL
    assert says in finding.text
    assert f"{STORE}:ref" in finding.advice


def test_a_node_of_crio_alone_needs_no_storage_conf() -> None:
    """Where its own options name the store; podman does not look there."""
    facts = PodmanFacts(STORE, mounted=True)
    assert [finding.check for finding in check_podman(facts, named_elsewhere=True)] == ["podman.mounted"]
    with_podman = check_podman(replace(facts, version="4.3.1"), named_elsewhere=True)
    assert with_podman[-1].level is Level.FAIL


def test_no_configuration_and_a_broken_one() -> None:
    assert levels(PodmanFacts(STORE))["podman.storage"] is Level.FAIL
    assert levels(PodmanFacts(STORE, storage_conf=CONF, error="no TOML"))["podman.storage"] is Level.FAIL


def test_the_shipped_configuration_leads_there() -> None:
    assert parse_storage_conf(DEPLOYED.read_text()) == StorageConf((f"{STORE}:ref",), "overlay")
    rootless = DEPLOYED.parent / "rootless"
    mountpoint = load(rootless / "config.toml").layer_store_mountpoint
    assert parse_storage_conf((rootless / "storage.conf").read_text()) == StorageConf((f"{mountpoint}:ref",), "overlay")


def test_a_user_has_a_configuration_of_ones_own() -> None:
    """Which counts before the machine's; root has none."""
    assert storage_confs({"HOME": "/home/u"}, root=True) == STORAGE_CONF
    assert storage_confs({"HOME": "/home/u"}, root=False)[0] == Path("/home/u/.config/containers/storage.conf")
    assert storage_confs({"HOME": "/home/u", "XDG_CONFIG_HOME": "/c"}, root=False)[0] == Path("/c/containers/storage.conf")


@pytest.mark.parametrize("root", [True, False])
def test_the_environment_may_name_the_one_file_that_counts(root: bool) -> None:
    assert storage_confs({"HOME": "/home/u", "CONTAINERS_STORAGE_CONF": "/x.conf"}, root=root) == (Path("/x.conf"),)


@pytest.mark.parametrize(
    ("driver", "level"), [("", Level.OK), ("overlay", Level.OK), ("vfs", Level.FAIL), ("btrfs", Level.FAIL)]
)
def test_other_storage_drivers_know_no_layer_stores(driver: str, level: Level) -> None:
    storage = parse_storage_conf(f'[storage]\ndriver = "{driver}"\n[storage.options]\nadditionallayerstores = ["{STORE}:ref"]')
    assert levels(PodmanFacts(STORE, storage_conf=CONF, storage=storage))["podman.storage"] is level


@pytest.mark.parametrize("text", ["x", "[storage.options]\nadditionallayerstores = 1", "[storage]\noptions = 1", "storage = 1"])
def test_what_is_no_configuration(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_storage_conf(text)
