"""Time of a video: the number of frames that a speech needs. Integers and fractions only, never floats."""

import math

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.plan import FPS, SpeechFacts


def frames_of_speech(speech: SpeechFacts) -> int:
    """The fewest frames at 16 fps that last at least as long as the speech; PermanentError when it is empty."""
    if speech.num_samples <= 0:
        raise PermanentError("The speech has 0 samples: expected at least one; check that the file holds sound.")
    return math.ceil(FPS * speech.duration_seconds)
