"""Judge the quality measures of a clip and describe them in sentences. Limits: `config/quality.yaml`."""

from collections.abc import Iterable
from typing import Literal

from s2v_tasks.schemas.quality import (
    ClipQuality,
    FaceQuality,
    Finding,
    LipSyncQuality,
    LookQuality,
    ReferenceLook,
    SeamQuality,
    VideoQuality,
)
from s2v_tasks.validation.quality_limits import Above, Below, QualityLimits

# In the score of a take, one failing measure weighs as much as ten warnings. Each weighs up to twice as much the
# further it is beyond its limit.
_FAIL_PENALTY = 10.0
# A colour step at a seam up to this ratio to the steps inside both clips is not judged: the patches of skin move.
_USUAL_COLOUR_JUMP = 1.5


def judge_clip(clip: ClipQuality, reference: ReferenceLook | None, limits: QualityLimits) -> list[Finding]:
    """Return the measures of a clip that are beyond their limits."""
    found = _judge_face(clip.face, reference, limits)
    if clip.lip_sync is not None:
        found += _judge_lip_sync(clip.lip_sync, _frames_with_face(clip), limits)
    if clip.seam is not None:
        found += _judge_seam(clip.seam, limits)
    found += _judge_look(clip.look, limits)
    return [finding for finding in found if finding is not None]


def _judge_face(face: FaceQuality, reference: ReferenceLook | None, limits: QualityLimits) -> list[Finding | None]:
    has_face = reference is None or reference.num_faces > 0
    share, gap = (face.share_of_frames, face.longest_gap_frames) if has_face else (None, None)
    return [
        _check(limits, "face_share", share, "a face in {:.0%} of the frames"),
        _check(limits, "face_gap_frames", gap, "no face for {:.0f} frames in a row"),
        _check(
            limits,
            "shape_difference",
            face.shape_difference,
            "the shape of the face differs from the reference by {:.1%}",
        ),
        _check(
            limits, "identity_difference", face.identity_difference, "the face differs from the reference by {:.2f}"
        ),
    ]


def _judge_seam(seam: SeamQuality, limits: QualityLimits) -> list[Finding | None]:
    return [
        _check(limits, "seam_jump", seam.jump, "the picture jumps by {:.1f} times its usual motion"),
        _check(
            limits,
            "seam_colour_jump",
            seam.colour_jump,
            "the colour changes at the seam by {:.1f} times its usual change",
        ),
        _check(limits, "seam_colour", _unusual_step(seam), "the colour changes by {:.1f} at the seam"),
    ]


def _judge_look(look: LookQuality, limits: QualityLimits) -> list[Finding | None]:
    return [
        _check(limits, "skin_difference", look.skin_difference, "the skin's colour differs by {:.1f}"),
        _check(
            limits, "background_difference", look.background_difference, "the background's colour differs by {:.1f}"
        ),
        _check(
            limits, "sharpness_ratio", look.sharpness_ratio, "the face has {:.0%} of the sharpness of the reference"
        ),
        _check(
            limits, "contrast_ratio", look.contrast_ratio, "the picture has {:.0%} of the contrast of the reference"
        ),
    ]


def _frames_with_face(clip: ClipQuality) -> int:
    return round(clip.face.share_of_frames * (clip.end_frame - clip.start_frame))


def _judge_lip_sync(sync: LipSyncQuality, num_frames: int, limits: QualityLimits) -> list[Finding | None]:
    if sync.speech_share < limits.min_speech_share:
        return []
    is_long = num_frames >= limits.min_lip_sync_frames
    still = _still_mouth(sync, limits, with_margin=is_long)
    if still is not None:
        return [still]  # lag and correlation of a still mouth mean nothing
    if not is_long:
        return []
    lag = abs(sync.lag_ms) if sync.lag_ms is not None else None
    silent, spoken = sync.silent_opening_range, sync.opening_range
    if sync.darkness_range is not None:
        silent, spoken = sync.silent_darkness_range, sync.darkness_range
    ratio = silent / spoken if silent and spoken else None
    apart = _no_margin(sync, limits)
    if apart is not None:
        return [apart]  # neither does a lag of a mouth that does not follow
    return [
        _check(limits, "lip_sync_lag_ms", lag, "mouth and sound are {:.0f} ms apart"),
        _check(limits, "silent_mouth_ratio", ratio, "the mouth moves in silence {:.0%} as much as in speech"),
    ]


def _still_mouth(sync: LipSyncQuality, limits: QualityLimits, *, with_margin: bool) -> Finding | None:
    """Return the finding of a mouth that moves too little, or by the noise of the landmarks and not with the speech.

    When the head sways, the landmarks of a still mouth move too, mostly in drawings. A mouth whose darkness changes
    with the speech is not still, whatever the landmarks of its lips do.
    """
    if sync.darkness_range is not None and (not with_margin or _no_margin(sync, limits) is None):
        return None
    if with_margin and _no_margin(sync, limits) is not None:
        noise = Below(warn_below=None, fail_below=limits.landmark_noise)
        message = "the mouth moves by {:.1%} during speech, but does not follow it"
        if (found := _beyond(noise, "still_mouth", sync.opening_range, message)) is not None:
            return found
    return _check(limits, "still_mouth", sync.opening_range, "the mouth moves by {:.1%} during speech")


def _no_margin(sync: LipSyncQuality, limits: QualityLimits) -> Finding | None:
    """Return the finding of a mouth that follows this speech hardly more than other speech."""
    margin = _difference(sync.correlation, sync.other_correlation)
    message = "the correlation of the mouth with this speech minus that with other speech is {:.2f}"
    return _check(limits, "lip_sync_margin", margin, message)


def _check(limits: QualityLimits, measure: str, value: float | None, message: str) -> Finding | None:
    """Return the finding of a measure that is beyond its limits, else None."""
    return _beyond(getattr(limits, measure), measure, value, message)


def _beyond(limits: Below | Above, measure: str, value: float | None, message: str) -> Finding | None:
    if value is None:
        return None
    if isinstance(limits, Below):
        sign, side, failing, warning = -1, "at least", limits.fail_below, limits.warn_below
    else:
        sign, side, failing, warning = 1, "at most", limits.fail_above, limits.warn_above
    levels: tuple[tuple[Literal["fail", "warn"], float | None, float], ...]
    levels = (("fail", failing, _FAIL_PENALTY), ("warn", warning, 1.0))
    for level, limit, penalty in levels:
        if limit is not None and sign * value > sign * limit:
            text = f"{message.format(value)}, expected {side} {limit:g}"
            excess = min(1.0, abs(value - limit) / max(abs(limit), 1e-6))
            return Finding(level=level, measure=measure, message=text, penalty=penalty * (1 + excess))
    return None


def judge_drift(video: VideoQuality, limits: QualityLimits) -> list[Finding]:
    """Return the slopes over the clips that are beyond their limits."""
    if video.drift is None:
        return []
    colours = [slope for slope in (video.drift.skin_per_clip, video.drift.background_per_clip) if slope is not None]
    found = [
        _check(limits, "colour_drift", max(colours), "the colours drift by {:.1f} per clip"),
        _check(
            limits,
            "sharpness_drift",
            video.drift.sharpness_per_clip,
            "the sharpness changes by {:.0%} of the reference per clip",
        ),
    ]
    return [finding for finding in found if finding is not None]


def _unusual_step(seam: SeamQuality) -> float | None:
    """Return the larger colour step at a seam; None if such steps are usual inside the clips."""
    if seam.colour_jump <= _USUAL_COLOUR_JUMP:
        return None
    return max(step for step in (seam.skin_step, seam.background_step) if step is not None)


def _difference(one: float | None, other: float | None) -> float | None:
    return one - other if one is not None and other is not None else None


def in_words(video: VideoQuality, limits: QualityLimits) -> list[str]:
    """Return sentences about faces, lip sync, seams and sharpness, and each finding."""
    sentences = summary_in_words(video, limits)
    for index, clip in enumerate(video.clips):
        sentences += findings_in_words(index, judge_clip(clip, video.reference, limits))
    return sentences + drift_in_words(video, limits)


def findings_in_words(clip_index: int, findings: Iterable[Finding]) -> list[str]:
    """Return a sentence for each finding of a clip."""
    return [f"Clip {clip_index} ({finding.level}): {finding.message}." for finding in findings]


def drift_in_words(video: VideoQuality, limits: QualityLimits) -> list[str]:
    """Return a sentence for each slope over the clips that is beyond its limit."""
    return [f"Drift ({finding.level}): {finding.message}." for finding in judge_drift(video, limits)]


def clip_in_words(clip: ClipQuality) -> str:
    """Return the measures of a clip in one short line, for a strip below its pictures."""
    sync, look = clip.lip_sync, clip.look
    parts = []
    if clip.face.share_of_frames < 1:
        parts.append(f"face in {clip.face.share_of_frames:.0%}")
    if sync is not None and sync.lag_ms is not None:
        parts.append(f"lag {sync.lag_ms:.0f} ms")
        parts.append(f"correlation {sync.correlation:.2f}")
    if look.sharpness_ratio is not None:
        parts.append(f"sharpness {look.sharpness_ratio:.0%}")
    colour = look.skin_difference if look.skin_difference is not None else look.background_difference
    if colour is not None:
        parts.append(f"colour {colour:.1f}")
    if clip.seam is not None:
        parts.append(f"seam {clip.seam.jump:.1f}")
    return "   ".join(parts)


def summary_in_words(video: VideoQuality, limits: QualityLimits) -> list[str]:
    """Return sentences about the whole video: faces, lip sync, seams, sharpness."""
    sentences = [_faces_in_words(video), _lip_sync_in_words(video.lip_sync, limits)]
    seams = [clip.seam for clip in video.clips if clip.seam is not None]
    if seams:
        most = limits.seam_jump.warn_above or float("inf")
        colours = limits.seam_colour_jump.warn_above or float("inf")
        quiet = sum(seam.jump <= most and seam.colour_jump <= colours for seam in seams)
        sentences.append(f"Seams: {quiet} of {len(seams)} invisible.")
    last = video.clips[-1].look
    if last.sharpness_ratio is not None:
        sentences.append(f"Sharpness: {last.sharpness_ratio:.0%} of the reference in the last clip.")
    return sentences


def _faces_in_words(video: VideoQuality) -> str:
    frames = sum(clip.end_frame - clip.start_frame for clip in video.clips)
    share = sum(clip.face.share_of_frames * (clip.end_frame - clip.start_frame) for clip in video.clips) / frames
    if share == 0:
        return "Faces: none was found."
    most = max(clip.face.most_faces for clip in video.clips)
    return f"Faces: found in {share:.0%} of the frames, at most {most} at once."


def _lip_sync_in_words(sync: LipSyncQuality | None, limits: QualityLimits) -> str:
    if sync is None:
        return "Lip sync: not measured, there is no sound."
    if sync.speech_share < limits.min_speech_share:
        return "Lip sync: not measured, there is little or no speech."
    if sync.opening_range is None:
        return "Lip sync: not measured, there is no face."
    if _still_mouth(sync, limits, with_margin=True) is not None:
        return "Lip sync: the mouth is still during speech."
    if sync.lag_ms is None:
        return "Lip sync: not measured, a face is visible for less than two seconds."
    if _no_margin(sync, limits) is not None:
        return (
            f"Lip sync: the mouth does not follow the speech (correlation {sync.correlation:.2f}; "
            f"{sync.other_correlation:.2f} for other speech)."
        )
    verb = "follows" if sync.lag_ms >= 0 else "leads"
    return (
        f"Lip sync: the mouth {verb} the sound by {abs(sync.lag_ms):.0f} ms "
        f"(correlation {sync.correlation:.2f}; {sync.other_correlation:.2f} for other speech)."
    )
