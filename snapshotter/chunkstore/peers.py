"""Other nodes' caches: near, and asked for chunks before the registry is; whatever they do, a read loses little time with them.

`Peers.find` is best effort: it gives what other nodes have and says nothing about the rest. It waits at most `PATIENCE` for
what it asks for in one go (`BATCH`), longer only for a node that sends long chunks; one that does not keep to it is left alone
for a while (`peerchoice`), so a dead or slow one costs that once, and then every minute at most. Names are resolved beside the
reads, never in one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from snapshotter.chunkstore.peerchoice import Choice
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.errors import InvalidError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.peerclient import Address, Budget, PeerClient
from snapshotter.registry.peers import check_peer

SOURCE = "peers"
"""Under which all of them are counted: nodes come and go."""

PATIENCE = 0.25
"""Seconds for a batch of usual chunks. At 1 Gbit/s it takes 10 ms to send one; a registry's round trip is 1 to 50 ms."""
BATCH = 16
"""Chunks that are asked for in one go: 1 MiB, as the kernel reads at most."""
USUAL = 64 << 10
"""Bytes of a usual chunk. What those of large files have beyond that has the time that as many bytes of usual ones have."""
ASKED_MAX = 2
"""Nodes that are asked for one batch."""

LACKING_SECONDS = 5.0
LACKING_MAX = 8192
"""For so long, and for so many chunks, is remembered that nobody who was asked had them: a read that asks its sources one
after another, or once more, need not ask around again."""

REFRESH = 30.0
"""Seconds after which names are resolved again."""
NODES_MAX = 512

log = logging.getLogger(__name__)


class Peers:
    """The nodes at `places` (host and port; of a name, every address). Safe to use from any thread.

    `own` is the port at which this node itself answers, if it does: it is among what a name resolves to, and not asked.
    `tls` makes the context of a connection; None is plain HTTP.
    """

    def __init__(
        self,
        places: Sequence[Address],
        *,
        stats: Stats,
        own: int | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        choice: Choice | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ) -> None:
        """Addresses are known at once, names soon: nothing waits for them."""
        self._places = tuple(places)
        self._stats = stats
        self._own = own
        self._tls = tls
        self._clock = clock
        self._patience = patience
        self._lock = threading.Lock()
        self._choice = choice if choice is not None else Choice()
        self._clients: dict[Address, PeerClient] = {}
        self._lacking: OrderedDict[Digest, float] = OrderedDict()
        self._closed = False
        self._resolving = False
        self._resolved_at = clock()
        literal = [place for place in self._places if _is_address(place.host)]
        self._named = len(literal) < len(self._places)
        self._choice.set_nodes([node for place in literal for node in self._usable(place)])
        if self._named:
            self._resolved_at -= REFRESH
            self._refresh()

    def find(self, pack: Digest, digests: Sequence[Digest]) -> Iterator[tuple[Digest, bytes]]:
        """See `base.Near`."""
        self._refresh()
        with self._lock:
            now = self._clock()
            rest = [digest for digest in digests if now - self._lacking.get(digest, float("-inf")) >= LACKING_SECONDS]
        for start in range(0, len(rest), BATCH):
            left = dict.fromkeys(rest[start : start + BATCH])
            budget = Budget(self._patience)
            yield from self._find(pack, left, budget)
            if budget.left <= 0:
                return

    def close(self) -> None:
        """Close connections; nobody is asked any more. Calling it again does nothing."""
        with self._lock:
            self._closed = True
            clients, self._clients = list(self._clients.values()), {}
            self._choice.set_nodes([])
        for client in clients:
            client.close()

    def _find(self, pack: Digest, left: dict[Digest, None], budget: Budget) -> Iterator[tuple[Digest, bytes]]:
        """Those of `left` that are found within `budget`, which are taken out of it."""
        asked: list[Address] = []
        while left and len(asked) < ASKED_MAX and budget.left > 0:
            with self._lock:
                node = self._choice.next(pack, asked, self._clock())
                if node is None:
                    break
                client = self._clients.setdefault(node, PeerClient(node, self._tls))
            asked.append(node)
            for digest, raw in self._ask(pack, node, client, list(left), budget):
                del left[digest]
                yield digest, raw
        if asked:
            with self._lock:
                self._remember_lacking(left)

    def _ask(
        self, pack: Digest, node: Address, client: PeerClient, digests: Sequence[Digest], budget: Budget
    ) -> Iterator[tuple[Digest, bytes]]:
        """What `node` has of `digests`, verified; and what it did is noted."""
        self._stats.add(Count.REQUESTS, source=SOURCE)
        gave = False
        try:
            with contextlib.closing(client.ask(digests, budget)) as answers:
                for raw, digest in zip(answers, digests, strict=True):
                    if raw is None:
                        continue
                    self._stats.add(Count.BYTES, len(raw), source=SOURCE)
                    if sha256(raw) != digest:
                        self._lied(node, digest)
                        return
                    gave = True
                    budget.extend(self._patience * max(0, len(raw) - USUAL) / (BATCH * USUAL))
                    yield digest, raw
        except RegistryUnavailableError as error:
            log.info("%s; it is left alone for a while", error)
            with self._lock:
                self._choice.failed(node, self._clock())
            return
        with self._lock:
            self._choice.answered(pack, node, self._clock(), gave=gave)

    def _lied(self, node: Address, digest: Digest) -> None:
        self._stats.add(Count.CORRUPT, source=SOURCE)
        log.error("node %s sends something else as chunk %s; it is not asked for a while", node, to_text(digest))
        with self._lock:
            self._choice.lied(node, self._clock())

    def _remember_lacking(self, digests: Iterable[Digest]) -> None:
        now = self._clock()
        for digest in digests:
            self._lacking[digest] = now
            self._lacking.move_to_end(digest)
        while len(self._lacking) > LACKING_MAX:
            self._lacking.popitem(last=False)

    # Who they are

    def _refresh(self) -> None:
        if not self._named:
            return
        with self._lock:
            if self._closed or self._resolving or self._clock() - self._resolved_at < REFRESH:
                return
            self._resolving = True
        threading.Thread(target=self._resolve, name="peer-names", daemon=True).start()

    def _resolve(self) -> None:
        found: list[Address] = []
        failed = False
        for place in self._places:
            try:
                found += self._usable(place)
            except OSError as error:
                log.info("the nodes at %s are not known: %s", place, error.strerror or error)
                failed = True
        with self._lock:
            self._resolving = False
            self._resolved_at = self._clock()
            if self._closed or (failed and not found):
                return  # whoever was known is asked further on
            self._choice.set_nodes(found[:NODES_MAX])
            gone = [self._clients.pop(node) for node in list(self._clients) if node not in found]
        for client in gone:
            client.close()

    def _usable(self, place: Address) -> list[Address]:
        nodes, refused = nodes_at(place, self._own)
        for why in refused:
            log.warning("%s", why)
        return nodes


def nodes_at(place: Address, own: int | None) -> tuple[list[Address], list[str]]:
    """The other nodes that `place` stands for, itself or what its name leads to; and why some that it leads to are never asked.
    `own`: the port at which this node itself answers, if it does.

    Raises:
        OSError: the name is not known.
    """
    named = not _is_address(place.host)
    addresses = [place]
    if named:
        answers = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(Address(str(answer[0]), place.port) for *_, answer in answers))[:NODES_MAX]
    nodes, refused = [], []
    for address in addresses:
        try:
            check_peer(address.host, loopback=not named)
        except InvalidError as error:
            refused.append(f"node {address} is not asked: {error}")
            continue
        if address.port != own or not is_this_machine(address.host):
            nodes.append(address)
    return nodes, refused


def is_this_machine(address: str) -> bool:
    """Whether an IP address is one of this machine's. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            # what is on this machine is reached from the address itself
            return bool(ipaddress.ip_address(probe.getsockname()[0]) == ipaddress.ip_address(address))
        except (OSError, ValueError):
            return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
