"""How the daemon's processes log: one line a message, whatever is in it."""

from __future__ import annotations

import logging
import sys

from snapshotter.format.printable import printable

_FORMAT = "%(levelname)s %(name)s: %(message)s"


class OneLine(logging.Formatter):
    """A formatter whose lines begin with a level only where a message begins: names, labels, references and what registries
    answer are in messages, and could hold line ends. The lines of a traceback are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """See logging.Formatter."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802
        """See logging.Formatter."""
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(f"    {printable(line)}" for line in text.splitlines())


def set_up(level: str) -> None:
    """Log to stderr from `level` (debug, info, warning, error) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("urllib3").setLevel(logging.WARNING)
