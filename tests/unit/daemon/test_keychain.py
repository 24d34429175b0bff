"""What a pull through Kubernetes' image service tells about its user reaches the daemon and its workers, and no one else."""

from __future__ import annotations

import base64
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from snapshotter.api import cri_pb2
from snapshotter.daemon.criproxy import PULL, SERVICE, ImageServiceProxy, credentials
from snapshotter.daemon.keychain import REMEMBERED_MAX, DaemonKeychain, Keychain, KeychainServer, socket_path
from snapshotter.registry.credentials import Credentials

ANN = Credentials("ann", "s:cret")


@pytest.fixture
def keychain() -> Keychain:
    return Keychain()


def test_a_worker_gets_what_the_daemon_was_told(tmp_path: Path, keychain: Keychain) -> None:
    path = tmp_path / "k.sock"
    server = KeychainServer(keychain, path)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        worker = DaemonKeychain(path)
        assert worker.find("h.x", "a/b") is None
        keychain.remember("h.x", "a/b", ANN)
        assert worker.find("h.x", "a/b") == ANN
        assert worker.find("h.x", "a/c") is None
        keychain.remember("h.x", "a/b", Credentials(identity_token="token"))
        assert worker.find("h.x", "a/b") == Credentials(identity_token="token")
    finally:
        server.close()
    assert not path.exists()
    assert worker.find("h.x", "a/b") is None, "a daemon that is gone knows nothing"


def test_a_keychain_is_bounded(keychain: Keychain) -> None:
    for number in range(REMEMBERED_MAX + 10):
        keychain.remember("h.x", f"r{number}", ANN)
    assert keychain.find("h.x", "r0") is None
    assert keychain.find("h.x", f"r{REMEMBERED_MAX + 9}") == ANN
    assert "s:cret" not in repr(keychain.find("h.x", "r20"))


def test_the_socket_stands_beside_the_snapshots_service() -> None:
    assert socket_path(Path("/run/puzzlefs/snapshotter.sock")) == Path("/run/puzzlefs/snapshotter-credentials.sock")


@pytest.mark.parametrize(
    ("auth", "host", "expected"),
    [
        ({"username": "ann", "password": "s:cret"}, "h.x", ANN),
        ({"auth": base64.b64encode(b"ann:s:cret").decode()}, "h.x", ANN),
        ({"auth": "%"}, "h.x", None),
        ({"identity_token": "t"}, "h.x", Credentials(identity_token="t")),
        ({"username": "ann", "password": "s:cret", "server_address": "https://h.x/v1/"}, "h.x", ANN),
        ({"username": "ann", "password": "s:cret", "server_address": "other.x"}, "h.x", None),
        ({"username": "ann", "password": "s:cret", "server_address": "https://index.docker.io/v1/"}, "docker.io", ANN),
        ({}, "h.x", None),
    ],
)
def test_what_an_auth_config_says(auth: dict[str, str], host: str, expected: Credentials | None) -> None:
    assert credentials(cri_pb2.AuthConfig(**auth), host) == expected


class _Cri(grpc.GenericRpcHandler):
    """containerd's part: answers with what it was asked, and refuses what begins with an exclamation mark."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = handler_call_details.method

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if request.startswith(b"!"):
                context.abort(grpc.StatusCode.NOT_FOUND, "no such image")
            mine = [value for key, value in context.invocation_metadata() if key == "x-mine"]
            return method.encode() + b" " + request + b" " + ",".join(map(str, mine)).encode()

        return grpc.unary_unary_rpc_method_handler(answer) if method.startswith(SERVICE) else None


@pytest.fixture
def channel(tmp_path: Path, keychain: Keychain) -> Iterator[grpc.Channel]:
    servers = []
    proxy = ImageServiceProxy(tmp_path / "cri.sock", keychain)
    for handler, name in ((_Cri(), "cri.sock"), (proxy, "ours.sock")):
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((handler,))
        server.add_insecure_port(f"unix://{tmp_path}/{name}")
        server.start()
        servers.append(server)
    with grpc.insecure_channel(f"unix://{tmp_path}/ours.sock") as made:
        yield made
    proxy.close()
    for server in servers:
        server.stop(None).wait()


def test_every_call_reaches_containerd_as_it_came(channel: grpc.Channel) -> None:
    call = channel.unary_unary(SERVICE + "ListImages")
    assert call(b"any\xff", metadata=(("x-mine", "v"),), timeout=20) == SERVICE.encode() + b"ListImages any\xff v"
    with pytest.raises(grpc.RpcError) as caught:
        call(b"!", timeout=20)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such image")
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/runtime.v1.RuntimeService/Version")(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_pull_leaves_its_credentials(channel: grpc.Channel, keychain: Keychain) -> None:
    pull = cri_pb2.PullImageRequest(
        image=cri_pb2.ImageSpec(image="h.x/a/b:1"), auth=cri_pb2.AuthConfig(username="ann", password="s:cret")
    )
    assert pull.SerializeToString() in channel.unary_unary(PULL)(pull.SerializeToString(), timeout=20)
    assert keychain.find("h.x", "a/b") == ANN
    channel.unary_unary(PULL)(b"\xff\xff", timeout=20)
