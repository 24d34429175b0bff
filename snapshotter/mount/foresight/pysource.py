"""What a Python module imports while it is loaded, from its source: a guess by lines, for images without compiled modules.

Nothing is parsed, since what is read is hostile and what comes of it is only fetched sooner: statements at the beginning of a
line count, and indented ones in blocks that run when the module is loaded, as ``try:``; not those of functions and classes.
"""

from __future__ import annotations

import re

from snapshotter.mount.foresight.pyc import Import

_STATEMENT = re.compile(
    rb"^([ \t]*)(?:from[ \t]+(\.*)[ \t]*([A-Za-z_][\w.]*)?[ \t]*\bimport\b[ \t]*(\([^)]*\)?|[^\n;#(]*)|import[ \t]+([^\n;#]*))"
    rb"|^([A-Za-z@]\w*)([^\n]*)",
    re.MULTILINE,
)
_COMMENT = re.compile(rb"#[^\n]*")
_NAME = re.compile(rb"[ \t\n\\(]*([A-Za-z_][\w.]*)")
_RUNS = frozenset((b"try", b"except", b"else", b"finally", b"with", b"if", b"elif"))
_FOR_OTHERS = re.compile(rb"\bTYPE_CHECKING\b|__main__")


def imports(source: bytes) -> list[Import]:
    """What the module with this `source` imports while it is loaded, in its order. Never raises."""
    found: list[Import] = []
    runs = False
    for match in _STATEMENT.finditer(source):
        indent, dots, name, names, modules, word, rest = match.groups()
        if word is not None:
            runs = word in _RUNS and not _FOR_OTHERS.search(rest)
        elif indent and not runs:
            continue
        elif modules is not None:
            found += (Import(0, module) for module in _names(modules))
        elif dots or name:
            found.append(Import(len(dots), name or b"", tuple(_names(names))))
    return found


def _names(listed: bytes) -> list[bytes]:
    """The names in a list as ``a.b as c, d``, without what they are called here."""
    starts = (_NAME.match(part) for part in _COMMENT.sub(b"", listed).split(b","))
    return [start[1] for start in starts if start]
