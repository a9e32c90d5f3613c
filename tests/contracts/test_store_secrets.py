"""Check that no credential or signature appears in a message, a traceback or a log."""

import base64
import html
import json
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
)
from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

from s2v_tasks.errors import ConfigurationError, S2VError
from s2v_tasks.storage.client import Connection, redacted
from s2v_tasks.storage.s3 import ObjectStore

KEY_ID = "PLANTEDKEYID/+="
SECRET = "planted/Secret+Key=&<'\"ä %41"
TOKEN = 'PlantedToken//+"=='
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "URL": quote,
    "URL without slash": lambda secret: quote(secret, safe=""),
    "form": quote_plus,
    "repr": lambda secret: repr(secret)[1:-1],
    "bytes": lambda secret: repr(secret.encode())[2:-1],
    "JSON": lambda secret: json.dumps(secret)[1:-1],
    "HTML": html.escape,
    "hexadecimal": lambda secret: secret.encode().hex(),
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64 for URLs": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "base64 without padding": lambda secret: base64.b64encode(secret.encode()).decode().rstrip("="),
}
ALL_FORMS = {form(secret) for secret in (KEY_ID, SECRET, TOKEN) for form in FORMS.values()}
SIGNATURE = "0123456789abcdef" * 4
SIGNED = (
    f"AWS4-HMAC-SHA256 Credential=AKIAFOREIGNFOREIGN12/20261126/us-east-1/s3/aws4_request, SignedHeaders=host, "
    f"Signature={SIGNATURE}"
)
PRESIGNED = f"https://s3.example.org/b/a?X-Amz-Credential=FOREIGN%2F2026&X-Amz-Signature={SIGNATURE}&X-Amz-Expires=60"
CODES = (
    "400", "401", "403", "404", "301", "500", "501", "503", "AccessDenied", "AuthorizationHeaderMalformed",
    "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "NoSuchBucket", "NoSuchKey",
    "NotFound", "PermanentRedirect", "NotImplemented", "InvalidRequest", "BadDigest", "SlowDown", "InternalError",
    "RequestTimeTooSkewed", "XAmzContentSHA256Mismatch", "unheard-of",
)  # fmt: skip


def leaks(text: str) -> list[str]:
    """Return the parts of a text that belong to the test secrets or to a signature."""
    found = [form for form in ALL_FORMS if form in text]
    return found + re.findall(r"AKIAFOREIGN\w*|FOREIGN%2F2026|0123456789abcdef", text)


def error_of(call: Callable[[], object]) -> str:
    """Return message and traceback, with all printed causes, of the error that a call raises."""
    with pytest.raises(S2VError) as caught:
        call()
    return str(caught.value) + "".join(traceback.format_exception(caught.value))


class FailingClient:
    """A client whose every call fails in one way."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            try:
                raise ValueError(f"Invalid header value b'{SIGNED}\\n'")
            except ValueError as first:
                raise self._error from first

        return call


def failing_store(error: Exception) -> ObjectStore:
    store = ObjectStore("s3://bucket", endpoint_url="https://s3.example.org")
    vars(store)["_connection"] = Connection(FailingClient(error), (KEY_ID, SECRET, TOKEN))
    return store


@pytest.mark.parametrize("code", CODES)
def test_an_answer_of_a_server_shows_no_secret(code: str) -> None:
    """Secrets that a server repeats in its answer are hidden."""
    for status in (int(code) if code.isdecimal() else 403, 500):
        for form in FORMS.values():
            message = f"Key {form(KEY_ID)}, secret '{form(SECRET)}', token={form(TOKEN)}; {SIGNED}; {PRESIGNED}"
            answer = {"Code": code, "Message": message, "AWSAccessKeyId": KEY_ID, "StringToSign": SIGNED}
            error = ClientError({"Error": answer, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")
            assert leaks(str(error))
            assert leaks(error_of(partial(failing_store(error).get_bytes, "a"))) == []


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url=PRESIGNED),
        ConnectionClosedError(endpoint_url=PRESIGNED),
        ReadTimeoutError(endpoint_url=PRESIGNED),
        ProxyConnectionError(proxy_url=f"http://{KEY_ID}:{quote(SECRET)}@proxy.example.org:3128", error=SIGNED),
        HTTPClientError(error=f"Invalid header value b'{SIGNED}\\n'"),
        HTTPClientError(error=f"{{'Authorization': b'{SIGNED}', 'X-Amz-Security-Token': '{TOKEN}'}}"),
        ValueError(f"Invalid header value {TOKEN!r}"),
        UnicodeEncodeError("latin-1", KEY_ID, 0, 1, "ordinal not in range(256)"),
        NoCredentialsError(),
        PartialCredentialsError(provider=KEY_ID, cred_var=SECRET),
        ProfileNotFound(profile=SECRET),
        ParamValidationError(report=f"Invalid bucket name {KEY_ID!r} {SIGNED}"),
        FlexibleChecksumError(error_msg=f"{SIGNED} {SECRET}"),
        RetriesExceededError(ConnectionResetError(f"{SECRET} {SIGNED}")),
        S3UploadFailedError(f"Failed to upload {PRESIGNED} with {SECRET!r}"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_of_a_library_shows_no_secret(error: Exception) -> None:
    """Errors of the S3 client, the HTTP library and the transfer manager show no secret."""
    store = failing_store(error)
    link = partial(store.link, seconds=1)
    for verb in (store.get_bytes, store.head, store.delete, link):
        text = error_of(partial(verb, "a"))
        assert leaks(text) == []
        assert "s3://bucket/a at https://s3.example.org" in text


class Echo(BaseHTTPRequestHandler):
    """Answers each request with all that it was sent."""

    def do_GET(self) -> None:
        sent = "\n".join(f"{name}: {value}" for name, value in self.headers.items())
        body = f"<Error><Code>{self.server.code}</Code><Message>{html.escape(sent)}</Message></Error>".encode()  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    vars(server).update(status=400, code="InvalidTag")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_repeats_the_request_shows_no_secret(
    echo: ThreadingHTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server that repeats the request exposes nothing, for AWS's own credentials and with all logs at DEBUG."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)
    for name, value in (("ACCESS_KEY_ID", KEY_ID), ("SECRET_ACCESS_KEY", SECRET), ("SESSION_TOKEN", TOKEN)):
        monkeypatch.setenv(f"AWS_{name}", value)
    caplog.set_level(logging.DEBUG)
    for name in ("boto3", "botocore", "s3transfer", "urllib3"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    store = ObjectStore("s3://bucket", endpoint_url=f"http://127.0.0.1:{echo.server_port}")
    (tmp_path / "file").write_bytes(b"1")
    for status, code in ((400, "InvalidTag"), (503, "SlowDown"), (403, "AccessDenied"), (501, "NotImplemented")):
        vars(echo).update(status=status, code=code)
        for call in (
            lambda: store.get_bytes("a"),
            lambda: store.put_bytes("a", b"1", "text/plain"),
            lambda: store.upload(tmp_path / "file", "a", "text/plain"),
            lambda: store.download("a", tmp_path / "b"),
            lambda: list(store.listing("")),
            lambda: store.copy("a", "b"),
        ):
            text = error_of(call)
            assert leaks(text) == []
            assert not re.search(r"Signature=[0-9a-f]", text)
    assert leaks(caplog.text) == []
    assert "Credential=" not in caplog.text


@pytest.mark.parametrize("key_id", [f"{KEY_ID}\n", f"{KEY_ID}\r\n", f"{KEY_ID}\0", f"{KEY_ID}ä\u0101"])
def test_a_key_that_no_header_can_hold_is_a_configuration_error(echo: ThreadingHTTPServer, key_id: str) -> None:
    """A key with characters that no header can hold is refused before the HTTP library prints the header."""
    store = ObjectStore(
        "s3://bucket",
        endpoint_url=f"http://127.0.0.1:{echo.server_port}",
        access_key_id=key_id,
        secret_access_key=SECRET,
    )
    with pytest.raises(ConfigurationError, match="S2V_S3_ACCESS_KEY_ID"):
        store.head("a")
    assert leaks(error_of(lambda: store.put_bytes("a", b"1", "text/plain"))) == []


def test_the_account_of_an_endpoint_is_not_shown() -> None:
    """The account in an endpoint URL is hidden, both if the server does not answer and if the URL is invalid."""
    for endpoint in (f"http://{KEY_ID}:planted Secret@127.0.0.1:1", f"http://{KEY_ID}:planted@[::1", "http://a:pw%41@"):
        store = ObjectStore("s3://bucket", endpoint_url=endpoint, access_key_id="id", secret_access_key=SECRET)
        text = error_of(partial(store.head, "a"))
        assert not re.search(r"PLANTEDKEYID|planted|pw%41", text.partition("Traceback")[0])


def test_the_command_line_shows_no_secret(echo: ThreadingHTTPServer) -> None:
    """A failing command with its log at DEBUG prints one sentence on stderr and no secret."""
    vars(echo).update(status=503, code="SlowDown")
    variables = {"S3_ENDPOINT_URL": f"http://127.0.0.1:{echo.server_port}", "LOG_LEVEL": "DEBUG", "HOME": "none"}
    variables |= {"S3_ACCESS_KEY_ID": "PLANTEDKEYID", "S3_SECRET_ACCESS_KEY": "planted-secret"}
    environment = os.environ | {f"S2V_{name}": value for name, value in variables.items()}
    done = subprocess.run(
        [sys.executable, "-m", "s2v_tasks.cli", "fetch", "my-job"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75
    assert "SlowDown" in done.stderr
    assert not re.search(r"PLANTED|planted|Signature=[0-9a-f]|Traceback", done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key ab is short; table, ab.c", "key *** is short; table, ab.c"),
        ("two\n  lines\r\n", "two lines"),
        ("Use AWS4-HMAC-SHA256. Signature is wrong", "Use AWS4-HMAC-SHA256. Signature is wrong"),
        ("Could not connect to http://h:9000/test/a", "Could not connect to http://h:9000/test/a"),
    ],
)
def test_other_text_is_not_hidden(text: str, shown: str) -> None:
    """A message keeps its other words; a short secret is hidden only where it is a whole word."""
    assert redacted(text, ["ab", None, ""]) == shown
