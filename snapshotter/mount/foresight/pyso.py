"""What a Python extension module imports while it is loaded, from the names among its constants.

C code imports by a string that ends with a zero byte (PyImport_ImportModule, PyCapsule_Import). What has dots is nearly always
the name of a module, or of something in one. A name without dots may be anything: such names count in modules that Cython made,
which keeps the names of what it imports beside those of all that it uses. Whichever are no modules of the tree are found to be
none (`modules`); what comes of a wrong one is a module that is fetched in vain.
"""

from __future__ import annotations

import re

from snapshotter.mount.foresight.pyc import Import

NAMES_MAX = 4096
"""Names of one module that are looked for; NumPy's random generator has 86."""

_NAME_MAX = 255
_NAME = re.compile(rb"(?<![^\0])[A-Za-z_]\w{0,254}(?:\.[A-Za-z_]\w{0,254}){0,15}(?=\0)", re.ASCII)
_CYTHON = b"__pyx_"


def imports(constants: bytes) -> list[Import]:
    """The modules that the module with these `constants` may import, in the order of their names' places. Never raises."""
    cython = _CYTHON in constants
    found: dict[Import, None] = {}
    for match in _NAME.finditer(constants):
        name = match[0]
        if (cython or b"." in name) and len(name) <= _NAME_MAX:
            found[Import(0, name)] = None
            if len(found) == NAMES_MAX:
                break
    return list(found)
