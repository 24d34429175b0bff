"""Asks this node and others for a chunk that nobody has, as the daemon would ask them for one."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from snapshotter.chunkstore.peers import nodes_at
from snapshotter.daemon import peering
from snapshotter.daemon.peering import PeersConfig
from snapshotter.doctor.peers import Asked, PeersFacts
from snapshotter.errors import InvalidError, PuzzlefsError
from snapshotter.format.digest import sha256
from snapshotter.registry.peerclient import Address, Budget, PeerClient

ASKED_MAX = 16
"""Nodes that are asked; they are alike, and there may be hundreds."""
PATIENCE = 2.0
"""Seconds for a node's answer. A read waits for a quarter of a second (`chunkstore.peers`)."""

_Contexts = Callable[[], ssl.SSLContext] | None


def peers_facts(config: PeersConfig) -> PeersFacts:
    """What becomes of asking, with the settings of `config`."""
    if config.listen is None and not config.ask:
        return PeersFacts()
    tls, expires = None, None
    try:
        tls = peering.contexts(config, server=False)
        server = peering.contexts(config, server=True)
        if tls is not None and server is not None:
            expires = certificate_end(tls(), server())
    except InvalidError as error:
        return PeersFacts(tls_error=str(error))
    served = None if config.listen is None else _ask(_own(config.listen), tls)
    nodes, unknown = _nodes(config)
    with ThreadPoolExecutor(ASKED_MAX) as pool:
        asked = tuple(pool.map(lambda node: _ask(node, tls), nodes[:ASKED_MAX]))
    return PeersFacts("", expires, served, unknown, asked, len(nodes))


def certificate_end(client: ssl.SSLContext, server: ssl.SSLContext) -> float:
    """When the certificate that both contexts have ends, in seconds since 1970, found by a handshake of the two in memory: that
    their authority vouches for it, in both roles, is what makes this node one of the cluster.

    Raises:
        InvalidError: they do not come to terms.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(4):  # TLS 1.3 needs two turns
            for side in (ours, theirs):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        certificate = theirs.getpeercert()
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error
        raise InvalidError(f"this node's certificate is refused by its own authority: {reason}") from error
    if not certificate:
        raise InvalidError("this node's certificate is refused by its own authority")
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))


def _own(listen: Address) -> Address:
    """Where this node reaches itself: an address that stands for all of them is none that one connects to."""
    if ipaddress.ip_address(listen.host).is_unspecified:
        return Address("::1" if ":" in listen.host else "127.0.0.1", listen.port)
    return listen


def _nodes(config: PeersConfig) -> tuple[list[Address], tuple[tuple[str, str], ...]]:
    """The other nodes' addresses; and what of the configuration leads to none, or to some that are never asked, and why."""
    nodes: dict[Address, None] = {}
    unknown: list[tuple[str, str]] = []
    own = None if config.listen is None else config.listen.port
    for place in config.ask:
        try:
            found, refused = nodes_at(place, own)
        except OSError as error:
            unknown.append((str(place), error.strerror or str(error)))
            continue
        nodes |= dict.fromkeys(found)
        unknown += ((str(place), why) for why in refused)
    return list(nodes), tuple(unknown)


def _ask(node: Address, tls: _Contexts) -> Asked:
    absent = sha256(os.urandom(32))
    try:
        with contextlib.closing(PeerClient(node, tls)) as client:
            _drain(client.ask([absent], Budget(PATIENCE)))  # connects, and may shake hands
            began = time.monotonic()
            _drain(client.ask([absent], Budget(PATIENCE)))
            return Asked(node, time.monotonic() - began)
    except PuzzlefsError as error:
        return Asked(node, error=str(error))


def _drain(answers: Iterable[bytes | None]) -> None:
    for _ in answers:
        pass
