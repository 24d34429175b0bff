"""What is done about workers that die, are found, stay silent: decided without a process, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from snapshotter.daemon.supervision import (
    PAUSE_MAX,
    PAUSE_SHARED,
    RETURN_AFTER,
    SETTLED_AFTER,
    STARTING_MAX,
    Action,
    Blame,
    Ended,
    Event,
    Expected,
    Found,
    GiveUp,
    Gone,
    Kill,
    Phase,
    Placed,
    Refused,
    Report,
    Serve,
    Silent,
    Start,
    Supervision,
    Tick,
    pause,
)


class World:
    """A machine, a clock, and the processes that its actions make."""

    def __init__(self, ordinary: int = 2) -> None:
        self.state = Supervision(ordinary)
        self.now = 0.0
        self.running: dict[int, set[str]] = {}
        self.killed: list[int] = []
        self.given_up: list[str] = []
        self.reports: list[str] = []

    def step(self, event: Event) -> Sequence[Action]:
        actions = self.state.step(event, self.now)
        for action in actions:
            match action:
                case Start(worker):
                    assert worker not in self.running
                    self.running[worker] = set()
                case Serve(worker, mount):
                    self.running[worker].add(mount)
                case Kill(worker):
                    assert worker in self.running
                    self.killed.append(worker)
                case GiveUp(mount, _):
                    self.given_up.append(mount)
                case Report(text):
                    self.reports.append(text)
        return actions

    def die(self, worker: int, *, killed: bool = False) -> Sequence[Action]:
        del self.running[worker]
        if worker in self.killed:
            self.killed.remove(worker)
        return self.step(Ended(worker, killed))

    def wait(self, seconds: float) -> None:
        """Let time pass, with the ticks that are due."""
        end = self.now + seconds
        while (due := self.state.due()) is not None and due <= end:
            self.now = max(self.now, due)
            self.step(Tick())
            for worker in list(self.killed):
                self.die(worker, killed=True)
        self.now = end

    def serving(self, mount: str) -> int | None:
        return next((worker for worker, mounts in self.running.items() if mount in mounts), None)


def test_mounts_are_spread_over_the_workers_which_start_when_needed() -> None:
    world = World(2)
    for mount in "abcd":
        world.step(Placed(mount))
    assert sorted(map(sorted, world.running.values())) == [["a", "c"], ["b", "d"]]


def test_where_a_mount_is_expected_one_worker_runs_before_it_comes_and_starts_once() -> None:
    world = World(2)
    assert world.step(Expected()) == [Start(0)]
    assert world.step(Expected()) == []
    assert world.step(Placed("a")) == [Serve(0, "a")]
    assert world.step(Placed("b")) == [Start(1), Serve(1, "b")]


def test_one_that_was_expected_to_serve_and_dies_before_is_not_followed() -> None:
    world = World(1)
    world.step(Expected())
    assert world.die(0) == []
    assert world.step(Placed("a")) == [Start(0), Serve(0, "a")]


def test_the_next_process_gets_the_mounts_of_the_one_that_died_at_once() -> None:
    world = World(1)
    world.step(Placed("a"))
    world.step(Placed("b"))
    world.wait(60)
    assert world.die(0)[1:] == [Start(0), Serve(0, "a"), Serve(0, "b")]
    assert "died after 60.0 s; 2 mounts" in world.reports[-1]


def test_one_that_has_nothing_to_serve_is_not_followed() -> None:
    world = World(1)
    world.step(Placed("a"))
    world.step(Gone("a"))
    assert world.die(0) == []
    world.step(Placed("b"))
    assert world.serving("b") == 0


@pytest.mark.parametrize(
    ("deaths", "crashes", "alone", "seconds"),
    [
        (0, 0, False, 0),
        (1, 1, False, 0),
        (2, 2, True, 0.1),
        (3, 3, True, 0.2),
        (50, 0, True, PAUSE_SHARED),
        (50, 50, False, PAUSE_SHARED),
        (50, 50, True, PAUSE_MAX),
    ],
)
def test_pauses_grow_and_are_short_where_others_wait_or_somebody_kills(
    deaths: int, crashes: int, alone: bool, seconds: float
) -> None:
    assert pause(deaths, crashes, alone=alone) == pytest.approx(seconds)


def test_nobody_waits_long_for_workers_that_are_killed_again_and_again() -> None:
    """Whoever kills them, however often: a start is never more than a second away."""
    world = World(1)
    world.step(Placed("a"))
    for _ in range(100):
        world.die(0, killed=True)
        world.wait(PAUSE_SHARED)
        assert world.serving("a") == 0


@pytest.mark.parametrize("count", [2, 3, 10, 33])
def test_the_mount_that_kills_its_workers_is_found_and_stays_alone(count: int) -> None:
    world = World(2)
    mounts = [f"m{number}" for number in range(count)]
    for mount in mounts:
        world.step(Placed(mount))
    for _ in range(60):  # whoever serves m1 dies after half a second
        world.wait(0.5)
        victim = world.serving("m1")
        if victim is not None:
            world.die(victim)
    place = world.state.place_of("m1")
    assert place is not None
    assert list(place.mounts) == ["m1"]
    assert any("alone" in report for report in world.reports)
    # Everybody else is served by workers that live, in the end by as few as ever.
    world.wait(RETURN_AFTER * 2 + 1)
    assert all(world.serving(mount) is not None for mount in mounts if mount != "m1")
    assert {world.serving(mount) for mount in mounts} - {place.number} <= {
        p.number for p in world.state.places.values() if p.ordinary
    }
    # and a new one does not join it
    world.step(Placed("new"))
    assert world.serving("new") not in (None, place.number)


def test_early_deaths_long_apart_are_no_reason_to_split() -> None:
    world = World(1)
    for mount in "ab":
        world.step(Placed(mount))
    for _ in range(20):
        world.wait(SETTLED_AFTER)
        world.die(0)
    assert len(world.state.places) == 1


def test_an_early_crash_over_one_mount_is_held_against_its_requests() -> None:
    world = World(1)
    world.step(Placed("a"))
    world.wait(SETTLED_AFTER)
    assert Blame("a") not in world.die(0), "whatever it died of, it lived with these requests for long"
    for _ in range(3):
        actions = world.die(0)
        assert actions[0] == Blame("a"), "told before the next process is started"
        world.wait(PAUSE_SHARED)


def test_neither_a_kill_nor_a_crash_over_several_mounts_is_held_against_requests() -> None:
    world = World(1)
    world.step(Placed("a"))
    for _ in range(20):
        assert Blame("a") not in world.die(0, killed=True)
        world.wait(PAUSE_SHARED)
    world.step(Placed("b"))
    actions = world.die(0)
    assert not any(isinstance(action, Blame) for action in actions)


def test_a_silent_worker_is_killed_and_followed() -> None:
    world = World(1)
    world.step(Placed("a"))
    assert world.step(Silent(0, answered=True))[1:] == [Kill(0)]
    assert world.step(Silent(0, answered=True)) == []
    world.step(Placed("b"))  # who comes meanwhile is served by the next one
    world.die(0, killed=True)
    assert world.running == {0: {"a", "b"}}


def test_one_that_is_slow_to_start_gets_time() -> None:
    """Its successor would be as slow, and none would ever serve."""
    world = World(1)
    world.step(Placed("a"))
    world.wait(STARTING_MAX - 1)
    assert world.step(Silent(0, answered=False)) == []
    world.wait(1)
    assert world.step(Silent(0, answered=False))[1:] == [Kill(0)]


def test_a_found_worker_goes_on() -> None:
    world = World(2)
    world.running = {0: {"a"}, 1: {"b"}, 2: {"c"}}
    for number, mount in enumerate("abc"):
        assert world.step(Found(number, (mount,), current=True)) == []
    world.step(Placed("d"))
    assert world.serving("d") in (0, 1)
    # one more than there should be gives its mounts back after a while
    world.wait(RETURN_AFTER)
    assert set(world.running) == {0, 1}
    assert world.serving("c") in (0, 1)


def test_a_found_worker_of_another_release_is_replaced_without_blame() -> None:
    world = World(1)
    world.running = {0: {"a", "b"}}
    assert world.step(Found(0, ("a", "b"), current=False))[1:] == [Kill(0)]
    assert world.die(0, killed=True) == [Start(0), Serve(0, "a"), Serve(0, "b")]
    assert world.state.places[0].deaths == 0


def test_a_mount_that_cannot_be_served_is_given_up_and_the_others_are_not() -> None:
    world = World(1)
    world.step(Placed("a"))
    world.step(Placed("b"))
    assert world.step(Refused(0, "a", "its metadata is gone")) == [GiveUp("a", "its metadata is gone")]
    assert world.step(Refused(0, "a", "its metadata is gone")) == []
    world.die(0)
    assert world.running == {0: {"b"}}


class Anything(RuleBasedStateMachine):
    """Whatever happens in whatever order: every mount is in one place, and served, or about to be."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(2)
        self.mounts: set[str] = set()
        self.count = 0

    @rule()
    def place(self) -> None:
        self.count += 1
        self.mounts.add(f"m{self.count}")
        self.world.step(Placed(f"m{self.count}"))

    @precondition(lambda self: self.mounts)
    @rule(data=st.data())
    def end_mount(self, data: st.DataObject) -> None:
        mount = data.draw(st.sampled_from(sorted(self.mounts)))
        self.mounts.discard(mount)
        for mounts in self.world.running.values():
            mounts.discard(mount)
        self.world.step(Gone(mount))

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), killed=st.booleans())
    def die(self, data: st.DataObject, killed: bool) -> None:
        self.world.die(data.draw(st.sampled_from(sorted(self.world.running))), killed=killed)

    @precondition(lambda self: self.world.running)
    @rule(data=st.data())
    def silent(self, data: st.DataObject) -> None:
        self.world.step(Silent(data.draw(st.sampled_from(sorted(self.world.running))), data.draw(st.booleans())))

    @rule(seconds=st.sampled_from([0.05, 1.0, SETTLED_AFTER, RETURN_AFTER]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @invariant()
    def every_mount_is_in_one_place(self) -> None:
        placed = [mount for place in self.world.state.places.values() for mount in place.mounts]
        assert sorted(placed) == sorted(self.mounts)

    @invariant()
    def what_is_placed_is_what_is_served(self) -> None:
        for place in self.world.state.places.values():
            assert (place.number in self.world.running) == (place.phase in (Phase.RUNNING, Phase.ENDING))
            if place.phase is Phase.RUNNING:
                assert self.world.running[place.number] == set(place.mounts)
            elif place.phase is Phase.WAITING:
                assert place.until - self.world.now <= PAUSE_MAX
            elif place.phase is Phase.EMPTY:
                assert not place.mounts

    def teardown(self) -> None:
        """Left alone, everything is served."""
        for worker in list(self.world.killed):
            self.world.die(worker, killed=True)
        self.world.wait(PAUSE_MAX)
        assert all(self.world.serving(mount) is not None for mount in self.mounts)


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
