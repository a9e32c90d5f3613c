"""Reading pictures back from videos that this system made."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.encode import Frames, to_rgb
from s2v_tasks.media.ffmpeg import own_input, read_chunks
from s2v_tasks.media.probe import Stream, probe


def video_stream(path: Path) -> Stream:
    """The video stream of a file that must have one."""
    found = probe(path, doing=f"reading {path.name}", error=PermanentError).video
    if found is None:
        raise PermanentError(f"{path.name} has no video stream: make it again.")
    return found


def iter_rgb(path: Path, *, start_frame: int = 0, end_frame: int | None = None, height: int = 0) -> Iterator[Frames]:
    """RGB frames u8 `[H,W,3]` number `start_frame` up to `end_frame`, scaled to `height` if one is given.

    Raises PermanentError if the video cannot be decoded that far; a video that ends earlier yields what there is.
    """
    stream = video_stream(path)
    height = height or stream.height
    width = stream.width * height // stream.height
    # Half a frame early: the first one that is decoded from there on is the wanted one, whatever is rounded.
    seek = {"ss": float((start_frame - Fraction(1, 2)) / stream.r_frame_rate)} if start_frame else {}
    selected: Any = own_input(path, **seek).video
    if end_frame is not None:
        selected = selected.filter("trim", end_frame=end_frame - start_frame)
    raw = to_rgb(selected, width=width, height=height).output(
        "pipe:1", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough"
    )
    size_bytes = width * height * 3
    for chunk in read_chunks(raw, size_bytes, doing=f"decoding {path.name}", error=PermanentError):
        if len(chunk) < size_bytes:
            raise PermanentError(f"Decoding {path.name} ended inside a frame: make it again.")
        yield np.frombuffer(chunk, dtype=np.uint8).reshape(height, width, 3)


def read_frames(path: Path, *, start_frame: int, end_frame: int) -> Frames:
    """Frames `[n,H,W,3]` u8 RGB of [start_frame, end_frame); n is smaller where the video ends earlier."""
    frames = list(iter_rgb(path, start_frame=start_frame, end_frame=end_frame))
    if not frames:
        stream = video_stream(path)
        return np.empty((0, stream.height, stream.width, 3), dtype=np.uint8)
    return np.stack(frames)
