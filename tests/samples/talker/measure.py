"""Measure a rendered video against speech: `python measure.py VIDEO AUDIO --models DIR [--other AUDIO ...]`.

DIR holds two networks of MediaPipe (Apache-2.0): `face_detection_short_range.tflite` and `face_landmark.tflite`; they
run on `ai-edge-litert`. The mouth opening is the gap between the inner lips over the length of the face. It is
correlated with the loudness of the speech, shifted by up to half a second. Prints JSON: share of frames with a face,
the best correlation with AUDIO and its lag in milliseconds (positive: the sound is late), that with other speech, and
for each place where clips meet the jump of the picture over the median of the jumps beside it.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2v_tasks.engine.audio_features import FRAMES_PER_SECOND
from s2v_tasks.media.frames import iter_rgb

Floats = NDArray[np.float64]
_LAGS = np.arange(-0.5, 0.501, 0.01)
_DETECTION_SIDE, _MESH_SIDE = 128, 192
_LEAST_SCORE = 0.5
_UPPER_LIP, _LOWER_LIP, _FOREHEAD, _CHIN = 13, 14, 10, 152  # inner lips and ends of the face in the mesh of 468 points


class _Network:
    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = {output["name"]: output["index"] for output in self._interpreter.get_output_details()}

    def __call__(self, picture: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        self._interpreter.set_tensor(self._input, picture[None].astype(np.float32))
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index)[0] for name, index in self._outputs.items()}


class FaceMesh:
    """Finds a face and its 468 points."""

    def __init__(self, models: Path) -> None:
        self._detector = _Network(models / "face_detection_short_range.tflite")
        self._mesh = _Network(models / "face_landmark.tflite")
        # Two anchors per cell of 16 x 16, six per cell of 8 x 8.
        self._anchors = np.array([
            ((x + 0.5) / cells, (y + 0.5) / cells)
            for cells, count in ((16, 2), (8, 6))
            for y in range(cells)
            for x in range(cells)
            for _ in range(count)
        ])

    def points(self, frame_u8: NDArray[np.uint8]) -> Floats | None:
        """Return points `[468, 2]` in pixels; None where there is no face."""
        image = Image.fromarray(frame_u8)
        side = max(image.size)
        square = Image.new("RGB", (side, side))
        offset = ((side - image.width) // 2, (side - image.height) // 2)
        square.paste(image, offset)
        small = square.resize((_DETECTION_SIDE, _DETECTION_SIDE), Image.Resampling.BILINEAR)
        output = self._detector(np.asarray(small) / 127.5 - 1)
        scores = 1 / (1 + np.exp(-np.clip(output["classificators"][:, 0], -50, 50)))
        best = int(scores.argmax())
        if scores[best] < _LEAST_SCORE:
            return None
        box = output["regressors"][best].astype(float) / _DETECTION_SIDE
        centre = (box[:2] + self._anchors[best]) * side
        right_eye, left_eye = (box[4:8].reshape(2, 2) + self._anchors[best]) * side
        angle = math.atan2(left_eye[1] - right_eye[1], left_eye[0] - right_eye[0])
        scale = 1.5 * float(max(box[2:4])) * side / _MESH_SIDE
        turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        shift = centre - turn @ np.array([_MESH_SIDE / 2, _MESH_SIDE / 2])
        affine = (*turn[0], shift[0], *turn[1], shift[1])
        crop = square.transform((_MESH_SIDE, _MESH_SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        mesh = self._mesh(np.asarray(crop) / 255)["conv2d_21"].reshape(-1, 3)[:, :2]
        return mesh @ turn.T + shift - offset


@dataclass(frozen=True)
class Watched:
    """The mouth of each frame (nan: no face) and how much each frame differs from the one before."""

    openings: Floats
    jumps: Floats

    @property
    def face_share(self) -> float:
        """Return the share of frames with a face."""
        return float(np.isfinite(self.openings).mean())


def watch(frames: Any, models: Path) -> Watched:
    """Return the mouth in each of `frames` `[n, H, W, 3]`, given as an iterable of pieces."""
    mesh, openings, jumps = FaceMesh(models), [], []
    before: NDArray[np.float64] | None = None
    for piece in frames:
        for frame in piece:
            large = np.asarray(Image.fromarray(frame).resize((3 * frame.shape[1], 3 * frame.shape[0])))
            points = mesh.points(large)
            openings.append(math.nan if points is None else _opening(points))
            grey = frame.astype(float).mean(-1)
            jumps.append(0.0 if before is None else float(np.abs(grey - before).mean()))
            before = grey
    return Watched(np.array(openings), np.array(jumps))


def _opening(points: Floats) -> float:
    gap, face = points[_UPPER_LIP] - points[_LOWER_LIP], points[_FOREHEAD] - points[_CHIN]
    return float(np.linalg.norm(gap) / np.linalg.norm(face))


def best_lag(openings: Floats, waveform: NDArray[np.float32]) -> tuple[float, float]:
    """Return the highest correlation of the mouth with the loudness of speech at 16 kHz, and its lag in ms."""
    frames = np.arange(len(openings))
    known = np.isfinite(openings)
    if known.sum() < 8:
        return 0.0, 0.0
    mouth = np.interp(frames, frames[known], openings[known])
    values = [_correlation(mouth, _loudness(waveform, len(mouth), lag)) for lag in _LAGS]
    best = int(np.argmax(values))
    return values[best], float(1000 * _LAGS[best])


def _loudness(waveform: NDArray[np.float32], num_frames: int, lag: float) -> Floats:
    times = (np.arange(num_frames) + 0.5) / FRAMES_PER_SECOND + lag
    half = int(16000 / FRAMES_PER_SECOND * 0.75)
    sums = np.concatenate([[0.0], np.cumsum(waveform.astype(float) ** 2)])
    centre = (times * 16000).astype(int)
    first, last = np.clip(centre - half, 0, len(waveform)), np.clip(centre + half, 0, len(waveform))
    energy = np.sqrt(np.maximum(0, sums[last] - sums[first]) / np.maximum(1, last - first))
    return np.log1p(energy / (0.05 * energy.max() + 1e-6))


def _correlation(a: Floats, b: Floats) -> float:
    return 0.0 if min(a.std(), b.std()) < 1e-9 else float(np.corrcoef(a, b)[0, 1])


def _speech(path: Path) -> NDArray[np.float32]:
    import librosa

    return librosa.load(path, sr=16000, mono=True)[0]  # type: ignore[no-any-return]


def report(video: Path, audio: Path, others: list[Path], models: Path, seams: list[int]) -> dict[str, Any]:
    """Return all measures of a video."""
    watched = watch(iter_rgb(video), models)
    value, lag = best_lag(watched.openings, _speech(audio))
    ratios = [
        float(watched.jumps[seam] / max(1e-6, np.median(watched.jumps[max(1, seam - 12) : seam + 13])))
        for seam in seams
    ]
    return {
        "frames": len(watched.openings),
        "face_share": watched.face_share,
        "correlation": value,
        "lag_ms": lag,
        "other_correlations": [best_lag(watched.openings, _speech(path))[0] for path in others],
        "opening_std": float(np.nanstd(watched.openings)),
        "seam_ratios": ratios,
    }


def main() -> None:
    """Parse the command line and print the measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--other", type=Path, action="append", default=[])
    parser.add_argument("--seam", type=int, action="append", default=[], help="first frame of a later clip")
    a = parser.parse_args()
    measures = report(a.video, a.audio, a.other, a.models, a.seam)
    print(json.dumps(measures, default=lambda value: round(float(value), 4)))


if __name__ == "__main__":
    main()
