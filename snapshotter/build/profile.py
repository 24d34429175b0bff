"""Start profiles: which chunks a container reads when it starts, in which order; and the pack that holds them.

A profile is a list of chunks, so it belongs to the content and not to an image: of another version's profile those chunks are
used that this version still has. As a file it is JSON: ``{"version": 1, "chunks": ["<64 hex>", …]}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from snapshotter.build.pack import WrittenPack
from snapshotter.errors import InvalidError
from snapshotter.format.annotations import PackPlace
from snapshotter.format.compression import Codec, encode_group
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.pack import HEADER, PackEntry, PackIndex, trailer

VERSION = 1
CHUNKS_MAX = 1 << 16
"""Most chunks of a profile: 4 GiB of average ones."""

LEVEL = 19
"""zstd's level for profile packs: they are made once and fetched by every start. Of 27 MB that a start of Python with NumPy
reads, level 3 with a frame a chunk makes 10.6 MB, level 19 9.2 MB, level 19 in groups of 8 MiB 8.2 MB (7 s of one core)."""

FIRST_GROUP = 1 << 20
LARGEST_GROUP = 8 << 20
"""Raw bytes of groups: each twice the one before, since the first ones are waited for, and the larger the smaller it stores."""


def parse(text: str | bytes, what: str) -> list[Digest]:
    """The chunks of the profile in `text`, each once.

    Raises:
        InvalidError: it is no profile.
    """
    try:
        document = json.loads(text)
        if document["version"] != VERSION:
            raise InvalidError(f"{what} is a profile of version {document['version']!r}; this program reads {VERSION}")
        chunks = document["chunks"]
        if not isinstance(chunks, list) or len(chunks) > CHUNKS_MAX:
            raise InvalidError(f"{what} has no list of at most {CHUNKS_MAX} chunks")
        return list(dict.fromkeys(_digest(name) for name in chunks))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidError(f"{what} is no start profile: {error}") from None


def _digest(name: object) -> Digest:
    if not isinstance(name, str) or not re.fullmatch(r"[0-9a-f]{64}", name):
        raise ValueError(f"{str(name)[:80]!r} is no chunk's digest")
    return Digest(bytes.fromhex(name))


def render(chunks: Iterable[Digest]) -> str:
    """The other direction of `parse`."""
    return json.dumps({"version": VERSION, "chunks": [digest.hex() for digest in chunks]}, indent=0) + "\n"


@dataclass(frozen=True, slots=True)
class _Group:
    chunks: Sequence[tuple[Digest, int]]
    stored: bytes


def write_profile_pack(
    file: BinaryIO,
    chunks: Sequence[Digest],
    read: Callable[[Digest], bytes],
    *,
    level: int = LEVEL,
    progress: Callable[[int], None] = lambda done: None,
) -> WrittenPack:
    """Write a pack of `chunks` in groups, in that order; `read` gives each one's raw bytes.

    `progress` is told how many chunks are done. Memory holds a group for each core.
    """
    file.write(HEADER)
    whole = hashlib.sha256(HEADER)
    entries: list[PackEntry] = []
    offset = len(HEADER)
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores, "groups") as pool:
        groups = iter(_groups(chunks, read))
        pending = [pool.submit(_encode, group, level) for _, group in zip(range(cores), groups, strict=False)]
        while pending:
            done = pending.pop(0).result()
            following = next(groups, None)
            if following is not None:
                pending.append(pool.submit(_encode, following, level))
            file.write(done.stored)
            whole.update(done.stored)
            within = 0
            for digest, length in done.chunks:
                entries.append(PackEntry(digest, length, offset, len(done.stored), Codec.GROUP, within))
                within += length
            offset += len(done.stored)
            progress(len(entries))
    end, index_length = trailer(entries, offset)
    file.write(end)
    whole.update(end)
    place = PackPlace(Digest(whole.digest()), offset, index_length)
    return WrittenPack(place, offset + len(end), PackIndex.parse(end[:index_length], offset))


def _groups(chunks: Sequence[Digest], read: Callable[[Digest], bytes]) -> Iterable[list[bytes]]:
    limit, size = FIRST_GROUP, 0
    group: list[bytes] = []
    for digest in chunks:
        raw = read(digest)
        if group and size + len(raw) > limit:
            yield group
            group, size, limit = [], 0, min(2 * limit, LARGEST_GROUP)
        group.append(raw)
        size += len(raw)
    if group:
        yield group


def _encode(group: list[bytes], level: int) -> _Group:
    return _Group([(sha256(raw), len(raw)) for raw in group], encode_group(group, level))
