"""What the system relies on in an S3 server, and how failures of one are told."""

import hashlib
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, FlexibleChecksumError
from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.embedded.process import free_ports
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.schemas.manifest import Artifact
from s2v_tasks.storage.s3 import ObjectDamagedError, ObjectHead, ObjectMissingError, ObjectStore
from s2v_tasks.storage.trust import Place, Trust


def test_small_objects_round_trip(store: ObjectStore) -> None:
    """Bytes come back as they went, and the store knows their size and SHA-256."""
    artifact = store.put_bytes("jobs/a/plan.json", b"{}", "application/json")
    assert store.get_bytes("jobs/a/plan.json") == b"{}"
    assert artifact.sha256 == hashlib.sha256(b"{}").hexdigest()
    assert store.head("jobs/a/plan.json") == ObjectHead(2, artifact.sha256)


def test_a_link_opens_without_credentials(store: ObjectStore) -> None:
    """Whoever has the URL reads the object, its name with spaces and letters of any alphabet, and nothing else."""
    store.put_bytes("output/ä video.mp4", b"frames", "video/mp4")
    with urllib.request.urlopen(store.link("output/ä video.mp4", seconds=60), timeout=30) as answer:  # noqa: S310 - ours
        assert (answer.read(), answer.headers["Content-Type"]) == (b"frames", "video/mp4")


def test_large_files_round_trip_in_parts(store: ObjectStore, tmp_path: Path) -> None:
    """A file that is uploaded in several parts is one object with the SHA-256 of the whole file."""
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * (33 * 4096 + 1))
    artifact = store.upload(source, "clips/clip.mp4", "video/mp4")
    assert store.head("clips/clip.mp4") == ObjectHead(source.stat().st_size, artifact.sha256)
    target = store.download(artifact, tmp_path / "target")
    assert target.read_bytes() == source.read_bytes()


def test_keys_live_under_the_prefix_and_uris_anywhere(store: ObjectStore) -> None:
    """A key is relative to the data URI; the same object is found under its full URI."""
    store.put_bytes("a", b"1", "text/plain")
    assert store.uri("a") == f"s3://{store.bucket}/{store.prefix}/a"
    assert store.get_bytes(store.uri("a")) == b"1"


def test_missing_objects_are_told(store: ObjectStore, tmp_path: Path) -> None:
    """Reading what is not there is a permanent error that names it; looking at it gives None."""
    assert store.head("none") is None
    assert not store.exists("none")
    with pytest.raises(ObjectMissingError, match=r"/none does not exist"):
        store.get_bytes("none")
    with pytest.raises(ObjectMissingError, match=r"/none does not exist"):
        store.download("none", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_download_with_other_bytes_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    """An artifact whose object has other bytes is a transient error, and no file is left behind."""
    store.put_bytes("a", b"new", "text/plain")
    artifact = Artifact(key="a", sha256=hashlib.sha256(b"old").hexdigest(), size_bytes=3)
    with pytest.raises(TransientError, match="expected 3 bytes"):
        store.download(artifact, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_as_verifiable_as_its_source(store: ObjectStore) -> None:
    """A copy has the bytes and the recorded SHA-256 of its source."""
    store.put_bytes("a", b"1", "text/plain")
    store.copy("a", "b/c")
    assert store.get_bytes("b/c") == b"1"
    assert store.head("b/c") == store.head("a")


def test_an_object_too_large_for_one_request_is_copied_in_parts(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are the same; the bound is lowered here so that two parts are enough."""
    monkeypatch.setattr("s2v_tasks.storage.s3._COPIED_AT_ONCE_BYTES", 1)
    (tmp_path / "large").write_bytes(bytes(range(256)) * (33 * 4096))
    store.upload(tmp_path / "large", "a", "text/plain")
    store.copy("a", "b", size_bytes=33 * 1024**2)
    store.download("b", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "large").read_bytes()


def test_copying_what_is_lost_names_the_source(store: ObjectStore) -> None:
    """The message of a failed copy names the object that is missing, not the one that was to be written."""
    with pytest.raises(ObjectMissingError, match=r"/lost does not exist"):
        store.copy("lost", "target")
    assert not store.exists("target")


def test_deleting_twice_is_harmless(store: ObjectStore) -> None:
    """A deleted object is gone; deleting it again is no error."""
    store.put_bytes("a", b"1", "text/plain")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_ensuring_a_bucket_twice_keeps_its_objects(store: ObjectStore) -> None:
    """A bucket that exists is left as it is."""
    store.put_bytes("a", b"1", "text/plain")
    store.ensure_bucket()
    assert store.exists("a")


def test_fetching_a_users_file(store: ObjectStore, tmp_path: Path) -> None:
    """A user's object of exactly the allowed size is fetched."""
    store.put_bytes("speech.wav", b"12345", "audio/wav")
    assert store.fetch_uri(store.uri("speech.wav"), tmp_path / "a", max_bytes=5).read_bytes() == b"12345"


@pytest.mark.parametrize("bucket", ["contracts", "no-such-bucket"])
def test_a_users_uri_that_does_not_exist_is_bad_input(store: ObjectStore, tmp_path: Path, bucket: str) -> None:
    """A missing object or bucket in a request is the user's to correct, not the installation's."""
    store.trust = Trust(own=(), inputs=(Place(bucket, ""),))
    with pytest.raises(PermanentError, match=f"s3://{bucket}/none.wav does not exist: check the URI") as caught:
        store.fetch_uri(f"s3://{bucket}/none.wav", tmp_path / "a", max_bytes=5)
    assert not isinstance(caught.value, ConfigurationError)


def test_a_users_file_that_is_too_large_is_not_fetched(store: ObjectStore, tmp_path: Path) -> None:
    """The refusal names the size of the object and the bound."""
    store.put_bytes("speech.wav", b"123456", "audio/wav")
    with pytest.raises(PermanentError, match="has 6 bytes: expected at most 5"):
        store.fetch_uri(store.uri("speech.wav"), tmp_path / "a", max_bytes=5)
    assert list(tmp_path.iterdir()) == []


def test_a_users_file_that_grows_while_it_is_read_is_not_fetched(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store said of the size before is not relied on: the download ends at the bound."""
    store.put_bytes("speech.wav", b"123456", "audio/wav")
    monkeypatch.setattr(store, "head", lambda address: ObjectHead(5, None))
    with pytest.raises(PermanentError, match="has 6 bytes: expected at most 5"):
        store.fetch_uri(store.uri("speech.wav"), tmp_path / "a", max_bytes=5)
    assert list(tmp_path.iterdir()) == []


def test_a_small_object_that_is_none_is_not_read(store: ObjectStore) -> None:
    """What is read into memory is bounded before it is read."""
    store.put_bytes("request.json", b"123456", "application/json")
    with pytest.raises(PermanentError, match=r"request.json has 6 bytes: expected at most 5"):
        store.get_bytes("request.json", max_bytes=5)


@pytest.mark.parametrize(
    "name", ["two\nlines", "🎬 émoji", "what? #1 + 50 %", "%2e%2e", "tab\there", "'quoted' & <x>", "-rf"]
)
def test_strange_names_are_names(request: pytest.FixtureRequest, store: ObjectStore, name: str) -> None:
    """Whatever letters a name has, the object under it is written, listed, copied and deleted like any other."""
    if "\n" in name and request.node.callspec.params["server_store"] == "moto":
        pytest.skip("moto's own routes end at a line end")
    store.put_bytes(f"in/{name}", b"1", "text/plain")
    assert [found.uri for found in store.listing("in/")] == [store.uri(f"in/{name}")]
    store.copy(f"in/{name}", f"out/{name}")
    store.delete_all([store.uri(f"in/{name}")])
    assert store.get_bytes(f"out/{name}") == b"1"
    assert not list(store.listing("in/"))


def test_a_listing_names_every_object_below_a_prefix(store: ObjectStore) -> None:
    """A listing has each object once, in order, with its size and time, over all pages."""
    before = datetime.now(UTC) - timedelta(minutes=1)
    for index in range(3):
        store.put_bytes(f"jobs/{index}", b"1" * index, "text/plain")
    store.put_bytes("other", b"", "text/plain")
    found = list(store.listing("jobs/"))
    assert [(item.uri, item.size_bytes) for item in found] == [(store.uri(f"jobs/{i}"), i) for i in range(3)]
    assert all(before < item.modified_at < datetime.now(UTC) + timedelta(minutes=1) for item in found)


def test_many_objects_are_deleted_at_once(store: ObjectStore) -> None:
    """All that are named are gone, the others stay; one that is missing already is no error."""
    for name in ("a", "b", "kept"):
        store.put_bytes(name, b"1", "text/plain")
    store.delete_all(["a", store.uri("b"), "missing"])
    assert [item.uri for item in store.listing("")] == [store.uri("kept")]


def test_an_unfinished_upload_is_found_and_aborted(store: ObjectStore) -> None:
    """An upload that nobody completed is listed with its beginning; aborting it twice is harmless."""
    at = store.uri("jobs/a/clip.mp4").removeprefix(f"s3://{store.bucket}/")
    store._client.create_multipart_upload(Bucket=store.bucket, Key=at)
    [upload] = store.unfinished_uploads("jobs/")
    assert upload.uri == store.uri("jobs/a/clip.mp4")
    assert upload.started_at < datetime.now(UTC) + timedelta(minutes=1)  # moto's is a constant
    store.abort_upload(upload)
    store.abort_upload(upload)
    assert not list(store.unfinished_uploads("jobs/"))


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
    vars(store)["_client"] = FailingClient(error)
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
