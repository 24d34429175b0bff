"""Two nodes: the one reads what the other has cached, and what becomes of its reads when the other one is gone."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from snapshotter.daemon.statusclient import status
from tests.support.nodes import silent, speaking
from tests.support.relay import Relay
from tests.system.conftest import Node, Published, Server, started

pytestmark = pytest.mark.root

EVERYTHING = ("/bin/sh", "-c", "cat /data/* /more/* /bin/busybox | md5sum")


@dataclass(frozen=True, slots=True)
class Pair:
    """`one` serves its cache, behind the relay `between`; `two` asks there."""

    one: Node
    two: Node
    between: Relay


@pytest.fixture
def pair(server: Server) -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    between = Relay(("127.0.0.1", port))
    serves = f'[peers]\nlisten = "127.0.0.1:{port}"\nplain_http = true'
    asks = f'[peers]\nask = ["{between.address}"]\nplain_http = true'
    try:
        with started(server, settings=serves) as one, started(server, settings=asks) as two:
            yield Pair(one, two, between)
    finally:
        between.close()


def counted(node: Node, what: str) -> int:
    return int(sum(status(node.snapshotter.socket)["counters"].get(what, {}).values()))


def test_a_node_reads_from_another_one_what_it_has_and_no_registry_is_needed(pair: Pair, plain: Published) -> None:
    expected = pair.one.containerd.run(pair.one.pull_lazily(plain.lazy), *EVERYTHING, snapshotter="puzzlefs").text
    reference = pair.two.pull_lazily(plain.lazy)
    with pair.two.relay.gone():
        assert pair.two.containerd.run(reference, *EVERYTHING, snapshotter="puzzlefs").text == expected
    assert pair.between.received > 1_000_000
    assert counted(pair.one, "served_bytes") > 1_000_000
    assert status(pair.two.snapshotter.socket)["counters"]["bytes"]["peers"] == counted(pair.one, "served_bytes")


def test_by_mutual_tls_too_and_not_with_a_certificate_of_somebody_else(
    server: Server, plain: Published, tmp_path: Path
) -> None:
    """The node with a certificate of the same authority is served; the other one reads from the registry, as if nobody were
    there."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    ours, theirs = trustme.CA(), trustme.CA()
    settings = {
        "one": f'listen = "{place}"\n{files(tmp_path / "one", ours, ours)}',
        "two": f'ask = ["{place}"]\n{files(tmp_path / "two", ours, ours)}',
        "stranger": f'ask = ["{place}"]\n{files(tmp_path / "stranger", theirs, ours)}',
    }
    with contextlib.ExitStack() as stack:
        one, two, stranger = (
            stack.enter_context(started(server, settings=f"[peers]\n{settings[name]}")) for name in ("one", "two", "stranger")
        )
        expected = one.containerd.run(one.pull_lazily(plain.lazy), *EVERYTHING, snapshotter="puzzlefs").text
        reference = stranger.pull_lazily(plain.lazy)
        assert stranger.containerd.run(reference, *EVERYTHING, snapshotter="puzzlefs").text == expected
        assert counted(one, "served_bytes") == 0
        reference = two.pull_lazily(plain.lazy)
        with two.relay.gone():
            assert two.containerd.run(reference, *EVERYTHING, snapshotter="puzzlefs").text == expected
        assert counted(one, "served_bytes") > 1_000_000


def files(directory: Path, issuer: trustme.CA, trusted: trustme.CA) -> str:
    """Settings of a node with a certificate of `issuer` that trusts the nodes of `trusted`."""
    directory.mkdir()
    made = issuer.issue_cert("node.example")
    trusted.cert_pem.write_to_path(directory / "ca.pem")
    made.cert_chain_pems[0].write_to_path(directory / "node.pem")
    made.private_key_pem.write_to_path(directory / "node.key")
    return f'ca = "{directory}/ca.pem"\ncertificate = "{directory}/node.pem"\nkey = "{directory}/node.key"'


def test_when_the_other_node_is_gone_the_registry_is_read(pair: Pair, plain: Published) -> None:
    """Before its first question, and in the middle: within the time of a read, and with the same bytes."""
    expected = pair.one.containerd.run(pair.one.pull_lazily(plain.lazy), *EVERYTHING, snapshotter="puzzlefs").text
    reference = pair.two.pull_lazily(plain.lazy)
    pair.two.containerd.run(reference, "/bin/busybox", "cat", "/data/first", snapshotter="puzzlefs")
    assert pair.between.received
    with pair.between.gone():
        assert pair.two.containerd.run(reference, *EVERYTHING, snapshotter="puzzlefs").text == expected
    assert counted(pair.two, "corrupt") == 0


def test_a_node_that_answers_nothing_holds_no_read_up(server: Server, plain: Published) -> None:
    """It takes connections and is silent: what is read comes from the registry, before `fetch.read_timeout` (5 s) is over."""
    with contextlib.ExitStack() as stack:
        address, taken = stack.enter_context(speaking(silent))
        asks = f'[peers]\nask = ["{address}"]\nplain_http = true'
        node = stack.enter_context(started(server, settings=asks))
        reference = node.pull_lazily(plain.lazy)
        assert node.containerd.run(reference, *EVERYTHING, snapshotter="puzzlefs").text
        assert taken, "it was asked"


def test_nothing_is_served_unless_it_is_configured(node: Node) -> None:
    """By default a daemon listens at no address of the network."""
    pid = node.snapshotter.service.pid
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    listening = {f"socket:[{fields[9]}]" for fields in lines if fields[3] == "0A"}
    held = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            held.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    assert any(each.startswith("socket:") for each in held)
    assert not listening & held
