"""Check the delivery of one message to an HTTP server."""

import datetime
import hashlib
import hmac
import ipaddress
import json
import socket
import ssl
import threading
import time
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.webhooks import delivery
from s2v_tasks.webhooks.delivery import Message, deliver, signed_headers
from s2v_tasks.webhooks.target import RefusedTargetError, TargetPolicy

MESSAGE = Message(7, "job_succeeded", {"labels": {"team": "näh"}, "job_id": "my-job"})
LOOPBACK = TargetPolicy(frozenset({"127.0.0.1", "localhost", "rebind.test"}), allow_private=True)
SECRET = "whsec_dGhlIHNoYXJlZCBzZWNyZXQgb2YgdGVzdHM="


def send(url: str, policy: TargetPolicy = LOOPBACK, seconds: float = 60.0) -> None:
    deliver(url, MESSAGE, secret=SECRET, policy=policy, seconds=seconds)


def test_a_receiver_can_verify_the_signature(receiver: Any) -> None:
    """The code of the how-to verifies id, time and body."""
    send(receiver.url)
    path, headers, body = receiver.requests[0]
    assert path == "/hook?token=abc"
    assert json.loads(body) == MESSAGE.payload
    assert body == '{"job_id": "my-job", "labels": {"team": "näh"}}'.encode()
    assert (headers["X-S2V-Event"], headers["webhook-id"]) == ("job_succeeded", "7")
    assert (headers["Content-Type"], headers["Connection"]) == ("application/json", "close")
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    how_to = (Path(__file__).parents[3] / "docs" / "how-to" / "webhooks.md").read_text(encoding="utf-8")
    code = how_to.split("```python\n")[1].split("```")[0]
    namespace: dict[str, Any] = {}
    exec(code, namespace)  # noqa: S102 - our own documentation
    assert namespace["is_genuine"](SECRET, headers, body)
    assert not namespace["is_genuine"](SECRET, headers, body + b" ")
    assert not namespace["is_genuine"]("whsec_YW5vdGhlciBzZWNyZXQ=", headers, body)
    assert not namespace["is_genuine"](SECRET, headers | signed_headers(SECRET, "7", "1000", body), body)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """Key, id, time and body of the specification's example give its signature."""
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330")


def test_a_secret_in_plain_text_is_the_key_itself() -> None:
    """A plain secret is the key; libraries of Standard Webhooks use it in base64, with the prefix."""
    plain = signed_headers("the shared secret", "7", "1000", b"{}")
    encoded = signed_headers("whsec_dGhlIHNoYXJlZCBzZWNyZXQ=", "7", "1000", b"{}")
    assert plain["webhook-signature"] == encoded["webhook-signature"]
    with pytest.raises(RefusedTargetError, match="S2V_WEBHOOK_SECRET begins with whsec_: expected base64"):
        signed_headers("whsec_no base64!", "7", "1000", b"{}")


def test_receivers_of_earlier_versions_still_verify_the_message() -> None:
    """The earlier signature covers time, delivery and body, with the whole secret as key."""
    headers = signed_headers(SECRET, "7", "1000", b"{}")
    expected = hmac.new(SECRET.encode(), b"1000.7.{}", hashlib.sha256).hexdigest()
    assert headers["X-S2V-Signature"] == f"sha256={expected}"
    assert (headers["X-S2V-Delivery"], headers["X-S2V-Timestamp"]) == ("7", "1000")


@pytest.mark.parametrize(("status", "expected"), [(500, TransientError), (503, TransientError),
                                                    (408, TransientError), (425, TransientError), (429, TransientError),
                                                  (400, PermanentError), (410, PermanentError)])  # fmt: skip
def test_the_answer_decides_whether_it_is_sent_again(receiver: Any, status: int, expected: type[Exception]) -> None:
    """A server error is retried, and a refusal is not."""
    receiver.answers = [status]
    with pytest.raises(expected, match=f"answered {status}") as caught:
        send(receiver.url)
    assert type(caught.value) is expected
    assert "token" not in str(caught.value)


@pytest.mark.parametrize(("status", "is_redirect"), [(300, True), (399, True), (400, False)])
def test_only_2xx_accepts_a_message(receiver: Any, status: int, is_redirect: bool) -> None:
    """Other statuses are refusals, with a hint for a redirect."""
    receiver.answers = [299, status]
    send(receiver.url)
    with pytest.raises(PermanentError, match=f"answered {status}: expected 2xx") as refused:
        send(receiver.url)
    assert ("redirects are not followed" in str(refused.value)) is is_redirect


@pytest.mark.parametrize("works", [0, 1])
def test_every_address_of_a_name_is_tried(receiver: Any, monkeypatch: pytest.MonkeyPatch, works: int) -> None:
    """The first address has half of the time, so that the second can be tried, too."""
    addresses = ["127.0.0.2", "127.0.0.2"]
    addresses[works] = "127.0.0.1"
    real, connect, given = socket.getaddrinfo, socket.create_connection, []

    def two(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != "rebind.test":
            return real(host, *args, **kwargs)
        return [entry for address in addresses for entry in real(address, *args, **kwargs)]

    def noted(address: tuple[str, int], timeout: float) -> socket.socket:
        given.append((address[0], timeout))
        return connect(address, timeout)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    monkeypatch.setattr(socket, "create_connection", noted)
    send(receiver.url.replace("127.0.0.1", "rebind.test"), seconds=600)
    assert [address for address, _ in given] == addresses[: works + 1]
    assert given[0][1] <= 300 < 2 * given[0][1]
    assert len(given) == 1 or given[1][1] > 300
    assert len(receiver.requests) == 1


def test_a_message_that_http_cannot_carry_is_tried_later(receiver: Any) -> None:
    """An error of the HTTP library is an error of this message alone."""
    with pytest.raises(TransientError, match="ValueError: Invalid header value"):
        deliver(receiver.url, Message(7, "a\nb", {}), secret=SECRET, policy=LOOPBACK, seconds=60)


def test_a_connection_is_tried_even_at_the_last_moment() -> None:
    """A time limit of 0 or below is raised to a positive one."""
    assert 0 < delivery._left(time.monotonic() - 5) <= 0.1


def test_a_redirect_is_not_followed(receiver: Any) -> None:
    """A redirect, which could lead to any address, is not followed."""
    receiver.answers, receiver.location = [302], receiver.url
    with pytest.raises(PermanentError, match="redirects are not followed"):
        send(receiver.url)
    assert len(receiver.requests) == 1


def test_a_receiver_that_is_down_or_refused_is_named(receiver: Any) -> None:
    """A closed port is retried, and a loopback address that is not allowed gets no request."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(TransientError, match="ConnectionRefused"):
            send(f"http://127.0.0.1:{unused.getsockname()[1]}/")
    with pytest.raises(RefusedTargetError):
        send(receiver.url, TargetPolicy(frozenset({"127.0.0.1"}), allow_private=False))
    assert receiver.requests == []


@pytest.mark.parametrize("begins", [b"SSH-2.0-inner\x1b[2J", b"HTTP/SSH\x1b[2J"])
def test_an_answer_that_is_not_http_is_not_repeated(begins: bytes) -> None:
    """The error, which logs and the database store, has no part of the answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(begins + b"x" * 60_000 + b" 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(TransientError, match=r"\w+: the answer is not HTTP\.") as caught:
            send(f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()
    assert "SSH" not in str(caught.value)


def test_an_answer_that_never_ends_is_cut_off(receiver: Any) -> None:
    """The time limit holds for the whole call, even if bytes keep arriving, and a received status counts."""
    receiver.drips = True
    send(receiver.url, seconds=1.5)
    assert receiver.cut_off.wait(60)
    assert receiver.num_drops > 1
    receiver.answers = [503]
    receiver.cut_off.clear()
    with pytest.raises(TransientError, match="answered 503"):
        send(receiver.url, seconds=1.5)
    assert receiver.cut_off.wait(60)


def test_a_receiver_that_never_answers_is_cut_off() -> None:
    """A connection that is accepted and never answered ends at the limit."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(TransientError, match=r"no answer within 0\.3 s"):
            send(f"http://127.0.0.1:{server.getsockname()[1]}/", seconds=0.3)
        connection, _ = server.accept()
        with connection:
            received = b"".join(iter(lambda: connection.recv(65536), b""))  # to the end: the caller has closed it
    assert received.startswith(b"POST / HTTP/1.1")


def test_the_name_is_resolved_once(receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to the verified address, without a second resolution (DNS rebinding)."""
    asked = []
    real = socket.getaddrinfo

    def rebinding(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != "rebind.test":
            return real(host, *args, **kwargs)
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "127.0.0.2", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    send(receiver.url.replace("127.0.0.1", "rebind.test"))
    assert asked == ["rebind.test"]
    assert receiver.requests[0][1]["Host"].startswith("rebind.test:")


def test_https_checks_the_certificate_of_the_name(
    receiver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate must be from a known authority and for the name."""
    _write_certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server = HTTPServer(("127.0.0.1", 0), receiver.handler())
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"https://localhost:{server.server_port}/"
        with pytest.raises(TransientError, match="CERTIFICATE_VERIFY_FAILED"):
            send(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        send(url)
        with pytest.raises(TransientError, match="CERTIFICATE_VERIFY_FAILED"):
            send(url.replace("localhost", "127.0.0.1"))
        assert len(receiver.requests) == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _write_certificate(folder: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509
        .CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def test_an_ipv6_receiver_has_its_brackets() -> None:
    """The Host header of a numeric IPv6 receiver has brackets."""
    target = TargetPolicy(frozenset({"::1"}), allow_private=True).resolve("http://[::1]:81/x", seconds=1)
    assert target.host_header == "[::1]:81"
    assert [ipaddress.ip_address(address).is_loopback for address in target.addresses] == [True]
