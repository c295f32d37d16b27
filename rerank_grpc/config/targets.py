"""Addresses of gRPC servers: the default port, those of this machine, and the proxy before the others."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from rerank_grpc.files.sockets import SCHEME as SCHEME_OF_SOCKET

DEFAULT_PORT = 50_051  # of a gRPC server, for those who serve and those who call
# The schemes that gRPC itself resolves; any other one is a mistake, as http: is.
SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p):")
SOCKETS = ("unix", "unix-abstract", "vsock")
PLAIN = re.compile(r"(\[[^\[\]]+\]|[\w.-]+)(?::([0-9]{1,5}))?")
# gRPC obeys the first that is set, also an empty one, which means none; capitals have no meaning to it.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")

# The one that gRPC takes for a target of its own schemes that has none.
GRPCS_PORT = 443

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxy(NamedTuple):
    """An HTTP proxy that gRPC goes through to reach `host`.

    Its `address` never holds the credentials of its URL. `variable` names it, and `exceptions` is the
    variable of hosts that are reached directly.
    """

    address: str
    host: str
    variable: str
    exceptions: str

    def __str__(self) -> str:
        return (
            f"through the proxy {self.address} of {self.variable}: "
            f"add {self.host} to {self.exceptions} to go without it"
        )


def read_target(text: str) -> str:
    """Returns a target with a port, the default one where it has none; gRPC's own schemes stay as they are.

    Raises ValueError, whose text ends a sentence about the target.
    """
    if SCHEME.match(text):
        return text
    if ":" in text and _address_of(text) is not None:  # of IPv6, which may hold one of IPv4
        return f"[{text}]:{DEFAULT_PORT}"
    match = PLAIN.fullmatch(text)
    if match is None or (match[1][0] == "[" and _address_of(match[1].strip("[]")) is None):
        raise ValueError(
            f"is not HOST:PORT, as in localhost:{DEFAULT_PORT}, without a scheme such as http://"
        )
    if match[2] is None:
        return f"{text}:{DEFAULT_PORT}"
    if not 0 < int(match[2]) <= 65_535:
        raise ValueError("is not HOST:PORT with a port from 1 to 65535")
    return text


def is_loopback(host: str) -> bool:
    """Tells whether a host's name, address or socket is this machine's and is reached from no other."""
    if host.startswith(SCHEME_OF_SOCKET):
        return True
    name = host.strip("[]").rstrip(".").lower()
    address = _address_of(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def is_local(target: str) -> bool:
    """Tells whether a target is on this machine: on loopback, or a Unix socket."""
    scheme = SCHEME.match(target)
    if scheme and scheme[1] in SOCKETS:
        return True
    hosts = _hosts_of(target)
    # An address that means every one of a server's means this machine to its caller.
    return bool(hosts) and all(is_loopback(host) or host in ("0.0.0.0", "::") for host in hosts)


def endpoints_of(target: str) -> list[tuple[str, int] | str]:
    """Lists where a target leads to: hosts with ports, or the path of a Unix socket, @ for an abstract one.

    Names of gRPC's own, such as those of xds, lead nowhere.
    """
    scheme = SCHEME.match(target)
    rest = unquote(target[scheme.end() :]) if scheme else target
    match scheme[1] if scheme else "dns":
        case "unix":
            return [rest.removeprefix("//")]
        case "unix-abstract":
            return [f"@{rest}"]
        case "dns" | "ipv4" | "ipv6":
            addresses = rest.rpartition("/")[2].split(",")
            return [(_host_of(address), _port_of(address)) for address in addresses]
    return []


def proxy_before(target: str, environment: Mapping[str, str], option: str | None = None) -> Proxy | None:
    """Finds the proxy that gRPC reaches a target through, by its own rule, this machine's excepted.

    `option` is the value of the channel's grpc.http_proxy, which goes before every variable.
    """
    hosts = _hosts_of(target)
    if not hosts or is_local(target):
        return None
    set_ones = (name for name in PROXY_VARIABLES if name in environment)
    variable = "grpc.http_proxy" if option is not None else next(set_ones, "")
    url = option if option is not None else environment.get(variable, "")
    exceptions = next((name for name in EXCEPTION_VARIABLES if name in environment), "no_proxy")
    if not _is_proxy(url) or _is_excepted(hosts[0], environment.get(exceptions, "")):
        return None
    return Proxy(urlsplit(url).netloc.rpartition("@")[2], hosts[0], variable, exceptions)


def _hosts_of(target: str) -> list[str]:
    """Lists a target's hosts, without ports and brackets; none for a socket, or for names of gRPC's own."""
    scheme = SCHEME.match(target)
    if scheme is None:
        return [_host_of(target)]
    if scheme[1] not in ("dns", "ipv4", "ipv6"):
        return []
    addresses = unquote(target[scheme.end() :]).rpartition("/")[2]  # before it, the DNS server to ask
    return [_host_of(address) for address in addresses.split(",")]


def _host_of(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, _ = address.rpartition(":")
    return host if colon and ":" not in host else address


def _port_of(address: str) -> int:
    after_host = address.rpartition("]")[2]
    _, colon, port = after_host.rpartition(":")
    named = colon and port.isdecimal() and after_host.count(":") == 1
    return int(port) if named else GRPCS_PORT


def _address_of(host: str) -> _Address | None:
    """Reads an address as the system's resolver does, to which 127.1 is one as well."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return mapped or address
    if re.fullmatch(r"[0-9.]+", host):
        with suppress(OSError):
            return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def _is_proxy(url: str) -> bool:
    """Tells whether gRPC takes a URL for a proxy's; it ignores all others."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "http" and bool(parts.netloc)


def _is_excepted(host: str, exceptions: str) -> bool:
    """Tells whether a host is in a list between commas: of names' ends, addresses and networks."""
    address = _address_of(host)
    for entry in filter(None, map(str.strip, exceptions.split(","))):
        if host.lower().endswith(entry.lower()):
            return True
        with suppress(ValueError):
            if address is not None and address in ipaddress.ip_network(entry, strict=False):
                return True
    return False
