"""Kubernetes' image service, passed through to containerd: so that the daemon hears who pulls an image.

The kubelet sends the credentials of a pod's image pull secrets with PullImage and with nothing else, and containerd does not
hand them on to snapshotters. A kubelet that is told ``--image-service-endpoint`` asks here; every call goes to containerd as
it came, and back.
"""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from snapshotter.api import cri_pb2
from snapshotter.daemon.keychain import Keychain
from snapshotter.errors import InvalidError
from snapshotter.registry import reference as references
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.reference import DEFAULT_HOST

SERVICE = "/runtime.v1.ImageService/"
PULL = SERVICE + "PullImage"
_HUB_SERVERS = ("index.docker.io", "docker.io", "registry-1.docker.io")
_MESSAGE_MAX = 16 << 20

_log = logging.getLogger(__name__)


class ImageServiceProxy(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """All methods of the image service, answered by the containerd at `address`; what pulls tell goes to `keychain`."""

    def __init__(self, address: Path, keychain: Keychain) -> None:
        """Connects when it is first asked."""
        self._address = address
        self._keychain = keychain
        options = [("grpc.max_receive_message_length", _MESSAGE_MAX), ("grpc.default_authority", "localhost")]
        self._channel = grpc.insecure_channel(f"unix://{address}", options=options)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """See `grpc.GenericRpcHandler`."""
        method = handler_call_details.method
        if not method.startswith(SERVICE):
            return None
        call = self._channel.unary_unary(method, request_serializer=None, response_deserializer=None)

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            return self._pass_on(method, call, request, context)

        return grpc.unary_unary_rpc_method_handler(answer)

    def close(self) -> None:
        """Close the connection to containerd."""
        self._channel.close()

    def _pass_on(self, method: str, call: Any, request: bytes, context: grpc.ServicerContext) -> bytes:
        if method == PULL:
            self._listen(request)
        metadata = [(key, value) for key, value in context.invocation_metadata() if not key.startswith(("grpc-", ":", "user-"))]
        # One that has no deadline gets none: a pull may take hours.
        left = context.time_remaining()
        pending = call.future(request, metadata=metadata, timeout=left if left is not None and left < 1e8 else None)
        context.add_callback(pending.cancel)
        try:
            answer: bytes = pending.result()
        except grpc.FutureCancelledError:
            context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            if isinstance(error, grpc.Call):
                context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
            context.abort(code, error.details() if isinstance(error, grpc.Call) else str(error))
        return answer

    def _listen(self, request: bytes) -> None:
        """Remember the credentials of a pull, before containerd asks us for the image's layers."""
        try:
            pull = cri_pb2.PullImageRequest.FromString(request)
            reference = references.parse(pull.image.image)
        except (DecodeError, InvalidError):
            return
        found = credentials(pull.auth, reference.host)
        if found is not None:
            self._keychain.remember(reference.host, reference.repository, found)


def credentials(auth: Any, host: str) -> Credentials | None:
    """What CRI's AuthConfig says about `host`; nothing if it is meant for another (``ParseAuth`` of containerd's CRI)."""
    server = auth.server_address.removeprefix("https://").removeprefix("http://").partition("/")[0]
    if server and server != host and not (host == DEFAULT_HOST and server in _HUB_SERVERS):
        return None
    if auth.identity_token:
        return Credentials(identity_token=auth.identity_token)
    if auth.username:
        return Credentials(auth.username, auth.password)
    if auth.auth:
        try:
            username, _, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        return Credentials(username, password.rstrip("\0"))
    return None
