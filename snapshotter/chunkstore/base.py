"""The protocols of the chunk store: what a member promises, and the three ways in which it may fail.

A chunk store is a chain of members that all speak `ChunkStore`; each does one thing and asks the next. ``chain.build``
makes the whole chain and is the place to read its order. What every member promises:

* `get` is idempotent and may be called from many threads at once; it answers every chunk that was asked for, or raises.
* It never answers bytes that are not the chunk: a member that reads from outside is wrapped in `verify`.
* An error says by its type what the caller may do: `ChunkMissingError`, ask the next source; `ChunkCorruptError`, drop
  what was read, count it, ask the next source; `SourceUnavailableError`, the same request may work later, and whether a
  retry is worth it is the source's own answer (`retryable`), never the caller's guess. Its text names a chunk that cannot be
  had and where it was looked for, since a container's user is told no more than EIO.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from snapshotter.errors import CorruptError, NotFoundError, UnavailableError
from snapshotter.format.digest import Digest, to_text


class ChunkRef(NamedTuple):
    """What a reader wants: the chunk named `digest`.

    `compressed` as in `format.model.FileChunk`: the name is that of the stored bytes (upstream's compressed images).
    """

    digest: Digest
    compressed: bool = False


class ChunkMissingError(NotFoundError):
    """This source does not have some of the chunks; another one may.

    `digests` are those that it lacks, as far as it knows; empty says nothing about which.
    """

    def __init__(self, message: str, digests: Iterable[Digest] = ()) -> None:
        super().__init__(message)
        self.digests = frozenset(digests)


class ChunkCorruptError(CorruptError):
    """What this source has under the chunk's name is something else."""

    def __init__(self, digest: Digest, where: str, why: str) -> None:
        super().__init__(f"chunk {to_text(digest)} from {where} is corrupt: {why}")
        self.digest = digest
        self.where = where


class SourceUnavailableError(UnavailableError):
    """The source cannot be asked now. `retryable`: the source expects the same request to work soon."""

    def __init__(self, message: str, *, retryable: bool = True, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after


class ChunkStore(Protocol):
    """Where chunks come from."""

    @property
    def name(self) -> str:
        """For logs and errors: what this is, its parts included (``cache(/var/…) → verify(registry(host/repo))``)."""
        ...

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        """The raw bytes of each chunk of `wanted`, in that order.

        Raises:
            ChunkMissingError, ChunkCorruptError, SourceUnavailableError: see the module's docstring.
        """
        ...

    def has(self, digest: Digest) -> bool:
        """Whether `get` would find this chunk here without asking anything beyond this machine."""
        ...

    def close(self) -> None:
        """Give back what this member holds, and close the members behind it. Reads under way are still answered. Calling it
        again does nothing."""
        ...


@runtime_checkable
class AtHand(Protocol):
    """What a member offers beside `ChunkStore` that keeps chunks on this machine: answers for which nobody else is asked."""

    def at_hand(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        """What `get` would answer, if no disk, network or other thread has to be waited for; else None. Never raises."""
        ...

    def local(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        """What `get` would answer, if memory and this machine's disk have all of it; else None. Never raises."""
        ...

    def part(self, ref: ChunkRef, offset: int, length: int) -> bytes | None:
        """Of a chunk that `at_hand` would answer, or of one that is too long for it, `length` bytes from `offset` on; None
        where one has to wait for them, or where the chunk is not so long. Never raises.

        For reads of a little of a long chunk, which is neither copied nor remembered as a whole.
        """
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """What a member offers beside `ChunkStore` that can have chunks brought which nobody waits for yet."""

    def told(self) -> bool:
        """Whether what is going to be read is on its way, since it was recorded once: then nothing has to be guessed."""
        ...

    def risk(self) -> int:
        """Bytes that are better fetched in vain than asked for later: a part of what the way here carries in a round trip."""
        ...

    def expect(self, wanted: Sequence[ChunkRef]) -> None:
        """Begin to bring to this machine what is not here of `wanted`, in that order. Waits for nothing and never raises: what
        does not come is fetched when it is read."""
        ...

    def bulk(self) -> None:
        """Somebody goes on to read everything: the start is over, if there was one."""
        ...

    def look(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        """As `ChunkStore.get`, for whoever decides what to expect: nobody has read these chunks."""
        ...


class Near(Protocol):
    """What is nearer than any source and may have some chunks: other nodes' caches."""

    def find(self, pack: Digest, digests: Sequence[Digest]) -> Iterator[tuple[Digest, bytes]]:
        """Those of `digests`, chunks of `pack`, that are found there, with their raw bytes, verified, as they come.

        Takes little time whatever happens there, and never raises: what is not found is read from the pack."""
        ...


class BlobReader(Protocol):
    """Reads byte ranges of stored blobs (packs, chunks of upstream's layouts): a registry, an OCI layout."""

    @property
    def name(self) -> str:
        """For logs and errors: ``registry.example:5000/library/debian``, ``oci:/srv/images``."""
        ...

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of the blob `digest` from `offset` on, unverified.

        Raises:
            NotFoundError: there is no such blob here.
            CorruptError: the blob ends before the range does.
            UnavailableError: the place cannot be asked now.
        """
        ...


@runtime_checkable
class RangesReader(BlobReader, Protocol):
    """A `BlobReader` that gives the bytes as they come, and may be asked for several ranges of a blob in one request."""

    @property
    def ranges_at_once(self) -> int:
        """How many ranges a request may have, as far as is known now."""
        ...

    def read_ranges(self, digest: Digest, extents: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """The bytes of all of `extents` (offset and length, which is not 0; none overlaps another), unverified, in blocks with
        their offset in the blob. Those of a range come in order; which range comes first is left to the source.

        Raises:
            As `read_range`, from the iterator, whatever came before.
        """
        ...
