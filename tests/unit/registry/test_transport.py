import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import __version__
from snapshotter.errors import CorruptError, InvalidError
from snapshotter.format.digest import to_text
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.hosts import RegistryConfig, endpoint, is_loopback
from snapshotter.registry.transport import REDIRECTS_MAX, Traffic, Transport, parse_retry_after
from tests.support.registry import FakeRegistry, Fault

SECRET = "Bearer hunter2"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def storage() -> Iterator[FakeRegistry]:
    """Object storage: another host, by its port."""
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def transport(registry: FakeRegistry) -> Iterator[Transport]:
    transport = Transport(registry.host, RegistryConfig(plain_http=True, connect_timeout=5, read_timeout=5))
    yield transport
    transport.close()


def certificate(directory: Path, name: str = "127.0.0.1") -> tuple[str, str]:
    """A self-signed certificate for that address, and its key."""
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-keyout", key, "-out", cert, "-subj", "/CN=test", "-addext", f"subjectAltName=IP:{name}"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture
def tls_registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    with FakeRegistry(ssl_context=context) as fake:
        yield fake


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_it_says_who_asks_and_wants_no_content_encoding(registry: FakeRegistry, transport: Transport) -> None:
    transport.request("GET", "/v2/").close()
    headers = registry.requests[0].headers
    assert headers["user-agent"] == f"puzzlefs/{__version__}"
    assert headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_authorization_does_not_follow_to_another_host(
    registry: FakeRegistry, storage: FakeRegistry, transport: Transport, status: int
) -> None:
    blob = storage.put_blob("bucket", b"data")
    target = f"{storage.url}/v2/bucket/blobs/{to_text(blob.digest)}?signature=abc"
    registry.inject(Fault(status=status, headers={"Location": target}))
    with transport.request("GET", "/v2/a/blobs/x", headers={"Authorization": SECRET, "Range": "bytes=1-2"}) as response:
        assert response.read_all(10, "blob") == b"at"
        assert response.foreign
    assert registry.requests[0].headers["authorization"] == SECRET
    assert "authorization" not in storage.requests[0].headers
    assert storage.requests[0].range == "bytes=1-2"


def test_authorization_does_not_come_back_from_another_host(
    registry: FakeRegistry, storage: FakeRegistry, transport: Transport
) -> None:
    registry.inject(Fault(redirect=f"{storage.url}/v2/a/blobs/x"))
    storage.inject(Fault(redirect=f"{registry.url}/v2/"))
    transport.request("GET", "/v2/a/blobs/x", headers={"Authorization": SECRET}).close()
    assert [("authorization" in exchange.headers) for exchange in registry.requests] == [True, False]


def test_authorization_follows_within_the_host(registry: FakeRegistry, transport: Transport) -> None:
    registry.inject(Fault(redirect="/v2/"))
    with transport.request("GET", "/v2/a/blobs/x", headers={"Authorization": SECRET}) as response:
        assert (response.status, response.foreign) == (200, False)
    assert registry.requests[1].headers["authorization"] == SECRET


def test_redirects_end(registry: FakeRegistry, transport: Transport) -> None:
    registry.inject(Fault(redirect="/v2/"), times=100)
    with pytest.raises(InvalidError, match="redirects"):
        transport.request("GET", "/v2/")
    assert len(registry.requests) == REDIRECTS_MAX + 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/x", "http://user:pw@host/x", "http://[::1"])
def test_redirects_go_to_plain_http_urls_alone(registry: FakeRegistry, transport: Transport, target: str) -> None:
    registry.inject(Fault(redirect=target))
    with pytest.raises(InvalidError, match="redirects"):
        transport.request("GET", "/v2/")


def test_an_upload_is_not_redirected(registry: FakeRegistry, transport: Transport) -> None:
    registry.inject(Fault(redirect="/v2/"))
    with transport.request("PUT", "/v2/a/blobs/uploads/x", body=b"data") as response:
        assert response.status == 307
    assert len(registry.requests) == 1


def test_the_signature_of_a_redirect_is_in_no_message(
    registry: FakeRegistry, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    registry.inject(Fault(redirect=f"http://127.0.0.1:{closed_port()}/bucket?signature=hunter2"))
    with pytest.raises(RegistryUnavailableError) as caught:
        transport.request("GET", "/v2/")
    assert "hunter2" not in str(caught.value) + caplog.text
    assert "http://127.0.0.1:" in str(caught.value)


def test_a_refused_connection_is_named(caplog: pytest.LogCaptureFixture) -> None:
    host = f"127.0.0.1:{closed_port()}"
    for plain in (True, False, None):
        with pytest.raises(RegistryUnavailableError, match=f"{host}.*refused") as caught:
            Transport(host, RegistryConfig(plain_http=plain)).request("GET", "/v2/")
        assert caught.value.retryable


def test_a_name_that_does_not_resolve_is_named() -> None:
    with pytest.raises(RegistryUnavailableError, match=r"registry\.invalid.*resolve"):
        Transport("registry.invalid", RegistryConfig()).request("GET", "/v2/")


def test_silence_before_the_answer_is_a_timeout(registry: FakeRegistry) -> None:
    transport = Transport(registry.host, RegistryConfig(plain_http=True, read_timeout=0.1))
    registry.inject(Fault(hold=threading.Event()))
    with pytest.raises(RegistryUnavailableError, match="timeout") as caught:
        transport.request("GET", "/v2/")
    assert caught.value.retryable


def test_silence_within_the_body_is_a_timeout(registry: FakeRegistry) -> None:
    transport = Transport(registry.host, RegistryConfig(plain_http=True, read_timeout=0.1))
    blob = registry.put_blob("a", b"x" * 1000)
    registry.inject(Fault(stall=10))
    response = transport.request("GET", f"/v2/a/blobs/{to_text(blob.digest)}")
    with response, pytest.raises(RegistryUnavailableError, match="timeout"):
        response.read(1000)


def test_a_connection_cut_within_the_body_is_worth_a_retry(registry: FakeRegistry, transport: Transport) -> None:
    blob = registry.put_blob("a", b"x" * 1000)
    registry.inject(Fault(cut=10))
    with transport.request("GET", f"/v2/a/blobs/{to_text(blob.digest)}") as response:
        with pytest.raises(RegistryUnavailableError, match="broke") as caught:
            response.read_all(1000, "blob")
        assert caught.value.retryable


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(registry: FakeRegistry, transport: Transport) -> None:
    transport.request("GET", "/v2/").close()
    registry.inject(Fault(drop=True))
    with transport.request("GET", "/v2/") as response:
        assert response.status == 200


def test_a_server_that_always_drops_is_unavailable(registry: FakeRegistry, transport: Transport) -> None:
    registry.inject(Fault(drop=True), times=100)
    with pytest.raises(RegistryUnavailableError, match="broke"):
        transport.request("GET", "/v2/")
    assert len(registry.requests) == 2


def test_bodies_are_bounded(registry: FakeRegistry, transport: Transport) -> None:
    registry.inject(Fault(status=200, body=b"x" * 1000), times=2)
    with transport.request("GET", "/v2/") as response:
        assert len(response.read_all(1000, "answer")) == 1000
    with transport.request("GET", "/v2/") as response, pytest.raises(CorruptError, match="longer than 999"):
        response.read_all(999, "answer")


def test_bytes_and_requests_are_counted(registry: FakeRegistry) -> None:
    traffic = Traffic()
    transport = Transport(registry.host, RegistryConfig(plain_http=True), traffic)
    blob = registry.put_blob("a", b"x" * 1000)
    for _ in range(2):
        with transport.request("GET", f"/v2/a/blobs/{to_text(blob.digest)}") as response:
            response.read_all(1000, "blob")
    assert (traffic.received, traffic.requests) == (2000, 2) == (registry.sent(), len(registry.requests))


def test_connections_are_kept_after_a_short_unread_rest(registry: FakeRegistry, transport: Transport) -> None:
    registry.inject(Fault(status=404, body=b"x" * 1000))
    transport.request("GET", "/v2/").close()
    transport.request("GET", "/v2/").close()
    pools = [pool for manager in transport._pools.values() for pool in map(manager.pools.get, manager.pools.keys())]
    assert [(pool.num_connections, pool.num_requests) for pool in pools if pool is not None] == [(1, 2)]


def test_a_proxy_is_used_for_other_machines_and_never_for_this_one(
    registry: FakeRegistry, storage: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", storage.url)
    monkeypatch.setenv("no_proxy", "excepted.invalid")
    for host in (registry.host, "registry.invalid"):
        Transport(host, RegistryConfig(plain_http=True)).request("GET", "/v2/").close()
    assert [exchange.headers["host"] for exchange in storage.requests] == ["registry.invalid"]
    with pytest.raises(RegistryUnavailableError, match="resolve"):
        Transport("excepted.invalid", RegistryConfig(plain_http=True)).request("GET", "/v2/")


def test_plain_http_is_found_out_on_this_machine_alone(registry: FakeRegistry, tls_registry: FakeRegistry) -> None:
    assert Transport(registry.host, RegistryConfig()).base == registry.url
    assert Transport(tls_registry.host, RegistryConfig()).base == tls_registry.url
    assert Transport("registry.example", RegistryConfig()).base == "https://registry.example"
    assert Transport("registry.example", RegistryConfig(plain_http=True)).base == "http://registry.example"
    assert Transport(registry.host, RegistryConfig(plain_http=False)).base == f"https://{registry.host}"


def test_a_certificate_that_is_not_trusted_is_named_and_not_retried(tls_registry: FakeRegistry) -> None:
    with pytest.raises(RegistryUnavailableError, match=r"certificate is not trusted.*ca_file") as caught:
        Transport(tls_registry.host, RegistryConfig()).request("GET", "/v2/")
    assert not caught.value.retryable


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_a_configured_authority_or_none_is_trusted(tls_registry: FakeRegistry, tmp_path: Path) -> None:
    for config in (RegistryConfig(ca_files=(str(tmp_path / "cert.pem"),)), RegistryConfig(skip_verify=True)):
        transport = Transport(tls_registry.host, config)
        with transport.request("GET", "/v2/") as response:
            assert response.status == 200
        transport.close()


def test_plain_http_where_tls_is_expected_says_what_to_configure(registry: FakeRegistry) -> None:
    with pytest.raises(RegistryUnavailableError, match="plain_http"):
        Transport(registry.host, RegistryConfig(plain_http=False)).request("GET", "/v2/")


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_https_does_not_redirect_to_http(tls_registry: FakeRegistry, registry: FakeRegistry) -> None:
    tls_registry.inject(Fault(redirect=registry.url))
    transport = Transport(tls_registry.host, RegistryConfig(skip_verify=True))
    with pytest.raises(InvalidError, match="https to http"):
        transport.request("GET", "/v2/")
    assert registry.requests == []
    transport.close()


def test_a_certificate_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"none\.pem"):
        Transport("h.x", RegistryConfig(ca_files=(str(tmp_path / "none.pem"),)))
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(InvalidError, match=r"bad\.pem"):
        Transport("h.x", RegistryConfig(client_certificates=((str(tmp_path / "bad.pem"), str(tmp_path / "bad.pem")),)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("5", 5),
        (" 5 ", 5),
        ("0", 0),
        ("-1", None),
        ("9" * 30, 3600),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("٣", None),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text) == seconds


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:5000"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["localhost.example", "128.0.0.1", "127.0.0.1.example", "[::2]", "[::1", "10.0.0.1:5000", "docker.io", ""]
)
def test_other_machines(host: str) -> None:
    assert not is_loopback(host)


def test_docker_hub_listens_elsewhere() -> None:
    assert endpoint("docker.io", RegistryConfig()) == "registry-1.docker.io"
    assert endpoint("docker.io", RegistryConfig(endpoint="mirror:5000")) == "mirror:5000"
    assert endpoint("ghcr.io", RegistryConfig()) == "ghcr.io"
