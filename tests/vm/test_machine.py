"""The virtual machine itself: it boots, runs commands, keeps what is written to its disks and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import CommandError, run
from tests.vm.machine import Machine

pytestmark = pytest.mark.root


def test_commands_run_as_root_and_say_how_they_ended(machine: Machine) -> None:
    done = machine.run("id -u; echo wrong >&2; exit 7")
    assert (done.status, done.output) == (7, "0\nwrong\n")


def test_a_command_that_does_not_end_is_ended(machine: Machine) -> None:
    assert machine.run("echo begun; sleep 100", timeout=1).status is None
    assert machine.check("echo alive") == "alive\n"


def test_the_kernel_has_what_this_ones_may_lack(machine: Machine) -> None:
    assert int(machine.check("uname -r").split(".")[0]) >= 6
    assert "overlay" in machine.check("cat /proc/filesystems")


def test_disks_keep_what_was_synced(machine: Machine, disk: Path) -> None:
    machine.check("mount /dev/disk/data /mnt && echo kept > /mnt/file && umount /mnt")
    assert run("debugfs", "-R", "cat /file", disk).stdout == "kept\n"


_CRASHES_AT_FIRST = """
console=$1; shift
if [ -e "$console" ]; then exec "$@"; fi
echo '[    2.193272] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI' >"$console"
"""


def test_a_kernel_that_the_emulator_crashes_while_it_boots_is_booted_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine._command = ["sh", "-c", _CRASHES_AT_FIRST, "sh", tmp_path / "console.log", *machine._command]
    with machine:
        assert machine.check("echo here") == "here\n"


def test_a_machine_that_does_not_come_up_for_another_reason_is_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine._command = ["sh", "-c", f"echo once >>{tmp_path}/starts; exit 1"]
    with pytest.raises(CommandError, match="status 1"), machine:
        pass
    assert (tmp_path / "starts").read_text() == "once\n"
