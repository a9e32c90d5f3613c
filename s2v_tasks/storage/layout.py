"""Define every key of a job (docs/architecture.md). Keys are relative to `Settings.data_uri`."""

from dataclasses import dataclass

from s2v_tasks.schemas.job import check_job_id
from s2v_tasks.settings import Settings


class _Key:
    """A key that is the same in each job but for the prefix of the job."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, layout: "JobLayout", _: type) -> str:
        return layout.key(self._name)


@dataclass(frozen=True)
class JobLayout:
    """The keys of one job; PermanentError for an invalid `job_id`."""

    job_id: str

    request = _Key("request.json")
    input_manifest = _Key("inputs/manifest.json")
    image = _Key("inputs/image.png")
    audio_16k = _Key("inputs/audio_16k.wav")
    pose = _Key("inputs/pose.mp4")
    plan = _Key("plan.json")
    conditions = _Key("conditions/conditions.safetensors")
    conditions_manifest = _Key("conditions/manifest.json")
    poster = _Key("clips/0000/poster.jpg")  # a small frame of the first clip; jobs of earlier versions have none
    silent = _Key("assembly/silent.mp4")
    silent_manifest = _Key("assembly/silent_manifest.json")
    muxed = _Key("assembly/muxed.mp4")
    mux_manifest = _Key("assembly/manifest.json")
    report = _Key("report/report.json")
    contact_sheet = _Key("report/contact_sheet.jpg")
    report_manifest = _Key("report/manifest.json")
    result = _Key("result.json")  # written last: it exists if the job has succeeded

    def __post_init__(self) -> None:
        check_job_id(self.job_id)

    def key(self, name: str) -> str:
        """Return the key for the file `name` below the prefix of the job."""
        return f"jobs/{self.job_id}/{name}"

    def audio(self, extension: str) -> str:
        """Return the key of the uploaded speech; `extension` without the dot."""
        return self.key(f"inputs/audio.{extension}")

    def clip(self, clip_index: int) -> str:
        return self._clip_key(clip_index, "clip.mp4")

    def motion(self, clip_index: int) -> str:
        return self._clip_key(clip_index, "motion.safetensors")

    def clip_manifest(self, clip_index: int) -> str:
        return self._clip_key(clip_index, "manifest.json")

    def clip_quality(self, clip_index: int) -> str:
        return self._clip_key(clip_index, "quality.json")

    def superseded_clip(self, clip_index: int, fingerprint: str, name: str) -> str:
        """Return the key for the file `name` of a clip that a clip with another fingerprint has replaced."""
        return self._clip_key(clip_index, f"superseded/{fingerprint}/{name}")

    def partial_clip(self, clip_index: int, fingerprint: str, name: str) -> str:
        """Return the key for the file `name` of an interrupted clip, for the next attempt."""
        return self._clip_key(clip_index, f"partial/{fingerprint}/{name}")

    def _clip_key(self, clip_index: int, name: str) -> str:
        return self.key(f"clips/{clip_index:04d}/{name}")


def output_video_uri(settings: Settings, job_id: str) -> str:
    """Return the S3 URI of the published video of a job."""
    return f"{settings.output_uri.rstrip('/')}/{JobLayout(job_id).job_id}.mp4"


def output_sidecar_uri(settings: Settings, job_id: str) -> str:
    """Return the S3 URI of the JSON that describes the published video."""
    return f"{settings.output_uri.rstrip('/')}/{JobLayout(job_id).job_id}.json"


def drop_folder_uri(settings: Settings) -> str:
    """Return the S3 URI of the drop folder, which contains incoming/, accepted/ and rejected/."""
    return (settings.drop_uri or f"{settings.data_uri.rstrip('/')}/drop").rstrip("/")
