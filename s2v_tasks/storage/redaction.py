"""Remove credentials and signatures from texts of the S3 client, of an HTTP library or of a server."""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

HIDDEN = "***"
_SHORT = 8  # a secret of fewer characters may be part of a plain word: it is hidden where it stands alone

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


def redacted(text: str, secrets: Iterable[str | None] = ()) -> str:
    """Return `text` on one line, without the secrets in any encoding, and without anything like a signature."""
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
    """Yield the secret in the encodings that texts may have it in."""
    for plain in {secret, secret.strip()} - {""}:
        data = plain.encode(errors="surrogateescape")
        yield plain
        yield from (quote(data), quote(data, safe=""), quote_plus(data))
        yield from (repr(plain)[1:-1], repr(data)[2:-1], json.dumps(plain)[1:-1], html.escape(plain))
        yield data.hex()
        for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
            yield encoded.decode()
            yield encoded.decode().rstrip("=")
