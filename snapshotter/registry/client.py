"""`ImageStore` over one repository of a registry that speaks the OCI distribution specification."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO
from urllib.parse import urlencode, urljoin

from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from snapshotter.format.digest import Digest, from_text, sha256, to_text
from snapshotter.registry import multirange, ranges
from snapshotter.registry.base import MANIFEST_MAX, Descriptor
from snapshotter.registry.documents import MANIFEST_TYPES, manifest_type
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.multirange import ManyRefusedError
from snapshotter.registry.ranges import Extent
from snapshotter.registry.reference import is_tag
from snapshotter.registry.session import RegistrySession
from snapshotter.registry.transport import Readable, Response
from snapshotter.registry.verified import Checker, verified

TAG_PAGES_MAX = 1000
TAG_PAGE_SIZE = 1000

COMMIT_TIMEOUT = 600.0
"""Seconds that a registry may take to answer an upload: some copy and hash the whole blob before they do."""

_log = logging.getLogger(__name__)

_NEXT = re.compile(r'<([^<>]*)>\s*;[^,]*\brel="?next"?', re.IGNORECASE)


class RegistryStore:
    """One repository. Connections, tokens and counters are the session's, which may serve many and is not closed here."""

    def __init__(self, session: RegistrySession, repository: str) -> None:
        """`repository` as in references (``library/debian``), already checked by `reference.parse`."""
        self._session = session
        self.repository = repository
        self._base = f"{session.transport.config.path}/{repository}"
        self._pull = f"repository:{repository}:pull"
        self._push = f"repository:{repository}:pull,push"

    @property
    def name(self) -> str:
        """See `ImageStore`."""
        return f"{self._session.host}/{self.repository}"

    # Reading

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """See `ImageStore`."""
        wanted = _digest(reference)
        what = f"{'manifest' if wanted else 'tag'} {reference!r} of {self.name}"
        if wanted is None and not is_tag(reference):
            raise InvalidError(f"{self.name}: {reference[:140]!r} is neither a tag nor a digest")
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        url = f"{self._base}/manifests/{reference}"
        with self._session.request("GET", url, scope=self._pull, what=what, expect=(200,), headers=headers) as response:
            data = response.read_all(MANIFEST_MAX, what)
            declared, promised = response.headers.get("Content-Type"), response.headers.get("Docker-Content-Digest")
        digest = sha256(data)
        expected = wanted or (_digest(promised) if promised else None)
        if expected is not None and digest != expected:
            raise CorruptError(f"{what} is corrupt: its content has the digest {to_text(digest)}, not {to_text(expected)}")
        return Descriptor(manifest_type(data, declared, what), digest, len(data)), data

    def open_blob(self, blob: Descriptor) -> BinaryIO:
        """See `ImageStore`. The connection is kept until the stream is closed."""
        what = self._blob(blob.digest)
        response = self._session.request("GET", self._blob_url(blob.digest), scope=self._pull, what=what, expect=(200,))
        try:
            if response.length is not None and response.length != blob.size:
                raise CorruptError(f"{what} is corrupt: it has {response.length} bytes, its descriptor says {blob.size}")
            return verified(response, blob, self.name, response.close)
        except CorruptError:
            response.close()
            raise

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """See `ImageStore`."""
        if offset < 0 or length < 0:
            raise InvalidError(f"no range of a blob: {length} bytes from {offset} on")
        return b"".join(block for _, block in self._one(digest, Extent(offset, length))) if length else b""

    @property
    def ranges_at_once(self) -> int:
        """See `chunkstore.base.RangesReader`. More than one where the registry itself has answered a request for one: object
        storage, to which it may redirect, answers with the whole blob."""
        return multirange.AT_ONCE if self._session.answers_many else 1

    def read_ranges(self, digest: Digest, extents: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """See `chunkstore.base.RangesReader`. A registry that turns out not to do several at once is asked one by one."""
        wanted = {Extent(*extent): extent[1] for extent in extents}
        if len(wanted) > 1 and self.ranges_at_once > 1:
            try:
                for at, block in self._many(digest, list(wanted)):
                    extent = next(extent for extent in wanted if extent.offset <= at < extent.offset + extent.length)
                    wanted[extent] -= len(block)
                    if not wanted[extent]:
                        del wanted[extent]
                    yield at, block
            except ManyRefusedError as error:
                self._session.answers_many = False
                _log.info("%s; its ranges are asked for one by one", error)
        for extent, left in list(wanted.items()):
            yield from self._one(digest, Extent(extent.offset + extent.length - left, left))

    def _one(self, digest: Digest, extent: Extent) -> Iterator[tuple[int, bytes]]:
        with self._ask(digest, ranges.STATUSES, ranges.header(*extent)) as response:
            yield from ranges.blocks(response, *extent, self._blob(digest))
            if self._session.answers_many is None:
                self._session.answers_many = response.status == 206 and not response.foreign

    def _many(self, digest: Digest, extents: Sequence[Extent]) -> Iterator[tuple[int, bytes]]:
        with self._ask(digest, multirange.STATUSES, multirange.header(extents)) as response:
            yield from multirange.blocks(response, extents, self._blob(digest))

    def _ask(self, digest: Digest, expect: Sequence[int], headers: Mapping[str, str]) -> AbstractContextManager[Response]:
        url, what = self._blob_url(digest), self._blob(digest)
        return self._session.request("GET", url, scope=self._pull, what=what, expect=expect, headers=headers)

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        """A whole blob whose size nothing has told, at most `limit` bytes, checked against its digest.

        Raises as `ImageStore` says; CorruptError also where it is larger than `limit`.
        """
        what = self._blob(digest)
        url = self._blob_url(digest)
        with self._session.request("GET", url, scope=self._pull, what=what, expect=(200,)) as response:
            data = response.read_all(limit, what)
        if sha256(data) != digest:
            raise CorruptError(f"{what} is corrupt: its content has the digest {to_text(sha256(data))}")
        return data

    def has_blob(self, digest: Digest) -> bool:
        """See `ImageStore`."""
        return self._has(digest, self._pull)

    def tags(self) -> Iterator[str]:
        """See `ImageStore`. A repository that the registry does not know has no tags: it is made when it is pushed to."""
        what = f"tags of {self.name}"
        url: str | None = f"{self._base}/tags/list?n={TAG_PAGE_SIZE}"
        for _ in range(TAG_PAGES_MAX):
            if url is None:
                return
            try:
                response = self._session.request("GET", url, scope=self._pull, what=what, expect=(200,))
            except NotFoundError:
                return
            with response:
                data = response.read_all(MANIFEST_MAX, what)
                following = _NEXT.search(response.headers.get("Link", ""))
            yield from _tags(data, what)
            url = self._same_host(urljoin(url, following[1]), what) if following else None
        raise CorruptError(f"{what}: the list has more than {TAG_PAGES_MAX} pages")

    # Writing

    def put_blob(self, blob: Descriptor, data: BinaryIO) -> bool:
        """See `ImageStore`. `data` is streamed, and checked on its way: a wrong one is not completed.

        Threads that put the same blob at once take turns, and all but the first find it there. It saves the bytes, and
        docker-registry 2.8 needs it: while one blob is uploaded to one repository several times at once, other requests for
        it fail with 400 or 500 (34 of 400 images pushed by 16 threads with one configuration; none in turns).
        """
        with self._session.uploads.take((self.repository, blob.digest)):
            return self._put_blob(blob, data)

    def _put_blob(self, blob: Descriptor, data: BinaryIO) -> bool:
        if self._has(blob.digest, self._push):
            return False
        what = f"upload of {self._blob(blob.digest)}"
        with self._session.request(
            "POST", f"{self._base}/blobs/uploads/", scope=self._push, what=what, expect=(202,), headers={"Content-Length": "0"}
        ) as response:
            location = self._location(response, what)
        url = location + ("&" if "?" in location else "?") + urlencode({"digest": to_text(blob.digest)})
        headers = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
        body = _Bodies(data, blob, what)
        with self._session.request(
            "PUT", url, scope=self._push, what=what, expect=(201, 204), headers=headers, body=body, read_timeout=COMMIT_TIMEOUT
        ):
            return True

    def put_manifest(self, manifest: Descriptor, data: bytes, tag: str | None) -> None:
        """See `ImageStore`."""
        reference = to_text(manifest.digest) if tag is None else tag
        what = f"upload of manifest {reference!r} to {self.name}"
        if tag is not None and not is_tag(tag):
            raise InvalidError(f"{self.name}: {tag[:140]!r} is not a tag")
        if sha256(data) != manifest.digest or len(data) != manifest.size:
            raise CorruptError(f"{what}: the data is not what its descriptor {to_text(manifest.digest)} says")
        headers = {"Content-Type": manifest.media_type, "Content-Length": str(len(data))}
        url = f"{self._base}/manifests/{reference}"
        with self._session.request(
            "PUT", url, scope=self._push, what=what, expect=(200, 201, 202, 204), headers=headers, body=lambda: data
        ) as response:
            stored = response.headers.get("Docker-Content-Digest")
        if stored is not None and _digest(stored) != manifest.digest:
            raise CorruptError(f"{what}: the registry stored it as {stored[:80]!r}, not as {to_text(manifest.digest)}")

    def close(self) -> None:
        """See `ImageStore`. Nothing to do here: the session stays."""

    # Parts

    def _has(self, digest: Digest, scope: str) -> bool:
        url = self._blob_url(digest)
        with self._session.request("HEAD", url, scope=scope, what=self._blob(digest), expect=(200, 404)) as response:
            return response.status == 200

    def _blob(self, digest: Digest) -> str:
        return f"blob {to_text(digest)} of {self.name}"

    def _blob_url(self, digest: Digest) -> str:
        return f"{self._base}/blobs/{to_text(digest)}"

    def _location(self, response: Response, what: str) -> str:
        location = response.headers.get("Location")
        if not location:
            raise InvalidError(f"{what}: registry {self._session.host} does not say where to (no Location)")
        transport = self._session.transport
        url = urljoin(f"{transport.base}{self._base}/blobs/uploads/", location)
        plain = url.startswith("http:") and transport.base.startswith("http:")
        if not (plain or url.startswith("https:")):
            raise InvalidError(
                f"{what}: registry {self._session.host} names a place that is no {transport.base.split(':')[0]} URL"
            )
        return url

    def _same_host(self, url: str, what: str) -> str:
        if "://" in url and not self._session.transport.is_own(url):
            raise CorruptError(f"{what}: the next page is at another host")
        return url


class _Bodies:
    """Gives the body of an upload, from its start, for each attempt."""

    def __init__(self, data: BinaryIO, blob: Descriptor, what: str) -> None:
        self._data = data
        self._blob = blob
        self._what = what
        self._start = data.tell() if data.seekable() else None
        self._used = False

    def __call__(self) -> Readable:
        if self._used:
            if self._start is None:
                raise RegistryUnavailableError(
                    f"{self._what}: access expired during the upload, and the data cannot be read again"
                )
            self._data.seek(self._start)
        self._used = True
        return _Body(self._data, self._blob, self._what)


class _Body:
    def __init__(self, data: BinaryIO, blob: Descriptor, what: str) -> None:
        self._data = data
        self._checker = Checker(blob, "its source")
        self._what = what
        if blob.size == 0:
            self._checker.update(b"")

    def read(self, size: int = -1, /) -> bytes:
        checker = self._checker
        if checker.left == 0:
            return b""
        try:
            data = self._data.read(min(size, checker.left) if size >= 0 else checker.left)
            # The last bytes leave only when nothing is wrong: a registry must not be given a complete wrong blob.
            more = self._data.read(1) if len(data) == checker.left else b""
        except OSError as error:
            raise UnavailableError(f"{self._what}: cannot read the data: {error.strerror or error}") from error
        if not data:
            raise checker.error(f"it ends {checker.left} bytes before the size in its descriptor")
        if more:
            raise checker.error("it is longer than the size in its descriptor")
        checker.update(data)
        return data


def _tags(data: bytes, what: str) -> list[str]:
    try:
        listed = json.loads(data)["tags"]
    except (ValueError, RecursionError, LookupError, TypeError):
        raise CorruptError(f"{what}: the registry's answer is not a list of tags") from None
    # A repository whose tags were all deleted has null.
    return [tag for tag in listed or () if isinstance(tag, str) and is_tag(tag)]


def _digest(text: str) -> Digest | None:
    """The digest that `text` is; None if it is a tag (which cannot hold a colon).

    Raises:
        InvalidError: it is a digest of another algorithm, or none.
    """
    return from_text(text) if ":" in text else None
