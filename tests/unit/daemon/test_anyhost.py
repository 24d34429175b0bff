"""What a pull reads comes from any host that has it, after as many tries as help; what fails says what every host said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from snapshotter.chunkstore.retry import Patience, RetryPolicy
from snapshotter.daemon.anyhost import PATIENCE, RESUMED_MAX, AnyHost
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from snapshotter.format.digest import to_text
from snapshotter.registry.credentials import FixedCredentials
from snapshotter.registry.hosts import RegistryConfig, RegistryHost
from snapshotter.registry.reference import parse
from snapshotter.registry.registries import Registries
from tests.support.registry import FakeRegistry, Fault
from tests.support.samples import noise

BLOB = noise(3_000_000, 7)


class Hosts:
    """A registry with a mirror before it, an image in both, and the pauses that were made."""

    def __init__(self, mirror: FakeRegistry, registry: FakeRegistry) -> None:
        self.mirror, self.registry = mirror, registry
        for host in (mirror, registry):
            self.manifest = host.put_manifest("app", {"layers": []}, "1")
            self.blob = host.put_blob("app", BLOB)
        self.pauses: list[float] = []
        self.registries = Registries(self._hosts, FixedCredentials(None))

    def _hosts(self, host: str) -> list[RegistryHost]:
        config = RegistryConfig(endpoint=self.mirror.host, plain_http=True)
        return [RegistryHost(config, self.mirror.host), RegistryHost(RegistryConfig(plain_http=True))]

    def image(self, policy: RetryPolicy = PATIENCE.policy) -> AnyHost:
        patience = Patience(policy, sleep=self.pauses.append, jitter=lambda: 1.0)
        return AnyHost(self.registries, parse(f"{self.registry.host}/app:1"), patience)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with FakeRegistry() as mirror, FakeRegistry() as registry:
        made = Hosts(mirror, registry)
        yield made
        made.registries.close()


Ask = Callable[[AnyHost, Hosts], object]
READS: dict[str, Ask] = {
    "tag": lambda image, hosts: image.manifest("1")[0].digest == hosts.manifest.digest,
    "digest": lambda image, hosts: image.manifest(to_text(hosts.manifest.digest))[0].digest == hosts.manifest.digest,
    "configuration": lambda image, hosts: image.read_blob(hosts.blob) == BLOB,
    "layer": lambda image, hosts: image.open_blob(hosts.blob).read() == BLOB,
}


@pytest.fixture(params=READS)
def read(request: pytest.FixtureRequest) -> Ask:
    return READS[request.param]


def test_the_mirror_is_asked_first_and_alone(hosts: Hosts, read: Ask) -> None:
    assert read(hosts.image(), hosts)
    assert hosts.registry.requests == []


def test_what_the_mirror_does_not_give_the_registry_does_at_once(hosts: Hosts, read: Ask) -> None:
    for fault in (Fault(status=404), Fault(status=503), Fault(status=403), Fault(status=429), Fault(drop=True)):
        hosts.mirror.inject(fault, path="/app/", times=2)  # a dropped connection is made again once
        assert read(hosts.image(), hosts)
        hosts.mirror.heal()
    assert hosts.pauses == []


def test_a_mirror_that_is_gone_is_passed_over(hosts: Hosts, read: Ask) -> None:
    hosts.mirror.close()
    assert read(hosts.image(), hosts)
    assert hosts.pauses == []


def test_when_nobody_can_be_asked_now_they_are_asked_again(hosts: Hosts, read: Ask) -> None:
    for host in (hosts.mirror, hosts.registry):
        host.inject(Fault(status=500), path="/app/", times=2)
    assert read(hosts.image(), hosts)
    assert hosts.pauses == [0.5, 1.0]


def test_the_time_that_a_registry_asks_for_is_waited_up_to_a_bound(hosts: Hosts, read: Ask) -> None:
    for seconds, waited in (("3", 3.0), ("9999", 20.0)):
        for host in (hosts.mirror, hosts.registry):
            host.inject(Fault(status=429, headers={"Retry-After": seconds}), path="/app/")
        hosts.pauses.clear()
        assert read(hosts.image(), hosts)
        assert hosts.pauses == [waited + 0.5]


def test_the_tries_end_and_the_error_says_what_every_host_said(hosts: Hosts, read: Ask) -> None:
    hosts.mirror.close()
    hosts.registry.inject(Fault(status=503), path="/app/", times=100)
    with pytest.raises(UnavailableError) as caught:
        read(hosts.image(), hosts)
    assert re.search(
        rf"cannot be had from any of 2 hosts: {hosts.mirror.host}/app: .*refused.*; {hosts.registry.host}/app: .*fails \(503\)",
        str(caught.value),
    )
    assert len(hosts.pauses) == PATIENCE.policy.attempts - 1


def test_what_nobody_has_is_not_asked_for_again(hosts: Hosts) -> None:
    with pytest.raises(NotFoundError, match=rf"{hosts.mirror.host}/app: .*does not exist.*{hosts.registry.host}/app: "):
        hosts.image().manifest("2")
    for host in (hosts.mirror, hosts.registry):
        host.inject(Fault(status=403), path="/app/", times=5)
    with pytest.raises(InvalidError, match=r"denies access \(403\).*; .*denies access \(403\)"):
        hosts.image().manifest("1")
    assert hosts.pauses == []


def test_damaged_content_is_had_from_the_next_host(hosts: Hosts) -> None:
    hosts.mirror.inject(Fault(corrupt=5), path="/manifests/|/blobs/", times=2)
    assert hosts.image().manifest(to_text(hosts.manifest.digest))[0] == hosts.manifest
    assert hosts.image().read_blob(hosts.blob) == BLOB


def test_a_layer_that_breaks_off_goes_on_at_the_next_host(hosts: Hosts) -> None:
    hosts.mirror.inject(Fault(cut=1_000_000), path="/blobs/")
    hosts.mirror.inject(Fault(status=503), path="/blobs/")
    with hosts.image().open_blob(hosts.blob) as stream:
        assert stream.read() == BLOB
    (rest,) = [exchange.range for exchange in hosts.registry.requests]
    assert rest is not None
    assert int(rest.removeprefix("bytes=").partition("-")[0]) > 500_000


def test_a_layer_that_breaks_off_again_and_again_is_given_up(hosts: Hosts) -> None:
    for host in (hosts.mirror, hosts.registry):
        host.inject(Fault(cut=70_000), path="/blobs/", times=1000)
    with hosts.image().open_blob(hosts.blob) as stream, pytest.raises(UnavailableError, match=rf"broken {RESUMED_MAX} times"):
        stream.read()


def test_a_layer_of_other_bytes_is_refused(hosts: Hosts) -> None:
    hosts.mirror.inject(Fault(corrupt=5), path="/blobs/")
    with hosts.image().open_blob(hosts.blob) as stream, pytest.raises(CorruptError, match="is corrupt"):
        stream.read()


def test_tags_are_asked_of_hosts_that_may_resolve_them_alone(hosts: Hosts) -> None:
    config = RegistryConfig(endpoint=hosts.mirror.host, plain_http=True)
    listed = [RegistryHost(config, hosts.mirror.host, resolve=False), RegistryHost(RegistryConfig(plain_http=True))]
    with Registries(lambda host: listed, FixedCredentials(None)) as registries:
        image = AnyHost(registries, parse(f"{hosts.registry.host}/app:1"))
        image.manifest("1")
        assert (len(hosts.mirror.requests), len(hosts.registry.requests)) == (0, 1)
        image.manifest(to_text(hosts.manifest.digest))
        assert (len(hosts.mirror.requests), len(hosts.registry.requests)) == (1, 1)
