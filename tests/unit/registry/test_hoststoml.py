"""containerd's ``hosts.toml`` means here what it means there."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.registry.credentials import FixedCredentials
from snapshotter.registry.failures import DeniedError
from snapshotter.registry.hosts import RegistryConfig, RegistryHost
from snapshotter.registry.hoststoml import HostsDirectory
from snapshotter.registry.policy import RegistryPolicy
from snapshotter.registry.reference import parse
from snapshotter.registry.registries import Registries
from tests.support.registry import FakeRegistry, Fault, fake_registry

__all__ = ["fake_registry"]

BASE = RegistryConfig(read_timeout=5)


def written(root: Path, host: str, text: str) -> HostsDirectory:
    (root / host).mkdir(exist_ok=True)
    (root / host / "hosts.toml").write_text(text)
    return HostsDirectory(root, BASE)


def test_a_host_without_a_directory_is_asked_itself(tmp_path: Path) -> None:
    assert HostsDirectory(tmp_path / "none", BASE).hosts("h.x") == [RegistryHost(BASE)]


@pytest.mark.parametrize("directory", ["h.x_5000_", "h.x:5000", "_default"])
def test_the_directory_of_a_host_has_one_of_three_names(tmp_path: Path, directory: str) -> None:
    directory_of = written(tmp_path, directory, '[host."https://mirror.x"]')
    assert [host.mirror for host in directory_of.hosts("h.x:5000")] == ["mirror.x", None]


@pytest.mark.parametrize("host", ["../h.x", "a/b", ".hidden", ""])
def test_a_host_that_is_a_path_is_not_looked_up(tmp_path: Path, host: str) -> None:
    written(tmp_path, "_default", '[host."https://mirror.x"]')
    assert HostsDirectory(tmp_path, BASE).hosts(host) == [RegistryHost(BASE)]


def test_mirrors_come_in_their_order_with_what_each_is_good_for(tmp_path: Path) -> None:
    (first, second, third, last) = written(
        tmp_path,
        "docker.io",
        """
        server = "https://registry-1.docker.io"
        [host."https://one.x:8443/prefix"]
        capabilities = ["pull"]
        ca = "ca.pem"
        client = [["c.pem", "k.pem"], ["both.pem", ""]]
        dial_timeout = "250ms"
        [host."https://one.x:8443/prefix".header]
        x-key = ["a", "b"]
        [host."http://two.x/api"]
        override_path = true
        skip_verify = true
        capabilities = ["pull", "resolve"]
        [host."three.x/v2"]
        """,
    ).hosts("docker.io")
    assert (first.mirror, first.pull, first.resolve, first.push) == ("one.x:8443", True, False, False)
    config = first.config
    assert (config.endpoint, config.plain_http, config.path) == ("one.x:8443", False, "/prefix/v2")
    assert config.ca_files == (str(tmp_path / "docker.io/ca.pem"),)
    directory = tmp_path / "docker.io"
    assert config.client_certificates == (
        (str(directory / "c.pem"), str(directory / "k.pem")),
        (str(directory / "both.pem"), None),
    )
    assert (config.headers, config.connect_timeout, config.read_timeout) == ((("x-key", "a, b"),), 0.25, 5)
    assert (second.config.plain_http, second.config.path, second.config.skip_verify, second.push) == (True, "/api", True, False)
    assert (third.mirror, third.config.path, third.push) == ("three.x", "/v2", True)
    assert (last.mirror, last.config.endpoint) == (None, "registry-1.docker.io")


def test_a_server_of_another_name_stands_in_for_the_registry(tmp_path: Path) -> None:
    (only,) = written(tmp_path, "h.x", 'server = "http://other.x:5000"').hosts("h.x")
    assert (only.mirror, only.config.plain_http) == ("other.x:5000", True)


def test_certificates_of_the_registry_itself(tmp_path: Path) -> None:
    (only,) = written(tmp_path, "h.x", 'ca = ["a.pem", "/b.pem"]').hosts("h.x")
    assert only.config.ca_files == (str(tmp_path / "h.x/a.pem"), "/b.pem")
    (tmp_path / "c.x").mkdir()
    for name in ("ca.crt", "client.cert", "client.key", "alone.cert"):
        (tmp_path / "c.x" / name).touch()
    (docker,) = HostsDirectory(tmp_path, BASE).hosts("c.x")
    assert docker.config.ca_files == (str(tmp_path / "c.x/ca.crt"),)
    assert [pair[1] and Path(pair[1]).name for pair in docker.config.client_certificates] == [None, "client.key"]


@pytest.mark.parametrize(
    "text",
    [
        "no toml",
        "host = 1",
        '[host."ftp://x"]',
        '[host."https://user@x"]',
        '[host."https://m.x"]\ncapabilities = ["fly"]',
        '[host."https://m.x"]\nclient = [["one"]]',
        '[host."https://m.x"]\ndial_timeout = "soon"',
        "skip_verify = 'no'",
        "\n".join(f'[host."https://m{number}.x"]' for number in range(40)),
    ],
)
def test_a_file_that_is_wrong_is_logged_and_not_used(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert written(tmp_path, "h.x", text).hosts("h.x") == [RegistryHost(BASE)]
    assert str(tmp_path / "h.x/hosts.toml") in caplog.text


def test_ports_of_hosts_that_have_a_directory(tmp_path: Path) -> None:
    for name in ("h.x_5000_", "h.x:5001", "other.x_1_", "h.x", "_default"):
        (tmp_path / name).mkdir()
    assert sorted(HostsDirectory(tmp_path).ports("h.x")) == ["h.x:5000", "h.x:5001"]
    assert list(HostsDirectory(tmp_path / "none").ports("h.x")) == []


def test_a_mirror_is_asked_first_and_told_whom_it_stands_in_for(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    blob = fake_registry.put_blob("a/b", b"content")
    hosts = written(tmp_path, "real.x", f'[host."{fake_registry.url}"]\ncapabilities = ["pull"]\nheader.X-Mine = "secret"')
    with Registries(hosts.hosts, FixedCredentials()) as registries:
        (mirror, real) = registries.readers(parse("real.x/a/b"))
        assert (mirror.name, real.name) == (f"{fake_registry.host}/a/b", "real.x/a/b")
        assert mirror.read_range(blob.digest, 0, 7) == b"content"
        assert [store.name for store in registries.readers(parse("real.x/a/b"), resolve=True)] == ["real.x/a/b"]
    (exchange,) = fake_registry.matching("blobs")
    assert exchange.query == {"ns": "real.x"}
    assert exchange.headers["x-mine"] == "secret"


def test_a_mirrors_headers_stay_with_it(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    blob = fake_registry.put_blob("a/b", b"content")
    with FakeRegistry() as storage:
        storage.put_blob("a/b", b"content")
        fake_registry.inject(Fault(redirect=f"{storage.url}/v2/a/b/blobs/sha256:{blob.digest.hex()}"), path="blobs")
        hosts = written(tmp_path, "real.x", f'[host."{fake_registry.url}"]\nheader.X-Mine = "secret"')
        with Registries(hosts.hosts, FixedCredentials()) as registries:
            assert registries.readers(parse("real.x/a/b"))[0].read_range(blob.digest, 0, 7) == b"content"
        (exchange,) = storage.matching("blobs")
        assert "x-mine" not in exchange.headers
        assert exchange.query == {}


@pytest.mark.parametrize(
    ("allowed", "host", "good"),
    [
        (None, "any.x", True),
        ([], "any.x", False),
        (["h.x"], "h.x", True),
        (["h.x"], "h.x:5000", True),
        (["h.x:5000"], "h.x:5001", False),
        (["h.x:5000"], "h.x", False),
        (["*.x.y"], "a.b.x.y:1", True),
        (["*.x.y"], "x.y", False),
        (["*.x.y"], "evilx.y", False),
        (["docker.io"], "registry-1.docker.io", True),
        (["[::1]:5000"], "[::1]:5000", True),
        (["[::1]"], "[::1]:5000", True),
        (["[::1]"], "[::2]", False),
        (["H.x"], "h.X", True),
    ],
)
def test_hosts_that_are_allowed(allowed: list[str] | None, host: str, good: bool) -> None:
    policy = RegistryPolicy(allowed)
    if good:
        policy.check(host)
    else:
        with pytest.raises(DeniedError, match="allowed_registries"):
            policy.check(host)


def test_what_is_not_allowed_is_asked_neither_itself_nor_as_a_mirror(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    hosts = written(tmp_path, "real.x", f'[host."{fake_registry.url}"]')
    with Registries(hosts.hosts, FixedCredentials(), policy=RegistryPolicy(["real.x"])) as registries:
        assert [store.name for store in registries.readers(parse("real.x/a/b"))] == ["real.x/a/b"]
        for ask in (registries.open, registries.readers):
            with pytest.raises(DeniedError, match="allowed_registries"):
                ask(parse(f"{fake_registry.host}/a/b"))
    assert fake_registry.matching() == []
