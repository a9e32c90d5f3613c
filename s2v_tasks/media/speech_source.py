"""Decode the speech of an uploaded file: choose its track, timeline and channels.

The input of the model and the audio of the video both come from here, so that they are equal and in sync.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import ceil, isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from s2v_tasks.errors import PermanentError
from s2v_tasks.log import get_logger
from s2v_tasks.media.audio_files import (
    LENGTH_TOLERANCE_SECONDS,
    audio_formats,
    container_format,
    decodable_copy,
    missing_end,
    too_much,
)
from s2v_tasks.media.channel_mix import WINDOWS_PER_SECOND, Mix, Survey, choose_mix, movement_db, survey
from s2v_tasks.media.container_structure import lost_part
from s2v_tasks.media.ffmpeg import AUDIO_FORMATS, read_chunks, uploaded_input
from s2v_tasks.media.probe import Probe, Samples, Stream, Timeline, probe, read_timeline, silence

ACCEPTED = "WAV, MP3, FLAC, Ogg/Opus or M4A"
# Containers whose stated length is an estimate from the bit rate.
_LENGTH_UNKNOWN_IN = frozenset({"mp3", "aac", "amr"})
_SAMPLE_RATES = (4_000, 192_000)
_MAX_CHANNELS = 8
_MAX_TRACKS = 8
# Float recordings reach a few times full scale. Programs that forget to divide write 32768, which encoders refuse.
_HIGHEST_PEAK = 100
_CHUNK_SAMPLES = 1 << 18
# The choice of track and channels uses this much audio, for any limit, so that every step chooses the same.
_SURVEYED_SECONDS = 1200
# A track whose level changes by less than this share of another track's has little or no speech.
_SILENT_BELOW = 1 / 3
_LEAST_MOVEMENT_DB = 0.5
_MONO = Survey(np.zeros((0, 1, 1)), np.zeros(1))


@dataclass(frozen=True)
class SpeechSource:
    """Speech that can be decoded repeatedly, always to the same samples at the rate of its `stream`."""

    name: str
    path: Path
    stream: Stream
    track: int  # among the audio tracks
    num_tracks: int
    track_reason: str | None  # why it is not the track that players choose
    timeline: Timeline
    mix: Mix
    declared: Fraction | None  # seconds of the timeline, if the container states them
    ends_declared: bool  # the stated length excludes the codec's padding and includes final silence
    max_duration_seconds: float

    @property
    def num_channels(self) -> int:
        """Return the number of channels of the mix."""
        return self.mix.num_mixed(self.stream.channels)

    def blocks(self) -> Iterator[Samples]:
        """Yield the mixed speech `[n, num_channels]` from the first sample on; its mean is the input of the model.

        Raises PermanentError for a speech that is damaged, without samples, or longer than allowed.
        """
        num_samples = 0
        limit = self.max_duration_seconds * self.stream.sample_rate
        end = None if self.declared is None else ceil(self.declared * self.stream.sample_rate)
        for block in self.timeline.fill(_decoded(self.path, self.track, self.stream)):
            kept = block[: max(0, end - num_samples)] if end is not None and self.ends_declared else block
            num_samples += len(block)
            if num_samples - len(block) + len(kept) > limit:
                raise PermanentError(
                    f"The speech {self.name} is too long, at most {self.max_duration_seconds:g} s are allowed: "
                    "shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)."
                )
            yield self.mix.apply(kept)
        if num_samples == 0:
            raise PermanentError(f"The speech {self.name} holds no samples: upload a {ACCEPTED} file.")
        yield from map(self.mix.apply, self._silent_end(num_samples))

    def _silent_end(self, num_samples: int) -> Iterator[Samples]:
        """Yield silence up to the stated length; PermanentError if the missing end is a loss."""
        decoded = Fraction(num_samples, self.stream.sample_rate)
        if self.declared is None or decoded >= self.declared - LENGTH_TOLERANCE_SECONDS:
            return
        if not self.timeline.stamped:
            raise PermanentError(
                f"The speech {self.name} is damaged or cut off: it states {float(self.declared):.2f} s and only "
                f"{float(decoded):.2f} s can be decoded; upload the complete file."
            )
        _refuse_longer(self.name, self.declared, self.max_duration_seconds)
        yield from silence(ceil(self.declared * self.stream.sample_rate) - num_samples, self.stream.channels)


@contextmanager
def open_speech(source: Path, scratch: Path, *, max_duration_seconds: float) -> Iterator[SpeechSource]:
    """Inspect an uploaded file and choose the speech in it; `scratch` is a folder for temporary files.

    Raises PermanentError, in one sentence, if the file is empty, no audio file, cut off or longer than allowed.
    """
    if source.stat().st_size == 0:
        raise PermanentError(f"The speech {source.name} is empty (0 bytes): upload a {ACCEPTED} file.")
    format_name = _inspect(source, max_duration_seconds)
    with TemporaryDirectory(dir=scratch) as folder:
        copy = decodable_copy(source, format_name, Path(folder), max_duration_seconds=max_duration_seconds)
        found = _probe_speech(copy, audio_formats(copy) or format_name)
        track, surveyed, reason = _choose_track(copy, found)
        stream = found.audio_streams[track]
        if found.container.format_name not in _LENGTH_UNKNOWN_IN:
            _refuse_longer(source.name, stream.duration or Fraction(0), max_duration_seconds)
        timeline = read_timeline(copy, track, stream, found.container.format_name, max_seconds=max_duration_seconds)
        yield SpeechSource(
            name=source.name,
            path=copy,
            stream=stream,
            track=track,
            num_tracks=len(found.audio_streams),
            track_reason=reason,
            timeline=timeline,
            mix=choose_mix(surveyed, stream.channel_layout),
            declared=_declared_seconds(found, stream, timeline),
            # Only a container with an edit list states the length without the codec's padding.
            ends_declared="mp4" in found.container.format_name,
            max_duration_seconds=max_duration_seconds,
        )


def _inspect(source: Path, max_duration_seconds: float) -> str:
    """Return ffprobe's name of the container after the checks that need no decoding; PermanentError if one fails."""
    formats = audio_formats(source)
    if formats is None:
        raise PermanentError(
            f"The speech {source.name} is not a readable audio file (expected {ACCEPTED}): its first bytes are those "
            "of no audio format."
        )
    _refuse_too_much(source, formats, max_duration_seconds)
    format_name = container_format(source, formats, doing=_reading(source))
    _refuse_too_much(source, format_name, max_duration_seconds)
    problem = missing_end(source, format_name) or lost_part(source, format_name)
    if problem is not None:
        raise PermanentError(
            f"The speech {source.name} is damaged or cut off: {problem}; upload the complete file, or re-export the "
            "file."
        )
    return format_name


def _refuse_too_much(source: Path, format_name: str, max_duration_seconds: float) -> None:
    if problem := too_much(source, format_name, max_duration_seconds):
        raise PermanentError(f"The speech {source.name} {problem}.")


def _probe_speech(source: Path, formats: str) -> Probe:
    found = probe(source, doing=_reading(source), error=PermanentError, formats=formats)
    if found.audio is None:
        others = ", ".join(sorted({s.codec_type for s in found.streams}))
        only = f"only {others}" if others else "and no other track"
        raise PermanentError(f"The speech {source.name} has no audio, {only}: upload a {ACCEPTED} file.")
    if 0 in (found.audio.sample_rate, found.audio.channels):
        raise PermanentError(
            f"The speech {source.name} states {found.audio.channels} channels of {found.audio.sample_rate} Hz: "
            f"expected at least 1 channel and 1 Hz; upload a {ACCEPTED} file."
        )
    return found


def _reading(source: Path) -> str:
    return f"The speech {source.name} is not a readable audio file (expected {ACCEPTED}): reading it"


def _choose_track(path: Path, found: Probe) -> tuple[int, Survey, str | None]:
    """Return (track, survey of its channels, why it is not the track that players choose).

    Players choose the track that is marked as default, else the first. If it is silent, another one is used.
    """
    streams = found.audio_streams[:_MAX_TRACKS]
    usual = next((k for k, stream in enumerate(streams) if stream.disposition.get("default")), 0)
    _refuse_unlike_speech(path.name, streams[usual])
    if len(streams) == 1:
        return usual, _survey(path, usual, streams[usual]) if streams[usual].channels > 1 else _MONO, None
    surveys = {usual: _survey(path, usual, streams[usual])}
    for track, stream in enumerate(streams):
        if track != usual and _is_like_speech(stream):
            try:
                surveys[track] = _survey(path, track, stream)
            except PermanentError as error:
                get_logger().warning("audio_track_unreadable", track=track + 1, error=str(error))
    moving = {track: movement_db(surveyed.loudest) for track, surveyed in surveys.items()}
    best = max(moving, key=lambda track: moving[track])
    if moving[best] < _LEAST_MOVEMENT_DB or moving[usual] >= _SILENT_BELOW * moving[best]:
        best = usual
    reason = None if best == usual else f"track {usual + 1} is silent or holds no speech"
    return best, surveys[best], reason


def _survey(path: Path, track: int, stream: Stream) -> Survey:
    limit = ceil(_SURVEYED_SECONDS * stream.sample_rate / _chunk_samples(stream))
    return survey(islice(_decoded(path, track, stream), limit), stream.sample_rate, stream.channels)


def _is_like_speech(stream: Stream) -> bool:
    """Return True if rate and channels are usual for recordings; checked first, because they decide the memory."""
    lowest, highest = _SAMPLE_RATES
    return lowest <= stream.sample_rate <= highest and 0 < stream.channels <= _MAX_CHANNELS


def _refuse_unlike_speech(name: str, stream: Stream) -> None:
    if not _is_like_speech(stream):
        lowest, highest = _SAMPLE_RATES
        raise PermanentError(
            f"The speech {name} has {stream.channels} channels of {stream.sample_rate} Hz: expected at most "
            f"{_MAX_CHANNELS} channels of {lowest} to {highest} Hz; export it as 48000 Hz mono."
        )


def _refuse_longer(name: str, duration: Fraction, max_duration_seconds: float) -> None:
    if duration > max_duration_seconds:
        raise PermanentError(
            f"The speech {name} lasts {float(duration):.1f} s, at most {max_duration_seconds:g} s are allowed: "
            "shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)."
        )


def _declared_seconds(found: Probe, stream: Stream, timeline: Timeline) -> Fraction | None:
    """Return the length that the container states, from the first sample after the encoder's delay on."""
    if found.container.format_name in _LENGTH_UNKNOWN_IN:
        return None
    declared = stream.duration or (found.container.duration if len(found.streams) == 1 else None)
    if declared is None or "mp4" in found.container.format_name:
        return declared
    return declared - timeline.start


def _chunk_samples(stream: Stream) -> int:
    """Return a number of samples with whole windows of the survey, so that no window spans two chunks."""
    window = stream.sample_rate // WINDOWS_PER_SECOND
    return _CHUNK_SAMPLES // window * window


def _decoded(path: Path, track: int, stream: Stream) -> Iterator[Samples]:
    """Yield all decoded samples `[n, channels]` of a track; PermanentError for samples that are not audio."""
    source = uploaded_input(path, AUDIO_FORMATS)[f"a:{track}"]
    layout = {"format": "f32le", "acodec": "pcm_f32le", "ar": stream.sample_rate, "ac": stream.channels}
    doing = f"The speech {path.name} is damaged: decoding it"
    chunk_bytes = _chunk_samples(stream) * stream.channels * 4
    for chunk in read_chunks(source.output("pipe:1", **layout), chunk_bytes, doing=doing, error=PermanentError):
        samples = np.frombuffer(chunk, dtype=np.float32).reshape(-1, stream.channels)
        peak = float(np.abs(samples).max(initial=0))
        if not isfinite(peak):
            raise PermanentError(
                f"The speech {path.name} holds samples that are not numbers (NaN or infinite): export it again."
            )
        if peak > _HIGHEST_PEAK:
            raise PermanentError(
                f"The speech {path.name} holds samples of {peak:g}: expected 1 at full scale, and at most "
                f"{_HIGHEST_PEAK}; export it as 16-bit audio."
            )
        yield samples
