"""Which inodes of an image were seen, in a byte for each."""

from __future__ import annotations

from snapshotter.format.rootfs import Rootfs


class MarkedInodes:
    """Some of the inodes of a rootfs: a byte for each that there is."""

    def __init__(self, rootfs: Rootfs) -> None:
        """None at first."""
        self._find = rootfs.find
        self._rows = [bytearray(len(layer)) for layer in rootfs.stored()]

    def add(self, ino: int) -> bool:
        """Mark one; False if it is marked already. What does not exist is never marked."""
        place = self._find(ino)
        if place is None:
            return True
        layer, row = place
        if self._rows[layer][row]:
            return False
        self._rows[layer][row] = True
        return True
