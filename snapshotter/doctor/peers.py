"""Whether chunks can go between this node and others (the configuration's ``[peers]``)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from snapshotter.doctor.finding import Finding, fail, ok, warn
from snapshotter.registry.peerclient import Address

SLOW = 0.05
"""Seconds for an answer beyond which a node is hardly nearer than a registry."""
EXPIRES_SOON = 86400.0
"""Seconds for which a certificate must be good at least; who renews them does it long before."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of asking `node` for a chunk that nobody has: it took `seconds`, or failed for the reason in `error`."""

    node: Address
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class PeersFacts:
    """What was found out. Nothing of it is asked for where the configuration does not name it.

    `tls_error`: why this node's certificate, key and authority do not make a connection with themselves; `expires`: when the
    certificate ends, in seconds since 1970, None where there is none. `served`: what became of asking this node itself.
    `unknown`: entries of ``peers.ask`` that lead to nodes that cannot be asked, and why; `asked`: what became of other nodes,
    of `known` in all.
    """

    tls_error: str = ""
    expires: float | None = None
    served: Asked | None = None
    unknown: tuple[tuple[str, str], ...] = ()
    asked: tuple[Asked, ...] = ()
    known: int = 0


def check_peers(facts: PeersFacts, now: float | None = None) -> list[Finding]:
    """Findings about other nodes; none where none are configured. `now`: seconds since 1970."""
    findings = [*_certificate(facts, time.time() if now is None else now)]
    if facts.served is not None:
        findings.append(_served(facts.served))
    for name, why in facts.unknown:
        findings.append(
            warn("peers.ask", f"{name} leads to no node: {why}", "correct peers.ask, or what this node's resolver answers")
        )
    return findings + _others(facts)


def _certificate(facts: PeersFacts, now: float) -> list[Finding]:
    advice = "put valid peers.certificate, peers.key and peers.ca there; they are read again without a restart"
    if facts.tls_error:
        return [fail("peers.certificate", facts.tls_error, advice)]
    if facts.expires is None:
        return []
    left = facts.expires - now
    if left < EXPIRES_SOON:
        return [warn("peers.certificate", f"this node's certificate ends in {max(0.0, left) / 3600:.1f} hours", advice)]
    return [ok("peers.certificate", f"this node's certificate is good for {left / 86400:.0f} days")]


def _served(asked: Asked) -> Finding:
    if asked.error:
        advice = "systemctl status puzzlefs-snapshotter; is peers.listen an address of this node, and the daemon started since?"
        return fail("peers.listen", f"this node does not serve its chunks: {asked.error}", advice)
    return ok("peers.listen", f"chunks are served at {asked.node}")


def _others(facts: PeersFacts) -> list[Finding]:
    findings = []
    good = [asked for asked in facts.asked if not asked.error]
    for asked in facts.asked:
        if asked.error:
            advice = "is the daemon there up, with the same authority, and the port open? Until then the registry is asked"
            findings.append(warn("peers.ask", asked.error, advice))
        elif asked.seconds > SLOW:
            text = f"node {asked.node} took {asked.seconds * 1000:.0f} ms to answer"
            findings.append(warn("peers.ask", text, "name only nodes that are near: each is asked before the registry"))
    if good:
        quickest = min(asked.seconds for asked in good) * 1000
        text = f"{len(good)} of {facts.known} other nodes answer, the quickest in {quickest:.1f} ms"
        if len(facts.asked) < facts.known:
            text = f"{len(good)} of {len(facts.asked)} other nodes that were asked answer ({facts.known} are known)"
        findings.append(ok("peers.ask", text))
    return findings
