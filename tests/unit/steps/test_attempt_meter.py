"""The meter of an attempt runs while the work does."""

import threading
import time

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.attempts import CONDITIONS
from s2v_tasks.metadata.repository import Ledger
from s2v_tasks.settings import load_settings
from s2v_tasks.steps import attempt_meter
from s2v_tasks.steps.attempt_meter import metered
from s2v_tasks.steps.context import open_context


def test_gpu_seconds_are_on_record_while_the_work_goes_on(
    postgres_url: str, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They grow, and when the work is over nobody writes any more."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    monkeypatch.setattr(attempt_meter, "BEAT_SECONDS", 0.02)
    ledger = Ledger(engine)
    ledger.job_queued("job-1", {})

    def seconds() -> float:
        job = ledger.job("job-1")
        assert job is not None
        return job.attempts[0].gpu_seconds or 0.0

    def grows(above: float) -> float:
        deadline = time.monotonic() + 10
        while (found := seconds()) <= above and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found > above
        return found

    with open_context("job-1", load_settings()) as ctx:
        ctx.ledger.conditions_started("job-1")
        with metered(ctx, CONDITIONS):
            grows(grows(0.0))
        assert "attempt-meter" not in [thread.name for thread in threading.enumerate()]
