"""The connection to an S3 server."""

import base64
import hashlib
import logging
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, HTTPClientError

from s2v_tasks.errors import ConfigurationError, UnavailableError
from s2v_tasks.storage.redaction import account_of, redacted, without_account

# What asked AWS for credentials and got none: the account of a pod, an instance or a role.
_PASSING_ERRORS = (ClientError, CredentialRetrievalError, HTTPClientError)
Checksums = Literal["always", "when_required"]


@dataclass(frozen=True)
class Server:
    """An S3 server and how it is spoken to. Without credentials the usual AWS chain gives them."""

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    checksums: Checksums = "always"

    @property
    def name(self) -> str:
        """The server as messages call it."""
        return without_account(self.endpoint_url) if self.endpoint_url else f"AWS {self.region}"

    @property
    def is_on_loopback(self) -> bool:
        """Whether it runs on this machine, where no proxy stands between."""
        try:
            return urlsplit(self.endpoint_url or "").hostname in {"127.0.0.1", "localhost", "::1"}
        except ValueError:  # no URL: the client says so
            return False


@dataclass(frozen=True)
class Connection:
    """A client of a server, and what no message of it may show."""

    client: Any
    secrets: tuple[str, ...] = field(repr=False)


def connect(server: Server) -> Connection:
    """A client of the server; no bucket is asked for yet."""
    _keep_credentials_out_of_logs()
    automatic = "when_supported" if server.checksums == "always" else "when_required"
    config = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": 4},
        connect_timeout=10,
        read_timeout=60,
        proxies={} if server.is_on_loopback else None,
        s3={"addressing_style": "path" if server.endpoint_url else "auto"},
        request_checksum_calculation=automatic,
        response_checksum_validation=automatic,
    )
    secrets = [server.access_key_id, server.secret_access_key, *account_of(server.endpoint_url or "")]
    try:
        # A session of its own: that of boto3, which all threads share, is not made for them.
        session = boto3.Session(server.access_key_id, server.secret_access_key, region_name=server.region)
        if credentials := session.get_credentials():
            secrets += credentials.get_frozen_credentials()
        client = session.client("s3", endpoint_url=server.endpoint_url, config=config)
    except (ValueError, BotoCoreError, ClientError) as error:
        passes = isinstance(error, _PASSING_ERRORS)
        remedy = "It is tried again." if passes else "Check the S2V_S3_* settings and AWS's own configuration."
        problem = f"S3 client for {server.name}: {redacted(str(error), secrets)}. {remedy}"
        raise (UnavailableError if passes else ConfigurationError)(problem) from None
    if server.checksums == "when_required":
        client.meta.events.register_first("before-sign.s3.DeleteObjects", _sum_as_of_old)
    return Connection(client, tuple(secret for secret in secrets if secret))


def _sum_as_of_old(request: Any, **_: Any) -> None:
    """S3 requires a checksum of this one request; servers that know none of the new ones know Content-MD5."""
    for name in list(request.headers):
        if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum-")):
            del request.headers[name]
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _keep_credentials_out_of_logs() -> None:
    """Have the libraries below say nothing at the level DEBUG, at which they write down headers and signatures."""
    for name in ("boto3", "botocore", "s3transfer", "urllib3"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)
