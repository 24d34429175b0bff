"""Python's own tests of files, in a container: on our snapshotter they end as on overlayfs, test by test."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import debian, tools
from tests.support.images import Image
from tests.support.processes import run
from tests.system.conftest import Node, Server

pytestmark = pytest.mark.root

SUITES = ("test_os", "test_posix", "test_io", "test_mmap", "test_shutil")
LIBRARY = "usr/lib/python3.11/test"
TESTS_MIN = 1250
"""The five have some 1,300 tests: a run that ends early must not count as equal."""

REPORT = """
import json, xml.etree.ElementTree as tree
found = {}
for case in tree.parse("/tmp/result.xml").iter("testcase"):
    bad = [child.tag for child in case if child.tag in ("error", "failure", "skipped")]
    found[case.get("name")] = bad or [case.get("result")]
print(json.dumps(found))
"""


def with_tests(directory: Path) -> Image:
    """The image with Python, and a layer with Debian's package of Python's tests on top."""
    library = tools.UNPACKED / LIBRARY
    if not (library / "test_os.py").exists():
        raise tools.MissingToolError(
            f"{library} is missing: Debian's package libpython3.11-testsuite; `make packages` provides it"
        )
    base = debian.image()
    layout = directory / "layout"
    shutil.copytree(base.layout, layout, ignore=shutil.ignore_patterns("blobs"))
    shutil.copytree(base.layout / "blobs", layout / "blobs", copy_function=os.link)
    archive = directory / "tests.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(library, LIBRARY)
    run("umoci", "raw", "add-layer", "--image", f"{layout}:{base.tag}", archive, timeout=120)
    return Image(layout, base.tag, ())


def test_pythons_own_tests_end_as_on_overlayfs(node: Node, server: Server, tmp_path: Path) -> None:
    published = server.publish("python-tests", with_tests, tmp_path)
    references = {"puzzlefs": node.pull_lazily(published.lazy), "overlayfs": node.pull(published.ordinary, "overlayfs")}
    command = f"cd /tmp && python3 -m test --junit-xml /tmp/result.xml {' '.join(SUITES)} >/tmp/log 2>&1; python3 -c '{REPORT}'"

    def outcomes(snapshotter: str) -> dict[str, list[str]]:
        text = node.containerd.run(references[snapshotter], "/bin/sh", "-c", command, snapshotter=snapshotter, timeout=600).text
        found: dict[str, list[str]] = json.loads(text)
        return found

    with ThreadPoolExecutor(2) as pool:
        ours, native = pool.map(outcomes, ("puzzlefs", "overlayfs"))
    assert len(native) >= TESTS_MIN
    assert {name.split(".")[1] for name in native} == set(SUITES)
    assert {name: result for name, result in ours.items() if native.get(name) != result} == {}
    assert ours.keys() == native.keys()
