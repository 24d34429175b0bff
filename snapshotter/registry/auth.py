"""Authentication against registries: Basic, and Bearer tokens (distribution specification, "token authentication").

An `Authorizer` holds what one registry host has granted so far. Requests are first made with what is cached, or nothing; a 401
names what is wanted (`parse_challenges`), credentials are read again, and the request is repeated once. Tokens are kept per
scope until shortly before they expire. No secret is in a message, a log or a representation.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from snapshotter.errors import InvalidError, PuzzlefsError
from snapshotter.registry.credentials import Credentials, CredentialSource
from snapshotter.registry.failures import DeniedError, RegistryUnavailableError
from snapshotter.registry.transport import Response, Transport

CHALLENGE_MAX = 8 << 10
"""Longest WWW-Authenticate header that is looked at, in characters."""

TOKEN_ANSWER_MAX = 1 << 20
TOKEN_LIFE = 60.0
"""Seconds that a token lives which does not say (distribution specification)."""

TOKEN_LIFE_MAX = 24 * 3600.0
TOKEN_MARGIN = 10.0
"""A token is renewed this many seconds (at most half its life) before it expires, so that it does not expire on the way."""

USERS_MAX = 4
"""Most users that a registry is asked with for one request, where it refuses them."""

TOKENS_MAX = 1024
"""Most scopes whose tokens are kept per host."""

_TOKEN68 = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_SCHEME = re.compile(rf"[\s,]*({_TOKEN68})(?:\s+|\s*$|\s*(?=,))")
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN68})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN68}))\s*')
_CREDENTIAL_TEXT = re.compile(r"[\x21-\x7e]+\Z")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in which a server asks to be authenticated to. `scheme` and parameter names are lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header (RFC 9110, 11.6.1); what cannot be understood ends the list."""
    header = header[:CHALLENGE_MAX]
    challenges: list[Challenge] = []
    at = 0
    while match := _SCHEME.match(header, at):
        at = match.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, at):
            quoted, plain = parameter[2], parameter[3]
            parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            at = parameter.end()
        challenges.append(Challenge(match[1].lower(), parameters))
    return challenges


@dataclass(frozen=True, slots=True)
class _Grant:
    """An Authorization header's value, and until when (by the authorizer's clock) it is good."""

    header: str = field(repr=False)
    until: float


class Authorizer:
    """Knows the Authorization header for each scope at one registry host. Safe for use by many threads.

    A scope is ``repository:NAME:pull`` or ``repository:NAME:pull,push``, several of them separated by spaces.
    """

    def __init__(self, transport: Transport, source: CredentialSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._transport = transport
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._grants: dict[str, _Grant] = {}
        self._renewals = 0
        self._failure: tuple[str, PuzzlefsError] | None = None

    def header(self, scope: str) -> str | None:
        """The header to send at first; None if nothing is known to be needed."""
        # Without the lock, which is held while a token server is asked: what does not need a new token need not wait for it.
        grant = self._grants.get(scope)
        return grant.header if grant is not None and self._clock() < grant.until else None

    def renew(self, response: Response, scope: str, rejected: str | None) -> str:
        """The header to repeat a request with that was answered 401 by `response` when it was sent with `rejected`.

        Raises:
            DeniedError: the registry gives this user nothing better.
            InvalidError: it asks for what we do not have or do not do.
            RegistryUnavailableError, UnavailableError: the token server or a credential helper cannot be asked now.
        """
        challenges = {
            challenge.scheme: challenge for challenge in parse_challenges(response.headers.get("WWW-Authenticate", ""))
        }
        renewals = self._renewals
        with self._lock:
            # Of many threads with the same stale token the first renews it, and the others take that, or its failure: each
            # trying for itself, one after the other, a token server that is silent would hold up the last for minutes.
            grant = self._grants.get(scope)
            if grant is not None and grant.header != rejected and self._clock() < grant.until:
                return grant.header
            if self._failure is not None and self._renewals != renewals and self._failure[0] == scope:
                raise self._failure[1]
            self._grants.pop(scope, None)
            try:
                grant = self._grant_for(challenges, scope, rejected)
            except PuzzlefsError as error:
                self._failure = scope, error
                raise
            finally:
                self._renewals += 1
            if len(self._grants) >= TOKENS_MAX:
                self._grants.clear()
            self._grants[scope] = grant
            return grant.header

    def _grant_for(self, challenges: Mapping[str, Challenge], scope: str, rejected: str | None) -> _Grant:
        """What the registry grants to the first user that it does not refuse."""
        host, repository = self._transport.host, _repository(scope)
        fixed = self._transport.config.credentials
        refused: list[Credentials] = []
        while True:
            credentials = fixed or self._source.find(host, repository, refused=refused)
            try:
                return self._ask(challenges, scope, credentials, rejected)
            except DeniedError:
                if credentials is None or credentials in refused or len(refused) >= USERS_MAX:
                    raise
                refused.append(credentials)
                if fixed is not None or self._source.find(host, repository, refused=refused) in (None, *refused):
                    raise

    def _ask(
        self, challenges: Mapping[str, Challenge], scope: str, credentials: Credentials | None, rejected: str | None
    ) -> _Grant:
        if "bearer" in challenges:
            return self._token(challenges["bearer"], scope, credentials)
        if "basic" in challenges:
            return _Grant(self._basic_header(credentials, rejected), float("inf"))
        raise InvalidError(
            f"registry {self._transport.host} asks for an authentication that is neither Basic nor Bearer"
            if challenges
            else f"registry {self._transport.host} denies access (401) without saying what authentication it wants"
        )

    def _basic_header(self, credentials: Credentials | None, rejected: str | None) -> str:
        if credentials is None or not credentials.username:
            raise DeniedError(
                f"registry {self._transport.host} wants a user name and password, and none are configured for it; "
                f"log in (docker login {self._transport.host}) or configure credentials"
            )
        header = basic(credentials)
        if header == rejected:
            raise DeniedError(f"registry {self._transport.host} refuses the user name or password; log in again")
        return header

    def _token(self, challenge: Challenge, scope: str, credentials: Credentials | None) -> _Grant:
        host = self._transport.host
        realm, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
        where = self._check_realm(realm)
        fields = {"service": service} if service else {}
        scopes = scope.split()
        if credentials is not None and credentials.identity_token is not None:
            form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": "puzzlefs"}
            body = urlencode({**form, **fields, "scope": scope}).encode()
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._transport.request("POST", realm, headers=headers, body=body)
        else:
            query = urlencode([*fields.items(), *(("scope", one) for one in scopes)])
            url = realm + ("&" if urlsplit(realm).query else "?") + query
            headers = {"Authorization": basic(credentials)} if credentials is not None and credentials.username else {}
            response = self._transport.request("GET", url, headers=headers)
        with response:
            if response.status in (400, 401, 403):
                who = f"the user name or password for {host}" if credentials is not None else f"anonymous access to {host}"
                raise DeniedError(
                    f"the token server {where} refuses {who}; log in (docker login {host}) or configure credentials"
                )
            if response.status != 200:
                raise RegistryUnavailableError(
                    f"the token server {where} of registry {host} answers {response.status}",
                    retryable=response.status == 429 or response.status >= 500,
                    retry_after=response.retry_after(),
                )
            return self._grant(response.read_all(TOKEN_ANSWER_MAX, "token"), where)

    def _check_realm(self, realm: str) -> str:
        """The scheme and host of `realm`, for messages; credentials go there, so never in the clear from https."""
        try:
            parts = urlsplit(realm)
            parts.port  # noqa: B018 (raises if it is none)
        except ValueError:
            parts = urlsplit("")
        plain_allowed = self._transport.base.startswith("http:")
        if (
            not parts.hostname
            or "@" in parts.netloc
            or not (parts.scheme == "https" or (parts.scheme == "http" and plain_allowed))
        ):
            raise InvalidError(f"registry {self._transport.host} names a token server that is no https URL: {realm[:100]!r}")
        return f"{parts.scheme}://{parts.netloc}"

    def _grant(self, answer: bytes, where: str) -> _Grant:
        try:
            content = json.loads(answer)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            content = {}
        token = content.get("token") or content.get("access_token")
        if not isinstance(token, str) or not _CREDENTIAL_TEXT.match(token):
            raise InvalidError(f"the token server {where} answers no token")
        life = content.get("expires_in")
        life = float(min(life, TOKEN_LIFE_MAX)) if isinstance(life, int | float) and life > 0 else TOKEN_LIFE
        return _Grant(f"Bearer {token}", self._clock() + life - min(TOKEN_MARGIN, life / 2))


def _repository(scope: str) -> str:
    """The repository that `scope` is about."""
    return scope.split()[0].split(":")[1] if scope.count(":") >= 2 else ""


def basic(credentials: Credentials) -> str:
    """The Authorization header of RFC 7617 for a user name and password."""
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
