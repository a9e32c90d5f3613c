"""Settings as the environment gives them."""

import pytest

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.settings import load_settings


@pytest.mark.parametrize("name", ["MAX_COST", "AIRFLOW_URL", "S3_ENDPOINT_URL", "WORK_DIR", "DROP_QUEUE_URL"])
def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whoever fills in a form of variables leaves empty what he has nothing to say about."""
    monkeypatch.setenv(f"S2V_{name}", "")
    assert getattr(load_settings(), name.lower()) is None


def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the variable and what was expected of it."""
    monkeypatch.setenv("S2V_NPROC_PER_NODE", "9")
    with pytest.raises(ConfigurationError, match=r"S2V_NPROC_PER_NODE: .* less than or equal to 8"):
        load_settings()
