"""How the doctor finds out about other nodes: it asks them, as the daemon does."""

from __future__ import annotations

import contextlib
import datetime
import time
from pathlib import Path

import pytest

from snapshotter.chunkstore.stats import Stats
from snapshotter.daemon.peering import PeersConfig, contexts
from snapshotter.daemon.peerserver import PeerServer
from snapshotter.doctor import neighbours
from snapshotter.doctor.neighbours import peers_facts
from snapshotter.doctor.peers import PeersFacts
from snapshotter.registry.peerclient import Address
from tests.support.nodes import LOOPBACK, Authority, ServedChunks, serving, silent, speaking


def test_nobody_is_asked_where_nothing_is_configured() -> None:
    assert peers_facts(PeersConfig()) == PeersFacts()


def test_nodes_that_answer_and_nodes_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PATIENCE", 0.5)
    with serving(b"a chunk") as (node, served), speaking(silent) as (mute, _):
        closed = Address("127.0.0.1", 1)
        facts = peers_facts(PeersConfig(ask=(node, mute, closed)))
    answers = {asked.node: asked for asked in facts.asked}
    assert facts.known == 3
    assert (answers[node].error, answers[node].seconds > 0) == ("", True)
    assert "no complete answer in time" in answers[mute].error
    assert "Connection refused" in answers[closed].error
    assert len(served.asked) == 2, "one to connect, one that is timed"


def test_this_node_is_asked_where_it_listens_and_not_as_another() -> None:
    with serving() as (node, _):
        facts = peers_facts(PeersConfig(listen=Address("0.0.0.0", node.port), ask=(node,)))
    assert facts.served is not None
    assert (facts.served.node, facts.served.error, facts.asked) == (node, "", ())


def test_a_name_that_leads_nowhere_and_an_address_that_is_never_asked() -> None:
    facts = peers_facts(PeersConfig(ask=(Address("no-such-node.invalid", 7117), Address("169.254.169.254", 80))))
    assert [name for name, _ in facts.unknown] == ["no-such-node.invalid:7117", "169.254.169.254:80"]
    assert "refused" in facts.unknown[1][1]
    assert facts.asked == ()


def test_a_name_that_leads_to_this_machine_is_none_of_a_node_as_for_the_daemon() -> None:
    with serving() as (node, _):
        facts = peers_facts(PeersConfig(ask=(Address("localhost", node.port),)))
    assert facts.asked == ()
    assert facts.unknown
    assert all("is this machine" in why for _, why in facts.unknown)


def test_hundreds_of_nodes_are_not_all_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ASKED_MAX", 2)
    facts = peers_facts(PeersConfig(ask=tuple(Address("127.0.0.1", port) for port in range(1, 6))))
    assert (len(facts.asked), facts.known) == (2, 5)


class TestMutualTls:
    def test_of_one_cluster(self, tmp_path: Path) -> None:
        config = Authority(tmp_path, "cluster").node("a")
        server = PeerServer(LOOPBACK, ServedChunks({}), stats=Stats(), tls=contexts(config, server=True))
        with contextlib.closing(server):
            facts = peers_facts(PeersConfig(ask=(server.address,), credential=config.credential))
        assert facts.tls_error == facts.asked[0].error == ""
        assert facts.expires is not None
        assert facts.expires > time.time()

    def test_of_another_cluster(self, tmp_path: Path) -> None:
        theirs = contexts(Authority(tmp_path, "other").node("b"), server=True)
        with contextlib.closing(PeerServer(LOOPBACK, ServedChunks({}), stats=Stats(), tls=theirs)) as server:
            mine = Authority(tmp_path, "cluster").node("a").credential
            facts = peers_facts(PeersConfig(ask=(server.address,), credential=mine))
        assert "certificate" in facts.asked[0].error.lower()

    def test_a_certificate_of_another_authority(self, tmp_path: Path) -> None:
        stranger = Authority(tmp_path, "stranger").node("x", trusting=Authority(tmp_path, "cluster"))
        facts = peers_facts(PeersConfig(ask=(LOOPBACK,), credential=stranger.credential))
        assert "refused by its own authority" in facts.tls_error
        assert facts.asked == ()

    def test_a_certificate_that_has_ended(self, tmp_path: Path) -> None:
        ended = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        old = Authority(tmp_path, "cluster").node("a", ends=ended)
        assert "expired" in peers_facts(PeersConfig(ask=(LOOPBACK,), credential=old.credential)).tls_error

    def test_files_that_are_not_there(self, tmp_path: Path) -> None:
        config = Authority(tmp_path, "cluster").node("a")
        assert config.credential is not None
        config.credential.key.unlink()
        assert "cannot use" in peers_facts(PeersConfig(ask=(LOOPBACK,), credential=config.credential)).tls_error
