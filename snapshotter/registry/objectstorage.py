"""Blobs from an OCI layout in S3-compatible object storage: ``s3://BUCKET/PREFIX/blobs/sha256/HEX`` (extra ``s3``)."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnsupportedError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry import deadline
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.failures import DeniedError, RegistryUnavailableError

if TYPE_CHECKING:
    from obstore.store import S3Store

_STATUS = re.compile(r"status(?: code)?: ([1-5][0-9]{2})\b")


class S3Directory:
    """A `BlobSource`. `credentials` are access key and secret (None: what AWS's tools take, the environment or the machine's
    role); `anonymous` signs nothing."""

    def __init__(
        self,
        url: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        credentials: Credentials | None = None,
        anonymous: bool = False,
        ca_file: str | None = None,
        answer_timeout: float = 30.0,
    ) -> None:
        """`endpoint` is the service's URL where it is not AWS's; the bucket is then part of the path.

        Raises:
            InvalidError: `url` is no s3 URL, or the file of the authority cannot be read.
            UnsupportedError: the library is not installed.
        """
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise InvalidError(f"{url[:200]!r} is no URL of a bucket: s3://BUCKET/PREFIX")
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/blobs/sha256/" if prefix else "blobs/sha256/"
        self._where = urlsplit(endpoint).netloc if endpoint is not None else f"s3.{region or 'amazonaws'}"
        self._url = f"s3://{parts.netloc}/{prefix}".rstrip("/")
        self._timeout = answer_timeout
        self._settings: dict[str, Any] = {"bucket": parts.netloc, "skip_signature": anonymous}
        self._settings["virtual_hosted_style_request"] = endpoint is None
        # Without a region the store takes us-east-1, which is what S3-compatible servers take for any.
        self._settings |= {key: value for key, value in (("endpoint", endpoint), ("region", region)) if value is not None}
        if credentials is not None:
            self._settings |= {"access_key_id": credentials.username, "secret_access_key": credentials.password}
        self._options: dict[str, Any] = {"timeout": timedelta(seconds=answer_timeout), "connect_timeout": timedelta(seconds=10)}
        if endpoint is not None and endpoint.startswith("http:"):
            self._options["allow_http"] = True
        if ca_file is not None:
            try:
                with open(ca_file, "rb") as file:
                    self._options["root_certificate"] = file.read(1 << 20)
            except OSError as error:
                raise InvalidError(f"cannot use the certificate file {ca_file}: {error.strerror or error}") from None
        self._store: S3Store | None = None
        self._pid = 0
        self._open()

    @property
    def name(self) -> str:
        """See `BlobSource`."""
        return f"{self._url} ({self._where})"

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """See `BlobSource`."""
        if offset < 0 or length < 0:
            raise InvalidError(f"no range of a blob: {length} bytes from {offset} on")
        if length == 0:
            return b""
        data = self._ask(digest, lambda obstore, store, key: obstore.get_range(store, key, start=offset, length=length))
        if len(data) != length:
            raise CorruptError(f"{self._blob(digest)} ends before byte {offset + length}")
        return data

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        """See `BlobSource`."""
        data = self._ask(digest, lambda obstore, store, key: _bounded(obstore, store, key, limit))
        if len(data) > limit:
            raise CorruptError(f"{self._blob(digest)} is larger than {limit} bytes, the most that is read")
        if sha256(data) != digest:
            raise CorruptError(f"{self._blob(digest)} is corrupt: its content has the digest {to_text(sha256(data))}")
        return data

    def close(self) -> None:
        """Nothing to do: the library closes its connections with the store."""

    def _open(self) -> S3Store:
        if self._store is None or self._pid != os.getpid():
            try:
                from obstore.store import S3Store
            except ImportError:
                raise UnsupportedError(f"{self._url}: object storage needs the library obstore (pip install '.[s3]')") from None
            # No retries of its own: the chain's would multiply with them.
            retries: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
            self._store = S3Store(client_options=cast("Any", self._options), retry_config=retries, **self._settings)
            self._pid = os.getpid()
        return self._store

    def _ask(self, digest: Digest, question: Any) -> bytes:
        import obstore
        from obstore import exceptions

        what = self._blob(digest)
        if deadline.remaining() <= 0:
            raise RegistryUnavailableError(f"{what}: no time is left to ask {self._where}")
        try:
            return bytes(question(obstore, self._open(), self._prefix + digest.hex()))
        except (exceptions.NotFoundError, FileNotFoundError):
            raise NotFoundError(f"{what} does not exist") from None
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            raise DeniedError(f"{what}: {self._where} denies access; may this key read the bucket?") from None
        except (exceptions.BaseError, OSError, ValueError) as error:
            # The library's own text holds whole URLs and what the server said; no signature stands in a URL, but it is long.
            if _status(error) == 416:
                raise CorruptError(f"{what} ends before the range that was asked for (416)") from None
            raise RegistryUnavailableError(f"{what}: {self._where} cannot be read: {_short(error)}") from None

    def _blob(self, digest: Digest) -> str:
        return f"blob {to_text(digest)} of {self._url}"


def _bounded(obstore: Any, store: S3Store, key: str, limit: int) -> bytes:
    data = bytearray()
    for piece in obstore.get(store, key).stream(min_chunk_size=256 << 10):
        data += piece
        if len(data) > limit:
            break
    return bytes(data)


def _status(error: Exception) -> int | None:
    """The status that the server answered, if it did. It stands in the library's text alone, among URLs with any digits."""
    match = _STATUS.search(str(error))
    return None if match is None else int(match[1])


def _short(error: Exception) -> str:
    """The kind of `error`, and the status that the server answered where there was one."""
    text, status = str(error), _status(error)
    if status is not None:
        return f"it answers {status}"
    if "timed out" in text or "timeout" in text:
        return "no complete answer in time"
    return "no answer" if "error sending request" in text else "the answer broke off"
