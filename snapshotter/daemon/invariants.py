"""What must be true of a snapshotter's root: rows, directories, layers, mounts and cache agree.

`Facts` is what one look finds; `broken` and `garbage` are pure functions of it. *Broken* is what fails a container or a pull
and does not mend itself. *Garbage* is what nobody uses any more: it is normal until the next clean-up, and afterwards a leak.

A look needs no lock, and a daemon may be at work meanwhile: then it may see the middle of something. Whoever looks at a busy
root looks again, and believes what it has seen each time (`settled`).
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snapshotter.chunkstore.directory import STALE_TEMPORARY
from snapshotter.chunkstore.publish import TEMPORARY
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.digest import Digest, chain_id, sha256, to_text
from snapshotter.mount import mounting
from snapshotter.snapshots import lazy
from snapshotter.snapshots.metastore import PAGE, Reader
from snapshotter.snapshots.model import REF_LABEL, Kind, Layer, Row
from snapshotter.snapshots.paths import Paths

_CHUNK = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A directory below ``layers``: whether its message is there (checked: and right), and which mountpoint it names."""

    metadata: bool
    number: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """One look at a root.

    `rows`: every snapshot. `hinted`: the layers that somebody asked for. `database`: what SQLite says is wrong with itself.
    `directories`: the snapshots that have one, and the names in it. `strays`: what does not belong where it is. `layers`: by
    diff ID. `mountpoints`: the directories below ``l``. `mounts`: how often each of them has a layer mounted. `shifted`: the
    snapshots that are shown directories with other owners.
    """

    rows: Sequence[Row] = ()
    hinted: frozenset[Digest] = frozenset()
    database: Sequence[str] = ()
    directories: Mapping[int, frozenset[str]] = field(default_factory=dict)
    strays: Sequence[str] = ()
    layers: Mapping[Digest, LayerFacts] = field(default_factory=dict)
    mountpoints: frozenset[int] = frozenset()
    mounts: Mapping[int, int] = field(default_factory=dict)
    shifted: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Report:
    """What is wrong with a root, one line each; both empty if nothing is."""

    broken: tuple[str, ...]
    garbage: tuple[str, ...]


def examine(root: Path, *, contents: bool = False) -> Report:
    """One look at the root of a snapshotter, whose daemon may run or not.

    `contents`: every layer's metadata and every cached chunk is read and compared with its digest, too.

    Raises:
        NotFoundError: there is no snapshotter's root.
        CorruptError: its database is none.
    """
    facts = look(root, contents=contents)
    return Report(tuple(broken(facts)), tuple(garbage(facts)))


def settled(root: Path, *, looks: int = 3, pause: float = 0.5) -> Report:
    """What every one of several looks has found: nothing of it is a daemon's work under way.

    Raises:
        NotFoundError, CorruptError: as `examine`.
    """
    report = examine(root)
    for _ in range(looks - 1):
        if not report.broken and not report.garbage:
            break
        time.sleep(pause)
        again = examine(root)
        report = Report(
            tuple(line for line in report.broken if line in again.broken),
            tuple(line for line in report.garbage if line in again.garbage),
        )
    return report


def broken(facts: Facts) -> Iterator[str]:
    """What fails a container or a pull, and does not mend itself."""
    yield from facts.database
    rows = {row.id: row for row in facts.rows}
    for row in facts.rows:
        yield from _broken_row(row, rows, facts)
    used = {row.diff_id for row in facts.rows if row.layer is Layer.METADATA and row.diff_id is not None}
    for diff_id in sorted(used):
        name, found = f"layer {to_text(diff_id)}", facts.layers.get(diff_id)
        if diff_id not in facts.hinted:
            yield f"{name} is used, and nothing says where it is from"
        if found is None or not found.metadata:
            yield f"{name} is used, and its metadata is missing or wrong"
        elif found.number is None or facts.mounts.get(found.number, 0) == 0:
            yield f"{name} is used and not mounted"
    numbers = Counter(found.number for found in facts.layers.values() if found.number is not None)
    for number, count in sorted(numbers.items()):
        if count > 1:
            yield f"{count} layers name the mountpoint l/{number}"
    for number, count in sorted(facts.mounts.items()):
        if count > 1:
            yield f"l/{number} is mounted {count} times"


def _broken_row(row: Row, rows: Mapping[int, Row], facts: Facts) -> Iterator[str]:
    name, info = f"snapshot {row.info.name!r} (number {row.id})", row.info
    above = None if row.parent_id is None else rows.get(row.parent_id)
    if row.parent_id is not None and above is None:
        yield f"{name} stands on number {row.parent_id}, which does not exist"
    if above is not None and above.info.kind is not Kind.COMMITTED:
        yield f"{name} stands on {above.info.name!r}, which is not committed"
    if row.layer is not Layer.ORDINARY and info.kind is Kind.VIEW:
        yield f"{name} is a view and a layer"
    if row.chain_id is not None and row.diff_id is not None and (above is None or lazy.chain_of(above) is not None):
        below = None if above is None else lazy.chain_of(above)
        if chain_id(below, row.diff_id) != row.chain_id:
            yield f"{name} has a chain ID that its layer and its parent do not make"
    if row.layer is Layer.ORDINARY or info.kind is not Kind.COMMITTED:
        wanted = {"fs", "work"} if info.kind is Kind.ACTIVE else {"fs"}
        missing = wanted - facts.directories.get(row.id, frozenset())
        if missing:
            yield f"{name} has no directory s/{row.id}/{min(missing)}"


def garbage(facts: Facts) -> Iterator[str]:
    """What nobody uses: it should be gone after a clean-up."""
    owners = {row.id for row in facts.rows if row.layer is Layer.ORDINARY or row.info.kind is not Kind.COMMITTED}
    for number in sorted(set(facts.directories) - owners):
        yield f"directory s/{number} belongs to no snapshot"
    for number in sorted(facts.shifted - owners):
        yield f"m/{number} shows directories to no snapshot"
    used = {row.diff_id for row in facts.rows if row.layer is Layer.METADATA}
    for diff_id in sorted(facts.hinted - used):
        yield f"layer {to_text(diff_id)} is remembered, and no snapshot uses it"
    for diff_id in sorted(set(facts.layers) - used):
        yield f"layer {to_text(diff_id)} is kept, and no snapshot uses it"
    named = {found.number for found in facts.layers.values()}
    for number in sorted(facts.mountpoints - named):
        yield f"mountpoint l/{number} belongs to no layer"
    for number in sorted(set(facts.mounts) - named):
        yield f"a layer is mounted on l/{number}, and no layer is kept for it"
    yield from facts.strays


def look(root: Path, *, contents: bool = False) -> Facts:
    """The facts, as they are now.

    Raises:
        NotFoundError: there is no snapshotter's root.
        CorruptError: its database is none.
    """
    paths = Paths(root)
    if not paths.database.exists():
        raise NotFoundError(f"{root} is no snapshotter's root: there is no {paths.database.name}")
    strays = [f"{path.relative_to(root)} does not belong there" for path in _unnumbered(paths.snapshots)]
    strays += [f"{path.relative_to(root)} does not belong there" for path in _unnumbered(paths.layers)]
    # What a row needs is there before the row, and goes after it: rows last when something is found missing, first when
    # something is found left over. One look cannot be both, so it reads them in the middle.
    directories = {int(path.name): frozenset(_names(path)) for path in _numbered(paths.snapshots)}
    rows, hinted, database = _database(paths.database)
    shifted = frozenset(int(path.name) for path in _numbered(paths.shifted))
    layers = dict(_layers(root / "layers", contents=contents))
    mountpoints = frozenset(int(path.name) for path in _numbered(paths.layers))
    mounts = Counter(
        int(info.mountpoint.name)
        for info in mounting.our_mounts(Path(os.path.realpath(paths.layers)))
        if info.mountpoint.name.isdigit()
    )
    strays += _cache(root / "chunks", contents=contents)
    return Facts(rows, hinted, database, directories, strays, layers, mountpoints, mounts, shifted)


def _database(path: Path) -> tuple[list[Row], frozenset[Digest], list[str]]:
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            connection.execute("BEGIN")
            reader, rows, after = Reader(connection), [], 0
            while page := reader.page(after):
                rows += page
                after = page[-1].id
                if len(page) < PAGE:
                    break
            wrong = [f"{path.name}: {line}" for (line,) in connection.execute("PRAGMA quick_check") if line != "ok"]
            wrong += [
                f"{path.name}: row {row} of {table} refers to nothing"
                for table, row, *_ in connection.execute("PRAGMA foreign_key_check")
            ]
            wrong += [
                f"{path.name}: the index of {row.info.name!r} has another {REF_LABEL} than its labels"
                for row in rows
                if row.info.labels.get(REF_LABEL) not in (None, "")
                and row not in reader.page(row.id - 1, name=row.info.name, ref=row.info.labels[REF_LABEL])
            ]
            return rows, frozenset(reader.hinted()), wrong
    except sqlite3.Error as error:
        raise CorruptError(f"{path} cannot be read as a snapshotter's database: {error}") from error


def _layers(directory: Path, *, contents: bool) -> Iterator[tuple[Digest, LayerFacts]]:
    for path in _entries(directory):
        try:
            diff_id = Digest(bytes.fromhex(path.name))
        except ValueError:
            continue
        number = None
        with contextlib.suppress(OSError, ValueError):
            number = int((path / "number").read_text())
        metadata = (path / "metadata").exists()
        if metadata and contents:
            with contextlib.suppress(OSError):
                metadata = sha256((path / "metadata").read_bytes()) == diff_id
        yield diff_id, LayerFacts(metadata, number)


def _cache(directory: Path, *, contents: bool) -> Iterator[str]:
    now = time.time()
    for group in _entries(directory):
        for path in _entries(group):
            where = f"chunks/{group.name}/{path.name}"
            if group.name == TEMPORARY:
                with contextlib.suppress(OSError):
                    if now - path.stat().st_mtime > STALE_TEMPORARY:
                        yield f"{where} is a temporary file that nobody writes any more"
            elif not _CHUNK.match(path.name) or path.name[:2] != group.name:
                yield f"{where} is not named as a chunk is"
            elif contents:
                with contextlib.suppress(OSError):
                    if sha256(path.read_bytes()).hex() != path.name:
                        yield f"{where} does not hold the chunk that it is named after"


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _names(directory: Path) -> list[str]:
    return [path.name for path in _entries(directory)]


def _numbered(directory: Path) -> list[Path]:
    return [path for path in _entries(directory) if path.name.isascii() and path.name.isdigit()]


def _unnumbered(directory: Path) -> list[Path]:
    return [path for path in _entries(directory) if not (path.name.isascii() and path.name.isdigit())]
