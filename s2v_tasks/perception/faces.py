"""Find faces in pictures and place 468 landmarks on each (MediaPipe's two TFLite networks, see mediapipe/NOTICE).

Coordinates are pixels of the picture, x to the right and y downwards. Pictures are u8 RGB `[H,W,3]`.
"""

import hashlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from s2v_tasks.errors import ConfigurationError

Picture = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]

_NETWORKS = Path(__file__).parent / "mediapipe"
_SHA256 = {
    "face_detection_short_range": "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    "face_landmark": "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
}
_DETECTOR_SIDE, _MESH_SIDE = 128, 192
# The mesh network expects the box of the detector with a margin of a quarter on each side, eyes level.
_MESH_CROP = 1.5
# Layout of the detector's 896 anchors: two per cell of a 16x16 grid, then six per cell of an 8x8 grid.
_GRIDS = ((16, 2), (8, 6))
_MIN_SCORE = 0.5
# Two detections that overlap by more (intersection over union) are the same face.
_SAME_FACE_IOU = 0.3


@dataclass(frozen=True)
class Detection:
    """One face: score in 0..1, box (left, top, right, bottom), key points `[6,2]` (eyes, nose, mouth, ears)."""

    score: float
    box: tuple[float, float, float, float]
    key_points: Points

    @property
    def center(self) -> Points:
        """Return the centre of the box `[2]`."""
        left, top, right, bottom = self.box
        return np.array([(left + right) / 2, (top + bottom) / 2])

    @property
    def side(self) -> float:
        """Return the longer side of the box in pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


@dataclass(frozen=True)
class Face:
    """A detected face with its mesh: landmarks `[468,2]` and the mesh network's own confidence in 0..1."""

    detection: Detection
    landmarks: Points
    confidence: float


class FaceFinder:
    """The two networks, loaded once. Not safe for several threads at once.

    Raises ConfigurationError if a model file is missing or damaged. On one core a picture of 192x240 takes 5 ms.
    """

    def __init__(self) -> None:
        self._detector = _Network("face_detection_short_range")
        self._mesh = _Network("face_landmark")
        self._anchors = np.array([
            [(column + 0.5) / side, (row + 0.5) / side]
            for side, per_cell in _GRIDS
            for row in range(side)
            for column in range(side)
            for _ in range(per_cell)
        ])

    def detect(self, picture: Picture) -> list[Detection]:
        """Return the faces of a picture, best score first. A face below about a tenth of the longer side is missed."""
        height, width = picture.shape[:2]
        side = max(height, width)
        offset = np.array([(side - width) // 2, (side - height) // 2])
        image, border = Image.fromarray(picture), (int(offset[0]), int(offset[1]))
        if width == side:
            # Equal to the resize of the square, which shortens each row first, without the rows of the border.
            image = image.resize((_DETECTOR_SIDE, height), Image.Resampling.BOX)
        square = Image.new("RGB", (side if width < side else _DETECTOR_SIDE, side))
        square.paste(image, border)
        small = square.resize((_DETECTOR_SIDE, _DETECTOR_SIDE), Image.Resampling.BOX)
        outputs = self._detector(np.asarray(small, dtype=np.float32) / np.float32(127.5) - 1)
        scores = _sigmoid(outputs["classificators"][:, 0])
        regressors = outputs["regressors"] / _DETECTOR_SIDE
        found: list[Detection] = []
        for index in np.argsort(-scores):
            if scores[index] < _MIN_SCORE:
                break
            detection = _decode(float(scores[index]), regressors[index], self._anchors[index], side, offset)
            if all(_iou(detection.box, other.box) <= _SAME_FACE_IOU for other in found):
                found.append(detection)
        return found

    def mesh(self, picture: Picture, detection: Detection) -> Face:
        """Place the 468 landmarks on a detected face."""
        right_eye, left_eye = detection.key_points[0], detection.key_points[1]
        angle = math.atan2(left_eye[1] - right_eye[1], left_eye[0] - right_eye[0])
        scale = _MESH_CROP * detection.side / _MESH_SIDE
        # From a pixel of the crop to a pixel of the picture: rotate, scale, move the centre.
        rotation = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        shift = detection.center - rotation @ np.full(2, _MESH_SIDE / 2)
        affine = (*rotation[0], shift[0], *rotation[1], shift[1])
        crop = Image.fromarray(picture).transform(
            (_MESH_SIDE, _MESH_SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
        )
        outputs = self._mesh(np.asarray(crop, dtype=np.float32) / np.float32(255))
        points = outputs["conv2d_21"].reshape(468, 3)[:, :2].astype(np.float64)
        confidence = float(_sigmoid(outputs["conv2d_31"].reshape(-1))[0])
        return Face(detection=detection, landmarks=points @ rotation.T + shift, confidence=confidence)

    def find(self, picture: Picture) -> Face | None:
        """Return the face with the best score with its landmarks, or None if the picture shows none."""
        detections = self.detect(picture)
        return self.mesh(picture, detections[0]) if detections else None


class _Network:
    """One TFLite file: float32 `[H,W,3]` in, outputs by name, without their batch axis."""

    def __init__(self, name: str) -> None:
        from ai_edge_litert.interpreter import Interpreter

        path = _NETWORKS / f"{name}.tflite"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256[name]:
            raise ConfigurationError(f"{path} is missing or damaged: install the package again.")
        self._interpreter = Interpreter(str(path), num_threads=1)
        with _without_info_lines():
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = {output["name"]: output["index"] for output in self._interpreter.get_output_details()}

    def __call__(self, picture: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(picture[None], dtype=np.float32))
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index)[0] for name, index in self._outputs.items()}


@contextmanager
def _without_info_lines() -> Iterator[None]:
    """Keep lines that begin with INFO: off stderr. The library writes them in C++ and has no setting for it."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            for line in written:
                if not line.startswith(b"INFO:"):
                    os.write(2, line)


def _decode(
    score: float, regressor: npt.NDArray[np.float32], anchor: Points, side: int, offset: npt.NDArray[np.int64]
) -> Detection:
    center = (regressor[:2] + anchor) * side - offset
    half = regressor[2:4] * side / 2
    key_points = (regressor[4:].reshape(6, 2) + anchor) * side - offset
    box = (center[0] - half[0], center[1] - half[1], center[0] + half[0], center[1] + half[1])
    left, top, right, bottom = (float(edge) for edge in box)
    return Detection(score=score, box=(left, top, right, bottom), key_points=key_points)


def _iou(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def _sigmoid(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(values.astype(np.float64), -100, 100))))
