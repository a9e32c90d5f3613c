"""Check the normalisation of pose videos."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.media import ffmpeg
from s2v_tasks.media.encode import Frames, encode_clip
from s2v_tasks.media.frames import read_frames, video_stream
from s2v_tasks.media.uploaded_video import normalise_pose, open_uploaded_video


def _counting(num_frames: int) -> Frames:
    """Return frames of which frame n is a grey of 4 n."""
    levels = np.arange(num_frames, dtype=np.uint8) * 4
    return np.broadcast_to(levels[:, None, None, None], (num_frames, 64, 96, 3))


@pytest.mark.parametrize("fps", [8, 16, 24, 25, 30])
def test_pose_is_resampled_by_time(fps: int, tmp_path: Path) -> None:
    """Frame n shows the source frame that is on display n/16 s after the start, for any rate of the source."""
    encode_clip(_counting(50), tmp_path / "source.mp4", fps=fps)
    num_frames = normalise_pose(tmp_path / "source.mp4", tmp_path / "pose.mp4", max_duration_seconds=60)
    assert abs(num_frames - 50 * 16 / fps) <= 1
    frames = read_frames(tmp_path / "pose.mp4", start_frame=0, end_frame=num_frames)
    shown = np.round(frames.mean(axis=(1, 2, 3)) / 4).astype(int)
    assert shown.tolist() == [min(49, n * fps // 16) for n in range(num_frames)]


@pytest.mark.parametrize("fps", [16, 24, 30, 48])
def test_measured_frames_show_the_middle_of_their_time(fps: int, tmp_path: Path) -> None:
    """Frame n of a measured video is the source frame that is on display (n + 1/2) / 16 s after the start."""
    encode_clip(_counting(50), tmp_path / "source.mp4", fps=fps)
    video = open_uploaded_video(tmp_path / "source.mp4", "The video source.mp4")
    shown = [round(float(frame.mean()) / 4) for frame in video.frames(60)]
    assert abs(len(shown) - 50 * 16 / fps) <= 1
    assert shown == [min(49, (2 * n + 1) * fps // 32) for n in range(len(shown))]


def test_pose_frames_beyond_the_bound_are_left_out(tmp_path: Path) -> None:
    """A pose video that is longer than the speech can be is cut."""
    encode_clip(_counting(48), tmp_path / "source.mp4")
    assert normalise_pose(tmp_path / "source.mp4", tmp_path / "pose.mp4", max_duration_seconds=1.5) == 24


def test_large_odd_pose_is_brought_to_a_size_that_can_be_encoded(tmp_path: Path) -> None:
    """The longest side becomes 1280, sides become even, and pixels become square."""
    raw = ffmpeg.pipe_input(format="rawvideo", pix_fmt="rgb24", s="1601x403", framerate=16)
    output = raw.output(ffmpeg.file_url(tmp_path / "a.mkv"), vcodec="ffv1", pix_fmt="bgr0")
    frames = [np.full((403, 1601, 3), 90, np.uint8).tobytes()] * 2
    ffmpeg.feed(output, frames, doing="making a video", error=PermanentError)
    assert normalise_pose(tmp_path / "a.mkv", tmp_path / "pose.mp4", max_duration_seconds=9) == 2
    stream = video_stream(tmp_path / "pose.mp4")
    assert (stream.width, stream.height) == (1280, 322)


@pytest.mark.parametrize("content", [b"", b"no video\n" * 100])
def test_a_file_that_is_no_video_is_refused(content: bytes, tmp_path: Path) -> None:
    """Empty files and text are refused by name."""
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(PermanentError, match=r"The pose video a\.mp4 is"):
        normalise_pose(tmp_path / "a.mp4", tmp_path / "pose.mp4", max_duration_seconds=9)


def test_sound_only_is_refused(
    tmp_path: Path, noise: Callable[..., Any], write_wav: Callable[..., Path], convert: Callable[..., Path]
) -> None:
    """A container with audio only is refused as a pose video."""
    wav = write_wav(tmp_path / "a.wav", noise(8000), 8000)
    convert(wav, tmp_path / "a.mp4", acodec="aac")
    with pytest.raises(PermanentError, match="no video stream"):
        normalise_pose(tmp_path / "a.mp4", tmp_path / "pose.mp4", max_duration_seconds=9)


def test_damaged_pose_is_refused(tmp_path: Path, moving: Callable[..., Frames]) -> None:
    """A hole in the picture data is an error."""
    encode_clip(moving(40), tmp_path / "a.mp4")
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(PermanentError, match="damaged"):
        normalise_pose(tmp_path / "a.mp4", tmp_path / "pose.mp4", max_duration_seconds=9)


def test_full_range_becomes_limited_range(tmp_path: Path) -> None:
    """A video with levels from 0 to 255, as some phones record, keeps its brightness."""
    encode_clip(np.full((4, 64, 96, 3), 200, np.uint8), tmp_path / "limited.mp4")
    full = ffmpeg.own_input(tmp_path / "limited.mp4").video.filter("scale", in_range="tv", out_range="pc")
    output = full.output(ffmpeg.file_url(tmp_path / "full.mp4"), vcodec="libx264", pix_fmt="yuv420p", color_range="pc")
    ffmpeg.run(output, doing="making full.mp4", error=PermanentError)
    assert video_stream(tmp_path / "full.mp4").color_range == "pc"
    normalise_pose(tmp_path / "full.mp4", tmp_path / "pose.mp4", max_duration_seconds=9)
    frames = read_frames(tmp_path / "pose.mp4", start_frame=0, end_frame=4)
    assert np.abs(frames.astype(int) - 200).max() <= 3


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
def test_colours_are_read_by_the_matrix_that_the_file_states(matrix: str, tmp_path: Path) -> None:
    """Pose and measured frames have the colours of a source with another matrix, such as that of old cameras."""
    colour, source = (200, 60, 30), tmp_path / "source.mp4"
    raw = ffmpeg.pipe_input(format="rawvideo", pix_fmt="rgb24", s="96x64", framerate=16).video
    coded = raw.filter("scale", out_color_matrix=matrix).filter("format", "yuv420p")
    output = coded.output(ffmpeg.file_url(source), vcodec="libx264", crf=1, colorspace=matrix)
    ffmpeg.feed(output, [np.full((64, 96, 3), colour, np.uint8).tobytes()] * 4, doing="coding", error=PermanentError)
    assert video_stream(source).color_space == matrix
    normalise_pose(source, tmp_path / "pose.mp4", max_duration_seconds=9)
    for frame in (
        read_frames(tmp_path / "pose.mp4", start_frame=0, end_frame=1)[0],
        next(open_uploaded_video(source, "The video source.mp4").frames(9)),
    ):
        assert np.abs(frame.astype(int) - colour).max() <= 4


@pytest.mark.parametrize(
    ("rotation", "aspect", "size"),
    [(90, "1", (64, 96)), (180, "1", (96, 64)), (0, "4/3", (128, 64)), (0, "1/2", (48, 64)), (90, "2", (32, 96))],
)
def test_measured_frames_have_the_shape_that_players_show(
    rotation: int, aspect: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Frames of a phone that was held upright, and frames of pixels that are not square, are not distorted."""
    raw = ffmpeg.pipe_input(format="rawvideo", pix_fmt="rgb24", s="96x64", framerate=16)
    stored = raw.filter("setsar", aspect).output(ffmpeg.file_url(tmp_path / "stored.mp4"), vcodec="libx264")
    ffmpeg.feed(stored, [_counting(3).tobytes()], doing="making a video", error=PermanentError)
    shown = ffmpeg.own_input(tmp_path / "stored.mp4", display_rotation=rotation)
    ffmpeg.run(shown.output(ffmpeg.file_url(tmp_path / "a.mp4"), c="copy"), doing="turning it", error=PermanentError)
    video = open_uploaded_video(tmp_path / "a.mp4", "The video a.mp4")
    normalise_pose(tmp_path / "a.mp4", tmp_path / "pose.mp4", max_duration_seconds=9)
    pose = video_stream(tmp_path / "pose.mp4")
    assert video.size == (pose.width, pose.height) == size
    assert {frame.shape for frame in video.frames(9)} == {(size[1], size[0], 3)}


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_pose_without_its_end_is_refused(name: str, tmp_path: Path, moving: Callable[..., Frames]) -> None:
    """A pose video of which the upload was interrupted is refused and not taken for a shorter one."""
    encode_clip(moving(40), tmp_path / "source.mp4")
    whole = ffmpeg.own_input(tmp_path / "source.mp4").output(ffmpeg.file_url(tmp_path / name), c="copy")
    ffmpeg.run(whole, doing="copying", error=PermanentError)
    assert normalise_pose(tmp_path / name, tmp_path / "pose.mp4", max_duration_seconds=9) == 40
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(PermanentError, match=f"The pose video {name} is (damaged or cut off|not a readable video)"):
        normalise_pose(tmp_path / name, tmp_path / "pose.mp4", max_duration_seconds=9)
