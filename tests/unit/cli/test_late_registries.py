"""Registries are made, and what they need is imported, when one is opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter.cli.registries import LateRegistries
from snapshotter.errors import NotFoundError
from snapshotter.registry import reference


def test_a_command_that_makes_images_imports_nothing_for_registries_before_one_is_opened() -> None:
    program = "import snapshotter.cli.images, sys; print(sorted({'urllib3', 'snapshotter.daemon.config'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_repository_is_opened_when_it_is_asked_for() -> None:
    with LateRegistries(None) as registries:
        store = registries.open(reference.parse("registry.example/name:tag"))
        assert "registry.example/name" in store.name


def test_a_file_of_settings_that_was_named_is_read_at_once(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        LateRegistries(tmp_path / "missing.toml")
