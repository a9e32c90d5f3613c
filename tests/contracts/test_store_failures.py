"""How failures of an S3 server are told, and what is never asked of one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, FlexibleChecksumError
from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.embedded.process import free_ports
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.storage.client import Connection
from s2v_tasks.storage.s3 import ObjectDamagedError, ObjectStore
from s2v_tasks.storage.trust import Place, Trust


@pytest.mark.parametrize(
    "verb", ["get_bytes", "head", "download", "listing", "put_bytes", "delete", "copy", "fetch_uri"]
)
def test_no_request_is_sent_for_a_place_that_is_not_trusted(verb: str, tmp_path: Path) -> None:
    """Each way to an object is refused before the server is asked; the message names the object and what is allowed."""
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
    """Nothing creates a bucket by accident; the message names it."""
    store.trust = Trust(own=(Place("no-such-bucket", ""),), inputs=())
    with pytest.raises(ConfigurationError, match="'no-such-bucket' does not exist"):
        store.put_bytes("s3://no-such-bucket/a", b"1", "text/plain")


def test_wrong_credentials_are_a_configuration_error(seaweedfs: S3Server) -> None:
    """Credentials that the server refuses are named by their setting and never shown."""
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
    """Without any credentials the message names the settings."""
    with pytest.raises(ConfigurationError, match="S2V_S3_ACCESS_KEY_ID"):
        ObjectStore("s3://contracts", endpoint_url=seaweedfs.endpoint_url).head("a")


def test_a_server_that_is_away_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that fails in every attempt may succeed later; the message names object and endpoint."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    store = ObjectStore("s3://bucket", endpoint_url=endpoint, access_key_id="a", secret_access_key="b")
    with pytest.raises(TransientError, match=f"s3://bucket/a at {endpoint}"):
        store.get_bytes("a")


@pytest.mark.parametrize("uri", ["bucket/prefix", "s3://", "https://host/bucket"])
def test_a_data_uri_that_is_none_is_refused(uri: str) -> None:
    """The data URI must be an s3:// URI with a bucket."""
    with pytest.raises(ConfigurationError, match="S2V_DATA_URI"):
        ObjectStore(uri)


class FailingClient:
    """A client whose every call fails in one way."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            raise self._error

        return call


def failing_store(error: Exception) -> ObjectStore:
    store = ObjectStore("s3://bucket", region="us-east-1")
    vars(store)["_connection"] = Connection(FailingClient(error), secrets=())
    return store


def answer(code: str, **headers: str) -> ClientError:
    """The error that the client makes of an answer of the server."""
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPHeaders": headers}}, "HeadObject")


def test_a_download_that_broke_off_too_often_is_a_transient_error(tmp_path: Path) -> None:
    """When the transfer manager gives up, the message says how its last attempt failed."""
    store = failing_store(RetriesExceededError(ConnectionResetError("reset by peer")))
    with pytest.raises(TransientError, match="reading s3://bucket/a at AWS us-east-1: reset by peer"):
        store.download("a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_transfer_means_what_the_server_answered() -> None:
    """An answer that a transfer error wraps is told as that answer; without one the failure is transient."""
    wrapped = S3UploadFailedError("Failed to upload")
    with pytest.raises(TransientError, match="Failed to upload"):
        failing_store(wrapped).head("a")
    wrapped.__context__ = answer("NoSuchBucket")
    with pytest.raises(ConfigurationError, match="'bucket' does not exist"):
        failing_store(wrapped).head("a")


@pytest.mark.parametrize("code", ["301", "PermanentRedirect"])
def test_a_bucket_of_another_region_is_a_configuration_error(code: str) -> None:
    """The message names both regions and the setting to change."""
    store = failing_store(answer(code, **{"x-amz-bucket-region": "eu-west-1"}))
    with pytest.raises(ConfigurationError, match=r"region eu-west-1, asked was us-east-1 .*S2V_S3_REGION"):
        store.head("a")


def test_bytes_that_differ_from_the_servers_checksum_are_damaged() -> None:
    """A checksum that the client finds wrong while it reads is told as damage."""
    error = FlexibleChecksumError(error_msg="Expected checksum a did not match calculated checksum b")
    with pytest.raises(ObjectDamagedError, match="did not match"):
        failing_store(error).get_bytes("a")
