"""A step that died without a word has its reason on record all the same."""

import pytest

from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.steps import close_job, record_failure
from s2v_tasks.steps.context import open_context


def test_the_reason_of_a_dead_step_becomes_the_reason_of_its_job(
    s3_settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`record-failure` notes it, `close-job` makes it the job's."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    with open_context("my-job", load_settings()) as context:
        context.ledger.job_queued("my-job", {})
        context.ledger.job_started("my-job")
        record_failure.run(context, step="encode-conditions", clip_index=None, reason="The pod ran out of memory.")
        closed = close_job.run(context)
    assert closed == {"status": "failed", "reason": "encode_conditions: The pod ran out of memory."}
