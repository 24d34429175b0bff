"""Opens the stores that the configuration names: places with blobs by digest that are asked before registries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapshotter.daemon.settings import check_keys, flag, table_of, text
from snapshotter.errors import InvalidError
from snapshotter.registry.base import BlobSource
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.hosts import RegistryConfig

_KINDS = ("http", "https", "oci", "s3")


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """One ``[[store]]``: an OCI layout at `url` (``https://HOST/PATH``, ``oci:/PATH``, ``s3://BUCKET/PREFIX``).

    `credentials` are user and password, or an S3 access key and its secret. `endpoint` and `region` are S3's; `anonymous` signs
    nothing there.
    """

    url: str
    credentials: Credentials | None = field(default=None, repr=False)
    ca_file: str | None = None
    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False


def parse(value: Any) -> Sequence[StoreConfig]:
    """The stores that the key ``store`` of the configuration describes.

    Raises:
        InvalidError: a key is unknown, or its value not of the kind that it must be.
    """
    if not isinstance(value, list):
        raise InvalidError("store must be a list of tables: [[store]]")
    return [_store(f"store[{number}]", table_of(f"store[{number}]", table)) for number, table in enumerate(value, 1)]


def _store(where: str, table: dict[str, Any]) -> StoreConfig:
    known = {"url": text, "username": text, "password": text, "ca_file": text, "endpoint": text, "region": text}
    read = check_keys(where, table, {**known, "anonymous": flag})
    url = read.get("url")
    if url is None:
        raise InvalidError(f"{where} has no url")
    kind = url.partition(":")[0]
    if kind not in _KINDS:
        raise InvalidError(f"{where}.url must begin with https:, http:, oci: or s3:, not {url[:40]!r}")
    if kind == "oci" and not url.removeprefix("oci:").startswith("/"):
        raise InvalidError(f"{where}.url must have an absolute path, not {url[:80]!r}")
    if ("username" in read) != ("password" in read):
        raise InvalidError(f"{where}: username and password go together")
    if kind != "s3":
        for key in ("endpoint", "region", "anonymous"):
            if key in read:
                raise InvalidError(f"{where}.{key} is for s3: alone")
    credentials = Credentials(read["username"], read["password"]) if "username" in read else None
    rest = {key: read[key] for key in ("ca_file", "endpoint", "region", "anonymous") if key in read}
    return StoreConfig(url, credentials, **rest)


def open_store(config: StoreConfig, answer_timeout: float) -> BlobSource:
    """The store. Connects to nothing yet; an answer must be complete within `answer_timeout` seconds.

    Raises:
        InvalidError: the URL or a certificate file cannot be used.
        UnsupportedError: a library that this kind needs is not installed.
    """
    kind, _, rest = config.url.partition(":")
    # Each kind costs memory in every worker, so it is imported where it is used.
    if kind == "oci":
        from snapshotter.registry.layout import LayoutStore

        return LayoutStore(Path(rest))
    if kind == "s3":
        from snapshotter.registry.objectstorage import S3Directory

        return S3Directory(
            config.url,
            endpoint=config.endpoint,
            region=config.region,
            credentials=config.credentials,
            anonymous=config.anonymous,
            ca_file=config.ca_file,
            answer_timeout=answer_timeout,
        )
    from snapshotter.registry.httpdirectory import HttpDirectory

    authorities = (config.ca_file,) if config.ca_file is not None else ()
    settings = RegistryConfig(ca_files=authorities, answer_timeout=answer_timeout)
    return HttpDirectory(config.url, settings, config.credentials)
