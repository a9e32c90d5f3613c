"""Check the inputs of a job before it costs anything: one face in the picture, and speech in the audio."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from s2v_tasks.perception import landmarks
from s2v_tasks.perception.faces import FaceFinder, Picture
from s2v_tasks.schemas.manifest import StagedFaces, StagedSound

_LONGEST_SIDE = 1280  # of the picture in which faces are searched
_WINDOWS_PER_SECOND = 10
# Windows more than this below the loudest are silent; digital silence is silent at every level.
_SILENT_BELOW_DB = 40.0
_LEAST_DBFS = -60.0
_CLIPPING_LEVEL = 0.9
_CLIPPED_ABOVE = 0.999
# This many consecutive samples at full scale are clipping; a single peak may be a normalised recording.
_CLIPPED_RUN = 3


def look(path: Path) -> StagedFaces:
    """Return the faces of the reference picture in a PNG file; size and turn belong to the face with the best score."""
    with Image.open(path) as image:
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        picture = np.asarray(image.convert("RGB"))
    finder = FaceFinder()
    for part in _parts(picture):
        if detections := finder.detect(part):
            break
    else:
        return StagedFaces(num_faces=0)
    face = finder.mesh(part, detections[0])
    width, height = np.ptp(face.landmarks, axis=0)
    return StagedFaces(
        num_faces=len(detections),
        area_share=float(width * height) / (picture.shape[0] * picture.shape[1]),
        turn=landmarks.turn(face.landmarks),
        confidence=face.confidence,
    )


def _parts(picture: Picture) -> Iterator[Picture]:
    """Yield the picture, then overlapping squares of half its longer side: the detector misses small faces."""
    yield picture
    height, width = picture.shape[:2]
    side = max(height, width) // 2
    for top in range(0, max(1, height - side // 2), side // 2):
        for left in range(0, max(1, width - side // 2), side // 2):
            yield picture[top : top + side, left : left + side]


def listen(samples: npt.NDArray[np.float32], sample_rate: int) -> StagedSound:
    """Measure the level of a speech `[n]`, mono, -1..1: lead-in, silence, clipping, movement.

    movement_db is the mean change of the level between tenths of a second that are not silent: 4 to 10 dB in speech,
    below 2 dB in steady music, noise and tones.
    """
    window = sample_rate // _WINDOWS_PER_SECOND
    whole = samples[: len(samples) // window * window].astype(np.float64).reshape(-1, window)
    if not len(whole):
        return StagedSound(lead_in_seconds=0.0, silent_share=0.0, clipped_share=0.0, movement_db=None)
    levels = 10 * np.log10(np.maximum(np.mean(whole**2, axis=1), 1e-12))
    sounding = levels > max(float(levels.max()) - _SILENT_BELOW_DB, _LEAST_DBFS)
    first = int(np.argmax(sounding)) if sounding.any() else len(sounding)
    steps = np.abs(np.diff(levels))[sounding[1:] & sounding[:-1]]
    return StagedSound(
        lead_in_seconds=first / _WINDOWS_PER_SECOND,
        silent_share=float(1 - sounding.mean()),
        clipped_share=_clipped_share(samples),
        movement_db=float(steps.mean()) if len(steps) else None,
    )


def _clipped_share(samples: npt.NDArray[np.float32]) -> float:
    at_limit = np.abs(samples) >= _CLIPPED_ABOVE * max(float(np.abs(samples).max(initial=0.0)), 1e-9)
    if len(samples) < _CLIPPED_RUN or np.abs(samples).max() < _CLIPPING_LEVEL:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(at_limit, _CLIPPED_RUN).all(axis=1)
    return float(runs.mean())
