"""Who may be told EINTR: by texts as /proc shows them, and by real processes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from snapshotter.mount.interrupts import dies, is_reading, may_interrupt


def status(*, pending: int = 0, shared: int = 0, blocked: int = 0, ignored: int = 0, caught: int = 0) -> str:
    """/proc/PID/status with these signals (numbers, 0 for none)."""
    fields = {"SigPnd": pending, "ShdPnd": shared, "SigBlk": blocked, "SigIgn": ignored, "SigCgt": caught}
    lines = [f"{name}:\t{(1 << number >> 1):016x}" for name, number in fields.items()]
    return "\n".join(["Name:\tx", "Threads:\t1", *lines, "CapInh:\t0"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, 64])
def test_a_pending_signal_that_ends_the_process(number: int) -> None:
    assert dies(status(pending=number))
    assert dies(status(shared=number))
    assert not dies(status(pending=number, caught=number))
    assert not dies(status(shared=number, ignored=number))
    assert not dies(status(pending=number, blocked=number))


@pytest.mark.parametrize("number", [0, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP])
def test_signals_that_end_nothing(number: int) -> None:
    assert not dies(status(pending=number, shared=number))


def test_who_is_in_a_read() -> None:
    assert is_reading("0 0x3 0x7f 0x1000 0x0 0x0 0x0 0x7ffd 0x7f2\n", "x86_64")
    assert is_reading("17 0x3 0x7f\n", "x86_64")
    assert is_reading("63 0x3 0x7f\n", "aarch64")
    assert not is_reading("1 0x3 0x7f\n", "x86_64")
    assert not is_reading("-1 0x7ffd 0x7f2\n", "x86_64"), "a page fault"
    assert not is_reading("running\n", "x86_64")
    assert not is_reading("0 0x3\n", "unheard-of")
    assert not is_reading("", "x86_64")


def test_a_process_that_waits_in_read_may_and_one_that_is_gone_too() -> None:
    with subprocess.Popen(["sleep", "600"]) as sleeping, subprocess.Popen(["cat"], stdin=subprocess.PIPE) as reading:
        try:
            while not Path(f"/proc/{reading.pid}/syscall").read_text().startswith(("0 ", "63 ")):
                assert reading.poll() is None
            assert may_interrupt(reading.pid)
            while "nanosleep" not in Path(f"/proc/{sleeping.pid}/wchan").read_text() and not is_waiting(sleeping.pid):
                assert sleeping.poll() is None
            assert not may_interrupt(sleeping.pid)
        finally:
            sleeping.kill()
            reading.kill()
    assert may_interrupt(sleeping.pid)


def is_waiting(pid: int) -> bool:
    """Whether a process is asleep in a system call."""
    first = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return first.isdigit() and int(first) in (35, 115, 230)


def test_nothing_is_known_of_a_caller_elsewhere(tmp_path: Path) -> None:
    assert not may_interrupt(0)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text(status())
    assert not may_interrupt(7, tmp_path), "no system call to be seen"
    (tmp_path / "7" / "syscall").write_text("0 0x3\n")
    assert may_interrupt(7, tmp_path) == (os.uname().machine == "x86_64")
    (tmp_path / "7" / "status").write_text(status(pending=signal.SIGKILL))
    assert may_interrupt(7, tmp_path)
