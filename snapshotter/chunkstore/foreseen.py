"""Lets readers say what they are going to read, before they do: the member of the chain that has it brought.

It stands before everything else, since what is brought unasked is no read: it is neither counted as one nor recorded, and no
read waits for all of it, only for the chunk that it wants (`packs.PackStore.begin`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from snapshotter.chunkstore.base import AtHand, ChunkRef, ChunkStore, Foreseeing
from snapshotter.chunkstore.packs import PackStore
from snapshotter.errors import PuzzlefsError
from snapshotter.format.digest import Digest

RANGE = 4 << 20
"""Stored bytes of one request. Its chunks are there as each of them comes, so a long one keeps nobody waiting but for what is
expected after it."""

log = logging.getLogger(__name__)


class GivesOn:
    """Gives what `Foreseeing` asks on to the member behind, where that can do it: for members that stand before `Foreseen`."""

    _inner: ChunkStore

    def told(self) -> bool:
        """See `Foreseeing`, and so below."""
        return isinstance(self._inner, Foreseeing) and self._inner.told()

    def risk(self) -> int:
        return self._inner.risk() if isinstance(self._inner, Foreseeing) else 0

    def expect(self, wanted: Sequence[ChunkRef]) -> None:
        if isinstance(self._inner, Foreseeing):
            self._inner.expect(wanted)

    def bulk(self) -> None:
        if isinstance(self._inner, Foreseeing):
            self._inner.bulk()

    def look(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        return self._inner.look(wanted) if isinstance(self._inner, Foreseeing) else self._inner.get(wanted)


class Foreseen:
    """Has what is expected brought into the cache of the node, by the store that `choose` gives, and answers from `inner`."""

    def __init__(
        self,
        inner: ChunkStore,
        unnoted: ChunkStore,
        choose: Callable[[], PackStore],
        on_close: Callable[[], None] = lambda: None,
        told: Callable[[], bool] = lambda: False,
        on_bulk: Callable[[], None] = lambda: None,
    ) -> None:
        """`unnoted`: the members behind the one of `inner` that notes what is read. `on_close` is called when nobody reads
        through this any more, so that nothing is to be brought for it either. `told`: see `Foreseeing`; `on_bulk`: as
        `bulk`."""
        self._inner = inner
        self._unnoted = unnoted
        self._on_close = on_close
        self._told = told
        self._on_bulk = on_bulk
        self._choose = choose
        self._near: AtHand | None = inner if isinstance(inner, AtHand) else None

    @property
    def name(self) -> str:
        return self._inner.name

    def told(self) -> bool:
        """See `Foreseeing`."""
        return self._told()

    def risk(self) -> int:
        """See `Foreseeing`."""
        return self._choose().risk()

    def expect(self, wanted: Sequence[ChunkRef]) -> None:
        """See `Foreseeing`."""
        try:
            self._choose().begin([ref.digest for ref in wanted if not ref.compressed], RANGE)
        except PuzzlefsError as error:
            log.debug("not all that was expected can be brought: %s", error)

    def bulk(self) -> None:
        """See `Foreseeing`."""
        self._on_bulk()

    def look(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        """See `Foreseeing`."""
        return self._unnoted.get(wanted)

    def at_hand(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        """See `AtHand`."""
        return None if self._near is None else self._near.at_hand(wanted)

    def local(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        """See `AtHand`."""
        return None if self._near is None else self._near.local(wanted)

    def part(self, ref: ChunkRef, offset: int, length: int) -> bytes | None:
        """See `AtHand`."""
        return None if self._near is None else self._near.part(ref, offset, length)

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        return self._inner.get(wanted)

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def close(self) -> None:
        self._on_close()
        self._inner.close()
