"""What an image holds, in numbers: its layers, files, chunks, what they share, its packs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from snapshotter.build.contents import ChunkFacts, ImageContent, chunk_facts
from snapshotter.format.digest import Digest
from snapshotter.format.model import Kind


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """A metadata layer. All sizes are bytes.

    `files`, `directories`, `links` (symlinks), `others` and `whiteouts` count inodes, `file_bytes` what the files hold.
    `chunks` are the distinct chunks that they name and `chunk_bytes` those chunks' raw bytes; of these, `shared_bytes` are in
    earlier layers too. `new_stored` is what the chunks that are not take where they are stored. `message` and `stored` are the
    metadata itself, raw and as stored.
    """

    digest: Digest
    diff_id: Digest
    message: int
    stored: int
    layers: int
    files: int
    directories: int
    links: int
    others: int
    whiteouts: int
    file_bytes: int
    chunks: int
    chunk_bytes: int
    shared_bytes: int
    new_stored: int


@dataclass(frozen=True, slots=True)
class PackFigures:
    """A pack: its size, its chunks, and those of them that the image needs, with the bytes that they take in it."""

    digest: Digest
    size: int
    chunks: int
    needed_chunks: int
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class ImageFigures:
    """An image. `file_bytes` counts every file, `unique_bytes` every distinct chunk once, `stored_bytes` as it is stored.

    `download`: what the manifest lists, configuration included: the size of the image for whoever pulls all of it.
    """

    name: str
    digest: Digest
    form: str
    platform: str
    created: str
    layers: list[LayerFigures]
    packs: list[PackFigures]
    ordinary_layers: int
    inodes: int
    file_bytes: int
    chunk_references: int
    chunks: int
    unique_bytes: int
    stored_bytes: int
    missing_chunks: int
    download: int


def inspect(content: ImageContent) -> ImageFigures:
    """Count what the open image `content` holds.

    Raises what `contents.chunk_facts` raises.
    """
    facts = chunk_facts(content)
    seen: set[Digest] = set()
    layers = []
    references = 0
    for layer in content.layers:
        counts = dict.fromkeys(Kind, 0)
        named: dict[Digest, None] = {}
        file_bytes = 0
        for inode in layer.rootfs.inodes():
            counts[inode.kind] += 1
            file_bytes += inode.size if inode.kind is Kind.FILE else 0
            references += len(inode.chunks)
            named.update(dict.fromkeys(chunk.digest for chunk in inode.chunks))
        known = [facts[digest] for digest in named if digest in facts]
        new = {fact.digest: fact for fact in known if fact.digest not in seen}
        raw = {fact.digest: fact.raw for fact in known}
        others = sum(counts[kind] for kind in (Kind.FIFO, Kind.CHR, Kind.BLK, Kind.SOCK, Kind.UNKNOWN))
        layers.append(
            LayerFigures(
                digest=layer.descriptor.digest,
                diff_id=layer.message.digest() if layer.described is None else layer.described.diff_id,
                message=layer.message.size,
                stored=layer.descriptor.size,
                layers=layer.rootfs.layer_count,
                files=counts[Kind.FILE],
                directories=counts[Kind.DIR],
                links=counts[Kind.LNK],
                others=others,
                whiteouts=counts[Kind.WHT],
                file_bytes=file_bytes,
                chunks=len(named),
                chunk_bytes=sum(raw.values()),
                shared_bytes=sum(raw.values()) - sum(fact.raw for fact in new.values()),
                new_stored=sum(fact.stored for fact in new.values()),
            )
        )
        seen |= raw.keys()
    missing = {chunk.digest for layer in content.layers for i in layer.rootfs.inodes() for chunk in i.chunks} - facts.keys()
    manifest = content.image.manifest
    config = content.config()
    said = content.image.descriptor.platform or {}
    unique = {fact.digest: fact for fact in facts.values()}
    return ImageFigures(
        name=content.name,
        digest=content.image.descriptor.digest,
        form="local (upstream's layout)" if content.image.local else "metadata layers and packs",
        platform="/".join(str(v) for k in ("os", "architecture", "variant") if (v := config.get(k) or said.get(k))),
        created=str(config.get("created") or ""),
        layers=layers,
        packs=_packs(content, facts),
        ordinary_layers=len(content.ordinary),
        inodes=sum(layer.files + layer.directories + layer.links + layer.others for layer in layers),
        file_bytes=sum(layer.file_bytes for layer in layers),
        chunk_references=references,
        chunks=len(unique),
        unique_bytes=sum(fact.raw for fact in unique.values()),
        stored_bytes=sum(fact.stored for fact in unique.values()),
        missing_chunks=len(missing),
        download=manifest.config.size + sum({layer.digest: layer.size for layer in manifest.layers}.values()),
    )


def _packs(content: ImageContent, facts: Mapping[Digest, ChunkFacts]) -> list[PackFigures]:
    figures = []
    for digest, (_, index) in content.packs.items():
        needed = [fact for fact in facts.values() if fact.home == digest]
        size = content.sizes.get(digest, 0)
        figures.append(PackFigures(digest, size, len(index), len(needed), sum(fact.stored for fact in needed)))
    return figures
