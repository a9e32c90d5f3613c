"""Normalise the optional pose video: resample it to 16 fps by time, and encode it in our profile."""

from pathlib import Path

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.log import get_logger
from s2v_tasks.media.encode import check_profile, h264_output, to_yuv
from s2v_tasks.media.ffmpeg import run
from s2v_tasks.media.probe import Stream, probe
from s2v_tasks.media.uploaded_video import FPS, open_uploaded_video


def normalise_pose(source: Path, destination_mp4: Path, *, max_duration_seconds: float) -> int:
    """Write `source` upright, at 16 fps, longest side at most 1280 pixels; return the number of frames.

    Frame n shows the picture that the source shows n/16 s after its first frame. Frames beyond `max_duration_seconds`
    are left out, with a warning. Raises PermanentError if it is no video, damaged or too small.
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
