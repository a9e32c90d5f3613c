"""A job of one clip, ready to be joined, muxed, validated and published."""

from collections.abc import Iterator

import pytest

from s2v_tasks.runtime.context import StepContext, open_context
from s2v_tasks.schemas.request import Request
from s2v_tasks.settings import Settings, load_settings
from tests.integration.steps.assembly import PLAN, moving_frames, render, speech, stage


@pytest.fixture
def job(s3_settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepContext]:
    """A running job with a plan, staged speech and one rendered clip."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    request = Request(
        image_uri="s3://s2v/portrait.png", audio_uri="s3://s2v/speech.wav", prompt="A person speaks.",
        webhook_url="https://hooks.example.com/secret",
    )  # fmt: skip
    with open_context("my-job", load_settings()) as context:
        context.metadata.jobs.enqueue("my-job", {})
        context.metadata.jobs.start("my-job")
        context.store.put_bytes(context.layout.request, request.model_dump_json().encode(), "application/json")
        context.store.put_bytes(context.layout.plan, PLAN.model_dump_json().encode(), "application/json")
        stage(context, speech())
        render(context, moving_frames())
        yield context
