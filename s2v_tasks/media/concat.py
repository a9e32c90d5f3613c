"""Joining clips without decoding them."""

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.encode import check_profile, mp4_options
from s2v_tasks.media.ffmpeg import capture, file_url, own_input, read_chunks, run, tool_path
from s2v_tasks.media.probe import Stream, probe


def stitch(clips: Sequence[Path], output: Path, expected_frames: int, *, compare_frames: bool = False) -> None:
    """Join `clips` in order by stream copy: every frame, bit for bit, at uniform times.

    Clips of several encoders need `compare_frames`: what came out is decoded and compared with the decoded clips.
    Raises PermanentError if there is no clip, their streams differ or they decode to something else when joined,
    TransientError if the file that came out has not exactly `expected_frames` frames.
    """
    if not clips:
        raise PermanentError("There are no clips to stitch: render them first.")
    streams = [_stream(clip) for clip in clips]
    for clip, stream in zip(clips[1:], streams[1:], strict=True):
        if _profile(stream) != _profile(streams[0]):
            raise PermanentError(
                f"{clip.name} is {_profile(stream)}, but {clips[0].name} is {_profile(streams[0])}: "
                "clips of one video need one encoding profile; render the odd one again."
            )
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        script = Path(scratch) / "clips.txt"
        script.write_text("ffconcat version 1.0\n" + "".join(_entry(clip) for clip in clips))
        joined = own_input(script, format="concat", safe=0).video
        run(joined.output(file_url(output), vcodec="copy", **mp4_options()), doing="stitching", error=TransientError)
    fps = streams[0].r_frame_rate
    check_profile(output, width=streams[0].width, height=streams[0].height, fps=int(fps), num_frames=expected_frames)
    _check_times(output, fps, expected_frames)
    if compare_frames:
        _check_frames(output, clips)


def _stream(clip: Path) -> Stream:
    found = probe(clip, doing=f"reading {clip}", error=PermanentError).video
    if found is None:
        raise PermanentError(f"{clip} has no video stream: render that clip again.")
    return found


def _profile(stream: Stream) -> tuple[str, str, int, int, str, str, str]:
    """What must be equal for a copy to decode; the hash covers all that the H.264 headers say."""
    rate = f"{stream.r_frame_rate} fps"
    extra = stream.extradata_hash
    return stream.codec_name, stream.pix_fmt, stream.width, stream.height, rate, stream.color_space, extra


def _entry(clip: Path) -> str:
    quoted = str(clip.resolve()).replace("'", r"'\''")
    return f"file 'file:{quoted}'\n"


def _check_frames(output: Path, clips: Sequence[Path]) -> None:
    joined = iter(_frame_digests(output))
    for clip in clips:
        for index, digest in enumerate(_frame_digests(clip)):
            if next(joined, None) != digest:
                raise PermanentError(
                    f"Frame {index} of {clip.name} is another one in {output.name}: expected clips whose encoders fit "
                    "together; render them again by one encoder."
                )


def _frame_digests(video: Path) -> list[bytes]:
    """The digest of each decoded frame."""
    listing = own_input(video).video.output("pipe:1", format="framemd5")
    chunks = read_chunks(listing, 2**16, doing=f"decoding {video.name}", error=PermanentError)
    return [line.split(b",")[-1] for line in b"".join(chunks).splitlines() if not line.startswith(b"#")]


def _check_times(path: Path, fps: Fraction, num_frames: int) -> None:
    command = [tool_path("ffprobe"), "-hide_banner", "-loglevel", "error", "-protocol_whitelist", "file"]
    command += ["-select_streams", "v:0", "-show_entries", "packet=pts_time", "-of", "csv=p=0", file_url(path)]
    times = capture(command, doing=f"checking {path.name}", error=TransientError).decode().split()
    for index, time in enumerate(times):
        if abs(Fraction(time.rstrip(",")) - index / fps) > Fraction(1, 100_000):
            raise TransientError(
                f"Frame {index} of {path.name} is at {time} s, expected {float(index / fps):.6f} s: stitch again."
            )
    if len(times) != num_frames:
        raise TransientError(f"{path.name} has {len(times)} frames, expected {num_frames}: stitch again.")
