"""Measures of a clip, frame by frame in bounded memory: a few values of each frame and two pictures are kept."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from s2v_tasks.perception import colour, landmarks, seams
from s2v_tasks.perception.face_identity import Identity
from s2v_tasks.perception.faces import FaceFinder, Picture, Points
from s2v_tasks.perception.lip_sync import Mouth, measure_lip_sync
from s2v_tasks.schemas.quality import (
    ClipQuality,
    FaceQuality,
    FrameSeries,
    LookQuality,
    ReferenceLook,
    SeamQuality,
)

Series = npt.NDArray[np.float64]

# Other faces than the first are searched for in every such frame: they do not come and go within half a second.
_ALL_FACES_EVERY = 8
# The face is compared with that of the reference once per this many frames, in the middle of them.
_IDENTITY_EVERY = 32
# Colours on each side of a seam are the mean of this many frames.
_SEAM_FRAMES = 3
# Steps of colour below this distance in Lab cannot be distinguished from noise of the encoder.
_LEAST_STEP = 0.35
# The eyes count as closed below this share of their usual opening.
_BLINK_BELOW = 0.6


@dataclass(frozen=True)
class Reference:
    """The reference picture, fitted to the size of the video, and its face."""

    look: ReferenceLook
    landmarks: Points | None
    identity: Identity | None = None

    @classmethod
    def of(cls, picture: Picture, finder: FaceFinder) -> "Reference":
        """Measure the reference picture."""
        detections = finder.detect(picture)
        points = finder.mesh(picture, detections[0]).landmarks if detections else None
        skin = colour.mean_lab(landmarks.skin_pixels(picture, points)) if points is not None else None
        look = ReferenceLook(
            num_faces=len(detections),
            face_height=landmarks.face_height(points) / picture.shape[0] if points is not None else None,
            skin_lab=_triple(skin) if skin is not None else None,
            background_lab=_triple(colour.mean_lab(colour.background_pixels(picture))),
            contrast=colour.contrast(picture),
            sharpness=colour.sharpness(picture, points) if points is not None else None,
        )
        return cls(look, points, identity=Identity.of(picture, points) if points is not None else None)


class _Frame(NamedTuple):
    """Measures of one frame, NaN without a face; or their series `[n]` over the frames of a clip."""

    contrast: Any
    sharpness: Any = np.nan
    face_height: Any = np.nan
    eye_opening: Any = np.nan
    x: Any = np.nan  # of the centre of the face
    y: Any = np.nan
    shape_difference: Any = np.nan


@dataclass
class ClipMeter:
    """Takes the frames of a clip in order; `finish` returns the measures. `before`: meter of the previous clip."""

    finder: FaceFinder
    reference: Reference | None = None
    before: "ClipMeter | None" = None
    mouth: list[float] = field(default_factory=list)
    darkness: list[float] = field(default_factory=list)
    _frames: list[_Frame] = field(default_factory=list)
    _skin: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _background: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _shifts: list[float] = field(default_factory=list)
    _identities: list[float] = field(default_factory=list)
    _most_faces: int = 0
    _seam_shift: float | None = None
    _last: seams.Spectrum | None = None

    @classmethod
    def of_end(
        cls, finder: FaceFinder, reference: Reference | None, last: Iterable[Picture], series: FrameSeries | None
    ) -> "ClipMeter":
        """Return a meter that serves as `before`, from the last frames of a clip and the series of all its frames.

        Without a series, usual motion and colour step are computed from the next clip only.
        """
        meter = cls(finder, reference)
        for picture in last:
            meter.take(picture)
        if series is not None:
            meter._shifts = list(series.shifts)
            meter._skin = [np.full(3, np.nan) if lab is None else np.array(lab) for lab in series.skin]
            meter._background = [np.array(lab) for lab in series.background]
        return meter

    def series(self) -> FrameSeries:
        """Return the rounded values of each frame, which are stored for later measures."""
        return FrameSeries(
            mouth=tuple(round(opening, 5) if np.isfinite(opening) else None for opening in self.mouth),
            darkness=tuple(round(value, 5) if np.isfinite(value) else None for value in self.darkness),
            shifts=tuple(round(moved, 6) for moved in self._shifts),
            skin=tuple(_rounded(lab) if np.isfinite(lab).all() else None for lab in self._skin),
            background=tuple(_rounded(lab) for lab in self._background),
        )

    def take(self, picture: Picture) -> None:
        """Measure one frame u8 RGB `[H,W,3]`."""
        index = len(self.mouth)
        previous = self._last if self._last is not None else (self.before._last if self.before else None)
        spectrum = seams.spectrum(picture)
        if previous is not None:
            moved = seams.shift(previous, spectrum)
            if index == 0:
                self._seam_shift = moved
            else:
                self._shifts.append(moved)
        detections = self.finder.detect(picture)
        if index % _ALL_FACES_EVERY == 0:
            self._most_faces = max(self._most_faces, len(detections))
        points = self.finder.mesh(picture, detections[0]).landmarks if detections else None
        identity = self.reference.identity if self.reference else None
        if index % _IDENTITY_EVERY == _IDENTITY_EVERY // 2 and points is not None and identity is not None:
            self._identities.append(identity.difference(picture, points))
        self.mouth.append(landmarks.mouth_opening(points) if points is not None else np.nan)
        self.darkness.append(landmarks.mouth_darkness(picture, points) if points is not None else np.nan)
        self._frames.append(self._frame(picture, points))
        self._skin.append(_skin(picture, points))
        self._background.append(colour.mean_lab(colour.background_pixels(picture)))
        self._last = spectrum

    def _frame(self, picture: Picture, points: Points | None) -> _Frame:
        if points is None:
            return _Frame(colour.contrast(picture))
        theirs = self.reference.landmarks if self.reference else None
        x, y = landmarks.center(points)
        return _Frame(
            contrast=colour.contrast(picture),
            sharpness=colour.sharpness(picture, points),
            face_height=landmarks.face_height(points),
            eye_opening=landmarks.eye_opening(points),
            x=x,
            y=y,
            shape_difference=landmarks.shape_difference(points, theirs) if theirs is not None else np.nan,
        )

    def finish(
        self, start_frame: int, fps: float, speech: npt.NDArray[np.float32] | None, sample_rate: int
    ) -> ClipQuality:
        """Return the measures. `speech`: the sound of exactly these frames, mono; None measures no lip sync."""
        frames, mouth = _Frame(*np.array(self._frames).T), Mouth(np.array(self.mouth), np.array(self.darkness))
        return ClipQuality(
            start_frame=start_frame,
            end_frame=start_frame + len(self._frames),
            face=self._face(frames, fps),
            lip_sync=measure_lip_sync(mouth, speech, sample_rate, fps) if speech is not None else None,
            look=self._look(frames),
            seam=self._seam(start_frame),
        )

    def _face(self, frames: _Frame, fps: float) -> FaceQuality:
        found = np.isfinite(frames.face_height)
        height = _mean(frames.face_height)
        points = self.reference.landmarks if self.reference else None
        theirs = landmarks.face_height(points) if points is not None else None
        return FaceQuality(
            share_of_frames=float(found.mean()),
            longest_gap_frames=_longest_run(~found),
            most_faces=self._most_faces,
            height_ratio=height / theirs if height is not None and theirs is not None else None,
            shape_difference=_mean(frames.shape_difference),
            identity_difference=_mean(np.array(self._identities)),
            blinks_per_minute=_blinks(frames.eye_opening) / (len(found) / fps / 60) if found.any() else None,
            head_motion=float(np.hypot(np.nanstd(frames.x), np.nanstd(frames.y))) / height if height else None,
        )

    def _look(self, frames: _Frame) -> LookQuality:
        look = self.reference.look if self.reference else None
        skin, background = _mean_colour(self._skin), np.mean(self._background, axis=0)
        sharpness = _mean(frames.sharpness)
        theirs = look.sharpness if look else None
        return LookQuality(
            skin_difference=_distance(skin, look.skin_lab) if look else None,
            background_difference=_distance(background, look.background_lab) if look else None,
            contrast_ratio=float(frames.contrast.mean()) / max(look.contrast, 1e-6) if look else None,
            sharpness_ratio=sharpness / theirs if sharpness is not None and theirs else None,
        )

    def _seam(self, start_frame: int) -> SeamQuality | None:
        if self.before is None or self._seam_shift is None:
            return None
        inside = np.array(self.before._shifts + self._shifts)
        steps: list[float | None] = []
        ratios: list[float] = []
        for before, after in ((self.before._skin, self._skin), (self.before._background, self._background)):
            step = _distance(_mean_colour(before[-_SEAM_FRAMES:]), _mean_colour(after[:_SEAM_FRAMES]))
            steps.append(step)
            if step is not None:
                ratios.append(step / max(_usual_step(np.array(before), np.array(after)), _LEAST_STEP))
        return SeamQuality(
            start_frame=start_frame,
            jump=seams.jump(self._seam_shift, inside),
            colour_jump=max(ratios, default=0.0),
            skin_step=steps[0],
            background_step=steps[1] or 0.0,
        )


def _usual_step(*clips: Series) -> float:
    """Return the 95th percentile, over all frames inside clips, of the colour step that is measured at a seam."""
    steps: list[float] = []
    for colours in clips:
        for index in range(_SEAM_FRAMES, len(colours) - _SEAM_FRAMES + 1):
            before, after = colours[index - _SEAM_FRAMES : index], colours[index : index + _SEAM_FRAMES]
            if np.isfinite(before).all() and np.isfinite(after).all():
                steps.append(colour.difference(before.mean(axis=0), after.mean(axis=0)))
    return float(np.percentile(steps, 95)) if steps else 0.0


def _skin(picture: Picture, points: Points | None) -> npt.NDArray[np.float64]:
    return colour.mean_lab(landmarks.skin_pixels(picture, points)) if points is not None else np.full(3, np.nan)


def _mean_colour(colours: Iterable[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64] | None:
    known = [lab for lab in colours if np.isfinite(lab).all()]
    return np.asarray(np.mean(known, axis=0)) if known else None


def _distance(one: npt.ArrayLike | None, other: npt.ArrayLike | None) -> float | None:
    if one is None or other is None:
        return None
    return colour.difference(np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64))


def _triple(lab: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    lightness, a, b = (float(value) for value in lab)
    return lightness, a, b


def _rounded(lab: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    lightness, a, b = (round(value, 3) for value in _triple(lab))
    return lightness, a, b


def _mean(values: Series) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _longest_run(flags: npt.NDArray[np.bool_]) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def _blinks(eyes: Series) -> int:
    known = eyes[np.isfinite(eyes)]
    if not len(known):
        return 0
    closed = known < _BLINK_BELOW * np.median(known)
    return int(np.sum(closed[1:] & ~closed[:-1]) + closed[0])
