"""The embedded services, once for all integration tests: PostgreSQL, S3, the tiny snapshot."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from s2v_tasks.embedded.stack import Services
from s2v_tasks.settings import Settings, load_settings


@pytest.fixture(scope="session")
def stack_home() -> Iterator[Path]:
    """Home folder with running services. As root PostgreSQL runs as another account, which must reach the folder."""
    home = Path(tempfile.mkdtemp(prefix="s2v-stack-"))
    home.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, home)
        patch.setenv("S2V_HOME", str(home))
        load_settings.cache_clear()
        cleanup.enter_context(Services(home).in_use())
        patch.undo()
        yield home


@pytest.fixture
def stack(stack_home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of the running services, for this process and its children."""
    monkeypatch.setenv("S2V_HOME", str(stack_home))
    load_settings.cache_clear()
    return load_settings()
