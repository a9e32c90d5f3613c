"""Mux, validate and publish one job whose clip and speech are small files in S3."""

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.media.frames import measure, read_frames
from s2v_tasks.runtime.context import StepContext, open_context
from s2v_tasks.schemas.approval import ApprovalStatus, Rejection
from s2v_tasks.schemas.manifest import ClipFacts, ReportFacts, StagedFacts, StagedImage, StagedSpeech
from s2v_tasks.schemas.plan import ClipPlan, Estimate, Plan, Sampling, SpeechFacts
from s2v_tasks.schemas.report import Report
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.steps import MUX_AUDIO, RENDER_CLIP, STAGE_INPUTS, STITCH, VALIDATE
from s2v_tasks.settings import Settings, config_dir, load_settings
from s2v_tasks.steps import mux_audio, publish, stitch, validate
from s2v_tasks.storage.artifacts import Built, OutputFile, Work
from s2v_tasks.validation import load_thresholds

NUM_FRAMES = 24
RATE = 16_000
SIZE = 64

PLAN = Plan(
    job_id="my-job",
    preset="quick",
    model="tiny",
    width=SIZE,
    height=SIZE,
    speech=SpeechFacts(num_samples=RATE * 2, sample_rate=RATE),
    num_frames=NUM_FRAMES,
    covered_seconds=1.5,
    sampling=Sampling(
        sample_steps=2, sample_guide_scale=4.5, sample_shift=3.0, sample_solver="unipc", start_from_ref=True
    ),
    base_seed=0,
    clips=(
        ClipPlan(
            clip_index=0,
            chain_index=0,
            predecessor=None,
            successor=None,
            infer_frames=24,
            start_frame=0,
            end_frame=NUM_FRAMES,
            seed=1,
            latent_shape=(16, 4, 8, 8),
            tokens=64,
            pflops=0.1,
        ),
    ),
    estimate=Estimate(
        pflops=0.1, gpu="cpu", gpu_seconds=1, longest_chain_seconds=1, cost=0, currency="EUR", peak_gpu_memory_gib=1
    ),
)


def moving_frames() -> np.ndarray:
    """Return frames `[24, 64, 64, 3]` of which no two are alike."""
    rows = np.arange(SIZE)
    waves = [128 + 100 * np.sin((rows[:, None] + rows[None] + 5 * k) / 7) for k in range(NUM_FRAMES)]
    return np.repeat(np.stack(waves)[..., None], 3, axis=-1).astype(np.uint8)


def speech(level: float = 0.2, seed: int = 3) -> np.ndarray:
    """Return 2 s of noise: half a second more than the video needs."""
    return np.random.default_rng(seed).uniform(-level, level, RATE * 2).astype(np.float32)


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


def put_plan(job: StepContext, **changes: Any) -> None:
    plan = PLAN.model_copy(update=changes)
    job.store.put_bytes(job.layout.plan, plan.model_dump_json().encode(), "application/json")


def put_request(job: StepContext, **changes: Any) -> None:
    asked = job.request().model_copy(update=changes)
    job.store.put_bytes(job.layout.request, asked.model_dump_json().encode(), "application/json")


def stage(job: StepContext, samples: np.ndarray) -> None:
    """Store the speech as stage_inputs does."""
    facts = StagedFacts(
        image=StagedImage(width=SIZE, height=SIZE), speech=StagedSpeech(num_samples=len(samples), sample_rate=RATE)
    )

    def build(folder: Path) -> Built:
        soundfile.write(folder / "audio.wav", samples, RATE, subtype="FLOAT")
        audio = OutputFile(folder / "audio.wav", job.layout.audio("wav"), "audio/wav")
        return Built({"audio": audio, "audio_16k": copied(folder, audio.path, job.layout.audio_16k)}, facts)

    job.produce(Work(STAGE_INPUTS, job.job_id, job.layout.input_manifest, f"speech-{samples.sum()}", {}), build)


def copied(folder: Path, source: Path, key: str) -> OutputFile:
    target = folder / "audio_16k.wav"
    target.write_bytes(source.read_bytes())
    return OutputFile(target, key, "audio/wav")


def render(job: StepContext, frames: np.ndarray) -> None:
    """Store the clip as render_clip does."""

    def build(folder: Path) -> Built:
        encode_clip(frames, folder / "clip.mp4")
        outputs = {"clip": OutputFile(folder / "clip.mp4", job.layout.clip(0), "video/mp4")}
        return Built(outputs, ClipFacts(start_frame=0, end_frame=NUM_FRAMES, source_job_id="an-earlier-job"))

    made_from = f"clip-{int(frames.sum())}"
    job.produce(Work(RENDER_CLIP, job.job_id, job.layout.clip_manifest(0), made_from, {}, clip_index=0), build)


def test_the_muxed_video_has_the_clip_and_the_speech_at_its_length(job: StepContext, tmp_path: Path) -> None:
    """Picture bit for bit, audio cut to the length of the picture; the manifest names both inputs."""
    stitch.run(job)
    assert mux_audio.run(job) == {"reused": False}
    manifest = job.manifest(job.layout.mux_manifest, MUX_AUDIO)
    assert set(manifest.inputs) == {"silent", "audio"}
    video = job.artifacts.fetch(manifest.outputs["muxed"], tmp_path / "muxed.mp4")
    silent = job.manifest(job.layout.silent_manifest, STITCH).outputs["silent"]
    stored = job.artifacts.fetch(silent, tmp_path / "silent.mp4")
    assert np.array_equal(
        read_frames(video, start_frame=0, end_frame=99), read_frames(stored, start_frame=0, end_frame=99)
    )
    facts = measure(video)
    assert (facts.streams, facts.num_frames) == (("video", "audio"), NUM_FRAMES)
    assert facts.audio_duration_seconds == Fraction(NUM_FRAMES, 16)


def test_mux_runs_again_only_for_other_inputs(job: StepContext) -> None:
    """The same clip and speech are reused; another speech, another clip and another length are muxed."""
    stitch.run(job)
    mux_audio.run(job)
    assert mux_audio.run(job) == {"reused": True}
    stage(job, speech(seed=4))
    assert mux_audio.run(job) == {"reused": False}
    render(job, 255 - moving_frames())
    assert stitch.run(job) == {"reused": False}
    assert mux_audio.run(job) == {"reused": False}
    put_plan(job, num_frames=NUM_FRAMES - 1)
    with pytest.raises(TransientError, match=r"24\), expected .* 23\): run the step again"):
        mux_audio.run(job)


def test_mux_needs_the_stitched_video(job: StepContext) -> None:
    """The error names the step that comes first."""
    with pytest.raises(TransientError, match=r"silent_manifest\.json is missing: run `s2v stitch`"):
        mux_audio.run(job)


def test_a_good_video_gets_a_report_and_a_contact_sheet(job: StepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """All checks pass, the report lists them, and a second run reuses it; the sheet shows each clip with its note."""
    shown: list[Any] = []
    draw = validate.contact_sheet

    def noted(video: Path, ranges: Any, *rest: Any, **options: Any) -> None:
        shown.append((ranges, options))
        draw(video, ranges, *rest, **options)

    monkeypatch.setattr(validate, "contact_sheet", noted)
    monkeypatch.setattr(validate.MeasuredClips, "notes", lambda _clips: ["as expected"])
    assemble(job)
    outcome = validate.run(job)
    manifest = job.manifest(job.layout.report_manifest, VALIDATE)
    checks = manifest.facts_as(ReportFacts).checks
    assert outcome == {"reused": False, "num_checks": len(checks)}
    assert len(checks) > 5
    assert all(checks.values())
    assert job.store.get_bytes(job.layout.contact_sheet).startswith(b"\xff\xd8")
    assert shown == [([(0, NUM_FRAMES)], {"fps": 16, "notes": ["as expected"]})]
    assert Report.model_validate_json(job.store.get_bytes(job.layout.report)).ok
    assert validate.run(job) == {"reused": True, "num_checks": len(checks)}


def test_a_report_is_made_again_when_what_it_was_judged_by_changes(
    job: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other thresholds, measures and another promise of the plan are judged anew; another price is not."""
    assemble(job)
    assert validate.run(job)["reused"] is False
    put_plan(job, estimate=PLAN.estimate.model_copy(update={"cost": 9.0}))
    assert validate.run(job)["reused"] is True
    put_plan(job, sampling=PLAN.sampling.model_copy(update={"start_from_ref": False}))
    assert validate.run(job)["reused"] is False
    with monkeypatch.context() as patch:
        patch.setattr(validate.MeasuredClips, "for_fingerprint", lambda _clips: ["measured anew"])
        assert [validate.run(job)["reused"] for _ in range(2)] == [False, True]
    limits = load_thresholds(config_dir(job.settings) / "validation.yaml")
    stricter = limits.model_copy(update={"min_mean_luma": 250.0})
    monkeypatch.setattr(validate, "load_thresholds", lambda _path: stricter)
    with pytest.raises(PermanentError, match="failed 1 of"):
        validate.run(job)


@pytest.mark.parametrize("start_from_ref", [False, True])
def test_the_first_picture_may_be_held_where_the_plan_holds_it(job: StepContext, start_from_ref: bool) -> None:
    """Four equal frames at the start are those of a chain that does not start from the reference picture."""
    put_plan(job, sampling=PLAN.sampling.model_copy(update={"start_from_ref": start_from_ref}))
    assemble(job)
    seen = validate._expected(job.plan(), job.artifacts.fetch(
        job.manifest(job.layout.input_manifest, STAGE_INPUTS).outputs["audio_16k"], job.work_dir / "audio.wav"
    ))  # fmt: skip
    assert seen.num_held_frames == (0 if start_from_ref else 4)
    assert (seen.width, seen.height, seen.fps, seen.num_frames) == (SIZE, SIZE, 16, NUM_FRAMES)


def test_a_bad_video_is_refused_and_its_report_is_kept(job: StepContext) -> None:
    """Black frames fail the job with the failed checks; an earlier approval is withdrawn."""
    assemble(job)
    validate.run(job)
    render(job, np.zeros_like(moving_frames()))
    assemble(job)
    with pytest.raises(PermanentError, match=r"The video failed \d of \d+ checks: "):
        validate.run(job)
    assert job.artifacts.read_manifest(job.layout.report_manifest) is None
    report = Report.model_validate_json(job.store.get_bytes(job.layout.report))
    assert not report.ok
    with pytest.raises(TransientError, match="run `s2v validate`"):
        publish.run(job)


def test_speech_that_the_video_lacks_is_found(job: StepContext) -> None:
    """A video with much quieter audio than the speech of the model fails, with the level in the message."""
    assemble(job)
    stage(job, speech(level=0.001))
    mux_audio.run(job)
    stage_louder_input_of_the_model(job)
    with pytest.raises(PermanentError, match="dB"):
        validate.run(job)


def stage_louder_input_of_the_model(job: StepContext) -> None:
    """Replace the 16 kHz speech alone: the muxed video keeps the quiet one."""
    key = job.layout.input_manifest
    manifest = job.manifest(key, STAGE_INPUTS)

    def build(folder: Path) -> Built:
        soundfile.write(folder / "loud.wav", speech(level=0.5), RATE, subtype="FLOAT")
        audio = job.artifacts.fetch(manifest.outputs["audio"], folder / "audio.wav")
        return Built(
            {
                "audio": OutputFile(audio, job.layout.audio("wav"), "audio/wav"),
                "audio_16k": OutputFile(folder / "loud.wav", job.layout.audio_16k, "audio/wav"),
            },
            manifest.facts,
        )

    job.produce(Work(STAGE_INPUTS, job.job_id, key, "louder", {}), build)


def test_the_result_is_published_last(job: StepContext) -> None:
    """Video and sidecar are in the output, result.json repeats the sidecar, and the job has succeeded."""
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


def test_the_sidecar_says_what_was_made_and_from_what(job: StepContext) -> None:
    """Everything that a receiver of the video needs, in the letters of its request."""
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
    """Only an approval of exactly these bytes lets it out, whichever approvals the request asks for."""
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
    """Other bytes than those that were validated are an error before the output is written."""
    assemble(job)
    validate.run(job)
    job.store.put_bytes(job.layout.muxed, b"other bytes", "video/mp4")
    with pytest.raises(TransientError, match="SHA-256"):
        publish.run(job)
    assert not job.store.exists(job.layout.result)


def assemble(job: StepContext) -> None:
    stitch.run(job)
    mux_audio.run(job)
