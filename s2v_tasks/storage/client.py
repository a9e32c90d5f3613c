"""Connect to an S3 server, and keep its credentials out of messages and logs."""

import base64
import hashlib
import html
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote, quote_plus, urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, HTTPClientError
from botocore.loaders import Loader, create_loader

from s2v_tasks.errors import ConfigurationError, UnavailableError

# The request for the credentials of a pod, an instance or a role failed: it may succeed later.
_PASSING_ERRORS = (ClientError, CredentialRetrievalError, HTTPClientError)
Checksums = Literal["always", "when_required"]
HIDDEN = "***"
_SHORT = 8  # a shorter secret may be part of a normal word: it is hidden only as a separate word
_PATTERNS = (
    # An invalid header value may be the whole Authorization, or a session token.
    (re.compile(r"(Invalid header (?:value|name)).*", re.DOTALL | re.IGNORECASE), rf"\1 {HIDDEN}"),
    # The account before the host of a URL, and its query, which may hold a signature.
    (re.compile(r"(\w+://)[^/@\s\"'<>]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(\w+://[^?\s\"'<>]+)\?[^\s\"'<>]+"), rf"\1?{HIDDEN}"),
    # In headers and queries: `Signature=0f3a`, `"X-Amz-Security-Token": "..."`, `<AWSAccessKeyId>...`.
    (
        re.compile(
            r"((?:X-Amz-)?(?:Credential|Signature(?:Provided)?|Security-?Token)|(?:AWS)?AccessKeyId|SecretAccessKey"
            r"|StringToSign(?:Bytes)?|CanonicalRequest(?:Bytes)?)"
            r"(['\"]?\s*(?:[=:>]|%3D)\s*b?['\"]?)[^\s,&;'\"<>]+",
            re.IGNORECASE,
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"(Authorization['\"]?\s*[=:>]\s*b?)('[^']*'|\"[^\"]*\"|[^\r\n]*)", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{8,}\b"), HIDDEN),
)


@dataclass(frozen=True)
class Server:
    """The address of an S3 server and the options for it. Without credentials the usual AWS chain applies."""

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    checksums: Checksums = "always"

    @property
    def name(self) -> str:
        """Return the name of the server for messages."""
        return without_account(self.endpoint_url) if self.endpoint_url else f"AWS {self.region}"

    @property
    def is_on_loopback(self) -> bool:
        """Return True if the server runs on this machine, so that no proxy is used."""
        try:
            return urlsplit(self.endpoint_url or "").hostname in {"127.0.0.1", "localhost", "::1"}
        except ValueError:  # no URL: the client reports it
            return False


@dataclass(frozen=True)
class Connection:
    """A client of a server, and the secrets to remove from messages."""

    client: Any
    secrets: tuple[str, ...] = field(repr=False)


def connect(server: Server) -> Connection:
    """Return a client of the server; no request is sent to it yet."""
    _keep_credentials_out_of_logs()
    automatic = "when_supported" if server.checksums == "always" else "when_required"
    config = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": 4},
        connect_timeout=10,
        read_timeout=60,
        proxies={} if server.is_on_loopback else None,
        # Path-style addresses for an endpoint URL, virtual-hosted ones at AWS, whatever AWS's own file says.
        s3={"addressing_style": "auto"},
        request_checksum_calculation=automatic,
        response_checksum_validation=automatic,
    )
    secrets = [server.access_key_id, server.secret_access_key, *account_of(server.endpoint_url or "")]
    try:
        # A separate session, because the default session of boto3 is not thread-safe.
        base = botocore.session.Session()
        models = service_models(base.get_config_variable("data_path"))
        base.register_component("data_loader", models)
        session = boto3.Session(
            server.access_key_id, server.secret_access_key, region_name=server.region, botocore_session=base
        )
        models.search_paths[:] = dict.fromkeys(models.search_paths)  # each session adds the folder of boto3
        if credentials := session.get_credentials():
            secrets += credentials.get_frozen_credentials()
        client = session.client("s3", endpoint_url=server.endpoint_url, config=config)
    except (ValueError, BotoCoreError, ClientError) as error:
        passes = isinstance(error, _PASSING_ERRORS)
        remedy = "It is tried again." if passes else "Check the S2V_S3_* settings and AWS's own configuration."
        problem = f"S3 client for {server.name}: {redacted(str(error), secrets)}. {remedy}"
        raise (UnavailableError if passes else ConfigurationError)(problem) from None
    client.meta.events.register_last("before-parameter-build", _no_sum_of_a_part)
    if server.checksums == "when_required":
        client.meta.events.register_first("before-sign.s3.DeleteObjects", _sum_as_of_old)
    return Connection(client, tuple(secret for secret in secrets if secret))


@lru_cache
def service_models(path: str | None) -> Loader:
    """Return a loader of the descriptions of AWS services. It caches them, because parsing is slow."""
    return create_loader(path)


def _no_sum_of_a_part(params: dict[str, Any], **_: Any) -> None:
    """Ask for no checksum of a range or of a 304, because some servers send that of the whole object."""
    if "Range" in params or "IfNoneMatch" in params:
        params.pop("ChecksumMode", None)


def _sum_as_of_old(request: Any, **_: Any) -> None:
    """Replace the checksum that S3 requires of this request by Content-MD5, which older servers support."""
    for name in list(request.headers):
        if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum-")):
            del request.headers[name]
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _keep_credentials_out_of_logs() -> None:
    """Switch off the DEBUG level of the S3 libraries, at which they log headers and signatures."""
    for name in ("boto3", "botocore", "s3transfer", "urllib3"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)


def redacted(text: str, secrets: Iterable[str | None] = ()) -> str:
    """Return `text` on one line, without the secrets in any encoding and without signatures."""
    for form in sorted({form for secret in secrets if secret for form in _forms(secret)}, key=len, reverse=True):
        alone = len(form) < _SHORT
        pattern = re.escape(form)
        text = re.sub(rf"(?<![\w.-]){pattern}(?![\w.-])" if alone else pattern, HIDDEN, text)
    for found, instead in _PATTERNS:
        text = found.sub(instead, text)
    return " ".join(text.split())


def without_account(url: str) -> str:
    """Return a URL for messages: without user and password before the host, and without a query."""
    scheme, separator, rest = url.partition("://")
    _, at, place = rest.rpartition("@")
    place = place.partition("?")[0]
    return f"{scheme}{separator}{HIDDEN}@{place}" if at else f"{scheme}{separator}{place}"


def account_of(url: str) -> list[str]:
    """Return user and password before the host of a URL."""
    account, at, _ = url.partition("://")[2].rpartition("@")
    return [account, *account.split(":", 1)] if at else []


def _forms(secret: str) -> Iterator[str]:
    """Yield the secret in all encodings that may occur in texts."""
    for plain in {secret, secret.strip()} - {""}:
        data = plain.encode(errors="surrogateescape")
        yield plain
        yield from (quote(data), quote(data, safe=""), quote_plus(data))
        yield from (repr(plain)[1:-1], repr(data)[2:-1], json.dumps(plain)[1:-1], html.escape(plain))
        yield data.hex()
        for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
            yield encoded.decode()
            yield encoded.decode().rstrip("=")
