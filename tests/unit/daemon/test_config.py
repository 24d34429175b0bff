"""The configuration: every key has a default, and what cannot be meant is refused by name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from snapshotter.chunkstore.reserve import Cap
from snapshotter.daemon.config import Config, load, parse
from snapshotter.errors import InvalidError, NotFoundError
from snapshotter.format.fsverity import Mode

SHIPPED = Path(__file__).parents[3] / "deploy" / "puzzlefs" / "config.toml"


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(written(tmp_path / "c", "")) == Config()


def test_the_shipped_file_is_valid_and_says_the_defaults() -> None:
    shipped = load(SHIPPED)
    assert (shipped.root, shipped.address, shipped.log_level) == (Config().root, Config().address, Config().log_level)


def test_the_shipped_file_has_every_key() -> None:
    """It is the manual as well (puzzlefs-config(5)); what it shows is taken when it is no comment any more."""
    shown = re.sub(r"^#(?=\w+ = |\[)", "", SHIPPED.read_text(), flags=re.MULTILINE)
    data = tomllib.loads(shown)
    parse(data)
    with pytest.raises(InvalidError) as unknown:
        parse({"no_such_key": 1})
    known = str(unknown.value).partition("known are ")[2].partition(", [[store]]")[0].split(", ")
    for key in known:
        section, _, name = key.rpartition(".")
        assert name in (data[section] if section else data), f"{key} is not in {SHIPPED.name}"
    with pytest.raises(InvalidError) as unknown:
        parse({"peers": {"no_such_key": 1}})
    assert set(data["peers"]) == set(str(unknown.value).partition("known are ")[2].split(", "))
    with pytest.raises(InvalidError) as unknown:
        parse({"registry": {"h": {"no_such_key": 1}}})
    assert set(data["registry"]["registry.example:5000"]) == set(str(unknown.value).partition("known are ")[2].split(", "))


def test_every_key_is_read(tmp_path: Path) -> None:
    config = load(
        written(
            tmp_path / "c",
            """
            root = "/srv/p"
            address = "/run/p.sock"
            log_level = "debug"
            cache.max_size = "20GiB"
            cache.reserve = "40%"
            fetch.read_timeout = 5
            mount.workers = 3
            mount.keep_awake = false
            integrity.fs_verity = "require"
            [registry."registry.example:5000"]
            endpoint = "10.0.0.1:5000"
            plain_http = true
            username = "u"
            password = "secret"
            """,
        )
    )
    assert (config.root, config.address, config.log_level) == (Path("/srv/p"), Path("/run/p.sock"), "debug")
    assert (config.cache_max_bytes, config.read_timeout, config.mount_workers) == (20 << 30, 5.0, 3)
    assert config.cache_cap == Cap(20 << 30, reserve=0.4)
    assert not config.keep_awake
    assert config.fs_verity is Mode.REQUIRE
    host = config.registries["registry.example:5000"]
    assert (host.endpoint, host.plain_http) == ("10.0.0.1:5000", True)
    assert host.credentials is not None
    assert host.credentials.password == "secret"
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("text", "size"),
    [('"0"', None), ("0", None), ("4096", 4096), ('"10 MB"', 10_000_000), ('"1TiB"', 1 << 40)],
)
def test_sizes(tmp_path: Path, text: str, size: int | None) -> None:
    assert load(written(tmp_path / "c", f"[cache]\nmax_size = {text}")).cache_max_bytes == size


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rot = '/x'", "unknown key rot"),
        ("[cache]\nsize = 1", "unknown key cache.size"),
        ("[cash]\nmax_size = 1", "unknown key cash.max_size"),
        ("root = 'relative'", "root must be an absolute path"),
        ("root = 5", "root must be a string"),
        ("log_level = 'loud'", "log_level must be one of"),
        ("[integrity]\nfs_verity = 'yes'", "integrity.fs_verity must be one of require, auto, off, not 'yes'"),
        ("[integrity]\nfs_verity = true", "integrity.fs_verity must be one of"),
        ("[cache]\nmax_size = 'much'", "cache.max_size must be a size"),
        ("[cache]\nmax_size = true", "cache.max_size must be a size"),
        ("[cache]\nreserve = '101%'", "cache.reserve must be a part of the whole"),
        ("[cache]\nreserve = 0.25", "cache.reserve must be a part of the whole"),
        ("[fetch]\nread_timeout = 0", "fetch.read_timeout must be a number"),
        ("[mount]\nworkers = 0", "mount.workers must be a number"),
        ("registry = 1", "registry"),
        ("[registry]\nhost = 1", 'registry."host" must be a table'),
        ("[registry.host]\nplain = true", 'unknown key registry."host".plain'),
        ("[registry.host]\nplain_http = 'yes'", "plain_http must be true or false"),
        ("[registry.host]\nusername = 'u'", "username and password go together"),
        ("[registry.host]\nclient_key = 'k'", "client_cert and client_key go together"),
        ("not toml at all [", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_file_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = written(tmp_path / "config.toml", text)
    with pytest.raises(InvalidError) as error:
        load(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        load(tmp_path / "none")
