"""Blobs in memory behind the servers that people keep them on: a web server, S3-compatible storage, containerd.

All serve a `MemoryBlobs` and fail as it does: what its `before` raises is an answer of 503, or UNAVAILABLE.
"""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import grpc

from snapshotter.api import content_pb2, content_pb2_grpc
from snapshotter.errors import PuzzlefsError
from snapshotter.format.digest import Digest, from_text
from tests.support.chunks import MemoryBlobs

_BLOB = re.compile(r"(?P<place>/.*)/blobs/sha256/(?P<hex>[0-9a-f]{64})\Z")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)\Z")


class BlobServer:
    """A web server with an OCI layout at `url`. `check` says whether a request may be answered (else 403)."""

    def __init__(self, blobs: MemoryBlobs, place: str, check: Callable[[Any], bool] = lambda request: True) -> None:
        self.blobs = blobs
        self.place = place
        self.check = check
        self.ranges = True
        """Whether it does ranges at all."""
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = self.endpoint + place
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, owner: BlobServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 20
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        match = _BLOB.match(urlsplit(self.path).path)
        if not owner.check(self):
            self._answer(403, b"")
        elif match is None or match["place"] != owner.place:
            self._answer(404, b"")
        else:
            try:
                owner.blobs.before(Digest(bytes.fromhex(match["hex"])), 0, 0)
            except PuzzlefsError as error:
                self._answer(503, json.dumps({"errors": [{"message": str(error)}]}).encode())
                return
            self._blob(owner.blobs.blobs.get(Digest(bytes.fromhex(match["hex"]))))

    def _blob(self, data: bytes | None) -> None:
        asked = _RANGE.match(self.headers.get("Range", "")) if self.server.owner.ranges else None
        if data is None:
            self._answer(404, b"")
        elif asked is None:
            self._answer(200, data)
        elif int(asked[1]) >= len(data):
            self._answer(416, b"")
        else:
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            self._answer(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        every = {"Content-Length": str(len(body)), "ETag": '"e"', "Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT"}
        for key, value in {**every, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def signed_with(access_key: str, secret: str) -> Callable[[Any], bool]:
    """Whether a request is signed by the holder of this key: AWS' signature version 4, computed anew from what came."""

    def check(request: Any) -> bool:
        said = dict(re.findall(r"(Credential|SignedHeaders|Signature)=([^,\s]+)", request.headers.get("Authorization", "")))
        if not said:
            return False
        key, date, region, service, ending = said["Credential"].split("/")
        url = urlsplit(request.path)
        pairs = sorted(parse_qsl(url.query, keep_blank_values=True))
        query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
        names = said["SignedHeaders"].split(";")
        headers = "".join(f"{name}:{' '.join(request.headers[name].split())}\n" for name in names)
        payload = request.headers["x-amz-content-sha256"]
        canonical = "\n".join([request.command, url.path, query, headers, ";".join(names), payload])
        scope = "/".join([date, region, service, ending])
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join(["AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, digest])
        signing = f"AWS4{secret}".encode()
        for part in (date, region, service, ending, text):
            signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
        return key == access_key and hmac.compare_digest(signing.hex(), said["Signature"])

    return check


class ContentServer(content_pb2_grpc.ContentServicer):
    """containerd's content service at the socket `path`, with these blobs in the namespace `namespace`."""

    def __init__(self, blobs: MemoryBlobs, path: Path, namespace: str) -> None:
        self._blobs = blobs
        self._namespace = namespace
        self.reads = 0
        self._server = grpc.server(ThreadPoolExecutor(8))
        content_pb2_grpc.add_ContentServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix://{path}")
        self._server.start()

    def Info(self, request: content_pb2.InfoRequest, context: grpc.ServicerContext) -> content_pb2.InfoResponse:  # noqa: N802
        blob = self._find(request.digest, context)
        return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest, size=len(blob)))

    def Read(  # noqa: N802
        self, request: content_pb2.ReadContentRequest, context: grpc.ServicerContext
    ) -> Iterator[content_pb2.ReadContentResponse]:
        self.reads += 1
        blob = self._find(request.digest, context)
        if request.offset > len(blob):
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "offset past content length")
        end = request.offset + request.size if request.size else len(blob)
        for start in range(request.offset, min(end, len(blob)), 1000):
            yield content_pb2.ReadContentResponse(offset=start, data=blob[start : min(start + 1000, end)])

    def close(self) -> None:
        """Stop serving."""
        self._server.stop(None).wait()

    def _find(self, text: str, context: grpc.ServicerContext) -> bytes:
        digest = from_text(text)
        try:
            self._blobs.before(digest, 0, 0)
        except PuzzlefsError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        namespaces = [value for key, value in context.invocation_metadata() if key == "containerd-namespace"]
        blob = self._blobs.blobs.get(digest) if namespaces == [self._namespace] else None
        if blob is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"content {text}: not found")
        assert blob is not None
        return blob
