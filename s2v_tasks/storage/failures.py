"""What failures of an S3 server mean, as errors of the system that name object and endpoint, never a credential."""

from collections.abc import Iterator
from contextlib import contextmanager

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
)
from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.storage.trust import Place, shown

CREDENTIAL_ERRORS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, InvalidConfigError)

_MISSING_CODES = {"404", "NoSuchKey", "NotFound"}
_DENIED_CODES = {
    "400",  # all that the answer to HEAD says about a malformed or expired credential
    "401",
    "403",
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_REDIRECT_CODES = {"301", "PermanentRedirect"}


class ObjectMissingError(PermanentError):
    """The object does not exist."""


class ObjectDamagedError(TransientError):
    """The object has other bytes than were written."""


@contextmanager
def translated(doing: str, at: Place, endpoint: str, region: str) -> Iterator[None]:
    """Turn the errors of S3 that the body raises into ours; `doing` begins their message: "reading"."""
    what = f"{doing} {shown(at.uri)} at {endpoint}"
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error, RetriesExceededError) as error:
        cause = _cause(error)
        if isinstance(cause, ClientError):
            raise _refusal(cause, what, at, endpoint, region) from error
        if isinstance(cause, CREDENTIAL_ERRORS):
            raise ConfigurationError(
                f"Failed {what}: {cause}; set S2V_S3_ACCESS_KEY_ID and S2V_S3_SECRET_ACCESS_KEY."
            ) from error
        if isinstance(cause, ParamValidationError):
            raise PermanentError(f"Failed {what}: not a legal S3 address ({cause}).") from error
        if isinstance(cause, FlexibleChecksumError):
            raise ObjectDamagedError(f"Failed {what}: {cause}. Run the step that writes it again.") from error
        raise TransientError(f"Failed {what}: {cause}") from error


def _refusal(error: ClientError, what: str, at: Place, endpoint: str, region: str) -> PermanentError | TransientError:
    """What an answer of the server other than success means."""
    answer = error.response.get("Error", {})
    code = answer.get("Code", "unknown")
    if code in _MISSING_CODES:
        return ObjectMissingError(f"{shown(at.uri)} does not exist at {endpoint}.")
    if code == "NoSuchBucket":
        return ConfigurationError(
            f"Failed {what}: bucket {answer.get('BucketName', at.bucket)!r} does not exist; create it or "
            "correct S2V_DATA_URI and S2V_OUTPUT_URI."
        )
    if code in _REDIRECT_CODES:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return ConfigurationError(
            f"Failed {what}: the bucket lies in region {headers.get('x-amz-bucket-region', 'unknown')}, asked was "
            f"{region} ({code}); set S2V_S3_REGION, and S2V_S3_ENDPOINT_URL where it is set, to the bucket's."
        )
    if code in _DENIED_CODES:
        return ConfigurationError(
            f"Failed {what}: refused ({code}); check S2V_S3_ACCESS_KEY_ID, S2V_S3_SECRET_ACCESS_KEY "
            "and the permissions they give."
        )
    return TransientError(f"Failed {what}: {error}")


def _cause(error: Exception) -> BaseException:
    """What the transfer manager has wrapped: the server's answer, or how the last of its attempts failed."""
    if not isinstance(error, (Boto3Error, RetriesExceededError)):
        return error
    last: BaseException | None = getattr(error, "last_exception", None)
    return last or error.__cause__ or error.__context__ or error
