"""What is made of the user namespace that a process is in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter import userns
from tests.support import tools

_ASK = """
import sys
print("unshared", flush=True)
sys.stdin.readline()
from snapshotter import userns
print(userns.is_initial(), userns.is_root(), userns.overlay_prefix().decode(), userns.outsider())
"""


def _told(*words: str, maps: str = "") -> list[str]:
    """What a process says of its namespace that is started by `words`, and which has all `maps` of users and groups."""
    process = subprocess.Popen(
        [*words, sys.executable, "-c", _ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tools.ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "unshared\n"
    for table in ("uid_map", "gid_map") if maps else ():
        Path(f"/proc/{process.pid}/{table}").write_text(maps)
    answer, _ = process.communicate("go\n", timeout=60)
    return answer.split()


OVERFLOW = Path("/proc/sys/kernel/overflowuid").read_text().strip()


@pytest.mark.root
@pytest.mark.parametrize(
    ("maps", "told"),
    [
        ("0 1000 1\n", ["False", "False", "user.overlay.", OVERFLOW]),
        ("0 0 1\n1 100000 65536\n", ["False", "False", "user.overlay.", OVERFLOW]),
        # all users are themselves there, and the kernel yet shows it no trusted. attributes
        ("0 0 4294967295\n", ["False", "False", "user.overlay.", "None"]),
    ],
)
def test_another_namespace(maps: str, told: list[str]) -> None:
    assert _told(tools.find("unshare"), "--user", maps=maps) == told


@pytest.mark.root
def test_this_namespace() -> None:
    """Where the tests run as the machine's root, which those that mount something do anyway."""
    assert _told() == ["True", "True", "trusted.overlay.", "None"]
    assert _told(tools.find("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--")[:2] == ["True", "False"]


@pytest.mark.root
def test_trusted_attributes_are_not_seen_where_all_users_are_themselves(tmp_path: Path) -> None:
    """Which is why the numbers of users do not tell the namespaces apart."""
    directory = tmp_path / "opaque"
    directory.mkdir()
    os.setxattr(directory, userns.TRUSTED_OVERLAY + b"opaque", b"y")
    script = "import os, sys; print('unshared', flush=True); sys.stdin.readline(); print(os.listxattr(sys.argv[1]))"
    seen = []
    for words in ([], [tools.find("unshare"), "--user"]):
        process = subprocess.Popen(
            [*words, sys.executable, "-c", script, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        if words:
            Path(f"/proc/{process.pid}/uid_map").write_text("0 0 4294967295\n")
        seen.append(process.communicate("go\n", timeout=60)[0].strip())
    assert seen == ["['trusted.overlay.opaque']", "[]"]


def test_a_kernel_without_user_namespaces(tmp_path: Path) -> None:
    assert userns.is_initial(tmp_path / "none")


@pytest.mark.parametrize(
    ("table", "all_are_there"),
    [
        ("         0          0 4294967295\n", True),
        ("         0       1000          1\n", False),
        ("         0       1000          1\n         1     100000      65536\n", False),
        ("", False),
    ],
)
def test_users_that_are_not_there(tmp_path: Path, table: str, all_are_there: bool) -> None:
    (tmp_path / "uid_map").write_text(table)
    assert userns.outsider(tmp_path / "uid_map") == (None if all_are_there else int(OVERFLOW))
