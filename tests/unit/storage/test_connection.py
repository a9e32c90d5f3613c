"""Check the options of a connection to an S3 server, without a request."""

from pathlib import Path

import pytest

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.storage.client import Server, connect


@pytest.mark.parametrize(
    ("endpoint_url", "link"),
    [
        ("https://s3.example.com", "https://s3.example.com/films/a.mp4?"),
        (None, "https://films.s3.amazonaws.com/a.mp4?"),
    ],
)
@pytest.mark.parametrize("style", ["auto", "path", "virtual"])
def test_only_at_aws_the_bucket_is_part_of_the_host(
    style: str, endpoint_url: str | None, link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server behind an endpoint URL need not know names of buckets in the host, whatever AWS's own file says."""
    (tmp_path / "config").write_text(f"[default]\ns3 =\n  addressing_style = {style}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    server = Server(endpoint_url, access_key_id="id", secret_access_key="key")
    made = connect(server).client.generate_presigned_url("get_object", Params={"Bucket": "films", "Key": "a.mp4"})
    assert made.startswith(link)


def test_a_connection_ends_its_waits_and_tries() -> None:
    """A server has ten seconds to accept a connection and a minute to answer, and is asked four times."""
    config = connect(Server("http://127.0.0.1:9", access_key_id="id", secret_access_key="key")).client.meta.config
    assert (config.connect_timeout, config.read_timeout) == (10, 60)
    assert config.retries == {"mode": "standard", "total_max_attempts": 4}


@pytest.mark.parametrize(
    ("endpoint_url", "is_on_loopback"),
    [
        ("http://127.0.0.1:9000", True),
        ("http://localhost:9000", True),
        ("http://[::1]:9000", True),
        ("https://s3.example.com", False),
        ("http://[", False),
        (None, False),
    ],
)
def test_a_server_on_this_machine_is_known_by_its_host(endpoint_url: str | None, is_on_loopback: bool) -> None:
    """Loopback is recognised by number or name; AWS and a wrong URL are elsewhere."""
    assert Server(endpoint_url).is_on_loopback is is_on_loopback


def test_a_connection_shows_no_credentials() -> None:
    """Neither key is part of the text of a server or of a connection, as tracebacks show them."""
    server = Server("http://127.0.0.1:9", access_key_id="planted-id", secret_access_key="planted-key")
    assert "planted" not in repr(server) + repr(connect(server))


def test_an_address_that_cannot_be_used_is_a_wrong_setting() -> None:
    """The message names the settings; nothing is tried again."""
    with pytest.raises(ConfigurationError, match=r"http://a b.* Check the S2V_S3_\* settings and AWS's own"):
        connect(Server("http://a b", access_key_id="id", secret_access_key="key"))
