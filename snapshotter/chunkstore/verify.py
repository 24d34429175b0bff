"""Nothing passes that is not what its name says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkRef, ChunkStore
from snapshotter.chunkstore.local import LocalChunks
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.format.digest import Digest, sha256

log = logging.getLogger(__name__)


class Verify:
    """Checks the sha256 of everything that `inner` answers, and counts and reports what `inner` itself finds corrupt.

    A compressed reference names the stored bytes, which never come up here: for those the source must have checked the
    name before it decoded. `blobs.BlobStore` does, and it is the only member that answers compressed references at all.

    What was right in an answer that had something wrong goes to `local`, so that asking again for the rest does not move
    it twice.
    """

    def __init__(
        self,
        inner: ChunkStore,
        *,
        stats: Stats,
        local: LocalChunks | None = None,
        where: Callable[[Digest], str] | None = None,
    ) -> None:
        """`where` tells for an error where in `inner` a chunk is; without it that is its name."""
        self._inner = inner
        self._where = where or (lambda digest: inner.name)
        self._stats = stats
        self._local = local

    @property
    def name(self) -> str:
        return f"verify({self._inner.name})"

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        try:
            answer = self._inner.get(wanted)
        except ChunkCorruptError as error:
            self._report(error)
            raise
        wrong = [ref for ref, raw in zip(wanted, answer, strict=True) if not ref.compressed and sha256(raw) != ref.digest]
        if not wrong:
            return answer
        if self._local is not None:
            for ref, raw in zip(wanted, answer, strict=True):
                if not ref.compressed and ref not in wrong:
                    self._local.put(ref.digest, raw)
        errors = [
            ChunkCorruptError(ref.digest, self._where(ref.digest), "its sha256 is another") for ref in dict.fromkeys(wrong)
        ]
        for found in errors:
            self._report(found)
        raise errors[0]

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def close(self) -> None:
        self._inner.close()

    def _report(self, error: ChunkCorruptError) -> None:
        self._stats.add(Count.CORRUPT, source=self._inner.name)
        log.error("%s", error)
