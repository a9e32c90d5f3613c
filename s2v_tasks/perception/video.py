"""Measures of a whole video from its frames in order: clip by clip, then lip sync over the whole video."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from s2v_tasks.perception.clip_measures import ClipMeter, Reference
from s2v_tasks.perception.faces import FaceFinder, Picture
from s2v_tasks.perception.lip_sync import Mouth, measure_lip_sync
from s2v_tasks.schemas.quality import ClipQuality, Drift, LipSyncQuality, ReferenceLook, VideoQuality


def measure_video(
    frames: Iterable[Picture],
    clips: Sequence[tuple[int, int]],
    *,
    fps: float,
    speech: npt.NDArray[np.float32] | None,
    sample_rate: int,
    reference: Picture | None,
    chain_starts: frozenset[int] = frozenset(),
) -> VideoQuality:
    """Measure frames u8 RGB `[H,W,3]`.

    clips: consecutive half-open frame ranges; frames beyond the video are ignored. speech: mono samples from frame 0
    on. reference: the picture of the person, fitted to the size of the video. chain_starts: clips that begin a new
    chain, whose seam is an intended cut.
    """
    finder = FaceFinder()
    known = Reference.of(reference, finder) if reference is not None else None
    measured: list[ClipQuality] = []
    mouth: list[float] = []
    darkness: list[float] = []
    meter: ClipMeter | None = None
    pending = iter(frames)
    for index, (start, end) in enumerate(clips):
        meter = ClipMeter(finder, known, before=None if index in chain_starts else meter)
        for _ in range(end - start):
            picture = next(pending, None)
            if picture is None:
                break
            meter.take(picture)
        if not meter.mouth:
            break
        first, last = (round(frame / fps * sample_rate) for frame in (start, start + len(meter.mouth)))
        measured.append(meter.finish(start, fps, speech[first:last] if speech is not None else None, sample_rate))
        mouth += meter.mouth
        darkness += meter.darkness
        meter.before = None  # two clips are in memory, not all
    whole = None
    if speech is not None and mouth:
        whole = measure_lip_sync(Mouth(np.array(mouth), np.array(darkness)), speech, sample_rate, fps)
    return whole_video(known.look if known else None, measured, whole)


def whole_video(
    reference: ReferenceLook | None, clips: Sequence[ClipQuality], lip_sync: LipSyncQuality | None
) -> VideoQuality:
    """Return the measures of a video from those of its clips and its lip sync as a whole."""
    return VideoQuality(
        reference=reference,
        clips=tuple(clips),
        drift=drift(clips) if reference and len(clips) >= 3 else None,
        lip_sync=lip_sync,
    )


def drift(clips: Sequence[ClipQuality]) -> Drift:
    """Return the slopes of what is measured against the reference picture."""
    looks = [clip.look for clip in clips]
    return Drift(
        skin_per_clip=_slope([look.skin_difference for look in looks]),
        background_per_clip=_slope([look.background_difference for look in looks]) or 0.0,
        contrast_per_clip=_slope([look.contrast_ratio for look in looks]) or 0.0,
        sharpness_per_clip=_slope([look.sharpness_ratio for look in looks]),
    )


def _slope(values: Sequence[float | None]) -> float | None:
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    if len(known) < 3:
        return None
    positions, heights = np.array(known, dtype=float).T
    return float(np.polyfit(positions, heights, 1)[0])
