"""Cross-fades between clips: only the mixed frames are encoded anew, all others are copied (ADR 7)."""

from pathlib import Path

import numpy as np

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.encode import Frames, check_profile, encode_clip, mp4_options
from s2v_tasks.media.ffmpeg import capture, file_url, own_input, run, tool_path
from s2v_tasks.media.frames import read_frames
from s2v_tasks.media.probe import Stream, probe


def crossfade(before: Path, after: Path, num_frames: int, folder: Path) -> tuple[Path, Path, Path]:
    """Files, in `folder`, to be joined in order: `before` without its end, the mixed frames, `after` without its start.

    The last `num_frames` frames of `before` fade into the first ones of `after`, whose frame `num_frames` is a key
    frame. Raises PermanentError for clips that are shorter or have no key frame there.
    """
    kept, fading = _num_frames(before) - num_frames, _num_frames(after)
    if kept < 1 or fading <= num_frames:
        raise PermanentError(
            f"{before.name} has {kept + num_frames} frames and {after.name} {fading}: expected more than the "
            f"{num_frames} of their cross-fade; plan and render them again."
        )
    _check_key_frame(after, num_frames)
    mixed = mix(
        read_frames(before, start_frame=kept, end_frame=kept + num_frames),
        read_frames(after, start_frame=0, end_frame=num_frames),
    )
    fps = int(_stream(after).r_frame_rate)
    head, middle, rest = (folder / f"{after.stem}_{part}.mp4" for part in ("before", "mixed", "after"))
    encode_clip(mixed, middle, fps=fps)
    _copy(before, head, num_frames=kept)
    _copy(after, rest, num_frames=fading - num_frames, from_seconds=num_frames / fps)
    return head, middle, rest


def mix(before: Frames, after: Frames) -> Frames:
    """Frames `[n,H,W,3]` that go from `before` to `after` in n even steps; neither is shown alone."""
    weights = (np.arange(len(after), dtype=np.float32) + 1) / (len(after) + 1)
    weights = weights[:, None, None, None]
    return np.rint(before * (1 - weights) + after * weights).astype(np.uint8)


def _copy(clip: Path, output: Path, *, num_frames: int, from_seconds: float = 0.0) -> None:
    """The packets of `num_frames` frames, from the key frame at `from_seconds` on."""
    source = own_input(clip, ss=from_seconds) if from_seconds else own_input(clip)
    copied = source.video.output(file_url(output), vcodec="copy", **{"frames:v": num_frames}, **mp4_options())
    run(copied, doing=f"cutting {clip.name}", error=TransientError)
    stream = _stream(clip)
    check_profile(output, width=stream.width, height=stream.height, fps=int(stream.r_frame_rate), num_frames=num_frames)


def _check_key_frame(clip: Path, frame: int) -> None:
    """A copy that begins elsewhere would show the wrong frames, or none."""
    command = [tool_path("ffprobe"), "-hide_banner", "-loglevel", "error", "-protocol_whitelist", "file"]
    command += ["-select_streams", "v:0", "-read_intervals", f"%+#{frame + 1}", "-show_entries", "packet=flags"]
    flags = capture([*command, "-of", "csv=p=0", file_url(clip)], doing=f"reading {clip.name}", error=PermanentError)
    if not flags.decode().split()[frame].startswith("K"):
        raise PermanentError(
            f"Frame {frame} of {clip.name} is no key frame: expected one behind its cross-fade; render the clip again."
        )


def _num_frames(clip: Path) -> int:
    return _stream(clip).nb_read_packets


def _stream(clip: Path) -> Stream:
    found = probe(clip, doing=f"reading {clip.name}", error=PermanentError, count_packets=True).video
    if found is None:
        raise PermanentError(f"{clip.name} has no video stream: render that clip again.")
    return found
