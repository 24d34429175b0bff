"""What the doctor says of CRI-O and the layer store."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.doctor.crio import CrioFacts, check_crio, crio_facts, layer_stores
from snapshotter.doctor.finding import Level
from tests.support import tools

STORE = Path("/var/lib/puzzlefs-store")
DEPLOYED = tools.ROOT / "deploy" / "podman" / "crio.conf"
NAMED = f"{STORE}:ref"


def levels(facts: CrioFacts) -> dict[str, Level]:
    return {finding.check: finding.level for finding in check_crio(facts, STORE)}


def test_where_there_is_none_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_crio(crio_facts(), STORE) == []


@pytest.mark.parametrize(
    ("version", "level"), [("1.28.4", Level.OK), ("1.32.0", Level.OK), ("1.33.0", Level.FAIL), ("1.37.0", Level.FAIL)]
)
def test_versions_that_forget(version: str, level: Level) -> None:
    assert levels(CrioFacts(version)) == {"crio.version": level}


@pytest.mark.parametrize(
    ("stores", "level"), [((NAMED,), Level.OK), (("/other:ref",), Level.FAIL), ((str(STORE),), Level.FAIL)]
)
def test_options_of_its_own_count(stores: tuple[str, ...], level: Level) -> None:
    assert levels(CrioFacts("1.32.0", stores))["crio.storage"] is level


def test_the_shipped_options_name_the_store() -> None:
    assert CrioFacts("1.32.0", layer_stores([DEPLOYED.read_text()])).names(STORE)


def test_the_last_file_that_has_options_counts() -> None:
    one, other = (f'[crio]\nstorage_option = ["overlay.additionallayerstore={path}"]' for path in ("/a:ref", "/b:ref"))
    assert layer_stores([one, other, "[crio.runtime]", "no TOML", "crio = 1"]) == ("/b:ref",)
    assert layer_stores([one, "[crio]\nstorage_option = []"]) == ()


def test_what_a_machine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version and files; those of the directory come after the first."""
    program = tmp_path / "bin" / "crio"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho crio version 1.32.1\necho '   GoVersion: go1.23.4'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    config = tmp_path / "crio.conf"
    config.write_text('[crio]\nstorage_option = ["overlay.additionallayerstore=/other:ref"]')
    (tmp_path / "crio.conf.d").mkdir()
    (tmp_path / "crio.conf.d" / "10-puzzlefs.conf").write_text(DEPLOYED.read_text())
    assert crio_facts(config) == CrioFacts("1.32.1", (NAMED,))
