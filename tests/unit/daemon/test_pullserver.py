"""``puzzlefs pull`` and the daemon: what is asked arrives, what is reported comes back, and who has left is not pulled for."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.daemon import pullclient, pullproto, pullserver
from snapshotter.daemon.addresses import pull_socket
from snapshotter.daemon.pullproto import Event, LayerArriving, LayerDone, Pulled, PullRequest
from snapshotter.daemon.pullserver import PullServer
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from snapshotter.mount import messages

REQUEST = PullRequest("h.x/a:1", "k8s.io", "puzzlefs", "linux/arm64")
STEPS: list[Event] = [
    LayerArriving("sha256:a", 5, 10),
    LayerDone(1, 2, "sha256:a", 10, False),
    LayerDone(2, 2, "sha256:b", 0, True),
]
DONE = Pulled("h.x/a:1", "sha256:m", "sha256:c", 1, 2, 1234)
TIMEOUT = 10.0

Work = Callable[[PullRequest, Callable[[Event], None]], Pulled]


class Daemon:
    """A pull server whose pulls are what the test says."""

    def __init__(self, directory: Path) -> None:
        self.address = directory / "d.sock"
        self.work: Work = self.steps
        self.asked: list[PullRequest] = []
        self.server = PullServer(pull_socket(self.address), self._pull)

    def steps(self, request: PullRequest, progress: Callable[[Event], None]) -> Pulled:
        for step in STEPS:
            progress(step)
        return DONE

    def _pull(self, request: PullRequest, progress: Callable[[Event], None]) -> Pulled:
        self.asked.append(request)
        return self.work(request, progress)

    def fail(self, error: Exception) -> None:
        def work(request: PullRequest, progress: Callable[[Event], None]) -> Pulled:
            raise error

        self.work = work


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.server.close()


def ignore(event: Event) -> None:
    """For those who want no progress."""


def test_a_pull(daemon: Daemon) -> None:
    seen: list[Event] = []
    assert pullclient.pull(daemon.address, REQUEST, seen.append) == DONE
    assert seen == STEPS
    assert daemon.asked == [REQUEST]


def test_the_socket_is_its_users_alone(daemon: Daemon) -> None:
    path = pull_socket(daemon.address)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    daemon.server.close()
    assert not path.exists()


@pytest.mark.parametrize("error", [NotFoundError("no such tag"), CorruptError("digest"), UnavailableError("host")])
def test_failures_keep_category_and_text(daemon: Daemon, error: Exception) -> None:
    daemon.fail(error)
    with pytest.raises(type(error), match=str(error)):
        pullclient.pull(daemon.address, REQUEST, ignore)


def test_a_defect_is_an_answer_too_and_harms_no_other_pull(daemon: Daemon) -> None:
    daemon.fail(KeyError("x"))
    with pytest.raises(InvalidError, match="KeyError"):
        pullclient.pull(daemon.address, REQUEST, ignore)
    daemon.work = daemon.steps
    assert pullclient.pull(daemon.address, REQUEST, ignore) == DONE


def waiting(daemon: Daemon) -> tuple[threading.Event, threading.Event]:
    """Pulls report again and again, until they are stopped; set when one has begun, and when one has ended."""
    begun, ended = threading.Event(), threading.Event()

    def work(request: PullRequest, progress: Callable[[Event], None]) -> Pulled:
        begun.set()
        try:
            while not ended.wait(0.005):
                progress(STEPS[0])
            return DONE
        finally:
            ended.set()

    daemon.work = work
    return begun, ended


def test_hanging_up_ends_the_pull(daemon: Daemon) -> None:
    _, ended = waiting(daemon)

    def leave(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pullclient.pull(daemon.address, REQUEST, leave)
    assert ended.wait(TIMEOUT), "the daemon goes on pulling for nobody"


def test_a_daemon_that_ends_says_so(daemon: Daemon) -> None:
    begun, ended = waiting(daemon)
    closer = threading.Thread(target=lambda: begun.wait(TIMEOUT) and daemon.server.close())
    closer.start()
    with pytest.raises(UnavailableError, match=r"ended during the pull of h\.x/a:1"):
        pullclient.pull(daemon.address, REQUEST, ignore)
    closer.join(TIMEOUT)
    assert ended.wait(TIMEOUT)


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no puzzlefs-snapshotter answers at .*d-pull\.sock"):
        pullclient.pull(tmp_path / "d.sock", REQUEST, ignore)


def test_pulls_at_a_time_are_bounded(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.server.close()
    monkeypatch.setattr(pullserver, "PULLS_MAX", 1)
    daemon.server = PullServer(pull_socket(daemon.address), daemon._pull)
    begun, ended = waiting(daemon)
    first = threading.Thread(target=pullclient.pull, args=(daemon.address, REQUEST, ignore))
    first.start()
    assert begun.wait(TIMEOUT)
    with pytest.raises(UnavailableError, match=r"pull h\.x/a:1 later"):
        pullclient.pull(daemon.address, REQUEST, ignore)
    ended.set()
    first.join(TIMEOUT)
    daemon.work = daemon.steps
    assert pullclient.pull(daemon.address, REQUEST, ignore) == DONE


@pytest.mark.parametrize(
    "sent",
    [
        b"no JSON",
        b"[]",
        b"{}",
        b'{"reference": 1, "namespace": "n", "snapshotter": "s"}',
        b'{"reference": "%s", "namespace": "n", "snapshotter": "s"}' % (b"x" * (pullproto.NAME_MAX + 1)),
        b'{"reference": "r", "namespace": "n", "snapshotter": "s", "platform": 3}',
    ],
)
def test_what_is_no_request_is_refused(daemon: Daemon, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(pull_socket(daemon.address)))
        connection.send(sent)
        answer = messages.receive(connection)
    assert answer is not None
    assert isinstance(messages.parse_error(answer[0]), InvalidError)
    assert daemon.asked == []


texts, counts = st.text(max_size=50), st.integers(0, 1 << 60)


@given(st.builds(PullRequest, texts, texts, texts, st.none() | texts))
def test_requests_there_and_back(request: PullRequest) -> None:
    assert PullRequest.parse(request.message()) == request


@given(
    st.builds(LayerArriving, texts, counts, counts)
    | st.builds(LayerDone, counts, counts, texts, counts, st.booleans())
    | st.builds(Pulled, texts, texts, texts, counts, counts, counts)
)
def test_events_there_and_back(event: Event) -> None:
    assert pullproto.parse_event(pullproto.event_message(event)) == event


def test_other_events_are_refused() -> None:
    with pytest.raises(InvalidError, match="unknown event"):
        pullproto.parse_event({"event": "else"})
