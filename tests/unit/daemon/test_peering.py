"""The table ``[peers]``: off without it, and never unprotected unless somebody says so."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.daemon.config import Config
from snapshotter.daemon.config import parse as parse_all
from snapshotter.daemon.peering import Credential, PeersConfig, asking, parse
from snapshotter.errors import InvalidError
from snapshotter.format.digest import sha256
from snapshotter.registry.peerclient import Address

FILES = {"certificate": "/c", "key": "/k", "ca": "/a"}


def test_by_default_nobody_is_served_and_nobody_asked() -> None:
    assert Config().peers == parse_all({}).peers == PeersConfig(None, (), None)
    assert asking(PeersConfig()) is None


def test_every_key_is_read() -> None:
    read = parse({"listen": "10.0.0.5:7117", "ask": ["nodes.example:7117", "[fd00::1]:7118"], **FILES})
    credential = Credential(Path("/c"), Path("/k"), Path("/a"))
    assert read == PeersConfig(
        Address("10.0.0.5", 7117), (Address("nodes.example", 7117), Address("fd00::1", 7118)), credential
    )
    assert parse({"listen": "10.0.0.5:7117", "rate": "50MB", **FILES}).rate == 50_000_000
    assert parse_all({"peers": {"listen": "[::]:1", **FILES}}).peers.listen == Address("::", 1)


def test_plain_http_is_somebodys_decision() -> None:
    assert parse({"listen": "10.0.0.5:7117", "plain_http": True}).credential is None
    for table in ({"listen": "10.0.0.5:7117"}, {"ask": ["10.0.0.5:7117"]}, {"listen": "10.0.0.5:7117", "plain_http": False}):
        with pytest.raises(InvalidError, match=r"certificate, key and ca for mutual TLS, or plain_http = true"):
            parse(table)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"listen": "10.0.0.5"}, "peers.listen must be an address with a port"),
        ({"listen": "node.example:7117"}, "peers.listen must be an IP address of this node"),
        ({"listen": "10.0.0.5:0"}, "peers.listen must be an address with a port"),
        ({"listen": "10.0.0.5:70000"}, "peers.listen must be an address with a port"),
        ({"listen": "::1:7117"}, "peers.listen: an IPv6 address stands in brackets"),
        ({"ask": "10.0.0.5:7117"}, "peers.ask must be a list of strings"),
        ({"ask": ["10.0.0.5"]}, "peers.ask must be an address with a port"),
        ({"ask": ["[node]:7117"]}, "stands in brackets, and nothing else"),
        ({"ask": [f"n{number}:7117" for number in range(65)]}, "peers.ask has 65 entries, at most 64"),
        ({"certificate": "/c", "key": "/k"}, "go together"),
        ({**FILES, "plain_http": True}, "exclude each other"),
        ({**FILES, "key": "k"}, "peers.key must be an absolute path"),
        ({"rate": 0}, "peers.rate must be more than 0"),
        ({"rate": "fast"}, "peers.rate must be a size"),
        ({"port": 1}, "unknown key peers.port"),
    ],
)
def test_what_cannot_be_meant_is_refused(table: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidError, match=complaint.replace("[", r"\[")):
        parse({"plain_http": True, **table} if "certificate" not in table else table)


def test_files_that_cannot_be_used_are_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("no certificate")
    credential = Credential(tmp_path / "c", tmp_path / "k", tmp_path / "c")
    with pytest.raises(InvalidError, match=rf"cannot use {tmp_path}/c, {tmp_path}/k"):
        asking(PeersConfig(ask=(Address("10.0.0.5", 7117),), credential=credential))


def test_asking_asks_not_oneself() -> None:
    make = asking(PeersConfig(Address("0.0.0.0", 7117), (Address("127.0.0.1", 7117),)))
    assert make is not None
    stats = Stats()
    peers = make(stats)
    with contextlib.closing(peers):
        assert list(peers.find(sha256(b"pack"), [sha256(b"chunk")])) == []
        assert stats.total(Count.REQUESTS) == 0
