"""fs-verity without a kernel that has it: files are sealed in memory."""

from __future__ import annotations

import os

from snapshotter.format.verity import verity_digest


class FakeSealing:
    """What `format.fsverity` does, as far as a process can see it. `refuse` is raised instead of sealing."""

    def __init__(self) -> None:
        self.sealed: dict[tuple[int, int], bytes] = {}
        self.names: list[str] = []
        """Where each file was when it was sealed."""
        self.refuse: OSError | None = None

    def enable(self, descriptor: int) -> None:
        if self.refuse is not None:
            raise self.refuse
        status = os.fstat(descriptor)
        self.names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.sealed[status.st_dev, status.st_ino] = verity_digest(os.pread(descriptor, status.st_size, 0))

    def measure(self, descriptor: int) -> bytes | None:
        status = os.fstat(descriptor)
        return self.sealed.get((status.st_dev, status.st_ino))
