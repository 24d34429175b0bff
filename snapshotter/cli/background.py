"""Goes on in the background once something is ready, as a mount command does: it returns when the mount is there, or failed."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from snapshotter.cli import exits
from snapshotter.errors import InvalidError

SYSLOG = "/dev/log"


def in_background(work: Callable[[Callable[[], None]], None]) -> int:
    """Run ``work(ready)`` in a process of its own; the exit status for this one.

    Returns when `work` calls `ready` (0), or when it raises or ends before that: then its error's line is printed here and
    its status returned. Afterwards the process belongs to no terminal, and what it logs goes to syslog where there is one.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os._exit(_child(work, writing))
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    status, _, line = said.partition(" ")
    if line:
        print(f"puzzlefs: {line}", file=sys.stderr)
    return int(status) if status.isdigit() else exits.UNEXPECTED


def _child(work: Callable[[Callable[[], None]], None], writing: int) -> int:
    os.setsid()
    told = False

    def tell(text: str) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(writing, text.encode())
            os.close(writing)

    def ready() -> None:
        _leave_the_terminal()
        tell("0")

    try:
        work(ready)
    except BaseException as error:
        if told:
            logging.getLogger(__name__).error("%s", exits.one_line(error))
        else:
            tell(f"{exits.status(error)} {exits.one_line(error)}")
        return exits.status(error)
    tell(f"{exits.UNEXPECTED} it ended before it was ready")
    return 0


def _leave_the_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.chdir("/")
    logger = logging.getLogger()
    logger.handlers.clear()
    with contextlib.suppress(OSError):
        handler = logging.handlers.SysLogHandler(SYSLOG) if Path(SYSLOG).exists() else logging.NullHandler()
        handler.setFormatter(logging.Formatter("puzzlefs[%(process)d]: %(message)s"))
        logger.addHandler(handler)


@contextlib.contextmanager
def reported_to(fifo: Path | None) -> Iterator[Callable[[], None]]:
    """Writes ``s`` to the init fifo when the yielded function is called, ``f`` if the block fails before that.

    Writing waits until somebody reads.

    Raises:
        InvalidError: there is no such fifo.
    """
    if fifo is not None and not fifo.is_fifo():
        raise InvalidError(f"{fifo} is no fifo; make one with mkfifo")
    told = False

    def tell(letter: str) -> None:
        nonlocal told
        if fifo is not None and not told:
            told = True
            descriptor = os.open(fifo, os.O_WRONLY | os.O_CLOEXEC)  # which makes no file where the fifo has gone
            try:
                os.write(descriptor, letter.encode())
            finally:
                os.close(descriptor)

    try:
        yield lambda: tell("s")
    except BaseException:
        with contextlib.suppress(OSError):
            tell("f")
        raise
