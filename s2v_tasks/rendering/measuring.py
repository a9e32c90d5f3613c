"""Measure a stored clip on the CPU of the leader, after encoding, as viewers see it.

If measuring fails, the error is logged and recorded, and the clip does not change.
"""

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image, ImageOps

from s2v_tasks import log
from s2v_tasks.errors import PermanentError, UnavailableError
from s2v_tasks.media.frames import iter_rgb
from s2v_tasks.media.speech import SPEECH_SAMPLE_RATE
from s2v_tasks.perception.clip_measures import ClipMeter, Reference
from s2v_tasks.perception.faces import FaceFinder
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.manifest import Artifact, Manifest
from s2v_tasks.schemas.plan import FPS, ClipPlan, Plan
from s2v_tasks.schemas.quality import ReferenceLook, Take
from s2v_tasks.schemas.steps import STAGE_INPUTS
from s2v_tasks.scratch import scratch_folder
from s2v_tasks.settings import config_dir
from s2v_tasks.storage.clip_state import TakeRecords
from s2v_tasks.validation.quality import judge_clip
from s2v_tasks.validation.quality_limits import load_quality_limits

# Frames of the previous clip that are decoded again, for the picture and the colours at the seam.
_LAST_FRAMES = 3


class ClipMeasurer:
    """Measures clips of one job; networks, reference picture and speech are loaded for the first one."""

    def __init__(self, ctx: StepContext, plan: Plan) -> None:
        self._ctx, self._plan = ctx, plan
        self._records = TakeRecords(ctx.store, ctx.layout)

    @property
    def reference(self) -> ReferenceLook:
        """Return the look of the reference picture."""
        return self._reference.look

    def take(self, clip: ClipPlan, number: int, made: Manifest, predecessor: Manifest | None) -> Take:
        """Measure the stored clip `made`, take `number` of a clip, and judge it by `config/quality.yaml`.

        UnavailableError while S3 does not answer; any other error becomes the `error` of the take.
        """
        started = time.monotonic()
        common: dict[str, Any] = {"take": number, "seed": clip.seed, "fingerprint": made.fingerprint}
        try:
            meter = self._measured(clip, made.outputs["clip"], predecessor)
            measured = meter.finish(clip.start_frame, FPS, self._speech(clip), SPEECH_SAMPLE_RATE)
            limits = load_quality_limits(config_dir(self._ctx.settings))
            findings = tuple(judge_clip(measured, self.reference, limits))
        except UnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever fails here, the clip is durable and stays
            log.get_logger().error("clip_not_measured", error=str(error), kind=type(error).__name__)
            message = f"{type(error).__name__}: {error}"
            return Take(**common, error=message, measure_seconds=_since(started))
        taken = Take(
            **common, measured=measured, findings=findings, series=meter.series(), measure_seconds=_since(started)
        )
        log.get_logger().info(JobEvent.CLIP_MEASURED, seconds=taken.measure_seconds, score=taken.score)
        return taken

    def _measured(self, clip: ClipPlan, video: Artifact, predecessor: Manifest | None) -> ClipMeter:
        with scratch_folder(self._ctx.settings.work_dir, "measure") as folder:
            path = self._ctx.artifacts.fetch(video, folder / "clip.mp4")
            meter = ClipMeter(self._finder, self._reference, before=self._before(clip, predecessor, folder))
            for picture in iter_rgb(path, end_frame=clip.num_frames):
                meter.take(picture)
        if len(meter.mouth) < clip.num_frames:
            raise PermanentError(f"{video.key} has {len(meter.mouth)} frames, expected {clip.num_frames}.")
        return meter

    def _before(self, clip: ClipPlan, predecessor: Manifest | None, folder: Path) -> ClipMeter | None:
        """Return the end of the previous clip of the chain; None for the first clip.

        It is decoded from stored objects only, so that every process measures the same values.
        """
        if predecessor is None or clip.predecessor is None:
            return None
        path = self._ctx.artifacts.fetch(predecessor.outputs["clip"], folder / "before.mp4")
        end = self._plan.clips[clip.predecessor].num_frames
        last = iter_rgb(path, start_frame=max(0, end - _LAST_FRAMES), end_frame=end)
        kept = self._records.kept(predecessor)
        return ClipMeter.of_end(self._finder, self._reference, last, kept.take.series if kept else None)

    def _speech(self, clip: ClipPlan) -> np.ndarray:
        """Return the speech of exactly the frames of a clip; it is shorter where the speech ends."""
        first, last = (frame * SPEECH_SAMPLE_RATE // FPS for frame in (clip.start_frame, clip.end_frame))
        with soundfile.SoundFile(self._speech_path) as file:
            first, last = min(first, file.frames), min(last, file.frames)
            file.seek(first)
            samples = file.read(last - first, dtype="float32")
        return np.asarray(samples)

    @cached_property
    def _inputs(self) -> dict[str, Artifact]:
        return self._ctx.manifest(self._ctx.layout.input_manifest, STAGE_INPUTS).outputs

    @cached_property
    def _speech_path(self) -> Path:
        return self._ctx.artifacts.fetch(self._inputs["audio_16k"], self._ctx.work_dir / "measured_speech.wav")

    @cached_property
    def _finder(self) -> FaceFinder:
        return FaceFinder()

    @cached_property
    def _reference(self) -> Reference:
        path = self._ctx.artifacts.fetch(self._inputs["image"], self._ctx.work_dir / "measured_image.png")
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (self._plan.width, self._plan.height), Image.Resampling.BICUBIC)
        return Reference.of(np.asarray(fitted), self._finder)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
