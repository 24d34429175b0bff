"""What upstream's program gets wrong, shown on that program where that can be done, and done right by ours."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.build.layout import build_layout, read_rootfs
from snapshotter.build.upstream import build_upstream
from snapshotter.format.model import Kind
from snapshotter.registry.layout import LayoutStore
from tests.support import mounts, upstream
from tests.support.processes import CommandError, Service, run
from tests.support.samples import CAP_NET_RAW, noise
from tests.support.snapshotter import program, puzzlefs
from tests.support.trees import Seen, differences, look

PATIENCE = 30


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def store(path: Path) -> LayoutStore:
    return LayoutStore(path, durable=False)


def theirs(*arguments: str | Path) -> int:
    """The exit status of upstream's program."""
    return run(upstream.program(), *arguments, check=False).returncode


def timeless(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    return {name: replace(entry, mtime_ns=0) for name, entry in seen.items()}


def test_extract_follows_no_symlink_out_of_its_target(tree: Path, tmp_path: Path) -> None:
    """Theirs changes the owner of what a symlink leads to."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"somebody else's")
    os.symlink(outside, tree / "link")
    os.symlink("dangling", tree / "other")
    for link in ("link", "other"):
        os.chown(tree / link, 1234, 1234, follow_symlinks=False)
    puzzlefs("build", tree, f"{tmp_path}/image:v")
    puzzlefs("extract", f"{tmp_path}/image:v", tmp_path / "ours")
    assert os.stat(outside).st_uid == 0
    assert differences(look(os.fsencode(tree)), look(os.fsencode(tmp_path / "ours"))) == []
    assert theirs("extract", f"{tmp_path}/image:v", tmp_path / "theirs") != 0 or os.stat(outside).st_uid == 1234


def test_extract_keeps_setuid_and_capabilities(tree: Path, tmp_path: Path) -> None:
    """Theirs sets the owner last, which takes them away."""
    (tree / "setuid").write_bytes(b"program")
    (tree / "setuid").chmod(0o6755)
    (tree / "capable").write_bytes(b"program")
    os.setxattr(tree / "capable", "security.capability", CAP_NET_RAW)
    puzzlefs("build", tree, f"{tmp_path}/image:v")
    puzzlefs("extract", f"{tmp_path}/image:v", tmp_path / "ours")
    assert stat.S_IMODE(os.stat(tmp_path / "ours" / "setuid").st_mode) == 0o6755
    assert os.getxattr(tmp_path / "ours" / "capable", "security.capability") == CAP_NET_RAW
    assert theirs("extract", f"{tmp_path}/image:v", tmp_path / "theirs") == 0
    assert stat.S_IMODE(os.stat(tmp_path / "theirs" / "setuid").st_mode) == 0o755
    assert os.listxattr(tmp_path / "theirs" / "capable") == []


def test_extract_makes_sockets(tree: Path, tmp_path: Path) -> None:
    """Theirs panics."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tree / "socket"))
    puzzlefs("build", tree, f"{tmp_path}/image:v")
    puzzlefs("extract", f"{tmp_path}/image:v", tmp_path / "ours")
    assert stat.S_ISSOCK(os.stat(tmp_path / "ours" / "socket").st_mode)
    assert theirs("extract", f"{tmp_path}/image:v", tmp_path / "theirs") == 101


@pytest.mark.parametrize("options", [(), ("--upstream",)], ids=["ours", "upstream"])
def test_directories_of_a_delta_are_listed(tree: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """A directory that lost a name is listed by us whoever built it; of ours, by upstream's program too."""
    (tree / "kept").write_bytes(b"kept")
    (tree / "gone").write_bytes(b"gone")
    puzzlefs("build", *options, tree, f"{tmp_path}/image:v1")
    (tree / "gone").unlink()
    puzzlefs("build", *options, "-b", "v1", tree, f"{tmp_path}/image:v2")
    puzzlefs("extract", f"{tmp_path}/image:v2", tmp_path / "ours")
    assert os.listdir(tmp_path / "ours") == ["kept"]
    status = theirs("extract", f"{tmp_path}/image:v2", tmp_path / "theirs")
    assert (status == 0) == (options == ())
    if not options:
        assert os.listdir(tmp_path / "theirs") == ["kept"]


def test_a_name_that_comes_back(tree: Path, tmp_path: Path) -> None:
    """Theirs stops at it with ENOENT; ours goes on, in either form, also over what theirs built."""
    for step, there in enumerate((True, False, True)):
        (tree / "f").unlink(missing_ok=True)
        if there:
            (tree / "f").write_bytes(b"%d" % step)
        more = ["-b", f"v{step - 1}"] if step else []
        puzzlefs("build", *more, tree, f"{tmp_path}/ours:v{step}")
        puzzlefs("build", "--upstream", *more, tree, f"{tmp_path}/same:v{step}")
        if step < 2:
            upstream.build(tree, tmp_path / "theirs", f"v{step}", *more)
        else:
            with pytest.raises(CommandError):
                upstream.build(tree, tmp_path / "theirs", f"v{step}", *more)
            puzzlefs("build", *more, tree, f"{tmp_path}/theirs:v{step}")
    for layout in ("ours", "same", "theirs"):
        puzzlefs("extract", f"{tmp_path}/{layout}:v2", tmp_path / f"{layout}-out")
        assert (tmp_path / f"{layout}-out" / "f").read_bytes() == b"2"


def test_hard_links_that_part_are_both_kept(tree: Path, tmp_path: Path) -> None:
    """Theirs gives both files one number, and one is lost."""
    (tree / "a").write_bytes(b"linked")
    os.link(tree / "a", tree / "b")
    for layout in ("ours", "theirs"):
        puzzlefs("build", "--upstream", tree, f"{tmp_path}/{layout}:v1")
    (tree / "b").unlink()
    (tree / "b").write_bytes(b"its own")
    upstream.build(tree, tmp_path / "theirs", "v2", "-b", "v1")
    puzzlefs("build", "-b", "v1", tree, f"{tmp_path}/ours:v2")
    puzzlefs("extract", f"{tmp_path}/ours:v2", tmp_path / "out")
    assert differences(timeless(look(os.fsencode(tree))), timeless(look(os.fsencode(tmp_path / "out")))) == []
    lost = read_rootfs(store(tmp_path / "theirs"), "v2")
    assert len({entry.ino for entry in lost.inode(1).entries}) == 1
    lost.close()
    shutil.copytree(tmp_path / "theirs", tmp_path / "same")
    said = puzzlefs("build", "--upstream", "-b", "v1", tree, f"{tmp_path}/same:v3").stderr
    assert "several inodes are number 2" in said


def test_two_mounts_with_the_same_inode_number(tree: Path, tmp_path: Path) -> None:
    """The roots of two tmpfs are inode 1 each; theirs takes them for one directory."""
    try:
        for name in ("one", "two"):
            (tree / name).mkdir()
            run("mount", "-t", "tmpfs", "none", tree / name)
            (tree / name / f"in-{name}").write_bytes(name.encode())
        puzzlefs("build", tree, f"{tmp_path}/image:v")
        built = build_upstream(tree, store(tmp_path / "same"), "v")
        upstream.build(tree, tmp_path / "theirs", "v")
    finally:
        mounts.unmount_all(tree)
    puzzlefs("extract", f"{tmp_path}/image:v", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["in-one", "in-two", "one", "two"]
    assert built.manifest.digest != store(tmp_path / "theirs").manifest("v")[0].digest


@pytest.mark.parametrize("options", [(), ("-c",), ("--upstream",)], ids=lambda options: "".join(options) or "raw")
def test_a_tree_that_cannot_be_read_is_one_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Theirs takes a pseudo file's data, which has another length than the walk saw, into the files behind it, or panics."""
    done = puzzlefs("build", *options, "/proc/sys/kernel/random", f"{tmp_path}/image:v", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (7, 1)
    assert "changed while it was read" in done.stderr
    assert not (tmp_path / "image").exists()


@pytest.fixture
def rewritten(tree: Path) -> Iterator[Callable[[], None]]:
    """A tree with a large file; the function starts to write to the file, until the test ends, without changing its size."""
    (tree / "large").write_bytes(noise(20_000_000, 1))
    writers: list[Service] = []
    script = "import os\nfd = os.open({!r}, os.O_WRONLY)\nwhile True: os.pwrite(fd, os.urandom(4096), 0)"

    def start() -> None:
        command = ["python3", "-c", script.format(str(tree / "large"))]
        writers.append(Service(command, tree.parent / "writer.log"))
        before = os.stat(tree / "large").st_mtime_ns
        writers[-1].wait_until(lambda: os.stat(tree / "large").st_mtime_ns != before, "writing", PATIENCE)

    yield start
    for writer in writers:
        writer.stop()


def test_a_file_that_is_written_to_all_the_time(tree: Path, tmp_path: Path, rewritten: Callable[[], None]) -> None:
    """No image is made of a file that never was."""
    rewritten()
    done = puzzlefs("build", tree, f"{tmp_path}/image:v", check=False)
    assert (done.returncode, "large changed while it was read" in done.stderr) == (7, True)
    assert not (tmp_path / "image").exists()


def test_sigterm_leaves_no_dead_mount(tree: Path, tmp_path: Path) -> None:
    """Theirs ends and leaves the mountpoint to nobody."""
    (tree / "f").write_bytes(b"f")
    puzzlefs("build", tree, f"{tmp_path}/image:v")
    for name, command in (("ours", program("puzzlefs")), ("theirs", upstream.program())):
        where = tmp_path / name
        where.mkdir()
        os.mkfifo(tmp_path / f"{name}.fifo")
        fifo = tmp_path / f"{name}.fifo"
        service = Service([command, "mount", "-f", "-i", fifo, f"{tmp_path}/image:v", where], tmp_path / f"{name}.log")
        assert fifo.read_text() == "s"
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(PATIENCE)
        assert mounts.unmount_all(where) == ([] if name == "ours" else [os.fsencode(where)])


def test_the_digest_of_a_chunk_that_stays_raw(tree: Path, tmp_path: Path) -> None:
    """Theirs records that of the compressed form, which no file has, so sealing fails. --upstream has equal bytes."""
    (tree / "noise").write_bytes(noise(100_000, 2))
    for layout, build in (("ours", build_layout), ("same", build_upstream)):
        build(tree, store(tmp_path / layout), "v", compress=True)  # type: ignore[operator]
    notes = {layout: puzzlefs("verify", f"{tmp_path}/{layout}:v").stdout for layout in ("ours", "same")}
    assert "fs-verity" not in notes["ours"]
    assert "have the fs-verity digest of a compressed form" in notes["same"]
    rootfs = read_rootfs(store(tmp_path / "ours"), "v")
    assert [inode.kind for inode in rootfs.inodes()] == [Kind.DIR, Kind.FILE]
    rootfs.close()
