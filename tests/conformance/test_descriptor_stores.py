"""Every store of descriptors keeps mounts alive without the process that mounted them, and gives them back by name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from snapshotter.daemon.keeping import DescriptorStore, Held, KeeperStore, SystemdStore
from snapshotter.mount import mounting, processes
from snapshotter.mount.connection import Connection
from tests.support import mounts
from tests.support.processes import find, kill

pytestmark = pytest.mark.root
PATIENCE = 20


class Service(Protocol):
    """What outlives the processes of a service, which come one after the other."""

    def store(self) -> DescriptorStore:
        """The store as the next process has it."""
        ...

    def close(self) -> None:
        """It outlives nobody any more."""
        ...


class Keeper:
    """A process of ours."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def store(self) -> DescriptorStore:
        return KeeperStore(self.directory)

    def pids(self) -> list[int]:
        return find(lambda words: "snapshotter.mount.keeper" in words and str(self.directory) in words)

    def close(self) -> None:
        for pid in self.pids():
            kill(pid)


class Manager:
    """What systemd does for a service (service_add_fd_store): keeps what is sent by name, lets go of what hangs up."""

    def __init__(self, directory: Path) -> None:
        self._address = str(directory / "notify")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self._address)
        self._kept: dict[str, list[int]] = {}
        self._next = 500
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def store(self) -> DescriptorStore:
        """Gives the next process what is kept, numbered from `first` on."""
        time.sleep(0.2)  # what was sent has arrived
        first = self._next
        names = []
        for name, fds in self._kept.items():
            for fd in fds:
                os.dup2(fd, self._next)
                self._next += 1
                names.append(name)
        environment = {"NOTIFY_SOCKET": self._address, "FDSTORE": "512", "LISTEN_PID": str(os.getpid())}
        environment |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
        assert SystemdStore.is_there(environment)
        store = SystemdStore(environment, first_fd=first)
        assert not any(key.startswith("LISTEN") for key in environment), "no child may take them for its own"
        return store

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._sock.close()
        for fds in self._kept.values():
            for fd in fds:
                os.close(fd)

    def _listen(self) -> None:
        self._sock.settimeout(0.05)
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                data, fds, _, _ = socket.recv_fds(self._sock, 4096, 16)
                self._do(dict(line.split("=", 1) for line in data.decode().splitlines()), fds)
            for name, kept in list(self._kept.items()):
                poll = select.poll()
                for fd in kept:
                    poll.register(fd, 0)
                for fd, _ in poll.poll(0):
                    kept.remove(fd)
                    os.close(fd)
                if not kept:
                    del self._kept[name]

    def _do(self, told: dict[str, str], fds: list[int]) -> None:
        name = told.get("FDNAME", "stored")
        if told.get("FDSTORE") == "1":
            kept = self._kept.setdefault(name, [])
            for fd in fds:
                if any(_same(fd, other) for other in kept):
                    os.close(fd)
                else:
                    kept.append(fd)
        elif told.get("FDSTOREREMOVE") == "1":
            for fd in self._kept.pop(name, []):
                os.close(fd)


def _same(one: int, other: int) -> bool:
    """Whether two descriptors are of one open file: systemd asks kcmp(2), which Python does not have."""
    kcmp = 312  # x86-64
    return ctypes.CDLL(None).syscall(kcmp, os.getpid(), os.getpid(), 0, one, other) == 0


@pytest.fixture(params=[Keeper, Manager], ids=["keeper", "systemd"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    directory = Path(tempfile.mkdtemp(prefix="k-"))
    made: Service = request.param(directory)
    yield made
    made.close()
    shutil.rmtree(directory)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Connection]]:
    """Makes a mount that nobody serves."""

    def make(name: str) -> Connection:
        (tmp_path / name).mkdir()
        connection = Connection.open({"name": name})
        mounting.mount(connection.fuse, tmp_path / name, "test")
        return connection

    yield make
    mounts.unmount_all(tmp_path)


@contextlib.contextmanager
def opened(service: Service) -> Iterator[Held]:
    """One process of the service."""
    held = Held(service.store())
    held.open()
    with contextlib.closing(held):
        yield held


def test_mounts_live_from_process_to_process(service: Service, mount: Callable[[str], Connection]) -> None:
    with opened(service) as first:
        for name in ("a", "b"):
            first.hold(name, mount(name))
    for _ in range(3):
        with opened(service) as later:
            assert sorted(later.found()) == ["a", "b"]
            for name in ("a", "b"):
                connection = later.take(name)
                assert connection is not None
                assert not connection.is_gone()
                assert connection.state().label == {"name": name}
            assert later.take("a") is None
            later.settle()


def test_what_is_released_or_unwanted_ends(service: Service, mount: Callable[[str], Connection], tmp_path: Path) -> None:
    with opened(service) as first:
        for name in ("released", "unwanted", "wanted"):
            first.hold(name, mount(name))
        first.release("released")
        first.release("released")
    with opened(service) as second:
        assert sorted(second.found()) == ["unwanted", "wanted"]
        assert second.take("wanted") is not None
        second.settle()
    for name in ("released", "unwanted"):
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.stat(tmp_path / name / "x")
    with opened(service) as third:
        assert sorted(third.found()) == ["wanted"]


def test_a_mount_whose_last_user_is_gone_is_let_go(
    service: Service, mount: Callable[[str], Connection], tmp_path: Path
) -> None:
    with opened(service) as first:
        first.hold("a", mount("a"))
    mounting.unmount(tmp_path / "a")
    time.sleep(0.5)
    with opened(service) as second:
        for connection in second.found().values():  # systemd keeps the memory, which cannot hang up
            assert connection.is_gone()
        second.settle()
    with opened(service) as third:
        assert third.found() == {}


def test_a_keeper_that_dies_is_followed_by_one_that_has_everything(tmp_path: Path, mount: Callable[[str], Connection]) -> None:
    keeper = Keeper(tmp_path / "workers")
    try:
        with opened(keeper) as held:
            held.hold("a", mount("a"))
            for _ in range(2):
                (pid,) = keeper.pids()
                kill(pid)
                deadline = time.monotonic() + PATIENCE
                while keeper.pids() in ([], [pid]):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            held.hold("b", mount("b"))
        with opened(keeper) as later:
            assert sorted(later.found()) == ["a", "b"]
            later.settle()
        # nothing is kept, and nobody is there to keep for
        deadline = time.monotonic() + PATIENCE
        while keeper.pids():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        keeper.close()
        for path in processes.sockets(keeper.directory, "keeper"):
            path.unlink()


def test_without_a_store_of_systemd_none_is_used() -> None:
    assert not SystemdStore.is_there({})
    assert not SystemdStore.is_there({"FDSTORE": "10"})
    assert not SystemdStore.is_there({"FDSTORE": "0", "NOTIFY_SOCKET": "/n"})


def test_descriptors_for_another_process_are_left_alone() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:a:b"}
    assert SystemdStore(environment).take() == {}
    assert environment == {}
