"""Short films of drawn people who speak: what all stages after the audio encoder learn from."""

from dataclasses import dataclass

import numpy as np
import speech
from faces import Frames, Motion, Person, Pose
from numpy.typing import NDArray

from s2v_tasks.engine.audio_features import FRAMES_PER_SECOND

SIZES = ((128, 192), (128, 192), (128, 128))  # width, height; as often as they are listed
# The person of the sample portrait, tests/samples/portrait.jpg, is seen more often than any other: the demo shows it.
SAMPLE_SIZE = (128, 192)
SAMPLE_SHARE = 0.5
_SAMPLE_SEED = 20


@dataclass(frozen=True)
class Clip:
    """Frames of one person, and what was drawn."""

    person: Person
    poses: list[Pose]
    frames: Frames

    @property
    def openings(self) -> NDArray[np.float32]:
        """Return the mouth opening of each frame."""
        return np.array([pose.opening for pose in self.poses], np.float32)


def sample_person(width: int, height: int) -> Person:
    """Return the person of the sample portrait."""
    return Person(np.random.default_rng(_SAMPLE_SEED), width, height)


def draw_person(rng: np.random.Generator, sample_share: float) -> Person:
    """Return the person of the sample portrait in `sample_share` of the cases, else a new one."""
    if rng.random() < sample_share:
        return sample_person(*SAMPLE_SIZE)
    width, height = SIZES[rng.integers(len(SIZES))]
    return Person(rng, width, height)


def draw_clip(
    rng: np.random.Generator, person: Person, utterance: speech.Utterance, start_seconds: float, num_frames: int
) -> Clip:
    """Return `person` who says `utterance` from `start_seconds` on."""
    motion = Motion(rng, utterance.num_seconds)
    seconds = start_seconds + (np.arange(num_frames) + 0.5) / FRAMES_PER_SECOND
    mouths = utterance.mouth(seconds)
    poses = [motion.pose(float(t), float(o), float(w)) for t, (o, w) in zip(seconds, mouths, strict=True)]
    return Clip(person, poses, np.stack([person.frame(pose) for pose in poses]))


def measured_opening(person: Person, pose: Pose, frame: NDArray[np.uint8]) -> float:
    """Return the opening with which `person` in `pose` looks most like `frame` in the region of the mouth."""
    left, top, right, bottom = person.mouth_box()
    openings = np.linspace(0, 1, 11)
    errors = []
    for opening in openings:
        drawn = person.frame(Pose(float(opening), pose.width, pose.blink, pose.shift, pose.tilt))
        difference = drawn[top:bottom, left:right].astype(float) - frame[top:bottom, left:right]
        errors.append(np.mean(difference**2))
    best = int(np.clip(np.argmin(errors), 1, len(openings) - 2))
    before, at, after = errors[best - 1 : best + 2]
    offset = 0.5 * (before - after) / max(1e-9, before - 2 * at + after)
    return float(openings[best] + np.clip(offset, -1, 1) * (openings[1] - openings[0]))
