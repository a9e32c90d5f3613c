"""Adding the sound: the uploaded speech itself, from its first sample, exactly as long as the picture."""

import tempfile
from fractions import Fraction
from math import ceil
from pathlib import Path

import ffmpeg

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.containers import container_format, sound_formats, without_junk
from s2v_tasks.media.encode import check_profile, mp4_options
from s2v_tasks.media.ffmpeg import AUDIO_FORMATS, file_url, own_input, run, uploaded_input
from s2v_tasks.media.frames import video_stream
from s2v_tasks.media.probe import Stream, probe

# Rates that every player takes; other speech (8 kHz telephone, 96 kHz studio) is resampled to the last one.
_KEPT_RATES = (44_100, 48_000)
_BITRATE = "192k"


def mux(video: Path, audio_source: Path, output: Path, *, num_frames: int, fps: int) -> None:
    """Copy the picture of `video` and add the sound of `audio_source` as AAC, starting together at 0.

    The sound is trimmed, or padded with silence, to num_frames / fps seconds (to the sample; less than one sample
    longer where the rate does not divide). Raises PermanentError for a bad source, TransientError if the result is not
    what it must be.
    """
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        duration = Fraction(num_frames, fps)
        format_name = container_format(
            audio_source, sound_formats(audio_source) or AUDIO_FORMATS, doing=f"reading {audio_source.name}"
        )
        speech = without_junk(audio_source, format_name, Path(scratch), max_duration_seconds=float(duration))
        _add_sound(video, speech, output, duration=duration)
    _check(video, output, num_frames=num_frames, fps=fps)


def _add_sound(video: Path, speech: Path, output: Path, *, duration: Fraction) -> None:
    sound = _audio_stream(speech)
    sample_rate = sound.sample_rate if sound.sample_rate in _KEPT_RATES else _KEPT_RATES[-1]
    num_samples = ceil(duration * sample_rate)
    samples = (
        uploaded_input(speech, AUDIO_FORMATS, t=float(duration) + 1)["a:0"]
        # A container may start its sound late; the model heard the samples from the first one on, so time does too.
        .filter("asetpts", "N/SR/TB")
        .filter("aresample", sample_rate)
        .filter("apad", whole_len=num_samples)
        .filter("atrim", end_sample=num_samples)
    )
    run(
        _joined(own_input(video).video, samples, output, channels=min(sound.channels, 2)),
        doing=f"adding the sound of {speech.name}",
        error=PermanentError,
    )


def _joined(picture: object, samples: object, output: Path, *, channels: int) -> object:
    options = {"acodec": "aac", "audio_bitrate": _BITRATE, "ac": channels, "flags:a": "+bitexact"}
    return ffmpeg.output(picture, samples, file_url(output), vcodec="copy", **options, **mp4_options())


def _audio_stream(path: Path) -> Stream:
    """The stream of the sound."""
    found = probe(path, doing=f"reading {path.name}", error=PermanentError, formats=AUDIO_FORMATS)
    if found.audio is None:
        raise PermanentError(f"{path.name} has no sound: upload the speech again.")
    return found.audio


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
