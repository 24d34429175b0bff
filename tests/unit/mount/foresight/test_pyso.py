"""What Python extension modules import, told from their constants."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.mount.foresight import pyso
from snapshotter.mount.foresight.pyc import Import


def test_names_with_dots_are_those_of_modules_or_of_what_is_in_them() -> None:
    constants = b"\x01\x02\0datetime.datetime_CAPI\0no name.at all\0error: %s\0numpy.core\0a..b\0.c\0d.\0test\0numpy.core\0"
    assert pyso.imports(constants) == [Import(0, b"datetime.datetime_CAPI"), Import(0, b"numpy.core")]


def test_of_what_cython_made_all_names_count() -> None:
    constants = b"secrets\0__pyx_capi__\0some text\0copy\0"
    assert [found.name for found in pyso.imports(constants)] == [b"secrets", b"__pyx_capi__", b"copy"]


def test_a_name_that_does_not_end_is_none() -> None:
    assert pyso.imports(b"\0a.b") == pyso.imports(b"") == []


def test_the_names_that_are_looked_for_are_bounded() -> None:
    assert len(pyso.imports(b"".join(b"a.n%d\0" % number for number in range(pyso.NAMES_MAX * 2)))) == pyso.NAMES_MAX
    assert pyso.imports(b"a." * 1000 + b"b\0" + b"c.%s\0" % (b"d" * 1000)) == []


@given(st.binary())
def test_nothing_is_raised_whatever_it_is(constants: bytes) -> None:
    pyso.imports(constants)
    pyso.imports(b"\0a.b\0__pyx_\0" + constants)
