"""What the failures of a blob reader mean for the chunks that were to be read."""

from __future__ import annotations

from collections.abc import Sequence

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkMissingError, SourceUnavailableError
from snapshotter.errors import CorruptError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.digest import Digest
from snapshotter.registry.failures import RegistryUnavailableError


def translate(error: PuzzlefsError, digests: Sequence[Digest], source: str, what: str) -> PuzzlefsError:
    """`error`, raised by the reader of `source` on reading `what`, as an error of the chunk store about `digests`.

    Whatever a reader refuses for good (`InvalidError`: denied, unsupported) makes the source unavailable without hope of a
    retry, so that the next one is asked.
    """
    if isinstance(error, ChunkCorruptError | ChunkMissingError | SourceUnavailableError):
        return error
    message = f"{what} from {source}: {error}"
    if isinstance(error, NotFoundError):
        return ChunkMissingError(message, digests)
    if isinstance(error, CorruptError):
        return ChunkCorruptError(digests[0], source, f"{what}: {error}")
    if isinstance(error, RegistryUnavailableError):
        return SourceUnavailableError(message, retryable=error.retryable, retry_after=error.retry_after)
    return SourceUnavailableError(message, retryable=isinstance(error, UnavailableError))
