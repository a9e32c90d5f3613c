"""Check that a job id belongs to one request, for steps by hand, Airflow and the demo."""

import importlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from s2v_tasks.errors import JobTakenError
from s2v_tasks.metadata.ingestion import NewRow
from s2v_tasks.metadata.queue import NewJob
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.runtime.context import run_step
from s2v_tasks.schemas.steps import CLOSE_JOB, STAGE_INPUTS
from s2v_tasks.settings import Settings
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

JOB = "step-by-step"
Run = Callable[..., dict[str, Any]]
Found = Callable[[], Job]


def stage(request_json: str, run_id: str | None = None) -> dict[str, Any]:
    body = importlib.import_module("s2v_tasks.steps.stage_inputs").run
    return run_step(body, step=STAGE_INPUTS, job_id=JOB, request_json=request_json, run_id=run_id)


def close(run_id: str | None) -> dict[str, Any]:
    body = importlib.import_module("s2v_tasks.steps.close_job").run
    return run_step(body, step=CLOSE_JOB, job_id=JOB, run_id=run_id)


@pytest.mark.parametrize("outcome", ["running", "succeeded"])
def test_another_request_leaves_a_job_as_it_is(
    run: Run, metadata: MetadataStore, store: ObjectStore, found: Found, outcome: str
) -> None:
    """Another request is refused with its different fields; the job does not change, and the refusal is an event."""
    run("stage_inputs")
    if outcome == "succeeded":
        metadata.jobs.succeed(JOB, "s3://out/x.mp4", "ab" * 32)
    before, request = found(), store.get_bytes(JobLayout(JOB).request)
    with pytest.raises(JobTakenError, match=r"other values of base_seed, prompt: .*s2v rerun step-by-step") as refused:
        run("stage_inputs", prompt="Something else.", base_seed=8)
    assert refused.value.exit_code == 65
    assert refused.value.is_recorded  # Airflow must not store it as a failure of the job
    after = found()
    assert (after.status, after.reason, after.request, after.exit_code) == (
        outcome, None, before.request, before.exit_code,
    )  # fmt: skip
    assert after.events[-1].event == "request_refused"
    assert store.get_bytes(JobLayout(JOB).request) == request
    run("stage_inputs")  # the same request again continues


def test_a_malformed_request_leaves_a_running_job_as_it_is(run: Run, found: Found) -> None:
    """Text that is not JSON, and a request with a bad field, are refused without a change of the job."""
    run("stage_inputs")
    for text in ("{", json.dumps({"size": "1*1"})):
        with pytest.raises(JobTakenError):
            stage(text)
        assert found().status == "running"


def test_a_failed_job_may_be_corrected(run: Run, metadata: MetadataStore, found: Found) -> None:
    """A failed or cancelled job may be started with another request."""
    run("stage_inputs")
    metadata.jobs.fail(JOB, "The prompt was wrong.")
    run("stage_inputs", prompt="Second.")
    metadata.jobs.cancel(JOB)
    run("stage_inputs", prompt="Third.")
    assert (found().request or {})["prompt"] == "Third."


def test_a_run_that_was_refused_does_not_close_the_job(
    request_json: Callable[..., str], metadata: MetadataStore, found: Found
) -> None:
    """The last task of a refused run reports `not run`; the job's own run closes the job."""
    stage(request_json(), "first")
    with pytest.raises(JobTakenError):
        stage(request_json(num_clip=3), "second")
    refused = close("second")
    assert refused["status"] == "not run"
    assert "other values of num_clip" in refused["reason"]
    assert found().status == "running"
    metadata.jobs.succeed(JOB, "s3://out/x.mp4", "ab" * 32)
    assert (close("second")["status"], close("first")["status"]) == ("not run", "succeeded")
    metadata.jobs.fail(JOB, "The first run failed.")
    stage(request_json(num_clip=3), "second")  # cleared in Airflow, and now it may
    metadata.jobs.succeed(JOB, "s3://out/x.mp4", "ab" * 32)
    assert (close("second")["status"], close("of nobody")["status"]) == ("succeeded", "succeeded")


def test_a_run_that_never_reached_the_job_does_not_close_it(
    request_json: Callable[..., str], metadata: MetadataStore, found: Found
) -> None:
    """A run that names the job of another run and ends before its first step closes nothing, also in the queue."""
    stage(request_json(), "first")
    foreign = close("second")
    assert (foreign["status"], "It belongs to run 'first'" in foreign["reason"]) == ("not run", True)
    metadata.jobs.request_cancel(JOB)
    assert (close("second")["status"], found().status) == ("not run", "running")
    assert close("first")["status"] == "cancelled"
    metadata.batches.register("b1", "s3://b/m.jsonl", "e", [NewRow(1, None, NewJob("waits", {"prompt": "Hello."}))])
    body = importlib.import_module("s2v_tasks.steps.close_job").run
    outcomes = [run_step(body, step=CLOSE_JOB, job_id="waits", run_id=name)["status"] for name in ("second", "waits")]
    assert outcomes == ["not run", "failed"]


def test_a_refused_request_without_a_run_does_not_keep_the_job_open(request_json: Callable[..., str]) -> None:
    """Closing a job by hand is not prevented by a request without a run that was refused."""
    stage(request_json(), "first")
    with pytest.raises(JobTakenError):
        stage(request_json(num_clip=3))
    assert close(None)["status"] == "failed"


def test_clearing_a_run_goes_on_although_its_form_has_changed(
    run: Run, request_json: Callable[..., str], found: Found
) -> None:
    """The run of a job may start it again, also after an upgrade with other defaults in the form."""
    stage(request_json(), "own")
    stage(request_json(sample_steps=3), "own")
    assert (found().request or {})["sample_steps"] == 3
    with pytest.raises(JobTakenError):
        stage(request_json(sample_steps=4), "other")


def test_of_two_requests_at_once_one_has_the_job(settings: Settings, metadata: MetadataStore, found: Found) -> None:
    """The second of two concurrent requests is refused, in whatever order they reach the database."""

    def queue(prompt: str) -> str:
        try:
            metadata.jobs.enqueue(
                JOB, {"image_uri": "s3://bucket/a.png", "audio_uri": "s3://bucket/a.wav", "prompt": prompt}
            )
        except JobTakenError:
            return "refused"
        return prompt

    prompts = [f"Number {number}." for number in range(8)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        outcomes = list(pool.map(queue, prompts))
    assert outcomes.count("refused") == len(prompts) - 1
    assert {(found().request or {})["prompt"], "refused"} == set(outcomes)
