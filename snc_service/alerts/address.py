"""The addresses that alerts may connect to: public ones, and networks that the operator allows.

A receiver is a URL that a user typed in; it must not give access to what only the service can
reach. So the name is resolved first, all its addresses are checked, and the connection goes to a
checked address. A different answer to a later lookup has no effect.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
_NAT64 = IPv6Network("64:ff9b::/96")  # carries an IPv4 address in its last 32 bits


class AddressRefused(Exception):
    """A host that resolves to a forbidden address; the text names the cure."""


def checked(host: str, port: int, allowed: Sequence[Network]) -> list[str]:
    """Return the addresses of ``host`` in the order of the resolver.

    Raises `AddressRefused` if any of them is neither public nor in ``allowed``, and `OSError` if
    the name does not resolve. May take as long as the resolver of the system takes.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        address = ip_address(text.partition("%")[0])
        if not is_allowed(address, allowed):
            raise AddressRefused(
                f"{host} has the address {address}, which is not public: "
                f"allow it with SNC_ALERT_NETWORKS={address}"
            )
    return addresses


def is_allowed(address: Address, allowed: Iterable[Network]) -> bool:
    """Return whether an address is public or in one of the allowed networks."""
    inner = _carried(address)
    if any(inner.version == network.version and inner in network for network in allowed):
        return True
    local = inner.is_multicast or inner.is_reserved or getattr(inner, "is_site_local", False)
    return inner.is_global and not local


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return networks such as 10.0.0.0/8 or ::1. Raises `ValueError`."""
    return tuple(ip_network(text, strict=False) for text in texts)


def _carried(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address embeds, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
