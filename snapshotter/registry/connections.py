"""urllib3's connections, few per host, each known to the watch of the request that uses it."""

from __future__ import annotations

import contextvars
import socket
import ssl
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from snapshotter.registry.peers import check_peer
from snapshotter.registry.watchdog import Watch

CONNECTIONS = 16
"""Most connections to one host; a request beyond waits for one to be free."""
BLOCK = 256 << 10

watched: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("watched", default=None)
"""The watch of the request that this thread is making."""

loopback_meant: contextvars.ContextVar[bool] = contextvars.ContextVar("loopback_meant", default=True)
"""Whether that request may end at this machine's own address (`peers.check_peer`)."""


def _attach(connection: HTTPConnection) -> None:
    watch = watched.get()
    if watch is not None:
        watch.connection = connection


def _settle(connection: HTTPConnection) -> None:
    watch = watched.get()
    if watch is not None:
        watch.sock = connection.sock


def _checked(sock: socket.socket) -> socket.socket:
    try:
        check_peer(sock.getpeername()[0], loopback=loopback_meant.get())
    except BaseException:
        sock.close()
        raise
    return sock


class _Plain(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())

    def connect(self) -> None:
        _attach(self)
        super().connect()
        _settle(self)

    def getresponse(self) -> Any:
        _settle(self)
        return super().getresponse()


class _Secure(_Plain, HTTPSConnection):
    """The same over TLS: what `_Plain` passes on goes to HTTPSConnection here."""


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


def pools(tls: ssl.SSLContext | None, proxy: str | None) -> urllib3.PoolManager:
    """A manager of such connections, through the proxy at that URL if there is one."""
    settings: dict[str, Any] = {"maxsize": CONNECTIONS, "block": True, "ssl_context": tls, "blocksize": BLOCK}
    manager = urllib3.PoolManager(**settings) if proxy is None else urllib3.ProxyManager(proxy, **settings)
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
    return manager
