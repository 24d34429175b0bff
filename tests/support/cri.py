"""A pull by CRI, as the kubelet asks for one: the two messages that this takes, encoded by hand."""

from __future__ import annotations

from pathlib import Path

import grpc


def pull(socket: Path, reference: str, timeout: float = 60) -> None:
    """``runtime.v1.ImageService/PullImage`` (cri-api's api.proto: PullImageRequest.image = 1, ImageSpec.image = 1).

    Raises:
        grpc.RpcError: it failed.
    """
    request = _field(1, _field(1, reference.encode()))
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        call = channel.unary_unary("/runtime.v1.ImageService/PullImage", request_serializer=bytes, response_deserializer=bytes)
        call(request, timeout=timeout)


def _field(number: int, value: bytes) -> bytes:
    size, encoded = len(value), b""
    while size >= 0x80:
        encoded += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + encoded + bytes([size]) + value
