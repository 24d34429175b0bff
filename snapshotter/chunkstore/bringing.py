"""Chunks that are brought to this node unasked, from the first of several sources that gives them."""

from __future__ import annotations

from collections.abc import Sequence

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkStore, SourceUnavailableError
from snapshotter.chunkstore.health import Health
from snapshotter.chunkstore.packs import PackStore
from snapshotter.errors import PuzzlefsError
from snapshotter.format.digest import Digest


class Bringing:
    """Has chunks brought by `sources`, each the member by which a chain's fallback knows it with its store of packs, in the
    order in which `health` would have them asked. What one does not give is asked of the next, and only that."""

    def __init__(self, sources: Sequence[tuple[ChunkStore, PackStore]], health: Health) -> None:
        self._members = [member for member, _ in sources]
        self._stores = {member.name: store for member, store in sources}
        self._health = health

    def bring(self, digests: Sequence[Digest], range_bytes: int) -> None:
        """Have chunks brought to the cache in the order given, in requests of about `range_bytes` (`packs.PackStore.bring`).

        Raises:
            ChunkMissingError, ChunkCorruptError, SourceUnavailableError: some did not come; all others have.
        """
        rest = list(digests)
        failed: dict[Digest, PuzzlefsError] = {}
        for member in self._health.order(self._members):
            failed = dict(self._stores[member.name].bring(rest, range_bytes))
            if any(isinstance(error, SourceUnavailableError) for error in failed.values()):
                self._health.failed(member)
            elif len(failed) < len(rest):
                self._health.answered(member)
            rest = [digest for digest in rest if digest in failed]
            if not rest:
                return
        raise next(
            (
                error
                for kind in (SourceUnavailableError, ChunkCorruptError)
                for error in failed.values()
                if isinstance(error, kind)
            ),
            failed[rest[0]],
        )
