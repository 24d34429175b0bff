"""The chunks that are on their way, over all pack stores of a process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from snapshotter.chunkstore.claims import Claimed, NoClaims
from snapshotter.errors import PuzzlefsError
from snapshotter.format.digest import Digest
from snapshotter.format.pack import PackEntry


class Flying:
    """The chunks that are on their way to this process, over all its stores, and the claims by which others know of them."""

    def __init__(self, claims: Claimed | None = None) -> None:
        self.lock = threading.Lock()
        self.claims: Claimed = claims or NoClaims()
        self.futures: dict[Digest, Future[bytes]] = {}

    def claim(self, digest: Digest, has: Callable[[Digest], bool], *, wanted: bool) -> bool:
        """Whether this process is to fetch a chunk that is not on its way here; then it has the claim. The lock is held by the
        caller.

        `wanted`: a reader waits for it, who may have claimed it before. What else is claimed here has come this moment, and is
        about to be kept. `has` tells what is kept: it may have come from another process between the look and the claim.
        """
        if self.claims.holds(digest):
            return wanted and not has(digest)
        if not self.claims.take(digest):
            return False
        if has(digest):
            self.claims.release([digest])
            return False
        return True

    def enter(self, entries: Sequence[PackEntry]) -> dict[Digest, Future[bytes]]:
        """Promise the chunks of a request. The lock is held by the caller."""
        made: dict[Digest, Future[bytes]] = {entry.digest: Future() for entry in entries}
        self.futures.update(made)
        return made

    def settle(self, digest: Digest, future: Future[bytes], result: bytes | PuzzlefsError) -> None:
        """Keep a promise, or break it: then the claim is given up too. (A kept one's is when the chunk has been written.)"""
        with self.lock:
            if self.futures.get(digest) is future:
                del self.futures[digest]
        if future.done():
            return
        if isinstance(result, bytes):
            future.set_result(result)
        else:
            self.claims.release([digest])
            future.set_exception(result)
