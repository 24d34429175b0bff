"""The failures of registries that say more than their category, and what a failure of HTTP means."""

from __future__ import annotations

import socket
import ssl

from urllib3.exceptions import (
    ConnectTimeoutError,
    EmptyPoolError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from snapshotter.errors import InvalidError, UnavailableError


class RegistryUnavailableError(UnavailableError):
    """The registry cannot be asked now, or gave up half-way.

    `retryable`: the same request is expected to work soon (a timeout, 429, 5xx, a cut connection), as opposed to what a person
    has to mend first (a certificate, a host name). `retry_after`: the seconds that the registry asked for, if it did.
    Retrying is the caller's decision; nothing in this package sleeps.
    """

    def __init__(self, message: str, *, retryable: bool = True, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after


class DeniedError(InvalidError):
    """The registry refuses this user (401 or 403), credentials having been asked for again."""


def unavailable(error: Exception, where: str) -> RegistryUnavailableError:
    """The failure that `error` of urllib3 or the system is. Its own text is not used: it may hold a URL."""
    cause = _root(error)
    retryable = True
    if isinstance(error, EmptyPoolError):
        why = "all connections to it have been busy for too long"
    elif isinstance(error, ProxyError):
        why = "the proxy (HTTPS_PROXY, HTTP_PROXY) cannot be reached or refuses"
    elif isinstance(error, NameResolutionError | socket.gaierror) or isinstance(cause, socket.gaierror):
        why = "the host name does not resolve; is it spelled right?"
    elif isinstance(cause, ssl.SSLCertVerificationError):
        retryable = False
        why = f"its certificate is not trusted ({cause.verify_message}); "
        why += "configure its authority as ca_file, or use the name that it is for"
    elif isinstance(cause, ssl.SSLEOFError):
        why = "the connection broke before the answer was complete"
    elif isinstance(cause, ssl.SSLError) or isinstance(error, SSLError):
        retryable = False
        why = "it does not speak TLS as expected; if it is meant to serve plain HTTP, configure plain_http for it"
    elif isinstance(cause, ConnectionRefusedError):
        why = "connection refused; does a registry run there, and is this its port?"
    elif isinstance(error, ReadTimeoutError):
        why = "no data within the read timeout"
    elif isinstance(error, ConnectTimeoutError) or isinstance(cause, TimeoutError):
        why = "connecting or sending timed out"
    elif isinstance(error, NewConnectionError) or (isinstance(cause, OSError) and not isinstance(cause, ConnectionError)):
        why = getattr(cause, "strerror", None) or "no connection"
    else:
        why = "the connection broke before the answer was complete"
    return RegistryUnavailableError(f"cannot reach {where}: {why}", retryable=retryable)


def _root(error: BaseException) -> BaseException:
    """The first cause of `error` that is the system's."""
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, OSError) and not isinstance(seen, HTTPError):
            return seen
        following: BaseException | None = None
        if seen is not None:
            inner = [value for value in seen.args if isinstance(value, BaseException)]
            following = seen.__cause__ or seen.__context__ or (inner[0] if inner else None)
        if following is None:
            break
        seen = following
    return seen if seen is not None else error
