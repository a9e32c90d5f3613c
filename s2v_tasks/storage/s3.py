"""The object store: S3, or any server that speaks it.

An address is either a key (relative to `Settings.data_uri`) or a full `s3://bucket/key` URI.
Failures become the errors of the system: PermanentError (no such object), ConfigurationError (credentials, bucket),
TransientError (network, server); each names the object and the endpoint, never a credential.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
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
from s2v_tasks.schemas.manifest import Artifact
from s2v_tasks.settings import Settings

SHA256_METADATA = "sha256"
MEBIBYTE = 1024**2

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
_CREDENTIAL_ERRORS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, InvalidConfigError)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ObjectMissingError(PermanentError):
    """The object does not exist."""


class ObjectDamagedError(TransientError):
    """The object has other bytes than were written."""


@dataclass(frozen=True)
class ObjectHead:
    """What the store says about an object; `sha256` (hex) only for objects that this system uploaded."""

    size_bytes: int
    sha256: str | None


class ObjectStore:
    """Reads and writes objects. Uploads carry the SHA-256 of their bytes; downloads of an Artifact verify it."""

    def __init__(
        self,
        data_uri: str,
        *,
        endpoint_url: str | None = None,
        region: str = "us-east-1",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        bucket, _, prefix = data_uri.removeprefix("s3://").rstrip("/").partition("/")
        if not data_uri.startswith("s3://") or not bucket:
            raise ConfigurationError(f"S2V_DATA_URI {data_uri!r}: expected s3://bucket or s3://bucket/prefix.")
        self.bucket, self.prefix = bucket, prefix
        self.endpoint_url, self.region = endpoint_url, region
        self._credentials = (access_key_id, secret_access_key)
        self._transfer = TransferConfig(multipart_threshold=32 * MEBIBYTE, multipart_chunksize=16 * MEBIBYTE)

    @classmethod
    def from_settings(cls, settings: Settings) -> "ObjectStore":
        """The store of this installation; nothing is contacted yet."""
        secret = settings.s3_secret_access_key
        return cls(
            settings.data_uri,
            endpoint_url=settings.s3_endpoint_url,
            region=settings.s3_region,
            access_key_id=settings.s3_access_key_id,
            secret_access_key=secret.get_secret_value() if secret else None,
        )

    def uri(self, address: str) -> str:
        """The full `s3://` URI of an address."""
        bucket, key = self._locate(address)
        return f"s3://{bucket}/{key}"

    def get_bytes(self, address: str) -> bytes:
        """The bytes of a small object; ObjectMissingError when it is not there."""
        with self._translated("reading", address) as place:
            body: bytes = self._client.get_object(**place)["Body"].read()
        return body

    def put_bytes(self, address: str, data: bytes, content_type: str) -> Artifact:
        """Write a small object in one request."""
        sha256 = hashlib.sha256(data).hexdigest()
        with self._translated("writing", address) as place:
            self._client.put_object(
                **place,
                Body=data,
                ContentType=content_type,
                Metadata={SHA256_METADATA: sha256},
                ChecksumAlgorithm="SHA256",
            )
        return Artifact(key=address, sha256=sha256, size_bytes=len(data))

    def upload(self, path: Path, address: str, content_type: str) -> Artifact:
        """Write a file, in parts when it is large; the object appears whole or not at all."""
        sha256 = file_sha256(path)
        extra = {
            "ContentType": content_type,
            "Metadata": {SHA256_METADATA: sha256},
            "ChecksumAlgorithm": "SHA256",
        }
        with path.open("rb") as file, self._translated("writing", address) as place:
            self._client.upload_fileobj(file, place["Bucket"], place["Key"], ExtraArgs=extra, Config=self._transfer)
        return Artifact(key=address, sha256=sha256, size_bytes=path.stat().st_size)

    def download(self, source: Artifact | str, path: Path) -> Path:
        """Write an object to `path`. For an Artifact the bytes are verified: ObjectDamagedError when they differ."""
        address = source.key if isinstance(source, Artifact) else source
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file, self._translated("reading", address) as place:
                self._client.download_fileobj(place["Bucket"], place["Key"], file, Config=self._transfer)
            if isinstance(source, Artifact):
                self._verify(source, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def _verify(self, artifact: Artifact, path: Path) -> None:
        sha256 = file_sha256(path)
        if sha256 != artifact.sha256:
            raise ObjectDamagedError(
                f"{self.uri(artifact.key)} has {path.stat().st_size} bytes with SHA-256 {sha256}: expected "
                f"{artifact.size_bytes} bytes with {artifact.sha256}. Run the step that writes it again."
            )

    def head(self, address: str) -> ObjectHead | None:
        """Size and SHA-256 of an object, None when it is not there."""
        try:
            with self._translated("looking at", address) as place:
                answer = self._client.head_object(**place)
        except ObjectMissingError:
            return None
        return ObjectHead(answer["ContentLength"], answer["Metadata"].get(SHA256_METADATA))

    def exists(self, address: str) -> bool:
        return self.head(address) is not None

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the store, with its metadata; up to 5 GiB, S3's limit for one request."""
        bucket, key = self._locate(target)
        with self._translated(f"copying to s3://{bucket}/{key} from", source) as origin:
            self._client.copy_object(Bucket=bucket, Key=key, CopySource=origin)

    def delete(self, address: str) -> None:
        """Remove an object; it may be missing already."""
        with self._translated("deleting", address) as place:
            self._client.delete_object(**place)

    def fetch_uri(self, uri: str, path: Path, max_bytes: int) -> Path:
        """Write the object at a user's `s3://` URI to `path`.

        PermanentError when it does not exist, may not be read, or has more than `max_bytes` bytes.
        """
        try:
            head = self.head(uri)
        except ConfigurationError as error:
            raise PermanentError(
                f"{uri} cannot be read: it does not exist or the configured credentials may not read it "
                f"({error}). Check the URI and the permissions."
            ) from error
        if head is None:
            raise PermanentError(f"{uri} does not exist: check the URI.")
        if head.size_bytes > max_bytes:
            raise PermanentError(
                f"{uri} has {head.size_bytes} bytes: expected at most {max_bytes} (S2V_MAX_INPUT_BYTES)."
            )
        return self.download(uri, path)

    def ensure_bucket(self, bucket: str | None = None) -> None:
        """Create the bucket (that of `data_uri` when not named) unless it exists."""
        bucket = bucket or self.bucket
        try:
            with self._translated("looking at", f"s3://{bucket}"):
                self._client.head_bucket(Bucket=bucket)
            return
        except ObjectMissingError:
            pass
        options: dict[str, Any] = {}
        if self.region != "us-east-1":
            options["CreateBucketConfiguration"] = {"LocationConstraint": self.region}
        # Another process may be faster.
        with (
            self._translated("creating", f"s3://{bucket}"),
            suppress(self._client.exceptions.BucketAlreadyOwnedByYou),
        ):
            self._client.create_bucket(Bucket=bucket, **options)

    @cached_property
    def _client(self) -> Any:
        access_key_id, secret_access_key = self._credentials
        loopback = urlsplit(self.endpoint_url or "").hostname in {"127.0.0.1", "localhost", "::1"}
        config = Config(
            signature_version="s3v4",
            retries={"mode": "standard", "total_max_attempts": 4},
            connect_timeout=10,
            read_timeout=60,
            proxies={} if loopback else None,
            s3={"addressing_style": "path" if self.endpoint_url else "auto"},
        )
        try:
            return boto3.client(
                "s3",
                endpoint_url=self.endpoint_url,
                region_name=self.region,
                aws_access_key_id=access_key_id,
                aws_secret_access_key=secret_access_key,
                config=config,
            )
        except (ValueError, *_CREDENTIAL_ERRORS) as error:
            raise ConfigurationError(
                f"S3 client for {self._endpoint}: {error}. Check the S2V_S3_* settings."
            ) from error

    @property
    def _endpoint(self) -> str:
        return self.endpoint_url or f"AWS {self.region}"

    def _locate(self, address: str) -> tuple[str, str]:
        if match := re.fullmatch(r"s3://([^/]+)/?(.*)", address, re.DOTALL):
            return match[1], match[2]
        return self.bucket, f"{self.prefix}/{address}" if self.prefix else address

    @contextmanager
    def _translated(self, doing: str, address: str) -> Iterator[dict[str, str]]:
        """Yield the Bucket and Key of `address`; turn S3's errors into ours."""
        bucket, key = self._locate(address)
        what = f"{doing} s3://{bucket}/{key} at {self._endpoint}"
        try:
            yield {"Bucket": bucket, "Key": key}
        except (ClientError, BotoCoreError, Boto3Error, RetriesExceededError) as error:
            cause = _cause(error)
            if isinstance(cause, ClientError):
                raise self._refusal(cause, what, bucket, key) from error
            if isinstance(cause, _CREDENTIAL_ERRORS):
                raise ConfigurationError(
                    f"Failed {what}: {cause}; set S2V_S3_ACCESS_KEY_ID and S2V_S3_SECRET_ACCESS_KEY."
                ) from error
            if isinstance(cause, ParamValidationError):
                raise PermanentError(f"Failed {what}: not a legal S3 address ({cause}).") from error
            if isinstance(cause, FlexibleChecksumError):
                raise ObjectDamagedError(f"Failed {what}: {cause}. Run the step that writes it again.") from error
            raise TransientError(f"Failed {what}: {cause}") from error

    def _refusal(self, error: ClientError, what: str, bucket: str, key: str) -> PermanentError | TransientError:
        """What an answer of the server other than success means."""
        answer = error.response.get("Error", {})
        code = answer.get("Code", "unknown")
        if code in _MISSING_CODES:
            return ObjectMissingError(f"s3://{bucket}/{key} does not exist at {self._endpoint}.")
        if code == "NoSuchBucket":
            return ConfigurationError(
                f"Failed {what}: bucket {answer.get('BucketName', bucket)!r} does not exist; create it or "
                "correct S2V_DATA_URI and S2V_OUTPUT_URI."
            )
        if code in _REDIRECT_CODES:
            headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            return ConfigurationError(
                f"Failed {what}: the bucket lies in region {headers.get('x-amz-bucket-region', 'unknown')}, asked was "
                f"{self.region} ({code}); set S2V_S3_REGION, and S2V_S3_ENDPOINT_URL where it is set, to the bucket's."
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
