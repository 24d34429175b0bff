"""Several layers as one tree, as overlayfs shows them: for mounting or extracting an image as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from snapshotter.build.content import distinct
from snapshotter.build.entries import Node, from_rootfs, inodes, number
from snapshotter.format.digest import Digest
from snapshotter.format.model import ChunkVerity, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs


def flatten(layers: Sequence[Rootfs]) -> RootfsContent:
    """The union of `layers` (the lowest first) as the content of one message: no whiteouts, nothing opaque.

    Raises:
        CorruptError: a layer breaks a rule of the format.
    """
    tree = Node(Kind.DIR)
    verity: dict[Digest, bytes] = {}
    for layer in layers:
        upper = from_rootfs(layer)
        merge(upper, tree)
        tree = upper
        verity.update((entry.digest, entry.verity) for entry in layer.verities())
    settle(tree)
    numbering = number(tree)
    known = [ChunkVerity(digest, verity[digest]) for digest in sorted(distinct(numbering)) if digest in verity]
    return RootfsContent((inodes(numbering),), known)


def merge(upper: Node, lower: Node) -> None:
    """Let `lower`, the union of all layers below, show through the directory `upper` where overlayfs would."""
    pending = [(upper, lower)]
    while pending:
        above, below = pending.pop()
        names = above.names()
        for name, node in below.names().items():
            covering = names.get(name)
            if covering is None:
                names[name] = node
            elif covering.kind is Kind.DIR and node.kind is Kind.DIR and covering.look_below:
                pending.append((covering, node))


def settle(root: Node) -> None:
    """Make a tree one with nothing below it: whiteouts go, and no directory is opaque."""
    pending = [root]
    while pending:
        directory = pending.pop()
        directory.look_below = True
        names = directory.names()
        for name in [name for name, node in names.items() if node.kind is Kind.WHT]:
            del names[name]
        pending.extend(node for node in names.values() if node.kind is Kind.DIR)
