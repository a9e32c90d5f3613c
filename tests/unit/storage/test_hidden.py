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
        ("https://us/er:p@ss@[::1", "https://***@[::1"),
        ("no URL", "no URL"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
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
    "written",
    [
        r'planted\\key "ä" <&',  # repr of text
        r'planted\\key "\xc3\xa4" <&',  # repr of bytes
        r"planted\\key \"\u00e4\" <&",  # JSON
        r"planted\key &quot;ä&quot; &lt;&amp;",
        r"planted%5Ckey%20%22%C3%A4%22%20%3C%26",
        "planted%5Ckey+%22%C3%A4%22+%3C%26",
    ],
)
def test_a_secret_is_hidden_as_a_message_writes_it(written: str) -> None:
    """A secret with quotes, backslashes and letters of other alphabets is hidden as it is quoted, in any text."""
    assert redacted(f"key={written}&next", ['planted\\key "ä" <&']) == "key=***&next"


def test_a_secret_with_a_line_end_is_hidden_with_and_without_it() -> None:
    """The base64 of a secret read from a file holds the line end of the file."""
    for text in ("planted-key", "planted-key\n"):
        assert redacted(base64.b64encode(text.encode()).decode(), ["planted-key\n"]) == "***"


@pytest.mark.parametrize(("secret", "shown"), [("abcdefgh", "x***y"), ("abcdefg", "xabcdefgy")])
def test_only_a_long_secret_is_hidden_inside_a_word(secret: str, shown: str) -> None:
    """A secret of fewer than eight letters may be part of a normal word."""
    assert redacted(f"x{secret}y", [secret]) == shown
    assert redacted(f"x {secret} y", [secret]) == "x *** y"


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
