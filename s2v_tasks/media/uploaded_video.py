"""Check and bound an uploaded video, resample it to 16 fps, and normalise the optional pose video."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.log import get_logger
from s2v_tasks.media.container_structure import lost_part
from s2v_tasks.media.encode import Frames, check_profile, h264_output, to_rgb, to_yuv
from s2v_tasks.media.ffmpeg import VIDEO_FORMATS, read_chunks, run, uploaded_input
from s2v_tasks.media.probe import Stream, probe
from s2v_tasks.schemas.plan import FPS

LONGEST_SIDE = 1280
_MIN_SIDE = 32
_MAX_PIXELS = 4096 * 2304
_DECODING_THREADS = 4
_PPM_HEADER_BYTES = 32
_ACCEPTED = "MP4, MOV, WebM, MKV or AVI"


@dataclass(frozen=True)
class UploadedVideo:
    """A video stream within the bounds. `called` names the file in messages: "The pose video dance.mp4"."""

    source: Path
    called: str
    stream: Stream
    duration_seconds: Fraction
    has_audio: bool

    @cached_property
    def size(self) -> tuple[int, int]:
        """Return width and height of the resampled frames.

        They are those of the first one: a file can rotate its frames, and its pixels need not be square. Raises
        PermanentError if the video is damaged or has no frames.
        """
        picture = self.resampled(1).output("pipe:1", format="image2pipe", vcodec="ppm", **{"frames:v": 1})
        found = b"".join(read_chunks(picture, 2**16, doing=self._decoding, error=PermanentError))
        if not found:
            raise PermanentError(f"{self.called} gave no frames: upload a complete video.")
        _, width, height = found[:_PPM_HEADER_BYTES].split()[:3]
        return int(width), int(height)

    @property
    def _decoding(self) -> str:
        return f"{self.called} is damaged: decoding it"

    def resampled(self, max_duration_seconds: float, *, after_seconds: Fraction = Fraction(0)) -> Any:
        """Return an ffmpeg-python stream: upright, 16 fps by time, square pixels, longest side at most 1280.

        Frame n shows the picture that the source shows n/16 s + `after_seconds` after its first frame.
        """
        # Bounds for memory: the frame size can change in a stream, and each decoding thread has its own frames.
        options = {"max_pixels": _MAX_PIXELS, "threads": _DECODING_THREADS}
        video = uploaded_input(self.source, VIDEO_FORMATS, **options).video
        # round=up: a source frame is used from the first 1/16 s after its display time, never before it.
        timed = video.filter("setpts", f"PTS-STARTPTS-({after_seconds})/TB").filter(
            "fps", fps=FPS, round="up", start_time=0
        )
        timed = timed.filter("trim", duration=max_duration_seconds)
        # Square pixels and even sides; the picture is never enlarged.
        shrink = f"min(1,{LONGEST_SIDE}/max(iw*sar,ih))"
        return timed.filter("scale", f"trunc(iw*sar*{shrink}/2)*2", f"trunc(ih*{shrink}/2)*2").filter("setsar", 1)

    def frames(self, max_duration_seconds: float) -> Iterator[Frames]:
        """Yield RGB frames u8 `[H,W,3]` at 16 fps of the size `size`. Raises PermanentError if the video is damaged.

        A frame is the picture in the middle of its 1/16 s: motion at other frame rates is neither late nor early.
        """
        width, height = self.size
        video = self.resampled(max_duration_seconds, after_seconds=Fraction(1, 2 * FPS))
        rgb = to_rgb(to_yuv(video), width=width, height=height)
        raw = rgb.output("pipe:1", format="rawvideo", fps_mode="passthrough")
        size_bytes = width * height * 3
        for chunk in read_chunks(raw, size_bytes, doing=self._decoding, error=PermanentError):
            if len(chunk) == size_bytes:
                yield np.frombuffer(chunk, dtype=np.uint8).reshape(height, width, 3)


def open_uploaded_video(source: Path, called: str) -> UploadedVideo:
    """Check the container. Raises PermanentError if it is empty, no video, cut off, too small or too large."""
    if source.stat().st_size == 0:
        raise PermanentError(f"{called} is empty (0 bytes): upload a {_ACCEPTED} file.")
    doing = f"{called} is not a readable video (expected {_ACCEPTED}): reading it"
    found = probe(source, doing=doing, error=PermanentError, formats=VIDEO_FORMATS)
    if problem := lost_part(source, found.container.format_name):
        raise PermanentError(f"{called} is damaged or cut off: {problem}; upload the complete file.")
    stream = found.video
    if stream is None or min(stream.width, stream.height) < _MIN_SIDE:
        size = f"{stream.width}x{stream.height} pixels" if stream else "no video stream"
        raise PermanentError(f"{called} has {size}, expected at least {_MIN_SIDE} pixels a side.")
    if stream.width * stream.height > _MAX_PIXELS:
        raise PermanentError(
            f"{called} has {stream.width}x{stream.height} pixels, expected at most {_MAX_PIXELS} in a frame: scale it "
            f"down. A longest side of {LONGEST_SIDE} pixels is enough."
        )
    return UploadedVideo(
        source=source,
        called=called,
        stream=stream,
        duration_seconds=stream.duration or found.container.duration or Fraction(0),
        has_audio=found.audio is not None,
    )


def normalise_pose(source: Path, destination_mp4: Path, *, max_duration_seconds: float) -> int:
    """Write `source` upright, at 16 fps, longest side at most 1280 pixels; return the number of frames.

    Frame n shows the picture that the source shows n/16 s after its first frame. Frames beyond `max_duration_seconds`
    are left out, with a warning. Raises PermanentError if it is damaged, too small or not a video.
    """
    video = open_uploaded_video(source, f"The pose video {source.name}")
    if video.duration_seconds > max_duration_seconds:
        get_logger().warning(
            "pose_cut", duration_seconds=float(video.duration_seconds), kept_seconds=max_duration_seconds
        )
    run(
        h264_output(to_yuv(video.resampled(max_duration_seconds)), destination_mp4, FPS),
        doing=f"{video.called} is damaged: decoding it",
        error=PermanentError,
    )
    return _written(destination_mp4).nb_read_packets


def _written(path: Path) -> Stream:
    found = probe(path, doing=f"checking {path.name}", error=TransientError, count_packets=True).video
    if found is None or not found.nb_read_packets:
        raise PermanentError(f"The pose video gave no frames for {path.name}: upload a complete video.")
    return check_profile(path, width=found.width, height=found.height, fps=FPS, num_frames=found.nb_read_packets)
