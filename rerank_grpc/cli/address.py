"""Addresses, as they are typed and as they are told."""

from __future__ import annotations

import ipaddress


def address(host: str, port: int) -> str:
    """Writes host and port as one dials them."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tells whether only this machine can reach a host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
