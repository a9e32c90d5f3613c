"""Read and write objects in S3, or in any server with its protocol.

An address is either a key (relative to `Settings.data_uri`) or a full `s3://bucket/key` URI.
Failures become the errors of the system: PermanentError (no such object, a location that is not allowed),
ConfigurationError (credentials, bucket), TransientError (network, server). Each names the object and the endpoint, and
no credential.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.schemas.manifest import Artifact
from s2v_tasks.settings import Settings
from s2v_tasks.storage.client import Checksums, Connection, Server, connect
from s2v_tasks.storage.locations import AccessPolicy, Location, parse_setting, parse_uri, printable
from s2v_tasks.storage.objects import (
    BoundedFile,
    ListedObject,
    ObjectHead,
    ObjectPart,
    UnfinishedUpload,
    delete_group,
    deleted_at_once,
    file_sha256,
    open_part,
    too_large,
    verify_sha256,
)
from s2v_tasks.storage.s3_errors import ObjectMissingError, translated

SHA256_METADATA = "sha256"
MEBIBYTE = 1024**2
SMALL_OBJECT_BYTES = 64 * MEBIBYTE
_COPIED_AT_ONCE_BYTES = 5 * 1024 * MEBIBYTE  # S3's own bound


class ObjectStore:
    """Reads and writes the objects that its access policy allows.

    Uploads carry the SHA-256 of their bytes; downloads of an Artifact verify it.
    """

    def __init__(
        self,
        data_uri: str,
        *,
        access: AccessPolicy | None = None,
        endpoint_url: str | None = None,
        region: str = "us-east-1",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        checksums: Checksums = "always",
    ) -> None:
        """Remember the server; `access` names the objects that it may touch, by default those below `data_uri`."""
        data = parse_setting("S2V_DATA_URI", data_uri)
        self.bucket, self.prefix = data
        self.access = access or AccessPolicy(own=(data,), inputs=(data,))
        self._server = Server(endpoint_url, region, access_key_id, secret_access_key, checksums)
        self._sums = {"ChecksumAlgorithm": "SHA256"} if checksums == "always" else {}
        self._transfer = TransferConfig(multipart_threshold=32 * MEBIBYTE, multipart_chunksize=16 * MEBIBYTE)

    @classmethod
    def from_settings(cls, settings: Settings) -> "ObjectStore":
        """Return the store of this installation; no request is sent yet."""
        secret = settings.s3_secret_access_key
        return cls(
            settings.data_uri,
            access=AccessPolicy.from_settings(settings),
            endpoint_url=settings.s3_endpoint_url,
            region=settings.s3_region,
            access_key_id=settings.s3_access_key_id,
            secret_access_key=secret.get_secret_value() if secret else None,
            checksums=settings.s3_checksums,
        )

    @classmethod
    def seen_by_browsers(cls, settings: Settings) -> "ObjectStore":
        """Return the same store at its public endpoint for browsers: for links only."""
        endpoint = settings.s3_public_endpoint_url or settings.s3_endpoint_url
        return cls.from_settings(settings.model_copy(update={"s3_endpoint_url": endpoint}))

    def link(self, address: str, *, seconds: int) -> str:
        """Return a URL that reads the object without credentials for `seconds`; no request is sent."""
        with self._reading("signing a link to", address) as at:
            url: str = self._client.generate_presigned_url("get_object", Params=_named(at), ExpiresIn=seconds)
        return url

    def uri(self, address: str) -> str:
        """Return the full `s3://` URI of an address."""
        return self._locate(address).uri

    def get_bytes(self, address: str, *, max_bytes: int = SMALL_OBJECT_BYTES) -> bytes:
        """Return the bytes of a small object; ObjectMissingError when it does not exist, PermanentError if larger."""
        with self._reading("reading", address) as at:
            answer = self._client.get_object(**_named(at))
            if answer["ContentLength"] > max_bytes:
                answer["Body"].close()
                raise too_large(at.uri, answer["ContentLength"], max_bytes)
            body: bytes = answer["Body"].read()
        return body

    def find_bytes(self, address: str, *, max_bytes: int = SMALL_OBJECT_BYTES) -> bytes | None:
        """Return the bytes of a small object, None when it does not exist."""
        try:
            return self.get_bytes(address, max_bytes=max_bytes)
        except ObjectMissingError:
            return None

    def open(self, address: str, *, byte_range: str | None = None, known_etag: str | None = None) -> ObjectPart:
        """Return the object, or a part of it, as a stream; see `open_part`. ObjectMissingError if there is none."""
        with self._reading("reading", address) as at:
            return open_part(self._client, at, byte_range, known_etag)

    def put_bytes(self, address: str, data: bytes, content_type: str) -> Artifact:
        """Write a small object in one request."""
        sha256 = hashlib.sha256(data).hexdigest()
        with self._writing("writing", address) as at:
            self._client.put_object(
                **_named(at),
                Body=data,
                ContentType=content_type,
                Metadata={SHA256_METADATA: sha256},
                **self._sums,
            )
        return Artifact(key=address, sha256=sha256, size_bytes=len(data))

    def upload(self, path: Path, address: str, content_type: str) -> Artifact:
        """Write a file, in parts when it is large; the object appears whole or not at all."""
        sha256 = file_sha256(path)
        extra = {"ContentType": content_type, "Metadata": {SHA256_METADATA: sha256}} | self._sums
        with path.open("rb") as file, self._writing("writing", address) as at:
            self._client.upload_fileobj(file, at.bucket, at.key, ExtraArgs=extra, Config=self._transfer)
        return Artifact(key=address, sha256=sha256, size_bytes=path.stat().st_size)

    def download(self, source: Artifact | str, path: Path, *, max_bytes: int | None = None) -> Path:
        """Write an object to `path`. For an Artifact the bytes are verified: ObjectDamagedError when they differ.

        PermanentError as soon as more than `max_bytes` arrive, also when the store has announced fewer.
        """
        address = source.key if isinstance(source, Artifact) else source
        part = path.with_name(path.name + ".part")
        try:
            with self._reading("reading", address) as at, BoundedFile(part, at.uri, max_bytes) as file:
                self._client.download_fileobj(at.bucket, at.key, file, Config=self._transfer)
            if isinstance(source, Artifact):
                verify_sha256(part, source, self.uri(address))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def head(self, address: str) -> ObjectHead | None:
        """Return size and SHA-256 of an object, None when it does not exist."""
        try:
            with self._reading("looking at", address) as at:
                answer = self._client.head_object(**_named(at))
        except ObjectMissingError:
            return None
        # A server or proxy may capitalise the names of headers.
        metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
        return ObjectHead(answer["ContentLength"], metadata.get(SHA256_METADATA))

    def exists(self, address: str) -> bool:
        return self.head(address) is not None

    def listing(self, prefix: str) -> Iterator[ListedObject]:
        """Yield every object whose address begins with `prefix`, in the order of names; fetched page by page."""
        with self._reading("listing", prefix) as at:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=at.bucket, Prefix=at.key)
            for page in pages:
                for item in page.get("Contents", []):
                    uri = Location(at.bucket, item["Key"]).uri
                    yield ListedObject(uri, item["Size"], item["LastModified"], item["ETag"].strip('"'))

    def has_any(self, prefix: str) -> bool:
        """Return True if there is an object whose address begins with `prefix`."""
        return next(self.listing(prefix), None) is not None

    def copy(self, source: str, target: str, *, size_bytes: int = 0) -> None:
        """Copy an object within the store, with its metadata; in parts if `size_bytes` is more than 5 GiB."""
        goal = self._locate(target)
        self.access.check_write(goal)
        with self._reading(f"copying to {printable(goal.uri)} from", source) as origin:
            if size_bytes <= _COPIED_AT_ONCE_BYTES:
                self._client.copy_object(**_named(goal), CopySource=_named(origin))
            else:
                self._client.copy(_named(origin), goal.bucket, goal.key, Config=self._transfer)

    def delete(self, address: str) -> None:
        """Delete an object; a missing one is no error."""
        with self._writing("deleting", address) as at:
            self._client.delete_object(**_named(at))

    def delete_all(self, addresses: Sequence[str]) -> None:
        """Delete many objects, a thousand of a bucket per request; missing ones are no error."""
        buckets: dict[str, list[Location]] = {}
        for address in addresses:
            at = self._locate(address)
            self.access.check_write(at)
            buckets.setdefault(at.bucket, []).append(at)
        for places in deleted_at_once(buckets.values()):
            with self._writing(f"deleting {len(places)} objects, the first", places[0].uri):
                failed = delete_group(self._client, places)
            if failed:
                raise TransientError(
                    f"{len(failed)} of {len(places)} objects could not be deleted, the first is "
                    f"{printable(failed[0]['Key'])}: {failed[0].get('Message')}; run it again."
                )

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Yield the multipart uploads below `prefix` that were neither completed nor aborted."""
        with self._reading("listing unfinished uploads of", prefix) as at:
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=at.bucket, Prefix=at.key)
            for page in pages:
                for item in page.get("Uploads", []):
                    uri = Location(at.bucket, item["Key"]).uri
                    yield UnfinishedUpload(uri, item["UploadId"], item["Initiated"])

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Abort an unfinished upload and delete its parts; it may have ended already."""
        with self._writing("aborting the upload of", upload.uri) as at, suppress(self._client.exceptions.NoSuchUpload):
            self._client.abort_multipart_upload(**_named(at), UploadId=upload.upload_id)

    def fetch_uri(self, uri: str, path: Path, max_bytes: int) -> Path:
        """Download the object at the `s3://` URI of a request to `path`.

        PermanentError when requests may not name it, it does not exist, may not be read, or is larger than `max_bytes`.
        """
        self.access.check_input(parse_uri(uri))
        try:
            head = self.head(uri)
        except ConfigurationError as error:
            raise PermanentError(
                f"{printable(uri)} cannot be read: it does not exist or the configured credentials may not read it "
                f"({error}). Check the URI and the permissions."
            ) from error
        if head is None:
            raise PermanentError(f"{printable(uri)} does not exist: check the URI.")
        if head.size_bytes > max_bytes:
            raise too_large(uri, head.size_bytes, max_bytes)
        return self.download(uri, path, max_bytes=max_bytes)

    def ensure_bucket(self, bucket: str | None = None) -> None:
        """Create the bucket (that of `data_uri` when not named) unless it exists."""
        at = Location(bucket or self.bucket, "")
        with suppress(ObjectMissingError), self._translated("looking at", at):
            self._client.head_bucket(Bucket=at.bucket)
            return
        options: dict[str, Any] = {}
        if self._server.region != "us-east-1":
            options["CreateBucketConfiguration"] = {"LocationConstraint": self._server.region}
        # Another process may have created it in the meantime.
        with self._translated("creating", at), suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
            self._client.create_bucket(Bucket=at.bucket, **options)

    @cached_property
    def _connection(self) -> Connection:
        return connect(self._server)

    @property
    def _client(self) -> Any:
        return self._connection.client

    def _locate(self, address: str) -> Location:
        if address.startswith("s3://"):
            return parse_uri(address)
        return Location(self.bucket, f"{self.prefix}/{address}" if self.prefix else address)

    @contextmanager
    def _reading(self, doing: str, address: str) -> Iterator[Location]:
        """Yield the location of `address` if it may be read; translate the errors of S3."""
        at = self._locate(address)
        self.access.check_read(at)
        with self._translated(doing, at):
            yield at

    @contextmanager
    def _writing(self, doing: str, address: str) -> Iterator[Location]:
        """Yield the location of `address` if it may be written; translate the errors of S3."""
        at = self._locate(address)
        self.access.check_write(at)
        with self._translated(doing, at):
            yield at

    def _translated(self, doing: str, at: Location) -> AbstractContextManager[None]:
        return translated(doing, at, self._server, self._connection.secrets)


def _named(at: Location) -> dict[str, str]:
    return {"Bucket": at.bucket, "Key": at.key}
