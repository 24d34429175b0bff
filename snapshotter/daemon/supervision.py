"""What to do about mount workers, as a state machine: events in, actions out; no process, no clock, no descriptor.

A *worker* here is a place that is numbered and has mounts; the process in it comes and goes. The rules:

1. A mount is in one place at a time. A new one goes to the ordinary place with the fewest.
2. A process that ended is followed by another with the same mounts: at once the first time, after a growing pause if each one
   dies early (`pause`). The pause stays short where others wait, or where the process was killed from outside.
3. A place whose processes keep dying early is split in two until the mount that kills them is alone (`SPLIT_AFTER`): no
   other layer goes with it. The halves that live return to the ordinary places, handed over as after a death.
4. A process that lives and does not answer is killed, and is then one that ended. One that has never answered yet may be
   starting, on a machine that is busy, for so long (`STARTING_MAX`): its successor would take no less.
5. A process that an earlier daemon started, from another release or configuration, is replaced in the same way.
6. A process that crashes early over its only mount may have died of a request: its mount's memory is told (`Blame`), so that a
   request that is there each time gets an error in the end. One that was killed says nothing about its requests.
7. A mount that a worker refuses to serve, because its files are gone, is given up: its users get an error instead of waiting.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

SETTLED_AFTER = 5.0
"""A process that ran for this many seconds has not died of what its predecessor died of."""
SPLIT_AFTER = 3
"""Early deaths in a row after which a place is split."""
PAUSE_SHARED = 1.0
"""Longest pause in seconds where nothing says that the mounts themselves are to blame: their users wait."""
PAUSE_MAX = 30.0
"""Longest pause in seconds before a process that crashes over its only mount is started again."""
RETURN_AFTER = 60.0
"""Seconds after which the mounts of a place that was split off and lives go back."""
STARTING_MAX = 60.0
"""Seconds in which a process must have answered for the first time. It takes 0.2 s on a machine that has nothing else to do."""
PLACES_MAX = 32
"""Places beyond which none is split: each process takes memory."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A connection is to be served: a new one, or one that is left of an earlier daemon."""

    mount: str


@dataclass(frozen=True, slots=True)
class Found:
    """A process of an earlier daemon runs and serves `mounts`. `current`: it is what would be started now."""

    worker: int
    mounts: tuple[str, ...]
    current: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is gone. `killed`: from outside, as far as can be known (SIGKILL)."""

    worker: int
    killed: bool


@dataclass(frozen=True, slots=True)
class Silent:
    """The process does not answer. `answered`: it has done so before."""

    worker: int
    answered: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The process cannot serve this mount, for a reason that will not change."""

    worker: int
    mount: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The mount was taken off and its last user is gone, or it is not to be served any more."""

    mount: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A mount may come soon."""


Event = Placed | Found | Ended | Silent | Refused | Gone | Tick | Expected


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process in this place; if it cannot be started, it has `Ended`."""

    worker: int


@dataclass(frozen=True, slots=True)
class Serve:
    """Give the mount to the process in this place."""

    worker: int
    mount: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process in this place; `Ended` follows."""

    worker: int


@dataclass(frozen=True, slots=True)
class Blame:
    """Remember, before the next process is given this mount, which of its requests the last one crashed with."""

    mount: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Close the connection of this mount: its users get ENOTCONN."""

    mount: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the administrator. `bad`: something that should not happen."""

    text: str
    bad: bool = True


Action = Start | Serve | Kill | Blame | GiveUp | Report


class Phase(enum.Enum):
    """What is in a place."""

    EMPTY = "empty"
    RUNNING = "running"
    ENDING = "ending"
    WAITING = "waiting"


@dataclass
class Place:
    """One worker. `since`: when the process was started; `until`: when the next one is to be."""

    number: int
    ordinary: bool = True
    phase: Phase = Phase.EMPTY
    since: float = 0.0
    until: float = 0.0
    deaths: int = 0
    crashes: int = 0
    restarts: int = 0
    blameless: bool = False
    returning: bool = False
    mounts: dict[str, None] = field(default_factory=dict)  # in the order in which they came


def pause(deaths: int, crashes: int, *, alone: bool) -> float:
    """Seconds to wait before the next start, after `deaths` early ones in a row, of which the last `crashes` were no kills."""
    if deaths <= 1:
        return 0.0
    longest = PAUSE_MAX if alone and crashes > SPLIT_AFTER else PAUSE_SHARED
    return min(longest, 0.1 * 2.0 ** min(deaths - 2, 16))


class Supervision:
    """The state: `ordinary` places at first, all empty."""

    def __init__(self, ordinary: int) -> None:
        self.places = {number: Place(number) for number in range(ordinary)}

    def step(self, event: Event, now: float) -> list[Action]:
        """What to do about `event`, which happened `now` (seconds of any clock that does not go back)."""
        match event:
            case Placed(mount):
                return self._place(mount, now)
            case Found(worker, mounts, current):
                return self._found(worker, mounts, current, now)
            case Ended(worker, killed):
                return self._ended(self.places[worker], killed, now)
            case Silent(worker, answered):
                return self._silent(self.places[worker], answered, now)
            case Refused(worker, mount, reason):
                if mount not in self.places[worker].mounts:
                    return []
                return [*self._gone(mount), GiveUp(mount, reason)]
            case Gone(mount):
                return self._gone(mount)
            case Tick():
                return self._tick(now)
            case Expected():
                running = any(place.phase is not Phase.EMPTY for place in self.places.values())
                return [] if running else self._start(next(iter(self.places.values())), now)

    def due(self) -> float | None:
        """When the next `Tick` must come; None if nothing waits for one."""
        times = [place.until for place in self.places.values() if place.phase is Phase.WAITING]
        times += [place.since + RETURN_AFTER for place in self.places.values() if self._may_return(place)]
        return min(times, default=None)

    def place_of(self, mount: str) -> Place | None:
        """Where a mount is."""
        return next((place for place in self.places.values() if mount in place.mounts), None)

    def _place(self, mount: str, now: float) -> list[Action]:
        ordinary = [place for place in self.places.values() if place.ordinary]
        best = min(ordinary, key=lambda place: (place.deaths > 1, len(place.mounts), place.number))
        best.mounts[mount] = None
        if best.phase is Phase.RUNNING:
            return [Serve(best.number, mount)]
        if best.phase is Phase.EMPTY:
            return self._start(best, now)
        return []  # the next process gets it with the others

    def _start(self, place: Place, now: float) -> list[Action]:
        place.phase, place.since = Phase.RUNNING, now
        return [Start(place.number), *(Serve(place.number, mount) for mount in place.mounts)]

    def _found(self, worker: int, mounts: Iterable[str], current: bool, now: float) -> list[Action]:
        place = self.places.setdefault(worker, Place(worker, ordinary=False))
        place.phase, place.since = Phase.RUNNING, now
        place.mounts.update(dict.fromkeys(mounts))
        if current:
            return []
        place.phase, place.blameless = Phase.ENDING, True
        text = f"mount worker {worker} is of another release or configuration: another takes its {len(place.mounts)} mounts"
        return [Report(text, bad=False), Kill(worker)]

    def _ended(self, place: Place, killed: bool, now: float) -> list[Action]:
        early = now - place.since < SETTLED_AFTER
        blameless, place.blameless = place.blameless, False
        if place.phase is not Phase.RUNNING and place.phase is not Phase.ENDING:
            return []
        place.phase = Phase.EMPTY
        if place.returning or (not place.mounts and not place.ordinary):
            del self.places[place.number]
            return [action for mount in place.mounts for action in self._place(mount, now)]
        if not place.mounts:
            return []
        place.restarts += 1
        if blameless:
            return self._start(place, now)
        place.deaths = place.deaths + 1 if early else 1
        place.crashes = 0 if killed else place.crashes + 1 if early else 1
        how = "was killed" if killed else "died"
        text = f"mount worker {place.number} {how} after {now - place.since:.1f} s; {len(place.mounts)} mounts get a new one"
        if place.deaths >= SPLIT_AFTER:
            if len(place.mounts) > 1 and len(self.places) < PLACES_MAX:
                return [Report(f"{text}, half of them elsewhere: one may be what kills it"), *self._split(place, now)]
            if _guilty(place) and place.ordinary:
                self._quarantine(place)
        wait = pause(place.deaths, place.crashes, alone=len(place.mounts) == 1)
        blame = [Blame(mount) for mount in place.mounts] if early and not killed and len(place.mounts) == 1 else []
        if wait == 0:
            return [*blame, Report(text), *self._start(place, now)]
        place.phase, place.until = Phase.WAITING, now + wait
        alone = f" (mount {next(iter(place.mounts))} alone)" if len(place.mounts) == 1 else ""
        return [*blame, Report(f"{text} in {wait:.1f} s, after {place.deaths} early deaths in a row{alone}")]

    def _split(self, place: Place, now: float) -> list[Action]:
        """Both halves start at once, and the one that dies again is split again at once."""
        half = list(place.mounts)[len(place.mounts) // 2 :]
        other = self.places[max(self.places) + 1] = Place(max(self.places) + 1, ordinary=False)
        other.mounts = dict.fromkeys(half)
        place.mounts = {mount: None for mount in place.mounts if mount not in other.mounts}
        place.deaths = other.deaths = SPLIT_AFTER - 1
        return [*self._start(place, now), *self._start(other, now)]

    def _quarantine(self, place: Place) -> None:
        """The place of a mount that kills its process is no place for others: a new one takes its part."""
        place.ordinary = False
        number = max(self.places) + 1
        self.places[number] = Place(number)

    def _silent(self, place: Place, answered: bool, now: float) -> list[Action]:
        if place.phase is not Phase.RUNNING or (not answered and now - place.since < STARTING_MAX):
            return []
        place.phase = Phase.ENDING
        return [Report(f"mount worker {place.number} does not answer and is killed"), Kill(place.number)]

    def _gone(self, mount: str) -> list[Action]:
        place = self.place_of(mount)
        if place is None:
            return []
        del place.mounts[mount]
        if not place.mounts and not place.ordinary:
            if place.phase is Phase.RUNNING:
                place.phase = Phase.ENDING
                return [Kill(place.number)]
            if place.phase is Phase.WAITING:
                del self.places[place.number]
        elif not place.mounts and place.phase is Phase.WAITING:
            place.phase = Phase.EMPTY
        return []

    def _may_return(self, place: Place) -> bool:
        return not place.ordinary and place.phase is Phase.RUNNING and not _guilty(place)

    def _tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for place in list(self.places.values()):
            if place.phase is Phase.WAITING and place.until <= now:
                actions += self._start(place, now)
            elif self._may_return(place) and place.since + RETURN_AFTER <= now:
                place.phase, place.returning = Phase.ENDING, True
                text = f"mount worker {place.number} lives: its {len(place.mounts)} mounts go back to the ordinary ones"
                actions += [Report(text, bad=False), Kill(place.number)]
        return actions


def _guilty(place: Place) -> bool:
    """Whether the place has the one mount over which processes crash early, again and again; it stays alone."""
    return len(place.mounts) == 1 and place.crashes >= SPLIT_AFTER
