"""Paths inside trees of nodes: symlinks are followed as if the tree's root were the file system's.

That is what containerd does when it applies a layer (continuity's ``fs.RootPath``), so a path can lead anywhere in the tree
and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

from snapshotter.build.entries import Node
from snapshotter.errors import InvalidError
from snapshotter.format.model import Kind

LINKS_MAX = 255
"""Most symlinks that one path may lead through (continuity's limit)."""


class BlockedError(InvalidError):
    """The path leads through something that is neither a directory nor a symlink to one."""


def split(path: bytes) -> list[bytes]:
    """The components of `path`, made lexically canonical, and taken from the root: ``..`` never leads above it."""
    named = [part for part in path.split(b"/") if part and part != b"."]
    if b".." not in named:
        return named
    parts: list[bytes] = []
    for part in named:
        if part != b"..":
            parts.append(part)
        elif parts:
            parts.pop()
    return parts


def resolve(root: Node, path: Sequence[bytes], *, whiteouts_are_gone: bool = False) -> tuple[list[bytes], Node | None]:
    """Where `path` leads within the one layer `root`, symlinks followed, the last one too.

    Returns the components of the place and the node there, None if nothing is. Components below a missing directory are
    taken as they are. With `whiteouts_are_gone` a whiteout counts as missing.

    Raises:
        BlockedError: something on the way is not a directory.
        InvalidError: it leads through too many symlinks.
    """
    todo = list(reversed(path))
    place: list[bytes] = []
    nodes: list[Node | None] = [root]
    links = 0
    while todo:
        name = todo.pop()
        if name == b"..":
            if place:
                place.pop()
                nodes.pop()
            continue
        current = nodes[-1]
        child = None
        if current is not None:
            if current.kind is not Kind.DIR:
                raise BlockedError(f"{b'/'.join(place)!r} is not a directory")
            child = current.names().get(name)
            if child is not None and child.kind is Kind.WHT and whiteouts_are_gone:
                child = None
        if child is not None and child.target is not None:
            links += 1
            if links > LINKS_MAX:
                raise InvalidError(f"{b'/'.join(path)!r} leads through more than {LINKS_MAX} symlinks")
            if child.target.startswith(b"/"):
                place, nodes = [], [root]
            todo.extend(part for part in reversed(child.target.split(b"/")) if part not in (b"", b"."))
            continue
        place.append(name)
        nodes.append(child)
    return place, nodes[-1]


def find_in_union(layers: Sequence[Node], path: Sequence[bytes]) -> tuple[list[bytes], Node | None]:
    """What a process sees at `path` in the union of `layers` (roots, top first); a symlink at its end is not followed.

    Returns the place (without symlinks) and the node, None if nothing is there.

    Raises:
        InvalidError: it leads through too many symlinks.
    """
    todo = list(reversed(path))
    place: list[bytes] = []
    levels: list[list[Node]] = [list(layers)]  # the directories that are merged at each component of `place`
    links = 0
    while todo:
        name = todo.pop()
        if name == b"..":
            if place:
                place.pop()
                levels.pop()
            continue
        found = _merged(levels[-1], name)
        if not found:
            return place, None
        top = found[0]
        if top.target is not None and todo:
            links += 1
            if links > LINKS_MAX:
                raise InvalidError(f"{b'/'.join(path)!r} leads through more than {LINKS_MAX} symlinks")
            if top.target.startswith(b"/"):
                place, levels = [], [list(layers)]
            todo.extend(part for part in reversed(top.target.split(b"/")) if part not in (b"", b"."))
            continue
        place.append(name)
        if top.kind is not Kind.DIR:
            return place, None if todo else top
        levels.append(found)
    return place, levels[-1][0]


def _merged(directories: Sequence[Node], name: bytes) -> list[Node]:
    """The nodes that make up `name`: one that is no directory, or the merged directories, top first; none if it is hidden."""
    found: list[Node] = []
    for directory in directories:
        child = directory.names().get(name)
        if child is None:
            continue
        if child.kind is not Kind.DIR:
            return found if found or child.kind is Kind.WHT else [child]
        found.append(child)
        if not child.look_below:
            break
    return found
