"""Check the step validate: its report, its contact sheet, and videos that it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.manifest import ReportFacts
from s2v_tasks.schemas.report import Report
from s2v_tasks.schemas.steps import STAGE_INPUTS, VALIDATE
from s2v_tasks.settings import config_dir
from s2v_tasks.steps import mux_audio, publish, validate
from s2v_tasks.storage.artifacts import Built, OutputFile, Work
from s2v_tasks.validation.checks import load_thresholds
from tests.integration.steps.assembly import (
    NUM_FRAMES,
    PLAN,
    RATE,
    SIZE,
    assemble,
    moving_frames,
    put_plan,
    render,
    speech,
    stage,
)


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


def test_a_report_is_made_again_for_other_limits_measures_or_plans(
    job: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other thresholds, measures and sampling need a new report; another price does not."""
    assemble(job)
    assert validate.run(job)["reused"] is False
    put_plan(job, estimate=PLAN.estimate.model_copy(update={"cost": 9.0}))
    assert validate.run(job)["reused"] is True
    put_plan(job, sampling=PLAN.sampling.model_copy(update={"start_from_ref": False}))
    assert validate.run(job)["reused"] is False
    with monkeypatch.context() as patch:
        patch.setattr(validate.MeasuredClips, "for_fingerprint", lambda _clips: ["measured anew"])
        assert [validate.run(job)["reused"] for _ in range(2)] == [False, True]
    limits = load_thresholds(config_dir(job.settings))
    stricter = limits.model_copy(update={"min_mean_luma": 250.0})
    monkeypatch.setattr(validate, "load_thresholds", lambda _folder: stricter)
    with pytest.raises(PermanentError, match="failed 1 of"):
        validate.run(job)


@pytest.mark.parametrize("start_from_ref", [False, True])
def test_the_first_picture_may_be_held_where_the_plan_holds_it(job: StepContext, start_from_ref: bool) -> None:
    """Four held frames are expected at the start, unless the chain starts from the reference picture."""
    put_plan(job, sampling=PLAN.sampling.model_copy(update={"start_from_ref": start_from_ref}))
    assemble(job)
    seen = validate._expected(job.plan(), np.zeros(16_000, np.float32))
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
    """A video with much quieter audio than the model's speech fails, with the level in the message."""
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
