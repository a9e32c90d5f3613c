"""Translate the errors of S3 into errors of the system, which name object and endpoint and no credential."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    InvalidConfigError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

from s2v_tasks.errors import ConfigurationError, PermanentError, S2VError, TransientError, UnavailableError
from s2v_tasks.stack_env import embedded_remedy
from s2v_tasks.storage.client import Server, redacted
from s2v_tasks.storage.locations import Location, printable

CREDENTIAL_ERRORS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, InvalidConfigError)
HEADER_REMEDY = (
    "A credential holds a character that no HTTP header may hold, such as a line end: correct S2V_S3_ACCESS_KEY_ID "
    "(or AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN)."
)

_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
_DENIED_CODES = {
    "400",  # the whole answer to a HEAD request with a malformed or expired credential
    "401",
    "403",
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "UserSuspended",
}
_FULL = "Raise the quota of the S3 account or bucket, or delete expired objects with `s2v housekeeping --apply`."
_TRANSIENT_REMEDIES = {
    "RequestTimeTooSkewed": "Correct the clock of this machine.",
    "QuotaExceeded": _FULL,  # Ceph
    "XMinioAdminBucketQuotaExceeded": _FULL,
}
_REDIRECT_CODES = {"301", "PermanentRedirect"}
# Answers of a server that does not support the checksums of a request, or the chunks in which they are sent.
_CHECKSUM_CODES = {"501", "NotImplemented", "InvalidRequest", "InvalidArgument", "MalformedTrailerError"}
_CHECKSUM_CODES |= {"XAmzContentSHA256Mismatch", "MissingContentMD5", "411", "MissingContentLength"}
_CHECKSUM_WORDS = re.compile(r"checksum|trailer|aws-chunked|content-?encoding|content-?md5|streaming-", re.IGNORECASE)
_ABOUT_CERTIFICATES = re.compile(r"certificate|No such file", re.IGNORECASE)
_DAMAGED_ON_THE_WAY = {"BadDigest", "InvalidDigest", "IncompleteBody"}
_NOT_IMPLEMENTED = 501
_CLIENT_ERRORS = range(400, 500)
# 4xx answers that are worth a retry: too slow, in conflict with another request, too early, too many.
_PASSING = frozenset({408, 409, 425, 429})


class ObjectMissingError(PermanentError):
    """The object does not exist."""


class ObjectDamagedError(TransientError):
    """The bytes of the object differ from those that were written."""


@contextmanager
def translated(doing: str, at: Location, server: Server, secrets: Iterable[str]) -> Iterator[None]:
    """Translate errors of S3 from the body into errors of the system; `doing` begins their message: "reading".

    The message of the client, an HTTP library or the server is quoted without credentials. The original error is not
    chained, because a traceback would print it with credentials.
    """
    what = f"{doing} {printable(at.uri)} at {server.name}"
    try:
        yield
    # UnicodeError, ValueError: a library below the client cannot send a header or a host name
    except (ClientError, BotoCoreError, Boto3Error, RetriesExceededError, ValueError) as error:
        raise _meaning(_cause(error), what, at, server, tuple(secrets)) from None


def is_bad_header(error: BaseException) -> bool:
    """Return True if a request could not be sent because of the content of a header."""
    return isinstance(error, UnicodeError) or "Invalid header" in str(error)


def _meaning(cause: BaseException, what: str, at: Location, server: Server, secrets: tuple[str, ...]) -> S2VError:
    said = redacted(str(cause), secrets)
    if isinstance(cause, ClientError):
        return _refusal(cause, said, what, at, server)
    if isinstance(cause, CREDENTIAL_ERRORS):
        remedy = f"set S2V_S3_ACCESS_KEY_ID and S2V_S3_SECRET_ACCESS_KEY.{embedded_remedy()}"
        return ConfigurationError(f"Failed {what}: {said}; {remedy}")
    if isinstance(cause, ParamValidationError):
        return PermanentError(f"Failed {what}: not a legal S3 address ({said}).")
    if isinstance(cause, FlexibleChecksumError):
        return ObjectDamagedError(f"Failed {what}: {said}. Run the step that writes it again.")
    if is_bad_header(cause):
        return ConfigurationError(f"Failed {what}: the request cannot be sent. {HEADER_REMEDY}")
    if isinstance(cause, ValueError):
        return ConfigurationError(f"Failed {what}: {said}. Check the S2V_S3_* settings.")
    if isinstance(cause, SSLError) and _ABOUT_CERTIFICATES.search(said):
        return ConfigurationError(
            f"Failed {what}: {said.rstrip('.')}. For a certificate of your own authority, set AWS_CA_BUNDLE to the "
            "file with the certificate of the authority; S2V_S3_ENDPOINT_URL must have a host name of the certificate."
        )
    return UnavailableError(
        f"Failed {what}: {said.rstrip('.')}. Check the network, that the server runs and has free space, and that "
        "S2V_S3_ENDPOINT_URL names it."
    )


def _refusal(error: ClientError, said: str, what: str, at: Location, server: Server) -> S2VError:
    """Return the error for an answer of the server other than success."""
    answer = error.response.get("Error", {})
    code = str(answer.get("Code", "unknown"))
    metadata: dict[str, Any] = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 500))
    if _is_page_of_a_proxy(error, code, metadata):
        return UnavailableError(f"Failed {what}: a proxy answers that there is no such page ({said})")
    if code in _MISSING_CODES and error.operation_name.startswith("List"):
        return ConfigurationError(
            f"Failed {what}: the server takes the listing for an object that does not exist ({code}); correct "
            "S2V_S3_ENDPOINT_URL: expected the address of the server, without the bucket."
        )
    if code in _MISSING_CODES:
        return ObjectMissingError(f"{printable(at.uri)} does not exist at {server.name}.")
    if code == "NoSuchBucket":
        return ConfigurationError(
            f"Failed {what}: bucket {answer.get('BucketName', at.bucket)!r} does not exist; create it or "
            "correct S2V_DATA_URI and S2V_OUTPUT_URI."
        )
    if code in _REDIRECT_CODES:
        region = metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region", "unknown")
        return ConfigurationError(
            f"Failed {what}: the bucket is in region {region}, but the request went to region "
            f"{server.region} ({code}); correct S2V_S3_REGION, and S2V_S3_ENDPOINT_URL if it is set."
        )
    if code in _TRANSIENT_REMEDIES:
        return TransientError(f"Failed {what}: {said.rstrip('.')}. {_TRANSIENT_REMEDIES[code]}")
    if code in _DENIED_CODES:
        return ConfigurationError(
            f"Failed {what}: refused ({code}); check S2V_S3_ACCESS_KEY_ID, S2V_S3_SECRET_ACCESS_KEY, "
            "the permissions they give, and the clock of this machine."
        )
    if server.checksums == "always" and _is_about_checksums(code, status, said):
        return ConfigurationError(
            f"Failed {what}: {said}. A server that does not know the checksums of S3 refuses such requests: set "
            "S2V_S3_CHECKSUMS=when_required."
        )
    if status == _NOT_IMPLEMENTED or (status in _CLIENT_ERRORS and status not in _PASSING):
        return TransientError(f"Failed {what}: {said}")
    remedy = ". If this repeats, look at the log of the server and at its free space." if status >= 500 else ""
    return UnavailableError(f"Failed {what}: {said.rstrip('.')}{remedy}")


def _is_page_of_a_proxy(error: ClientError, code: str, metadata: dict[str, Any]) -> bool:
    """Return True if the 404 comes from a proxy without a server: a server names the missing object in XML.

    The answer to a HEAD request has no text, so that both look alike.
    """
    kind = metadata.get("HTTPHeaders", {}).get("content-type", "")
    return code == "404" and not error.operation_name.startswith("Head") and kind.startswith("text/")


def _is_about_checksums(code: str, status: int, said: str) -> bool:
    if code in _DAMAGED_ON_THE_WAY:
        return False
    refused = status in _CLIENT_ERRORS or status == _NOT_IMPLEMENTED
    return code in _CHECKSUM_CODES or (refused and _CHECKSUM_WORDS.search(said) is not None)


def _cause(error: Exception) -> BaseException:
    """Return the error that the transfer manager has wrapped: the server's answer, or that of its last attempt."""
    if not isinstance(error, (Boto3Error, RetriesExceededError)):
        return error
    last: BaseException | None = getattr(error, "last_exception", None)
    return last or error.__cause__ or error.__context__ or error
