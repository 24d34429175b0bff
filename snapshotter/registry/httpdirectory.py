"""Blobs from an OCI layout behind any web server: ``URL/blobs/sha256/HEX``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from snapshotter.errors import CorruptError, InvalidError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry import ranges
from snapshotter.registry.auth import basic
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.hosts import RegistryConfig
from snapshotter.registry.session import failure
from snapshotter.registry.transport import Response, Transport


class HttpDirectory:
    """A `BlobSource`. A server without ranges will do for small packs; what it sends in vain is bounded (`ranges`)."""

    def __init__(
        self,
        url: str,
        config: RegistryConfig,
        credentials: Credentials | None = None,
    ) -> None:
        """`url` is the layout's; `credentials` are sent as Basic, in the clear where `url` is http.

        Raises:
            InvalidError: `url` is no http or https URL, or a certificate file cannot be used.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
            raise InvalidError(f"{url[:200]!r} is no http or https URL of a directory")
        self._url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._host = parts.netloc
        self._transport = Transport(parts.netloc, replace(config, plain_http=parts.scheme == "http"))
        self._authorization = {"Authorization": basic(credentials)} if credentials is not None else {}

    @property
    def name(self) -> str:
        """See `BlobSource`."""
        return self._url

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """See `BlobSource`."""
        if offset < 0 or length < 0:
            raise InvalidError(f"no range of a blob: {length} bytes from {offset} on")
        if length == 0:
            return b""
        with self._get(digest, ranges.STATUSES, ranges.header(offset, length)) as response:
            return ranges.read(response, offset, length, self._blob(digest))

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        """See `BlobSource`."""
        with self._get(digest, (200,), {}) as response:
            data = response.read_all(limit, self._blob(digest))
        if sha256(data) != digest:
            raise CorruptError(f"{self._blob(digest)} is corrupt: its content has the digest {to_text(sha256(data))}")
        return data

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _get(self, digest: Digest, expect: tuple[int, ...], headers: Mapping[str, str]) -> Response:
        url = f"{self._url}/blobs/sha256/{digest.hex()}"
        response = self._transport.request("GET", url, headers={**headers, **self._authorization})
        if response.status in expect:
            return response
        with response:
            raise failure(response, self._blob(digest), self._host, "server")

    def _blob(self, digest: Digest) -> str:
        return f"blob {to_text(digest)} of {self._url}"
