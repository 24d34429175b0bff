"""Packs that the destination holds already, so that their chunks need not be made and sent again.

They are found through images: the one that has the destination's tag now, the repository's most recent ones, and those that
the caller names. What a pack's index says is believed: if it were wrong, chunks would be unreadable, never wrong, and reading
a whole pack to check would cost what reuse is to save.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from snapshotter.build.digesttable import DigestTable
from snapshotter.build.documents import ImageManifest, is_image, parse_index, parse_manifest
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnsupportedError
from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK, MetadataLayer, PackPlace, parse
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.pack import PackEntry, PackIndex
from snapshotter.registry.base import MANIFEST_MAX, Descriptor, ImageStore
from snapshotter.registry.documents import is_index, parse_object

RECENT_TAGS = 3
"""How many of a repository's images are searched besides the tag's own."""

LISTED_TAGS = 8
"""Of how many tags, the last ones listed, the dates are compared to find these."""

PLATFORMS_MAX = 32

_EMPTY = sha256(b"")


@dataclass(frozen=True, slots=True)
class StoredPack:
    """A pack in a repository: its index's place, its size in bytes, its index, and the repository."""

    place: PackPlace
    size: int
    index: PackIndex
    store: ImageStore


class KnownPacks:
    """Packs by number, and which of them has a chunk."""

    def __init__(self) -> None:
        """None at first."""
        self.packs: list[StoredPack] = []
        self._chunks = DigestTable()
        self._numbers = array("I")  # of the pack that has the chunk of that number
        self._digests: set[Digest] = set()

    def add(self, pack: StoredPack) -> int | None:
        """Add a pack; of packs with the same chunk, the first one added is used. Its number, None if it is known."""
        if pack.place.pack in self._digests:
            return None
        self._digests.add(pack.place.pack)
        number = len(self.packs)
        self.packs.append(pack)
        for digest in pack.index.digests:
            if self._chunks.add(digest):
                self._numbers.append(number)
        return number

    def digests(self) -> Sequence[Digest]:
        """The chunks of all packs, each once."""
        return self._chunks

    def knows(self, pack: Digest) -> bool:
        """Whether this pack has been added."""
        return pack in self._digests

    def find(self, digest: Digest) -> tuple[int, PackEntry] | None:
        """The number of the pack that has the chunk, and where it is in it."""
        chunk = self._chunks.find(digest) if self.packs else None
        if chunk is None:
            return None
        number = self._numbers[chunk]
        entry = self.packs[number].index.find(digest)
        return None if entry is None else (number, entry)


def gather(
    store: ImageStore,
    tag: str | None,
    named: Sequence[tuple[ImageStore, str]] = (),
    note: Callable[[str], None] = lambda text: None,
) -> KnownPacks:
    """The packs of the images that can be reused for an image to be pushed to `store` as `tag`.

    `named` are images that the caller asked for (they may be in other repositories); `note` is told what was left out.

    Raises:
        NotFoundError, CorruptError, InvalidError: one of `named` does not exist or is no image.
        UnavailableError: a repository cannot be asked now.
    """
    known = KnownPacks()
    seen: set[Digest] = set()
    for number, (place, reference) in enumerate([*named, *_own(store, tag, note)]):
        try:
            manifests = list(_manifests(place, reference))
        except (NotFoundError, CorruptError, InvalidError, UnsupportedError) as error:
            if number < len(named):
                raise
            note(f"not reused: {error}")
            continue
        for digest, manifest in manifests:
            if digest not in seen:
                seen.add(digest)
                _add_packs(known, place, manifest, note)
    return known


def _own(store: ImageStore, tag: str | None, note: Callable[[str], None]) -> Iterator[tuple[ImageStore, str]]:
    """The destination's own images, the most likely one first."""
    try:
        tags = list(store.tags())
    except (NotFoundError, InvalidError, CorruptError, UnsupportedError) as error:
        if isinstance(error, InvalidError):
            # Some registries refuse lists alone. One that refuses everything (no login) is to say so before the work is done.
            store.has_blob(_EMPTY)
        note(f"the tags of {store.name} cannot be listed: {error}")
        tags = [tag] if tag is not None else []
    if tag is not None and tag in tags:
        yield store, tag
    others = [listed for listed in tags if listed != tag][-LISTED_TAGS:]
    dated: list[tuple[str, int, str]] = []
    for number, listed in enumerate(others):
        try:
            _, manifest = next(_manifests(store, listed), (None, None))
            if manifest is not None and any(layer.media_type == MEDIA_TYPE_PACK for layer in manifest.layers):
                dated.append((_created(store, manifest), number, listed))
        except (NotFoundError, CorruptError, InvalidError, UnsupportedError):
            continue
    for _, _, listed in sorted(dated, reverse=True)[:RECENT_TAGS]:
        yield store, listed


def _created(store: ImageStore, manifest: ImageManifest) -> str:
    """When the image says it was made (RFC 3339, so texts compare as times do); empty if it does not say."""
    created = read_json(store, manifest.config, "an image's configuration").get("created")
    return created if isinstance(created, str) else ""


def read_json(store: ImageStore, blob: Descriptor, what: str) -> dict[str, Any]:
    """The JSON object in a small blob.

    Raises:
        CorruptError: it is too large or none; and what `store` raises.
    """
    if blob.size > MANIFEST_MAX:
        raise CorruptError(f"{what} has {blob.size} bytes; at most {MANIFEST_MAX} are read")
    with store.open_blob(blob) as stream:
        return parse_object(stream.read(), what)


def _manifests(store: ImageStore, reference: str) -> Iterator[tuple[Digest, ImageManifest]]:
    descriptor, data = store.manifest(reference)
    what = f"{store.name}:{reference}"
    if not is_index(descriptor.media_type):
        yield descriptor.digest, parse_manifest(data, what)
        return
    entries, _ = parse_index(data, what)
    for entry in islice(filter(is_image, entries), PLATFORMS_MAX):
        try:
            found, content = store.manifest(to_text(entry.digest))
        except NotFoundError:
            continue  # an index may list platforms that were not copied
        if not is_index(found.media_type):
            yield found.digest, parse_manifest(content, what)


def _add_packs(known: KnownPacks, store: ImageStore, manifest: ImageManifest, note: Callable[[str], None]) -> None:
    sizes = {layer.digest: layer.size for layer in manifest.layers if layer.media_type == MEDIA_TYPE_PACK}
    for layer in manifest.layers:
        if layer.media_type != MEDIA_TYPE_METADATA:
            continue
        try:
            described = parse(layer.annotations)
        except InvalidError as error:
            note(f"not reused: {store.name}: {error}")
            continue
        for place in described.packs if isinstance(described, MetadataLayer) else ():
            size = sizes.get(place.pack)
            if size is None or known.knows(place.pack):
                continue
            try:
                stored = store.read_range(place.pack, place.index_offset, place.index_length)
                index = PackIndex.parse(stored, place.index_offset)
                if not index.has_groups:  # a start profile: its chunks are in other packs too, and cost less there
                    known.add(StoredPack(place, size, index, store))
            except (NotFoundError, CorruptError) as error:
                note(f"not reused: pack {to_text(place.pack)} of {store.name}: {error}")
