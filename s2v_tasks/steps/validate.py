"""validate: check the finished video against the plan. Writes report/{report.json, contact_sheet.jpg}.

A failed check fails the job: the report is stored for people, its manifest is not, and nothing is published.
"""

from pathlib import Path
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.contact_sheet import contact_sheet
from s2v_tasks.media.frames import measure
from s2v_tasks.media.speech import SPEECH_SAMPLE_RATE, load_waveform, rms_dbfs
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.runtime.quality_report import MeasuredClips
from s2v_tasks.schemas.facts import ReportFacts
from s2v_tasks.schemas.manifest import fingerprint
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.report import Expected, Report
from s2v_tasks.schemas.steps import MUX_AUDIO, STAGE_INPUTS, VALIDATE
from s2v_tasks.settings import config_dir
from s2v_tasks.storage.artifacts import Built, OutputFile, Work
from s2v_tasks.validation import load_thresholds
from s2v_tasks.validation import validate as judge

REVISION = 1  # increase it when the checks change
HELD_FRAMES = 4  # the fourth frame and the three before it, at the start of the video (ADR 4)


def run(ctx: StepContext) -> dict[str, Any]:
    """Check the video, or reuse an earlier approval."""
    plan = ctx.plan()
    inputs = {
        "video": ctx.manifest(ctx.layout.mux_manifest, MUX_AUDIO).outputs["muxed"],
        "audio_16k": ctx.manifest(ctx.layout.input_manifest, STAGE_INPUTS).outputs["audio_16k"],
    }
    thresholds = load_thresholds(config_dir(ctx.settings) / "validation.yaml")
    clips = MeasuredClips.of(ctx, plan)

    def build(folder: Path) -> Built:
        video, speech = folder / "video.mp4", folder / "audio_16k.wav"
        ctx.artifacts.fetch(inputs["video"], video)
        ctx.artifacts.fetch(inputs["audio_16k"], speech)
        report = judge(measure(video), _expected(plan, speech), thresholds)
        report = report.model_copy(update={"quality": clips.report(load_waveform(speech))})
        report_path, sheet_path = folder / "report.json", folder / "contact_sheet.jpg"
        report_path.write_text(report.model_dump_json(indent=2), encoding="utf-8")
        if not report.ok:
            ctx.store.delete(ctx.layout.report_manifest)  # withdraw an approval by earlier thresholds
            ctx.store.upload(report_path, ctx.layout.report, "application/json")
            sentences = " ".join(check.message for check in report.failures)
            raise PermanentError(f"The video failed {len(report.failures)} of {len(report.checks)} checks: {sentences}")
        ranges = [(clip.start_frame, clip.end_frame) for clip in plan.clips]
        contact_sheet(video, ranges, sheet_path, fps=plan.fps, notes=clips.notes())
        return Built(
            {
                "report": OutputFile(report_path, ctx.layout.report, "application/json"),
                "contact_sheet": OutputFile(sheet_path, ctx.layout.contact_sheet, "image/jpeg"),
            },
            facts=_facts(report),
        )

    promised = plan.model_dump(mode="json", exclude={"estimate"})
    made_from = fingerprint(
        VALIDATE.name, REVISION, inputs["video"].sha256, promised, thresholds.model_dump(), *clips.for_fingerprint()
    )
    work = Work(VALIDATE, ctx.job_id, ctx.layout.report_manifest, made_from, inputs)
    manifest, reused = ctx.produce(work, build)
    return {"reused": reused, "num_checks": len(manifest.facts_as(ReportFacts).checks)}


def _facts(report: Report) -> ReportFacts:
    checks = {check.name: check.ok for check in report.checks}
    if report.quality is None:
        return ReportFacts(checks=checks)
    return ReportFacts(checks=checks, quality=report.quality.sentences)


def _expected(plan: Plan, speech: Path) -> Expected:
    covered = load_waveform(speech)[: plan.num_frames * SPEECH_SAMPLE_RATE // plan.fps]
    return Expected(
        width=plan.width,
        height=plan.height,
        fps=plan.fps,
        num_frames=plan.num_frames,
        num_held_frames=0 if plan.sampling.start_from_ref else HELD_FRAMES,
        speech_rms_dbfs=rms_dbfs(covered),
    )
