"""Takes credentials and signatures out of texts that others wrote: the S3 client, an HTTP library, a server."""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

HIDDEN = "***"
_SHORT = 8  # a secret of fewer characters may be part of a plain word: it is hidden where it stands alone

_PATTERNS = (
    # The value of a header that cannot be sent is the whole Authorization, or a session token.
    (re.compile(r"(Invalid header (?:value|name)).*", re.DOTALL | re.IGNORECASE), rf"\1 {HIDDEN}"),
    # Of a URL, the account before the host and the query, which signs it.
    (re.compile(r"(\w+://)[^/@\s\"'<>]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(\w+://[^?\s\"'<>]+)\?[^\s\"'<>]+"), rf"\1?{HIDDEN}"),
    # Of a header or a query: `Signature=0f3a`, `"X-Amz-Security-Token": "..."`, `<AWSAccessKeyId>...`.
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
    """`text` on one line, without the secrets, in whatever form, and without what looks like a signature."""
    for form in sorted({form for secret in secrets if secret for form in _forms(secret)}, key=len, reverse=True):
        alone = len(form) < _SHORT
        pattern = re.escape(form)
        text = re.sub(rf"(?<![\w.-]){pattern}(?![\w.-])" if alone else pattern, HIDDEN, text)
    for found, instead in _PATTERNS:
        text = found.sub(instead, text)
    return " ".join(text.split())


def without_account(url: str) -> str:
    """A URL as it may be shown: without user and password before the host, and without a query."""
    scheme, separator, rest = url.partition("://")
    _, at, place = rest.rpartition("@")
    place = place.partition("?")[0]
    return f"{scheme}{separator}{HIDDEN}@{place}" if at else f"{scheme}{separator}{place}"


def account_of(url: str) -> list[str]:
    """User and password that a URL names before its host."""
    account, at, _ = url.partition("://")[2].rpartition("@")
    return [account, *account.split(":", 1)] if at else []


def _forms(secret: str) -> Iterator[str]:
    """How a text may hold a secret: as it is, and as programs write it down."""
    for plain in {secret, secret.strip()} - {""}:
        data = plain.encode(errors="surrogateescape")
        yield plain
        yield from (quote(data), quote(data, safe=""), quote_plus(data))
        yield from (repr(plain)[1:-1], repr(data)[2:-1], json.dumps(plain)[1:-1], html.escape(plain))
        yield data.hex()
        for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
            yield encoded.decode()
            yield encoded.decode().rstrip("=")
