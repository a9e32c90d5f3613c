"""Check the translation of errors of the S3 client into errors of this system."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    FlexibleChecksumError,
    InvalidConfigError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError, UnavailableError
from s2v_tasks.storage.client import Connection
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.storage.s3_errors import ObjectDamagedError, ObjectMissingError


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


def answer(code: str, status: int = 400, message: str = "", **headers: str) -> ClientError:
    """Return the error that the client makes from an answer of the server."""
    metadata = {"HTTPHeaders": headers, "HTTPStatusCode": status}
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}, "HeadObject")


@pytest.mark.parametrize(
    "code",
    [
        *("400", "401", "403", "AccessDenied", "AuthorizationHeaderMalformed", "ExpiredToken", "InvalidAccessKeyId"),
        *("InvalidToken", "SignatureDoesNotMatch", "UserSuspended"),
    ],
)
def test_a_refusal_of_the_credentials_is_a_configuration_error(code: str) -> None:
    """Each code for refused credentials names the settings, and the clock, which HEAD does not distinguish."""
    with pytest.raises(ConfigurationError, match=rf"refused \({code}\); check S2V_S3_ACCESS_KEY_ID.* the clock of"):
        failing_store(answer(code)).get_bytes("a")


@pytest.mark.parametrize("code", ["404", "NoSuchKey", "NotFound"])
def test_a_missing_object_is_reported_as_missing(code: str) -> None:
    """Each code for a missing object is reported as missing; other errors with the same status are not."""
    with pytest.raises(ObjectMissingError, match="s3://bucket/a does not exist at AWS us-east-1"):
        failing_store(answer(code, 404)).get_bytes("a")
    assert failing_store(answer(code, 404)).head("a") is None


@pytest.mark.parametrize(
    ("operation", "code", "kind", "meaning"),
    [
        ("GetObject", "404", "text/html", UnavailableError),
        ("GetObject", "404", "application/xml", ObjectMissingError),
        ("GetObject", "NoSuchKey", "text/xml", ObjectMissingError),
        ("HeadObject", "404", "text/html", ObjectMissingError),
        ("GetObject", "403", "text/html", ConfigurationError),
    ],
)
def test_the_404_of_a_proxy_is_distinguished_from_that_of_the_server(
    operation: str, code: str, kind: str, meaning: type[Exception]
) -> None:
    """A 404 counts as missing only with the XML of the S3 server, or for HEAD requests, which have no text."""
    metadata = {"HTTPHeaders": {"content-type": kind}, "HTTPStatusCode": 404}
    error = ClientError({"Error": {"Code": code, "Message": ""}, "ResponseMetadata": metadata}, operation)
    with pytest.raises(meaning):
        failing_store(error).get_bytes("a")


def test_an_answer_without_status_and_code_is_waited_for() -> None:
    """An answer without status and code is a transient error."""
    with pytest.raises(UnavailableError, match="Unknown"):
        failing_store(ClientError({}, "GetObject")).get_bytes("a")


@pytest.mark.parametrize("status", [399, 408, 409, 425, 429, 500, 502, 503, 504, 507])
def test_a_temporary_answer_is_waited_for(status: int) -> None:
    """Answers of a server that is overloaded, starting or full are waited for; a fault of the server may be no room."""
    with pytest.raises(UnavailableError, match="SomeCode") as caught:
        failing_store(answer("SomeCode", status, "Try later")).get_bytes("a")
    assert ("its free space" in str(caught.value)) == (status >= 500)


@pytest.mark.parametrize("status", [400, 405, 412, 416, 499, 501])
def test_a_repeatable_answer_is_not_waited_for(status: int) -> None:
    """An answer that the same request would get again ends the attempt; Airflow tries again later."""
    with pytest.raises(TransientError, match="SomeCode") as caught:
        failing_store(answer("SomeCode", status, "No")).get_bytes("a")
    assert not isinstance(caught.value, UnavailableError)


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        *((code, 400, "") for code in ("InvalidRequest", "InvalidArgument", "NotImplemented")),
        *((code, 411, "") for code in ("MissingContentLength", "411")),
        *((code, 500, "") for code in ("MalformedTrailerError", "XAmzContentSHA256Mismatch", "MissingContentMD5")),
        ("501", 501, ""),
        *(("Odd", status, word) for status in (400, 499, 501) for word in ("x-amz-checksum-crc32", "A Trailer")),
        *(("Odd", 400, word) for word in ("aws-chunked", "ContentEncoding", "content-md5", "STREAMING-UNSIGNED")),
    ],
)
def test_a_refusal_of_checksums_names_the_setting(code: str, status: int, message: str) -> None:
    """Each code and word for refused checksums names the setting; an unavailable server does not."""
    with pytest.raises(ConfigurationError, match="S2V_S3_CHECKSUMS=when_required"):
        failing_store(answer(code, status, message)).put_bytes("a", b"", "text/plain")
    for other_code, other_status in (
        ("SlowDown", 503),
        ("BadDigest", 400),
        ("InvalidDigest", 400),
        ("IncompleteBody", 400),
    ):
        with pytest.raises(TransientError):
            failing_store(answer(other_code, other_status, message)).put_bytes("a", b"", "text/plain")


@pytest.mark.parametrize(
    "error",
    [
        NoCredentialsError(), PartialCredentialsError(provider="p", cred_var="v"), ProfileNotFound(profile="p"),
        InvalidConfigError(error_msg="m"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_missing_credentials_are_a_configuration_error(error: Exception) -> None:
    """Each error about missing credentials names the settings, and the file in which a command looks for them."""
    expected = r"set S2V_S3_ACCESS_KEY_ID and S2V_S3_SECRET_ACCESS_KEY.*run `make up`.*/stack\.env does not exist"
    with pytest.raises(ConfigurationError, match=expected):
        failing_store(error).get_bytes("a")


def test_a_connection_that_fails_is_waited_for() -> None:
    """A connection without an answer is an outage; the message names the setting with the address."""
    with pytest.raises(UnavailableError, match=r"Could not connect .*has free space.*S2V_S3_ENDPOINT_URL names it"):
        failing_store(EndpointConnectionError(endpoint_url="http://h")).get_bytes("a")


@pytest.mark.parametrize(
    "reason",
    [
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)",
        "[Errno 2] No such file or directory",
        "[X509: NO_CERTIFICATE_OR_CRL_FOUND] no certificate or crl found (_ssl.c:4149)",
    ],
)
def test_an_unknown_certificate_is_a_configuration_error(reason: str) -> None:
    """The message names the variable for the authority; other failures of TLS are an outage."""
    with pytest.raises(ConfigurationError, match=rf"{re.escape(reason)}.* set AWS_CA_BUNDLE to the file"):
        failing_store(SSLError(endpoint_url="https://h", error=reason)).get_bytes("a")
    with pytest.raises(UnavailableError, match=r"Check the network"):
        failing_store(SSLError(endpoint_url="https://h", error="[SSL] record layer failure")).get_bytes("a")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ValueError("Invalid header value b'AWS4 planted'"), "A credential holds a character that no HTTP header"),
        (
            UnicodeEncodeError("latin-1", "\u0101", 0, 1, "planted"),
            "A credential holds a character that no HTTP header",
        ),
        (ValueError("Invalid endpoint: http://a b"), "Invalid endpoint: http://a b. Check the S2V_S3_\\* settings"),
    ],
    ids=["header", "letter", "other"],
)
def test_a_request_that_cannot_be_sent_is_a_configuration_error(error: Exception, remedy: str) -> None:
    """The message names the settings to correct and quotes no part of a credential."""
    with pytest.raises(ConfigurationError, match=remedy) as seen:
        failing_store(error).get_bytes("a")
    assert "planted" not in str(seen.value)
    assert (seen.value.__cause__, seen.value.__suppress_context__) == (None, True)


def test_a_name_that_the_client_refuses_is_bad_input() -> None:
    """A name that the client refuses is a permanent error."""
    with pytest.raises(PermanentError, match="not a legal S3 address"):
        failing_store(ParamValidationError(report="Invalid length")).get_bytes("a")


def test_a_download_that_broke_off_too_often_is_a_transient_error(tmp_path: Path) -> None:
    """The message names the failure of the last attempt of the transfer manager."""
    store = failing_store(RetriesExceededError(ConnectionResetError("reset by peer")))
    with pytest.raises(TransientError, match="reading s3://bucket/a at AWS us-east-1: reset by peer"):
        store.download("a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_transfer_has_the_error_of_the_server() -> None:
    """The answer inside a transfer error decides about the error; without an answer the failure is transient."""
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
    with pytest.raises(
        ConfigurationError, match=r"region eu-west-1, but the request went to region us-east-1 .*S2V_S3_REGION"
    ):
        store.head("a")


def test_an_address_with_the_bucket_is_a_configuration_error(server_store: ObjectStore) -> None:
    """The server takes the listing for an object that is missing, which is no bad input of a job."""
    server = vars(server_store)["_server"]
    store = ObjectStore(
        "s3://contracts",
        endpoint_url=f"{server.endpoint_url}/contracts",
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
    )
    with pytest.raises(ConfigurationError, match=r"correct S2V_S3_ENDPOINT_URL: expected .* without the bucket"):
        store.has_any("jobs/")


def test_a_wrong_clock_is_named() -> None:
    """The server refuses a request of another time; the attempt ends, and the message names the remedy."""
    error = answer("RequestTimeTooSkewed", 403, "The difference between the times is too large.")
    with pytest.raises(TransientError, match=r"too large\. Correct the clock of this machine") as caught:
        failing_store(error).get_bytes("a")
    assert not isinstance(caught.value, UnavailableError)


@pytest.mark.parametrize(("code", "status"), [("QuotaExceeded", 403), ("XMinioAdminBucketQuotaExceeded", 400)])
def test_a_full_quota_is_named(code: str, status: int) -> None:
    """The attempt ends, and the message names the remedy."""
    with pytest.raises(TransientError, match=rf"{code}.*Raise the quota of the S3 account or bucket") as caught:
        failing_store(answer(code, status)).put_bytes("a", b"1", "text/plain")
    assert not isinstance(caught.value, UnavailableError)


def test_bytes_that_differ_from_the_servers_checksum_are_damaged() -> None:
    """A checksum that the client finds wrong while it reads is reported as damage."""
    error = FlexibleChecksumError(error_msg="Expected checksum a did not match calculated checksum b")
    with pytest.raises(ObjectDamagedError, match="did not match"):
        failing_store(error).get_bytes("a")
