"""What the doctor says of other nodes."""

from __future__ import annotations

from snapshotter.doctor.finding import Level
from snapshotter.doctor.peers import Asked, PeersFacts, check_peers
from snapshotter.registry.peerclient import Address

NODE, OTHER = Address("10.0.0.6", 7117), Address("10.0.0.7", 7117)
NOW = 1_000_000.0
DAY = 86400.0


def found(facts: PeersFacts) -> list[tuple[str, Level]]:
    return [(finding.check, finding.level) for finding in check_peers(facts, NOW)]


def says(facts: PeersFacts) -> str:
    return "\n".join(f"{finding.text} -> {finding.advice}" for finding in check_peers(facts, NOW))


def test_nothing_is_said_where_nothing_is_configured() -> None:
    assert found(PeersFacts()) == []


def test_all_is_well() -> None:
    facts = PeersFacts(expires=NOW + 30 * DAY, served=Asked(NODE, 0.001), asked=(Asked(OTHER, 0.002),), known=1)
    assert [level for _, level in found(facts)] == [Level.OK] * 3
    assert "30 days" in says(facts)
    assert "1 of 1 other nodes answer, the quickest in 2.0 ms" in says(facts)


def test_a_certificate_that_nobody_accepts() -> None:
    facts = PeersFacts(tls_error="this node's certificate is refused by its own authority: certificate has expired")
    assert found(facts) == [("peers.certificate", Level.FAIL)]
    assert "certificate has expired" in says(facts)


def test_a_certificate_that_ends_soon() -> None:
    facts = PeersFacts(expires=NOW + DAY / 12)
    assert found(facts) == [("peers.certificate", Level.WARN)]
    assert "in 2.0 hours" in says(facts)


def test_a_node_that_does_not_serve_what_it_is_told_to() -> None:
    facts = PeersFacts(served=Asked(NODE, error="node 10.0.0.6:7117: Connection refused"))
    assert found(facts) == [("peers.listen", Level.FAIL)]
    assert "Connection refused" in says(facts)
    assert "peers.listen an address of this node" in says(facts)


def test_what_other_nodes_lack_is_no_failure_of_this_one() -> None:
    """Everything works without them, from the registry."""
    facts = PeersFacts(
        unknown=(("nodes.example:7117", "Name or service not known"),),
        asked=(Asked(NODE, error="node 10.0.0.6:7117: no complete answer in time"), Asked(OTHER, 0.2)),
        known=2,
    )
    assert found(facts) == [("peers.ask", Level.WARN)] * 3 + [("peers.ask", Level.OK)]
    for part in (
        "nodes.example:7117 leads to no node",
        "no complete answer",
        "10.0.0.7:7117 took 200 ms",
        "1 of 2 other nodes",
    ):
        assert part in says(facts)


def test_of_many_nodes_some_are_asked() -> None:
    assert "1 of 1 other nodes that were asked answer (300 are known)" in says(
        PeersFacts(asked=(Asked(NODE, 0.001),), known=300)
    )
