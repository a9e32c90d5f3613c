"""Assemble the finished video: concatenate the clips by stream copy, and mux the speech, in sync with the picture.

With cross-fades at the seams (docs/adr/0007-cuts-and-crossfades.md) only their frames are encoded again; all others are
copied. The speech begins with its first sample and is exactly as long as the picture.
"""

import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path

import ffmpeg
import numpy as np

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.encode import Frames, check_profile, encode_clip, mp4_options
from s2v_tasks.media.ffmpeg import capture, feed, ffprobe, file_url, own_input, pipe_input, read_chunks, run
from s2v_tasks.media.frames import read_frames, video_stream
from s2v_tasks.media.probe import Stream, probe
from s2v_tasks.media.speech_source import SpeechSource, open_speech

_LISTED = ("-select_streams", "v:0", "-of", "csv=p=0")  # one line for each packet of the picture
# Rates that every player supports; other speech (8 kHz telephone, 96 kHz studio) is resampled to the last one.
_KEPT_RATES = (44_100, 48_000)
_BITRATE = "192k"
# Staging has refused longer speech.
_ANY_LENGTH_SECONDS = 1e6


def stitch(clips: Sequence[Path], output: Path, expected_frames: int, *, compare_frames: bool = False) -> None:
    """Concatenate `clips` in order by stream copy, bit for bit, with uniform time stamps.

    Clips of several encoders need `compare_frames`: the output is decoded and compared with the decoded clips.
    Raises PermanentError if there is no clip, if their streams differ or if they decode to other frames when joined,
    TransientError if the output has not exactly `expected_frames` frames.
    """
    if not clips:
        raise PermanentError("There are no clips to stitch: render them first.")
    streams = [_stream(clip) for clip in clips]
    for clip, stream in zip(clips[1:], streams[1:], strict=True):
        if _profile(stream) != _profile(streams[0]):
            raise PermanentError(
                f"{clip.name} is {_profile(stream)}, but {clips[0].name} is {_profile(streams[0])}: "
                "clips of one video need one encoding profile; render the clips with another profile again."
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


def crossfade(before: Path, after: Path, num_frames: int, folder: Path) -> tuple[Path, Path, Path]:
    """Write three files to `folder`, to be stitched in order: `before` without its end, the fade, the rest of `after`.

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
    """Return frames `[n,H,W,3]` that fade from `before` to `after` in n even steps; each shows both."""
    weights = np.arange(1, len(after) + 1, dtype=np.float32) / (len(after) + 1)
    weights = weights[:, None, None, None]
    return np.rint(before * (1 - weights) + after * weights).astype(np.uint8)


def _copy(clip: Path, output: Path, *, num_frames: int, from_seconds: float = 0.0) -> None:
    """Copy the packets of `num_frames` frames, from the key frame at `from_seconds` on."""
    source = own_input(clip, ss=from_seconds).video
    copied = source.output(file_url(output), vcodec="copy", **{"frames:v": num_frames}, **mp4_options())
    run(copied, doing=f"cutting {clip.name}", error=TransientError)
    stream = _stream(clip)
    check_profile(output, width=stream.width, height=stream.height, fps=int(stream.r_frame_rate), num_frames=num_frames)


def _stream(clip: Path, *, count_packets: bool = False) -> Stream:
    found = probe(clip, doing=f"reading {clip.name}", error=PermanentError, count_packets=count_packets).video
    if found is None:
        raise PermanentError(f"{clip.name} has no video stream: render that clip again.")
    return found


def _num_frames(clip: Path) -> int:
    return _stream(clip, count_packets=True).nb_read_packets


def _profile(stream: Stream) -> tuple[str, str, int, int, str, str, str]:
    """Return the properties that must be equal for a stream copy; the hash covers the H.264 headers."""
    rate = f"{stream.r_frame_rate} fps"
    extra = stream.extradata_hash
    return stream.codec_name, stream.pix_fmt, stream.width, stream.height, rate, stream.color_space, extra


def _entry(clip: Path) -> str:
    quoted = file_url(clip).replace("'", r"'\''")
    return f"file '{quoted}'\n"


def _check_key_frame(clip: Path, frame: int) -> None:
    """Raise PermanentError unless `frame` is a key frame: a copy from another frame on shows wrong frames, or none."""
    command = ffprobe(clip, "-read_intervals", f"%+#{frame + 1}", "-show_entries", "packet=flags", *_LISTED)
    flags = capture(command, doing=f"reading {clip.name}", error=PermanentError)
    if not flags.decode().split()[frame].startswith("K"):
        raise PermanentError(
            f"Frame {frame} of {clip.name} is not a key frame: expected one after its cross-fade. Render the clip "
            "again."
        )


def _check_frames(output: Path, clips: Sequence[Path]) -> None:
    joined = iter(_frame_digests(output))
    for clip in clips:
        for index, digest in enumerate(_frame_digests(clip)):
            if next(joined, None) != digest:
                raise PermanentError(
                    f"Frame {index} of {clip.name} differs in {output.name}: expected equal frames. The encoders of "
                    "the clips do not fit together; render all clips again with one encoder."
                )


def _frame_digests(video: Path) -> list[bytes]:
    """Return the digest of each decoded frame."""
    listing = own_input(video).video.output("pipe:1", format="framemd5")
    chunks = read_chunks(listing, 2**16, doing=f"decoding {video.name}", error=PermanentError)
    return [line.split(b",")[-1] for line in b"".join(chunks).splitlines() if not line.startswith(b"#")]


def _check_times(path: Path, fps: Fraction, num_frames: int) -> None:
    command = ffprobe(path, "-show_entries", "packet=pts_time", *_LISTED)
    times = capture(command, doing=f"checking {path.name}", error=TransientError).decode().split()
    for index, time in enumerate(times):
        if abs(Fraction(time.rstrip(",")) - index / fps) > Fraction(1, 100_000):
            raise TransientError(
                f"Frame {index} of {path.name} is at {time} s, expected {float(index / fps):.6f} s: stitch again."
            )
    if len(times) != num_frames:
        raise TransientError(f"{path.name} has {len(times)} frames, expected {num_frames}: stitch again.")


def mux(video: Path, audio_source: Path, output: Path, *, num_frames: int, fps: int) -> None:
    """Copy the picture of `video` and add the speech of `audio_source` as AAC; both start at 0.

    The mean of the channels is the input of the model. They are trimmed, or padded with silence, to num_frames / fps
    seconds: to the sample, or less than one sample longer if the rate does not divide. Raises PermanentError for a bad
    source, TransientError if the result differs from this description.
    """
    with open_speech(audio_source, output.parent, max_duration_seconds=_ANY_LENGTH_SECONDS) as speech:
        _add_audio(video, speech, output, duration=Fraction(num_frames, fps))
    _check_muxed(video, output, num_frames=num_frames, fps=fps)


def _add_audio(video: Path, speech: SpeechSource, output: Path, *, duration: Fraction) -> None:
    sample_rate = speech.stream.sample_rate if speech.stream.sample_rate in _KEPT_RATES else _KEPT_RATES[-1]
    num_samples = ceil(duration * sample_rate)
    raw = pipe_input(format="f32le", ar=speech.stream.sample_rate, ac=speech.num_channels)
    samples = (
        raw["a:0"]
        .filter("aresample", sample_rate)
        .filter("apad", whole_len=num_samples)
        .filter("atrim", end_sample=num_samples)
    )
    options = {"acodec": "aac", "audio_bitrate": _BITRATE, "flags:a": "+bitexact"}
    joined = ffmpeg.output(own_input(video).video, samples, file_url(output), vcodec="copy", **options, **mp4_options())
    doing = f"adding the audio of {speech.name}"
    feed(joined, _speech_chunks(speech, duration + 1), doing=doing, error=PermanentError)


def _speech_chunks(speech: SpeechSource, duration: Fraction) -> Iterator[bytes]:
    """Yield the speech up to the block that reaches `duration`."""
    num_samples = 0
    for block in speech.blocks():
        yield block.tobytes()
        num_samples += len(block)
        if num_samples >= duration * speech.stream.sample_rate:
            return


def _check_muxed(video: Path, output: Path, *, num_frames: int, fps: int) -> None:
    source = video_stream(video)
    picture = check_profile(output, width=source.width, height=source.height, fps=fps, num_frames=num_frames)
    found = probe(output, doing=f"checking {output.name}", error=TransientError)
    audio, one_frame = found.audio, Fraction(1, fps)
    if audio is None or audio.duration is None or picture.duration is None:
        raise TransientError(f"{output.name} lacks its audio or its durations: mux again.")
    starts = {picture.start_time, audio.start_time}
    if starts != {Fraction(0)} or abs(audio.duration - picture.duration) >= one_frame:
        raise TransientError(
            f"{output.name}: picture from {picture.start_time} s for {float(picture.duration):.4f} s, audio from "
            f"{audio.start_time} s for {float(audio.duration):.4f} s; expected both from 0, equally long: mux again."
        )
