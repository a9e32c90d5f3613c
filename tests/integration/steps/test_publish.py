"""Check the step publish: its outputs, and videos that it does not publish."""

import json

import pytest

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.approval import ApprovalStatus, Rejection
from s2v_tasks.schemas.steps import MUX_AUDIO
from s2v_tasks.steps import publish, validate
from tests.integration.steps.assembly import (
    NUM_FRAMES,
    SIZE,
    assemble,
    put_request,
)


def test_the_result_is_published_last(job: StepContext) -> None:
    """Video and sidecar are in the output, result.json equals the sidecar, and the job has succeeded."""
    assemble(job)
    validate.run(job)
    outcome = publish.run(job)
    muxed = job.manifest(job.layout.mux_manifest, MUX_AUDIO).outputs["muxed"]
    assert outcome["video_uri"].endswith("/my-job.mp4")
    assert (outcome["sha256"], outcome["duration_seconds"]) == (muxed.sha256, 1.5)
    assert job.store.get_bytes(outcome["video_uri"]) == job.store.get_bytes(muxed.key)
    result = job.store.get_bytes(job.layout.result)
    assert job.store.get_bytes(outcome["video_uri"].replace(".mp4", ".json")) == result
    found = json.loads(result)
    assert (found["num_frames"], found["width"], found["height"]) == (NUM_FRAMES, SIZE, SIZE)
    assert [(clip["clip_index"], clip["rendered_by"]) for clip in found["clips"]] == [(0, "an-earlier-job")]
    assert "webhook_url" not in found["request"]
    record = job.metadata.jobs.get("my-job")
    assert record is not None
    assert (record.status, record.video_uri) == ("succeeded", outcome["video_uri"])


def test_the_sidecar_describes_the_video_and_its_inputs(job: StepContext) -> None:
    """The sidecar has request, checksums, clips, report and producer, with the letters of the request."""
    put_request(job, prompt="Grüße", parent_job_id="an-earlier-job", from_clip=0)
    assemble(job)
    validate.run(job)
    outcome = publish.run(job)
    data = job.store.get_bytes(job.layout.result)
    assert "Grüße".encode() in data
    found = json.loads(data)
    muxed = job.manifest(job.layout.mux_manifest, MUX_AUDIO).outputs["muxed"]
    clip = job.clip_manifest(0)
    assert (found["sha256"], found["size_bytes"], found["duration_seconds"]) == (muxed.sha256, muxed.size_bytes, 1.5)
    assert (found["video_uri"], found["parent_job_id"]) == (outcome["video_uri"], "an-earlier-job")
    assert (found["report_key"], found["contact_sheet_key"]) == (job.layout.report, job.layout.contact_sheet)
    assert found["clips"] == [{
        "clip_index": 0, "fingerprint": clip.fingerprint, "key": job.layout.clip(0),
        "sha256": clip.outputs["clip"].sha256, "rendered_by": "an-earlier-job",
    }]  # fmt: skip
    assert found["producer"]["package_version"]


@pytest.mark.parametrize("approval", ["result", "each_clip"])
def test_a_video_that_was_rejected_or_not_asked_about_is_not_published(job: StepContext, approval: str) -> None:
    """Only an approval of these bytes allows publication, whichever approval the request asks for."""
    put_request(job, approval=approval)
    assemble(job)
    validate.run(job)
    sha256 = job.manifest(job.layout.mux_manifest, MUX_AUDIO).outputs["muxed"].sha256
    approvals = job.metadata.approvals
    with pytest.raises(PermanentError, match=f"has approval {approval}. Approve it with `s2v approve my-job`"):
        publish.run(job)
    first = approvals.request("my-job", None, sha256, run_id=None, seconds=60)
    approvals.decide(first, ApprovalStatus.REJECTED, rejection=Rejection(note="No."))
    with pytest.raises(PermanentError, match="Nobody has approved"):
        publish.run(job)
    assert not job.store.exists(job.layout.result)
    second = approvals.request("my-job", None, sha256, run_id="my-job--2", seconds=60)
    approvals.decide(second, ApprovalStatus.APPROVED)
    assert publish.run(job)["sha256"] == sha256


def test_nothing_is_published_without_a_report(job: StepContext) -> None:
    """A video that was not validated stays in the job."""
    assemble(job)
    with pytest.raises(TransientError, match="run `s2v validate`"):
        publish.run(job)
    assert not job.store.exists(job.layout.result)


def test_a_damaged_video_is_not_published(job: StepContext) -> None:
    """A video with other bytes than the validated ones is refused before the output is written."""
    assemble(job)
    validate.run(job)
    job.store.put_bytes(job.layout.muxed, b"other bytes", "video/mp4")
    with pytest.raises(TransientError, match="SHA-256"):
        publish.run(job)
    assert not job.store.exists(job.layout.result)
