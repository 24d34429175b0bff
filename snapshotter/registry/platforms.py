"""Which image of an index is meant for a machine.

The names are Go's, as everywhere in OCI images (image specification, image-index.md, "platform object"; containerd's package
``platforms`` has the same normalizations).
"""

from __future__ import annotations

import platform as host
from collections.abc import Iterable
from dataclasses import dataclass

from snapshotter.errors import InvalidError, NotFoundError
from snapshotter.registry.base import Descriptor

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "i386": "386",
    "loongarch64": "loong64",
}
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture, and the architecture's variant (empty where there is none)."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def of_this_machine(cls) -> Platform:
        """The platform that this machine runs."""
        machine = host.machine()
        return cls("linux", _ARCHITECTURES.get(machine, machine), "v6" if machine == "armv6l" else "")

    @classmethod
    def parse(cls, text: str) -> Platform:
        """The platform ``OS/ARCHITECTURE[/VARIANT]``.

        Raises:
            InvalidError: `text` is of another form.
        """
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise InvalidError(f"not a platform: {text[:100]!r} (expected OS/ARCHITECTURE[/VARIANT], as in linux/arm64)")
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def matches(self, entry: Descriptor) -> bool:
        """Whether the index entry is for this platform; a variant left out is the usual one."""
        said = entry.platform or {}
        usual = _DEFAULT_VARIANTS.get(self.architecture, "")
        return (
            said.get("os") == self.os
            and said.get("architecture") == self.architecture
            and (said.get("variant") or usual) == (self.variant or usual)
        )


def select(entries: Iterable[Descriptor], wanted: Platform, what: str) -> Descriptor:
    """The first of an index's entries that is for `wanted`; `what` names the index in the error.

    Raises:
        NotFoundError: there is none.
    """
    seen = []
    for entry in entries:
        if wanted.matches(entry):
            return entry
        said = entry.platform or {}
        seen.append("/".join(str(said.get(key)) for key in ("os", "architecture", "variant") if said.get(key)) or "none")
    raise NotFoundError(f"{what} has no image for {wanted}; it has: {', '.join(seen[:20]) or 'nothing'}")
