"""validate: check the finished video against the plan. Writes report/{report.json, contact_sheet.jpg}.

A failed check fails the job: the report is stored without its manifest, and nothing is published. The quality of the
whole video comes from the records of its clips, without decoding frames again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.contact_sheet import contact_sheet
from s2v_tasks.media.frames import measure
from s2v_tasks.media.speech import SPEECH_SAMPLE_RATE, Waveform, load_waveform, rms_dbfs
from s2v_tasks.perception.lip_sync import Mouth, measure_lip_sync
from s2v_tasks.perception.video import whole_video
from s2v_tasks.runtime.context import StepContext, check_made_from
from s2v_tasks.schemas.manifest import ReportFacts, fingerprint
from s2v_tasks.schemas.plan import FPS, Plan
from s2v_tasks.schemas.quality import ClipQuality, VideoQuality
from s2v_tasks.schemas.report import Expected, QualityReport, Report
from s2v_tasks.schemas.steps import MUX_AUDIO, STAGE_INPUTS, STITCH, VALIDATE
from s2v_tasks.settings import config_dir
from s2v_tasks.storage.artifacts import Built, OutputFile, Work
from s2v_tasks.storage.clip_state import KeptTake, TakeRecords
from s2v_tasks.validation.checks import load_thresholds
from s2v_tasks.validation.checks import validate as judge
from s2v_tasks.validation.quality import clip_in_words, drift_in_words, findings_in_words, summary_in_words
from s2v_tasks.validation.quality_limits import QualityLimits, load_quality_limits

REVISION = 1  # increase it when the checks change
HELD_FRAMES = 4  # the fourth frame and the three before it, at the start of the video (ADR 4)


@dataclass(frozen=True)
class MeasuredClips:
    """The record and the kept take of each clip of a plan; None for a clip that was not measured."""

    clips: tuple[KeptTake | None, ...]
    limits: QualityLimits

    @classmethod
    def of(cls, ctx: StepContext, plan: Plan) -> "MeasuredClips":
        """Read the records that describe the stored clips."""
        records = TakeRecords(ctx.store, ctx.layout)
        keys = [ctx.layout.clip_manifest(clip.clip_index) for clip in plan.clips]
        return cls(
            clips=tuple(records.kept(ctx.artifacts.read_manifest(key)) for key in keys),
            limits=load_quality_limits(config_dir(ctx.settings)),
        )

    def for_fingerprint(self) -> list[str]:
        """Return the inputs of a report for its fingerprint; empty if no clip was measured."""
        if not any(self.clips):
            return []
        takes = [None if known is None else known.record.model_dump(mode="json") for known in self.clips]
        return [fingerprint(takes, self.limits.model_dump())]

    def report(self, speech: Waveform) -> QualityReport | None:
        """Return measures and sentences; None if no clip was measured. `speech`: 16 kHz mono, from frame 0 on."""
        if not any(self.clips):
            return None
        video = self._video(speech)
        sentences = [] if video is None else summary_in_words(video, self.limits)
        for index, known in enumerate(self.clips):
            sentences += _clip_sentences(index, known)
        if video is not None:
            sentences += drift_in_words(video, self.limits)
        return QualityReport(
            sentences=tuple(sentences),
            video=video,
            num_takes=tuple(len(known.record.takes) if known else 0 for known in self.clips),
            kept_takes=tuple(known.take.take if known else 0 for known in self.clips),
        )

    def notes(self) -> list[str]:
        """Return a line about each clip for the contact sheet; empty if no clip was measured."""
        return [_note(known) for known in self.clips] if any(self.clips) else []

    def _video(self, speech: Waveform) -> VideoQuality | None:
        measured: list[ClipQuality] = []
        reference = None
        ends = (known.take.measured.end_frame for known in self.clips if known and known.take.measured)
        frames = max(ends, default=0)
        # Frames of a clip that was not measured count as frames without a face.
        mouth, darkness = np.full(frames, np.nan), np.full(frames, np.nan)
        for known in self.clips:
            if known is None or known.take.measured is None or known.take.series is None:
                continue
            clip, series = known.take.measured, known.take.series
            measured.append(clip)
            reference = reference or known.record.reference
            span = slice(clip.start_frame, clip.end_frame)
            mouth[span] = np.array(series.mouth, dtype=float)
            if series.darkness:
                darkness[span] = np.array(series.darkness, dtype=float)
        if not measured:
            return None
        covered = speech[: frames * SPEECH_SAMPLE_RATE // FPS]
        return whole_video(
            reference, measured, measure_lip_sync(Mouth(mouth, darkness), covered, SPEECH_SAMPLE_RATE, FPS)
        )


def _clip_sentences(index: int, known: KeptTake | None) -> list[str]:
    if known is None:
        return [f"Clip {index} was not measured."]
    record, take = known
    if take.measured is None:
        return [f"Clip {index} was not measured: {take.error}"]
    sentences = findings_in_words(index, take.findings)
    if len(record.takes) > 1:
        scores = ", ".join(f"take {taken.take}: {taken.score:.1f}" for taken in record.takes)
        sentences.insert(
            0, f"Clip {index} was rendered {len(record.takes)} times; take {take.take} is kept ({scores})."
        )
    return sentences


def _note(known: KeptTake | None) -> str:
    if known is None or known.take.measured is None:
        return "not measured"
    words, num_takes = clip_in_words(known.take.measured), len(known.record.takes)
    return words if num_takes == 1 else f"{words}   take {known.take.take} of {num_takes}"


def run(ctx: StepContext) -> dict[str, Any]:
    """Check the video, or reuse an earlier approval."""
    plan = ctx.plan()
    staged = ctx.manifest(ctx.layout.input_manifest, STAGE_INPUTS).outputs
    muxed = ctx.manifest(ctx.layout.mux_manifest, MUX_AUDIO)
    silent = ctx.manifest(ctx.layout.silent_manifest, STITCH).outputs["silent"]
    check_made_from(muxed, {"silent": silent, "audio": staged["audio"]}, MUX_AUDIO)
    inputs = {"video": muxed.outputs["muxed"], "audio_16k": staged["audio_16k"]}
    thresholds = load_thresholds(config_dir(ctx.settings))
    clips = MeasuredClips.of(ctx, plan)

    def build(folder: Path) -> Built:
        video = ctx.artifacts.fetch(inputs["video"], folder / "video.mp4")
        speech = load_waveform(ctx.artifacts.fetch(inputs["audio_16k"], folder / "audio_16k.wav"))
        report = judge(measure(video), _expected(plan, speech), thresholds)
        report = report.model_copy(update={"quality": clips.report(speech)})
        report_path, sheet_path = folder / "report.json", folder / "contact_sheet.jpg"
        report_path.write_text(report.model_dump_json(indent=2), encoding="utf-8")
        if not report.ok:
            ctx.store.delete(ctx.layout.report_manifest)  # withdraw a success that used earlier thresholds
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


def _expected(plan: Plan, speech: Waveform) -> Expected:
    covered = speech[: plan.num_frames * SPEECH_SAMPLE_RATE // plan.fps]
    return Expected(
        width=plan.width,
        height=plan.height,
        fps=plan.fps,
        num_frames=plan.num_frames,
        num_held_frames=0 if plan.sampling.start_from_ref else HELD_FRAMES,
        speech_rms_dbfs=rms_dbfs(covered),
    )
