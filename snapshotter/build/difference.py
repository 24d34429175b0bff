"""Which bytes a node that has one image must fetch for another one, and for which files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from snapshotter.build.contents import ChunkFacts, ImageContent, chunk_facts, walk
from snapshotter.format.digest import Digest
from snapshotter.format.rootfs import Rootfs


@dataclass(slots=True)
class FileDifference:
    """A file that the node does not have all of. `size`: its bytes; `new`: those in chunks that are to be fetched;
    `fetch`: its share of these chunks as they are stored. A chunk of several files counts where it is needed first.
    """

    path: str
    size: int
    new: int = 0
    fetch: int = 0


@dataclass(slots=True)
class Difference:
    """All bytes that are fetched, by what they are: the manifest and configuration, metadata layers, indexes of packs, chunks.

    `chunks` counts the chunks, `raw_bytes` them uncompressed. `have_bytes`: raw bytes of chunks that both images need.
    """

    documents: int = 0
    metadata: int = 0
    indexes: int = 0
    chunk_bytes: int = 0
    chunks: int = 0
    raw_bytes: int = 0
    have_bytes: int = 0
    ordinary: int = 0
    files: list[FileDifference] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All of it, once every file has been read."""
        return self.documents + self.metadata + self.indexes + self.chunk_bytes + self.ordinary


def difference(old: ImageContent, new: ImageContent) -> Difference:
    """What a node that has all of `old` fetches to have all of `new`.

    Chunks are compared by their raw bytes, so that how and where an image stores them makes no difference.

    Raises what `contents.chunk_facts` raises.
    """
    have = {fact.digest for fact in chunk_facts(old).values()}
    facts = chunk_facts(new)
    result = Difference()
    if old.image.descriptor.digest != new.image.descriptor.digest:
        result.documents = len(new.image.data)
        if old.image.manifest.config.digest != new.image.manifest.config.digest:
            result.documents += new.image.manifest.config.size
    known = {layer.digest for layer in old.image.manifest.layers}
    result.metadata = sum(layer.descriptor.size for layer in new.layers if layer.descriptor.digest not in known)
    result.ordinary = sum(layer.size for layer in new.ordinary if layer.digest not in known)
    result.indexes = sum(place.index_length for digest, (place, _) in new.packs.items() if digest not in old.packs)
    distinct = {fact.digest: fact for fact in facts.values()}
    missing = {digest: fact for digest, fact in distinct.items() if digest not in have}
    result.chunks = len(missing)
    result.chunk_bytes = sum(fact.stored for fact in missing.values())
    result.raw_bytes = sum(fact.raw for fact in missing.values())
    result.have_bytes = sum(fact.raw for digest, fact in distinct.items() if digest in have)
    counted: dict[Digest, int] = {}
    for layer in reversed(new.layers):
        result.files += _files(layer.rootfs, facts, missing, counted)
    result.files.sort(key=lambda file: (-file.fetch, -file.new, file.path))
    return result


def _files(
    rootfs: Rootfs, facts: Mapping[Digest, ChunkFacts], missing: Mapping[Digest, ChunkFacts], counted: dict[Digest, int]
) -> Iterator[FileDifference]:
    """The files that need one of `missing`. `counted`: the raw bytes of each chunk whose share has been given to a file."""
    for path, inode in walk(rootfs):
        found: FileDifference | None = None
        for chunk in inode.chunks:
            fact = facts.get(chunk.digest)
            if fact is None or fact.digest not in missing:
                continue
            if found is None:
                found = FileDifference("/" + path.decode(errors="backslashreplace"), inode.size)
            found.new += chunk.length
            before = counted.get(fact.digest, 0)
            after = min(max(before, chunk.offset + chunk.length), fact.raw)
            # Rounded so that the shares of a chunk add up to it.
            found.fetch += fact.stored * after // fact.raw - fact.stored * before // fact.raw
            counted[fact.digest] = after
        if found is not None:
            yield found
