"""A user namespace with mounts of its own, as ``podman unshare`` makes it for an ordinary user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import tools
from tests.support.processes import CommandError, run

USER = 4711
"""The user, who need not be in /etc/passwd. It is root in the namespace."""
OTHERS = 200_000
"""What users 1 to 65536 of the namespace are outside (subuid(5))."""
_LARGE = 2_000_000_000
"""Of a file in the tests' images."""
_TABLE = (f"0 {USER} 1", f"1 {OTHERS} 65536", f"{_LARGE} {_LARGE} 65536", "")

# First root's part: a mount namespace in which the user may open /dev/fuse, as on any Debian, and get at this interpreter and
# at what is under test, which may lie in somebody's home directory; then the user's own namespaces.
_ENTER = """
import ctypes, os, subprocess, sys
user, needed = int(sys.argv[1]), sys.argv[2:]
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUSER, PR_SET_DUMPABLE = 0x20000, 0x10000000, 4
def unshare(what):
    if libc.unshare(what) != 0:
        sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)
unshare(NEWNS)
mount("--make-rslave", "/")
opened = [(directory, os.open(directory, os.O_PATH)) for directory in needed]
for directory, fd in opened:
    parts = directory.split("/")
    for above in ("/".join(parts[:count]) for count in range(2, len(parts))):
        if not os.stat(above).st_mode & 1:
            mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", above)
            break
    os.makedirs(directory, exist_ok=True)
    if not os.path.samestat(os.stat(directory), os.fstat(fd)):
        # not by mount(8), which would look for it where it was
        if libc.mount(b"/proc/self/fd/%d" % fd, directory.encode(), None, 0x1000 | 0x4000, None) != 0:
            sys.exit(f"binding {directory}: {os.strerror(ctypes.get_errno())}")
mount("-t", "tmpfs", "tmpfs", "/mnt")
os.mknod("/mnt/fuse", 0o20666, os.makedev(10, 229))
os.chmod("/mnt/fuse", 0o666)
mount("--bind", "/mnt/fuse", "/dev/fuse")
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
unshare(NEWUSER | NEWNS)
print("unshared", flush=True)
sys.stdin.readline()
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
mount("--make-rshared", "/")
print("ready", flush=True)
sys.stdin.read()
"""


class UserNamespace:
    """The namespace of user `USER`, whose `home` is given to it; it lasts until `close`. Needs root."""

    def __init__(self, home: Path) -> None:
        """Raises CommandError: the kernel does not make one."""
        self.own(home)
        needed = [os.path.realpath(directory) for directory in (sys.base_prefix, tools.ROOT, tools.STATE, home)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ENTER, str(USER), *needed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        self._expect("unshared")
        for table in ("uid_map", "gid_map"):
            Path(f"/proc/{self._process.pid}/{table}").write_text("\n".join(_TABLE))
        self._process.stdin.write("mapped\n")
        self._process.stdin.flush()
        self._expect("ready")

    def enter(self, pid: int | None = None) -> list[str]:
        """The words before a command that is to run in it, as root; in the mount namespace of process `pid` if given."""
        target = str(self._process.pid if pid is None else pid)
        return [tools.find("nsenter"), "--user", "--mount", "--target", target, "--setuid", "0", "--setgid", "0", "--"]

    def own(self, directory: Path) -> None:
        """Give `directory` and what is in it to the user."""
        run("chown", "-R", f"{USER}:{USER}", directory)

    def podman(self) -> dict[str, str]:
        """What ``podman unshare`` adds to the environment (containers/storage, ``pkg/unshare``): whose namespace it is."""
        return {
            "_CONTAINERS_USERNS_CONFIGURED": "done",
            "_CONTAINERS_ROOTLESS_UID": str(USER),
            "_CONTAINERS_ROOTLESS_GID": str(USER),
        }

    def close(self) -> None:
        """End it; what is mounted there goes with its last process."""
        self._process.kill()
        self._process.communicate()

    def _expect(self, said: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != f"{said}\n":
            self._process.kill()
            raise CommandError(f"no user namespace: {self._process.communicate()[1]}")
