"""Check the hosts and addresses that a webhook may call."""

import ipaddress
import socket
import threading
from typing import Any

import pytest

from s2v_tasks.errors import TransientError
from s2v_tasks.settings import Settings
from s2v_tasks.webhooks.target import RefusedTargetError, TargetPolicy, is_public

PUBLIC = "93.184.216.34"


def policy(*hosts: str, allow_private: bool = False) -> TargetPolicy:
    return TargetPolicy(frozenset(hosts), allow_private)


@pytest.fixture
def resolves_to(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every name resolve to these addresses."""

    def answer(*addresses: str) -> None:
        infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: infos)

    return answer


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%2", "fc00::1", "ff02::1",
        "fec0::1", "feff::1",
        "fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2001:db8::1", "fc00::5db8:d822", "fe80::5db8:d822", "4000::5db8:d822", "64:ff9b:1::5db8:d822",
        "2001:0:4136:e378:8000:63bf:3f57:fefe",  # Teredo: 192.168.1.1 by a public server
    ],
)  # fmt: skip
def test_an_inner_address_is_not_public(address: str) -> None:
    """Loopback, private, link-local, multicast and reserved addresses are not public, also inside an IPv6 address."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        PUBLIC, "2606:2800:220:1:248:1893:25c8:1946", "2606:2800:220:1::7f00:1", "::ffff:93.184.216.34",
        "64:ff9b::5db8:d822", "2002:5db8:d822::7f00:1", "2001:0:c0a8:101:8000:63bf:a247:27dd",
    ],
)  # fmt: skip
def test_an_address_of_the_internet_is_public(address: str) -> None:
    """Public addresses may be called, whatever their last digits are."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1"])
def test_an_allowed_name_that_leads_inside_is_refused(address: str, resolves_to: Any) -> None:
    """The address counts and not the name, and one inner address of several is enough."""
    resolves_to(PUBLIC, address)
    with pytest.raises(RefusedTargetError, match="not a public address"):
        policy("hooks.example.com").resolve("https://hooks.example.com/x", seconds=1)
    allowed = policy("hooks.example.com", allow_private=True).resolve("https://hooks.example.com/x", seconds=1)
    assert allowed.addresses == (PUBLIC, address)


@pytest.mark.parametrize(
    ("host", "listed"),
    [("hooks.example.com", True), ("HOOKS.example.com.", True), ("a.inner.example.org", True), ("example.org", False),
     ("evilexample.org", False), ("evilhooks.example.com", False), ("a.hooks.example.com", False),
     ("hooks.example.com.evil.net", False), ("example.com", False)],
)  # fmt: skip
def test_only_listed_hosts_are_called(host: str, listed: bool, resolves_to: Any) -> None:
    """A name is exact, and one with a leading dot matches its subdomains."""
    resolves_to(PUBLIC)
    allowed = policy("hooks.example.com", ".example.org")
    if listed:
        assert allowed.resolve(f"https://{host}/x?y=1", seconds=1).path == "/x?y=1"
    else:
        with pytest.raises(RefusedTargetError, match="not an allowed host"):
            allowed.resolve(f"https://{host}/x", seconds=1)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/x", "https://user:secret@example.com/x", "https:///x", "https://example.com:99999/x",
        "nonsense", "https://example.com/a\r\nX-Evil: 1", "https://exämple.com/x", "https://example.com\\@127.0.0.1/",
        "file:///etc/x",
    ],
)  # fmt: skip
def test_an_unusual_url_is_refused_without_showing_it(url: str, resolves_to: Any) -> None:
    """Other schemes, user names, ports and line ends are refused without the URL in the message."""
    resolves_to(PUBLIC)
    with pytest.raises(RefusedTargetError) as caught:
        policy("example.com", "127.0.0.1").resolve(url, seconds=1)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("letter", ["\0", "\t", "\x1f", " ", "\x7f", "\x80", "é", "\u2028"])
def test_a_letter_that_no_url_holds_is_refused(letter: str, resolves_to: Any) -> None:
    """An invalid character in any part of the URL is refused before a request; other characters are sent unchanged."""
    resolves_to(PUBLIC)
    for url in (
        f"https://example.com/a{letter}b",
        f"https://example.com/?a={letter}b",
        f"{letter}https://example.com/",
    ):
        with pytest.raises(RefusedTargetError, match="not a usable URL"):
            policy("example.com").resolve(url, seconds=5)
    assert policy("example.com").resolve("https://example.com/!~", seconds=5).path == "/!~"


@pytest.mark.parametrize("url", ["http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://[::ffff:7f00:1]/"])
def test_other_spellings_of_loopback_are_refused(url: str) -> None:
    """Other spellings of 127.0.0.1 are refused, even if they are listed."""
    listed = policy("2130706433", "0x7f.1", "127.1", "::ffff:7f00:1")
    with pytest.raises((RefusedTargetError, TransientError)):
        listed.resolve(url, seconds=1)


def test_a_resolver_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging DNS server delays neither the step nor the end of its process."""
    release, answered = threading.Event(), threading.Event()

    def hang(*_args: Any, **_kwargs: Any) -> list[Any]:
        release.wait()
        answered.set()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with pytest.raises(TransientError, match=r"not resolved within 0\.2 s"):
            policy("example.com").resolve("https://example.com/", seconds=0.2)
        assert not answered.is_set()
        assert {thread.daemon for thread in threading.enumerate() if thread.name == "webhook-resolver"} == {True}
    finally:
        release.set()


def test_a_resolver_that_takes_its_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of the resolver within its time limit is used."""

    def answer(*_args: Any, **_kwargs: Any) -> list[Any]:
        threading.Event().wait(0.1)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    assert policy("example.com").resolve("https://example.com/", seconds=60).addresses == (PUBLIC,)


@pytest.mark.parametrize(("answer", "reason"), [(socket.gaierror("unknown name"), "unknown name"), ([], "no addr"),
                                                (UnicodeError("label too long"), "label too long")])  # fmt: skip
def test_a_name_without_an_address_may_have_one_later(
    monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str
) -> None:
    """A name that cannot be resolved is a transient error with the reason of the resolver."""

    def look_up(*_args: Any, **_kwargs: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(TransientError, match=rf"'example\.com' cannot be resolved \({reason}"):
        policy("example.com").resolve("https://example.com/", seconds=5)


@pytest.mark.parametrize(
    ("url", "port", "header"),
    [
        ("https://example.com/", 443, "example.com"),
        ("https://example.com:443/", 443, "example.com"),
        ("https://example.com:80/", 80, "example.com:80"),
        ("http://example.com/", 80, "example.com"),
        ("http://example.com:443/", 443, "example.com:443"),
        ("http://[2606:2800::1]/", 80, "[2606:2800::1]"),
        ("http://[2606:2800::1]:8080/", 8080, "[2606:2800::1]:8080"),
    ],
)
def test_the_host_header_has_the_port_where_it_is_not_the_usual_one(
    resolves_to: Any, url: str, port: int, header: str
) -> None:
    """The Host header has an unusual port, and an IPv6 address in brackets."""
    resolves_to(PUBLIC)
    target = policy("example.com", "2606:2800::1").resolve(url, seconds=5)
    assert (target.port, target.host_header, target.path) == (port, header, "/")


@pytest.mark.parametrize(
    ("url", "path"),
    [("https://example.com", "/"), ("https://example.com?a=1", "/?a=1"), ("https://example.com/b/c?a=1#d", "/b/c?a=1")],
)
def test_the_path_is_that_of_the_url(resolves_to: Any, url: str, path: str) -> None:
    """The path has the query, no fragment, and is never empty."""
    resolves_to(PUBLIC)
    assert policy("example.com").resolve(url, seconds=5).path == path


def test_a_name_that_resolves_twice_to_one_address_has_one(resolves_to: Any) -> None:
    """Each address counts once, in the order of the resolver."""
    resolves_to("93.184.216.35", PUBLIC, "93.184.216.35", "93.184.216.33")
    addresses = policy("example.com").resolve("https://example.com/", seconds=5).addresses
    assert addresses == ("93.184.216.35", PUBLIC, "93.184.216.33")


def test_the_configured_webhook_needs_no_listing() -> None:
    """The host of the configured webhook is allowed without being listed."""
    settings = Settings(
        webhook_url="https://Ops.example.com/hook", webhook_allowed_hosts="A.Example.com, .b.example.com"
    )
    hosts = TargetPolicy.from_settings(settings).allowed_hosts
    assert hosts == {"ops.example.com", "a.example.com", ".b.example.com"}
    assert TargetPolicy.from_settings(Settings()).allowed_hosts == frozenset()
    for nonsense in ("http://[", "hooks.example.com", ""):
        assert TargetPolicy.from_settings(Settings(webhook_url=nonsense)).allowed_hosts == frozenset()
