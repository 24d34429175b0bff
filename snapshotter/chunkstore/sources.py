"""What the failures of a blob reader mean for the chunks that were to be read."""

from __future__ import annotations

from collections.abc import Sequence

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkMissingError, SourceUnavailableError
from snapshotter.errors import CorruptError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.digest import Digest, to_text
from snapshotter.registry.failures import RegistryUnavailableError


def translate(error: PuzzlefsError, digests: Sequence[Digest], source: str, what: str = "") -> PuzzlefsError:
    """`error`, which the reader of `source` raised on reading `what` (bytes of a pack), as an error about `digests`.

    It names the first of these and the source, as `base` asks for, and says what the reader said. Whatever a reader refuses for
    good (`InvalidError`: denied, unsupported) makes the source unavailable without hope of a retry, so that the next one is
    asked.
    """
    if isinstance(error, ChunkCorruptError | ChunkMissingError | SourceUnavailableError):
        return error
    said = f"{what}: {error}" if what else str(error)
    message = f"chunk {to_text(digests[0])} from {source}: {said}"
    if isinstance(error, NotFoundError):
        return ChunkMissingError(message, digests)
    if isinstance(error, CorruptError):
        return ChunkCorruptError(digests[0], source, said)
    if isinstance(error, RegistryUnavailableError):
        return SourceUnavailableError(message, retryable=error.retryable, retry_after=error.retry_after)
    return SourceUnavailableError(message, retryable=isinstance(error, UnavailableError))
