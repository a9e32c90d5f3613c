"""Check the producer in manifests."""

import pytest

import s2v_tasks
from s2v_tasks.settings import load_settings
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
