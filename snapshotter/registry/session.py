"""Requests to a registry with its authentication and its errors, once for all repositories of a host."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping

from snapshotter.errors import InvalidError, NotFoundError, PuzzlefsError
from snapshotter.registry.auth import Authorizer
from snapshotter.registry.credentials import CredentialSource
from snapshotter.registry.failures import DeniedError, RegistryUnavailableError
from snapshotter.registry.multirange import Manner
from snapshotter.registry.transport import Readable, Response, Transport
from snapshotter.registry.turns import Turns

ERROR_MAX = 64 << 10
"""Most of an error's body that is read, in bytes."""


class RegistrySession:
    """One registry host as one user: connections, tokens, error mapping. Safe for use by many threads."""

    def __init__(self, transport: Transport, source: CredentialSource, clock: Callable[[], float] = time.monotonic) -> None:
        self.transport = transport
        self._authorizer = Authorizer(transport, source, clock)
        self.uploads = Turns()
        """Whose turn it is to upload a blob to a repository (see `client.RegistryStore.put_blob`)."""
        self._clock = clock
        self._manner = Manner()

    @property
    def host(self) -> str:
        """The host as references show it."""
        return self.transport.host

    @property
    def answers_many(self) -> bool | None:
        """Whether it answers requests for several ranges of a blob; None as long as that is not known, or not any more
        (`multirange.Manner`)."""
        return self._manner.at(self._clock()).answers

    @answers_many.setter
    def answers_many(self, answers: bool) -> None:
        self._manner = Manner(answers, self._clock())

    def request(
        self,
        method: str,
        url: str,
        *,
        scope: str,
        what: str,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: Callable[[], bytes | Readable] | None = None,
        read_timeout: float | None = None,
    ) -> Response:
        """Make a request that needs `scope`; the answer has one of the statuses `expect`.

        `url` may be a path. `body` is called for each attempt and gives the body from its start, or raises where it cannot
        any more. `what` says in messages what the request is about ("tag '1' of host/repository").

        Raises:
            NotFoundError: 404.
            DeniedError: 401 (after the credentials were asked for again) or 403.
            RegistryUnavailableError: no answer, 408, 429 or 5xx.
            InvalidError: any other status.
        """
        # What is at another host (an upload's place) authenticates by its URL.
        own = self.transport.is_own(url) if "://" in url else True
        authorization = self._authorizer.header(scope) if own else None
        response = self._once(method, url, headers, authorization, body, read_timeout)
        if response.status == 401 and own and not response.foreign:
            # Its connection is given back first: the token server may be the same host, whose connections may all be in the
            # hands of requests that wait for a token.
            response.close()
            authorization = self._authorizer.renew(response, scope, authorization)
            response = self._once(method, url, headers, authorization, body, read_timeout)
        if response.status in expect:
            return response
        with response:
            raise failure(response, what, self.host)

    def close(self) -> None:
        """Close idle connections."""
        self.transport.close()

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        authorization: str | None,
        body: Callable[[], bytes | Readable] | None,
        read_timeout: float | None,
    ) -> Response:
        sent = dict(headers or {})
        if authorization is not None:
            sent["Authorization"] = authorization
        content = None if body is None else body()
        return self.transport.request(method, url, headers=sent, body=content, read_timeout=read_timeout)


def failure(response: Response, what: str, host: str, kind: str = "registry") -> PuzzlefsError:
    """The error that an answer of `host` means, which is a registry or another `kind` of server; `what` was asked for."""
    status = response.status
    said = _said(response)
    if status == 404:
        return NotFoundError(f"{what} does not exist{said}")
    if status in (400, 401, 403) and response.foreign:
        # Object storage, to which the registry redirects with a signature that expires: asking again brings another.
        return RegistryUnavailableError(f"{what}: {response.origin}, to which {kind} {host} redirects, refuses ({status})")
    if status in (401, 403):
        return DeniedError(
            f"{what}: {kind} {host} denies access ({status}){said}; does it exist there, "
            f"and may this user read it? (docker login {host}, or configure credentials)"
        )
    if status in (408, 425, 429) or status >= 500:
        why = "asks for fewer requests" if status == 429 else "fails"
        return RegistryUnavailableError(
            f"{what}: {kind} {host} {why} ({status}){said}", retryable=status != 501, retry_after=response.retry_after()
        )
    return InvalidError(f"{what}: {kind} {host} refuses ({status}){said}")


def _said(response: Response) -> str:
    """What the registry says about its error (distribution specification, "Error codes"), made fit for one line."""
    try:
        errors = json.loads(response.read_all(ERROR_MAX, "error"))["errors"]
        texts = [str(errors[0].get(key) or "") for key in ("code", "message")]
    except (PuzzlefsError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return ""
    text = " ".join("".join(c if c.isprintable() else " " for c in " ".join(filter(None, texts))).split())
    return f": {text[:200]}" if text else ""
