"""Check that messages contain no accounts and secrets."""

import base64

import pytest

from s2v_tasks.storage.client import _forms, account_of, redacted, without_account


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://s3.example.com:9000/path", "https://s3.example.com:9000/path"),
        ("https://s3.example.com/path?X-Amz-Signature=abc", "https://s3.example.com/path"),
        ("https://key:secret@s3.example.com/path?x=1", "https://***@s3.example.com/path"),
        ("https://key:p@ss@s3.example.com", "https://***@s3.example.com"),
    ],
)
def test_a_url_is_shown_without_its_account_and_query(url: str, shown: str) -> None:
    """The host of a URL stays visible."""
    assert without_account(url) == shown


def test_user_and_password_are_secrets_alone_and_together() -> None:
    """User and password are hidden, alone and together."""
    assert account_of("https://key:sec:ret@s3.example.com") == ["key:sec:ret", "key", "sec:ret"]
    assert account_of("https://s3.example.com") == []


@pytest.mark.parametrize("secret", ["a+b/c d", "x", "four", "five5", "~~~???"])
def test_a_secret_is_known_in_every_encoding(secret: str) -> None:
    """A secret is hidden in each encoding, also in base64 without padding."""
    encoded = base64.b64encode(secret.encode()).decode()
    for_urls = base64.urlsafe_b64encode(secret.encode()).decode()
    known = set(_forms(f"{secret}\n"))
    assert {secret, encoded, encoded.rstrip("="), for_urls, for_urls.rstrip("="), secret.encode().hex()} <= known


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://host/a.wav?sig=ab12&x=1 failed", "GET https://host/a.wav?*** failed"),
        ("'http://host:9000/?token=ab12'", "'http://host:9000/?***'"),
        ("https://me:ab12@host/a", "https://***@host/a"),
        ("Is it there? Ask https://host/a", "Is it there? Ask https://host/a"),
    ],
)
def test_the_query_of_a_url_in_a_message_is_hidden(text: str, shown: str) -> None:
    """Any parameter may be a signature, so the whole query is hidden; the path stays."""
    assert redacted(text) == shown
