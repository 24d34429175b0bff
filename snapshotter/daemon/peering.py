"""The table ``[peers]`` of the configuration: whether other nodes may read this node's cache, and whose this node reads."""

from __future__ import annotations

import ipaddress
import os
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshotter.chunkstore.peers import Peers
from snapshotter.chunkstore.stats import Stats
from snapshotter.daemon.settings import absolute, check_keys, flag, rate, table_of, text, texts
from snapshotter.errors import InvalidError
from snapshotter.registry.peerclient import Address

ASK_MAX = 64
"""Most entries of ``peers.ask``; a name may stand for many nodes."""


@dataclass(frozen=True, slots=True)
class Credential:
    """PEM files: this node's certificate and key, and the authority whose certificates make a node one of the cluster."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class PeersConfig:
    """`listen`: where this node's cache is served, None for nowhere. `ask`: whom to ask, before registries. `credential`: for
    mutual TLS, both as who serves and as who asks; None is plain HTTP, which the configuration has to ask for. `rate`: bytes a
    second that all other nodes get together, None for no bound."""

    listen: Address | None = None
    ask: tuple[Address, ...] = ()
    credential: Credential | None = None
    rate: int | None = None


def parse(value: Any) -> PeersConfig:
    """What the table ``peers`` says.

    Raises:
        InvalidError: a key is unknown, or its value not of the kind that it must be, or nothing protects the connections and
            nobody has said that nothing need.
    """
    read = check_keys(
        "peers",
        table_of("peers", value),
        {
            "listen": _listen,
            "ask": _ask,
            "certificate": absolute,
            "key": absolute,
            "ca": absolute,
            "plain_http": flag,
            "rate": rate,
        },
    )
    files = {key: read[key] for key in ("certificate", "key", "ca") if key in read}
    if len(files) not in (0, 3):
        raise InvalidError("peers.certificate, peers.key and peers.ca go together")
    credential = Credential(**files) if files else None
    if credential is not None and read.get("plain_http"):
        raise InvalidError("peers.plain_http and peers.certificate exclude each other")
    listen, ask = read.get("listen"), read.get("ask", ())
    if (listen or ask) and credential is None and not read.get("plain_http"):
        raise InvalidError(
            "peers needs certificate, key and ca for mutual TLS, or plain_http = true where only nodes of the cluster reach it"
        )
    return PeersConfig(listen, ask, credential, read.get("rate"))


def _listen(key: str, value: Any) -> Address:
    address = address_of(key, value)
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        raise InvalidError(f'{key} must be an IP address of this node with a port such as "10.0.0.5:7117"') from None
    return address


def _ask(key: str, value: Any) -> tuple[Address, ...]:
    found = tuple(address_of(key, each) for each in texts(key, value))
    if len(found) > ASK_MAX:
        raise InvalidError(f"{key} has {len(found)} entries, at most {ASK_MAX} are asked; a name may stand for many nodes")
    return found


def address_of(key: str, value: Any) -> Address:
    """``HOST:PORT``, an IPv6 address in brackets.

    Raises:
        InvalidError: it is something else.
    """
    host, colon, port = text(key, value).rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidError(f'{key} must be an address with a port such as "10.0.0.5:7117", not {value[:80]!r}')
    if (":" in bare) != (host != bare):
        raise InvalidError(f"{key}: an IPv6 address stands in brackets, and nothing else does: {value[:80]!r}")
    return Address(bare, int(port))


class Contexts:
    """TLS 1.3 with `credential`'s files, read again when they have changed: certificates of nodes are short-lived.

    Whoever has a certificate of the authority is a node of the cluster, whatever name is in it: nodes are known by addresses,
    which come and go, and what they send is verified. So the authority must be one for this purpose alone.
    """

    def __init__(self, credential: Credential, *, server: bool) -> None:
        """`server`: for who serves, else for who asks.

        Raises:
            InvalidError: the files cannot be used.
        """
        self._credential = credential
        self._server = server
        self._lock = threading.Lock()
        self._seen = self._state()
        self._context = self._load()

    def __call__(self) -> ssl.SSLContext:
        """The context for a new connection; that of before, if the files cannot be used now."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                try:
                    self._context = self._load()
                except InvalidError:
                    return self._context  # one of the files is not changed yet: with the next connection
                self._seen = state
            return self._context

    def _state(self) -> tuple[tuple[int, int, int] | None, ...]:
        states: list[tuple[int, int, int] | None] = []
        for path in (self._credential.certificate, self._credential.key, self._credential.ca):
            try:
                status = os.stat(path)
            except OSError:
                states.append(None)
            else:
                states.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(states)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self._server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        credential = self._credential
        try:
            context.load_verify_locations(cafile=credential.ca)
            context.load_cert_chain(credential.certificate, credential.key)
        except (OSError, ValueError) as error:
            files = f"{credential.certificate}, {credential.key}, {credential.ca}"
            raise InvalidError(f"peers: cannot use {files}: {getattr(error, 'reason', None) or error}") from error
        return context


def contexts(config: PeersConfig, *, server: bool) -> Callable[[], ssl.SSLContext] | None:
    """What makes the context of a connection; None where it is plain HTTP.

    Raises:
        InvalidError: the files cannot be used.
    """
    return None if config.credential is None else Contexts(config.credential, server=server)


def asking(config: PeersConfig) -> Callable[[Stats], Peers] | None:
    """What makes the store's way to other nodes, which is given its counters; None where nobody is to be asked.

    Raises:
        InvalidError: the files cannot be used.
    """
    if not config.ask:
        return None
    own = None if config.listen is None else config.listen.port
    tls = contexts(config, server=False)
    return lambda stats: Peers(config.ask, stats=stats, own=own, tls=tls)
