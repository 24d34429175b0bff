"""The kubelet's credential providers: programs that give credentials for an image (KEP-2133, ``credentialprovider``).

Configuration and protocol are Kubernetes' ``kubelet.config.k8s.io`` CredentialProviderConfig and
``credentialprovider.kubelet.k8s.io`` v1 (v1beta1 and v1alpha1 say the same): a request is written to the program's standard
input, an answer comes from its standard output, and says for how long and for which images it may be remembered.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapshotter.errors import InvalidError, UnavailableError
from snapshotter.registry.credentials import Credentials

TIMEOUT = 30.0
"""Seconds that a program may take; a read may wait for it."""
CONFIG_MAX = 1 << 20
ANSWER_MAX = 1 << 20
REMEMBERED_MAX = 1024
"""Most answers that are remembered."""
DURATION_MAX = 24 * 3600.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_VERSION = re.compile(r"credentialprovider\.kubelet\.k8s\.io/v1(alpha1|beta1)?\Z")
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Provider:
    """One program, and the images that it is asked about."""

    name: str
    match_images: tuple[str, ...]
    api_version: str
    default_seconds: float = 0.0
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)


class KubeletProviders:
    """A `CredentialSource` over the providers of the file `config` (YAML or JSON), their programs in `programs`.

    The file is read again whenever it has changed.
    """

    def __init__(self, config: Path, programs: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._programs = programs
        self._clock = clock
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int], Sequence[Provider]] | None = None
        self._remembered: dict[tuple[str, str], tuple[float, Mapping[str, Credentials]]] = {}
        """By provider and what it said its answer is good for: until when, and the answer."""

    def find(self, host: str, repository: str = "", *, refused: Sequence[Credentials] = ()) -> Credentials | None:
        """See `CredentialSource`."""
        image = f"{host}/{repository}" if repository else host
        for provider in self._providers():
            if any(matches(pattern, image) for pattern in provider.match_images):
                found = best(self._ask(provider, image, host, remembered=not refused), image)
                if found is not None and found not in refused:
                    return found
        return None

    def _providers(self) -> Sequence[Provider]:
        try:
            status = self._config.stat()
            key = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._read is None or self._read[0] != key:
                with open(self._config, "rb") as file:
                    self._read = key, parse(file.read(CONFIG_MAX + 1), str(self._config))
        except OSError as error:
            message = f"registry credentials: cannot read {self._config}: {error.strerror or error}"
            raise UnavailableError(message) from error
        return self._read[1]

    def _ask(self, provider: Provider, image: str, host: str, *, remembered: bool) -> Mapping[str, Credentials]:
        keys = {"Image": image, "Registry": host, "Global": "*"}
        with self._lock:
            now = self._clock()
            for key in keys.values():
                until, known = self._remembered.get((provider.name, key), (0.0, {}))
                if remembered and now < until:
                    return known
        answer = self._run(provider, image)
        kind = answer.get("cacheKeyType")
        if kind not in keys:
            raise UnavailableError(f"registry credentials: {provider.name} answered no cacheKeyType that is known")
        seconds = duration(answer.get("cacheDuration"), provider.default_seconds)
        auth = answer.get("auth")
        found = {
            str(pattern): Credentials(str(entry.get("username", "")), str(entry.get("password", "")))
            for pattern, entry in (auth.items() if isinstance(auth, dict) else ())
            if isinstance(entry, dict)
        }
        with self._lock:
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[provider.name, keys[kind]] = now + seconds, found
        return found

    def _run(self, provider: Provider, image: str) -> dict[str, Any]:
        request = {"apiVersion": provider.api_version, "kind": "CredentialProviderRequest", "image": image}
        try:
            done = subprocess.run(
                [str(self._programs / provider.name), *provider.args],
                input=json.dumps(request).encode(),
                env={**os.environ, **dict(provider.env)},
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = f"took over {TIMEOUT:.0f} s" if isinstance(error, subprocess.TimeoutExpired) else "could not be run"
            raise UnavailableError(f"registry credentials: {self._programs / provider.name} {why}") from None
        if done.returncode != 0:
            raise UnavailableError(f"registry credentials: {provider.name}, asked for {image}, failed with {done.returncode}")
        try:
            # What it wrote may hold a secret, so no part of it is in a message.
            answer = json.loads(done.stdout) if len(done.stdout) <= ANSWER_MAX else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or answer.get("kind") != "CredentialProviderResponse":
            raise UnavailableError(f"registry credentials: {provider.name}, asked for {image}, gave no answer that is one")
        return answer


def parse(data: bytes, name: str) -> Sequence[Provider]:
    """The providers of a CredentialProviderConfig; `name` is the file's, for messages.

    Raises:
        InvalidError: it is none.
    """
    import yaml  # 1 MB of memory, for those who use this

    try:
        document = yaml.safe_load(data) if len(data) <= CONFIG_MAX else None
    except (yaml.YAMLError, RecursionError):
        document = None
    listed = document.get("providers") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise InvalidError(f"{name} is no CredentialProviderConfig: it has no list of providers")
    try:
        return [_provider(entry) for entry in listed]
    except (InvalidError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidError(f"{name}: a provider that is none: {error or type(error).__name__}") from None


def _provider(entry: Mapping[str, Any]) -> Provider:
    name, version = str(entry["name"]), str(entry["apiVersion"])
    if not _NAME.match(name):
        raise InvalidError(f"{name[:80]!r} is no program's name")
    if not _VERSION.match(version):
        raise InvalidError(f"{name} speaks {version[:80]}, which is not known")
    patterns = tuple(str(pattern) for pattern in entry["matchImages"])
    env = tuple((str(each["name"]), str(each["value"])) for each in entry.get("env") or ())
    args = tuple(str(each) for each in entry.get("args") or ())
    return Provider(name, patterns, version, duration(entry.get("defaultCacheDuration"), 0.0), args, env)


def matches(pattern: str, image: str) -> bool:
    """Whether an entry of ``matchImages`` is for `image`: as many parts of the host's name, each matching (``*.ecr.*.x``), the
    same port, and the pattern's path a beginning of the image's (k8s' ``pkg/credentialprovider/keyring.go``)."""
    pattern = pattern.removeprefix("https://").removeprefix("http://")
    wanted_host, _, wanted_path = pattern.partition("/")
    host, _, path = image.partition("/")
    wanted_name, _, wanted_port = wanted_host.partition(":")
    name, _, port = host.partition(":")
    wanted_parts, parts = wanted_name.split("."), name.split(".")
    return (
        wanted_port == port
        and len(wanted_parts) == len(parts)
        and all(fnmatch.fnmatchcase(part, wanted) for part, wanted in zip(parts, wanted_parts, strict=True))
        and f"/{path}".startswith(f"/{wanted_path}")
    )


def best(found: Mapping[str, Credentials], image: str) -> Credentials | None:
    """Of an answer's credentials those whose pattern says most about `image`: the last in order of texts, as the kubelet."""
    return next((found[pattern] for pattern in sorted(found, reverse=True) if matches(pattern, image)), None)


def duration(value: object, default: float) -> float:
    """Seconds of Go's notation ``1h30m``, at most a day; `default` for nothing.

    Raises:
        InvalidError: it is something else.
    """
    if value is None or value == "":
        return default
    text = str(value)
    parts = _DURATION.findall(text)
    if text != "0" and "".join(number + unit for number, unit in parts) != text:
        raise InvalidError(f"{text[:40]!r} is no time such as 12h")
    return min(DURATION_MAX, sum(float(number) * _UNITS[unit] for number, unit in parts))
