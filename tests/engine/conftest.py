"""The tiny snapshot, written once for all engine tests."""

from pathlib import Path

import pytest

from s2v_tasks.engine.tiny_snapshot import write_tiny_snapshot

# Their tests start processes that find each other by gloo. Now and then it refuses the first connection between two of
# them (2 of 10 starts on a busy machine), before any code under test has run: such a test starts again. In production
# it is a TransientError, and Airflow starts the clip again.
_WITH_RANKS = {
    "test_bench_load",
    "test_options",
    "test_parallel",
    "test_parallel_codec",
    "test_sharded_loading",
    "test_render_processes",
    "test_worker",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem in _WITH_RANKS:
            item.add_marker(pytest.mark.flaky(reruns=3))


@pytest.fixture(scope="session")
def tiny_snapshot_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny snapshot that tests must not change."""
    path = tmp_path_factory.mktemp("snapshots") / "tiny"
    write_tiny_snapshot(path, seed=0)
    return path
