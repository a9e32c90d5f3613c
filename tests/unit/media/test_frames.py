"""Check the measures of finished videos."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.assembly import _check_key_frame, _check_times, mux
from s2v_tasks.media.encode import Frames, check_profile, encode_clip
from s2v_tasks.media.frames import measure

Moving = Callable[..., Frames]
SAMPLES = Path(__file__).parents[2] / "samples"


def test_facts_of_a_good_video(tmp_path: Path, moving: Moving, write_wav: Callable[..., Path]) -> None:
    """Streams, size, times, light and loudness are those of the input."""
    frames = moving(32)
    encode_clip(frames, tmp_path / "silent.mp4")
    tone = np.sin(np.arange(96000) * 2 * np.pi * 440 / 48000)[:, None] * 0.5
    mux(tmp_path / "silent.mp4", write_wav(tmp_path / "a.wav", tone, 48000), tmp_path / "a.mp4", num_frames=32, fps=16)
    facts = measure(tmp_path / "a.mp4")
    assert facts.streams == ("video", "audio")
    assert (facts.video_codec, facts.pixel_format, facts.audio_codec) == ("h264", "yuv420p", "aac")
    assert facts.colour == ("bt709", "bt709", "bt709", "tv")
    assert (facts.width, facts.height, facts.fps, facts.num_frames) == (96, 64, 16, 32)
    assert (facts.video_duration_seconds, facts.audio_duration_seconds) == (2, 2)
    assert (facts.video_start_seconds, facts.audio_start_seconds) == (0, 0)
    luma = frames @ np.array([0.2126, 0.7152, 0.0722])
    assert facts.mean_luma == pytest.approx(luma.mean(), abs=1)
    assert facts.darkest_frame_luma == pytest.approx(luma.mean(axis=(1, 2)).min(), abs=1)
    assert facts.luma_std == pytest.approx(luma.std(axis=(1, 2)).mean(), abs=1.5)
    assert facts.longest_still_frames == 1
    assert facts.audio_rms_dbfs == pytest.approx(-9.03, abs=0.3)
    assert facts.audio_peak_dbfs == pytest.approx(-6.02, abs=0.5)
    assert facts.decode_errors == ()


def test_black_video_is_dark_and_still(tmp_path: Path) -> None:
    """Black frames have luma 0, no deviation, and are one long still; a video without audio has no level."""
    encode_clip(np.zeros((20, 64, 64, 3), np.uint8), tmp_path / "a.mp4")
    facts = measure(tmp_path / "a.mp4")
    assert (facts.mean_luma, facts.luma_std, facts.longest_still_frames) == (0, 0, 20)
    assert (facts.streams, facts.audio_codec, facts.audio_rms_dbfs) == (("video",), None, None)


def test_longest_still_part_is_found(tmp_path: Path, moving: Moving) -> None:
    """Only consecutive equal frames count as still."""
    frames = moving(40)
    frames[1:4] = frames[0]
    frames[20:33] = frames[20]
    encode_clip(frames, tmp_path / "a.mp4")
    assert measure(tmp_path / "a.mp4").longest_still_frames == 13


def test_key_frames_do_not_hide_a_frozen_picture(tmp_path: Path) -> None:
    """A frozen portrait counts as still throughout, although key frames encode it again."""
    encode_clip([_portrait()] * 80, tmp_path / "a.mp4")
    assert measure(tmp_path / "a.mp4").longest_still_frames == 80


def test_a_moving_mouth_is_motion(tmp_path: Path) -> None:
    """A portrait whose mouth alone moves, by two pixels, is not still."""
    frames = [_portrait() for _ in range(24)]
    for index, frame in enumerate(frames):
        frame[178:198, 100:140] = np.roll(frame[178:198, 100:140], 2 * (index % 2), axis=0)
    encode_clip(frames, tmp_path / "a.mp4")
    assert measure(tmp_path / "a.mp4").longest_still_frames <= 2


def _portrait() -> Frames:
    with Image.open(SAMPLES / "portrait.jpg") as image:
        return np.asarray(image.resize((240, 320))).copy()


def test_one_black_frame_is_found(tmp_path: Path, moving: Moving) -> None:
    """A single black frame is found in the extremes of the luma."""
    frames = moving(30)
    frames[17] = 0
    encode_clip(frames, tmp_path / "a.mp4")
    facts = measure(tmp_path / "a.mp4")
    assert facts.mean_luma > 80
    assert facts.darkest_frame_luma < 3
    assert facts.flattest_frame_luma_std < 2


@pytest.mark.parametrize("damage", ["hole", "cut"])
def test_damage_is_reported_as_a_fact(damage: str, tmp_path: Path, moving: Moving) -> None:
    """A video that does not decode to its end is measured, with the error in its facts."""
    encode_clip(moving(40), tmp_path / "a.mp4")
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(data) // 2
    if damage == "hole":
        data[middle : middle + 2000] = bytes(2000)
    else:
        del data[middle:]
    (tmp_path / "a.mp4").write_bytes(data)
    facts = measure(tmp_path / "a.mp4")
    assert facts.decode_errors
    assert facts.num_frames < 40


def test_a_file_without_a_picture_cannot_be_measured(
    tmp_path: Path, noise: Callable[..., Any], write_wav: Callable[..., Path]
) -> None:
    """A file without a video stream is an error, as an input and as a result."""
    sound = write_wav(tmp_path / "a.wav", noise(8000), 8000)
    with pytest.raises(PermanentError, match="no video stream"):
        measure(sound)
    with pytest.raises(TransientError, match=r"a\.wav has no video stream, expected .*: run the step again"):
        check_profile(sound, width=64, height=64, fps=16, num_frames=8)


@pytest.mark.parametrize("promised", [7, 9])
def test_a_joined_video_of_another_number_of_frames_is_refused(promised: int, tmp_path: Path, moving: Moving) -> None:
    """Its frames are counted after the join, before anything builds on it."""
    encode_clip(moving(8), tmp_path / "a.mp4")
    _check_times(tmp_path / "a.mp4", Fraction(16), 8)
    with pytest.raises(TransientError, match=rf"a\.mp4 has 8 frames, expected {promised}: stitch again"):
        _check_times(tmp_path / "a.mp4", Fraction(16), promised)


def test_packets_of_sound_are_no_frames(
    tmp_path: Path, moving: Moving, noise: Callable[..., Any], write_wav: Callable[..., Path]
) -> None:
    """Times and key frames are those of the picture."""
    encode_clip(moving(8), tmp_path / "silent.mp4")
    speech = write_wav(tmp_path / "a.wav", noise(4000), 8000)
    mux(tmp_path / "silent.mp4", speech, tmp_path / "a.mp4", num_frames=8, fps=16)
    _check_times(tmp_path / "a.mp4", Fraction(16), 8)
    with pytest.raises(PermanentError, match=r"Frame 4 of a\.mp4 is not a key frame"):
        _check_key_frame(tmp_path / "a.mp4", 4)
