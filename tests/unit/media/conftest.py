"""Small generated media files."""

import wave
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.media import ffmpeg
from s2v_tasks.media.encode import Frames
from s2v_tasks.media.speech import normalise_speech
from s2v_tasks.media.wav_scan import find_audio

Samples = npt.NDArray[np.float64]


@pytest.fixture
def noise() -> Callable[[int, int], Samples]:
    """Makes noise `[n, channels]` between -0.5 and 0.5, the same each time."""

    def make(num_samples: int, channels: int = 1) -> Samples:
        return np.random.default_rng(7).uniform(-0.5, 0.5, (num_samples, channels))

    return make


@pytest.fixture
def write_wav() -> Callable[[Path, Samples, int], Path]:
    """Writes samples `[n, channels]` as 16-bit WAV."""

    def write(path: Path, samples: Samples, sample_rate: int) -> Path:
        with wave.open(str(path), "wb") as file:
            file.setnchannels(samples.shape[1])
            file.setsampwidth(2)
            file.setframerate(sample_rate)
            file.writeframes((samples * 32767).astype("<i2").tobytes())
        return path

    return write


@pytest.fixture
def convert() -> Callable[..., Path]:
    """Converts a media file with ffmpeg's output options."""

    def run(source: Path, destination: Path, **options: Any) -> Path:
        command = ffmpeg.uploaded_input(source, "wav,mov").output(ffmpeg.file_url(destination), **options)
        ffmpeg.run(command, doing=f"making {destination.name}", error=PermanentError)
        return destination

    return run


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[..., str]:
    """Returns the sentence with which a file is refused as speech: one line that names the file."""

    def refuse(source: Path, max_duration_seconds: float = 30) -> str:
        with pytest.raises(PermanentError) as caught:
            normalise_speech(source, tmp_path / "16k.wav", max_duration_seconds=max_duration_seconds)
        message = str(caught.value)
        assert source.name in message
        assert "\n" not in message
        return message

    return refuse


@pytest.fixture
def moving() -> Callable[..., Frames]:
    """Makes RGB frames `[n,H,W,3]` of drifting waves, no two of which are equal."""

    def make(num_frames: int, height: int = 64, width: int = 96, phase: float = 0.0) -> Frames:
        y, x = np.mgrid[:height, :width]
        frames = [
            np.stack(
                [
                    127 + 100 * np.sin(x / 9 + k / 5 + phase),
                    127 + 100 * np.cos(y / 7 - k / 4 + phase),
                    127 + 60 * np.sin((x + y) / 11 + k / 3),
                ],
                axis=-1,
            )
            for k in range(num_frames)
        ]
        return np.stack(frames).astype(np.uint8)

    return make


@pytest.fixture
def found(tmp_path: Path) -> Callable[[bytes], bytes | str]:
    """Returns all samples that are found in a file of these bytes, or the message."""

    def find(data: bytes) -> bytes | str:
        (tmp_path / "a").write_bytes(data)
        with (tmp_path / "a").open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
            audio = find_audio(mapped)
            return audio if isinstance(audio, str) else b"".join(mapped[s.start : s.end] for s in audio)

    return find
