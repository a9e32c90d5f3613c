"""Quality of a talking video: measures of its faces, lip sync, seams, colours and sharpness.

A measure that could not be taken is None, for example because no face was found.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReferenceLook(_Record):
    """The reference picture, fitted to the video. The clips are compared with it."""

    num_faces: int
    face_height: float | None = Field(description="forehead to chin over the height of the picture")
    skin_lab: tuple[float, float, float] | None
    background_lab: tuple[float, float, float]
    contrast: float = Field(description="standard deviation of the luma, 0..127")
    sharpness: float | None = Field(description="fine detail of the face divided by its contrast")


class FaceQuality(_Record):
    """Faces over the frames of a clip."""

    share_of_frames: Share = Field(description="frames in which a face was found")
    longest_gap_frames: int = Field(description="longest run of frames without a face")
    most_faces: int = Field(description="largest number of faces in a frame, of those in which all faces are counted")
    height_ratio: float | None = Field(description="height of the face divided by that in the reference picture")
    shape_difference: float | None = Field(
        description="distance of the rigid landmarks from the reference's, in shares of the face's height"
    )
    identity_difference: float | None = Field(
        None, description="distance of the face from that of the reference; None without s2v-tasks[identity]"
    )
    blinks_per_minute: float | None
    head_motion: float | None = Field(description="standard deviation of the face's position in shares of its height")


class LipSyncQuality(_Record):
    """Comparison of the opening or darkness of the mouth with the loudness of the speech."""

    lag_ms: float | None = Field(description="positive: the mouth follows the sound")
    correlation: float | None
    other_correlation: float | None = Field(
        description="correlation with other speech, made from the same by reversing and shifting it"
    )
    speech_share: Share = Field(description="frames in which speech is audible")
    opening_range: float | None = Field(
        description="5th to 95th percentile of the opening, shares of the face's height"
    )
    silent_opening_range: float | None = Field(
        description="5th to 95th percentile of the opening while there is no speech"
    )
    darkness_range: float | None = Field(
        None, description="range of the mouth's darkness; None if lag and correlation are those of the opening"
    )
    silent_darkness_range: float | None = Field(
        None, description="range of the mouth's darkness while there is no speech"
    )


class LookQuality(_Record):
    """Colours, contrast and sharpness of a clip and of the reference picture; colour distances are CIE76 in Lab."""

    skin_difference: float | None
    background_difference: float | None
    contrast_ratio: float | None
    sharpness_ratio: float | None


class SeamQuality(_Record):
    """The boundary between a clip and the clip before it."""

    start_frame: int = Field(description="first frame after the boundary")
    jump: float = Field(description="motion at the seam divided by the 95th percentile inside both clips")
    colour_jump: float = Field(description="colour step at the seam divided by the 95th percentile inside both clips")
    skin_step: float | None = Field(description="colour distance of the skin across the seam")
    background_step: float


class ClipQuality(_Record):
    """All measures of one clip."""

    schema_version: int = SCHEMA_VERSION
    start_frame: int
    end_frame: int
    face: FaceQuality
    lip_sync: LipSyncQuality | None = Field(description="None if the clip was measured without its speech")
    look: LookQuality
    seam: SeamQuality | None = Field(description="None for the first clip of a chain")


class Drift(_Record):
    """Slopes over the clips by least squares: change from one clip to the next. None where a measure is missing."""

    skin_per_clip: float | None = Field(description="change of the distance from the reference picture, in Lab")
    background_per_clip: float
    contrast_per_clip: float = Field(description="change of the ratio to the reference picture")
    sharpness_per_clip: float | None


class VideoQuality(_Record):
    """All measures of a video: of each clip, drift over the clips, and lip sync over the whole."""

    schema_version: int = SCHEMA_VERSION
    reference: ReferenceLook | None
    clips: tuple[ClipQuality, ...]
    drift: Drift | None = Field(description="None with fewer than three clips, or without a reference picture")
    lip_sync: LipSyncQuality | None


class Finding(_Record):
    """A measure beyond a limit of `config/quality.yaml`, in words. `penalty`: its part of the score of a take."""

    level: Literal["warn", "fail"]
    measure: str
    message: str
    penalty: float


class FrameSeries(_Record):
    """Numbers of each frame of a clip: for the seam to the next clip, and for the lip sync of the whole video."""

    mouth: tuple[float | None, ...] = Field(description="opening; None without a face")
    darkness: tuple[float | None, ...] = Field(
        (), description="darkness of the mouth; None without a face; empty if it was not measured"
    )
    shifts: tuple[float, ...] = Field(description="motion of the picture between frames, shares of its width")
    skin: tuple[tuple[float, float, float] | None, ...] = Field(description="colour in Lab; None without a face")
    background: tuple[tuple[float, float, float], ...]


class Take(_Record):
    """One rendering of a clip with its own seed, and its measures. Take 0 has the seed of the plan."""

    take: int
    seed: int
    fingerprint: str
    measured: ClipQuality | None = Field(None, description="None: it could not be measured, `error` says why")
    findings: tuple[Finding, ...] = ()
    series: FrameSeries | None = None
    error: str | None = None
    measure_seconds: float

    @property
    def fails(self) -> bool:
        """Return True if a measure is beyond the limit at which a clip fails."""
        return any(finding.level == "fail" for finding in self.findings)

    @property
    def score(self) -> float:
        """Return the score of the take: 0 without findings, lower with each finding, -inf if not measured."""
        return -sum(finding.penalty for finding in self.findings) if self.measured else float("-inf")


class TakeRecord(_Record):
    """Content of `clips/<k>/quality.json`: the measured takes of a clip, and the kept one.

    `fingerprint` is the fingerprint of take 0: the record is valid only for this clip with this predecessor.
    """

    schema_version: Literal[1] = 1
    clip_index: int
    fingerprint: str
    reference: ReferenceLook | None = None
    takes: tuple[Take, ...] = ()
    kept: int | None = Field(
        None, description="number of the kept take; None: not decided yet, another take is rendered"
    )

    @property
    def kept_take(self) -> Take | None:
        """Return the kept take; None before the decision."""
        return None if self.kept is None else self.takes[self.kept]

    def without_series(self) -> "TakeRecord":
        """Return the record without the numbers of single frames."""
        return self.model_copy(update={"takes": tuple(take.model_copy(update={"series": None}) for take in self.takes)})
