"""The optional pose video: brought to 16 frames per second by time, in the profile that we can read back."""

from fractions import Fraction
from pathlib import Path
from typing import Any

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.log import get_logger
from s2v_tasks.media.encode import check_profile, h264_output, to_yuv
from s2v_tasks.media.ffmpeg import VIDEO_FORMATS, run, uploaded_input
from s2v_tasks.media.probe import Stream, probe

_FPS = 16
_LONGEST_SIDE = 1280
_MIN_SIDE = 32
_MAX_PIXELS = 4096 * 2304
_DECODING_THREADS = 4
_ACCEPTED = "MP4, MOV, WebM, MKV or AVI"


def normalise_pose(source: Path, destination_mp4: Path, *, max_duration_seconds: float) -> int:
    """Write `source` upright, at 16 fps, longest side at most 1280 pixels; returns the number of frames.

    Frame n shows what the source shows n/16 s after its first frame. What lies beyond `max_duration_seconds` cannot
    be used and is left out, with a warning. Raises PermanentError if it is no video, damaged or too small.
    """
    if source.stat().st_size == 0:
        raise PermanentError(f"The pose video {source.name} is empty (0 bytes): upload a {_ACCEPTED} file.")
    doing = f"The pose video {source.name} is not a readable video (expected {_ACCEPTED}): reading it"
    found = probe(source, doing=doing, error=PermanentError, formats=VIDEO_FORMATS)
    stream = found.video
    if stream is None or min(stream.width, stream.height) < _MIN_SIDE:
        size = f"{stream.width}x{stream.height} pixels" if stream else "no video stream"
        raise PermanentError(f"The pose video {source.name} has {size}, expected at least {_MIN_SIDE} pixels a side.")
    if stream.width * stream.height > _MAX_PIXELS:
        raise PermanentError(
            f"The pose video {source.name} has {stream.width}x{stream.height} pixels, expected at most {_MAX_PIXELS} "
            f"in a frame: scale it down, the longest side to {_LONGEST_SIDE} loses nothing."
        )
    duration = stream.duration or found.container.duration or Fraction(0)
    if duration > max_duration_seconds:
        get_logger().warning("pose_cut", duration_seconds=float(duration), kept_seconds=max_duration_seconds)
    # The frame size can change inside a stream, and each decoding thread holds frames of its own.
    video = uploaded_input(source, VIDEO_FORMATS, max_pixels=_MAX_PIXELS, threads=_DECODING_THREADS).video
    frames = _resampled(video, max_duration_seconds)
    run(
        h264_output(to_yuv(frames), destination_mp4, _FPS),
        doing=f"The pose video {source.name} is damaged: decoding it",
        error=PermanentError,
    )
    return _written(destination_mp4).nb_read_packets


def _resampled(video: Any, max_duration_seconds: float) -> Any:
    # round=up: a source frame counts from the first 1/16 s at which it is on display, never before.
    timed = video.filter("setpts", "PTS-STARTPTS").filter("fps", fps=_FPS, round="up", start_time=0)
    timed = timed.filter("trim", duration=max_duration_seconds)
    # Square pixels, even sides, and only ever smaller.
    shrink = f"min(1,{_LONGEST_SIDE}/max(iw*sar,ih))"
    return timed.filter("scale", f"trunc(iw*sar*{shrink}/2)*2", f"trunc(ih*{shrink}/2)*2").filter("setsar", 1)


def _written(path: Path) -> Stream:
    found = probe(path, doing=f"checking {path.name}", error=TransientError, count_packets=True).video
    if found is None or not found.nb_read_packets:
        raise PermanentError(f"The pose video gave no frames for {path.name}: upload a complete video.")
    return check_profile(path, width=found.width, height=found.height, fps=_FPS, num_frames=found.nb_read_packets)
