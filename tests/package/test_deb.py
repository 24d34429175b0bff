"""The Debian package, installed, used, removed and purged in a Debian that has nothing else."""

from __future__ import annotations

import pytest

from snapshotter import __version__
from snapshotter.cli.main import puzzlefs
from tests.package.conftest import FILES, INSTALL
from tests.support.chroots import Chroot

pytestmark = pytest.mark.root

CONFIG = "/etc/puzzlefs/config.toml"


def test_commands_run(debian: Chroot) -> None:
    """Both programs, and every command of the first: its modules and libraries are there."""
    assert debian.shell("puzzlefs --version") == f"puzzlefs, version {__version__}\n"
    assert debian.shell("puzzlefs-snapshotter --version") == f"puzzlefs-snapshotter, version {__version__}\n"
    for command in puzzlefs.list_commands(None):  # type: ignore[arg-type]
        assert debian.shell(f"puzzlefs {command} --help").startswith(f"Usage: puzzlefs {command} "), command


def test_an_image_is_built_and_extracted(debian: Chroot) -> None:
    """The libraries do what they are for, and nothing of it is written into the installation."""
    script = (
        "cd /root; mkdir tree; echo text >tree/file; puzzlefs build tree images:t; puzzlefs extract images:t out; cat out/file"
    )
    assert debian.shell(script).endswith("text\n")
    assert debian.shell("find /usr -newer /var/lib/dpkg/info/puzzlefs-snapshotter.list -type f -name '*.pyc'") == ""


def test_libraries_are_complete(debian: Chroot) -> None:
    """Every shared object finds what it needs in the packages that ours depends on."""
    found = debian.shell("find /usr/lib/puzzlefs -name '*.so*' -exec ldd {} + | grep 'not found' || true")
    assert found == ""


def test_the_daemon_serves_and_ends(debian: Chroot) -> None:
    """Started as the unit starts it, with its workers, until SIGTERM; its root is its own."""
    script = """
    puzzlefs-snapshotter --config /etc/puzzlefs/config.toml >/root/log &
    pid=$!
    for i in $(seq 300); do [ -S /run/puzzlefs/snapshotter.sock ] && break; sleep 0.1; done
    stat -c '%a %U %F' /run/puzzlefs/snapshotter.sock /var/lib/puzzlefs
    kill $pid
    wait $pid
    cat /root/log
    """
    said = debian.shell(script)
    assert "600 root socket\n700 root directory\n" in said
    assert "serving at /run/puzzlefs/snapshotter.sock" in said
    assert "died" not in said


def test_the_unit(debian: Chroot) -> None:
    """systemd takes it as it is, and starts it with the machine."""
    assert debian.shell("systemd-analyze verify /lib/systemd/system/puzzlefs-snapshotter.service") == ""
    assert debian.shell("systemctl is-enabled puzzlefs-snapshotter.service") == "enabled\n"


def test_manual_pages(debian: Chroot) -> None:
    """One for each command, for the daemon and for the configuration; they render without a warning."""
    pages = debian.shell("ls /usr/share/man/man*/puzzlefs* | sed 's,.*/,,; s,.gz$,,'").split()
    wanted = {f"puzzlefs-{command}.1" for command in puzzlefs.list_commands(None)}  # type: ignore[arg-type]
    assert set(pages) == wanted | {"puzzlefs.1", "puzzlefs-snapshotter.8", "puzzlefs-config.5"}
    render = "export LC_ALL=C.UTF-8 MANWIDTH=80; for page in /usr/share/man/man*/puzzlefs*; do"
    assert debian.shell(f"{render} man --warnings -E UTF-8 -l -Tutf8 -Z $page 2>&1 >/dev/null; done") == ""
    shown = debian.shell("LC_ALL=C.UTF-8 MANWIDTH=120 man puzzlefs-snapshotter | cat")
    assert "--config" in shown
    assert "SIGTERM" in shown


def test_completions(debian: Chroot) -> None:
    """The shells' scripts are valid, and what they call answers."""
    debian.run("bash", "-c", ". /usr/share/bash-completion/completions/puzzlefs && type _puzzlefs_completion")
    asked = "COMP_WORDS='puzzlefs doc' COMP_CWORD=1 _PUZZLEFS_COMPLETE=bash_complete puzzlefs"
    assert debian.shell(asked) == "plain,doctor\n"
    assert debian.shell("head -1 /usr/share/zsh/vendor-completions/_puzzlefs") == "#compdef puzzlefs\n"
    assert "complete " in debian.shell("cat /usr/share/fish/vendor_completions.d/puzzlefs.fish")


def test_installed_again_removed_and_purged(debian: Chroot) -> None:
    """A changed configuration survives an installation; removal keeps it and the state; a purge leaves nothing, and neither
    takes anything from under a container.

    The last test of this module: the package is gone after it.
    """
    assert debian.shell(f"stat -c %a {CONFIG}") == "600\n"
    debian.shell(f"echo 'log_level = \"debug\"' >{CONFIG}; mkdir -p /var/lib/puzzlefs/s/1; {INSTALL}")
    assert debian.shell(f"cat {CONFIG}") == 'log_level = "debug"\n'
    assert debian.shell("systemctl is-enabled puzzlefs-snapshotter.service") == "enabled\n"

    # layers that a container stands on, and that none does any more
    layers = "/var/lib/puzzlefs/l/1 /var/lib/puzzlefs/l/2"
    debian.shell(f"mkdir -p {layers}; for layer in {layers}; do mount -t tmpfs layer $layer; done")
    debian.shell("mount -t overlay -o lowerdir=/var/lib/puzzlefs/l/1:/var/lib/puzzlefs/l/2 overlay /mnt")
    assert "its mounts are left to them" in debian.shell("dpkg -r puzzlefs-snapshotter")
    assert "is in use; it is left there" in debian.shell("dpkg -P puzzlefs-snapshotter")
    debian.shell(f"umount /mnt; mountpoint -q /var/lib/puzzlefs/l/1; {INSTALL}; echo 'log_level = \"debug\"' >{CONFIG}")
    debian.shell("dpkg -r puzzlefs-snapshotter")
    assert debian.shell("grep /var/lib/puzzlefs /proc/mounts || true") == ""
    assert debian.shell("ls /usr/lib/puzzlefs /usr/bin/puzzlefs 2>/dev/null || true") == ""
    assert debian.shell(f"cat {CONFIG}; ls -d /var/lib/puzzlefs/s") == 'log_level = "debug"\n/var/lib/puzzlefs/s\n'

    debian.shell("dpkg -P puzzlefs-snapshotter")
    assert debian.shell(f"{FILES} | diff /tmp/before - || true") == ""
    assert (
        debian.shell("find / -xdev -name '*puzzlefs*' -not -path '/tmp/*' -not -path '/run/*' -not -path '/var/cache/man/*'")
        == ""
    )
