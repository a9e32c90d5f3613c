"""Check approvals in the steps: waiting clips, effects of an answer, and no repeated question or render."""

import importlib
import json
from typing import Any

import pytest
import typer

from s2v_tasks.cli.job_control import rerun
from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.jobs import JobRepository
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.runtime.context import run_step
from s2v_tasks.schemas.approval import ApprovalStatus, Rejection
from s2v_tasks.schemas.steps import Step
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

JOB = "talk"
REQUEST: dict[str, Any] = {
    "prompt": "A drawn portrait speaks.",
    "num_clip": 3,
    "infer_frames": 16,
    "sample_steps": 2,
    "size": "128*128",
    "approval": "each_clip",
}

pytestmark = pytest.mark.usefixtures("settings")


def run(step: str, clip_index: int | None = None, job_id: str = JOB, **arguments: Any) -> dict[str, Any]:
    body = importlib.import_module(f"s2v_tasks.steps.{step}").run
    return run_step(body, step=Step(step), job_id=job_id, clip_index=clip_index, **arguments)


def stage(store: ObjectStore, job_id: str = JOB, **fields: Any) -> None:
    """Run a job up to its plan."""
    uris = {"image_uri": store.uri("portrait.jpg"), "audio_uri": store.uri("speech.mp3")}
    run("stage_inputs", job_id=job_id, request_json=json.dumps(uris | REQUEST | fields), run_id=job_id)
    run("plan_clips", job_id=job_id)


def store_clip(store: ObjectStore, clip_index: int, fingerprint: str = "f" * 64) -> None:
    """Store the manifest of a clip without its video, because an approval reads only the manifest."""
    times = {"started_at": "2026-11-01T10:00:00Z", "finished_at": "2026-11-01T10:00:01Z"}
    manifest = {"step": "render_clip", "job_id": JOB, "fingerprint": fingerprint, "inputs": {}, "outputs": {}, **times}
    manifest |= {
        "clip_index": clip_index,
        "facts": {"start_frame": 0, "end_frame": 16},
        "producer": {"package_version": "0"},
    }
    store.put_bytes(JobLayout(JOB).clip_manifest(clip_index), json.dumps(manifest).encode(), "application/json")


def found(metadata: MetadataStore, job_id: str = JOB) -> Job:
    job = metadata.jobs.get(job_id)
    assert job is not None
    return job


def ask(clip_index: int | None, run_id: str = JOB) -> dict[str, Any]:
    return run("ask_approval", clip_index, run_id=run_id)


def answer(status: ApprovalStatus, clip_index: int | None, run_id: str = JOB, **fields: Any) -> dict[str, Any]:
    rejection = Rejection(**fields) if status == ApprovalStatus.REJECTED else None
    arguments = {"status": status, "run_id": run_id, "user": "edith", "rejection": rejection}
    return run("record_approval", clip_index, **arguments)


def test_an_approved_clip_is_not_asked_about_again(store: ObjectStore, metadata: MetadataStore) -> None:
    """A question keeps its deadline when it is asked twice; its answer and user hold in later starts."""
    stage(store)
    store_clip(store, 0)
    question = ask(0)
    assert question["status"] == "waiting"
    assert question["subject"] == "Approve clip 1 of 3 of job talk?"
    assert 604_000 < question["wait_seconds"] <= 604_800
    assert ask(0)["status"] == "waiting"
    waiting = found(metadata).waiting_approval
    assert waiting is not None
    assert (waiting.clip_index, waiting.dag_run_id) == (0, JOB)
    assert answer(ApprovalStatus.APPROVED, 0) == {"status": "approved", "user": "edith"}
    assert answer(ApprovalStatus.APPROVED, 0)["status"] == "approved"
    assert found(metadata).waiting_approval is None
    assert ask(0, run_id="talk--2") == {"status": "approved", "user": "edith"}
    events = [event for event in found(metadata).events if event.event.startswith("approval_")]
    assert [event.event for event in events] == ["approval_requested", "approval_requested", "approval_given"]
    assert events[-1].detail["user"] == "edith"


def test_another_clip_in_the_same_place_is_asked_about(store: ObjectStore, metadata: MetadataStore) -> None:
    """An approval holds for the checksum of a clip; a clip with other bytes needs its own."""
    stage(store)
    store_clip(store, 0)
    ask(0)
    answer(ApprovalStatus.APPROVED, 0)
    metadata.jobs.fail(JOB, "A node was lost.")
    metadata.jobs.start(JOB)
    store_clip(store, 0, "e" * 64)
    assert ask(0)["status"] == "waiting"


def test_a_rejected_clip_is_rendered_again_by_one_rerun(store: ObjectStore, metadata: MetadataStore) -> None:
    """The job is cancelled with note and user; a repeated answer makes no second rerun, which keeps earlier clips."""
    stage(store, num_clip=2)
    run("encode_conditions")
    run("render_clip", 0, count=1)
    ask(0)
    answer(ApprovalStatus.APPROVED, 0)
    run("render_clip", 1, count=1)
    ask(1)
    result = answer(ApprovalStatus.REJECTED, 1, note="She blinks.", base_seed=99)
    following = result["next_job"]
    assert following["changes"] == {"base_seed": 99, "parent_job_id": JOB, "from_clip": 1}
    assert answer(ApprovalStatus.REJECTED, 1, note="She blinks.", base_seed=99) == result
    assert ask(1) == result  # a try that was killed before it started the rerun starts it now
    job = found(metadata)
    assert job.status == "cancelled"
    assert job.reason == (
        f"Clip 2 was rejected by edith: She blinks. Job {following['job_id']} renders it again from clip 2."
    )
    child = following["job_id"]
    stage(store, child, num_clip=2, **following["changes"])
    run("encode_conditions", job_id=child)
    run("render_clip", 1, job_id=child, count=1)
    clips = found(metadata, child).clips
    assert [clip.source_job_id for clip in clips[:2]] == [JOB, None]
    assert clips[1].fingerprint != job.clips[1].fingerprint
    assert [attempt.clip_index for attempt in found(metadata, child).attempts] == [1]  # the conditions are the same


def test_a_rejection_without_a_change_ends_the_job_and_a_new_start_asks_again(
    store: ObjectStore, metadata: MetadataStore
) -> None:
    """Without changed fields there is no rerun, which would have the same bytes; a new start of the job asks again."""
    stage(store)
    store_clip(store, 0)
    ask(0)
    result = answer(ApprovalStatus.REJECTED, 0, note="...", prompt=REQUEST["prompt"])
    assert "next_job" not in result
    assert result["reason"] == "Clip 1 was rejected by edith. Finished clips are kept for a rerun."
    metadata.jobs.start(JOB)
    assert ask(0, run_id="talk--2")["status"] == "waiting"


def test_a_kill_after_a_rejection_does_not_make_it_a_failure(
    store: ObjectStore, metadata: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process ends between the answer and the end of the job, the next try ends the job as cancelled."""
    stage(store)
    store_clip(store, 0)
    ask(0)
    with monkeypatch.context() as patch:
        patch.setattr(JobRepository, "cancel", killed)
        with pytest.raises(KeyboardInterrupt):
            answer(ApprovalStatus.REJECTED, 0, note="She blinks.")
    assert found(metadata).status == "running"
    assert ask(0)["status"] == "rejected"
    job = found(metadata)
    assert (job.status, job.reason) == (
        "cancelled", "Clip 1 was rejected by edith: She blinks. Finished clips are kept for a rerun."
    )  # fmt: skip
    assert run("close_job")["status"] == "cancelled"


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_note_is_shown_as_one_line_of_text(store: ObjectStore) -> None:
    """Lines of a note are joined, and control characters are escaped, because terminals and logs show the reason."""
    stage(store)
    store_clip(store, 0)
    ask(0)
    result = answer(ApprovalStatus.REJECTED, 0, note="She blinks.\r\nAnd\x1b[2J \x9b31m smiles.\n")
    assert "by edith: She blinks. And\\x1b[2J \\x9b31m smiles. Finished" in result["reason"]


@pytest.mark.parametrize(("seconds", "limit"), [("604800", "168 h"), ("90", "1.5 min")])
def test_a_question_without_an_answer_fails_the_job(
    store: ObjectStore, metadata: MetadataStore, monkeypatch: pytest.MonkeyPatch, seconds: str, limit: str
) -> None:
    """The job fails with the time, the setting and the remedy, and can be started again."""
    monkeypatch.setenv("S2V_APPROVAL_SECONDS", seconds)
    load_settings.cache_clear()
    stage(store)
    store_clip(store, 0)
    ask(0)
    result = answer(ApprovalStatus.EXPIRED, 0)
    job = found(metadata)
    assert (job.status, job.exit_code) == ("failed", 75)
    assert job.reason == result["reason"]
    assert f"clip 1 within {limit} (S2V_APPROVAL_SECONDS)" in result["reason"]
    assert "s2v retry talk" in result["reason"]
    metadata.jobs.start(JOB)
    assert ask(0, run_id="talk--2")["status"] == "waiting"


def test_a_cancelled_job_waits_for_nobody(store: ObjectStore, metadata: MetadataStore) -> None:
    """A cancel withdraws the question, and a later answer changes nothing."""
    stage(store)
    store_clip(store, 0)
    ask(0)
    metadata.jobs.cancel(JOB)
    assert [approval.status for approval in found(metadata).approvals] == ["withdrawn"]
    with pytest.raises(PermanentError, match="does not wait for an approval"):
        answer(ApprovalStatus.APPROVED, 0)


def test_a_video_is_published_only_after_its_approval(store: ObjectStore, metadata: MetadataStore) -> None:
    """Without an approval `publish` refuses the video; the approval holds for its checksum."""
    stage(store, num_clip=1, approval="result")
    run("encode_conditions")
    run("render_clip", 0, count=1)
    for step in ("stitch", "mux_audio", "validate"):
        run(step)
    with pytest.raises(PermanentError, match="Nobody has approved this video"):
        run("publish")
    assert not store.exists(JobLayout(JOB).result)
    metadata.jobs.start(JOB)
    assert ask(None)["subject"] == "Approve the video of job talk?"
    with pytest.raises(PermanentError, match="from_clip 1: expected 0 to 0"):
        answer(ApprovalStatus.REJECTED, None, from_clip=1, base_seed=5)
    metadata.jobs.start(JOB)
    assert (ask(None)["status"], ask(None)["last_clip"]) == ("waiting", 0)
    answer(ApprovalStatus.APPROVED, None)
    run("publish")
    assert found(metadata).status == "succeeded"
    assert json.loads(store.get_bytes(JobLayout(JOB).result))["request"]["approval"] == "result"


def test_only_rendered_clips_are_rendered_again(store: ObjectStore) -> None:
    """A `from_clip` after the rejected clip is refused with the bounds."""
    stage(store)
    store_clip(store, 0)
    ask(0)
    with pytest.raises(PermanentError, match="from_clip 2: expected 0 to 0"):
        answer(ApprovalStatus.REJECTED, 0, from_clip=2, base_seed=5)


def test_the_command_makes_the_same_rerun(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rejection and `s2v rerun` with the same changes give one job."""
    stage(store)
    store_clip(store, 0)
    ask(0)
    following = answer(ApprovalStatus.REJECTED, 0, base_seed=99)["next_job"]
    submitted: list[str] = []
    monkeypatch.setattr("s2v_tasks.cli.job_control.submit_request", lambda name, *_: submitted.append(name) or 0)
    with pytest.raises(typer.Exit):
        rerun(parent=JOB, from_clip=0, base_seed=99)
    assert submitted == [following["job_id"]]
