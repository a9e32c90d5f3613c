"""Check the producer in manifests."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import s2v_tasks
from s2v_tasks.settings import load_settings
from s2v_tasks.storage import artifacts
from s2v_tasks.storage.artifacts import producer


def test_the_producer_is_this_package() -> None:
    """The producer has the version of the package."""
    assert producer().package_version == s2v_tasks.__version__


def test_the_producer_names_revision_and_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git revision and image digest of the settings, which images and pods state, are in the manifests."""
    monkeypatch.setenv("S2V_GIT_REVISION", "0123abcd")
    monkeypatch.setenv("S2V_IMAGE_DIGEST", f"sha256:{64 * 'e'}")
    load_settings.cache_clear()
    producer.cache_clear()
    try:
        found = producer()
    finally:
        producer.cache_clear()
    assert (found.git_revision, found.image_digest) == ("0123abcd", f"sha256:{64 * 'e'}")


@pytest.mark.parametrize(
    ("answer", "revision"),
    [
        ("0123abcd\n", "0123abcd"),
        ("", None),
        (FileNotFoundError("no git"), None),
        (subprocess.TimeoutExpired("git", 10), None),
    ],
    ids=["known", "no commit", "no git", "slow disk"],
)
def test_the_revision_is_that_of_the_checkout_if_git_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | Exception, revision: str | None
) -> None:
    """A machine without git makes videos, too; outside a checkout git is not asked."""
    commands = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(artifacts.subprocess, "run", run)
    monkeypatch.setattr(s2v_tasks, "__file__", str(tmp_path / "s2v_tasks" / "__init__.py"))
    assert artifacts._revision_of_checkout() is None
    assert commands == []
    (tmp_path / ".git").mkdir()
    assert artifacts._revision_of_checkout() == revision
    assert commands == [["git", "-C", str(tmp_path), "rev-parse", "HEAD"]]
