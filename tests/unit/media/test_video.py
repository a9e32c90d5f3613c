"""Check the encoding, stitching and decoding of clips."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pytest

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.media import assembly, encode, ffmpeg
from s2v_tasks.media.assembly import stitch
from s2v_tasks.media.encode import Frames, encode_clip, encoder_build
from s2v_tasks.media.frames import iter_rgb, read_frames, video_stream
from s2v_tasks.settings import load_settings

Moving = Callable[..., Frames]


def _all(path: Path) -> Frames:
    return read_frames(path, start_frame=0, end_frame=10_000)


def test_equal_frames_give_equal_bytes(tmp_path: Path, moving: Moving) -> None:
    """The bytes depend on the frames only: not on the file name, nor on frames being given at once or one by one."""
    frames = moving(20)
    assert encode_clip(frames, tmp_path / "a.mp4") == 20
    assert encode_clip((frame for frame in frames), tmp_path / "b.mp4") == 20
    encode_clip(frames, tmp_path / "clip.part")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "clip.part").read_bytes()


def test_the_settings_of_x264_are_pinned(tmp_path: Path, moving: Moving) -> None:
    """Quality 17 of the preset medium, without B-frames, with a key frame every two seconds and four threads."""
    encode_clip(moving(4), tmp_path / "a.mp4", fps=16)
    found = re.search(rb"x264 - core .* - options: ([ -~]*)", (tmp_path / "a.mp4").read_bytes())
    assert found is not None
    settings = dict(setting.split("=", 1) for setting in found.group(1).decode().split())
    expected = {"rc": "crf", "crf": "17.0", "bframes": "0", "keyint": "32", "ref": "3", "subme": "7", "me": "hex"}
    assert settings.items() >= (expected | {"threads": "4", "lookahead_threads": "1", "sliced_threads": "0"}).items()


def _script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_build_of_the_encoder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name has the versions of ffmpeg and x264, and changes with either of them."""
    real, used = quote(ffmpeg.tool_path("ffmpeg")), encoder_build()
    assert re.fullmatch(r"ffmpeg n8\.0\S*, x264 - core 165, digest [0-9a-f]{12}", used)
    asks = 'case "$*" in *-version*)'
    builds = [
        _script(tmp_path / "same", f'exec {real} "$@"'),
        _script(tmp_path / "configured", f'{real} "$@"; {asks} echo --enable-nonfree;; esac'),
        _script(
            tmp_path / "linked",
            f'{asks} exec {real} "$@";; esac; {real} "$@" | LC_ALL=C sed "s/core 165/core 164 r3095/"',
        ),
    ]
    found = []
    for build in builds:
        monkeypatch.setattr("s2v_tasks.media.ffmpeg.tool_path", lambda _tool, build=build: build)
        monkeypatch.setattr("s2v_tasks.media.encode.tool_path", lambda _tool, build=build: build)
        found.append(encoder_build())
    assert found[0] == used
    assert "x264 - core 164 r3095, " in found[2]
    assert len({name.rpartition("digest ")[2] for name in found}) == 3


@pytest.mark.parametrize("answers", ["exit 0", "exit 1", "echo ffmpeg version 8"])
def test_a_program_without_libx264_is_a_wrong_setting(
    answers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that is no ffmpeg, or lacks libx264, is found before anything is rendered."""
    path = _script(tmp_path / "ffmpeg", answers)
    for module in ("ffmpeg", "encode"):
        monkeypatch.setattr(f"s2v_tasks.media.{module}.tool_path", lambda _tool: path)
    with pytest.raises(ConfigurationError, match=re.escape(path)):
        encoder_build()


def test_pictures_survive_encoding(tmp_path: Path, moving: Moving) -> None:
    """Decoded frames are close to the encoded ones and in their order."""
    frames = moving(12)
    encode_clip(frames, tmp_path / "a.mp4")
    difference = np.abs(_all(tmp_path / "a.mp4").astype(int) - frames).mean(axis=(1, 2, 3))
    assert difference.shape == (12,)
    assert difference.max() < 4


@pytest.mark.parametrize("rgb", [(200, 60, 30), (20, 180, 90), (255, 255, 255), (0, 0, 0), (40, 40, 220)])
def test_colours_are_converted_and_tagged(rgb: tuple[int, int, int], tmp_path: Path) -> None:
    """Colours are right after the bt709 limited-range matrix that the file states."""
    encode_clip(np.full((3, 64, 64, 3), rgb, np.uint8), tmp_path / "a.mp4")
    assert np.abs(_all(tmp_path / "a.mp4").astype(int) - rgb).max() <= 3
    stream = video_stream(tmp_path / "a.mp4")
    tags = (stream.color_space, stream.color_primaries, stream.color_transfer, stream.color_range)
    assert tags == ("bt709", "bt709", "bt709", "tv")


@pytest.mark.parametrize("frames", [np.empty((0, 64, 64, 3), np.uint8), np.zeros((2, 63, 64, 3), np.uint8)])
def test_frames_that_are_no_video_are_refused(frames: Frames, tmp_path: Path) -> None:
    """No frames, and sides that 4:2:0 cannot have, are refused."""
    with pytest.raises(PermanentError, match=r"a\.mp4"):
        encode_clip(frames, tmp_path / "a.mp4")


def test_frame_of_another_size_is_named(tmp_path: Path, moving: Moving) -> None:
    """A frame that does not fit is refused with its number."""
    with pytest.raises(PermanentError, match=r"Frame 3 of a\.mp4 is uint8 \[64, 64, 3\], expected uint8 \[64, 96, 3\]"):
        encode_clip([*moving(3), moving(1, width=64)[0]], tmp_path / "a.mp4")


def test_frames_are_read_by_number(tmp_path: Path, moving: Moving) -> None:
    """A range gives exactly its frames, and at most the existing ones."""
    encode_clip(moving(40), tmp_path / "a.mp4")
    everything = _all(tmp_path / "a.mp4")
    assert np.array_equal(read_frames(tmp_path / "a.mp4", start_frame=33, end_frame=37), everything[33:37])
    assert np.array_equal(read_frames(tmp_path / "a.mp4", start_frame=38, end_frame=50), everything[38:])
    assert read_frames(tmp_path / "a.mp4", start_frame=40, end_frame=50).shape == (0, 64, 96, 3)
    assert next(iter_rgb(tmp_path / "a.mp4", height=32)).shape == (32, 48, 3)


def _clips(tmp_path: Path, moving: Moving, *lengths: int) -> list[Path]:
    clips = [tmp_path / f"clip '{index}.mp4" for index in range(len(lengths))]
    for index, (clip, num_frames) in enumerate(zip(clips, lengths, strict=True)):
        encode_clip(moving(num_frames, phase=index), clip)
    return clips


def test_stitching_loses_nothing(tmp_path: Path, moving: Moving) -> None:
    """Decoded frames of the result equal those of the clips, each once, in order."""
    clips = _clips(tmp_path, moving, 33, 4, 20)
    stitch(clips, tmp_path / "silent.mp4", 57)
    assert np.array_equal(_all(tmp_path / "silent.mp4"), np.concatenate([_all(clip) for clip in clips]))
    assert video_stream(tmp_path / "silent.mp4").duration == video_stream(clips[0]).duration * 57 / 33  # type: ignore[operator]


def test_stitching_is_reproducible(tmp_path: Path, moving: Moving) -> None:
    """The same clips give the same bytes."""
    clips = _clips(tmp_path, moving, 16, 16)
    for name in ("a.mp4", "b.mp4"):
        stitch(clips, tmp_path / name, 32)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_one_clip_is_a_video(tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video of one clip is stitched, too; paths may be relative."""
    (clip,) = _clips(tmp_path, moving, 16)
    monkeypatch.chdir(tmp_path)
    stitch([clip.relative_to(tmp_path)], Path("silent.mp4"), 16)


def test_an_encoder_that_writes_another_profile_is_found(
    tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is checked after it is written."""
    real = encode.h264_output
    monkeypatch.setattr(encode, "h264_output", lambda yuv, path, fps, **options: real(yuv, path, 2 * fps, **options))
    with pytest.raises(TransientError, match=r"a\.mp4 .*32"):
        encode_clip(moving(4), tmp_path / "a.mp4")


def test_wrong_number_of_frames_is_found(tmp_path: Path, moving: Moving) -> None:
    """A result with another number of frames than planned is an error."""
    with pytest.raises(TransientError, match="32"):
        stitch(_clips(tmp_path, moving, 16, 15), tmp_path / "silent.mp4", 32)


@pytest.mark.parametrize(
    ("odd", "theirs", "ours"), [({"fps": 25}, "'25 fps'", "'16 fps'"), ({"width": 64}, "64, 64", "96, 64")]
)
def test_clips_of_other_profiles_are_refused(
    odd: dict[str, int], theirs: str, ours: str, tmp_path: Path, moving: Moving
) -> None:
    """A clip of another size or frame rate is refused before anything is written; the message states both."""
    clips = _clips(tmp_path, moving, 16)
    encode_clip(moving(16, width=odd.get("width", 96)), tmp_path / "odd.mp4", fps=odd.get("fps", 16))
    expected = rf"odd\.mp4 is \('h264', 'yuv420p', .*{theirs}, .*'bt709', .*, but clip '0\.mp4 is .* {ours}, .*"
    with pytest.raises(PermanentError, match=expected):
        stitch([*clips, tmp_path / "odd.mp4"], tmp_path / "silent.mp4", 32)
    assert not (tmp_path / "silent.mp4").exists()


def test_clip_of_another_encoder_is_refused(tmp_path: Path, moving: Moving) -> None:
    """A clip of the same size and rate with other H.264 headers is refused."""
    clips = _clips(tmp_path, moving, 16)
    other = ffmpeg.own_input(clips[0]).output(
        ffmpeg.file_url(tmp_path / "odd.mp4"), vcodec="libx264", bf=2, refs=5, video_track_timescale=16000
    )
    ffmpeg.run(other, doing="making a clip", error=PermanentError)
    with pytest.raises(PermanentError, match="one encoding profile"):
        stitch([*clips, tmp_path / "odd.mp4"], tmp_path / "silent.mp4", 32)


def _as_by_another_build(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Encode frames with other decisions from now on, as another build of x264 would."""
    for name, value in options.items():
        monkeypatch.setitem(encode._H264, name.replace("_", "-"), value)


def test_clips_of_two_builds_lose_nothing(tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of two builds with equal headers are joined, and each frame equals that of its clip."""
    clips = _clips(tmp_path, moving, 16, 20, 12)
    ours = clips[1].read_bytes()
    _as_by_another_build(monkeypatch, x264_params=f"{encode._H264['x264-params']}:no-mbtree=1:trellis=0")
    encode_clip(moving(20, phase=1), clips[1])
    assert clips[1].read_bytes() != ours
    stitch(clips, tmp_path / "silent.mp4", 48, compare_frames=True)
    assert np.array_equal(_all(tmp_path / "silent.mp4"), np.concatenate([_all(clip) for clip in clips]))


OTHER_FFMPEG = shutil.which("ffmpeg")


@pytest.mark.skipif(OTHER_FFMPEG is None, reason="needs another ffmpeg on PATH: apt-get install ffmpeg")
def test_clips_of_the_ffmpeg_on_path_and_ours_lose_nothing(
    tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of the ffmpeg on PATH and of the wheel are joined without a change, by both decoders."""

    def use(setting: str) -> None:
        monkeypatch.setenv("S2V_FFMPEG_PATH", setting)
        load_settings.cache_clear()
        ffmpeg.tool_path.cache_clear()

    clips, ours = _clips(tmp_path, moving, 16, 20, 12), encoder_build()
    use(str(OTHER_FFMPEG))
    encode_clip(moving(20, phase=1), clips[1])
    assert encoder_build() != ours
    for setting in (str(OTHER_FFMPEG), ""):
        use(setting)
        stitch(clips, tmp_path / "silent.mp4", 48, compare_frames=True)
        assert np.array_equal(_all(tmp_path / "silent.mp4"), np.concatenate([_all(clip) for clip in clips]))


@pytest.mark.parametrize("wrong", ["order", "end"])
def test_a_join_that_changes_frames_is_found(
    wrong: str, tmp_path: Path, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that does not decode as in its clip is named."""
    clips = _clips(tmp_path, moving, 8, 8, 8)
    instead = {clips[1]: clips[2], clips[2]: clips[1]} if wrong == "order" else {clips[2]: clips[0]}
    entry = assembly._entry
    monkeypatch.setattr(assembly, "_entry", lambda clip: entry(instead.get(clip, clip)))
    stitch(clips, tmp_path / "silent.mp4", 24)
    name = "clip '1.mp4" if wrong == "order" else "clip '2.mp4"
    with pytest.raises(PermanentError, match=f"Frame 0 of {name} differs in silent.mp4: .* with one encoder"):
        stitch(clips, tmp_path / "silent.mp4", 24, compare_frames=True)


def test_nothing_to_stitch_is_refused(tmp_path: Path) -> None:
    """Stitching without clips is an error."""
    with pytest.raises(PermanentError, match="no clips"):
        stitch([], tmp_path / "silent.mp4", 0)


def test_uneven_times_are_found(tmp_path: Path, moving: Moving) -> None:
    """A clip whose frames are not 1/16 s apart is refused."""
    (clip,) = _clips(tmp_path, moving, 16)
    late = ffmpeg.own_input(clip).output(
        ffmpeg.file_url(tmp_path / "late.mp4"),
        vcodec="copy",
        video_track_timescale=16000,
        **{"bsf:v": "setts=ts=TS+10*gte(N\\,9)"},
    )
    ffmpeg.run(late, doing="making a clip", error=PermanentError)
    with pytest.raises(TransientError, match=r"Frame 9 of .* expected 0\.562500 s"):
        stitch([tmp_path / "late.mp4"], tmp_path / "silent.mp4", 16)


def test_a_video_outside_the_profile_is_found(tmp_path: Path, moving: Moving) -> None:
    """A video of clips that not every player decodes, of 10 bits, is refused."""
    (clip,) = _clips(tmp_path, moving, 16)
    other = ffmpeg.own_input(clip).output(
        ffmpeg.file_url(tmp_path / "odd.mp4"),
        vcodec="libx264",
        bf=0,
        pix_fmt="yuv420p10le",
        video_track_timescale=16000,
    )
    ffmpeg.run(other, doing="making a clip", error=PermanentError)
    with pytest.raises(TransientError, match=r"written as .*yuv420p10le"):
        stitch([tmp_path / "odd.mp4"], tmp_path / "silent.mp4", 16)
