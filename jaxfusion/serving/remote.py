"""Pictures of other hosts: of those alone that the config names, and only where these are on the public internet."""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from jaxfusion.serving.errors import ApiError

SECONDS = 10  # for the whole of it
PORT = 443
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch(url: str, hosts: Sequence[str], limit: int, param: str) -> bytes:
    """What a https URL gives: of one of the hosts, at port 443, without a redirect, up to `limit` bytes.

    The name is looked up once, all its addresses have to be public, and the connection is made to one of these: a name
    that changes its address in between gains nothing.
    Raises ApiError, which names `param`, for everything else.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port or PORT
    except ValueError:
        raise _refused(param, "not a URL") from None
    if parts.scheme != "https" or port != PORT or parts.username is not None or parts.password is not None:
        raise _refused(param, "a URL is https://host/path, with no user and no port")
    if host not in {name.lower().rstrip(".") for name in hosts}:
        raise _refused(param, f"this server asks {', '.join(hosts)} alone; send the picture as a data URL")
    deadline = time.monotonic() + SECONDS
    try:
        address = public_address(host)
        connection = http.client.HTTPSConnection(host, timeout=SECONDS)
        context = ssl.create_default_context()
        plain = socket.create_connection((address, PORT), SECONDS)
        try:
            connection.sock = context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return get(connection, path, limit, deadline)
    except (OSError, ValueError, http.client.HTTPException) as error:  # what it was is not the caller's to know
        reason = str(error) if isinstance(error, UnfitError) else "it could not be fetched"
        raise _refused(param, f"{reason}; send the picture as a data URL") from None


class UnfitError(ValueError):
    """Something about an address or an answer that may be told."""


def public_address(host: str) -> str:
    """One of the host's addresses. Raises `UnfitError` where one of them is not on the public internet."""
    found = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    addresses = [entry[4][0] for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise UnfitError(f"{host} has no public address")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address, or the one that it wraps, is anybody's to reach."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = wrapped or ip
    return ip.is_global and not ip.is_multicast


def get(connection: http.client.HTTPConnection, path: str, limit: int, deadline: float) -> bytes:
    """The body of a 200. Raises `UnfitError` for another status, more than `limit` bytes, or past the deadline."""
    try:
        connection.request("GET", path, headers={"User-Agent": "jaxfusion", "Accept": "image/*"})
        response = connection.getresponse()
        if response.status != 200:
            raise UnfitError(f"it answered {response.status}, and redirects are not followed")
        data = bytearray()
        while chunk := response.read1(1 << 16):
            data += chunk
            if len(data) > limit:
                raise UnfitError(f"it has more than {limit:,} bytes")
            if time.monotonic() > deadline:
                raise UnfitError(f"it took longer than {SECONDS} seconds")
        return bytes(data)
    finally:
        connection.close()


def _refused(param: str, reason: str) -> ApiError:
    return ApiError(400, f"{param}: {reason}", param=param)
