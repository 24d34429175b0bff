"""What is read with what is read: of small files, of their directories, of programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest

from snapshotter.format.digest import Digest, sha256
from snapshotter.mount.foresight import companions, elf
from snapshotter.mount.foresight.companions import (
    AROUND_DOUBLED,
    AROUND_FIRST,
    NEIGHBOUR,
    NEIGHBOURS_BYTES,
    SEGMENTS_MAX,
    SMALL_FILE,
)
from snapshotter.mount.foresight.loading import LIBRARY_CODE, PROGRAM_CODE, Loading
from snapshotter.mount.foresight.places import Places
from tests.support.foresight import Files, Foreseeing, make_tree, names, numbered, parts
from tests.support.modules import compiled
from tests.support.programs import EH_FRAME, LOAD, RW, RX, R, header, program


def nothing(digest: Digest) -> bool:
    return False


class TestModules:
    """Compiled modules: those that one imports come with it, not those beside it."""

    TAG = "cpython-311"
    SOURCES: ClassVar[Mapping[str, str]] = {
        "lib/pkg/__init__": "from . import one\nimport apart\n",
        "lib/pkg/one": "from .two import x\n",
        "lib/pkg/two": "from . import one\nfrom . import fast\n",
        "lib/pkg/idle": "",
        "lib/apart": "",
        "lib/unneeded": "",
    }

    @classmethod
    def files(cls) -> Files:
        made: dict[str, bytes] = {"lib/pkg/fast.so": program([b"libz.so"]), "usr/lib/libz.so": program([], code=1000)}
        for name, source in cls.SOURCES.items():
            # as long as modules are, so that each has chunks of its own
            made[cls.path(name)] = compiled(f"{source}name = {name!r}\n").ljust(20_000, b"\0")
        return made

    @classmethod
    def path(cls, name: str) -> str:
        directory, _, last = name.rpartition("/")
        return f"{directory}/__pycache__/{last}.{cls.TAG}.pyc"

    def test_all_that_a_module_imports_comes_with_it_and_what_extensions_need(self) -> None:
        files = self.files()
        tree, numbers = make_tree(files)
        store = Foreseeing(files)
        Loading(tree, Places(tree), store, nothing).begin(numbers[self.path("lib/pkg/__init__")])
        expected = {self.path(f"lib/{name}") for name in ("pkg/one", "pkg/two", "apart")} | {
            "lib/pkg/fast.so",
            "usr/lib/libz.so",
        }
        assert set(names(files, store.expected)) == expected

    def test_what_an_extension_imports_from_c_comes_too_if_there_is_such_a_module(self) -> None:
        constants = b"\0apart.Thing\0unneeded\0nowhere.Thing\0os.path\0"
        files = self.files() | {"lib/pkg/fast.so": program([], constants=constants)}
        tree, numbers = make_tree(files)
        store = Foreseeing(files)
        Loading(tree, Places(tree), store, nothing).begin(numbers[self.path("lib/pkg/two")])
        came = set(names(files, store.expected))
        assert self.path("lib/apart") in came
        assert self.path("lib/unneeded") not in came, "a name without dots says nothing"
        files["lib/pkg/fast.so"] = program([], constants=constants + b"__pyx_capi__\0")
        tree, numbers = make_tree(files)
        store = Foreseeing(files)
        Loading(tree, Places(tree), store, nothing).begin(numbers[self.path("lib/pkg/two")])
        assert {self.path("lib/apart"), self.path("lib/unneeded")} <= set(names(files, store.expected)), "but in Cython's"

    def test_an_empty_module_is_no_obstacle(self) -> None:
        files = {"app/main.py": b"import empty, full\n", "app/empty.py": b"", "app/full.py": b"full"}
        tree, numbers = make_tree(files)
        store = Foreseeing(files)
        Loading(tree, Places(tree), store, nothing).begin(numbers["app/main.py"])
        assert names(files, store.expected) == ["app/full.py"]

    def test_modules_beside_one_do_not_come_for_that_alone(self) -> None:
        files = self.files()
        tree, numbers = make_tree(files)
        store = Foreseeing(files)
        Loading(tree, Places(tree), store, nothing).missed(numbers[self.path("lib/unneeded")], 0, 4096)
        assert set(names(files, store.expected)) == {self.path("lib/unneeded")}


class TestSmallFiles:
    FILES: ClassVar[Files] = {**numbered(6, 20_000), "d/sub/x": b"x" * 100, "d/sub/y": b"y" * 100, "other/z": b"z" * 100}

    def test_the_others_of_its_directory_come_with_a_file_and_it_comes_first(self) -> None:
        tree, numbers = make_tree(self.FILES)
        found = companions.of_small_file(tree, Places(tree), numbers["d/003"], nothing)
        assert names(self.FILES, found) == ["d/003", "d/000", "d/001", "d/002", "d/004", "d/005"]

    def test_a_file_behind_a_subdirectory_is_of_its_own_directory(self) -> None:
        files = {"d/a": b"a", "d/m/x": b"x", "d/m/y": b"y", "d/z": b"z"}
        tree, numbers = make_tree(files)
        assert names(files, companions.of_small_file(tree, Places(tree), numbers["d/z"], nothing)) == ["d/z", "d/a"]

    def test_of_a_large_directory_only_the_file(self) -> None:
        files = numbered(80, NEIGHBOURS_BYTES // 64)
        tree, numbers = make_tree(files)
        assert names(files, companions.of_small_file(tree, Places(tree), numbers["d/040"], nothing)) == ["d/040"]

    def test_what_is_here_of_a_large_directory_does_not_count(self) -> None:
        files = numbered(80, NEIGHBOURS_BYTES // 64)
        tree, numbers = make_tree(files)
        here = {sha256(part) for path in list(files)[:30] for part in parts(files[path])}
        found = companions.of_small_file(tree, Places(tree), numbers["d/040"], here.__contains__)
        assert names(files, found) == ["d/040", *[path for path in list(files)[30:] if path != "d/040"]]

    def test_a_file_that_is_worth_a_request_of_its_own_does_not_come_with_another(self) -> None:
        files = {"d/a": b"a", "d/image": bytes(NEIGHBOUR + 1), "d/z": b"z"}
        tree, numbers = make_tree(files)
        assert names(files, companions.of_small_file(tree, Places(tree), numbers["d/a"], nothing)) == ["d/a", "d/z"]

    def test_a_large_file_has_no_companions_and_is_none(self) -> None:
        files = {"d/large": bytes(SMALL_FILE + 1), "d/small": b"small"}
        tree, numbers = make_tree(files)
        assert companions.of_small_file(tree, Places(tree), numbers["d/large"], nothing) == []
        assert names(files, companions.of_small_file(tree, Places(tree), numbers["d/small"], nothing)) == ["d/small"]


class TestPrograms:
    def test_the_first_segment_and_the_written_ones_are_mapped_at_start(self) -> None:
        found = elf.parse(
            header([(LOAD, R, 0, 5000), (LOAD, RX, 8192, 10_000), (LOAD, R, 120_000, 9000), (LOAD, RW, 130_000, 7000)])
        )
        assert found is not None
        assert companions.mapped(found) == [(0, 5000), (130_000, 7000)]
        assert companions.code(found, 10_000) == [(8192, 10_000)]
        assert companions.code(found, 9_999) == []

    def test_more_comes_around_a_miss_the_more_there_were_but_of_its_segment_alone(self) -> None:
        found = elf.parse(header([(LOAD, R, 0, 5000), (LOAD, RX, 1 << 20, 8 << 20), (LOAD, RW, 16 << 20, 100)]))
        assert found is not None
        middle = 5 << 20
        assert companions.part(found, middle, 4096) == 1
        assert companions.part(found, 3000, 4096) == 0
        assert companions.part(found, 12 << 20, 4096) is None
        code = found.segments[1]
        first = companions.around(code, middle, 4096, 0)
        assert first == (middle - AROUND_FIRST // 2, AROUND_FIRST * 3 // 2 + 4096)
        assert companions.around(code, middle, 4096, 1)[1] == AROUND_FIRST * 3 + 4096
        assert companions.around(code, middle, 4096, 1 << 30)[1] == (AROUND_FIRST * 3 // 2 << AROUND_DOUBLED) + 4096
        assert companions.around(code, middle, 4096, 0, 4 * AROUND_FIRST)[1] == AROUND_FIRST * 6 + 4096
        assert companions.around(code, middle, 4096, 0, AROUND_FIRST // 2) == first
        assert companions.around(code, 1 << 20, 4096, 0) == (1 << 20, AROUND_FIRST + 4096)
        assert companions.around(code, (9 << 20) - 4096, 4096, 0) == (
            (9 << 20) - 4096 - AROUND_FIRST // 2,
            AROUND_FIRST // 2 + 4096,
        )

    def test_after_some_misses_all_of_a_segment_comes_that_is_not_too_long(self) -> None:
        found = elf.parse(
            header([(LOAD, R, 0, 5000), (LOAD, RX, 1 << 20, SEGMENTS_MAX), (LOAD, RX, 9 << 20, SEGMENTS_MAX + 1)])
        )
        assert found is not None
        _, short, long = found.segments
        middle = short.offset + SEGMENTS_MAX // 2
        assert companions.around(short, middle, 4096, AROUND_DOUBLED - 1)[1] < SEGMENTS_MAX
        assert companions.around(short, middle, 4096, AROUND_DOUBLED) == (short.offset, SEGMENTS_MAX)
        assert companions.around(long, 11 << 20, 4096, AROUND_DOUBLED)[1] < SEGMENTS_MAX

    def test_constants_are_what_lies_behind_the_code_up_to_what_unwinds_the_stack(self) -> None:
        parts = [(LOAD, R, 0, 5000), (LOAD, RX, 8192, 10_000), (LOAD, R, 20_000, 9000), (LOAD, RW, 30_000, 7000)]
        plain = elf.parse(header(parts))
        unwound = elf.parse(header([*parts, (EH_FRAME, R, 26_000, 100)]))
        elsewhere = elf.parse(header([*parts, (EH_FRAME, R, 3000, 100)]))
        assert plain is not None
        assert unwound is not None
        assert elsewhere is not None
        assert companions.constants(plain, 9000) == companions.constants(elsewhere, 9000) == [(20_000, 9000)]
        assert companions.constants(plain, 8999) == []
        assert companions.constants(unwound, 6000) == [(20_000, 6000)]

    def test_what_a_hostile_file_can_have_fetched_is_bounded(self) -> None:
        large = elf.parse(header([(LOAD, RW, 0, SEGMENTS_MAX + 1)]))
        many = elf.parse(header([(LOAD, RW, number << 20, 1 << 20) for number in range(12)]))
        assert large is not None
        assert many is not None
        assert companions.mapped(large) == []
        assert sum(length for _, length in companions.mapped(many)) <= SEGMENTS_MAX


class TestLoading:
    FILES: ClassVar[Files] = {
        "usr/bin/tool": program([b"liba.so.1"], b"/lib64/ld.so", code=300_000),
        "usr/lib/ld.so": program([]),
        "usr/lib/x86_64-linux-gnu/liba.so.1.2": program([b"libb.so"], code=LIBRARY_CODE - 1),
        "usr/lib/x86_64-linux-gnu/libb.so": program([b"liba.so.1", b"libgone.so"], code=LIBRARY_CODE + 1),
        "usr/lib/x86_64-linux-gnu/libc.so": program([b"libgone.so"], code=1000),
        "usr/share/text": b"text" * 1000,
    }
    LINKS: ClassVar[Mapping[str, str]] = {"lib64": "usr/lib", "usr/lib/x86_64-linux-gnu/liba.so.1": "liba.so.1.2"}

    def begun(self, path: str, files: Files | None = None) -> list[str]:
        files = files or self.FILES
        tree, numbers = make_tree(files, self.LINKS)
        self.store = Foreseeing(files)
        Loading(tree, Places(tree), self.store, nothing).begin(numbers[path])
        return names(files, self.store.expected)

    def test_a_programs_libraries_come_with_it_and_what_they_need_but_nothing_else(self) -> None:
        found = self.begun("usr/bin/tool")
        assert set(found) == {
            "usr/bin/tool",
            "usr/lib/ld.so",
            "usr/lib/x86_64-linux-gnu/liba.so.1.2",
            "usr/lib/x86_64-linux-gnu/libb.so",
        }

    def test_the_code_of_what_is_not_too_long_comes_and_after_all_that_loading_takes(self) -> None:
        self.begun("usr/bin/tool")
        expected = [ref.digest for ref in self.store.expected]

        def middle(path: str) -> Digest:
            return sha256(parts(self.FILES[path])[8])

        assert middle("usr/bin/tool") in expected
        assert middle("usr/lib/x86_64-linux-gnu/liba.so.1.2") in expected
        assert middle("usr/lib/x86_64-linux-gnu/libb.so") not in expected
        last = sha256(parts(self.FILES["usr/lib/x86_64-linux-gnu/libb.so"])[-1])
        assert expected.index(last) < expected.index(middle("usr/bin/tool"))

    def test_a_program_that_is_opened_itself_may_have_more_code_than_a_library(self) -> None:
        assert LIBRARY_CODE < PROGRAM_CODE
        self.begun("usr/lib/x86_64-linux-gnu/libb.so")
        expected = [ref.digest for ref in self.store.expected]
        assert sha256(parts(self.FILES["usr/lib/x86_64-linux-gnu/libb.so"])[8]) in expected

    @pytest.mark.parametrize("path", ["usr/share/text", "usr/lib/x86_64-linux-gnu/libc.so"])
    def test_of_what_needs_nothing_nothing_else_comes(self, path: str) -> None:
        assert set(self.begun(path)) <= {path}

    def test_what_is_missed_of_a_program_that_was_begun_comes_with_more_around_it(self) -> None:
        tree, numbers = make_tree(self.FILES, self.LINKS)
        store = Foreseeing(self.FILES)
        path = "usr/lib/x86_64-linux-gnu/libb.so"
        loading = Loading(tree, Places(tree), store, nothing)
        loading.missed(numbers[path], 1 << 20, 4096)
        assert store.expected == []
        loading.begin(numbers[path])
        counts = []
        for _ in range(3):
            store.expected.clear()
            loading.missed(numbers[path], 1 << 20, 4096)
            counts.append(len(store.expected))
        assert counts == [1 + (AROUND_FIRST * 3 // 2 << number) // 16384 for number in range(3)]

    def test_nothing_is_guessed_while_a_recorded_start_is_on_its_way(self) -> None:
        tree, numbers = make_tree(self.FILES, self.LINKS)
        store = Foreseeing(self.FILES)
        loading = Loading(tree, Places(tree), store, nothing)
        store.is_told = True
        loading.missed(numbers["usr/share/text"], 0, 4096)
        loading.begin(numbers["usr/bin/tool"])
        assert store.expected == []
        store.is_told = False
        loading.begin(numbers["usr/bin/tool"])
        assert store.expected

    def test_nothing_is_looked_at_twice(self) -> None:
        tree, numbers = make_tree(self.FILES, self.LINKS)
        store = Foreseeing(self.FILES)
        loading = Loading(tree, Places(tree), store, nothing)
        loading.begin(numbers["usr/bin/tool"])
        before = len(store.expected)
        loading.begin(numbers["usr/bin/tool"])
        loading.begin(numbers["usr/lib/x86_64-linux-gnu/libb.so"])
        assert len(store.expected) == before
