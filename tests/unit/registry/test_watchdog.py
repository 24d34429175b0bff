"""A request ends when its time is over, however the server keeps it busy, and no sum of requests exceeds its bound."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from snapshotter.registry import deadline
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.hosts import RegistryConfig
from snapshotter.registry.transport import Transport
from snapshotter.registry.watchdog import MINIMUM_RATE, Watch, Watchdog


class Dripper:
    """Answers every connection with `first`, and then one more byte each 50 ms for as long as it can."""

    def __init__(self, first: bytes) -> None:
        self._first = first
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._drip, args=(connection,)))
            self._threads[-1].start()

    def _drip(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(self._first)
                while not self._closing.wait(0.05):
                    connection.sendall(b"x")
            except OSError:
                return


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


@pytest.fixture(params=[b"HTTP/1.1 200 OK\r\nX-Slow: ", HEAD], ids=["headers", "body"])
def dripper(request: pytest.FixtureRequest) -> Iterator[Dripper]:
    made = Dripper(request.param)
    yield made
    made.close()


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(dripper: Dripper) -> None:
    transport = Transport(dripper.host, RegistryConfig(plain_http=True, read_timeout=20, answer_timeout=0.5))
    start = time.monotonic()
    with (
        pytest.raises(RegistryUnavailableError, match=f"{dripper.host}: no complete answer within 0.5 s"),
        transport.request("GET", "/v2/") as response,
    ):
        response.read_all(1 << 20, "what")
    assert time.monotonic() - start < 15
    transport.close()


def test_a_bound_of_the_caller_holds_for_all_its_requests(dripper: Dripper) -> None:
    transport = Transport(dripper.host, RegistryConfig(plain_http=True, read_timeout=20, answer_timeout=60))
    with deadline.within(0.4):
        with (
            pytest.raises(RegistryUnavailableError, match="no complete answer within 0"),
            transport.request("GET", "/v2/") as response,
        ):
            response.read_all(1 << 20, "what")
        with pytest.raises(RegistryUnavailableError, match="no time is left"):
            transport.request("GET", "/v2/")
    transport.close()


def test_an_inner_bound_cannot_be_later_than_an_outer_one() -> None:
    assert deadline.remaining() == float("inf")
    with deadline.within(1), deadline.within(100):
        assert deadline.remaining() <= 1
    assert deadline.remaining() == float("inf")


def test_an_answer_that_comes_fast_enough_may_take_longer() -> None:
    watch = Watch(1.0)
    watch.received(10 * MINIMUM_RATE)
    assert watch.until - watch.started == pytest.approx(11.0)
    watch = Watch(1.0, at_most=5.0)
    watch.received(10 * MINIMUM_RATE)
    assert watch.until - watch.started == pytest.approx(5.0)


def test_watches_that_end_in_time_do_not_expire() -> None:
    watchdog = Watchdog()
    kept, ended = watchdog.watch(Watch(0.05)), watchdog.watch(Watch(0.05))
    later = watchdog.watch(Watch(30.0))
    ended.end()
    until = time.monotonic() + 10
    while not kept.expired and time.monotonic() < until:
        time.sleep(0.01)
    assert (kept.expired, ended.expired, later.expired) == (True, False, False)
    later.end()
