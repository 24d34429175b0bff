"""Start profiles as files, as packs, and in images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapshotter.build.image import Options, convert
from snapshotter.build.optimize import find_image, optimize
from snapshotter.build.profile import FIRST_GROUP, parse, render, write_profile_pack
from snapshotter.build.reuse import gather
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.prefetch import Start
from snapshotter.errors import InvalidError
from snapshotter.format import annotations
from snapshotter.format.annotations import MEDIA_TYPE_PACK, MetadataLayer, PackPlace
from snapshotter.format.compression import Codec, decode_group
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.pack import PackIndex
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.platforms import Platform
from tests.support.builds import SMALL
from tests.support.chunks import some_chunks
from tests.support.images import Layer, write_image

HERE = Platform.of_this_machine()


def test_a_profile_is_the_same_after_a_file() -> None:
    chunks = [sha256(raw) for raw in some_chunks(5)]
    assert parse(render([*chunks, chunks[0]]), "it") == chunks


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2, "chunks": []}', '{"version": 1, "chunks": ["ab"]}', '{"version": 1, "chunks": 7}', "\0"],
)
def test_what_is_no_profile_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidError, match="some-file"):
        parse(text, "some-file")


def test_a_profile_pack_has_every_chunk_in_reading_order() -> None:
    chunks = some_chunks(40, size=FIRST_GROUP // 8)
    raw = {sha256(chunk): chunk for chunk in chunks}
    file = io.BytesIO()
    pack = write_profile_pack(file, list(raw), raw.__getitem__, level=1)
    blob = file.getvalue()
    assert sha256(blob) == pack.place.pack
    assert len(blob) == pack.size
    entries = sorted(pack.index, key=lambda entry: (entry.offset, entry.within))
    assert [entry.digest for entry in entries] == list(raw)
    assert len({entry.offset for entry in entries}) > 2, "the first group must not wait for all"
    for entry in entries:
        assert entry.codec is Codec.GROUP
        group = decode_group(blob[entry.offset : entry.offset + entry.stored_length])
        assert group[entry.within : entry.within + entry.raw_length] == raw[entry.digest]


@dataclass(frozen=True)
class Converted:
    """A converted image in a layout, its metadata layers, and all of its chunks."""

    store: LayoutStore
    layers: list[MetadataLayer]
    chunks: list[Digest]


def metadata_layers(store: LayoutStore, tag: str) -> list[MetadataLayer]:
    said = [annotations.parse(layer.annotations) for layer in find_image(store, tag, HERE).manifest.layers]
    return [each for each in said if isinstance(each, MetadataLayer)]


def index_at(store: LayoutStore, place: PackPlace) -> PackIndex:
    return PackIndex.parse(store.read_range(place.pack, place.index_offset, place.index_length), place.index_offset)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Converted]:
    """Two layers with a few dozen chunks each."""
    layers = []
    for number in range(2):
        layer = Layer()
        for name, raw in enumerate(some_chunks(20, seed=number, size=20_000)):
            layer.file(b"data/%d/%d" % (number, name), raw)
        layers.append(layer.tar())
    source = write_image(tmp_path / "source", "it", layers)
    store = LayoutStore(tmp_path / "converted")
    convert(LayoutStore(source.layout), "it", store, "it", options=Options(cutting=SMALL))
    found = metadata_layers(store, "it")
    chunks = [entry.digest for place in found[0].packs + found[1].packs for entry in index_at(store, place)]
    yield Converted(store, found, chunks)
    store.close()


def test_an_optimized_image_keeps_its_layers_and_gets_a_pack(image: Converted, tmp_path: Path) -> None:
    profile = image.chunks[5:25:2]
    there = LayoutStore(tmp_path / "there")
    done = optimize(image.store, "it", there, "fast", [*profile, sha256(b"another image's")], platform=HERE)
    assert (done.chunks, done.unknown) == (len(profile), 1)
    after = metadata_layers(there, "fast")
    assert [layer.diff_id for layer in after] == [layer.diff_id for layer in image.layers]
    assert [layer.packs[:-1] for layer in after] == [layer.packs for layer in image.layers]
    (place,) = {layer.packs[-1] for layer in after}
    assert {layer.profile for layer in after} == {place.pack}
    entries = sorted(index_at(there, place), key=lambda entry: (entry.offset, entry.within))
    assert [entry.digest for entry in entries] == profile
    found = find_image(there, "fast", HERE)
    assert len(found.config["rootfs"]["diff_ids"]) == len(found.manifest.layers)
    packs = [layer.digest for layer in found.manifest.layers if layer.media_type == MEDIA_TYPE_PACK]
    assert packs[-1] == place.pack, "behind all others, so that their chains stay"
    assert all(there.has_blob(layer.digest) for layer in found.manifest.layers)


def test_a_second_profile_takes_the_place_of_the_first(image: Converted) -> None:
    optimize(image.store, "it", image.store, "one", image.chunks[:4], platform=HERE)
    optimize(image.store, "one", image.store, "two", image.chunks[4:9], platform=HERE)
    one, two = metadata_layers(image.store, "one"), metadata_layers(image.store, "two")
    assert [len(layer.packs) for layer in one] == [len(layer.packs) for layer in two]
    assert one[0].profile != two[0].profile


def test_a_profile_of_another_image_is_refused(image: Converted) -> None:
    with pytest.raises(InvalidError, match="none of the 1 chunks of the profile"):
        optimize(image.store, "it", image.store, "fast", [sha256(b"?")], platform=HERE)


def test_a_profile_pack_is_not_reused_by_the_next_version(image: Converted) -> None:
    optimize(image.store, "it", image.store, "fast", image.chunks[:9], platform=HERE)
    known = gather(image.store, "fast")
    assert {pack.place for pack in known.packs} == {place for layer in image.layers for place in layer.packs}


def test_a_node_fetches_the_profile_in_a_few_requests_and_reads_from_it(image: Converted, tmp_path: Path) -> None:
    profile = image.chunks[::2]
    optimize(image.store, "it", image.store, "fast", profile, platform=HERE)
    layer = metadata_layers(image.store, "fast")[0]
    asked: list[Digest] = []

    class Reader:
        name = "registry.example/app"

        def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
            asked.append(digest)
            return image.store.read_range(digest, offset, length)

    node = Node(tmp_path / "node")
    try:
        node.bring(layer.packs, [Reader()], Start("layer", layer.profile))
        node.settle()
        assert set(asked) == {layer.profile}
        assert len(asked) <= 3, "the index, and the chunks in large ranges"
        assert all(node.cache.has(digest) for digest in profile)
        others = set(image.chunks) - set(profile)
        assert not any(node.cache.has(digest) for digest in others)
    finally:
        node.close()
