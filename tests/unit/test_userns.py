"""What is made of the kernel's tables of users."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter import userns


@pytest.mark.parametrize(
    ("table", "initial"),
    [
        ("         0          0 4294967295\n", True),
        ("         0       1000          1\n", False),
        ("         0       1000          1\n         1     100000      65536\n", False),
        ("", False),
    ],
)
def test_is_initial(tmp_path: Path, table: str, initial: bool) -> None:
    (tmp_path / "uid_map").write_text(table)
    assert userns.is_initial(tmp_path / "uid_map") == initial
