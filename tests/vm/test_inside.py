"""Runs the tests of ``inside`` with the virtual machine's kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.machine import Machine

pytestmark = pytest.mark.root

MODULES = sorted(path.name for path in (Path(__file__).parent / "inside").glob("test_*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_with_a_kernel_that_has_fs_verity(module: str, machine: Machine) -> None:
    done = machine.run(f"cd /code/source && python3 -m pytest -p no:cacheprovider -q tests/vm/inside/{module}", timeout=300)
    assert done.status == 0, done.output
    assert " passed" in done.output
    assert "skipped" not in done.output
