"""Protect inner networks against SSRF: a webhook URL is part of a request and may only reach allowed, public hosts."""

import ipaddress
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_DEFAULT_PORTS = {"http": 80, "https": 443}
# NAT64 translates it to the IPv4 address in the last 32 bits.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedTargetError(PermanentError):
    """The URL is not allowed by this installation."""


@dataclass(frozen=True)
class Target:
    """A receiver with a resolved name. Connect to one of `addresses`: a second look-up may give others."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class TargetPolicy:
    """The hosts that may be called: `example.com` is that host, `.example.com` every host below it."""

    allowed_hosts: frozenset[str]
    allow_private: bool

    @classmethod
    def from_settings(cls, settings: Settings) -> "TargetPolicy":
        """Return the policy of the settings; the host of `S2V_WEBHOOK_URL` is allowed without being listed."""
        hosts = {host.strip().lower() for host in settings.webhook_allowed_hosts.split(",")}
        if settings.webhook_url:
            with suppress(RefusedTargetError):  # each message to it reports the error
                hosts.add(_parts(settings.webhook_url.get_secret_value())[1])
        return cls(frozenset(hosts - {""}), settings.webhook_allow_private)

    def resolve(self, url: str, *, seconds: float) -> Target:
        """Resolve the host of `url` and return the receiver, all of whose addresses are allowed.

        RefusedTargetError if it is not allowed, TransientError if its name cannot be resolved in time. Messages name
        the host only: the rest of a URL may be a secret.
        """
        parts, host, port = _parts(url)
        if not self._is_listed(host):
            raise RefusedTargetError(
                f"{host!r} is not an allowed host: add it to S2V_WEBHOOK_ALLOWED_HOSTS to call it."
            )
        addresses = _addresses(host, port, seconds)
        for address in addresses:
            if not self.allow_private and not is_public(ipaddress.ip_address(address)):
                raise RefusedTargetError(
                    f"{host!r} is {address}, which is not a public address: expected one, or "
                    "S2V_WEBHOOK_ALLOW_PRIVATE=true if receivers are on an inner network."
                )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(parts.scheme, host, port, path, addresses)

    def _is_listed(self, host: str) -> bool:
        return any(host == name or (name.startswith(".") and host.endswith(name)) for name in self.allowed_hosts)


def is_public(address: Address) -> bool:
    """Return True if the address, or the IPv4 address inside it, is a unicast address of the internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:  # fec0::/10, which `is_global` takes for public
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _parts(url: str) -> tuple[SplitResult, str, int]:
    """Return the parts of a URL, its host in the form that is looked up, and its port."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").encode("idna").decode().lower()
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError):  # UnicodeError is a ValueError
        host = ""
    if not host or parts.username is not None or any(ord(letter) <= 32 or ord(letter) > 126 for letter in url):
        raise RefusedTargetError(
            "The webhook is not a usable URL (not shown: it may hold a secret): expected http(s)://host[:port]/path in "
            "ASCII, without user and password."
        )
    return parts, host, port


def _addresses(host: str, port: int, seconds: float) -> tuple[str, ...]:
    """Return the addresses of a name. The system resolver has no time limit: a late one is abandoned in its thread."""
    found: list[str] = []
    errors: list[OSError | UnicodeError] = []

    def look_up() -> None:
        try:
            found.extend(str(info[4][0]) for info in socket.getaddrinfo(host, port))
        except (OSError, UnicodeError) as error:  # Python encodes a name before it asks
            errors.append(error)

    thread = threading.Thread(target=look_up, name="webhook-resolver", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TransientError(f"{host!r} was not resolved within {seconds:.1f} s: check the name and the DNS.")
    if errors or not found:
        raise TransientError(f"{host!r} cannot be resolved ({errors[0] if errors else 'no address'}): check the name.")
    return tuple(dict.fromkeys(found))
