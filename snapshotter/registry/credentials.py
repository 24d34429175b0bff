"""Where user names and passwords for registries come from: explicit ones, docker's ``config.json`` and podman's, helpers.

A source is asked again whenever a registry answers 401, and reads its files anew each time, so that a changed password needs
no restart. Secrets are in no representation and no message.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from snapshotter.errors import InvalidError, PuzzlefsError, UnavailableError
from snapshotter.registry.reference import DEFAULT_HOST

CONFIG_MAX = 1 << 20
"""Largest docker config.json that is read, in bytes."""

HELPER_TIMEOUT = 30.0
"""Seconds that a credential helper may take."""

_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_PODMAN_FILES = ("/run/containers/0/auth.json",)
_TOKEN_USER = "<token>"  # noqa: S105 (the user name by which docker's helpers mark an identity token)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user of a registry: name and password, or an identity token (an OAuth2 refresh token) in their place."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str | None = field(default=None, repr=False)


class CredentialSource(Protocol):
    """Finds the credentials for a host."""

    def find(self, host: str, repository: str = "", *, refused: Sequence[Credentials] = ()) -> Credentials | None:
        """The credentials for `repository` of `host` (as in references) that are valid now; None for an anonymous user.

        `refused`: what was found before and the registry does not take; nothing that was remembered will do then.

        Raises:
            InvalidError: the configuration is broken.
            UnavailableError: a helper fails.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedCredentials:
    """The same credentials for each host of a mapping."""

    hosts: Mapping[str, Credentials] = field(default_factory=dict, repr=False)

    def find(self, host: str, repository: str = "", *, refused: Sequence[Credentials] = ()) -> Credentials | None:
        """See `CredentialSource`."""
        return self.hosts.get(host)


@dataclass(frozen=True, slots=True)
class FirstOf:
    """The first source that knows the host and gives what was not refused. One that fails is passed over if another does."""

    sources: Sequence[CredentialSource]

    def find(self, host: str, repository: str = "", *, refused: Sequence[Credentials] = ()) -> Credentials | None:
        """See `CredentialSource`."""
        failure: PuzzlefsError | None = None
        for source in self.sources:
            try:
                found = source.find(host, repository, refused=refused)
            except PuzzlefsError as error:
                failure = failure or error
            else:
                if found is not None and found not in refused:
                    return found
        if failure is not None:
            raise failure
        return None


def login_files(environment: Mapping[str, str], *, root: bool) -> CredentialSource:
    """Where ``docker login`` and ``podman login`` keep what they were told, those of the environment first.

    podman's places are containers-auth.json(5)'s: ``$REGISTRY_AUTH_FILE``, below ``$XDG_RUNTIME_DIR``, below /run for the
    machine's `root` (root of a user's namespace finds that user's files), and ``~/.config``.
    """
    home = environment.get("HOME", "/root")
    runtime = environment.get("XDG_RUNTIME_DIR")
    podman = [
        environment.get("REGISTRY_AUTH_FILE"),
        os.path.join(runtime, "containers/auth.json") if runtime else None,
        *(_PODMAN_FILES if root else ()),
        os.path.join(environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "containers/auth.json"),
    ]
    files = [DockerConfig(Path(path)) for path in dict.fromkeys(filter(None, podman))]
    return FirstOf([DockerConfig.default(environment), *files])


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """docker's configuration file: ``credHelpers`` for the host, then ``credsStore``, then ``auths``, as docker itself.

    podman's ``auth.json`` is the same, with keys of ``auths`` and ``credHelpers`` that may be a part of a repository
    (``quay.io/team``), of which the longest counts (containers-auth.json(5)).
    """

    path: Path

    @classmethod
    def default(cls, environment: Mapping[str, str] = os.environ) -> DockerConfig:
        """The file that docker uses: in ``$DOCKER_CONFIG``, else in ``~/.docker``."""
        directory = environment.get("DOCKER_CONFIG") or os.path.join(environment.get("HOME", "/root"), ".docker")
        return cls(Path(directory) / "config.json")

    def find(self, host: str, repository: str = "", *, refused: Sequence[Credentials] = ()) -> Credentials | None:
        """See `CredentialSource`. A file that is not there knows nobody."""
        config = self._read()
        keys = [*_namespaces(host, repository), *_host_keys(host)]
        helpers = _mapping(config.get("credHelpers"))
        helper = next((helpers[key] for key in keys if key in helpers), config.get("credsStore"))
        if helper:
            found = self._ask(str(helper), _host_keys(host)[0])
            if found is not None:
                return found
        auths = {_bare(key): entry for key, entry in _mapping(config.get("auths")).items()}
        entry = next((auths[_bare(key)] for key in keys if _bare(key) in auths), None)
        return None if entry is None else self._entry(_mapping(entry), host)

    def _read(self) -> Mapping[str, object]:
        try:
            with open(self.path, "rb") as file:
                data = file.read(CONFIG_MAX + 1)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise UnavailableError(f"registry credentials: cannot read {self.path}: {error.strerror}") from error
        try:
            config = json.loads(data) if len(data) <= CONFIG_MAX else None
        except (ValueError, RecursionError):
            # The parser's message may quote the file.
            config = None
        if not isinstance(config, dict):
            raise InvalidError(f"registry credentials: {self.path} is not a JSON object; mend it or log in again")
        return config

    def _entry(self, entry: Mapping[str, object], host: str) -> Credentials | None:
        token = entry.get("identitytoken")
        if isinstance(token, str) and token:
            return Credentials(identity_token=token)
        encoded, username, password = entry.get("auth"), entry.get("username"), entry.get("password")
        if isinstance(encoded, str) and encoded:
            try:
                username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                raise InvalidError(f"registry credentials: {self.path} has no valid 'auth' for {host}; log in again") from None
        if not isinstance(username, str) or not username:
            return None
        return Credentials(username, password.rstrip("\0") if isinstance(password, str) else "")

    def _ask(self, helper: str, server: str) -> Credentials | None:
        if not _HELPER.match(helper):
            raise InvalidError(
                f"registry credentials: {self.path} names the helper {helper[:64]!r}, which is no program's name"
            )
        program = f"docker-credential-{helper}"
        try:
            done = subprocess.run(
                [program, "get"], input=server.encode(), capture_output=True, timeout=HELPER_TIMEOUT, check=False
            )
        except FileNotFoundError:
            raise InvalidError(f"registry credentials: {self.path} names {program}, which is not in PATH; install it") from None
        except (OSError, subprocess.TimeoutExpired):
            raise UnavailableError(
                f"registry credentials: {program} could not be run, or took over {HELPER_TIMEOUT:.0f} s"
            ) from None
        if done.returncode != 0:
            # The protocol has no code for "none stored", only this text.
            if b"credentials not found" in done.stdout + done.stderr:
                return None
            raise UnavailableError(f"registry credentials: {program} get, asked for {server}, failed with {done.returncode}")
        try:
            answer = _mapping(json.loads(done.stdout))
        except (ValueError, RecursionError):
            answer = {}
        username, secret = answer.get("Username"), answer.get("Secret")
        if not isinstance(username, str) or not isinstance(secret, str):
            raise UnavailableError(f"registry credentials: {program} get, asked for {server}, answered no credentials")
        return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _namespaces(host: str, repository: str) -> Sequence[str]:
    """``host/a/b`` and ``host/a`` for the repository ``a/b``: the longest first."""
    parts = repository.split("/") if repository else []
    return ["/".join([host, *parts[:count]]) for count in range(len(parts), 0, -1)]


def _host_keys(host: str) -> Sequence[str]:
    return _HUB_KEYS if host == DEFAULT_HOST else (host, f"https://{host}", f"http://{host}")


def _bare(key: str) -> str:
    """`key` of ``auths`` without what docker has written around the host in its time: a scheme, and its API's path."""
    bare = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    for version in ("/v1", "/v2"):
        bare = bare.removesuffix(version)
    return bare
