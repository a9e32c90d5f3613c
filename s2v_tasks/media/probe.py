"""Read a media file with ffprobe: its headers as typed values, and gaps in the time stamps of an audio track.

Gaps come from a muted microphone, discontinuous transmission or lost packets.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, field_validator

from s2v_tasks.errors import PermanentError, S2VError
from s2v_tasks.media.ffmpeg import AUDIO_FORMATS, OWN_FORMATS, capture, ffprobe, read_lines

_PROBE_TIMEOUT_SECONDS = 120.0
# ffprobe's names of the containers whose packets have time stamps; in the others packets follow without gaps.
_STAMPED = ("mov", "matroska", "ogg")
# Stamps in whole milliseconds jitter; one lost packet of any codec is longer than this.
_JITTER_SECONDS = Fraction(1, 100)
# Stamps that go back by more begin a new timeline; by less they jitter, or packets overlap a little.
_RESTART_SECONDS = Fraction(1, 10)
# Encoders place their delay before 0 if the container cannot mark it as skipped.
_LONGEST_DELAY_SECONDS = Fraction(1, 10)
_PIECE_SAMPLES = 1 << 16
Samples = npt.NDArray[np.float32]
# A decoded frame: its stamp in samples, None if it has none, and its number of samples.
Frame = tuple[Fraction | None, int]


class Stream(BaseModel):
    """One stream. Times are seconds as declared by the container; None if it declares none."""

    codec_type: str = "unknown"
    codec_name: str = "unknown"
    start_time: Fraction | None = None
    duration: Fraction | None = None
    width: int = 0
    height: int = 0
    pix_fmt: str = "unknown"
    r_frame_rate: Fraction = Fraction(0)
    color_space: str = "unknown"
    color_primaries: str = "unknown"
    color_transfer: str = "unknown"
    color_range: str = "unknown"
    sample_rate: int = 0
    channels: int = 0
    channel_layout: str = "unknown"
    time_base: Fraction = Fraction(0)
    nb_read_packets: int = 0
    extradata_hash: str = ""
    disposition: dict[str, int] = Field(default_factory=dict)

    @field_validator("r_frame_rate", "time_base", mode="before")
    @classmethod
    def _rate(cls, value: str) -> Fraction:
        numerator, _, denominator = value.partition("/")
        return Fraction(int(numerator), int(denominator)) if int(denominator or 0) else Fraction(0)

    @field_validator("start_time", "duration", mode="before")
    @classmethod
    def _seconds(cls, value: str) -> Fraction | None:
        return None if value == "N/A" else Fraction(value)


class Container(BaseModel):
    """The file around the streams."""

    format_name: str
    duration: Fraction | None = None


class Probe(BaseModel):
    """Result of `probe`."""

    container: Container = Field(alias="format")
    streams: list[Stream]

    @property
    def video(self) -> Stream | None:
        """Return the first video stream that is no cover picture, None if there is none."""
        return next(
            (s for s in self.streams if s.codec_type == "video" and not s.disposition.get("attached_pic")), None
        )

    @property
    def audio(self) -> Stream | None:
        """Return the first audio stream, None if there is none."""
        return next(iter(self.audio_streams), None)

    @property
    def audio_streams(self) -> list[Stream]:
        """Return all audio streams."""
        return [s for s in self.streams if s.codec_type == "audio"]


# Only the values in use: tags may have any length.
_ENTRIES = (
    f"format={','.join(Container.model_fields)}:"
    f"stream={','.join(name for name in Stream.model_fields if name != 'disposition')}:"
    "stream_disposition=attached_pic,default"
)


def probe(
    path: Path,
    *,
    doing: str,
    error: type[S2VError],
    formats: str = OWN_FORMATS,
    count_packets: bool = False,
) -> Probe:
    """Read the container and stream headers of `path`; raises `error` if it is none of `formats` or damaged.

    `count_packets` reads the whole file: in videos of this system every packet is one frame.
    """
    options = ["-show_entries", _ENTRIES, "-show_data_hash", "md5", *(["-count_packets"] if count_packets else [])]
    command = ffprobe(path, *options, "-of", "json", formats=formats)
    text = capture(command, doing=doing, error=error, timeout_seconds=_PROBE_TIMEOUT_SECONDS)
    return Probe.model_validate_json(text)


@dataclass(frozen=True)
class Gap:
    """A gap: `num_samples` of silence before the sample `position`, counted without the skipped samples."""

    position: int
    num_samples: int


@dataclass(frozen=True)
class Timeline:
    """The positions of the decoded samples of a track, in samples at its own rate.

    `stamped`: the container has time stamps. The first `num_skipped` samples are the encoder's delay. `start` is the
    stamp, in seconds, of the first sample after them: a late start, which is left out.
    """

    stamped: bool = False
    num_skipped: int = 0
    start: Fraction = Fraction(0)
    gaps: tuple[Gap, ...] = ()

    @property
    def num_silent(self) -> int:
        """Return the number of samples of silence in all gaps."""
        return sum(gap.num_samples for gap in self.gaps)

    def fill(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """Yield the decoded `blocks` `[n, channels]` with silence in the gaps, in pieces of bounded size."""
        gaps, position = deque(self.gaps), -self.num_skipped
        for block in blocks:
            end = position + len(block)
            while gaps and gaps[0].position < end:
                gap = gaps.popleft()
                before = block[max(0, -position) : gap.position - position]
                if len(before):
                    yield before
                block, position = block[gap.position - position :], gap.position
                yield from silence(gap.num_samples, block.shape[1])
            if end > 0:
                yield block[max(0, -position) :]
            position = end


def silence(num_samples: int, channels: int) -> Iterator[Samples]:
    """Yield zeros `[n, channels]`, in pieces of bounded size."""
    for start in range(0, num_samples, _PIECE_SAMPLES):
        yield np.zeros((min(_PIECE_SAMPLES, num_samples - start), channels), np.float32)


def read_timeline(path: Path, track: int, stream: Stream, format_name: str, *, max_seconds: float) -> Timeline:
    """Return the timeline of audio track `track`, from its stamps up to about `max_seconds`."""
    if not format_name.startswith(_STAMPED):
        return Timeline()
    return lay_out(_frames(path, track, stream), stream.sample_rate, max_seconds=max_seconds)


def lay_out(frames: Iterable[Frame], sample_rate: int, *, max_seconds: float) -> Timeline:
    """Return the timeline of the decoded frames up to `max_seconds`.

    A stamp is compared with all samples before it, so that jitter does not add up. A frame is late only if the next one
    is late, too: Vorbis gives a single frame a late stamp at a change of block size.
    """
    gaps: list[Gap] = []
    origin: Fraction | None = None  # the stamp that belongs to position 0
    num_skipped = num_decoded = position = 0
    for (stamp, num_samples), (next_stamp, _) in pairwise(chain(frames, [(None, 0)])):
        if origin is None and stamp is not None:
            if num_decoded == 0 and -_LONGEST_DELAY_SECONDS * sample_rate <= stamp < 0:
                num_skipped = round(-stamp)
                position = -num_skipped
            origin = stamp - position
        late = _lateness(stamp, origin, position)
        if late < -_RESTART_SECONDS * sample_rate:
            origin, late = (stamp or Fraction(0)) - position, Fraction(0)
        next_late = _lateness(next_stamp, origin, position + num_samples)
        if next_stamp is not None and next_late > -_RESTART_SECONDS * sample_rate:
            late = min(late, next_late)
        if late > _JITTER_SECONDS * sample_rate:
            gaps.append(Gap(num_decoded - num_skipped, round(late)))
            position += round(late)
        position += num_samples
        num_decoded += num_samples
        if position > max_seconds * sample_rate:
            break
    start = Fraction(0) if origin is None else max(origin, Fraction(0)) / sample_rate
    return Timeline(True, num_skipped, start, tuple(gaps))


def _lateness(stamp: Fraction | None, origin: Fraction | None, position: int) -> Fraction:
    """Return by how many samples a frame begins after the end of the frames before it."""
    return Fraction(0) if stamp is None or origin is None else stamp - origin - position


def _frames(path: Path, track: int, stream: Stream) -> Iterator[Frame]:
    options = ("-select_streams", f"a:{track}", "-show_entries", "frame=pts,nb_samples", "-of", "csv=print_section=0")
    command = ffprobe(path, *options, formats=AUDIO_FORMATS)
    ticks = stream.time_base * stream.sample_rate
    for line in read_lines(command, doing=f"The speech {path.name} is damaged: decoding it", error=PermanentError):
        stamp, _, num_samples = line.partition(",")
        if num_samples.rstrip(",").isdigit():
            yield (Fraction(int(stamp)) * ticks if stamp.lstrip("-").isdigit() else None), int(num_samples.rstrip(","))
