"""The mount worker process, as the daemon uses it: many mounts, waiting reads, death and replacement."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.errors import AlreadyExistsError, CorruptError, NotFoundError, UnavailableError
from snapshotter.format.digest import sha256
from snapshotter.mount import messages, mounting, processes, workerproto
from snapshotter.mount.connection import Connection
from snapshotter.mount.journal import Journal
from snapshotter.mount.server import FAR_THREADS
from snapshotter.mount.wire import InitFlag, Negotiated
from snapshotter.mount.workerclient import KIND, WorkerClient
from snapshotter.mount.workerproto import FailureReport, Hello
from tests.mount.engines import LABEL, PATIENCE, Daemon
from tests.mount.source import PIECE, Builder

SLOW = b"s" * PIECE + b"second chunk" * 10_000
QUICK = b"q" * (PIECE + 1)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of two files, whose first chunks a test can hold back."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "slow").write_bytes(SLOW)
    (source / "quick").write_bytes(QUICK)
    builder = Builder()
    builder.add_tree(source)
    return builder.write(tmp_path / "image")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon with one worker."""
    running = Daemon()
    with contextlib.closing(running):
        yield running


class Gate:
    """Holds back the first chunk of the file ``slow``, or of the file with this content."""

    def __init__(self, image: Path, content: bytes = SLOW) -> None:
        self._fifo = image / "chunks" / (sha256(content[:PIECE]).hex() + ".wait")
        os.mkfifo(self._fifo)

    def wait(self) -> int:
        """Return when a read waits for the chunk."""
        return os.open(self._fifo, os.O_WRONLY)

    def remove(self) -> None:
        """Hold back no further reads."""
        self._fifo.unlink()


class Reader:
    """A command that uses the mount.

    A process of its own: one that has files of a mount open cannot start that mount's next server, because closing them
    between fork and exec may already need it (FUSE's FLUSH).
    """

    def __init__(self, *command: str | Path) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def waits(self) -> bool:
        return self._process.poll() is None

    def result(self) -> bytes:
        output, _ = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0
        return output

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_one_worker_serves_many_mounts(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    points = [tmp_path / f"m{number}" for number in range(50)]
    for point in points:
        daemon.mount(image, point)
    assert set(daemon.worker.stats()["mounts"]) == set(map(str, points))
    assert all((point / "quick").read_bytes() == QUICK for point in points)


def test_a_slow_chunk_holds_up_nobody_else(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    daemon.mount(image, tmp_path / "a")
    daemon.mount(image, tmp_path / "b")
    gate = Gate(image)
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit((tmp_path / name / "slow").read_bytes) for name in "ab" for _ in range(10)]
        opened = gate.wait()
        assert (tmp_path / "a" / "quick").read_bytes() == QUICK
        assert (tmp_path / "b" / "quick").read_bytes() == QUICK
        assert not any(future.done() for future in waiting)
        gate.remove()
        os.close(opened)
        assert all(future.result(PATIENCE) == SLOW for future in waiting)


def without_resend(connection: Connection) -> None:
    """As if the kernel were one before Linux 6.9, which hands no request out twice."""
    memory = Journal(os.dup(connection.memory))
    with contextlib.closing(memory):
        assert memory.negotiated is not None
        minor, flags, kernel_flags = memory.negotiated
        memory.agree(Negotiated(minor, flags, kernel_flags & ~InitFlag.HAS_RESEND))


@pytest.mark.parametrize("resend", [True, False])
def test_a_killed_worker_is_replaced_under_a_waiting_read(daemon: Daemon, image: Path, tmp_path: Path, resend: bool) -> None:
    point = tmp_path / "m"
    daemon.mount(image, point)
    gate = Gate(image)
    with Reader("cat", point / "slow") as read:
        opened = gate.wait()
        daemon.worker.kill()
        os.close(opened)
        gate.remove()
        assert read.waits()
        assert not daemon.worker.is_alive()
        with pytest.raises(UnavailableError):
            daemon.worker.stats()
        daemon.replace_worker()
        if not resend:
            without_resend(daemon.connections[point])
        assert daemon.worker.add(daemon.description(image, point), daemon.connections[point]) == resend
        assert read.result() == SLOW
    assert (point / "quick").read_bytes() == QUICK
    assert sorted(os.listdir(point)) == ["quick", "slow"]


@pytest.mark.parametrize("resend", [True, False])
def test_many_waiting_reads_survive_worker_after_worker(daemon: Daemon, image: Path, tmp_path: Path, resend: bool) -> None:
    point = tmp_path / "m"
    daemon.mount(image, point)
    if not resend:
        without_resend(daemon.connections[point])
    gate = Gate(image)
    with contextlib.ExitStack() as stack:
        reads = [
            stack.enter_context(Reader("dd", f"if={point / 'slow'}", "bs=4096", f"skip={n}", "count=1", "iflag=direct"))
            for n in range(9)
        ]
        for _ in range(4):
            opened = gate.wait()
            assert all(read.waits() for read in reads)
            assert daemon.worker.ping(PATIENCE)
            daemon.replace_worker()
            os.close(opened)
            daemon.worker.add(daemon.description(image, point), daemon.connections[point])
        os.close(gate.wait())
        gate.remove()
        assert [read.result() for read in reads] == [SLOW[n * 4096 : (n + 1) * 4096] for n in range(9)]


@pytest.mark.parametrize("resend", [True, False])
def test_a_walk_goes_on_while_workers_are_killed(daemon: Daemon, image: Path, tmp_path: Path, resend: bool) -> None:
    """Lookups and attributes, too: what the event loop was answering when it died."""
    point = tmp_path / "m"
    daemon.mount(image, point)
    if not resend:
        without_resend(daemon.connections[point])
    # New names, which no cache of the kernel's has.
    script = 'i=0; while [ $i -lt 40000 ]; do i=$((i+1)); [ ! -e "$0/none$i" ] || exit 1; done; cat "$0/quick"'
    with Reader("sh", "-c", script, point) as walk:
        for _ in range(5):
            daemon.replace_worker()
            daemon.worker.add(daemon.description(image, point), daemon.connections[point])
        assert walk.result() == QUICK


def test_a_daemon_that_is_gone_is_followed_by_another(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    """The next one finds the worker by its socket, and has from it what the first one had."""
    point = tmp_path / "m"
    daemon.mount(image, point)
    description = daemon.description(image, point)
    first = daemon.worker
    first.detach()
    (path,) = processes.sockets(daemon.directory, KIND)
    daemon.worker, hello = WorkerClient.find(path, daemon.events.put, lambda status: daemon.ended.set())
    assert hello == Hello(workerproto.PROTOCOL, "", first.pid, (str(point),))
    held, connection = daemon.worker.held(str(point))
    with contextlib.closing(connection):
        assert held == description
        assert connection.state() == (LABEL, Negotiated(*daemon.ready[str(point)].negotiated or ()))
        daemon.connections.pop(point).close()
        daemon.replace_worker()  # the found one can be killed, and its end is noticed
        daemon.worker.add(held, connection)
        assert (point / "slow").read_bytes() == SLOW
        mounting.unmount(point)


def test_a_worker_hears_what_a_daemon_said_before_it_died(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    """Even if the worker was not running yet: nothing is lost between two daemons."""
    point = tmp_path / "m"
    point.mkdir()
    with contextlib.closing(Connection.open(LABEL)) as connection:
        mounting.mount(connection.fuse, point, "test")
        client = daemon.start_worker()
        client.begin_add(daemon.description(image, point), connection, lambda error: None)
        client.detach()
    path = max(processes.sockets(daemon.directory, KIND), key=lambda path: path.stat().st_ctime_ns)
    found, hello = WorkerClient.find(path, daemon.events.put)
    assert hello.mounts == (str(point),)
    assert (point / "quick").read_bytes() == QUICK
    mounting.unmount(point)
    found.stop()
    os.waitpid(client.pid, 0)


def test_two_daemons_never_have_the_same_worker(daemon: Daemon) -> None:
    (path,) = processes.sockets(daemon.directory, KIND)
    with processes.connect(path) as second:
        messages.send(second, {"seq": 1, "do": "hello"})
        assert daemon.worker.stats()["mounts"] == []
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.recv(1)


def test_a_worker_that_is_stopped_is_not_taken_for_alive(daemon: Daemon) -> None:
    assert daemon.worker.ping(PATIENCE)
    os.kill(daemon.worker.pid, signal.SIGSTOP)
    assert not daemon.worker.ping(0.2)
    daemon.replace_worker()
    assert daemon.worker.ping(PATIENCE)


def test_one_that_has_not_come_up_yet_is_told_from_one_that_has(daemon: Daemon) -> None:
    assert daemon.worker.ping(PATIENCE)
    assert daemon.worker.answered
    starting = WorkerClient.start((sys.executable, "-c", "import time; time.sleep(60)"), daemon.directory, lambda event: None)
    assert not starting.ping(0.2)
    assert not starting.answered
    starting.stop(timeout=0.1)


def test_a_worker_killed_before_init(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    point = tmp_path / "m"
    point.mkdir()
    connection = daemon.connections[point] = Connection.open({})
    mounting.mount(connection.fuse, point, "test")
    with Reader("ls", point) as listing:
        daemon.replace_worker()
        daemon.worker.add(daemon.description(image, point), connection)
        assert listing.result() == b"quick\nslow\n"


def test_removal_lets_go_and_another_worker_serves_on(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    point = tmp_path / "m"
    daemon.mount(image, point)
    assert (point / "quick").read_bytes() == QUICK
    daemon.worker.remove(str(point))
    with pytest.raises(NotFoundError):
        daemon.worker.remove(str(point))
    daemon.worker.add(daemon.description(image, point), daemon.connections[point])
    assert (point / "slow").read_bytes() == SLOW


def test_a_worker_serves_on_without_its_daemon_until_the_last_mount_is_gone(image: Path, tmp_path: Path) -> None:
    daemon = Daemon()
    point = tmp_path / "m"
    try:
        daemon.mount(image, point)
        daemon.worker.detach()
        assert (point / "quick").read_bytes() == QUICK
        assert os.waitpid(daemon.worker.pid, os.WNOHANG) == (0, 0)
        daemon.unmount(point)
        deadline = time.monotonic() + PATIENCE
        while os.waitpid(daemon.worker.pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        daemon.close()


def test_failures_reach_the_daemon_with_names(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    point = tmp_path / "m"
    daemon.mount(image, point)
    lost = sha256(QUICK[:PIECE]).hex()
    (image / "chunks" / lost).unlink()
    with pytest.raises(OSError):
        (point / "quick").read_bytes()
    report = daemon.event()
    assert isinstance(report, FailureReport)
    assert (report.mount, report.path, report.error_type) == ("layer of image", "/quick", "ChunkMissingError")
    assert lost in report.error


def test_failures_are_logged_while_no_daemon_is_there(image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the worker itself, to where the daemon's own log goes."""
    with contextlib.closing(Daemon()) as daemon:
        point = tmp_path / "m"
        daemon.mount(image, point)
        daemon.worker.detach()
        lost = sha256(QUICK[:PIECE]).hex()
        (image / "chunks" / lost).unlink()
        with pytest.raises(OSError):
            (point / "quick").read_bytes()
        logged, deadline = "", time.monotonic() + PATIENCE
        while "\n" not in logged and time.monotonic() < deadline:
            logged += capfd.readouterr().err
            time.sleep(0.01)
        assert "read failed: layer of image, file /quick, " in logged
        assert lost in logged


def test_a_mount_that_cannot_be_served_is_refused(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    description = daemon.description(image, tmp_path / "m")
    connection = Connection.open({})
    try:
        (image / "metadata").rename(image / "elsewhere")
        with pytest.raises(NotFoundError, match="metadata"):
            daemon.worker.add(description, connection)
        for content in (b"", b"garbage" * 8):
            (image / "metadata").write_bytes(content)
            with pytest.raises(CorruptError):
                daemon.worker.add(description, connection)
        (image / "metadata").unlink()
        (image / "elsewhere").rename(image / "metadata")
        daemon.mount(image, tmp_path / "m")
        with pytest.raises(AlreadyExistsError):
            daemon.worker.add(description, connection)
    finally:
        connection.close()


def test_the_mount_is_readonly_and_reads_ahead_far(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    point = tmp_path / "with space"
    daemon.mount(image, point)
    info = mounting.find(point)
    assert info is not None
    assert (info.fs_type, info.source, info.mountpoint) == ("fuse.puzzlefs", "test", point)
    assert mounting.our_mounts(tmp_path) == [info]
    assert Path(f"/sys/class/bdi/{info.device}/read_ahead_kb").read_text() == "3072\n"
    daemon.unmount(point)
    assert mounting.find(point) is None
    with pytest.raises(NotFoundError):
        mounting.unmount(point)


def test_asking_from_many_threads(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    daemon.mount(image, tmp_path / "m")
    start = threading.Barrier(8)

    def ask(_: int) -> list[str]:
        start.wait()
        return [daemon.worker.stats()["mounts"] for _ in range(20)][-1]

    with ThreadPoolExecutor(8) as pool:
        assert all(names == [str(tmp_path / "m")] for names in pool.map(ask, range(8)))


def test_a_mount_that_is_told_of_another_store_reads_from_there(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (image / "chunks").rename(moved)
    point = tmp_path / "m"
    daemon.mount(image, point)
    with pytest.raises(OSError, match="Input/output error"):
        (point / "quick").read_bytes()
    daemon.worker.update(str(point), {"chunks": str(moved)})
    assert (point / "quick").read_bytes() == QUICK


def test_only_what_is_served_can_be_told_of_another_store(daemon: Daemon) -> None:
    with pytest.raises(NotFoundError):
        daemon.worker.update("nothing", {"chunks": "/"})


READ_DIRECTLY = """
import os, signal, sys, threading
def handler(number, frame):
    raise TimeoutError
signal.signal(signal.SIGUSR1, handler)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
for _ in range(int(sys.argv[2]) - 1):
    threading.Thread(target=os.pread, args=(fd, 4096, 0)).start()
try:
    os.pread(fd, 4096, 0)
except TimeoutError:
    sys.exit(7)
"""
"""Reads in several threads, with O_DIRECT: others wait for a page of the cache, which no signal but a deadly one ends."""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGUSR1, 7)]
)
def test_a_waiting_read_can_be_interrupted(daemon: Daemon, image: Path, tmp_path: Path, number: int, status: int) -> None:
    point = tmp_path / "m"
    daemon.mount(image, point)
    gate = Gate(image)
    with subprocess.Popen([sys.executable, "-c", READ_DIRECTLY, point / "slow", "1"]) as reader:
        opened = gate.wait()
        reader.send_signal(number)
        assert reader.wait(PATIENCE) == status
    gate.remove()
    os.close(opened)
    assert (point / "slow").read_bytes() == SLOW


def test_reads_that_were_interrupted_hold_up_no_others(daemon: Daemon, image: Path, tmp_path: Path) -> None:
    point = tmp_path / "m"
    daemon.mount(image, point)
    gate, another = Gate(image), Gate(image, QUICK)
    with subprocess.Popen([sys.executable, "-c", READ_DIRECTLY, point / "slow", str(FAR_THREADS + 6)]) as reader:
        opened = gate.wait()
        while len(os.listdir(f"/proc/{daemon.worker.pid}/task")) < FAR_THREADS:
            assert reader.poll() is None
        reader.kill()
        assert reader.wait(PATIENCE) == -signal.SIGKILL
    with ThreadPoolExecutor(1) as pool:
        quick = pool.submit((point / "quick").read_bytes)
        os.close(another.wait())  # a thread has come to it
        another.remove()
        assert quick.result(PATIENCE) == QUICK
    gate.remove()
    os.close(opened)
    assert (point / "slow").read_bytes() == SLOW
