"""The additional layer store's directory tree, free of FUSE: what every path is, and what creating and removing means.

Inode numbers say what they are: the reference's number, the layer's slot, the kind of node. So nothing has to be kept about
what the kernel looked up, and a number means the same after a restart.

Only root may look: a look-up can be a request to a registry, with the credentials that the daemon has.

What a path names is hostile: it is whatever somebody on this machine looked up. A reference is asked for in its registry only
if it is one, once at a time, and not again for `FORGET_AFTER` seconds if it turned out to be no PuzzleFS image; so however much
is looked up, little is kept or asked.
"""

from __future__ import annotations

import base64
import binascii
import errno
import logging
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from snapshotter.daemon.store.info import info, keys
from snapshotter.daemon.store.state import References, Remembered, StoredLayer
from snapshotter.daemon.store.turns import Turns
from snapshotter.errors import InvalidError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.annotations import MetadataLayer, PackLayer
from snapshotter.format.digest import Digest, from_text, to_text
from snapshotter.mount.virtual import Node
from snapshotter.registry import reference as references
from snapshotter.registry.reference import Reference

ROOT = 1
FORGET_AFTER = 10.0
"""Seconds for which a reference is believed to be no PuzzleFS image: podman asks for each of an ordinary image's layers."""
RECHECK_AFTER = 1.0
"""Seconds after which a reference may be asked for again if somebody wants a layer of it that it did not have."""
_LOCKS = 64
UNKNOWN_MAX = 1024
"""References that are known to be no PuzzleFS image at one time."""

_SLOT_BITS = 32
_KIND_BITS = 4
_REFERENCE, _BY_BLOB, _BY_TOC, _DIFF, _INFO, _BLOB = range(6)
_KEY_KINDS = (_BY_BLOB, _BY_TOC)
_NAMES = {b"diff": _DIFF, b"info": _INFO, b"blob": _BLOB}
_MODES = {_DIFF: stat.S_IFLNK | 0o777, _INFO: stat.S_IFREG | 0o400, _BLOB: stat.S_IFREG | 0o400}

_log = logging.getLogger(__name__)


class StoreLayers(Protocol):
    """Mounted layers (`daemon.layers.Layers`, with mounts of their own beside the snapshotter's)."""

    def ensure(self, layer: MetadataLayer, image: str | None, namespace: str) -> None:
        """See `snapshots.lazy.LazyLayers`."""
        ...

    def ensure_copies(self, diff_id: Digest, count: int) -> None:
        """See `daemon.layers.Layers`."""
        ...

    def mountpoint(self, diff_id: Digest, copy: int = 0) -> Path:
        """See `daemon.layers.Layers`."""
        ...

    def release(self, diff_id: Digest) -> None:
        """See `snapshots.lazy.LazyLayers`."""
        ...

    def content_size(self, diff_id: Digest) -> int:
        """Bytes of the layer's files, whether they are on this node or not."""
        ...


class Images(Protocol):
    """Registries, as the store needs them."""

    def layers(self, reference: Reference) -> Sequence[StoredLayer]:
        """See `images.layers_of`."""
        ...

    def read_blob(self, reference: Reference, digest: Digest, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of one of the image's blobs, unverified."""
        ...


class _Place(NamedTuple):
    """An inode number taken apart."""

    number: int
    slot: int
    kind: int

    @property
    def ino(self) -> int:
        return (self.number << _SLOT_BITS | self.slot) << _KIND_BITS | self.kind


def _place(ino: int) -> _Place:
    rest, kind = divmod(ino, 1 << _KIND_BITS)
    number, slot = divmod(rest, 1 << _SLOT_BITS)
    return _Place(number, slot, kind)


class StoreTree:
    """`mount.virtual.VirtualTree` over `known` references, `images` in registries and mounted `layers`."""

    def __init__(
        self,
        known: References,
        images: Images,
        layers: StoreLayers,
        nothing: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Below `nothing` every pack has an empty directory of its own, since overlayfs takes no directory twice."""
        self._known = known
        self._images = images
        self._layers = layers
        self._nothing = nothing
        self._clock = clock
        self._guard = threading.Lock()
        self._asking = [threading.Lock() for _ in range(_LOCKS)]
        self._asked: OrderedDict[str, float] = OrderedDict()
        self._turns = Turns()
        self._sizes: dict[Digest, int] = {}
        self._failed: dict[Digest, PuzzlefsError] = {}
        self._counting = threading.Lock()

    @property
    def failed(self) -> Mapping[Digest, PuzzlefsError]:
        """The layers that somebody uses and that are not mounted, and why."""
        return dict(self._failed)

    def note_failed(self, diff_id: Digest, error: PuzzlefsError) -> None:
        """A layer could not be mounted; it is tried again when somebody looks it up."""
        self._failed[diff_id] = error

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """See `VirtualTree`."""
        if parent == ROOT:
            reference = reference_of(name)
            remembered = None if reference is None else self._remembered(reference, None)
            return None if remembered is None else _directory(_Place(remembered.number, 0, _REFERENCE))
        place = _place(parent)
        if place.kind == _REFERENCE:
            return self._key(self._reference(place), name)
        if place.kind in _KEY_KINDS and name in _NAMES:
            return self._file(place._replace(kind=_NAMES[name]), present=True)
        return None

    def node(self, ino: int) -> Node:
        """See `VirtualTree`."""
        if ino == ROOT:
            return Node(ROOT, stat.S_IFDIR | 0o500)
        place = _place(ino)
        if place.kind == _REFERENCE:
            self._reference(place)
            return _directory(place)
        if place.kind in _KEY_KINDS:
            self._layer(place)
            return _directory(place)
        return self._file(place, present=False)

    def names(self, ino: int) -> Sequence[tuple[bytes, Node]]:
        """See `VirtualTree`. The root lists what is remembered; anything else can be asked for by its name."""
        if ino == ROOT:
            return [
                (name_of(remembered.reference), _directory(_Place(remembered.number, 0, _REFERENCE)))
                for remembered in self._known.all()
            ]
        place = _place(ino)
        if place.kind == _REFERENCE:
            listed: dict[bytes, Node] = {}
            for slot, layer in self._reference(place).layers.items():
                for kind, key in zip(_KEY_KINDS, keys(layer), strict=True):
                    listed.setdefault(to_text(key).encode(), _directory(place._replace(slot=slot, kind=kind)))
            return list(listed.items())
        if place.kind in _KEY_KINDS:
            self._layer(place)
            return [(name, Node(place._replace(kind=kind).ino, _MODES[kind])) for name, kind in _NAMES.items()]
        raise NotFoundError(f"inode {ino} is no directory")

    def readlink(self, ino: int, caller: int) -> bytes:
        """See `VirtualTree`: ``diff`` leads to the layer's mount, so that nothing that a container reads goes through here.

        A layer that occurs n times in an image has one path and n mounts. containers/storage names that path n times in one
        mount(2), in which one thread follows all of them: so each thread is shown one mount after the other.

        The kernel may follow a link that it looked up before a restart, since when the layer may not be mounted any more:
        whoever was led to the empty directory then would take it for the layer.
        """
        place = _place(ino)
        if place.kind != _DIFF:
            raise NotFoundError(f"inode {ino} is no symlink")
        layer, remembered = self._layer(place), self._reference(place)
        times = remembered.times.get(place.slot, 1)
        self._ensure(remembered.reference, layer, times)
        return self._target(layer, self._turns.take(ino, caller) % times if times > 1 else 0)

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """See `VirtualTree`."""
        place = _place(ino)
        layer = self._layer(place)
        if place.kind == _INFO:
            return self._info(layer)[offset : offset + size]
        if place.kind != _BLOB:
            raise NotFoundError(f"inode {ino} is no file")
        length = max(0, min(size, layer.size - offset))
        if not length:
            return b""
        reference = self._reference(place).reference
        return self._images.read_blob(references.parse(reference), layer.blob, offset, length)

    def create(self, parent: int, name: bytes) -> int:
        """See `VirtualTree`: ``use`` below a key is one user more."""
        place = _place(parent)
        if parent == ROOT or place.kind not in _KEY_KINDS or name != b"use":
            return errno.EROFS
        self._count(place, 1)
        return errno.ENOENT

    def rmdir(self, parent: int, name: bytes) -> int:
        """See `VirtualTree`: removing a key is one user less; a layer without users is unmounted."""
        place = _place(parent)
        if parent == ROOT or place.kind != _REFERENCE:
            return errno.EROFS
        slot = _slot_of(self._reference(place), name)
        if slot is not None:
            self._count(place._replace(slot=slot[0]), -1)
        return errno.ENOENT

    def _key(self, remembered: Remembered, name: bytes) -> Node | None:
        found = _slot_of(remembered, name)
        if found is None:
            key = _digest(name)
            again = None if key is None else self._remembered(references.parse(remembered.reference), name)
            found = None if again is None else _slot_of(again, name)
        return None if found is None else _directory(_Place(remembered.number, *found))

    def _remembered(self, reference: Reference, wanted: bytes | None) -> Remembered | None:
        """What is known of `reference`, its registry asked where nothing is, or nothing of the key `wanted`."""
        text = reference.canonical
        with self._asking[hash(text) % _LOCKS]:
            known = self._known.get(text)
            if known is not None and (wanted is None or _slot_of(known, wanted) is not None):
                return known
            lately = self._asked_within(text, FORGET_AFTER if known is None else RECHECK_AFTER)
            return known if lately else self._ask(reference, known)

    def _ask(self, reference: Reference, known: Remembered | None) -> Remembered | None:
        text = reference.canonical
        try:
            learned, forgotten = self._known.learn(text, self._images.layers(reference))
        except NotFoundError as error:
            _log.debug("%s: %s", text, error)
        except PuzzlefsError as error:
            # To containers/storage an error here is a reason to download the image, which is right: it may be an ordinary one
            # of a registry that only podman's own configuration knows how to reach.
            _log.warning("%s is not served as a PuzzleFS image: %s", text, error)
        except OSError as error:
            _log.error("%s cannot be remembered: %s", text, error)
        else:
            for old in forgotten:
                self._release_unused(old)
            self._note_asked(text)
            return learned
        self._note_asked(text)
        return known

    def _asked_within(self, text: str, seconds: float) -> bool:
        with self._guard:
            when = self._asked.get(text)
            return when is not None and self._clock() - when < seconds

    def _note_asked(self, text: str) -> None:
        with self._guard:
            self._asked.pop(text, None)
            self._asked[text] = self._clock()
            while len(self._asked) > UNKNOWN_MAX:
                self._asked.popitem(last=False)

    def _reference(self, place: _Place) -> Remembered:
        remembered = self._known.by_number(place.number)
        if remembered is None:
            raise NotFoundError(f"reference {place.number} is not remembered")
        return remembered

    def _layer(self, place: _Place) -> StoredLayer:
        layer = self._reference(place).layers.get(place.slot)
        if layer is None:
            raise NotFoundError(f"reference {place.number} has no layer {place.slot}")
        return layer

    def _file(self, place: _Place, *, present: bool) -> Node:
        """A node below a key. `present`: somebody is about to use it, so what it leads to must be there."""
        layer = self._layer(place)
        if place.kind not in _MODES:
            raise NotFoundError(f"inode {place.ino} means nothing")
        if present and place.kind != _BLOB:
            remembered = self._reference(place)
            self._ensure(remembered.reference, layer, remembered.times.get(place.slot, 1))
        sizes = {_BLOB: lambda: layer.size, _DIFF: lambda: len(self._target(layer)), _INFO: lambda: len(self._info(layer))}
        return Node(place.ino, _MODES[place.kind], sizes[place.kind]())

    def _ensure(self, reference: str, layer: StoredLayer, times: int) -> None:
        if isinstance(layer.layer, MetadataLayer):
            try:
                self._layers.ensure(layer.layer, reference, "")
                if times > 1:
                    self._layers.ensure_copies(layer.layer.diff_id, times - 1)
            except NotFoundError as error:  # ENOENT would mean that it is no PuzzleFS layer
                raise UnavailableError(str(error)) from error
            self._failed.pop(layer.layer.diff_id, None)
        else:
            self._empty(layer.layer).mkdir(mode=0o755, parents=True, exist_ok=True)

    def _target(self, layer: StoredLayer, copy: int = 0) -> bytes:
        described = layer.layer
        if isinstance(described, PackLayer):
            return bytes(self._empty(described))
        return bytes(self._layers.mountpoint(described.diff_id, copy))

    def _empty(self, pack: PackLayer) -> Path:
        return self._nothing / pack.pack.hex()

    def _info(self, layer: StoredLayer) -> bytes:
        return info(layer, self._size(layer.layer.diff_id) if isinstance(layer.layer, MetadataLayer) else 0)

    def _size(self, diff_id: Digest) -> int:
        size = self._sizes.get(diff_id)
        if size is None:
            size = self._layers.content_size(diff_id)
            self._sizes[diff_id] = size
        return size

    def _count(self, place: _Place, change: int) -> None:
        with self._counting:
            remembered = self._known.count(place.number, place.slot, change)
            if remembered is not None and place.slot not in remembered.users:
                self._release_unused(remembered, place.slot)

    def _release_unused(self, remembered: Remembered, slot: int | None = None) -> None:
        """Unmount layers of `remembered` (the one in `slot`, or all) that no reference has a user of."""
        for each, layer in remembered.layers.items():
            described = layer.layer
            if slot in (None, each) and isinstance(described, MetadataLayer) and not self._known.uses(described.diff_id):
                try:
                    self._layers.release(described.diff_id)
                    self._sizes.pop(described.diff_id, None)
                    self._failed.pop(described.diff_id, None)
                except PuzzlefsError as error:
                    _log.warning("layer %s of %s stays mounted: %s", to_text(described.diff_id), remembered.reference, error)


def name_of(reference: str) -> bytes:
    """The name of `reference` in the store's root (containers/storage: base64 in its standard form)."""
    return base64.b64encode(reference.encode())


def reference_of(name: bytes) -> Reference | None:
    """The reference that a name in the store's root stands for; None if it stands for none that names one image."""
    try:
        text = base64.b64decode(name, validate=True).decode("ascii")
        reference = references.parse(text)
    except (binascii.Error, UnicodeDecodeError, InvalidError):
        return None
    # only one name for a directory: the kernel's dentries take no two
    return reference if name_of(reference.canonical) == name else None


def _slot_of(remembered: Remembered, name: bytes) -> tuple[int, int] | None:
    """Slot and kind of the key `name`; of two layers with the same key the first: they show the same."""
    key = _digest(name)
    for slot, layer in remembered.layers.items():
        blob, toc = keys(layer)
        if key == blob:
            return slot, _BY_BLOB
        if key == toc:
            return slot, _BY_TOC
    return None


def _digest(name: bytes) -> Digest | None:
    try:
        return from_text(name.decode("ascii"))
    except (UnicodeDecodeError, InvalidError):
        return None


def _directory(place: _Place) -> Node:
    return Node(place.ino, stat.S_IFDIR | 0o500)
