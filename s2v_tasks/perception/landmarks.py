"""Quantities of one face mesh: mouth and eye opening, position, turn of the head, patches of skin, shape.

Landmark numbers are those of MediaPipe's face mesh. Lengths are divided by the height of the face (forehead to chin),
so that they do not depend on the size of the picture.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from s2v_tasks.perception.faces import Picture, Points

_LIP_TOP, _LIP_BOTTOM = 13, 14
_FOREHEAD, _CHIN = 10, 152
_MOUTH_CORNERS, _EYE_CORNERS = (61, 291), (33, 263)
# Square around the mouth, open or closed: pixels, side in shares of the face's height, share of it above the corners.
_MOUTH_PIXELS, _MOUTH_SIDE, _ABOVE_CORNERS = 32, 0.5, 0.375
_NOSE, _CHEEK_RIGHT, _CHEEK_LEFT = 1, 234, 454
_EYES = ((159, 145, 33, 133), (386, 374, 362, 263))
# Skin between features: both cheeks and the middle of the forehead.
_SKIN = (50, 280, 151)
_SKIN_PATCH = 0.06
# Landmarks that speech and blinks do not move: outline of the upper face, brows, nose, outer corners of the eyes.
_RIGID = (
    10, 338, 297, 332, 284, 251, 389, 127, 162, 21, 54, 103, 67, 109,
    1, 2, 4, 5, 6, 168, 33, 263, 133, 362, 70, 300,
)  # fmt: skip


def face_height(landmarks: Points) -> float:
    """Return the distance from forehead to chin in pixels."""
    return float(np.linalg.norm(landmarks[_FOREHEAD] - landmarks[_CHIN]))


def mouth_opening(landmarks: Points) -> float:
    """Return the gap between the inner lips over the height of the face: about 0 closed, 0.2 wide open."""
    return float(np.linalg.norm(landmarks[_LIP_TOP] - landmarks[_LIP_BOTTOM])) / face_height(landmarks)


def mouth_darkness(picture: Picture, landmarks: Points) -> float:
    """Return how much darker than its median the region of the mouth is, 0..1 as the mean over its pixels.

    An open mouth is a dark hole. This also works where the landmarks of the lips do not: in flat drawings.
    """
    right, left = landmarks[list(_EYE_CORNERS)]
    step = _MOUTH_SIDE * face_height(landmarks) / _MOUTH_PIXELS
    across = step * (left - right) / np.linalg.norm(left - right)
    down = np.array([-across[1], across[0]])
    corners = landmarks[list(_MOUTH_CORNERS)].mean(axis=0)
    first = corners - _MOUTH_PIXELS * (across / 2 + _ABOVE_CORNERS * down)
    affine = (across[0], down[0], first[0], across[1], down[1], first[1])
    size = (_MOUTH_PIXELS, _MOUTH_PIXELS)
    region = Image.fromarray(picture).transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    luma = np.asarray(region.convert("L"), dtype=np.float64)
    return float(np.maximum(0, 1 - luma / max(1.0, float(np.median(luma)))).mean())


def eye_opening(landmarks: Points) -> float:
    """Return the height of the eyes over their width, mean of both: about 0.3 open, below 0.15 closed."""
    ratios = [
        np.linalg.norm(landmarks[top] - landmarks[bottom]) / np.linalg.norm(landmarks[outer] - landmarks[inner])
        for top, bottom, outer, inner in _EYES
    ]
    return float(np.mean(ratios))


def center(landmarks: Points) -> Points:
    """Return the mean of all landmarks `[2]` in pixels."""
    return np.asarray(landmarks.mean(axis=0))


def turn(landmarks: Points) -> float:
    """Return the offset of the nose from the middle of the face, -1..1: 0 is frontal, above 0.6 a profile."""
    right, left = landmarks[_CHEEK_RIGHT], landmarks[_CHEEK_LEFT]
    across = left - right
    position = float(np.dot(landmarks[_NOSE] - right, across) / np.dot(across, across))
    return float(np.clip(2 * position - 1, -1, 1))


def skin_pixels(picture: Picture, landmarks: Points) -> npt.NDArray[np.uint8]:
    """Return the pixels `[n,3]` of three patches of skin; empty if none lies inside the picture."""
    half = max(1.0, _SKIN_PATCH * face_height(landmarks) / 2)
    patches = [patch(picture, landmarks[index], half) for index in _SKIN]
    return np.concatenate([part.reshape(-1, 3) for part in patches])


def patch(picture: Picture, middle: Points, half: float) -> Picture:
    """Return the square part of a picture around a point, cut at the borders."""
    height, width = picture.shape[:2]
    left, right = np.clip([middle[0] - half, middle[0] + half + 1], 0, width).astype(int)
    top, bottom = np.clip([middle[1] - half, middle[1] + half + 1], 0, height).astype(int)
    return picture[top:bottom, left:right]


def shape_difference(landmarks: Points, reference: Points) -> float:
    """Return how far rigid landmarks differ from those of another face after the best similarity transform.

    Root mean square distance over the height of the face. Movements of head and mouth do not count; a turned head does.
    """
    ours, theirs = landmarks[list(_RIGID)], reference[list(_RIGID)]
    ours, theirs = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    # Procrustes in the plane: complex numbers give rotation and scale in one factor.
    ours_c, theirs_c = ours @ [1, 1j], theirs @ [1, 1j]
    factor = np.vdot(ours_c, theirs_c) / np.vdot(ours_c, ours_c)
    distance = np.sqrt(np.mean(np.abs(factor * ours_c - theirs_c) ** 2))
    return float(distance / face_height(reference))
