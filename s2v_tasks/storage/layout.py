"""Define every key of a job (docs/architecture.md). Keys are relative to `Settings.data_uri`."""

from dataclasses import dataclass

from s2v_tasks.schemas.job import check_job_id
from s2v_tasks.settings import Settings


@dataclass(frozen=True)
class JobLayout:
    """The keys of one job; PermanentError for an invalid `job_id`."""

    job_id: str

    def __post_init__(self) -> None:
        check_job_id(self.job_id)

    def _key(self, name: str) -> str:
        return f"jobs/{self.job_id}/{name}"

    @property
    def request(self) -> str:
        return self._key("request.json")

    @property
    def input_manifest(self) -> str:
        return self._key("inputs/manifest.json")

    @property
    def image(self) -> str:
        return self._key("inputs/image.png")

    def audio(self, extension: str) -> str:
        """Return the key of the uploaded speech; `extension` without the dot."""
        return self._key(f"inputs/audio.{extension}")

    @property
    def audio_16k(self) -> str:
        return self._key("inputs/audio_16k.wav")

    @property
    def pose(self) -> str:
        return self._key("inputs/pose.mp4")

    @property
    def plan(self) -> str:
        return self._key("plan.json")

    @property
    def conditions(self) -> str:
        return self._key("conditions/conditions.safetensors")

    @property
    def conditions_manifest(self) -> str:
        return self._key("conditions/manifest.json")

    def clip(self, clip_index: int) -> str:
        return self._clip_key(clip_index, "clip.mp4")

    def motion(self, clip_index: int) -> str:
        return self._clip_key(clip_index, "motion.safetensors")

    @property
    def poster(self) -> str:
        """Return the key of a small frame of the first clip. Jobs of earlier versions have none."""
        return self._clip_key(0, "poster.jpg")

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
        return self._key(f"clips/{clip_index:04d}/{name}")

    @property
    def silent(self) -> str:
        return self._key("assembly/silent.mp4")

    @property
    def silent_manifest(self) -> str:
        return self._key("assembly/silent_manifest.json")

    @property
    def muxed(self) -> str:
        return self._key("assembly/muxed.mp4")

    @property
    def mux_manifest(self) -> str:
        return self._key("assembly/manifest.json")

    @property
    def report(self) -> str:
        return self._key("report/report.json")

    @property
    def contact_sheet(self) -> str:
        return self._key("report/contact_sheet.jpg")

    @property
    def report_manifest(self) -> str:
        return self._key("report/manifest.json")

    @property
    def result(self) -> str:
        """Return the key of the result, which is written last: it exists if the job has succeeded."""
        return self._key("result.json")


def output_video_uri(settings: Settings, job_id: str) -> str:
    """Return the S3 URI of the published video of a job."""
    return f"{settings.output_uri.rstrip('/')}/{JobLayout(job_id).job_id}.mp4"


def output_sidecar_uri(settings: Settings, job_id: str) -> str:
    """Return the S3 URI of the JSON that describes the published video."""
    return f"{settings.output_uri.rstrip('/')}/{JobLayout(job_id).job_id}.json"


def drop_folder_uri(settings: Settings) -> str:
    """Return the S3 URI of the drop folder, which contains incoming/, accepted/ and rejected/."""
    return (settings.drop_uri or f"{settings.data_uri.rstrip('/')}/drop").rstrip("/")
