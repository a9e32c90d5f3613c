"""Check which objects an installation may read and write."""

import pytest

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.settings import Settings
from s2v_tasks.storage.locations import AccessPolicy, parse_uri, printable

SETTINGS = Settings(
    data_uri="s3://data/s2v",
    output_uri="s3://videos",
    drop_uri="s3://drops/here",
    allowed_input_uris="s3://press/portraits/, s3://archive",
)


@pytest.mark.parametrize(
    ("uri", "named_in_a_request", "written"),
    [
        ("s3://data/s2v/uploads/a.png", True, True),
        ("s3://data/s2v", True, True),
        ("s3://data/s2v-evil/a.png", False, False),
        ("s3://data/a.png", False, False),
        ("s3://drops/here/incoming/talk/a.png", True, True),
        ("s3://videos/talk.mp4", False, True),
        ("s3://press/portraits/a.png", True, False),
        ("s3://press/portraits.png", False, False),
        ("s3://archive/any/where.png", True, False),
        ("s3://archive.evil/a.png", False, False),
    ],
)
def test_a_place_is_compared_by_whole_segments(uri: str, named_in_a_request: bool, written: bool) -> None:
    """Requests may name files below the data, the drop folder and allowed places; writes go to our own places only."""
    policy = AccessPolicy.from_settings(SETTINGS)
    for check, allowed in ((policy.check_input, named_in_a_request), (policy.check_write, written)):
        if allowed:
            check(parse_uri(uri))
        else:
            with pytest.raises(PermanentError, match=f"{uri} may not be"):
                check(parse_uri(uri))


def test_the_default_keeps_requests_to_the_own_bucket() -> None:
    """By default a request may name files in the data bucket and its drop folder, and nothing else."""
    policy = AccessPolicy.from_settings(Settings())
    policy.check_input(parse_uri("s3://s2v/samples/portrait.jpg"))
    policy.check_input(parse_uri("s3://s2v/drop/incoming/a/image.png"))
    with pytest.raises(PermanentError, match=r"below s3://s2v, s3://s2v/drop; .*S2V_ALLOWED_INPUT_URIS"):
        policy.check_input(parse_uri("s3://elsewhere/a.png"))


@pytest.mark.parametrize(
    "key",
    [
        "s2v/../secret",
        "../s2v/a",
        "s2v/./a",
        "/s2v/a",
        "s2v//a",
        "s2v/..",
        "s2v/a\\b",
        "s2v/a\0b",
        "s2v/\ud800",
        "s2v/" + "é" * 511,
    ],
)
def test_names_that_a_store_could_resolve_elsewhere_are_refused(key: str) -> None:
    """Dot segments, empty segments, invalid text and names that are too long are refused before any request."""
    policy = AccessPolicy.from_settings(SETTINGS)
    for check in (policy.check_read, policy.check_input, policy.check_write):
        with pytest.raises(PermanentError, match="is refused: its name"):
            check(parse_uri(f"s3://data/{key}"))


@pytest.mark.parametrize("uri", ["http://data/a", "file:///etc/passwd", "s3://", "s3:///a", "s3://UPPER/a", "s3://a/b"])
def test_an_invalid_s3_uri_is_refused(uri: str) -> None:
    """Only s3:// URIs with a valid bucket are accepted."""
    with pytest.raises(PermanentError, match="is not an S3 address"):
        parse_uri(uri)


@pytest.mark.parametrize("setting", ["data_uri", "output_uri", "drop_uri", "allowed_input_uris"])
def test_an_invalid_trusted_place_is_a_configuration_error(setting: str) -> None:
    """A trusted place must be a bucket or a plain prefix in one; the message names the setting."""
    for uri in ("bucket", "s3://data/../a", "https://host/a"):
        with pytest.raises(ConfigurationError, match=f"S2V_{setting.upper()} "):
            AccessPolicy.from_settings(SETTINGS.model_copy(update={setting: uri}))


def test_a_name_in_a_message_stays_on_its_line() -> None:
    """Control and invisible characters are shown as escapes, and letters of any script as they are."""
    assert printable("a\nERROR b\x1b[2J\u202e é🎬") == "a\\nERROR b\\x1b[2J\\u202e é🎬"
