"""Addresses that nothing connects to, whatever leads there."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from snapshotter.errors import InvalidError
from snapshotter.registry.hosts import RegistryConfig
from snapshotter.registry.peers import check_peer
from snapshotter.registry.transport import Transport
from tests.support.registry import FakeRegistry, Fault


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "0.0.0.0", "::", "224.0.0.1"),
        *("ff02::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"),
    ],
)
def test_never(address: str) -> None:
    with pytest.raises(InvalidError, match="is no address of a registry"):
        check_peer(address, loopback=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_loopback_only_where_it_is_meant(address: str) -> None:
    check_peer(address, loopback=True)
    with pytest.raises(InvalidError, match="this machine"):
        check_peer(address, loopback=False)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "203.0.113.7", "2001:db8::1", "100.64.0.1"])
def test_everything_else(address: str) -> None:
    check_peer(address, loopback=False)


def test_a_redirect_to_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry elsewhere answers with a redirect to a service of this node, under any name: that gets no request."""
    real = socket.getaddrinfo

    def resolve(host: str, *more: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host.endswith(".example") else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with FakeRegistry() as far, FakeRegistry() as service:
        transport = Transport(far.host.replace("127.0.0.1", "far.example"), RegistryConfig(plain_http=True))
        for host in ("inner.example", "127.0.0.1", "localhost"):
            far.inject(Fault(redirect=f"http://{service.host.replace('127.0.0.1', host)}/secret"))
            with pytest.raises(InvalidError, match="another one's answer led there"):
                transport.request("GET", "/v2/")
        transport.close()
        assert len(far.requests) == 3
        assert not service.requests


def test_a_registry_on_this_machine_may_redirect_there() -> None:
    with FakeRegistry() as registry, FakeRegistry() as store:
        registry.inject(Fault(redirect=f"http://{store.host}/v2/"))
        transport = Transport(registry.host, RegistryConfig(plain_http=True))
        with transport.request("GET", "/v2/") as response:
            assert response.foreign
        transport.close()
        assert store.requests
