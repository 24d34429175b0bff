"""What the DaemonSet does to a node: a bundle that needs nothing of it, installed, changed, upgraded and taken off again.

The node is a directory with busybox, whose systemctl, containerd and ctr write down what they are told; containerd's
configuration is judged by real containerds.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from snapshotter.doctor.containerd import ContainerdFacts, LoadedPlugin, check_containerd
from snapshotter.doctor.containerdconfig import effective, parse
from snapshotter.doctor.finding import Level
from tests.support import mounts, tools
from tests.support.chroots import Chroot
from tests.support.processes import run
from tests.support.releases import FORKY

pytestmark = pytest.mark.root

INSTALLER = tools.ROOT / "deploy/kubernetes/installer"
ADDRESS = "/run/puzzlefs/snapshotter.sock"
CONFIG = "/etc/containerd/config.toml"
DROP_IN = "/etc/containerd/conf.d/puzzlefs.toml"


class FakeNode:
    """A node below `root`, with the rights of a node: a chroot."""

    def __init__(self, root: Path, containerd: str, version: int) -> None:
        self.root = root
        self.image = root.parent / "image"
        self.imports = f'imports = ["{root}/etc/containerd/conf.d/*.toml"]\n'
        for name in ("bin", "dev", "etc/containerd", "proc", "tmp", "usr/bin", "var/lib"):
            (root / name).mkdir(parents=True)
        shutil.copy(tools.find("busybox"), root / "bin/busybox")
        for applet in ("sh", "awk", "env", "cat", "chmod", "seq", "sleep", "stat", "kill"):
            (root / "bin" / applet).symlink_to("busybox")
        (root / "proc/mounts").touch()
        self.program("systemctl", 'echo "systemctl $*" >>/log')
        self.program("umount", 'echo "umount $*" >>/log')
        self.program("ctr", 'echo "ctr $*" >>/log')
        self.program("containerd", f"echo containerd github.com/containerd/containerd v{containerd} 1234")
        self.config = root / CONFIG[1:]
        self.config.write_text(f"version = {version}\n{self.imports}")
        (self.image / "share").mkdir(parents=True)
        # a stand-in for the bundle, which has a test of its own
        program = self.image / "puzzlefs/1.0/bin/puzzlefs"
        program.parent.mkdir(parents=True)
        program.write_text('#!/bin/sh\necho "puzzlefs $*" >>/log\n')
        program.chmod(0o755)
        shutil.copytree(tools.ROOT / "systemd", self.image / "share/systemd")
        shutil.copytree(tools.ROOT / "deploy/containerd", self.image / "share/containerd")

    def program(self, name: str, script: str) -> None:
        """A program of the node."""
        path = self.root / "usr/bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, script: str, **more: str) -> subprocess.CompletedProcess[str]:
        """``install`` or ``uninstall`` as the pod runs it."""
        settings = {
            "NODE": str(self.root),
            "ON_NODE": f"env PWD=/ chroot {self.root}",
            "BUNDLES": str(self.image / "puzzlefs"),
            "SHARE": str(self.image / "share"),
            "WAIT": "0.1",
            **more,
        }
        words = [f"{key}={value}" for key, value in settings.items()]
        return run("env", *words, "/bin/sh", str(INSTALLER / script), check=False)

    def log(self) -> list[str]:
        """What the node's programs were told since the last call."""
        path = self.root / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def levels(self, containerd: str, version: str, *, remap_ids: bool = False) -> dict[str, Level]:
        """What the doctor says of containerd's configuration as `containerd`, a real one, understands it."""
        read = effective(
            parse(run(containerd, "--config", self.config, "config", "dump").stdout), (int(version[0]), int(version[2]))
        )
        exports = next(proxy.exports for proxy in read.proxies if proxy.name == "puzzlefs")
        loaded = LoadedPlugin("io.containerd.snapshotter.v1", "puzzlefs", "", exports)
        facts = ContainerdFacts("/run/c.sock", version, plugins=(loaded,), config=read, config_source=CONFIG)
        found = check_containerd(facts, ADDRESS, "/var/lib/puzzlefs", remap_ids=remap_ids)
        return {each.check: each.level for each in found}


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    """A node with containerd 2.x."""
    return FakeNode(tmp_path / "node", "2.2.1", 3)


def test_the_bundle_needs_nothing_of_the_node(node: FakeNode, debian: Chroot) -> None:
    """Made as the Containerfile makes it: in a root that has neither Python nor a C library, the daemon serves and ends."""
    shutil.copy(INSTALLER / "bundle", debian.root / "usr/local/bin/bundle")
    debian.shell("bundle", timeout=300)
    shutil.move(debian.root / "opt/puzzlefs", node.root / "opt/puzzlefs")
    (node.root / "proc/mounts").unlink()
    run("mount", "-t", "proc", "proc", node.root / "proc")
    run("mount", "--bind", "/dev", node.root / "dev")
    script = """
    pz=$(echo /opt/puzzlefs/*/bin)
    $pz/puzzlefs-snapshotter >/log 2>&1 &
    pid=$!
    for i in $(seq 300); do [ -S /run/puzzlefs/snapshotter.sock ] && break; sleep 0.1; done
    kill $pid
    wait $pid || exit 1
    cat /log
    $pz/puzzlefs images -a /nobody.sock
    """
    try:
        done = run("env", "PWD=/", "chroot", node.root, "/bin/sh", "-c", script, check=False)
    finally:
        mounts.unmount_all(node.root)
        shutil.rmtree(node.root)  # 170 MB
    assert "serving at /run/puzzlefs/snapshotter.sock" in done.stdout, done.stdout + done.stderr
    assert "died" not in done.stdout
    assert done.stderr.startswith("puzzlefs: containerd does not answer at /nobody.sock")


def test_installed_and_taken_off(node: FakeNode) -> None:
    """Install, nothing new to do, a changed setting, a new version, and away with it."""
    done = node.run("install")
    assert done.returncode == 0, done.stderr
    unit = node.root / "etc/systemd/system/puzzlefs-snapshotter.service"
    assert "ExecStart=/opt/puzzlefs/1.0/bin/puzzlefs-snapshotter --config /etc/puzzlefs/config.toml" in unit.read_text()
    assert "KillMode=process" in unit.read_text()
    assert (node.root / "etc/puzzlefs/config.toml").stat().st_mode & 0o777 == 0o600
    assert node.log() == [
        "systemctl daemon-reload",
        "systemctl enable puzzlefs-snapshotter.service",
        "systemctl restart puzzlefs-snapshotter.service",
        "systemctl restart containerd",
        "puzzlefs doctor --no-images",
    ]

    assert node.run("install").returncode == 0
    assert node.log()[:-1] == ["systemctl start puzzlefs-snapshotter.service"], "nothing changed, nothing is restarted"

    assert node.run("install", CRI="default").returncode == 0
    assert node.log()[-2] == "systemctl restart containerd"

    newer = node.root.parent / "newer"
    shutil.copytree(node.image / "puzzlefs/1.0", newer / "99.0", symlinks=True)
    assert node.run("install", BUNDLES=str(newer), CRI="default").returncode == 0
    assert "ExecStart=/opt/puzzlefs/99.0/bin/puzzlefs-snapshotter" in unit.read_text()
    assert (node.root / "opt/puzzlefs/1.0").is_dir(), "its processes may still serve containers"
    assert node.log()[-2] == "systemctl restart puzzlefs-snapshotter.service"

    link = node.root / "opt/puzzlefs/puzzlefs"
    link.unlink()
    link.write_text("#!/bin/sh\necho k8s.io registry.example/app:1\n")
    link.chmod(0o755)
    (node.root / "proc/mounts").write_text("puzzlefs /var/lib/puzzlefs/l/1 fuse.puzzlefs ro 0 0\nproc /proc proc rw 0 0\n")
    assert node.run("uninstall").returncode == 0
    assert node.log() == [
        "ctr --namespace k8s.io images rm --sync registry.example/app:1",
        "systemctl restart containerd",
        "systemctl disable --now puzzlefs-snapshotter.service",
        "umount -l /var/lib/puzzlefs/l/1",
        "systemctl daemon-reload",
    ]
    assert not unit.exists()
    assert not (node.root / "opt/puzzlefs").exists()
    assert not (node.root / DROP_IN[1:]).exists()
    assert (node.root / "etc/puzzlefs/config.toml").exists(), "only a purge deletes it"


def test_nothing_is_taken_off_under_a_container(node: FakeNode) -> None:
    """The uninstaller waits until no container's root lies on the snapshotter."""
    assert node.run("install").returncode == 0
    table = node.root / "proc/mounts"
    table.write_text("overlay /run/x/rootfs overlay rw,lowerdir=/var/lib/puzzlefs/l/1,upperdir=/var/lib/puzzlefs/s/2/fs 0 0\n")
    node.log()
    words = ["env", f"NODE={node.root}", f"ON_NODE=env PWD=/ chroot {node.root}", f"SHARE={node.image}/share", "WAIT=0.1"]
    process = subprocess.Popen([*words, "/bin/sh", str(INSTALLER / "uninstall")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert "1 containers still stand on this snapshotter" in process.stdout.readline()
        assert node.log() == []
        assert (node.root / DROP_IN[1:]).exists()
        table.write_text("overlay / overlay rw,lowerdir=/var/lib/containerd/1 0 0\n")
        assert process.stdout.read().endswith("puzzlefs: removed\n")
    assert process.wait(30) == 0


@pytest.mark.parametrize(("cri", "text"), [("default", ""), ("runtime", ""), ("runtime", "SystemdCgroup = true"), ("none", "")])
def test_containerd_2_understands_it(node: FakeNode, cri: str, text: str) -> None:
    """A real containerd 2.x reads the node's configuration, and the doctor finds nothing wrong with what it makes of it."""
    if text:
        table = '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]\n'
        node.config.write_text(node.config.read_text() + table + text + "\n")
    assert node.run("install", CRI=cri).returncode == 0
    found = node.levels(FORKY.find("containerd"), "2.2.1")
    assert set(found.values()) == {Level.OK}, found
    assert ("containerd.annotations" in found) == (cri != "none")
    dumped = run(FORKY.find("containerd"), "--config", node.config, "config", "dump").stdout
    assert dumped.count("SystemdCgroup = true") == (2 if text else 0), "the runtime is as the node's own one"


@pytest.mark.parametrize("remap_ids", [True, False])
def test_containerd_leaves_owners_to_a_daemon_that_shifts_them(node: FakeNode, remap_ids: bool) -> None:
    (node.root / "etc/puzzlefs").mkdir(parents=True)
    (node.root / "etc/puzzlefs/config.toml").write_text(f"[containerd]\nremap_ids = {str(remap_ids).lower()}\n")
    assert node.run("install").returncode == 0
    for wanted in (True, False):
        level = node.levels(FORKY.find("containerd"), "2.2.1", remap_ids=wanted)["containerd.remap-ids"]
        assert level is (Level.OK if wanted == remap_ids else Level.FAIL)


def test_containerd_1_is_told_what_an_import_may_say(tmp_path: Path) -> None:
    """1.x would lose all of CRI's settings to an imported file that names the plugin: those lines are not in it."""
    node = FakeNode(tmp_path / "node", "1.6.20~ds1", 2)
    node.config.write_text(node.config.read_text() + '[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "pause:0"\n')
    done = node.run("install", CRI="default")
    assert done.returncode == 0
    assert "by hand" in done.stdout
    dumped = run("containerd", "--config", node.config, "config", "dump").stdout
    assert 'sandbox_image = "pause:0"' in dumped
    assert node.levels("containerd", "1.6.20")["containerd.proxy-plugin"] is Level.OK


@pytest.mark.parametrize(
    ("containerd", "config", "said"),
    [
        ("2.2.1", "version = 3\n", "does not import /etc/containerd/conf.d/puzzlefs.toml: add the line"),
        ("2.2.1", 'version = 2\nimports = ["conf.d/*.toml"]\n', "is of version 2: containerd config migrate"),
        ("1.5.9", 'version = 2\nimports = ["conf.d/*.toml"]\n', "containerd 1.5 on this node"),
        ("2.2.1", None, "config.toml does not exist"),
    ],
)
def test_what_it_does_not_do(tmp_path: Path, containerd: str, config: str | None, said: str) -> None:
    """A configuration that it cannot add to: it says what to type, and restarts no containerd."""
    node = FakeNode(tmp_path / "node", containerd, 3)
    if config is None:
        node.config.unlink()
    else:
        node.config.write_text(config)
    done = node.run("install")
    assert done.returncode == 1
    assert said in done.stderr
    assert "systemctl restart containerd" not in node.log()


def test_a_node_that_cannot_be_looked_at_is_left_alone(node: FakeNode) -> None:
    assert node.run("install").returncode == 0
    (node.root / "bin/awk").unlink()
    node.log()
    done = node.run("uninstall")
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert node.log() == []


def test_a_main_configuration_that_needs_the_snapshotter_stays(node: FakeNode) -> None:
    assert node.run("install").returncode == 0
    node.config.write_text(node.config.read_text() + '[plugins."io.containerd.cri.v1.images"]\n  snapshotter = "puzzlefs"\n')
    done = node.run("uninstall")
    assert done.returncode == 1
    assert "take that line out first" in done.stderr
    assert (node.root / DROP_IN[1:]).exists()
