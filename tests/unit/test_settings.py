"""Check settings from the environment."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.settings import load_settings


@pytest.mark.parametrize("name", ["MAX_COST", "AIRFLOW_URL", "S3_ENDPOINT_URL", "WORK_DIR", "DROP_QUEUE_URL"])
def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An empty variable has the default of its setting."""
    monkeypatch.setenv(f"S2V_{name}", "")
    assert getattr(load_settings(), name.lower()) is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("NPROC_PER_NODE", "9", "less than or equal to 8"),
        ("MAX_CLIPS", "many", "valid integer"),
        ("EXECUTION", "k8s", "'local' or 'kubernetes'"),
        ("COMPILE", "perhaps", "valid boolean"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str) -> None:
    """The message has the variable, the value and the expectation."""
    monkeypatch.setenv(f"S2V_{name}", value)
    with pytest.raises(ConfigurationError, match=rf"S2V_{name} is '{value}': .*{expected}"):
        load_settings()


@pytest.mark.parametrize(
    "url",
    [
        "admin:planted@airflow", "https://admin:planted@airflow.example.org", "https://planted@airflow.example.org",
        "https://airflow.example.org/?token=planted",
    ],
)  # fmt: skip
def test_a_bad_text_is_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """An address of Airflow with a password is refused: the message has only the variable and the expectation."""
    monkeypatch.setenv("S2V_AIRFLOW_URL", url)
    with pytest.raises(ConfigurationError, match=r"S2V_AIRFLOW_URL: .*https") as caught:
        load_settings()
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("before", ["", " ", "\r\n", "\ufeff", "\t\ufeff "])
@pytest.mark.parametrize("after", ["\n", "\r\n", " \u00a0", "\u200b\n"])
def test_white_space_around_a_value_is_removed(monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    """The line end of a secret from a file is removed, as from texts, paths, numbers and switches."""
    values = {
        "S3_ACCESS_KEY_ID": "AKIA",
        "S3_SECRET_ACCESS_KEY": "two words",
        "WORK_DIR": "/scratch/a b",
        "MAX_CLIPS": "7",
        "LOG_LEVEL": "DEBUG",
        "COMPILE": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"S2V_{name}", before + value + after)
    settings = load_settings()
    assert (settings.s3_access_key_id, settings.s3_secret_access_key) == ("AKIA", SecretStr("two words"))
    assert (settings.work_dir, settings.max_clips) == (Path("/scratch/a b"), 7)
    assert (settings.log_level, settings.compile) == ("DEBUG", True)


@pytest.mark.parametrize("value", [" ", "\n", "\ufeff\r\n"])
def test_a_value_of_white_space_alone_is_not_set(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A value of white space, such as a secret from an empty file, has the default."""
    monkeypatch.setenv("S2V_S3_SECRET_ACCESS_KEY", value)
    monkeypatch.setenv("S2V_S3_REGION", value)
    assert load_settings().s3_secret_access_key is None
    assert load_settings().s3_region == "us-east-1"


@pytest.mark.parametrize("name", ["S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "DATABASE_URL", "DATA_URI", "WORK_DIR"])
@pytest.mark.parametrize("inside", ["\n", "\r\n", "\x1b", "\t"])
def test_a_control_character_inside_a_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, inside: str) -> None:
    """A value of two lines is refused with the name of the variable and without the value."""
    monkeypatch.setenv(f"S2V_{name}", f"planted{inside}secret")
    with pytest.raises(
        ConfigurationError, match=rf"S2V_{name}: .*control character inside; expected one line"
    ) as caught:
        load_settings()
    assert "planted" not in str(caught.value)
    assert "secret" not in str(caught.value).replace(f"S2V_{name}", "")


def test_the_home_folder_is_found_with_a_line_end_behind_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings file of the embedded stack is found below a home with a line end, and its values are stripped."""
    (tmp_path / "stack.env").write_text("S2V_S3_REGION=' eu-west-3 '\n", encoding="utf-8")
    monkeypatch.setenv("S2V_HOME", f"{tmp_path}\n")
    settings = load_settings()
    assert (settings.home, settings.s3_region) == (tmp_path, "eu-west-3")


@pytest.mark.parametrize(
    ("name", "value", "is_read"),
    [
        ("DATA_URI", "s3://other", True),
        ("DATABASE_URL", "postgresql://me@127.0.0.1:2000/other", True),
        ("DATABASE_URL", "postgresql://s2v:p@db.example.com/s2v", False),
        ("S3_ENDPOINT_URL", "https://s3.example.com", False),
        ("S3_ENDPOINT_URL", "https://[", False),
    ],
)
def test_settings_of_the_embedded_stack_do_not_complete_those_of_other_servers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, is_read: bool
) -> None:
    """Its file is not read if the environment has another database server or S3 server."""
    written = {"DATABASE_URL": "postgresql://s2v:p@127.0.0.1:2000/s2v", "S3_ENDPOINT_URL": "http://127.0.0.1:2001"}
    lines = [f"S2V_{key}='{text}'\n" for key, text in {**written, "S3_ACCESS_KEY_ID": "embedded"}.items()]
    (tmp_path / "stack.env").write_text("".join(lines))
    monkeypatch.setenv("S2V_HOME", str(tmp_path))
    monkeypatch.setenv(f"S2V_{name}", value)
    assert load_settings().s3_access_key_id == ("embedded" if is_read else None)


@pytest.mark.parametrize(
    ("image", "is_one"),
    [
        ("registry.example.com:5000/team/s2v-engine:0.1.0", True),
        (f"s2v-engine@sha256:{'a' * 64}", True),
        (f"s2v-engine:0.1.0@sha256:{'a' * 64}", True),
        ("registry.example.com/s2v-engine", False),
        ("s2v-engine@sha256:abc", False),
        ("S2V:1", False),
    ],
)
def test_an_engine_image_has_a_tag_or_a_digest(monkeypatch: pytest.MonkeyPatch, image: str, is_one: bool) -> None:
    """An image without tag and digest is refused, because it could change between pods."""
    monkeypatch.setenv("S2V_ENGINE_IMAGE", image)
    if is_one:
        assert load_settings().engine_image == image
        return
    with pytest.raises(ConfigurationError, match="is not an image with a tag or a digest; expected registry/name:tag"):
        load_settings()
