"""containerd's configuration files, merged and understood as containerd does."""

from __future__ import annotations

import fnmatch
import tomllib

import pytest

from snapshotter.doctor.containerdconfig import FILE_MAX, FILES_MAX, Effective, effective, load, parse
from snapshotter.errors import InvalidError, NotFoundError
from tests.support import tools


def loaded(files: dict[str, str], *, merge_plugins: bool = True) -> dict[str, object]:
    """`files` by path, read from ``/etc/c/config.toml`` on."""

    def read(path: str) -> bytes:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path].encode()

    def find(pattern: str) -> list[str]:
        return [path for path in reversed(files) if fnmatch.fnmatch(path, pattern)]

    return load("/etc/c/config.toml", merge_plugins=merge_plugins, read=read, find=find)


def test_imports_are_read_in_order_and_win() -> None:
    files = {
        "/etc/c/config.toml": 'version = 2\nimports = ["conf.d/*.toml", "/other.toml"]\nroot = "/a"\nlist = ["1"]\n',
        "/etc/c/conf.d/1.toml": 'root = "/b"\nlist = ["1", "2"]\nimports = ["../config.toml"]\n',
        "/etc/c/conf.d/2.toml": 'root = "/c"\n',
        "/other.toml": 'version = 1\nstate = "/d"\n',
    }
    merged = loaded(files)
    assert (merged["root"], merged["state"], merged["list"], merged["version"]) == ("/c", "/d", ["1", "2"], 2)


def test_proxy_plugins_are_replaced_one_by_one() -> None:
    files = {
        "/etc/c/config.toml": 'imports = ["x.toml"]\n[proxy_plugins.a]\ntype = "snapshot"\naddress = "/1"\n'
        '[proxy_plugins.b]\ntype = "diff"\naddress = "/2"\n',
        "/etc/c/x.toml": '[proxy_plugins.a]\naddress = "/3"\n',
    }
    proxies = {proxy.name: (proxy.type, proxy.address) for proxy in effective(loaded(files)).proxies}
    assert proxies == {"a": ("", "/3"), "b": ("diff", "/2")}


@pytest.mark.parametrize(("merge", "snapshotter"), [(True, "puzzlefs"), (False, None)])
def test_plugins_are_merged_by_2_and_replaced_by_1(merge: bool, snapshotter: str | None) -> None:
    files = {
        "/etc/c/config.toml": 'version = 2\nimports = ["x.toml"]\n[plugins."io.containerd.grpc.v1.cri".containerd]\n'
        'snapshotter = "puzzlefs"\n',
        "/etc/c/x.toml": '[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "x"\n',
    }
    assert effective(loaded(files, merge_plugins=merge)).cri_snapshotter == snapshotter


def test_versions_say_the_same_in_different_places() -> None:
    one = '[plugins.cri.containerd]\nsnapshotter = "p"\ndisable_snapshot_annotations = false\n'
    two = "version = 2\n" + one.replace("plugins.cri", 'plugins."io.containerd.grpc.v1.cri"')
    table = '[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "p"\ndisable_snapshot_annotations = false\n'
    for text in (one, two, f"version = 3\n{table}", f"version = 4\n{table}"):
        read = effective(parse(text))
        assert (read.cri_snapshotter, read.annotations_disabled) == ("p", False), text


def test_a_version_2_file_without_runtimes_loses_its_snapshotter_in_2() -> None:
    """``migrateConfig`` in containerd's plugins/cri/images/plugin.go returns early then."""
    text = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "p"\n'
    assert not effective(parse(text), (1, 7)).lost_snapshotter
    read = effective(parse(text), (2, 1))
    assert read.lost_snapshotter
    assert read.cri_snapshotter is None
    kept = text + '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'
    assert effective(parse(kept), (2, 1)).cri_snapshotter == "p"


def test_snapshotters_of_runtimes() -> None:
    text = (
        'version = 3\n[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.lazy]\nsnapshotter = "p"\n'
        '[plugins."io.containerd.cri.v1.images".runtime_platforms.fast]\nsnapshotter = "q"\n'
    )
    assert effective(parse(text)).runtime_snapshotters == {"lazy": "p", "fast": "q"}


@pytest.mark.parametrize("file", sorted((tools.ROOT / "deploy/containerd").glob("config-*.toml")), ids=lambda path: path.name)
def test_what_is_deployed_is_understood(file: object) -> None:
    """The shipped snippets mean what they are for."""
    with open(str(file), "rb") as opened:
        read = effective(tomllib.load(opened))
    assert [proxy.address for proxy in read.proxies if proxy.type == "snapshot"] == ["/run/puzzlefs/snapshotter.sock"]
    assert read.cri_snapshotter == "puzzlefs"


@pytest.mark.parametrize(
    "text",
    [
        "plugins = 3",
        "proxy_plugins = [1]",
        '[plugins]\n"io.containerd.grpc.v1.cri" = "x"',
        'disabled_plugins = "x"',
        "imports = 3",
    ],
)
def test_what_is_of_another_kind_means_nothing(text: str) -> None:
    assert effective(loaded({"/etc/c/config.toml": f"version = 2\n{text}\n"})) == Effective(2, runtime_snapshotters={})


def test_errors_name_the_file() -> None:
    with pytest.raises(NotFoundError, match=r"/etc/c/config\.toml does not exist"):
        loaded({})
    with pytest.raises(InvalidError, match=r"/etc/c/config\.toml cannot be read"):
        loaded({"/etc/c/config.toml": "version ="})
    with pytest.raises(NotFoundError, match="/x does not exist"):
        loaded({"/etc/c/config.toml": 'imports = ["/x"]'})


def test_sizes_are_bounded() -> None:
    with pytest.raises(InvalidError, match="larger than"):
        loaded({"/etc/c/config.toml": "#" * (FILE_MAX + 1)})
    files = {f"/{number}.toml": f'imports = ["/{number + 1}.toml"]' for number in range(FILES_MAX + 1)}
    with pytest.raises(InvalidError, match="imports more than"):
        loaded({"/etc/c/config.toml": 'imports = ["/0.toml"]', **files})
