"""Check the settings file of the embedded stack."""

from pathlib import Path

import pytest

from s2v_tasks.embedded import stack
from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.process import write_private
from s2v_tasks.settings import load_settings

PLACES = [
    "o'brien",
    'a "b"',
    "a b",
    "${HOME}",
    "$HOME",
    "${",
    "$${HOME}}",
    "#1",
    "x #1",
    "%41",
    "a=b",
    "\\",
    "\\'",
    "\\n",
    "ü 🎬",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_setting_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Quotes, escapes, variables and comment signs in a path are read unchanged."""
    home = tmp_path / place
    home.mkdir()
    write_private(home / "stack.env", f"S2V_SNAPSHOT_PATH={stack._quoted(str(home))}\nS2V_GPU='cpu'\n")
    monkeypatch.setenv("S2V_HOME", str(home))
    load_settings.cache_clear()
    assert (load_settings().snapshot_path, load_settings().gpu) == (home, "cpu")


def test_addresses_and_paths_are_not_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a narrow terminal, `status` prints the addresses of Airflow's form and of the videos, and the paths, whole."""
    home = tmp_path / "a folder"
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(AirflowInstallation, "running", lambda _: ["api-server"])
    monkeypatch.setattr(AirflowInstallation, "health", lambda _: {"scheduler": "healthy"})
    stack.status(home)
    lines = capsys.readouterr().out.splitlines()
    url = AirflowInstallation(home).url
    for line in (
        f"Form:     {url}/dags/speech_to_video",
        f"Videos:   {url}/plugin/videos",
        f"Settings: {home}/stack.env",
        f"Logs:     {home}/logs",
    ):
        assert line in lines


def test_status_creates_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder without an embedded stack, nothing runs, and nothing is written."""
    stack.status(tmp_path / "home")
    assert capsys.readouterr().out.count("stopped") == 3
    assert list(tmp_path.iterdir()) == []
