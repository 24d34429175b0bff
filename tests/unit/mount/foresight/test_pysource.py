"""What Python modules import, told from their source."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.mount.foresight import pysource
from snapshotter.mount.foresight.pyc import Import
from tests.support.modules import SOURCE
from tests.unit.mount.foresight.test_pyc import EXPECTED


def test_the_same_is_found_as_in_the_compiled_module() -> None:
    assert pysource.imports(SOURCE.encode()) == EXPECTED


def test_lists_comments_and_long_lines() -> None:
    source = b"""import a, b.c as d  # import comment
from e import (  # what
    f as g,
    h,  # import i
)
from j import k; import l
from . import (m)
from .n import \\
    o
"""
    assert pysource.imports(source) == [
        Import(0, b"a"),
        Import(0, b"b.c"),
        Import(0, b"e", (b"f", b"h")),
        Import(0, b"j", (b"k",)),
        Import(1, b"", (b"m",)),
        Import(1, b"n", ()),
    ]


def test_functions_and_classes_import_later() -> None:
    source = b"def f():\n    import a\nasync def g():\n    import b\nclass C:\n    import c\n@decorated\ndef h():\n\timport d\n"
    assert pysource.imports(source) == []


def test_blocks_that_run_count() -> None:
    source = b"with x:\n    import a\nif y:\n    import b\nelif z:\n    import c\nelse:\n    from d import e\n"
    assert [found.name for found in pysource.imports(source)] == [b"a", b"b", b"c", b"d"]


@given(st.binary(max_size=300))
def test_whatever_it_is_does_no_harm(source: bytes) -> None:
    pysource.imports(source)
    pysource.imports(b"from x import (" + source)
