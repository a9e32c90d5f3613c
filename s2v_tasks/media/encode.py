"""Encode frames in the encoding profile of the system: H.264, 8-bit 4:2:0, bt709 with tags, reproducible.

There are no B-frames, and a closed GOP starts with a key frame: clips can be joined by stream copy, and decoding order
is display order. The number of threads is fixed, because it changes the bytes that x264 writes. The build of ffmpeg and
x264 changes them too: `encoder_build` names it.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.media.ffmpeg import capture, feed, file_url, pipe_input, read_chunks, tool_path, uploaded_input
from s2v_tasks.media.probe import Stream, probe

Frames = npt.NDArray[np.uint8]

# Every fps that divides it has integer frame durations: 16 fps is 1000 ticks.
TIMESCALE = 16_000
_SWSCALE = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
_H264 = {
    "vcodec": "libx264",
    "preset": "medium",
    "crf": 17,
    "bf": 0,
    "x264-params": "cpu-independent=1:open-gop=0:threads=4:lookahead-threads=1:sliced-threads=0",
    "flags:v": "+bitexact",
}
_X264_BUILD = re.compile(rb"x264 - core \d+(?: r\d+)?")


def encode_clip(frames: Frames | Iterable[Frames], path: Path, fps: int = 16, *, key_frame: int = 0) -> int:
    """Encode RGB frames, u8 `[n,H,W,3]` or an iterable of `[H,W,3]`, H and W even, to MP4; return their number.

    Frame `key_frame` becomes a key frame, so that the video can be cut there; frame 0 always is one.
    Raises PermanentError for frames that cannot be one video, TransientError when encoding or checking the file fails.
    """
    source = iter(frames)
    first = next(source, None)
    if first is None:
        raise PermanentError(f"{path.name} would have no frames: expected at least one.")
    height, width = first.shape[:2]
    if width % 2 or height % 2:
        raise PermanentError(f"Frames of {path.name} are {width}x{height}, both sides must be even.")
    counter = _Counter()
    raw = pipe_input(format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps)
    feed(
        h264_output(to_yuv(raw.video), path, fps, key_frame=key_frame),
        counter.chunks(chain([first], source), first.shape, path.name),
        doing=f"encoding {path.name}",
        error=TransientError,
    )
    check_profile(path, width=width, height=height, fps=fps, num_frames=counter.num_frames)
    return counter.num_frames


def encoder_build() -> str:
    """Return the name and digest of the ffmpeg and libx264 in use: with equal ones, equal frames give equal bytes.

    Raises ConfigurationError if the program is not ffmpeg, or lacks libx264.
    """
    return _build_of(tool_path("ffmpeg"))


@cache
def _build_of(binary: str) -> str:
    version = capture([binary, "-version"], doing=f"asking {binary} for its version", error=ConfigurationError)
    # An encoded frame names the linked libx264, which the version of ffmpeg does not. The picture may be any.
    picture = uploaded_input(Path("/dev/zero"), "rawvideo", format="rawvideo", pix_fmt="yuv420p", s="64x64")
    frame = picture.output("pipe:1", format="h264", **{"frames:v": 1}, **_H264)
    doing = f"encoding a frame by {binary}"
    coded = b"".join(read_chunks(frame, 2**16, doing=doing, error=ConfigurationError))
    x264 = _X264_BUILD.search(coded)
    if x264 is None:
        raise ConfigurationError(
            f"{binary} states no version of x264: expected ffmpeg with libx264; correct or unset S2V_FFMPEG_PATH."
        )
    name = version.decode(errors="replace").split()[2]
    digest = hashlib.sha256(version + coded).hexdigest()[:12]
    return f"ffmpeg {name}, {x264.group().decode()}, digest {digest}"


class _Counter:
    """Converts frames to bytes and counts them."""

    def __init__(self) -> None:
        self.num_frames = 0

    def chunks(self, frames: Iterable[Frames], shape: tuple[int, ...], name: str) -> Iterator[memoryview]:
        for frame in frames:
            if frame.shape != shape or frame.dtype != np.uint8 or shape[2:] != (3,):
                raise PermanentError(
                    f"Frame {self.num_frames} of {name} is {frame.dtype} {list(frame.shape)}, "
                    f"expected uint8 [{shape[0]}, {shape[1]}, 3]."
                )
            self.num_frames += 1
            yield np.ascontiguousarray(frame).data.cast("B")


def to_yuv(source: Any) -> Any:
    """Convert frames to limited-range bt709 4:2:0, with tags, which players would otherwise guess.

    The source is RGB, or YUV whose colour matrix and range are read from its own tags.
    """
    yuv = source.filter("scale", out_color_matrix="bt709", out_range="tv", flags=_SWSCALE)
    tags = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "range": "tv"}
    return yuv.filter("format", "yuv420p").filter("setparams", **tags)


def to_rgb(yuv: Any, *, width: int, height: int) -> Any:
    """Convert to RGB, the inverse of `to_yuv`, scaled to `width` x `height`."""
    rgb = yuv.filter("scale", width, height, in_color_matrix="bt709", in_range="tv", flags=_SWSCALE)
    return rgb.filter("format", "rgb24")


def h264_output(yuv: Any, path: Path, fps: int, *, key_frame: int = 0) -> Any:
    """Return the ffmpeg output of `yuv` frames in the profile, with a key frame at `key_frame`."""
    forced = {"force_key_frames": f"expr:eq(n,{key_frame})"} if key_frame else {}
    return yuv.output(
        file_url(path),
        g=2 * fps,
        r=fps,
        **forced,
        **_H264,
        **mp4_options(),
    )


def mp4_options() -> dict[str, Any]:
    """Return the options of every MP4: index first (plays while loading), exact times, no dates or versions."""
    return {
        "format": "mp4",
        "movflags": "+faststart",
        "video_track_timescale": TIMESCALE,
        # ffmpeg's default of milliseconds would round lengths (33 frames: 2.0625 s) and the edit list of the audio.
        "movie_timescale": 3 * TIMESCALE,
        "fflags": "+bitexact",
        "map_metadata": -1,
    }


def check_profile(path: Path, *, width: int, height: int, fps: int, num_frames: int) -> Stream:
    """Probe a video that was written and return its stream; TransientError if it differs from the request."""
    found = probe(path, doing=f"checking {path.name}", error=TransientError, count_packets=True).video
    expected = ("h264", "yuv420p", width, height, Fraction(fps), num_frames)
    if found is None:
        raise TransientError(f"{path.name} has no video stream, expected {expected}: run the step again.")
    actual = (found.codec_name, found.pix_fmt, found.width, found.height, found.r_frame_rate, found.nb_read_packets)
    if actual != expected:
        raise TransientError(f"{path.name} was written as {actual}, expected {expected}: run the step again.")
    return found
