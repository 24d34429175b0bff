"""A registry that misbehaves in every way, by a seed: right bytes or an error in time, and nothing is left of it.

``FAULT_STARTS`` says how many starts of containers and full reads there are (``make faults STARTS=500``), ``FAULT_SEED`` which
faults meet them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support import processes, samples
from tests.support.faultproxy import FAULTS, FaultProxy
from tests.support.images import Layer, write_image
from tests.support.processes import CommandError
from tests.system.conftest import Node, Published, Server, started

pytestmark = pytest.mark.root

STARTS = int(os.environ.get("FAULT_STARTS", "12"))
SEED = int(os.environ.get("FAULT_SEED", "20261124"))
CONTAINER_EVERY = 4
"""One start in so many is a container's, after a pull of its own; the others read every file through mounts."""
RATES = (0.3, 0.5, 0.8)
"""How many of the registry's answers go wrong, in turn."""
READERS = 8
LIMIT = 60.0
"""Seconds in which a read that may take 5 must have ended, on a machine however busy."""


def content() -> Mapping[str, bytes]:
    """Files of all sizes that matter: many in a chunk, a chunk, several, and one that decodes from little."""
    made = {f"data/small-{number}": samples.noise(3_000, number) for number in range(20)}
    made |= {f"data/middle-{number}": samples.noise(90_000, 100 + number) for number in range(8)}
    # more than the workers keep in memory, or nothing would be fetched twice
    made |= {f"data/large-{number}": samples.noise(3_000_000, 200 + number) for number in range(6)}
    made["data/zeros"] = bytes(2_000_000)
    return made


def publish(server: Server, directory: Path) -> tuple[Published, Mapping[str, bytes]]:
    """The image, in the real registry."""
    files = content()
    layer = Layer()
    layer.directory(b"data")
    for name, data in files.items():
        layer.file(name.encode(), data)
    make = lambda made: write_image(made / "faulty", "v1", [samples.base().tar(), layer.tar()])  # noqa: E731
    return server.publish("faulty", make, directory), files


@contextlib.contextmanager
def faulty_node(server: Server, seed: int) -> Iterator[tuple[Node, FaultProxy]]:
    """A node that reaches the registry through the proxy alone, wherever images say that they are from."""
    proxy = FaultProxy(server.registry.endpoint, seed)
    try:
        behind = cast("Server", SimpleNamespace(relay=SimpleNamespace(address=proxy.address)))
        alone = f'[policy]\nallowed_registries = ["{proxy.address}"]'
        with started(behind, settings=alone) as node:
            yield node, proxy
    finally:
        proxy.close()


class Readers:
    """Reads files whose right content is known, several at once, and counts what came of it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = {name: (len(data), hashlib.sha256(data).digest()) for name, data in files.items()}
        self.outcomes: Counter[str] = Counter()

    def read(self, root: Path) -> bool:
        """Every file below `root`: whether all were right. Wrong bytes, another error than EIO and a hang fail the test."""
        with ThreadPoolExecutor(READERS) as pool:
            outcomes = list(pool.map(lambda name: self._one(root, name), self._files))
        self.outcomes.update(outcomes)
        return set(outcomes) == {"right"}

    def _one(self, root: Path, name: str) -> str:
        size, digest = self._files[name]
        start = time.monotonic()
        try:
            with (root / name).open("rb", buffering=0) as file:
                # what the kernel has of it would be read from there
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                found = hashlib.sha256()
                while piece := file.read(128 << 10):
                    found.update(piece)
                    size -= len(piece)
            assert (size, found.digest()) == (0, digest), f"{name}: wrong bytes"
            outcome = "right"
        except OSError as error:
            outcome = errno.errorcode[error.errno or 0]
        assert outcome in ("right", "EIO"), f"{name}: {outcome}"
        assert time.monotonic() - start < LIMIT, f"{name}: a read that hangs"
        return outcome


def forget(node: Node) -> None:
    """Empty the chunk cache under the daemon, as a person might."""
    for entry in (node.snapshotter.root / "chunks").iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)


def container(node: Node, proxy: FaultProxy, image: str, files: Mapping[str, bytes]) -> str:
    """Pull the image anew and start it: what came of it."""
    reference = f"{proxy.address}/{image}"
    pulled = node.snapshotter.pull(reference, node.containerd.namespace, check=False, timeout=LIMIT * 3)
    assert "Traceback" not in pulled.stderr, pulled.stderr
    if pulled.returncode != 0:
        assert pulled.stderr.startswith("puzzlefs: "), pulled.stderr
        assert proxy.address in pulled.stderr or proxy.storage in pulled.stderr, f"names no host: {pulled.stderr}"
        return "no pull"
    name = "data/large-1"
    try:
        command = ("/bin/busybox", "sha256sum", f"/{name}")
        said = node.containerd.run(reference, *command, snapshotter="puzzlefs", timeout=LIMIT * 3).text
    except CommandError:
        return "no start"
    finally:
        node.containerd.ctr("images", "remove", "--sync", reference)
    assert said.split()[0] == hashlib.sha256(files[name]).hexdigest(), "wrong bytes in a container"
    return "started"


def held(node: Node) -> dict[str, tuple[int, int]]:
    """Threads and descriptors of the daemon and its workers, by process."""
    found = {}
    for pid in processes.find(lambda words: any(str(node.snapshotter.directory) in word for word in words)):
        with contextlib.suppress(FileNotFoundError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"containerd-shim" not in words[0]:
                descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                found[f"{pid} {words[1:3]}"] = len(list(Path(f"/proc/{pid}/task").iterdir())), descriptors
    return found


def test_right_bytes_or_an_error_and_nothing_left(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Container starts and full reads against a registry that does everything wrong that one can."""
    published, files = publish(server, tmp_path)
    readers, starts = Readers(files), Counter[str]()
    with faulty_node(server, SEED) as (node, proxy):
        with proxy.behaving():
            kept = pull(node, proxy, published)
            chain = server.chain_id(published.lazy)
            with node.containerd.snapshot(chain, node.directory / "v", "puzzlefs") as root:
                assert readers.read(root)
            before = _settled(node)
        for number in range(STARTS):
            forget(node)
            proxy.rate = RATES[number % len(RATES)]
            if number % CONTAINER_EVERY == 0:
                starts[container(node, proxy, published.lazy, files)] += 1
                with proxy.behaving():
                    pull(node, proxy, published)
                continue
            with node.containerd.snapshot(chain, node.directory / "v", "puzzlefs") as root:
                starts["all read" if readers.read(root) else "partly read"] += 1
        with proxy.behaving():
            forget(node)
            deadline = time.monotonic() + 120
            with node.containerd.snapshot(chain, node.directory / "v", "puzzlefs") as root:
                while not readers.read(root):
                    assert time.monotonic() < deadline, "not readable again although the registry behaves"
            assert node.containerd.run(kept, "/bin/busybox", "true", snapshotter="puzzlefs").text == ""
            after = _settled(node)
        log = node.snapshotter.log.read_text()
        left = list((node.snapshotter.root / "chunks/.tmp").iterdir())
    faults = sum(proxy.done[fault] for fault in FAULTS)
    with capsys.disabled():
        print(
            f"\n  {STARTS} starts: {dict(starts)}; {dict(readers.outcomes)}; {faults} faults in {proxy.done.total()} requests"
        )
    assert not proxy.leaked, "Authorization was sent to a host that was redirected to"
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    assert left == []
    assert grown(before, after) == []
    assert (
        STARTS < 12 or readers.outcomes["EIO"] + starts["no pull"] + starts["no start"] < sum(starts.values()) * len(files) / 2
    )


def pull(node: Node, proxy: FaultProxy, published: Published) -> str:
    """Pull the image lazily through the proxy; returns its reference."""
    reference = f"{proxy.address}/{published.lazy}"
    node.snapshotter.pull(reference, node.containerd.namespace)
    return reference


def _settled(node: Node) -> Mapping[str, Any]:
    """What the processes hold once requests that were given up have ended."""
    time.sleep(12)
    return held(node)


def grown(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> list[str]:
    """Those processes that hold much more than before: pools of threads and connections have a bound, leaks have none."""
    return [
        f"{process}: {before.get(process)} → {threads} threads, {descriptors} descriptors"
        for process, (threads, descriptors) in after.items()
        if threads > before.get(process, (0, 0))[0] + 80 or descriptors > before.get(process, (0, 0))[1] + 60
    ]
