"""Mux the speech into the video: from its first sample, exactly as long as the picture."""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path

import ffmpeg

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.encode import check_profile, mp4_options
from s2v_tasks.media.ffmpeg import feed, file_url, own_input, pipe_input
from s2v_tasks.media.frames import video_stream
from s2v_tasks.media.probe import probe
from s2v_tasks.media.speech_source import SpeechSource, open_speech

# Rates that every player supports; other speech (8 kHz telephone, 96 kHz studio) is resampled to the last one.
_KEPT_RATES = (44_100, 48_000)
_BITRATE = "192k"
# Staging has refused longer speech.
_ANY_LENGTH_SECONDS = 1e6


def mux(video: Path, audio_source: Path, output: Path, *, num_frames: int, fps: int) -> None:
    """Copy the picture of `video` and add the speech of `audio_source` as AAC; both start at 0.

    The mean of the channels is the input of the model. They are trimmed, or padded with silence, to num_frames / fps
    seconds: to the sample, or less than one sample longer if the rate does not divide. Raises PermanentError for a bad
    source, TransientError if the result differs from this description.
    """
    with open_speech(audio_source, output.parent, max_duration_seconds=_ANY_LENGTH_SECONDS) as speech:
        _add_audio(video, speech, output, duration=Fraction(num_frames, fps))
    _check(video, output, num_frames=num_frames, fps=fps)


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
    feed(joined, _chunks(speech, duration + 1), doing=doing, error=PermanentError)


def _chunks(speech: SpeechSource, duration: Fraction) -> Iterator[bytes]:
    """Yield the speech up to the block that reaches `duration`."""
    num_samples = 0
    for block in speech.blocks():
        yield block.tobytes()
        num_samples += len(block)
        if num_samples >= duration * speech.stream.sample_rate:
            return


def _check(video: Path, output: Path, *, num_frames: int, fps: int) -> None:
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
