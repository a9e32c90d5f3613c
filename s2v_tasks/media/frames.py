"""Decode videos of this system: frames as arrays, and measured facts of a finished video."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import log10, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.encode import Frames, to_rgb
from s2v_tasks.media.ffmpeg import own_input, read_chunks
from s2v_tasks.media.probe import Stream, probe
from s2v_tasks.schemas.report import VideoFacts

# Two frames show the same picture if no 16x16 block differs by more, in mean luma steps. A key frame changes a frozen
# picture by up to 1.5; a blink, a lip or a head that sways by a quarter pixel changes some block by 6 and more.
# The mean over the whole frame does not separate them: a key frame changes it more than a moving mouth does.
_STILL_BELOW = 3.0
_BLOCK = 16
QUIETEST_DBFS = -120.0
_AUDIO_CHUNK_BYTES = 1 << 20


def video_stream(path: Path) -> Stream:
    """Return the video stream of a file; PermanentError if it has none."""
    found = probe(path, doing=f"reading {path.name}", error=PermanentError).video
    if found is None:
        raise PermanentError(f"{path.name} has no video stream: make it again.")
    return found


def iter_rgb(path: Path, *, start_frame: int = 0, end_frame: int | None = None, height: int = 0) -> Iterator[Frames]:
    """Yield RGB frames u8 `[H,W,3]` of [start_frame, end_frame), scaled to `height` if one is given.

    Raises PermanentError if the video is damaged before `end_frame`; a shorter video yields fewer frames.
    """
    stream = video_stream(path)
    height = height or stream.height
    width = stream.width * height // stream.height
    # Half a frame early: the first frame that is decoded from there is the wanted one, in spite of rounding.
    seek = {"ss": float((start_frame - Fraction(1, 2)) / stream.r_frame_rate)} if start_frame else {}
    selected: Any = own_input(path, **seek).video
    if end_frame is not None:
        selected = selected.filter("trim", end_frame=end_frame - start_frame)
    raw = to_rgb(selected, width=width, height=height).output("pipe:1", format="rawvideo", fps_mode="passthrough")
    size_bytes = width * height * 3
    for chunk in read_chunks(raw, size_bytes, doing=f"decoding {path.name}", error=PermanentError):
        if len(chunk) < size_bytes:
            raise PermanentError(f"Decoding {path.name} ended inside a frame: make it again.")
        yield np.frombuffer(chunk, dtype=np.uint8).reshape(height, width, 3)


def read_frames(path: Path, *, start_frame: int, end_frame: int) -> Frames:
    """Return frames `[n,H,W,3]` u8 RGB of [start_frame, end_frame); n is smaller if the video ends earlier."""
    frames = list(iter_rgb(path, start_frame=start_frame, end_frame=end_frame))
    if not frames:
        stream = video_stream(path)
        return np.empty((0, stream.height, stream.width, 3), dtype=np.uint8)
    return np.stack(frames)


def measure(path: Path) -> VideoFacts:
    """Measure a finished video by decoding every frame and every sample.

    Damage is reported in `decode_errors`; the rest of that stream is not measured. Raises PermanentError if the file
    cannot be opened or has no video stream.
    """
    found = probe(path, doing=f"reading {path.name}", error=PermanentError)
    stream = found.video
    if stream is None:
        raise PermanentError(f"{path.name} has no video stream: assemble it again.")
    errors: list[str] = []
    picture, audio = _Picture(), _Audio()
    _run(lambda: _measure_picture(path, stream, picture), errors)
    if found.audio is not None:
        _run(lambda: _measure_audio(path, audio), errors)
    return VideoFacts(
        size_bytes=path.stat().st_size,
        streams=tuple(s.codec_type for s in found.streams),
        video_codec=stream.codec_name,
        pixel_format=stream.pix_fmt,
        colour=(stream.color_space, stream.color_primaries, stream.color_transfer, stream.color_range),
        width=stream.width,
        height=stream.height,
        fps=stream.r_frame_rate,
        num_frames=picture.num_frames,
        video_start_seconds=stream.start_time or Fraction(0),
        video_duration_seconds=stream.duration or Fraction(0),
        **_picture_facts(picture),
        **_audio_facts(found.audio, audio),
        decode_errors=tuple(errors),
    )


@dataclass
class _Picture:
    """Running sums over the frames."""

    num_frames: int = 0
    luma_sum: float = 0.0
    std_sum: float = 0.0
    darkest: float = 255.0
    flattest: float = 255.0
    run: int = 0
    longest_run: int = 0


@dataclass
class _Audio:
    """Running sums over the samples."""

    num_values: int = 0
    square_sum: float = 0.0
    peak: float = 0.0


def _run(measurement: Callable[[], None], errors: list[str]) -> None:
    try:
        measurement()
    except PermanentError as error:
        errors.append(str(error))


def _measure_picture(path: Path, stream: Stream, picture: _Picture) -> None:
    # Compared with the first frame of the run, so that slow motion adds up.
    run_start: npt.NDArray[np.int16] | None = None
    for luma in _luma_frames(path, stream):
        mean, std = float(luma.mean()), float(luma.std())
        picture.num_frames += 1
        picture.luma_sum += mean
        picture.std_sum += std
        picture.darkest = min(picture.darkest, mean)
        picture.flattest = min(picture.flattest, std)
        if run_start is not None and _largest_block_difference(luma, run_start) < _STILL_BELOW:
            picture.run += 1
        else:
            picture.run, run_start = 1, luma
        picture.longest_run = max(picture.longest_run, picture.run)


def _largest_block_difference(one: npt.NDArray[np.int16], other: npt.NDArray[np.int16]) -> float:
    rows, columns = one.shape[0] // _BLOCK, one.shape[1] // _BLOCK
    difference = np.abs(one - other)[: rows * _BLOCK, : columns * _BLOCK]
    return float(difference.reshape(rows, _BLOCK, columns, _BLOCK).mean(axis=(1, 3)).max())


def _luma_frames(path: Path, stream: Stream) -> Iterator[npt.NDArray[np.int16]]:
    # The stored plane (16-235) itself: versions of ffmpeg convert to grey in different ways.
    plane = own_input(path).video.filter("extractplanes", "y")
    raw = plane.output("pipe:1", format="rawvideo", pix_fmt="gray", fps_mode="passthrough")
    size_bytes = stream.width * stream.height
    for chunk in read_chunks(raw, size_bytes, doing=f"decoding the picture of {path.name}", error=PermanentError):
        if len(chunk) == size_bytes:  # a shorter one is followed by the error of the decoder
            yield np.frombuffer(chunk, dtype=np.uint8).reshape(stream.height, stream.width).astype(np.int16)


def _measure_audio(path: Path, audio: _Audio) -> None:
    raw = own_input(path).audio.output("pipe:1", format="f32le", acodec="pcm_f32le")
    doing = f"decoding the sound of {path.name}"
    for chunk in read_chunks(raw, _AUDIO_CHUNK_BYTES, doing=doing, error=PermanentError):
        values = np.frombuffer(chunk, dtype=np.float32).astype(np.float64)
        audio.num_values += values.size
        audio.square_sum += float(np.square(values).sum())
        audio.peak = max(audio.peak, float(np.abs(values).max()))


def _picture_facts(picture: _Picture) -> dict[str, float | int]:
    num_frames = max(1, picture.num_frames)
    return {
        "mean_luma": _full_range(picture.luma_sum / num_frames),
        "darkest_frame_luma": _full_range(picture.darkest if picture.num_frames else 16.0),
        "luma_std": picture.std_sum / num_frames * 255 / 219,
        "flattest_frame_luma_std": (picture.flattest if picture.num_frames else 0.0) * 255 / 219,
        "longest_still_frames": picture.longest_run,
    }


def _audio_facts(stream: Stream | None, audio: _Audio) -> dict[str, str | int | float | Fraction | None]:
    if stream is None:
        names = ("codec", "sample_rate", "channels", "start_seconds", "duration_seconds", "rms_dbfs", "peak_dbfs")
        return {f"audio_{name}": None for name in names}
    return {
        "audio_codec": stream.codec_name,
        "audio_sample_rate": stream.sample_rate,
        "audio_channels": stream.channels,
        "audio_start_seconds": stream.start_time or Fraction(0),
        "audio_duration_seconds": stream.duration or Fraction(0),
        "audio_rms_dbfs": dbfs(sqrt(audio.square_sum / max(1, audio.num_values))),
        "audio_peak_dbfs": dbfs(audio.peak),
    }


def _full_range(luma: float) -> float:
    return min(255.0, max(0.0, (luma - 16) * 255 / 219))


def dbfs(amplitude: float) -> float:
    """Return an amplitude in dB of full scale, at least -120."""
    return max(QUIETEST_DBFS, 20 * log10(amplitude)) if amplitude > 0 else QUIETEST_DBFS
