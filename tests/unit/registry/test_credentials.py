import base64
import json
import stat
from pathlib import Path

import pytest

from snapshotter.errors import InvalidError, UnavailableError
from snapshotter.registry import credentials
from snapshotter.registry.credentials import Credentials, DockerConfig, FirstOf, FixedCredentials, login_files
from snapshotter.registry.hosts import RegistryConfig

ANN = Credentials("ann", "s:cret")


def config(tmp_path: Path, content: object) -> DockerConfig:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return DockerConfig(path)


def auth(credentials: Credentials) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()}


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")


@pytest.mark.parametrize("key", ["registry.example:5000", "https://registry.example:5000", "http://registry.example:5000/v1/"])
def test_docker_config_names_hosts_in_several_ways(tmp_path: Path, key: str) -> None:
    assert config(tmp_path, {"auths": {key: auth(ANN)}}).find("registry.example:5000") == ANN


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub_has_a_name_of_its_own(tmp_path: Path, key: str) -> None:
    assert config(tmp_path, {"auths": {key: auth(ANN)}}).find("docker.io") == ANN


def test_another_host_gets_nothing(tmp_path: Path) -> None:
    source = config(tmp_path, {"auths": {"registry.example": auth(ANN)}})
    assert source.find("registry.example:5000") is None
    assert source.find("example") is None


def test_username_and_password_stand_for_auth(tmp_path: Path) -> None:
    assert config(tmp_path, {"auths": {"h.x": {"username": "ann", "password": "s:cret"}}}).find("h.x") == ANN


def test_an_identity_token_wins(tmp_path: Path) -> None:
    found = config(tmp_path, {"auths": {"h.x": {**auth(ANN), "identitytoken": "refresh"}}}).find("h.x")
    assert found == Credentials(identity_token="refresh")


@pytest.mark.parametrize("content", [{}, {"auths": {}}, {"auths": None}, {"auths": {"h.x": {}}}, {"auths": {"h.x": None}}])
def test_a_config_without_the_host_knows_nobody(tmp_path: Path, content: object) -> None:
    assert config(tmp_path, content).find("h.x") is None


def test_no_file_knows_nobody(tmp_path: Path) -> None:
    assert DockerConfig(tmp_path / "none").find("h.x") is None


def test_the_file_is_read_anew_each_time(tmp_path: Path) -> None:
    source = config(tmp_path, {"auths": {"h.x": auth(Credentials("ann", "old"))}})
    assert source.find("h.x") == Credentials("ann", "old")
    config(tmp_path, {"auths": {"h.x": auth(Credentials("ann", "new"))}})
    assert source.find("h.x") == Credentials("ann", "new")


@pytest.mark.parametrize("content", ["", "{", "[]", '"secret"', "[" * 100_000])
def test_a_broken_config_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidError, match=r"config\.json") as caught:
        config(tmp_path, content).find("h.x")
    assert "secret" not in str(caught.value)


def test_a_broken_auth_is_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"h\.x") as caught:
        config(tmp_path, {"auths": {"h.x": {"auth": "*secret*"}}}).find("h.x")
    assert "*secret*" not in str(caught.value)


def test_where_docker_keeps_its_config() -> None:
    assert DockerConfig.default({"HOME": "/h"}).path == Path("/h/.docker/config.json")
    assert DockerConfig.default({"HOME": "/h", "DOCKER_CONFIG": "/d"}).path == Path("/d/config.json")


def test_a_helper_is_asked_for_its_host_and_the_store_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = """read server; echo "{\\"Username\\": \\"%s\\", \\"Secret\\": \\"$server\\"}" """
    helper(tmp_path, monkeypatch, "one", '[ "$1" = get ] || exit 9; ' + answer % "one")
    helper(tmp_path, monkeypatch, "all", answer % "all")
    source = config(tmp_path, {"credHelpers": {"h.x": "one"}, "credsStore": "all", "auths": {"h.x": auth(ANN)}})
    assert source.find("h.x") == Credentials("one", "h.x")
    assert source.find("other.x") == Credentials("all", "other.x")
    assert source.find("docker.io") == Credentials("all", "https://index.docker.io/v1/")


def test_a_helper_may_have_an_identity_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "id", """echo '{"Username": "<token>", "Secret": "refresh"}'""")
    assert config(tmp_path, {"credsStore": "id"}).find("h.x") == Credentials(identity_token="refresh")


def test_a_helper_without_credentials_leaves_it_to_auths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "none", "echo 'credentials not found in native keychain'; exit 1")
    assert config(tmp_path, {"credsStore": "none", "auths": {"h.x": auth(ANN)}}).find("h.x") == ANN


@pytest.mark.parametrize("script", ["echo secret-output; echo secret-output >&2; exit 1", "echo secret-output", "echo '[1]'"])
def test_a_failing_helper_is_named_and_its_output_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    helper(tmp_path, monkeypatch, "bad", script)
    with pytest.raises(UnavailableError, match="docker-credential-bad") as caught:
        config(tmp_path, {"credsStore": "bad"}).find("h.x")
    assert "secret-output" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../bin/sh", "a/b", "-x", "no-such-helper"])
def test_a_helper_that_is_no_program_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidError):
        config(tmp_path, {"credsStore": name}).find("h.x")


def test_the_first_source_that_knows_the_host_wins(tmp_path: Path) -> None:
    fixed = FixedCredentials({"h.x": Credentials("fixed", "f")})
    both = FirstOf([fixed, config(tmp_path, {"auths": {"h.x": auth(ANN), "o.x": auth(ANN)}})])
    assert both.find("h.x") == Credentials("fixed", "f")
    assert both.find("o.x") == ANN
    assert both.find("n.x") is None


def test_no_representation_shows_a_secret() -> None:
    secret = Credentials("ann", "hunter2", "token2")
    for value in (
        secret,
        RegistryConfig(credentials=secret),
        FixedCredentials({"h": secret}),
        FirstOf([FixedCredentials({"h": secret})]),
    ):
        assert "hunter2" not in repr(value) + str(value)
        assert "token2" not in repr(value) + str(value)


def test_podmans_keys_may_be_parts_of_a_repository(tmp_path: Path) -> None:
    other = Credentials("bob", "b")
    source = config(tmp_path, {"auths": {"quay.io": auth(ANN), "quay.io/team": auth(other)}})
    assert source.find("quay.io", "team/app") == other
    assert source.find("quay.io", "teams/app") == ANN
    assert source.find("quay.io") == ANN


def test_a_source_that_fails_or_gives_what_was_refused_is_passed_over(tmp_path: Path) -> None:
    broken = config(tmp_path, "no json")
    bob = Credentials("bob", "b")
    sources = FirstOf([broken, FixedCredentials({"h.x": ANN}), FixedCredentials({"h.x": bob})])
    assert sources.find("h.x") == ANN
    assert sources.find("h.x", refused=[ANN]) == bob
    with pytest.raises(InvalidError, match="is not a JSON object"):
        sources.find("other.x")


def test_logins_of_docker_and_podman_are_found_where_they_keep_them(tmp_path: Path) -> None:
    places = {
        "docker.x": ".docker/config.json",
        "podman.x": ".config/containers/auth.json",
        "run.x": "run/containers/auth.json",
        "named.x": "named.json",
    }
    for host, place in places.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(json.dumps({"auths": {host: auth(ANN)}}))
    environment = {
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "REGISTRY_AUTH_FILE": str(tmp_path / "named.json"),
    }
    for root in (False, True):
        source = login_files(environment, root=root)
        assert all(source.find(host) == ANN for host in places)
        assert source.find("other.x") is None


def test_only_the_machines_root_has_its_own_place_below_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root of a user's namespace is that user, whom root's logins are none of the business of."""
    roots = tmp_path / "run" / "containers" / "0" / "auth.json"
    roots.parent.mkdir(parents=True)
    roots.write_text(json.dumps({"auths": {"registry.x": auth(ANN)}}))
    monkeypatch.setattr(credentials, "_PODMAN_FILES", (str(roots),))
    environment = {"HOME": str(tmp_path / "home")}
    assert login_files(environment, root=True).find("registry.x") == ANN
    assert login_files(environment, root=False).find("registry.x") is None
