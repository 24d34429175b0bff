"""An OCI registry inside the test's own process: the lowest transport, so that everything above it is the real code.

It speaks the distribution specification (manifests, blobs with ranges, uploads, mounts, tags with pagination, token and Basic
authentication), keeps all in memory, logs every request with the bytes it sent, and misbehaves on demand::

    with FakeRegistry() as registry:
        layer = registry.put_blob("library/debian", data)
        registry.inject(Fault(status=503), path=r"/blobs/", times=2)
        ...
        assert registry.sent("/blobs/") < len(data)

As a fixture: ``from tests.support.registry import fake_registry`` in a test module or conftest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from snapshotter.format.digest import from_text
from snapshotter.registry.base import Descriptor

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

_ROUTE = re.compile(r"/v2/(?P<repository>.+?)/(?P<kind>blobs/uploads|blobs|manifests|tags)/(?P<rest>[^/]*)\Z")
_PIECE = 64 << 10


@dataclass(slots=True)
class Fault:
    """How the registry misbehaves for one request; several fields may be combined.

    Before the answer: `hold` is waited for, `delay` seconds pass, `drop` closes the connection without a word, `status`
    answers that (with `headers` and `body`), `redirect` answers 307 to that URL. In an answer: `headers` are added or
    replace the real ones; `ignore_range` answers 200 with everything; `corrupt` flips the byte at that place of what is
    sent; `truncate` sends (and announces) only that many bytes; `cut` announces all, and closes the connection after that
    many; `stall` sends that many and then nothing more until the client goes or the registry is closed.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hold: threading.Event | None = None
    delay: float = 0
    drop: bool = False
    redirect: str | None = None
    ignore_range: bool = False
    corrupt: int | None = None
    truncate: int | None = None
    cut: int | None = None
    stall: int | None = None


@dataclass(slots=True)
class Exchange:
    """A request that arrived, and its answer. `sent` counts the body bytes given to the socket, `received` those read."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """By lower-case name."""
    status: int = 0
    sent: int = 0
    received: int = 0

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("range")


@dataclass(slots=True)
class Repository:
    """What one repository holds; digests are in text form."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Media type and content."""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """Every request needs this user."""

    username: str
    password: str


@dataclass(slots=True)
class TokenAuth:
    """Every request needs a Bearer token from ``/token``, which gives one to this user (to anybody if `username` is None).

    `expires_in` is what the token says; a token is good until `FakeRegistry.revoke_tokens`, or for `lifetime` seconds.
    """

    username: str | None = None
    password: str = ""
    expires_in: int | None = 300
    anonymous_pull: bool = False
    """With a user set: tokens without credentials are given too, for pulling only."""
    lifetime: float = float("inf")
    identity_token: str | None = None
    """Taken as refresh token by POST."""


@dataclass(slots=True)
class _Rule:
    fault: Fault
    method: str | None
    path: re.Pattern[str]
    left: int


class FakeRegistry:
    """See the module's docstring. `url` and `host` say where it is; `repositories` may be read and changed by tests."""

    def __init__(
        self, *, auth: BasicAuth | TokenAuth | None = None, ssl_context: ssl.SSLContext | None = None, page_size: int = 100
    ) -> None:
        self.auth = auth
        self.page_size = page_size
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytearray] = {}
        self.requests: list[Exchange] = []
        self.tokens: dict[str, str] = {}
        self.given: dict[str, float] = {}
        """When tokens were given."""
        """Token → the scopes it was given for."""
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._serial = 0
        self._rules: list[_Rule] = []
        self._server = _Server(self, ssl_context)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{'https' if ssl_context else 'http'}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake-registry")
        self._thread.start()

    def __enter__(self) -> FakeRegistry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; connections are cut."""
        self.closing.set()
        with self._lock:
            for rule in self._rules:
                if rule.fault.hold is not None:
                    rule.fault.hold.set()
        self._server.shutdown()
        self._server.cut_connections()
        self._server.server_close()
        self._thread.join()

    # What tests put in

    def repository(self, name: str) -> Repository:
        """The repository `name`, made if need be."""
        with self._lock:
            return self.repositories.setdefault(name, Repository())

    def put_blob(self, repository: str, data: bytes, media_type: str = LAYER_TYPE) -> Descriptor:
        """Put a blob there without a request."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.repository(repository).blobs[digest] = data
        return Descriptor(media_type, from_text(digest), len(data))

    def put_manifest(
        self, repository: str, content: bytes | Mapping[str, object], tag: str | None = None, media_type: str = MANIFEST_TYPE
    ) -> Descriptor:
        """Put a manifest there without a request (a mapping is written as JSON)."""
        data = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        target = self.repository(repository)
        target.manifests[digest] = (media_type, data)
        if tag is not None:
            target.tags[tag] = digest
        return Descriptor(media_type, from_text(digest), len(data))

    def inject(self, fault: Fault, *, method: str | None = None, path: str = "", times: int = 1) -> None:
        """Apply `fault` to the next `times` requests with that method whose path (query included) matches the pattern."""
        with self._lock:
            self._rules.append(_Rule(fault, method, re.compile(path), times))

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._rules.clear()

    def revoke_tokens(self) -> None:
        """No token given so far is good any more."""
        with self._lock:
            self.tokens.clear()

    # What tests ask

    def matching(self, path: str = "", method: str | None = None) -> list[Exchange]:
        """The requests so far whose path matches the pattern."""
        with self._lock:
            return [e for e in self.requests if re.search(path, e.path) and method in (None, e.method)]

    def sent(self, path: str = "") -> int:
        """Body bytes sent so far in answer to requests whose path matches the pattern."""
        return sum(exchange.sent for exchange in self.matching(path))

    def forget(self) -> None:
        """Empty the log of requests."""
        with self._lock:
            self.requests.clear()

    # For the handler

    def take_fault(self, method: str, path: str) -> Fault:
        """The fault that the next request of this kind suffers."""
        with self._lock:
            for rule in self._rules:
                if rule.left > 0 and rule.method in (None, method) and rule.path.search(path):
                    rule.left -= 1
                    return rule.fault
        return Fault()

    def log(self, exchange: Exchange) -> None:
        """Note a request as it arrives."""
        with self._lock:
            self.requests.append(exchange)

    def new_name(self, prefix: str) -> str:
        """A name that was not given before."""
        with self._lock:
            self._serial += 1
            return f"{prefix}-{self._serial}"


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def __init__(self, registry: FakeRegistry, ssl_context: ssl.SSLContext | None) -> None:
        self.registry = registry
        self.ssl_context = ssl_context
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        if self.ssl_context is not None:
            request.settimeout(10)
            try:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            except OSError:
                self.shutdown_request(request)
                return
            request.settimeout(None)
        with self._open_lock:
            self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._open_lock:
                self._open.discard(request)

    def cut_connections(self) -> None:
        with self._open_lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Header and body leave in two writes: Nagle's algorithm would make every answer wait for a delayed ACK of 40 ms.
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 (the base class calls these names)

    def _serve(self) -> None:
        registry = self.registry = self.server.registry
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.exchange = Exchange(self.command, url.path, query, headers)
        registry.log(self.exchange)
        self.fault = fault = registry.take_fault(self.command, self.path)
        if fault.hold is not None:
            fault.hold.wait()
        if fault.delay:
            time.sleep(fault.delay)
        if fault.drop:
            self.close_connection = True
            return
        body = self._receive()
        if fault.status is not None:
            self._answer(fault.status, fault.body)
        elif fault.redirect is not None:
            self._answer(307, headers={"Location": fault.redirect})
        elif url.path == "/token":
            self._token(body)
        elif not self._authorized(query):
            self._challenge()
        elif url.path in ("/v2/", "/v2"):
            self._answer(200, b"{}")
        elif match := _ROUTE.match(url.path):
            self._route(match["repository"], match["kind"], match["rest"], body)
        else:
            self._error(404, "NAME_UNKNOWN")

    # Parts of the specification

    def _route(self, repository: str, kind: str, rest: str, body: bytes) -> None:
        reading = self.command in ("GET", "HEAD")
        if kind == "tags" and rest == "list":
            self._tags(repository)
        elif kind == "manifests" and reading:
            self._manifest(repository, rest)
        elif kind == "manifests" and self.command == "PUT":
            self._take_manifest(repository, rest, body)
        elif kind == "blobs" and reading:
            self._blob(repository, rest)
        elif kind == "blobs/uploads":
            self._upload(repository, rest, body)
        else:
            self._error(405, "UNSUPPORTED")

    def _manifest(self, repository: str, reference: str) -> None:
        held = self.registry.repository(repository)
        digest = held.tags.get(reference, reference)
        if digest not in held.manifests:
            self._error(404, "MANIFEST_UNKNOWN")
            return
        media_type, data = held.manifests[digest]
        accepted = self.headers.get("Accept", "*/*")
        if media_type not in accepted and "*/*" not in accepted:
            self._error(404, "MANIFEST_UNKNOWN")
            return
        self._answer(200, data, {"Content-Type": media_type, "Docker-Content-Digest": digest})

    def _take_manifest(self, repository: str, reference: str, body: bytes) -> None:
        held = self.registry.repository(repository)
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if ":" in reference and reference != digest:
            self._error(400, "DIGEST_INVALID")
            return
        held.manifests[digest] = (self.headers.get("Content-Type", ""), body)
        if ":" not in reference:
            held.tags[reference] = digest
        self._answer(201, headers={"Location": f"/v2/{repository}/manifests/{digest}", "Docker-Content-Digest": digest})

    def _blob(self, repository: str, digest: str) -> None:
        data = self.registry.repository(repository).blobs.get(digest)
        if data is None:
            self._error(404, "BLOB_UNKNOWN")
            return
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        several = re.findall(r"(\d+)-(\d+)", asked) if re.fullmatch(r"bytes=\d+-\d+(,\d+-\d+)+", asked) else []
        if several and not self.fault.ignore_range:
            # as Go's http.ServeContent writes it, which docker-registry uses
            parts = [(int(first), data[int(first) : int(last) + 1]) for first, last in several]
            headers["Content-Type"] = "multipart/byteranges; boundary=abc"
            self._answer(206, multipart(parts, len(data), b"abc"), headers)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if match is None or self.fault.ignore_range:
            self._answer(200, data, headers)
            return
        first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        if first > last:
            self._error(416, "RANGE_INVALID", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(206, data[first : last + 1], headers)

    def _upload(self, repository: str, name: str, body: bytes) -> None:
        registry, query = self.registry, self.exchange.query
        held = registry.repository(repository)
        if self.command == "POST":
            source = registry.repositories.get(query.get("from", ""))
            if source is not None and query.get("mount") in source.blobs:
                held.blobs[query["mount"]] = source.blobs[query["mount"]]
                self._answer(201, headers={"Location": f"/v2/{repository}/blobs/{query['mount']}"})
                return
            name = registry.new_name("upload")
            registry.uploads[name] = bytearray()
            if "digest" not in query:
                self._answer(202, headers={"Location": f"/v2/{repository}/blobs/uploads/{name}?_state=kept"})
                return
        if name not in registry.uploads:
            self._error(404, "BLOB_UPLOAD_UNKNOWN")
            return
        registry.uploads[name] += body
        if self.command == "PATCH":
            self._answer(202, headers={"Location": f"/v2/{repository}/blobs/uploads/{name}?_state=kept"})
            return
        data = bytes(registry.uploads.pop(name))
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if query.get("digest") != digest:
            self._error(400, "DIGEST_INVALID")
            return
        held.blobs[digest] = data
        self._answer(201, headers={"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": digest})

    def _tags(self, repository: str) -> None:
        held = self.registry.repositories.get(repository)
        if held is None:
            self._error(404, "NAME_UNKNOWN")
            return
        query = self.exchange.query
        rest = sorted(tag for tag in held.tags if tag > query.get("last", ""))
        page = rest[: min(int(query.get("n", self.registry.page_size)), self.registry.page_size)]
        headers = {}
        if len(page) < len(rest):
            following = urlencode({"last": page[-1], "n": self.registry.page_size})
            headers["Link"] = f'</v2/{repository}/tags/list?{following}>; rel="next"'
        self._answer(200, json.dumps({"name": repository, "tags": page}).encode(), headers)

    # Authentication

    def _authorized(self, query: dict[str, str]) -> bool:
        auth, given = self.registry.auth, self.headers.get("Authorization", "")
        if auth is None:
            return True
        if isinstance(auth, BasicAuth):
            return given == _basic(auth.username, auth.password)
        token = given.removeprefix("Bearer ")
        scopes, since = self.registry.tokens.get(token), self.registry.given.get(token, time.monotonic())
        if scopes is None or time.monotonic() - since > auth.lifetime:
            return False
        return self.command in ("GET", "HEAD") or "push" in scopes

    def _challenge(self) -> None:
        if isinstance(self.registry.auth, BasicAuth):
            challenge = 'Basic realm="fake registry"'
        else:
            challenge = f'Bearer realm="{self.registry.url}/token",service="fake",scope="repository:unknown:pull"'
        self._error(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})

    def _token(self, body: bytes) -> None:
        registry, auth, query = self.registry, self.registry.auth, self.exchange.query
        assert isinstance(auth, TokenAuth)
        scope = query.get("scope", "")
        if self.command == "POST":
            form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
            scope = form.get("scope", "")
            good = auth.identity_token is not None and form.get("refresh_token") == auth.identity_token
        else:
            given = self.headers.get("Authorization")
            anonymous = auth.username is None or (given is None and auth.anonymous_pull)
            good = anonymous or given == _basic(auth.username or "", auth.password)
            if given is None and auth.username is not None:
                scope = scope.replace(",push", "")
        if not good:
            self._error(401, "UNAUTHORIZED")
            return
        token = registry.new_name("secret-token")
        registry.tokens[token] = scope
        registry.given[token] = time.monotonic()
        answer: dict[str, object] = {"token": token}
        if auth.expires_in is not None:
            answer["expires_in"] = auth.expires_in
        self._answer(200, json.dumps(answer).encode())

    # The wire

    def _receive(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = bytearray()
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = bytearray(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.exchange.received = len(data)
        return bytes(data)

    def _error(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        message = code.replace("_", " ").lower()
        self._answer(status, json.dumps({"errors": [{"code": code, "message": message}]}).encode(), headers)

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        fault = self.fault
        self.exchange.status = status
        if fault.corrupt is not None and fault.corrupt < len(body):
            at = fault.corrupt
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if fault.truncate is not None:
            body = body[: fault.truncate]
        every = {"Content-Length": str(len(body)), **(headers or {})}
        # A fault may replace a real header, in whatever case it is written.
        replaced = {key.lower() for key in fault.headers}
        every = {key: value for key, value in every.items() if key.lower() not in replaced} | dict(fault.headers)
        self.send_response(status)
        for key, value in every.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stops = [at for at in (fault.cut, fault.stall) if at is not None]
        end = min([len(body), *stops])
        try:
            for start in range(0, end, _PIECE):
                piece = body[start : min(start + _PIECE, end)]
                self.exchange.sent += len(piece)
                self.wfile.write(piece)
            if fault.stall is not None:
                self.registry.closing.wait()
        except OSError:
            stops.append(end)
        if stops:
            self.close_connection = True


def multipart(parts: Iterable[tuple[int, bytes]], size: int, boundary: bytes) -> bytes:
    """The body of an answer with several ranges (offset, bytes) of a blob of `size` bytes (RFC 9110, 14.6)."""
    body = b""
    for offset, data in parts:
        place = b"Content-Range: bytes %d-%d/%d" % (offset, offset + len(data) - 1, size)
        body += b"--%s\r\n%s\r\nContent-Type: application/octet-stream\r\n\r\n%s\r\n" % (boundary, place, data)
    return body + b"--%s--\r\n" % boundary


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@pytest.fixture
def fake_registry() -> Iterator[FakeRegistry]:
    """A registry without authentication, stopped when the test ends."""
    with FakeRegistry() as registry:
        yield registry
