"""Which other node to ask for a pack's chunks, decided from what nodes have answered; no clock, no socket, no thread.

Nobody tells which node has which chunk, so nodes are asked and what they answer is remembered by pack: chunks of a pack are of
one image, and a node that has some of them has started it. The rules:

1. A node that gave chunks of a pack is asked first for more of it.
2. Otherwise one after another is tried, in an order of this process's own (so that not all nodes ask the same one), and at most
   `TRIED_MAX` in vain: then the pack is left alone until `FORGET` has passed, since it is nobody's.
3. A node that does not answer is left alone, for a time that doubles; when it is over, one thread finds out.
4. A node that sends something else than was asked for is left alone for `LIAR_PAUSE`.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from snapshotter.format.digest import Digest
from snapshotter.registry.peerclient import Address

FIRST_PAUSE = 4.0
LONGEST_PAUSE = 60.0
"""Seconds for which a node that did not answer is left alone, doubling: long enough that a start meets a silent one once or
twice."""
LIAR_PAUSE = 600.0
"""Seconds for which a node is not asked at all."""

TRIED_MAX = 8
"""Nodes that are tried in vain for a pack: each costs what is read one round trip between nodes."""
FORGET = 10.0
"""Seconds after which they may have it: other nodes start the same image now."""
VAIN_MAX = 8
"""Questions in a row that a node which gave chunks of a pack may answer with nothing before it is one of those."""

PACKS_MAX = 256
"""Packs of which is remembered who has them."""


@dataclass(slots=True)
class _Known:
    """What is known of a pack: who gave chunks of it, with how often each has had nothing since; who never gave any."""

    givers: dict[Address, int] = field(default_factory=dict)
    vain: set[Address] = field(default_factory=set)
    vain_since: float = 0.0


class Choice:
    """The nodes that may be asked, and what they have answered. Used under a lock; times are the caller's."""

    def __init__(self, shuffle: Callable[[list[Address]], None] = random.shuffle) -> None:
        self._shuffle = shuffle
        self._order: list[Address] = []
        self._paused: dict[Address, tuple[float, float]] = {}
        """Until when a node is left alone, and the pause that ends then."""
        self._probed: set[Address] = set()
        """Those of them whose pause has ended: somebody is asking them now."""
        self._packs: OrderedDict[Digest, _Known] = OrderedDict()

    def set_nodes(self, nodes: Sequence[Address]) -> None:
        """These are the nodes from now on."""
        fresh = [node for node in dict.fromkeys(nodes) if node not in self._order]
        self._shuffle(fresh)
        self._order = [node for node in self._order if node in set(nodes)] + fresh
        self._paused = {node: paused for node, paused in self._paused.items() if node in self._order}
        self._probed &= self._paused.keys()

    def next(self, pack: Digest, asked: Collection[Address], now: float) -> Address | None:
        """Whom to ask next for chunks of `pack`, after those in `asked`; None: nobody."""
        if not self._order:
            return None
        known = self._known(pack, now)
        for node in [*known.givers, *self._untried(known)]:
            if node in asked or node not in self._order:
                continue
            until, pause = self._paused.get(node, (now, 0.0))
            if now < until:
                continue
            if pause:
                self._paused[node] = now + pause, pause
                self._probed.add(node)
            return node
        return None

    def answered(self, pack: Digest, node: Address, now: float, *, gave: bool) -> None:
        """`node` has answered a question for chunks of `pack`, and had some of them or none."""
        self._paused.pop(node, None)
        self._probed.discard(node)
        known = self._known(pack, now)
        if gave:
            known.givers = {node: 0, **{other: vain for other, vain in known.givers.items() if other != node}}
            known.vain.discard(node)
            return
        vain = known.givers.get(node, VAIN_MAX) + 1
        if vain <= VAIN_MAX:
            known.givers[node] = vain
            return
        known.givers.pop(node, None)
        if not known.vain:
            known.vain_since = now
        known.vain.add(node)

    def failed(self, node: Address, now: float) -> None:
        """`node` did not answer. Several threads that notice it at once have noticed one failure."""
        _, pause = self._paused.get(node, (now, 0.0))
        if not pause or node in self._probed:
            pause = min(LONGEST_PAUSE, pause * 2 or FIRST_PAUSE)
            self._paused[node] = now + pause, pause
            self._probed.discard(node)

    def lied(self, node: Address, now: float) -> None:
        """`node` sent what was not asked for."""
        self._paused[node] = now + LIAR_PAUSE, LIAR_PAUSE
        self._probed.discard(node)

    def _untried(self, known: _Known) -> list[Address]:
        if len(known.vain) >= TRIED_MAX:
            return []
        return [node for node in self._order if node not in known.vain]

    def _known(self, pack: Digest, now: float) -> _Known:
        known = self._packs.setdefault(pack, _Known())
        self._packs.move_to_end(pack)
        if len(self._packs) > PACKS_MAX:
            self._packs.popitem(last=False)
        if now - known.vain_since >= FORGET:
            known.vain.clear()
        return known
