"""Read the headers of a media file with ffprobe, as typed values."""

from fractions import Fraction
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from s2v_tasks.errors import S2VError
from s2v_tasks.media.ffmpeg import BOUNDED, OWN_FORMATS, capture, file_url, tool_path

_PROBE_TIMEOUT_SECONDS = 120.0


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
    command = [tool_path("ffprobe"), "-hide_banner", "-loglevel", "error", *BOUNDED, "-protocol_whitelist", "file"]
    command += ["-format_whitelist", formats, "-show_entries", _ENTRIES, "-show_data_hash", "md5"]
    command += ["-count_packets"] if count_packets else []
    command += ["-of", "json", file_url(path)]
    text = capture(command, doing=doing, error=error, timeout_seconds=_PROBE_TIMEOUT_SECONDS)
    return Probe.model_validate_json(text)
