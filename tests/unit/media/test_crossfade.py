"""Check cross-fades between clips."""

from collections.abc import Callable
from pathlib import Path

import ffmpeg
import numpy as np
import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.assembly import crossfade, mix, stitch
from s2v_tasks.media.encode import Frames, encode_clip
from s2v_tasks.media.ffmpeg import tool_path
from s2v_tasks.media.frames import read_frames, video_stream

Moving = Callable[..., Frames]


def decoded(path: Path) -> Frames:
    return read_frames(path, start_frame=0, end_frame=10_000)


def test_only_the_mixed_frames_are_new(tmp_path: Path, moving: Moving) -> None:
    """Frames outside the fade decode as they were stored, the length loses the overlap, and bytes are reproducible."""
    before, after = tmp_path / "before.mp4", tmp_path / "after.mp4"
    encode_clip(moving(24), before)
    encode_clip(moving(40, phase=2.0), after, key_frame=4)
    for name in ("one.mp4", "two.mp4"):
        folder = tmp_path / name.removesuffix(".mp4")
        folder.mkdir()
        stitch(crossfade(before, after, 4, folder), tmp_path / name, expected_frames=20 + 40)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    out, old, new = decoded(tmp_path / "one.mp4"), decoded(before), decoded(after)
    assert np.array_equal(out[:20], old[:20])
    assert np.array_equal(out[24:], new[4:])
    assert np.abs(out[20:24].astype(int) - mix(old[20:], new[:4])).mean() < 4


def test_clips_that_are_one_frame_longer_than_the_fade_are_cut(tmp_path: Path, moving: Moving) -> None:
    """One frame before the fade and one after it are enough; the parts have the frame rate of the clips."""
    before, after = tmp_path / "before.mp4", tmp_path / "after.mp4"
    encode_clip(moving(5), before, fps=25)
    encode_clip(moving(5, phase=2.0), after, fps=25, key_frame=4)
    parts = crossfade(before, after, 4, tmp_path)
    assert [(len(decoded(part)), video_stream(part).r_frame_rate) for part in parts] == [(1, 25), (4, 25), (1, 25)]


def test_a_fade_goes_evenly_from_one_to_the_other() -> None:
    """In a fade of four frames from black to white each frame is a fifth brighter, without a pure frame of either."""
    black, white = np.zeros((4, 2, 2, 3), np.uint8), np.full((4, 2, 2, 3), 255, np.uint8)
    assert mix(black, white)[:, 0, 0, 0].tolist() == [51, 102, 153, 204]


def test_a_clip_that_cannot_be_cut_is_refused(tmp_path: Path, moving: Moving) -> None:
    """A clip without a key frame after the fade, or no longer than the fade, is refused."""
    before, after = tmp_path / "before.mp4", tmp_path / "after.mp4"
    encode_clip(moving(4), before)
    encode_clip(moving(8), after)
    with pytest.raises(PermanentError, match=r"before\.mp4 has 4 frames and after\.mp4 8: expected more than the 4"):
        crossfade(before, after, 4, tmp_path)
    with pytest.raises(PermanentError, match=r"after\.mp4 has 8 frames and before\.mp4 4: expected more than the 4"):
        crossfade(after, before, 4, tmp_path)
    with pytest.raises(PermanentError, match=r"Frame 4 of after\.mp4 is not a key frame"):
        crossfade(after, after, 4, tmp_path)


def test_a_clip_without_a_picture_is_refused(tmp_path: Path, moving: Moving) -> None:
    """A file with sound alone is named, wherever it stands among the clips."""
    good, silent = tmp_path / "good.mp4", tmp_path / "sound.mp4"
    encode_clip(moving(8), good)
    sound = ffmpeg.input("sine=duration=1", f="lavfi").output(str(silent), acodec="aac")
    sound.run(cmd=tool_path("ffmpeg"), quiet=True)
    expected = r"^sound\.mp4 has no video stream: render that clip again\.$"
    for clips in ((silent, good), (good, silent)):
        with pytest.raises(PermanentError, match=expected):
            crossfade(*clips, 4, tmp_path)
        with pytest.raises(PermanentError, match=expected):
            stitch(clips, tmp_path / "joined.mp4", expected_frames=16)
    assert not (tmp_path / "joined.mp4").exists()


def test_a_forced_key_frame_leaves_the_profile_as_it_is(tmp_path: Path, moving: Moving) -> None:
    """Clips with and without a forced key frame can be joined by copying; without one the bytes do not change."""
    encode_clip(moving(16), tmp_path / "plain.mp4")
    encode_clip(moving(16), tmp_path / "none.mp4", key_frame=0)
    encode_clip(moving(16), tmp_path / "forced.mp4", key_frame=4)
    assert (tmp_path / "plain.mp4").read_bytes() == (tmp_path / "none.mp4").read_bytes()
    stitch([tmp_path / "plain.mp4", tmp_path / "forced.mp4"], tmp_path / "out.mp4", expected_frames=32)
