"""Text from outside (an image, a registry, a client), made harmless for a terminal and a log."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` on one line: control characters, line ends and what else is not printable are shown escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
