"""What an installation lacks is said before a job spends anything."""

from pathlib import Path

import pytest

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.settings import Settings
from s2v_tasks.steps.requirements import check_requirements
from s2v_tasks.storage.s3 import ObjectStore


def test_a_complete_installation_passes(settings: Settings, store: ObjectStore) -> None:
    """Buckets, tools, configuration and snapshot are there."""
    check_requirements(settings, store)


def test_everything_that_is_missing_is_named_at_once_with_its_remedy(settings: Settings, tmp_path: Path) -> None:
    """No snapshot, no output bucket and an unknown GPU: one error with a sentence for each."""
    missing = {"snapshot_path": tmp_path, "output_uri": "s3://no-such-bucket/videos", "gpu": "abacus"}
    poor = settings.model_copy(update=missing)
    with pytest.raises(ConfigurationError) as caught:
        check_requirements(poor, ObjectStore.from_settings(poor))
    said = str(caught.value)
    assert f"S2V_SNAPSHOT_PATH is {tmp_path}: expected the folder with the model weights" in said
    assert "bucket 'no-such-bucket' does not exist; create it or correct S2V_DATA_URI and S2V_OUTPUT_URI" in said
    assert "S2V_GPU='abacus' is not an entry" in said


def test_a_worker_that_renders_in_pods_needs_no_snapshot(settings: Settings, store: ObjectStore) -> None:
    """The weights are on a volume of the pods."""
    check_requirements(settings.model_copy(update={"snapshot_path": None, "execution": "kubernetes"}), store)
