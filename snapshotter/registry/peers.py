"""Which addresses are never connected to, whatever name led there.

A registry's answers (redirects, token servers) and an image's labels name hosts, and names resolve to what their owner likes.
So the address that a connection really has is checked, before anything is sent on it.
"""

from __future__ import annotations

import ipaddress

from snapshotter.errors import InvalidError

METADATA_SERVICES = frozenset(ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16"))
"""Services of clouds that hand out a machine's credentials and are not at a link-local address, as most are."""


def check_peer(address: str, *, loopback: bool) -> None:
    """Refuse a connection to the IP address `address`. `loopback`: one to this machine is meant.

    Raises:
        InvalidError: nothing that serves images is there: link-local addresses and metadata services of clouds, multicast, the
            unspecified address; and loopback ones where somebody else's answer led to them.
    """
    peer = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
        peer = peer.ipv4_mapped
    if peer.is_link_local or peer.is_multicast or peer.is_unspecified or peer in METADATA_SERVICES:
        raise InvalidError(f"{address} is no address of a registry (link-local, multicast or a metadata service): refused")
    if peer.is_loopback and not loopback:
        raise InvalidError(f"{address} is this machine, and another one's answer led there: refused")
