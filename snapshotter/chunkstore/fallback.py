"""Several sources, asked in order until each chunk is found.

What a source cannot give (missing, corrupt, unavailable) is asked of the next one, and only that: a source that lacks one
chunk of twenty still gives the other nineteen.
"""

from __future__ import annotations

from collections.abc import Sequence

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkMissingError, ChunkRef, ChunkStore, SourceUnavailableError
from snapshotter.chunkstore.health import Health
from snapshotter.errors import PuzzlefsError
from snapshotter.format.digest import Digest, to_text

_ROUNDS = 3
"""Requests to one source for one `get`: after that many answers with something wrong in them, the rest goes to the next."""


class Fallback:
    """Asks `sources` in their order.

    The error at the end tells what each source said. Its category is the one that gives the caller most to hope for: if
    any source was only unavailable the whole is unavailable (retryable if one of them is), else corrupt if any had
    something wrong, else missing.

    A source that failed lately (`health`, which chains may share) is asked after the others.
    """

    def __init__(self, sources: Sequence[ChunkStore], health: Health | None = None) -> None:
        self._sources = tuple(sources)
        self._health = health if health is not None else Health()

    @property
    def name(self) -> str:
        return f"fallback({', '.join(source.name for source in self._sources)})"

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        got: dict[ChunkRef, bytes] = {}
        errors: list[tuple[ChunkStore, PuzzlefsError]] = []
        rest = list(dict.fromkeys(wanted))
        lacking: list[ChunkStore] = []
        for source in self._health.order(self._sources):
            answer, failures = _ask(source, rest)
            got |= answer
            errors += [(source, failure) for failure in failures]
            if any(isinstance(failure, SourceUnavailableError) for failure in failures):
                self._health.failed(source)
            elif answer:
                self._health.answered(source)
                # That nobody has a chunk says nothing against a source; that another one has it, does.
                for other in lacking:
                    self._health.failed(other)
            elif any(isinstance(failure, ChunkMissingError) for failure in failures):
                lacking.append(source)
            rest = [ref for ref in rest if ref not in got]
            if not rest:
                return [got[ref] for ref in wanted]
        if not wanted:
            return []
        raise _summary(rest, errors)

    def has(self, digest: Digest) -> bool:
        return any(source.has(digest) for source in self._sources)

    def close(self) -> None:
        for source in self._sources:
            source.close()


def _ask(source: ChunkStore, refs: Sequence[ChunkRef]) -> tuple[dict[ChunkRef, bytes], list[PuzzlefsError]]:
    """What `source` has of `refs`, and how it failed on the rest."""
    errors: list[PuzzlefsError] = []
    rest = list(refs)
    for _ in range(_ROUNDS):
        try:
            return dict(zip(rest, source.get(rest), strict=True)), errors
        except (ChunkMissingError, ChunkCorruptError) as error:
            errors.append(error)
            bad = error.digests if isinstance(error, ChunkMissingError) else frozenset((error.digest,))
            remaining = [ref for ref in rest if ref.digest not in bad]
            if not remaining or len(remaining) == len(rest):
                break
            rest = remaining
        except SourceUnavailableError as error:
            errors.append(error)
            break
    return {}, errors


def _summary(refs: Sequence[ChunkRef], errors: Sequence[tuple[ChunkStore, PuzzlefsError]]) -> PuzzlefsError:
    errors = [(source, error) for source, error in errors if _concerns(error, refs)]
    if len(errors) == 1:
        return errors[0][1]
    which = to_text(refs[0].digest) + (f" and {len(refs) - 1} more" if len(refs) > 1 else "")
    said = "; ".join(f"{source.name}: {error}" for source, error in errors) or "there is no source to ask"
    unavailable = [error for _, error in errors if isinstance(error, SourceUnavailableError)]
    if unavailable:
        retryable = [error for error in unavailable if error.retryable]
        waits = [error.retry_after for error in retryable]
        return SourceUnavailableError(
            f"chunk {which} cannot be had now: {said}",
            retryable=bool(retryable),
            retry_after=None if None in waits else min((wait for wait in waits if wait is not None), default=None),
        )
    corrupt = [error for _, error in errors if isinstance(error, ChunkCorruptError)]
    if corrupt:
        return ChunkCorruptError(corrupt[0].digest, ", ".join(dict.fromkeys(error.where for error in corrupt)), said)
    return ChunkMissingError(f"no source has chunk {which}: {said}", (ref.digest for ref in refs))


def _concerns(error: PuzzlefsError, refs: Sequence[ChunkRef]) -> bool:
    """Whether `error` is about one of `refs`, rather than about a chunk that another source had in the end."""
    if isinstance(error, ChunkCorruptError):
        return any(ref.digest == error.digest for ref in refs)
    if isinstance(error, ChunkMissingError) and error.digests:
        return any(ref.digest in error.digests for ref in refs)
    return True
