"""HTTP to one registry host and to the hosts that it redirects to: bounded, counted, and careful with secrets.

A thin layer over urllib3. What it adds: redirects are followed here, so that ``Authorization`` and the client certificate never
reach another host; plain HTTP is decided once per host; every failure becomes a `RegistryUnavailableError` that says whether
the same request may work soon. It neither retries nor sleeps, with one exception: a kept connection that the server had closed
meanwhile is replaced once, as every HTTP client has to.

Messages name scheme and host only: the query of a redirect to object storage is a secret.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    ProtocolError,
)

from snapshotter import __version__
from snapshotter.errors import CorruptError, InvalidError
from snapshotter.registry import connections, deadline
from snapshotter.registry.failures import RegistryUnavailableError, unavailable
from snapshotter.registry.hosts import RegistryConfig, endpoint, is_loopback
from snapshotter.registry.watchdog import Watch, Watchdog

USER_AGENT = f"puzzlefs/{__version__}"
REDIRECTS_MAX = 5
PROBE_TIMEOUT = 3.0
"""Seconds that a server on this machine has to show that it speaks TLS."""

RETRY_AFTER_MAX = 3600.0
"""Longest wait, in seconds, that a server's Retry-After can ask for."""

_BLOCK = connections.BLOCK
_DRAIN_MAX = 64 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_BODY = ("GET", "HEAD")

# At DEBUG urllib3 logs whole URLs, and those of object storage carry their signature.
logging.getLogger("urllib3").setLevel(logging.INFO)
# `skip_verify` is somebody's decision, which is logged once per host instead of with every connection.
urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

_log = logging.getLogger(__name__)


class Traffic:
    """Counts what registries sent: body bytes, and requests. One may be shared by many transports and read at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = 0
        self._requests = 0

    @property
    def received(self) -> int:
        """Body bytes received so far."""
        return self._received

    @property
    def requests(self) -> int:
        """Requests made so far, redirects and tokens included."""
        return self._requests

    def add(self, *, received: int = 0, requests: int = 0) -> None:
        """Count more of them."""
        with self._lock:
            self._received += received
            self._requests += requests


class Readable(Protocol):
    """A body to send."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, none at the end."""
        ...


class Response:
    """An answer whose body has not been read yet. Close it; as a context manager it closes itself."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, origin: str, traffic: Traffic, watch: Watch) -> None:
        self._raw = raw
        self._traffic = traffic
        self._watch = watch
        self._received = 0
        self.origin = origin
        """Scheme and host that answered, for messages."""
        self.foreign = False
        """Whether another host answered than the one that was asked: a redirect led there."""
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        """Names are found in any case; a header that came several times is joined by commas."""

    def __enter__(self) -> Response:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def length(self) -> int | None:
        """Content-Length, where there is a sound one."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    def readinto(self, buffer: memoryview, /) -> int:
        """At most as many more bytes as `buffer` has room for; how many, none at the end. Raises what `read` raises."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int) -> bytes:
        """At most `size` more bytes; none at the end.

        Raises:
            RegistryUnavailableError: the connection broke or went silent, the body is shorter than announced, or too slow.
        """
        try:
            data: bytes = self._raw.read(size, decode_content=False)
        except (HTTPError, OSError, ValueError) as error:
            self.close()
            raise _failed(error, self.origin, self._watch) from error
        if not data and self._watch.expired:
            raise _failed(None, self.origin, self._watch)
        self._received += len(data)
        self._watch.received(self._received)
        self._traffic.add(received=len(data))
        return data

    def read_all(self, limit: int, what: str) -> bytes:
        """The whole body.

        Raises:
            CorruptError: it is longer than `limit` bytes.
            RegistryUnavailableError: as `read`.
        """
        data = bytearray()
        while piece := self.read(min(_BLOCK, limit + 1 - len(data))):
            data += piece
            if len(data) > limit:
                raise CorruptError(f"{what}: the answer of {self.origin} is longer than {limit} bytes, the most that is read")
        return bytes(data)

    def retry_after(self) -> float | None:
        """The seconds that the Retry-After header asks to wait, bounded; None without one."""
        return parse_retry_after(self.headers.get("Retry-After"))

    def close(self) -> None:
        """Give the connection back; a short rest of the body is read for that, a long one costs the connection."""
        rest = self._raw.length_remaining if isinstance(self._raw, urllib3.HTTPResponse) else None
        try:
            if rest is not None and 0 <= rest <= _DRAIN_MAX and not self._watch.expired and not self._watch.ended:
                self._traffic.add(received=len(self._raw.read(decode_content=False)))
        except (HTTPError, OSError, ValueError):
            # Nobody waits for these bytes; the connection is dropped below.
            pass
        finally:
            self._watch.end()
            # Once the body has been read to its end, the connection is back in the pool and this does nothing to it; else it is
            # closed, and its place in the pool is given back.
            self._raw.close()
            self._raw.release_conn()


class Transport:
    """Requests to the registry `host`. Safe for use by many threads; connections are kept and shared."""

    def __init__(
        self,
        host: str,
        config: RegistryConfig,
        traffic: Traffic | None = None,
        *,
        mirror_of: str | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        """Connects to nothing yet. `mirror_of`: the host in references that this one stands in for, which it is told (``ns=``).

        Raises:
            InvalidError: a certificate file of `config` cannot be used.
        """
        self.host = host
        self.config = config
        self.mirror_of = mirror_of
        self.traffic = traffic if traffic is not None else Traffic()
        self._watchdog = watchdog if watchdog is not None else Watchdog()
        self._authority = endpoint(host, config)
        self._scheme: str | None = None
        self._scheme_lock = threading.Lock()
        self._pools: dict[tuple[bool, str, str | None], urllib3.PoolManager] = {}
        self._pools_lock = threading.Lock()
        self._proxies = getproxies()
        if config.skip_verify:
            _log.warning("registry %s: certificates are not verified (skip_verify)", host)
        self._tls: dict[bool, ssl.SSLContext] = {}
        if config.ca_files or config.client_certificates:
            self._tls = {own: _tls(config, own=own) for own in (True, False)}

    @property
    def base(self) -> str:
        """``https://host[:port]``, or http. May ask a server on this machine whether it speaks TLS, once.

        Raises:
            RegistryUnavailableError: that server cannot be reached.
        """
        with self._scheme_lock:
            if self._scheme is None:
                self._scheme = self._find_scheme()
        return f"{self._scheme}://{self._authority}"

    def is_own(self, url: str) -> bool:
        """Whether `url` is at the registry itself: same scheme, host and port."""
        return _origin(url) == _origin(self.base)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Readable | None = None,
        read_timeout: float | None = None,
    ) -> Response:
        """Make one request, following redirects of GET and HEAD. `url` may be a path at the registry.

        A `body` that is no bytes is read as it is sent and needs a Content-Length in `headers`. An ``Authorization`` in
        `headers` is for the host of `url` alone: whatever that redirects to does not get it.

        Raises:
            RegistryUnavailableError: no answer.
            InvalidError: the server redirects to where we do not go.
            PuzzlefsError: what reading `body` raised.
        """
        url = urljoin(self.base, url)
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
        first = _origin(url)
        own = self.is_own(url)
        if own and self.mirror_of is not None and method in _NO_BODY:
            url += f"{'&' if '?' in url else '?'}ns={quote(self.mirror_of, safe='')}"
        for _ in range(REDIRECTS_MAX + 1):
            # A person's headers for this host may hold a secret, as Authorization does.
            private = dict(self.config.headers) if own and _origin(url) == first else {}
            response = self._send(method, url, private | sent, body, read_timeout)
            response.foreign = _origin(url) != first
            location = response.headers.get("Location")
            if method not in _NO_BODY or response.status not in _REDIRECTS or location is None:
                return response
            response.close()
            url = _redirected(url, location)
            if _origin(url) != first:
                sent.pop("Authorization", None)
        raise InvalidError(f"registry {self.host} redirects more than {REDIRECTS_MAX} times")

    def close(self) -> None:
        """Close all idle connections."""
        with self._pools_lock:
            for pool in self._pools.values():
                pool.clear()

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Readable | None, read_timeout: float | None
    ) -> Response:
        origin = _show(url)
        left = deadline.remaining()
        if left <= 0:
            raise RegistryUnavailableError(f"no time is left to ask {origin}")
        silence = min(read_timeout or self.config.read_timeout, left)
        timeout = urllib3.Timeout(connect=min(self.config.connect_timeout, left), read=silence)
        # A body that is sent takes its time, which its own progress bounds: only the silence after it is.
        whole = max(self.config.answer_timeout, read_timeout or 0.0) if body is None else float("inf")
        attempts = 2 if method in _NO_BODY else 1
        while True:
            attempts -= 1
            self.traffic.add(requests=1)
            watch = Watch(whole, deadline.remaining())
            token = connections.watched.set(watch)
            meant = connections.loopback_meant.set(self._may_be_loopback(url))
            try:
                pool = self._pool(url)
                if watch.until != float("inf"):
                    self._watchdog.watch(watch)
                raw = pool.urlopen(
                    method,
                    url,
                    body=body,
                    headers=headers,
                    timeout=timeout,
                    pool_timeout=min(watch.seconds, self.config.answer_timeout),
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
            except LocationValueError:
                watch.end()
                raise InvalidError(f"registry {self.host} refers to a URL that is none") from None
            except (HTTPError, OSError, ValueError) as error:
                watch.end()
                if not isinstance(error, ProtocolError) or attempts == 0 or watch.expired:
                    raise _failed(error, origin, watch) from error
            except BaseException:
                watch.end()
                raise
            else:
                return Response(raw, origin, self.traffic, watch)
            finally:
                connections.watched.reset(token)
                connections.loopback_meant.reset(meant)

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        own, proxy = self.is_own(url), self._proxy(url)
        with self._pools_lock:
            key = (own, parts.scheme, proxy)
            if key not in self._pools:
                tls = None
                if parts.scheme == "https":
                    # Reading the system's authorities takes 20 ms, which plain HTTP need not pay.
                    if own not in self._tls:
                        self._tls[own] = _tls(self.config, own=own)
                    tls = self._tls[own]
                self._pools[key] = connections.pools(tls, proxy)
            return self._pools[key]

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme)
        return None if proxy is None or is_loopback(parts.netloc) or proxy_bypass(parts.hostname or "") else proxy

    def _may_be_loopback(self, url: str) -> bool:
        """Whether a connection for `url` may end at this machine: the registry's own, those of one that is here itself, a
        proxy's. What another machine redirects to may not."""
        return self.is_own(url) or is_loopback(self._authority) or self._proxy(url) is not None

    def _find_scheme(self) -> str:
        plain = self.config.plain_http
        if plain is not None or not is_loopback(self._authority):
            return "http" if plain else "https"
        parts = urlsplit(f"https://{self._authority}")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Only whether the server speaks TLS is asked; whom it is shows in the first real request.
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
        try:
            connection = socket.create_connection((parts.hostname or "", parts.port or 443), self.config.connect_timeout)
        except OSError as error:
            raise unavailable(error, self._authority) from error
        with connection:
            connection.settimeout(PROBE_TIMEOUT)
            try:
                tls.wrap_socket(connection, server_hostname=parts.hostname).close()
            except OSError:
                return "http"
        return "https"


def _failed(error: Exception | None, origin: str, watch: Watch) -> RegistryUnavailableError:
    """The failure of a request that was watched."""
    if watch.expired or error is None:
        return RegistryUnavailableError(f"cannot reach {origin}: no complete answer within {watch.seconds:.3g} s")
    return unavailable(error, origin)


def parse_retry_after(text: str | None) -> float | None:
    """Seconds from a Retry-After header that counts them (RFC 9110, 10.2.3), at most an hour; None for anything else.

    The other form, a date, would need this machine's clock to be right; the caller's own back-off serves as well.
    """
    if text is None or not text.strip().isascii() or not text.strip().isdigit():
        return None
    return min(float(text.strip()[:9]), RETRY_AFTER_MAX)


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _show(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _redirected(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        scheme, host, _ = _origin(target)
    except ValueError:
        raise InvalidError(f"{_show(url)} redirects to what is no URL") from None
    if scheme not in ("http", "https") or not host or "@" in urlsplit(target).netloc:
        raise InvalidError(f"{_show(url)} redirects to what is no plain http or https URL")
    if scheme == "http" and url.startswith("https:"):
        raise InvalidError(f"{_show(url)} redirects from https to http ({host}); refused")
    return target


def _tls(config: RegistryConfig, *, own: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        for authority in config.ca_files:
            context.load_verify_locations(cafile=authority)
        for certificate, key in config.client_certificates if own else ():
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        files = ", ".join(filter(None, (*config.ca_files, *(part for pair in config.client_certificates for part in pair))))
        raise InvalidError(f"cannot use the certificate files {files}: {getattr(error, 'reason', None) or error}") from error
    if config.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
