"""Check the messages for failures of an S3 server, and that requests for untrusted places are never sent."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from botocore.exceptions import (
    CredentialRetrievalError,
    HTTPClientError,
)

from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.embedded.process import free_ports
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError, UnavailableError
from s2v_tasks.storage.locations import AccessPolicy, Location
from s2v_tasks.storage.s3 import ObjectStore
from tests.contracts.test_store_errors import answer, failing_store


@pytest.mark.parametrize(
    "verb", ["get_bytes", "head", "download", "listing", "put_bytes", "delete", "copy", "fetch_uri"]
)
def test_no_request_is_sent_for_a_place_that_is_not_trusted(verb: str, tmp_path: Path) -> None:
    """Each access to an untrusted place is refused before a request; the message names object and allowed places."""
    store = failing_store(AssertionError("the server was asked"))
    calls = {
        "download": lambda uri: store.download(uri, tmp_path / "a"),
        "listing": lambda uri: list(store.listing(uri)),
        "put_bytes": lambda uri: store.put_bytes(uri, b"", "text/plain"),
        "copy": lambda uri: store.copy("a", uri),
        "fetch_uri": lambda uri: store.fetch_uri(uri, tmp_path / "a", 5),
    }
    for uri in ("s3://other/secret", "s3://bucket-2/a"):
        with pytest.raises(PermanentError, match=rf"{uri} may not be .* below s3://bucket;"):
            calls.get(verb, getattr(store, verb))(uri)


def test_writing_to_a_bucket_that_does_not_exist_is_a_configuration_error(store: ObjectStore) -> None:
    """No write creates a bucket; the message names the missing one."""
    store.access = AccessPolicy(own=(Location("no-such-bucket", ""),), inputs=())
    with pytest.raises(ConfigurationError, match="'no-such-bucket' does not exist"):
        store.put_bytes("s3://no-such-bucket/a", b"1", "text/plain")


def test_wrong_credentials_are_a_configuration_error(seaweedfs: S3Server) -> None:
    """The message names the settings of refused credentials and never shows a value."""
    store = ObjectStore(
        "s3://contracts",
        endpoint_url=seaweedfs.endpoint_url,
        access_key_id=seaweedfs.access_key_id,
        secret_access_key="not-the-secret",
    )
    for call in (store.get_bytes, store.head, store.delete):
        with pytest.raises(ConfigurationError, match="S2V_S3_SECRET_ACCESS_KEY") as caught:
            call("a")
        assert "not-the-secret" not in str(caught.value)
        assert seaweedfs.access_key_id not in str(caught.value)


def test_no_credentials_are_a_configuration_error(seaweedfs: S3Server) -> None:
    """Without any credentials, the message names the settings."""
    with pytest.raises(ConfigurationError, match="S2V_S3_ACCESS_KEY_ID"):
        ObjectStore("s3://contracts", endpoint_url=seaweedfs.endpoint_url).head("a")


def test_a_server_that_is_away_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that fails in every attempt is a transient error that names object and endpoint."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    store = ObjectStore("s3://bucket", endpoint_url=endpoint, access_key_id="a", secret_access_key="b")
    with pytest.raises(TransientError, match=f"s3://bucket/a at {endpoint}"):
        store.get_bytes("a")


@pytest.mark.parametrize("uri", ["bucket/prefix", "s3://", "https://host/bucket"])
def test_a_data_uri_without_scheme_or_bucket_is_refused(uri: str) -> None:
    """The data URI must be an s3:// URI with a bucket."""
    with pytest.raises(ConfigurationError, match="S2V_DATA_URI"):
        ObjectStore(uri)


class _NoSuchPage(BaseHTTPRequestHandler):
    """The page with which a proxy answers while its server starts."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        page = b"404 page not found\n"
        self.send_response(404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        return


def test_the_404_of_a_proxy_is_an_outage() -> None:
    """A 404 of a proxy is an outage, so that a clip whose manifest it hides is not rendered again."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _NoSuchPage)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    store = ObjectStore(
        "s3://bucket",
        endpoint_url=f"http://127.0.0.1:{server.server_port}",
        access_key_id="a",
        secret_access_key="b",
    )
    try:
        for call in (
            lambda: store.get_bytes("a"),
            lambda: store.put_bytes("a", b"1", "text/plain"),
            lambda: store.has_any("a"),
        ):
            with pytest.raises(UnavailableError, match="a proxy answers that there is no such page"):
                call()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_aws_configuration_that_cannot_be_read_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing profile or an invalid region is reported before the first request."""
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(ConfigurationError, match="no-such-profile"):
        ObjectStore("s3://bucket").head("a")
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(ConfigurationError, match="us east"):
        ObjectStore("s3://bucket", region="us east", access_key_id="a", secret_access_key="b").head("a")


@pytest.mark.parametrize(
    "error",
    [CredentialRetrievalError(provider="p", error_msg="timeout"), answer("ExpiredToken"), HTTPClientError(error="e")],
    ids=lambda error: type(error).__name__,
)
def test_credentials_that_cannot_be_fetched_now_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """If the credential service of a pod or an instance is unavailable, the error is transient."""

    def fail(_session: object) -> None:
        raise error

    monkeypatch.setattr("boto3.Session.get_credentials", fail)
    with pytest.raises(UnavailableError, match="It is tried again"):
        ObjectStore("s3://bucket").head("a")
