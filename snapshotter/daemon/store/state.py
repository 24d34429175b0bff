"""What the layer store remembers: the layers of every reference that was asked for, and how many users each has.

::

    <root>/references/<number>    one reference, as JSON; the number is part of inode numbers and never changes

containers/storage keeps paths into the store in its own files, so they have to resolve after a restart, and without the
registry. What nobody uses is forgotten, the reference asked for longest ago first, when there are too many.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapshotter.chunkstore.publish import publish
from snapshotter.errors import InvalidError
from snapshotter.format.annotations import MetadataLayer, PackLayer, PackPlace, parse
from snapshotter.format.digest import Digest, from_text, to_text

REFERENCES_MAX = 1024
"""References that are remembered though nobody uses them. One takes about a KiB for every layer, in memory and on disk."""
LAYERS_MAX = 4096
"""Layers of one reference that are remembered at once: those of its image, and what is used of its earlier ones."""

TIMES_MAX = 16
"""Occurrences of a layer in one image that are told apart: each is a mount of its own."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer as the manifest describes it: the digest and size of its blob, and what its annotations say."""

    blob: Digest
    size: int
    layer: MetadataLayer | PackLayer


@dataclass(frozen=True, slots=True)
class Remembered:
    """A reference. `layers` by slot, a number that is never another layer's; `users` how many each slot has, if any; `times`
    how often a slot's layer occurs in one image, where that is more than once."""

    number: int
    reference: str
    layers: Mapping[int, StoredLayer]
    users: Mapping[int, int] = field(default_factory=dict)
    times: Mapping[int, int] = field(default_factory=dict)

    def updated(self, current: Sequence[StoredLayer]) -> Remembered:
        """This reference after its tag was asked for again: `current`, and what is used of the layers it had before."""
        kept = {slot: layer for slot, layer in self.layers.items() if slot in self.users or layer in current}
        slot = max(self.layers, default=0)
        for layer in current:
            if layer not in kept.values():
                slot += 1
                kept[slot] = layer
        times = {
            slot: often
            for slot, layer in kept.items()
            if (often := max(self.times.get(slot, 1), min(current.count(layer), TIMES_MAX))) > 1
        }
        return dataclasses.replace(self, layers=kept, times=times)

    def with_user(self, slot: int, change: int) -> Remembered:
        """With `change` users more of the layer in `slot`; never fewer than none.

        containers/storage counts a layer while it pulls an image, and another one for each layer that it makes of it. Of the
        former, of a layer that occurs n times, containers/image gives back n or only 1 (it has one place for each digest): so
        up to n - 1 of at least n users are none, and more with every pull. What is counted too little costs the registry being
        asked once more, what is counted too much a mount for good.
        """
        count, times = self.users.get(slot, 0) + change, self.times.get(slot, 1)
        if times > 1:
            count = min(count, 2 * times)
            if change < 0 and count < times:
                count = 0
        users = {other: number for other, number in self.users.items() if other != slot}
        return dataclasses.replace(self, users={**users, slot: count} if count > 0 else users)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        layers = [
            {"slot": slot, "blob": to_text(layer.blob), "size": layer.size, "annotations": layer.layer.annotations()}
            for slot, layer in self.layers.items()
        ]
        counts = {"users": self.users, "times": self.times}
        numbers = {what: {str(slot): n for slot, n in counted.items()} for what, counted in counts.items()}
        return {"reference": self.reference, "layers": layers, **numbers}

    @classmethod
    def from_json(cls, number: int, value: Any) -> Remembered:
        """From what `to_json` made.

        Raises:
            InvalidError: it is something else.
        """
        try:
            layers = {}
            for entry in value["layers"]:
                described = parse(entry["annotations"])
                if described is None:
                    raise InvalidError("a layer without annotations")
                layers[int(entry["slot"])] = StoredLayer(from_text(entry["blob"]), int(entry["size"]), described)
            counted = [{int(slot): int(n) for slot, n in value[what].items()} for what in ("users", "times")]
            users, times = ({slot: n for slot, n in counts.items() if slot in layers} for counts in counted)
            return cls(number, str(value["reference"]), layers, users, times)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidError(f"not a remembered reference: {error!r}") from None


class References:
    """The references below `root`, all of them in memory. Safe for use by many threads."""

    def __init__(self, root: Path, limit: int = REFERENCES_MAX) -> None:
        """Read what is there. A file that cannot be understood is left out, with a line in the log."""
        self.root = root
        self._limit = limit
        self._lock = threading.Lock()
        self._by_name: dict[str, Remembered] = {}  # the one asked for last stands last
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for remembered in sorted(self._stored(), key=lambda remembered: remembered.number):
            self._by_name[remembered.reference] = remembered
        self._by_number = {remembered.number: remembered for remembered in self._by_name.values()}

    def get(self, reference: str) -> Remembered | None:
        """What is remembered of `reference`, which counts as asked for now."""
        with self._lock:
            remembered = self._by_name.pop(reference, None)
            if remembered is not None:
                self._by_name[reference] = remembered
            return remembered

    def by_number(self, number: int) -> Remembered | None:
        """The reference with this number."""
        return self._by_number.get(number)

    def all(self) -> Sequence[Remembered]:
        """All references."""
        with self._lock:
            return list(self._by_name.values())

    def learn(self, reference: str, layers: Sequence[StoredLayer]) -> tuple[Remembered, Sequence[Remembered]]:
        """Remember the current layers of `reference`; what is remembered of it now, and what was forgotten for it.

        Raises:
            InvalidError: it had too many layers over time that are all in use.
            OSError: it cannot be written.
        """
        with self._lock:
            known = self._by_name.get(reference)
            if known is None:
                known = Remembered(1 + max(self._by_number, default=0), reference, {})
            updated = known.updated(layers)
            if len(updated.layers) > LAYERS_MAX:
                raise InvalidError(
                    f"more than {LAYERS_MAX} layers of {reference} are in use: remove its old containers and images"
                )
            if updated != known or reference not in self._by_name:
                self._put(updated)
            return updated, self._forget_some()

    def count(self, number: int, slot: int, change: int) -> Remembered | None:
        """Note `change` users more of a layer; what is remembered then, None if there is no such reference or layer.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            known = self._by_number.get(number)
            if known is None or slot not in known.layers:
                return None
            updated = known.with_user(slot, change)
            if updated != known:
                self._put(updated)
            return updated

    def used(self) -> Sequence[tuple[MetadataLayer, str]]:
        """Every metadata layer that has a user, with the reference that names it."""
        return [
            (layer.layer, remembered.reference)
            for remembered in self.all()
            for slot, layer in remembered.layers.items()
            if slot in remembered.users and isinstance(layer.layer, MetadataLayer)
        ]

    def repeated(self) -> Sequence[tuple[MetadataLayer, int]]:
        """Every metadata layer that has a user and occurs several times in one image, and how often."""
        return [
            (layer, times)
            for remembered in self.all()
            for slot, times in remembered.times.items()
            if slot in remembered.users and isinstance(layer := remembered.layers[slot].layer, MetadataLayer)
        ]

    def packs(self) -> Collection[PackPlace]:
        """Every pack in which chunks of a remembered layer are."""
        layers = [layer.layer for remembered in self.all() for layer in remembered.layers.values()]
        return {place for layer in layers if isinstance(layer, MetadataLayer) for place in layer.packs}

    def uses(self, diff_id: Digest) -> bool:
        """Whether any reference has a user of the metadata layer `diff_id`."""
        return any(layer.diff_id == diff_id for layer, _ in self.used())

    def _put(self, remembered: Remembered) -> None:
        publish(self.root / str(remembered.number), json.dumps(remembered.to_json()).encode())
        self._by_name.pop(remembered.reference, None)
        self._by_name[remembered.reference] = remembered
        self._by_number[remembered.number] = remembered

    def _forget_some(self) -> Sequence[Remembered]:
        idle = [remembered for remembered in self._by_name.values() if not remembered.users]
        forgotten = idle[: max(0, len(idle) - self._limit)]
        for remembered in forgotten:
            with contextlib.suppress(FileNotFoundError):
                (self.root / str(remembered.number)).unlink()
            del self._by_name[remembered.reference]
            del self._by_number[remembered.number]
        return forgotten

    def _stored(self) -> Iterator[Remembered]:
        for path in self.root.iterdir():
            if not path.name.isdigit():
                continue
            try:
                yield Remembered.from_json(int(path.name), json.loads(path.read_bytes()))
            except (InvalidError, ValueError, OSError) as error:
                _log.error("%s is left out: %s", path, error)
