"""The connection to an S3 server."""

from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.storage.failures import CREDENTIAL_ERRORS

_connecting = Lock()  # boto3's clients may be used by many threads, but not made by them


def connect(endpoint_url: str | None, region: str, access_key_id: str | None, secret_access_key: str | None) -> Any:
    """A client of the server at `endpoint_url` (None: AWS); nothing is contacted yet."""
    loopback = urlsplit(endpoint_url or "").hostname in {"127.0.0.1", "localhost", "::1"}
    config = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": 4},
        connect_timeout=10,
        read_timeout=60,
        proxies={} if loopback else None,
        s3={"addressing_style": "path" if endpoint_url else "auto"},
    )
    try:
        with _connecting:
            return boto3.client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region,
                aws_access_key_id=access_key_id,
                aws_secret_access_key=secret_access_key,
                config=config,
            )
    except (ValueError, *CREDENTIAL_ERRORS) as error:
        raise ConfigurationError(
            f"S3 client for {endpoint_name(endpoint_url, region)}: {error}. Check the S2V_S3_* settings."
        ) from error


def endpoint_name(endpoint_url: str | None, region: str) -> str:
    """The server as messages call it."""
    return endpoint_url or f"AWS {region}"
