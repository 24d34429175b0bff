"""What must outlive the server of a mount, in memory that stands beside the mount's /dev/fuse descriptor (memfd_create(2)).

* What INIT agreed on, since the kernel sends INIT once.
* Every request that a server has taken from the kernel and not answered. The kernel copies a request straight into this
  memory (`Journal.landing`), so there is no moment at which it is with a server that dies and nowhere else. One that is
  answered later is copied to a slot, before the next one lands.

So a successor can answer what its predecessor left, on any kernel; since Linux 6.9 the kernel also hands it out again
(FUSE_NOTIFY_RESEND). Answering twice does no harm: a unique number is never used again, and the kernel refuses a reply to
one that it does not know (ENOENT, fuse_dev_do_write).

A request that was under way whenever a server crashed is taken for what kills them (`Journal.condemned`): it gets an error in
the end, and its mount a server that lives. Who saw the crash says so (`blame`): a server that was killed from outside, however
often, says nothing about its requests. A caller that gets an error asks again, the kernel itself does so page by page, and that
is another request: what was condemned is remembered, and one that asks for the same is condemned at its first crash.

Layout (host byte order; `LAYOUT` changes with it)::

    0     magic, layout, slots ever used
    16    INIT is done, minor version, flags, the kernel's flags
    64    length of the label, and the label: JSON, what the mount is
    2048  slots: a request as it came, its first word (its length) 0 where the slot is free
    ...   suspects: a unique number, and how many servers crashed while they had that request; 0 where there is none
    ...   what was condemned, the latest first: node, operation, start and end of the bytes; 0 where there is none
    ...   the landing place
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
from collections.abc import Mapping
from typing import NamedTuple

from snapshotter.errors import InvalidError
from snapshotter.mount import wire
from snapshotter.mount.wire import MalformedRequestError, Negotiated

LAYOUT = 1
# 1 also where it had 64 slots more and no suspects: the last slots were then where the suspects are. That many requests never
# waited, so both releases read each other's memory. What was condemned stands where the last suspects were.
LABEL_MAX = 1900
"""Longest label in bytes."""
SLOTS = 4032
"""Requests of one mount that are remembered while they wait; 80 bytes each, taken from the page only when used."""
SLOT_SIZE = 96
SUSPECTS = 256
"""Requests of which it is remembered how many servers crashed with them."""
CRASHES_MAX = 8
"""After so many the request is not tried again. Servers come back more and more slowly (`supervision.pause`), so that this
takes some ten seconds, in which whatever else they died of may have ended."""
CONDEMNED = 64
"""Questions that were condemned, of which so many are remembered."""

_MAGIC = b"pzfsconn"
_HEAD = struct.Struct("<8sII")
_AGREED = struct.Struct("<IIQQ")
_AGREED_AT = 16
_LENGTH = struct.Struct("<I")
_LABEL_AT = 64
_SLOTS_AT = 2048
_SUSPECT = struct.Struct("<QQ")
_SUSPECTS_AT = _SLOTS_AT + SLOTS * SLOT_SIZE
_SUSPECTS_END = _SUSPECTS_AT + SUSPECTS * _SUSPECT.size
_QUESTION = struct.Struct("<QQQQ")
_OFFSET_MAX = (1 << 63) - 1
_CONDEMNED_END = _SUSPECTS_END + CONDEMNED * _QUESTION.size
_LANDING_AT = (_CONDEMNED_END + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
SIZE = _LANDING_AT + wire.BUFFER_SIZE

_FREE = _LENGTH.pack(0)


class State(NamedTuple):
    """What the memory of a mount says about it: its label, and what INIT agreed on (None: INIT is not done)."""

    label: Mapping[str, str]
    negotiated: Negotiated | None


class Question(NamedTuple):
    """What a request asks for, whoever asks and however often: of a READ the bytes from `start` to `end`, of others 0 and 1."""

    nodeid: int
    opcode: int
    start: int
    end: int

    def overlaps(self, other: Question) -> bool:
        """Whether an answer to the one is, in part, one to the other."""
        same = self.nodeid == other.nodeid and self.opcode == other.opcode
        return same and self.start < other.end and other.start < self.end


def create(label: Mapping[str, str]) -> int:
    """The memory of a new mount: a descriptor, the caller's to close.

    Raises:
        InvalidError: the label is too long.
    """
    text = json.dumps(label).encode()
    if len(text) > LABEL_MAX:
        raise InvalidError(f"the label of a mount has {len(text)} bytes, at most {LABEL_MAX} are allowed")
    fd = os.memfd_create("puzzlefs-mount", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    # Nobody who has it can make it shorter under another's map.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    os.pwrite(fd, _LENGTH.pack(len(text)) + text, _LABEL_AT)
    os.pwrite(fd, _HEAD.pack(_MAGIC, LAYOUT, 0), 0)
    return fd


def read_state(fd: int) -> State:
    """What the memory `fd` says.

    Raises:
        InvalidError: it is no such memory, or of a release with another layout.
    """
    data = os.pread(fd, _SLOTS_AT, 0) if os.fstat(fd).st_size == SIZE else b""
    if len(data) != _SLOTS_AT:
        raise InvalidError("not the memory of a mount")
    magic, layout, _ = _HEAD.unpack_from(data)
    if magic != _MAGIC or layout != LAYOUT:
        raise InvalidError(f"the memory of a mount has layout {layout}, this release knows {LAYOUT}")
    (length,) = _LENGTH.unpack_from(data, _LABEL_AT)
    try:
        label = json.loads(data[_LABEL_AT + _LENGTH.size : _LABEL_AT + _LENGTH.size + min(length, LABEL_MAX)])
    except ValueError as error:
        raise InvalidError(f"the label of a mount cannot be read: {error}") from error
    if not isinstance(label, dict) or not all(isinstance(value, str) for value in label.values()):
        raise InvalidError("the label of a mount is no object of strings")
    done, minor, flags, kernel_flags = _AGREED.unpack_from(data, _AGREED_AT)
    return State(label, Negotiated(minor, flags, kernel_flags) if done else None)


def blame(fd: int) -> None:
    """The server of the mount with the memory `fd` crashed, and no other is there yet: remember which requests it had.

    Raises:
        InvalidError: as `read_state`.
    """
    with contextlib.closing(Journal(os.dup(fd))) as journal:
        journal.count_crash()


class Journal:
    """The memory `fd`, which is the journal's to close from now on, as the server of the mount uses it.

    `keep` is for the thread that reads requests; `done` for whoever answered, in any thread.

    Raises:
        InvalidError: as `read_state`.
    """

    def __init__(self, fd: int) -> None:
        try:
            self.negotiated = read_state(fd).negotiated
            """What a server before this one agreed on; None where INIT is not done."""
            self._map = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        self.landing = memoryview(self._map)[_LANDING_AT:]
        """Where read(2) of /dev/fuse has to put requests."""
        self._used = _HEAD.unpack_from(self._map)[2]
        self._free = [slot for slot in range(self._used) if self._map[_at(slot) : _at(slot) + _LENGTH.size] == _FREE]
        self.condemned = frozenset(unique for unique, count in self._suspects().items() if count >= CRASHES_MAX)
        """The unique numbers of requests, as the kernel gave them first, with which too many servers crashed."""

    def agree(self, negotiated: Negotiated) -> None:
        """INIT is done."""
        self.negotiated = negotiated
        self._map[_AGREED_AT + 4 : _AGREED_AT + _AGREED.size] = _AGREED.pack(1, *negotiated)[4:]
        self._map[_AGREED_AT : _AGREED_AT + 4] = _LENGTH.pack(1)

    def keep(self, request: memoryview) -> int | None:
        """Remember a request that is answered later; a slot for `done`. None: it is too long, or too many wait already."""
        if len(request) > SLOT_SIZE:
            return None
        if self._free:
            slot = self._free.pop()
        elif self._used < SLOTS:
            slot = self._used
            self._used += 1
            _HEAD.pack_into(self._map, 0, _MAGIC, LAYOUT, self._used)
        else:
            return None
        at = _at(slot)
        self._map[at : at + len(request)] = request
        return slot

    def done(self, slot: int | None) -> None:
        """The request in `slot` is answered."""
        if slot is not None:
            at = _at(slot)
            self._map[at : at + _LENGTH.size] = _FREE
            self._free.append(slot)

    def unanswered(self) -> list[tuple[int | None, bytes]]:
        """What a server before this one took along: slots and requests, the last one that landed at the end, with no slot.

        Some of them may have been answered in the server's last moment.
        """
        free = set(self._free)
        found: list[tuple[int | None, bytes]] = []
        for slot in range(self._used):
            if slot not in free:
                (length,) = _LENGTH.unpack_from(self._map, _at(slot))
                found.append((slot, self._map[_at(slot) : _at(slot) + min(length, SLOT_SIZE)]))
        (length,) = _LENGTH.unpack_from(self.landing)
        if wire.IN_HEADER.size <= length <= len(self.landing):
            found.append((None, bytes(self.landing[:length])))
        return found

    def count_crash(self) -> None:
        """The server before crashed: one more for each request that it left; those that were answered since are forgotten."""
        before = self._suspects()
        known = self._condemned_questions()
        counts: dict[int, int] = {}
        asked: dict[int, Question] = {}
        for _, request in self.unanswered():
            unique, question = wire.first_unique(request), _question(request)
            again = any(question.overlaps(other) for other in known)
            counts[unique] = CRASHES_MAX if again else before.get(unique, 0) + 1
            asked[unique] = question
        # the old suspects first: they are the likelier ones where there are too many
        left = sorted(counts, key=lambda unique: -counts[unique])[:SUSPECTS]
        data = b"".join(_SUSPECT.pack(unique, counts[unique]) for unique in left)
        self._map[_SUSPECTS_AT:_SUSPECTS_END] = data.ljust(_SUSPECTS_END - _SUSPECTS_AT, b"\0")
        now = [asked[unique] for unique in left if counts[unique] >= CRASHES_MAX]
        data = b"".join(_QUESTION.pack(*question) for question in [*dict.fromkeys(now + known)][:CONDEMNED])
        self._map[_SUSPECTS_END:_CONDEMNED_END] = data.ljust(_CONDEMNED_END - _SUSPECTS_END, b"\0")

    def _condemned_questions(self) -> list[Question]:
        data = self._map[_SUSPECTS_END:_CONDEMNED_END]
        return [Question(*values) for values in _QUESTION.iter_unpack(data) if values[1]]

    def _suspects(self) -> dict[int, int]:
        return {unique: count for unique, count in _SUSPECT.iter_unpack(self._map[_SUSPECTS_AT:_SUSPECTS_END]) if count}

    def taken(self) -> None:
        """What had landed last is answered, or in a slot of its own: no successor has to ask for it."""
        self.landing[: _LENGTH.size] = _FREE

    def forget(self) -> None:
        """Nothing is unanswered any more: the kernel has it again."""
        self.taken()
        free = set(self._free)
        for slot in range(self._used):
            if slot not in free:
                self.done(slot)

    def close(self) -> None:
        """Let go of the memory. What still looks at it, an error that is being reported, holds it until then."""
        with contextlib.suppress(BufferError):
            self.landing.release()
            self._map.close()


def _question(data: bytes) -> Question:
    try:
        request = wire.parse_request(memoryview(data))
        if request.opcode != wire.Opcode.READ:
            return Question(request.nodeid, request.opcode, 0, 1)
        offset, size = wire.parse_read(request)
    except MalformedRequestError:
        return Question(0, 0, 0, 0)  # like no other, and not remembered
    offset = min(offset, _OFFSET_MAX)
    return Question(request.nodeid, request.opcode, offset, offset + max(size, 1))


def _at(slot: int) -> int:
    return _SLOTS_AT + slot * SLOT_SIZE
