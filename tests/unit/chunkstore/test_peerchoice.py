"""Which node is asked: from what nodes answered, and never more of them than is worth it."""

from __future__ import annotations

from snapshotter.chunkstore.peerchoice import (
    FIRST_PAUSE,
    FORGET,
    LIAR_PAUSE,
    LONGEST_PAUSE,
    PACKS_MAX,
    TRIED_MAX,
    VAIN_MAX,
    Choice,
)
from snapshotter.format.digest import sha256
from snapshotter.registry.peerclient import Address

PACK, OTHER = sha256(b"pack"), sha256(b"other")
NODES = [Address(f"10.0.0.{number}", 7117) for number in range(1, 21)]
ONE, TWO, THREE = NODES[:3]


def choice(*nodes: Address) -> Choice:
    """In the order given, which a process would have at random."""
    made = Choice(shuffle=lambda order: None)
    made.set_nodes(nodes)
    return made


def test_nobody_is_asked_where_there_is_nobody() -> None:
    assert choice().next(PACK, (), 0.0) is None


def test_one_after_another_is_tried() -> None:
    nodes = choice(ONE, TWO)
    assert [nodes.next(PACK, (), 0.0), nodes.next(PACK, [ONE], 0.0), nodes.next(PACK, [ONE, TWO], 0.0)] == [ONE, TWO, None]


def test_who_gave_chunks_of_a_pack_is_asked_first_for_more_of_it() -> None:
    nodes = choice(ONE, TWO, THREE)
    nodes.answered(PACK, THREE, 0.0, gave=True)
    assert nodes.next(PACK, (), 0.0) == THREE
    assert nodes.next(OTHER, (), 0.0) == ONE


def test_who_had_nothing_of_a_pack_is_not_asked_again_for_it_until_it_may_have() -> None:
    nodes = choice(ONE, TWO)
    nodes.answered(PACK, ONE, 1.0, gave=False)
    assert nodes.next(PACK, (), 1.0) == TWO
    nodes.answered(PACK, TWO, 2.0, gave=False)
    assert nodes.next(PACK, (), 2.0) is None
    assert nodes.next(OTHER, (), 2.0) == ONE
    assert nodes.next(PACK, (), 1.0 + FORGET) == ONE


def test_few_are_tried_in_vain_however_many_there_are() -> None:
    nodes = choice(*NODES)
    tried = []
    while (node := nodes.next(PACK, (), 0.0)) is not None:
        tried.append(node)
        nodes.answered(PACK, node, 0.0, gave=False)
    assert tried == NODES[:TRIED_MAX]


def test_a_giver_may_lack_some_chunks_before_it_is_given_up() -> None:
    nodes = choice(ONE, TWO)
    nodes.answered(PACK, TWO, 0.0, gave=True)
    for _ in range(VAIN_MAX):
        assert nodes.next(PACK, (), 0.0) == TWO
        nodes.answered(PACK, TWO, 0.0, gave=False)
    assert nodes.next(PACK, (), 0.0) == TWO
    nodes.answered(PACK, TWO, 0.0, gave=True)
    for _ in range(VAIN_MAX + 1):
        nodes.answered(PACK, TWO, 0.0, gave=False)
    assert nodes.next(PACK, (), 0.0) == ONE
    assert nodes.next(PACK, [ONE], 0.0) is None


def test_one_that_fails_is_left_alone_for_longer_and_longer() -> None:
    nodes = choice(ONE)
    now, pauses = 0.0, []
    for _ in range(6):
        nodes.failed(ONE, now)
        began = now
        while nodes.next(PACK, (), now) is None:
            now += 0.5
        pauses.append(now - began)
    assert pauses == [FIRST_PAUSE, 8.0, 16.0, 32.0, LONGEST_PAUSE, LONGEST_PAUSE]


def test_failures_that_threads_notice_together_are_one() -> None:
    nodes = choice(ONE)
    for _ in range(8):
        nodes.failed(ONE, 0.0)
    assert nodes.next(PACK, (), FIRST_PAUSE - 0.1) is None
    assert nodes.next(PACK, (), FIRST_PAUSE) == ONE


def test_one_thread_finds_out_whether_a_node_is_back() -> None:
    nodes = choice(ONE, TWO)
    nodes.failed(ONE, 0.0)
    assert [nodes.next(PACK, (), FIRST_PAUSE), nodes.next(PACK, (), FIRST_PAUSE)] == [ONE, TWO]
    nodes.answered(PACK, ONE, FIRST_PAUSE, gave=True)
    assert [nodes.next(PACK, (), FIRST_PAUSE), nodes.next(PACK, (), FIRST_PAUSE)] == [ONE, ONE]


def test_a_liar_is_left_alone_for_long_also_by_the_packs_that_it_gave() -> None:
    nodes = choice(ONE)
    nodes.answered(PACK, ONE, 0.0, gave=True)
    nodes.lied(ONE, 0.0)
    assert nodes.next(PACK, (), LIAR_PAUSE - 1) is None
    assert nodes.next(PACK, (), LIAR_PAUSE) == ONE


def test_nodes_that_went_are_not_asked_and_what_is_known_of_the_others_stays() -> None:
    nodes = choice(ONE, TWO)
    nodes.answered(PACK, ONE, 0.0, gave=True)
    nodes.failed(TWO, 0.0)
    nodes.set_nodes([TWO, THREE])
    assert nodes.next(PACK, (), 0.0) == THREE
    nodes.set_nodes([ONE])
    assert nodes.next(PACK, (), 0.0) == ONE


def test_new_nodes_come_in_an_order_of_ones_own() -> None:
    nodes = Choice(shuffle=list.reverse)
    nodes.set_nodes([ONE, TWO])
    nodes.set_nodes([ONE, TWO, THREE])
    order: list[Address] = []
    while (node := nodes.next(PACK, order, 0.0)) is not None:
        order.append(node)
    assert order == [TWO, ONE, THREE]


def test_of_packs_beyond_the_bound_nothing_is_remembered() -> None:
    nodes = choice(ONE, TWO)
    nodes.answered(PACK, TWO, 0.0, gave=True)
    for number in range(PACKS_MAX):
        nodes.next(sha256(bytes([number])), (), 0.0)
    assert nodes.next(PACK, (), 0.0) == ONE
