"""How much of a layer is on this node, by its chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from snapshotter.format.digest import Digest
from snapshotter.format.pack import PackIndex


@dataclass(frozen=True, slots=True)
class Coverage:
    """A layer's chunks and how many of them are local; `stored` is what they take in packs (as far as local indexes tell),
    `stored_local` that of the local ones, `disk` what those take in the cache. Sizes in bytes.
    """

    chunks: int = 0
    local: int = 0
    stored: int = 0
    stored_local: int = 0
    disk: int = 0

    @property
    def ratio(self) -> float:
        """Local part, by chunks; 1 where there are none."""
        return self.local / self.chunks if self.chunks else 1.0

    def __add__(self, other: Coverage) -> Coverage:
        """Of both together, for layers that share no chunks; what they share is counted twice."""
        mine, its = asdict(self), asdict(other)
        return Coverage(**{name: mine[name] + its[name] for name in mine})

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with ``ratio``."""
        return {**asdict(self), "ratio": round(self.ratio, 4)}


def cover(digests: Iterable[Digest], indexes: Sequence[PackIndex], size: Callable[[Digest], int | None]) -> Coverage:
    """The coverage of the chunks `digests`, of which `size` tells the bytes on disk, None for those that are not here."""
    chunks = local = stored = stored_local = disk = 0
    for digest in dict.fromkeys(digests):
        here = size(digest)
        entry = next((entry for index in indexes if (entry := index.find(digest)) is not None), None)
        length = entry.stored_length if entry is not None else 0
        chunks += 1
        stored += length
        if here is not None:
            local += 1
            stored_local += length
            disk += here
    return Coverage(chunks, local, stored, stored_local, disk)
