"""Where things lie below the snapshotter's root.

::

    metadata.db          rows (tables.py)
    lock                 held by the process that serves this root
    s/<number>/fs        the directory of an ordinary snapshot: overlayfs' upperdir, later a lowerdir
    s/<number>/work      overlayfs' workdir
    s/new-*              a snapshot being made; garbage at a start
    l/<number or name>   a mounted lazy layer
    m/<number>/<n>       directories of a snapshot's chain as a container in a user namespace sees them

Names are short because all options of a mount must fit a page, with up to 128 lower directories among them.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from snapshotter import userns
from snapshotter.errors import FailedPreconditionError

_NEW = "new-"


@dataclass(frozen=True, slots=True)
class Paths:
    """The places below `root`."""

    root: Path

    @property
    def database(self) -> Path:
        """The rows."""
        return self.root / "metadata.db"

    @property
    def snapshots(self) -> Path:
        """The directory of the snapshots' directories."""
        return self.root / "s"

    @property
    def layers(self) -> Path:
        """The directory of the lazy layers' mountpoints."""
        return self.root / "l"

    @property
    def shifted(self) -> Path:
        """The directory of what is shown with other owners."""
        return self.root / "m"

    def directory(self, ident: int) -> Path:
        """All of one ordinary snapshot."""
        return self.snapshots / str(ident)

    def upper(self, ident: int) -> Path:
        """What an ordinary snapshot adds."""
        return self.snapshots / str(ident) / "fs"

    def number_of(self, upper: Path) -> int | None:
        """The snapshot whose `upper` this is; None if it is none of ours."""
        name = upper.parent.name
        if not (name.isascii() and name.isdigit()) or upper != self.upper(int(name)):
            return None
        return int(name)

    def work(self, ident: int) -> Path:
        """overlayfs' workdir of an active snapshot."""
        return self.snapshots / str(ident) / "work"

    def layer(self, name: str) -> Path:
        """The mountpoint of a lazy layer; `name` should be short."""
        return self.layers / name


def prepare_root(root: Path) -> Paths:
    """The places below `root`, whose directories are made (mode 0700) if they are not there.

    Raises:
        FailedPreconditionError: `root` is no directory, belongs to somebody else or can be written by others: what lies in
            it becomes the root of containers.
    """
    paths = Paths(Path(os.path.abspath(root)))
    paths.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_ancestors(paths.root)
    for path in (paths.root, paths.snapshots, paths.layers):
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.stat() if path is paths.root else path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise FailedPreconditionError(f"{path} is not a directory")
        if status.st_uid != os.geteuid():
            raise FailedPreconditionError(
                f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}: chown it or use another"
            )
        if status.st_mode & 0o022:
            raise FailedPreconditionError(
                f"{path} can be written by others (mode {status.st_mode & 0o7777:04o}): chmod go-w it"
            )
    return paths


def check_ancestors(path: Path) -> None:
    """Refuse `path` if others could put something else in its place: what is above it, followed as it is named and as it is.

    Raises:
        FailedPreconditionError: a directory above it belongs to another user, or can be written by others and is not sticky.
            In a user namespace, root cannot be told from users that are not in it: none of them counts as another.
    """
    above = dict.fromkeys([*Path(os.path.abspath(path)).parents, *Path(os.path.realpath(path)).parents])
    for directory in above:
        status = directory.stat()
        if status.st_uid not in (0, os.geteuid(), userns.outsider()):
            raise FailedPreconditionError(
                f"{directory}, above {path}, belongs to user {status.st_uid}, who could replace it: choose another place"
            )
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            raise FailedPreconditionError(
                f"{directory}, above {path}, can be written by others (mode {status.st_mode & 0o7777:04o}): chmod go-w it, "
                "or choose another place"
            )


def lock_root(paths: Paths) -> int:
    """A descriptor that keeps other processes from serving this root until it is closed.

    Raises:
        FailedPreconditionError: another process does.
    """
    descriptor = os.open(paths.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # A record lock belongs to this process alone: mount workers that outlive it do not hold it on.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise FailedPreconditionError(f"{paths.root} is served by another process: stop it or use another root") from error
    return descriptor


def make_snapshot(paths: Paths, *, work: bool, owner: tuple[int, int] | None) -> Path:
    """A new snapshot's directory under a temporary name: ``fs`` (mode 0755, of `owner`), and ``work`` where wanted.

    The modes are those of containerd's overlayfs snapshotter: ``fs`` becomes the root directory that a container sees.
    """
    made = Path(tempfile.mkdtemp(prefix=_NEW, dir=paths.snapshots))
    upper = made / "fs"
    upper.mkdir()
    upper.chmod(0o755)
    if owner is not None:
        os.chown(upper, *owner)
    if work:
        (made / "work").mkdir(mode=0o711)
    return made


def numbered(paths: Paths) -> set[int]:
    """The numbers of the snapshots that have a directory."""
    return {int(name) for name in os.listdir(paths.snapshots) if name.isascii() and name.isdigit()}


def unfinished(paths: Paths) -> list[Path]:
    """What was being made when an earlier process ended, and whatever else does not belong there."""
    return [paths.snapshots / name for name in os.listdir(paths.snapshots) if not (name.isascii() and name.isdigit())]


def sync_directory(path: Path) -> None:
    """Make the entries of the directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
