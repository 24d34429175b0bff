"""Whether a caller that has a signal pending may be told EINTR, decided by what /proc says about it (proc(5)).

The kernel sends INTERRUPT for any signal, once, and waits for our answer: a caller that was killed would wait as long as the
registry does. But an answer of EINTR is right for two kinds of callers only:

* One that dies: a signal is pending that ends it. It never sees the answer.
* One that waits in read(2) or its like, which may fail with EINTR.

Anybody else would be hurt: EINTR in a page fault is SIGBUS to the program (filemap_fault), and Go's runtime and profilers send
signals all the time.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_READS = {
    # read, pread64, readv, preadv, preadv2 (asm/unistd_64.h, asm-generic/unistd.h)
    "x86_64": frozenset({0, 17, 19, 295, 327}),
    "aarch64": frozenset({63, 67, 65, 69, 286}),
}
_PENDING = ("SigPnd", "ShdPnd")
_SPARED = ("SigBlk", "SigIgn", "SigCgt")


def _mask(*signals: signal.Signals) -> int:
    return sum(1 << number - 1 for number in signals)


# Their default is to do nothing, or to stop (signal(7)).
_HARMLESS = _mask(
    signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
    signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


def may_interrupt(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a READ for the thread `pid` may be answered EINTR. One that is gone may; of one that hides, nothing is known."""
    if pid <= 0:
        return False
    directory = proc / str(pid)
    try:
        if dies((directory / "status").read_text()):
            return True
        return is_reading((directory / "syscall").read_text(), os.uname().machine)
    except (FileNotFoundError, ProcessLookupError):
        return not directory.exists()
    except OSError:
        return False


def dies(status: str) -> bool:
    """Whether a signal is pending that ends the process whose /proc/PID/status this is."""
    masks = dict.fromkeys((*_PENDING, *_SPARED), 0)
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in masks:
            masks[name] = int(value, 16)
    spared = _HARMLESS
    for name in _SPARED:
        spared |= masks[name]
    return any(masks[name] & ~spared for name in _PENDING)


def is_reading(syscall: str, machine: str) -> bool:
    """Whether the thread whose /proc/PID/syscall this is waits in a system call that may fail with EINTR."""
    number = syscall.split(" ", 1)[0].strip()
    return number.isdigit() and int(number) in _READS.get(machine, frozenset())
