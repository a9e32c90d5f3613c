"""Speech for tests: loud and quiet stretches of noise, as long as they are asked for."""

import numpy as np

from s2v_tasks.planning.pauses import SAMPLE_RATE, Samples


def speech(*stretches: tuple[float, float]) -> Samples:
    """Noise with the given (seconds, level in dB of full scale), one after the other; -120 dB is digital silence."""
    noise = np.random.default_rng(7)
    parts = [
        noise.standard_normal(round(seconds * SAMPLE_RATE)) * (10 ** (level / 20) if level > -120 else 0.0)
        for seconds, level in stretches
    ]
    return np.concatenate(parts).astype(np.float32)
