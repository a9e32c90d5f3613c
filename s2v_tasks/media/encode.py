"""The one encoding profile of the system: H.264, 8-bit 4:2:0, bt709 converted and tagged, reproducible bytes.

No B-frames and a closed GOP that starts with a key frame: clips can be joined by copying, and decoding order is display
order. Threads are fixed because x264 decides differently with other thread counts.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.ffmpeg import feed, file_url, pipe_input
from s2v_tasks.media.probe import Stream, probe

Frames = npt.NDArray[np.uint8]

# Every fps that divides it has integer frame durations: 16 fps is 1000 ticks.
TIMESCALE = 16_000
_SWSCALE = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
_X264_PARAMS = "cpu-independent=1:open-gop=0:threads=4:lookahead-threads=1:sliced-threads=0"
_COLOUR = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}


def encode_clip(frames: Frames | Iterable[Frames], path: Path, fps: int = 16, *, key_frame: int = 0) -> int:
    """Encode RGB frames, u8 `[n,H,W,3]` or an iterable of `[H,W,3]`, H and W even, to MP4; returns their number.

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


class _Counter:
    """Turns frames into bytes and counts them on the way."""

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


def to_yuv(rgb: Any) -> Any:
    """ffmpeg stream of RGB frames → limited-range bt709 4:2:0, and tagged so: players guess where there is no tag."""
    yuv = rgb.filter("scale", out_color_matrix="bt709", out_range="tv", flags=_SWSCALE)
    tags = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "range": "tv"}
    return yuv.filter("format", "yuv420p").filter("setparams", **tags)


def to_rgb(yuv: Any, *, width: int, height: int) -> Any:
    """The inverse of `to_yuv`, scaled to `width` x `height`."""
    return yuv.filter(
        "scale", width, height, in_color_matrix="bt709", in_range="tv", out_range="pc", flags=_SWSCALE
    ).filter("format", "rgb24")


def h264_output(yuv: Any, path: Path, fps: int, *, key_frame: int = 0) -> Any:
    """ffmpeg output of `yuv` frames in the profile, with a key frame at `key_frame`."""
    forced = {"force_key_frames": f"expr:eq(n,{key_frame})"} if key_frame else {}
    return yuv.output(
        file_url(path),
        vcodec="libx264",
        preset="medium",
        crf=17,
        g=2 * fps,
        bf=0,
        r=fps,
        **forced,
        **_COLOUR,
        **{"x264-params": _X264_PARAMS, "flags:v": "+bitexact"},
        **mp4_options(),
    )


def mp4_options() -> dict[str, Any]:
    """Options of every MP4 we write: index first (plays while loading), exact times, no time stamps or versions."""
    return {
        "format": "mp4",
        "movflags": "+faststart",
        "video_track_timescale": TIMESCALE,
        # ffmpeg's default of milliseconds would round lengths (33 frames: 2.0625 s) and the edit list of the sound.
        "movie_timescale": 3 * TIMESCALE,
        "fflags": "+bitexact",
        "map_metadata": -1,
    }


def check_profile(path: Path, *, width: int, height: int, fps: int, num_frames: int) -> Stream:
    """Probe a video we wrote and return its stream; TransientError if it is not what was asked for."""
    found = probe(path, doing=f"checking {path.name}", error=TransientError, count_packets=True).video
    expected = ("h264", "yuv420p", width, height, Fraction(fps), num_frames)
    if found is None:
        raise TransientError(f"{path.name} has no video stream, expected {expected}: run the step again.")
    actual = (found.codec_name, found.pix_fmt, found.width, found.height, found.r_frame_rate, found.nb_read_packets)
    if actual != expected:
        raise TransientError(f"{path.name} was written as {actual}, expected {expected}: run the step again.")
    return found
