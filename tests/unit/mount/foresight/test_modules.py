"""Which files a Python module's imports are."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from snapshotter.mount.foresight.modules import ROOTS_MAX, Module, Modules
from snapshotter.mount.foresight.places import Places
from tests.support.modules import compiled
from tests.unit.mount.foresight.test_companions import Files, make_tree

TAG = f"cpython-3{__import__('sys').version_info.minor}"
LIBRARY = "usr/lib/python3.11"


def cached(directory: str, *names: str) -> dict[str, bytes]:
    return {f"{directory}/__pycache__/{name}.{TAG}.pyc": b"" for name in names}


FILES: Files = {
    **cached(LIBRARY, "os", "json", "enum", "sitecustomize"),
    **cached(f"{LIBRARY}/re", "__init__", "_compiler"),
    **cached(f"{LIBRARY}/json", "__init__", "decoder"),
    **cached(f"{LIBRARY}/encodings", "__init__", "aliases", "utf_8", "cp437"),
    f"{LIBRARY}/lib-dynload/_json.{TAG}-x86_64-linux-gnu.so": b"",
    **cached("opt/app", "main"),
    **cached("opt/app/package", "__init__", "one", "two"),
    **cached("opt/app/package/below", "__init__", "three"),
    "opt/app/package/fast.abi3.so": b"",
    "opt/app/package/__pycache__/one.cpython-39.pyc": b"",
    "opt/plain/main.py": b"",
    "opt/plain/other.py": b"",
    "opt/plain/package/__init__.py": b"",
    "opt/plain/package/part.py": b"",
    "usr/bin/python3.11": b"\x7fELF",
    "usr/bin/python3": b"",
}


class Imports:
    """The modules of `FILES`, by path."""

    def __init__(self, files: Mapping[str, bytes] = FILES) -> None:
        tree, self.numbers = make_tree(files)
        self.paths = {number: path for path, number in self.numbers.items()}
        self.modules = Modules(tree, Places(tree))

    def at(self, path: str) -> Module:
        found = self.modules.at(self.numbers[path])
        assert found is not None, f"{path} is not known as a module"
        return found

    def of(self, path: str, source: str) -> list[str]:
        """What is found for the imports of `source`, as the module at `path`; short names."""
        data = compiled(source) if path.endswith(".pyc") else source.encode()
        return [self.short(module) for module in self.modules.imported_by(self.at(path), data)]

    def short(self, module: Module) -> str:
        path = self.paths[module.ino]
        return path.replace(f".{TAG}.pyc", "").replace("__pycache__/", "").replace(f"{LIBRARY}/", "")


ONE = f"opt/app/package/__pycache__/one.{TAG}.pyc"
OS = f"{LIBRARY}/__pycache__/os.{TAG}.pyc"


def test_a_module_is_known_by_its_name() -> None:
    imports = Imports()
    assert imports.at(ONE) == Module(imports.numbers[ONE], imports.numbers["opt/app/package"], TAG.encode())
    assert imports.at("opt/plain/other.py").tag == b""
    assert imports.modules.at(imports.numbers["usr/bin/python3.11"]) is None
    assert imports.modules.at(1) is None


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from . import two", ["opt/app/package/__init__", "opt/app/package/two"][1:]),
        ("from .two import name", ["opt/app/package/two"]),
        ("from .below import three", ["opt/app/package/below/__init__", "opt/app/package/below/three"]),
        ("from . import fast", ["opt/app/package/fast.abi3.so"]),
        ("from .. import main", ["opt/app/main"]),
        ("from ....... import main", []),
        ("import main", ["opt/app/main"]),
        ("import package.below.three", [f"opt/app/package/{n}" for n in ("__init__", "below/__init__", "below/three")]),
        ("import nothing, package.nothing", ["opt/app/package/__init__"]),
        ("from . import one", []),
    ],
)
def test_imports_are_found_from_the_package_and_from_beside_it(source: str, found: list[str]) -> None:
    assert Imports().of(ONE, source) == found


def test_the_library_is_known_once_something_of_it_was_read() -> None:
    imports = Imports()
    assert imports.of(ONE, "import json") == []
    assert imports.of(OS, "import enum") == ["enum"]
    assert imports.of(ONE, "import json, _json") == ["json/__init__", f"lib-dynload/_json.{TAG}-x86_64-linux-gnu.so"]


def test_a_package_comes_before_a_module_of_its_name() -> None:
    assert Imports().of(OS, "import json") == ["json/__init__"]


def test_what_is_frozen_is_read_from_no_file() -> None:
    assert Imports().of(f"{LIBRARY}/__pycache__/enum.{TAG}.pyc", "import os, io, abc") == []


def test_source_imports_source() -> None:
    imports = Imports()
    assert imports.of("opt/plain/main.py", "import other\nfrom package import part\n") == [
        "opt/plain/other.py",
        "opt/plain/package/__init__.py",
        "opt/plain/package/part.py",
    ]


def test_what_a_python_reads_first_is_known_from_its_name() -> None:
    files = {**FILES, **{path.replace(TAG, "cpython-311"): data for path, data in FILES.items() if path.startswith(LIBRARY)}}
    imports = Imports(files)
    found = imports.modules.startup(imports.numbers["usr/bin/python3.11"])
    names = [imports.paths[module.ino].removeprefix(f"{LIBRARY}/").removesuffix(".cpython-311.pyc") for module in found]
    assert names == [
        "encodings/__pycache__/__init__",
        "encodings/__pycache__/aliases",
        "encodings/__pycache__/utf_8",
        "__pycache__/sitecustomize",
        "re/__pycache__/__init__",
    ]
    assert imports.modules.startup(imports.numbers["usr/bin/python3"]) == []
    assert imports.modules.startup(1) == []


def test_of_many_places_with_modules_the_first_and_the_latest_are_remembered() -> None:
    files = {**FILES, **{f"many/{number}/module.py": b"" for number in range(ROOTS_MAX + 4)}}
    imports = Imports(files)
    assert imports.of(OS, "import enum") == ["enum"]
    for number in range(ROOTS_MAX + 4):
        imports.of(f"many/{number}/module.py", "")
    assert imports.of(ONE, "import json") == ["json/__init__"]
