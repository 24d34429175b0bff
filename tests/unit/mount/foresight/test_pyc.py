"""What compiled Python modules import, read without Python."""

from __future__ import annotations

import importlib.util
import marshal
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.mount.foresight import pyc
from snapshotter.mount.foresight.pyc import Import
from tests.support.modules import SOURCE, compiled, releases

EXPECTED = [
    Import(0, b"os"),
    Import(0, b"sys"),
    Import(0, b"a.b.c"),
    Import(1, b"", (b"near",)),
    Import(2, b"above", (b"one", b"two")),
    Import(0, b"package.module", (b"name", b"other")),
    Import(0, b"typing", (b"TYPE_CHECKING",)),
    Import(0, b"tried"),
    Import(0, b"instead"),
]
"""Of `SOURCE`: not what a function imports when it is called, nor what a type checker or a program alone does."""


@pytest.mark.parametrize("release", releases())
def test_what_a_module_imports_is_found_in_what_every_release_writes(release: str) -> None:
    assert pyc.imports(releases()[release]) == EXPECTED


def test_an_import_in_a_condition_that_may_hold_counts() -> None:
    assert pyc.imports(compiled("import sys\nif sys.platform == 'linux':\n    import fcntl\n")) == [
        Import(0, b"sys"),
        Import(0, b"fcntl"),
    ]


def test_what_follows_a_condition_for_others_counts_again() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import checked\n    import too\nimport real\n"
    assert pyc.imports(compiled(source)) == [Import(0, b"typing", (b"TYPE_CHECKING",)), Import(0, b"real")]


def test_a_module_with_more_names_and_constants_than_an_argument_can_say() -> None:
    many = "\n".join(f"name{number} = {1000 + number}.5" for number in range(70_000))
    assert pyc.imports(compiled(f"{many}\nfrom late import one as other\n")) == [Import(0, b"late", (b"one",))]


def test_names_that_functions_used_before_are_found() -> None:
    source = "def f():\n    return os.path, one\n\nimport os\nfrom package import one\n"
    assert pyc.imports(compiled(source)) == [Import(0, b"os"), Import(0, b"package", (b"one",))]


def test_all_kinds_of_constants_are_passed_over() -> None:
    source = (
        "x = (1, -2, 2**40, 2**90, 1.5, 3j, 'ä', 'a' * 2, b'bytes', None, True, False, ..., frozenset({1}))\n"
        "y = z in {'one', 'two'}\nw = lambda: (1, (2, (3,)))\n"
        f"long = {'x' * 300!r}\nimport last\n"
    )
    assert pyc.imports(compiled(source)) == [Import(0, b"last")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        compiled(SOURCE)[: pyc.HEADER],
        b"\x00\x00" + compiled(SOURCE)[2:],
        importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps("no code"),
        importlib.util.MAGIC_NUMBER + bytes(12) + b"\xe3" + bytes(20) + b"s\xff\xff\xff\xff",
        importlib.util.MAGIC_NUMBER + bytes(12) + b"\xe3" + bytes(20) + b"r\x00\x00\x00\x00" * 3,
        importlib.util.MAGIC_NUMBER + bytes(12) + b"\xe3" + bytes(20) + b")\x01" * 100_000,
    ],
    ids=["empty", "header alone", "unknown release", "no code", "too long", "refers to itself", "too deep"],
)
def test_what_is_no_module_imports_nothing(data: bytes) -> None:
    assert pyc.imports(data) == []


def test_a_list_that_is_repeated_without_end_is_cut() -> None:
    names = ", ".join(f"n{number}" for number in range(1000))
    found = pyc.imports(compiled(f"from m import {names}\n" * 100))
    assert sum(1 + len(one.names) for one in found) <= pyc.NAMES_MAX
    assert pyc.imports(compiled(f"import {'x' * (pyc.NAME_MAX + 1)}\nimport y\n")) == []


@given(st.binary(max_size=400))
def test_whatever_follows_the_header_does_no_harm(rest: bytes) -> None:
    pyc.imports(importlib.util.MAGIC_NUMBER + bytes(12) + rest)


@given(st.sampled_from(sorted(releases())), st.integers(0, 1 << 30), st.integers(1, 8))
def test_a_damaged_module_does_no_harm_and_has_imports_or_none(release: str, seed: int, count: int) -> None:
    damaged = bytearray(releases()[release])
    chance = random.Random(seed)
    for _ in range(count):
        damaged[chance.randrange(pyc.HEADER, len(damaged))] = chance.randrange(256)
    for found in pyc.imports(bytes(damaged)):
        assert found.level >= 0
        assert all(isinstance(name, bytes) for name in (found.name, *found.names))


def test_a_cut_module_does_no_harm() -> None:
    whole = compiled(SOURCE)
    for end in range(len(whole)):
        assert set(pyc.imports(whole[:end])) <= set(EXPECTED)
