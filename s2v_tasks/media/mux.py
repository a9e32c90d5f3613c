"""Adding the sound: the uploaded speech itself, from its first sample, exactly as long as the picture."""

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

# Rates that every player takes; other speech (8 kHz telephone, 96 kHz studio) is resampled to the last one.
_KEPT_RATES = (44_100, 48_000)
_BITRATE = "192k"
# Staging has refused what is too long.
_ANY_LENGTH_SECONDS = 1e6


def mux(video: Path, audio_source: Path, output: Path, *, num_frames: int, fps: int) -> None:
    """Copy the picture of `video` and add the sound of `audio_source` as AAC, starting together at 0.

    The sound is what the model hears the mean of, trimmed, or padded with silence, to num_frames / fps seconds (to the
    sample; less than one sample longer where the rate does not divide). Raises PermanentError for a bad source,
    TransientError if the result is not what it must be.
    """
    with open_speech(audio_source, output.parent, max_duration_seconds=_ANY_LENGTH_SECONDS) as speech:
        _add_sound(video, speech, output, duration=Fraction(num_frames, fps))
    _check(video, output, num_frames=num_frames, fps=fps)


def _add_sound(video: Path, speech: SpeechSource, output: Path, *, duration: Fraction) -> None:
    sample_rate = speech.stream.sample_rate if speech.stream.sample_rate in _KEPT_RATES else _KEPT_RATES[-1]
    num_samples = ceil(duration * sample_rate)
    sound = pipe_input(format="f32le", ar=speech.stream.sample_rate, ac=speech.num_played)
    samples = (
        sound["a:0"]
        .filter("aresample", sample_rate)
        .filter("apad", whole_len=num_samples)
        .filter("atrim", end_sample=num_samples)
    )
    options = {"acodec": "aac", "audio_bitrate": _BITRATE, "flags:a": "+bitexact"}
    joined = ffmpeg.output(own_input(video).video, samples, file_url(output), vcodec="copy", **options, **mp4_options())
    doing = f"adding the sound of {speech.name}"
    feed(joined, _played(speech, duration + 1), doing=doing, error=PermanentError)


def _played(speech: SpeechSource, duration: Fraction) -> Iterator[bytes]:
    """What is played, up to the block that reaches `duration`."""
    num_samples = 0
    for block in speech.played():
        yield block.tobytes()
        num_samples += len(block)
        if num_samples >= duration * speech.stream.sample_rate:
            return


def _check(video: Path, output: Path, *, num_frames: int, fps: int) -> None:
    source = video_stream(video)
    picture = check_profile(output, width=source.width, height=source.height, fps=fps, num_frames=num_frames)
    found = probe(output, doing=f"checking {output.name}", error=TransientError)
    sound, one_frame = found.audio, Fraction(1, fps)
    if sound is None or sound.duration is None or picture.duration is None:
        raise TransientError(f"{output.name} lacks its sound or its durations: mux again.")
    starts = {picture.start_time, sound.start_time}
    if starts != {Fraction(0)} or abs(sound.duration - picture.duration) >= one_frame:
        raise TransientError(
            f"{output.name}: picture from {picture.start_time} s for {float(picture.duration):.4f} s, sound from "
            f"{sound.start_time} s for {float(sound.duration):.4f} s; expected both from 0, equally long: mux again."
        )
