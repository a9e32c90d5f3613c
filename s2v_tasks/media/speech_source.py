"""The speech of an uploaded file: which track, from when on, with which silences, and which of its channels.

The model and the viewers get their sound from here, so that they hear the same at the same time.
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
from s2v_tasks.media.audio_files import audio_formats, container_format, decodable_copy, missing_end, too_much
from s2v_tasks.media.channel_mix import WINDOWS_PER_SECOND, Mix, Survey, choose_mix, movement_db, survey
from s2v_tasks.media.container_structure import lost_part
from s2v_tasks.media.ffmpeg import AUDIO_FORMATS, read_chunks, uploaded_input
from s2v_tasks.media.probe import Probe, Stream, probe
from s2v_tasks.media.timestamps import Samples, Timeline, read_timeline, silence

ACCEPTED = "WAV, MP3, FLAC, Ogg/Opus or M4A"
# Containers that tell the length of the sound itself; in the others it is an estimate from the bit rate.
_LENGTH_UNKNOWN_IN = frozenset({"mp3", "aac", "amr"})
_SAMPLE_RATES = (4_000, 192_000)
_MOST_CHANNELS = 8
_MOST_TRACKS = 8
# Recorders in float have a few times full scale. Programs that forget to divide have 32768: no encoder plays that.
_HIGHEST_PEAK = 100
_CHUNK_SAMPLES = 1 << 18
_LENGTH_TOLERANCE_SECONDS = Fraction(1, 10)
# The choice of track and channels rests on this much, whatever is allowed, so that every step makes the same.
_SURVEYED_SECONDS = 1200
# A track whose level moves less than this share of what another's does holds no speech, or hardly any.
_SILENT_BELOW = 1 / 3
_LEAST_MOVEMENT_DB = 0.5
_MONO = Survey(np.zeros((0, 1, 1)), np.zeros(1))


@dataclass(frozen=True)
class SpeechSource:
    """Speech that can be decoded, any number of times, always to the same samples at the rate of its `stream`."""

    name: str
    path: Path
    stream: Stream
    track: int  # among the sound tracks
    num_tracks: int
    track_reason: str | None  # why it is not the one that players take
    timeline: Timeline
    mix: Mix
    declared: Fraction | None  # seconds of the timeline, where the container tells
    ends_declared: bool  # the container tells where the codec's padding begins, and where silence ends
    max_duration_seconds: float

    @property
    def num_played(self) -> int:
        """Channels that viewers hear."""
        return self.mix.num_played(self.stream.channels)

    def played(self) -> Iterator[Samples]:
        """What viewers hear, `[n, played]`, from the first sample on; the model hears the mean of it.

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
                    f"The speech {self.name} lasts longer than it announces, at most {self.max_duration_seconds:g} s "
                    "are allowed: shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)."
                )
            yield self.mix.play(kept)
        if num_samples == 0:
            raise PermanentError(f"The speech {self.name} holds no samples: upload a {ACCEPTED} file.")
        yield from map(self.mix.play, self._silent_end(num_samples))

    def _silent_end(self, num_samples: int) -> Iterator[Samples]:
        """Silence up to the length that the container announces; PermanentError where it shows a loss."""
        decoded = Fraction(num_samples, self.stream.sample_rate)
        if self.declared is None or decoded >= self.declared - _LENGTH_TOLERANCE_SECONDS:
            return
        if not self.timeline.stamped:
            raise PermanentError(
                f"The speech {self.name} is damaged or cut off: it announces {float(self.declared):.2f} s and only "
                f"{float(decoded):.2f} s can be decoded; upload the complete file."
            )
        _refuse_longer(self.name, self.declared, self.max_duration_seconds)
        yield from silence(ceil(self.declared * self.stream.sample_rate) - num_samples, self.stream.channels)


@contextmanager
def open_speech(source: Path, scratch: Path, *, max_duration_seconds: float) -> Iterator[SpeechSource]:
    """Look at an uploaded file and decide what of it is the speech; `scratch` takes what lies in between.

    Raises PermanentError, in one sentence, if the file is empty, no sound file, cut off or longer than allowed.
    """
    if source.stat().st_size == 0:
        raise PermanentError(f"The speech {source.name} is empty (0 bytes): upload a {ACCEPTED} file.")
    format_name = _inspect(source, max_duration_seconds)
    with TemporaryDirectory(dir=scratch) as folder:
        sound = decodable_copy(source, format_name, Path(folder), max_duration_seconds=max_duration_seconds)
        found = _probe_speech(sound, audio_formats(sound) or format_name)
        track, surveyed, reason = _choose_track(sound, found)
        stream = found.sounds[track]
        _refuse_longer(source.name, stream.duration or Fraction(0), max_duration_seconds)
        timeline = read_timeline(
            sound, track, stream, found.container.format_name, max_seconds=max_duration_seconds + 1
        )
        yield SpeechSource(
            name=source.name,
            path=sound,
            stream=stream,
            track=track,
            num_tracks=len(found.sounds),
            track_reason=reason,
            timeline=timeline,
            mix=choose_mix(surveyed, stream.channel_layout),
            declared=_declared_seconds(found, stream, timeline),
            # Only a container with an edit list declares the length of the sound without the codec's padding.
            ends_declared="mp4" in found.container.format_name,
            max_duration_seconds=max_duration_seconds,
        )


def _inspect(source: Path, max_duration_seconds: float) -> str:
    """ffprobe's name of the container, after the checks that need no decoding; PermanentError where one fails."""
    formats = audio_formats(source)
    if formats is None:
        raise PermanentError(
            f"The speech {source.name} is not a readable audio file (expected {ACCEPTED}): its first bytes are those "
            "of none."
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
    if found.audio is None or found.audio.sample_rate <= 0 or found.audio.channels <= 0:
        kinds = ", ".join(sorted({s.codec_type for s in found.streams})) or "nothing"
        raise PermanentError(f"The speech {source.name} has no sound, only {kinds}: upload a {ACCEPTED} file.")
    return found


def _reading(source: Path) -> str:
    return f"The speech {source.name} is not a readable audio file (expected {ACCEPTED}): reading it"


def _choose_track(path: Path, found: Probe) -> tuple[int, Survey, str | None]:
    """(track, survey of its channels, why it is not the one that players take).

    Players take the track that is marked as default, else the first; another one is taken where that one is silent.
    """
    sounds = found.sounds[:_MOST_TRACKS]
    usual = next((k for k, stream in enumerate(sounds) if stream.disposition.get("default")), 0)
    _refuse_unlike_speech(path.name, sounds[usual])
    if len(sounds) == 1:
        return usual, _survey(path, usual, sounds[usual]) if sounds[usual].channels > 1 else _MONO, None
    surveys = {usual: _survey(path, usual, sounds[usual])}
    for track, stream in enumerate(sounds):
        if track != usual and _is_like_speech(stream):
            try:
                surveys[track] = _survey(path, track, stream)
            except PermanentError as error:
                get_logger().warning("sound_track_unreadable", track=track + 1, error=str(error))
    moving = {track: movement_db(found.loudest) for track, found in surveys.items()}
    best = max(moving, key=lambda track: moving[track])
    if moving[best] < _LEAST_MOVEMENT_DB or moving[usual] >= _SILENT_BELOW * moving[best]:
        best = usual
    reason = None if best == usual else f"track {usual + 1} is silent or holds no speech"
    return best, surveys[best], reason


def _survey(path: Path, track: int, stream: Stream) -> Survey:
    limit = ceil(_SURVEYED_SECONDS * stream.sample_rate / _chunk_samples(stream))
    return survey(islice(_decoded(path, track, stream), limit), stream.sample_rate, stream.channels)


def _is_like_speech(stream: Stream) -> bool:
    """Whether a recorder may have made it; told before it is decoded: memory grows with rate and channels."""
    lowest, highest = _SAMPLE_RATES
    return lowest <= stream.sample_rate <= highest and 0 < stream.channels <= _MOST_CHANNELS


def _refuse_unlike_speech(name: str, stream: Stream) -> None:
    if not _is_like_speech(stream):
        lowest, highest = _SAMPLE_RATES
        raise PermanentError(
            f"The speech {name} has {stream.channels} channels of {stream.sample_rate} Hz: expected at most "
            f"{_MOST_CHANNELS} channels of {lowest} to {highest} Hz; export it as 48000 Hz mono."
        )


def _refuse_longer(name: str, duration: Fraction, max_duration_seconds: float) -> None:
    if duration > max_duration_seconds:
        raise PermanentError(
            f"The speech {name} lasts {float(duration):.1f} s, at most {max_duration_seconds:g} s are allowed: "
            "shorten it or raise the limit (S2V_MAX_AUDIO_SECONDS)."
        )


def _declared_seconds(found: Probe, stream: Stream, timeline: Timeline) -> Fraction | None:
    """The length that the container announces, from the first sample that counts on."""
    if found.container.format_name in _LENGTH_UNKNOWN_IN:
        return None
    declared = stream.duration or (found.container.duration if len(found.streams) == 1 else None)
    if declared is None or "mp4" in found.container.format_name:
        return declared
    return declared - timeline.start


def _chunk_samples(stream: Stream) -> int:
    """Whole windows of the survey, so that none spans two chunks."""
    window = stream.sample_rate // WINDOWS_PER_SECOND
    return _CHUNK_SAMPLES // window * window


def _decoded(path: Path, track: int, stream: Stream) -> Iterator[Samples]:
    """All decoded samples `[n, channels]` of a track, one behind the other; PermanentError for what is no sound."""
    sound = uploaded_input(path, AUDIO_FORMATS)[f"a:{track}"]
    layout = {"format": "f32le", "acodec": "pcm_f32le", "ar": stream.sample_rate, "ac": stream.channels}
    doing = f"The speech {path.name} is damaged: decoding it"
    chunk_bytes = _chunk_samples(stream) * stream.channels * 4
    for chunk in read_chunks(sound.output("pipe:1", **layout), chunk_bytes, doing=doing, error=PermanentError):
        samples = np.frombuffer(chunk, dtype=np.float32).reshape(-1, stream.channels)
        peak = float(np.abs(samples).max(initial=0))
        if not isfinite(peak):
            raise PermanentError(
                f"The speech {path.name} holds samples that are not numbers (NaN or infinite): export it again."
            )
        if peak > _HIGHEST_PEAK:
            raise PermanentError(
                f"The speech {path.name} holds samples of {peak:g}: expected 1 at full scale, and at most "
                f"{_HIGHEST_PEAK}; export it as 16-bit sound."
            )
        yield samples
