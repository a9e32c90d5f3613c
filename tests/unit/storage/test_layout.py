"""Check the keys of a job."""

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.settings import Settings
from s2v_tasks.storage.layout import JobLayout, output_sidecar_uri, output_video_uri


def test_the_keys_of_a_job_are_those_of_the_documentation() -> None:
    """Every artifact of a job has the documented key below the job's prefix."""
    layout = JobLayout("talk-1")
    assert [
        layout.request,
        layout.image,
        layout.audio("mp3"),
        layout.audio_16k,
        layout.pose,
        layout.plan,
        layout.conditions,
        layout.conditions_manifest,
        layout.clip(12),
        layout.motion(12),
        layout.clip_manifest(12),
        layout.silent,
        layout.muxed,
        layout.report,
        layout.contact_sheet,
        layout.result,
    ] == [
        "jobs/talk-1/" + name
        for name in (
            "request.json",
            "inputs/image.png",
            "inputs/audio.mp3",
            "inputs/audio_16k.wav",
            "inputs/pose.mp4",
            "plan.json",
            "conditions/conditions.safetensors",
            "conditions/manifest.json",
            "clips/0012/clip.mp4",
            "clips/0012/motion.safetensors",
            "clips/0012/manifest.json",
            "assembly/silent.mp4",
            "assembly/muxed.mp4",
            "report/report.json",
            "report/contact_sheet.jpg",
            "result.json",
        )
    ]


def test_no_two_artifacts_share_a_key() -> None:
    """Manifests of steps that write into one folder have names of their own."""
    layout = JobLayout("talk-1")
    keys = [getattr(layout, name) for name, value in vars(JobLayout).items() if isinstance(value, property)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("job_id", ["", "ab", "Talk", "-talk", "../talk", "talk/1", "talk 1", "talk\n", "t" * 64])
def test_a_job_id_cannot_leave_its_prefix(job_id: str) -> None:
    """A string other than a plain job id is refused with the value."""
    with pytest.raises(PermanentError, match="job id") as caught:
        JobLayout(job_id)
    assert repr(job_id) in str(caught.value)


@pytest.mark.parametrize("output_uri", ["s3://bucket/output", "s3://bucket/output/"])
def test_the_published_video_and_its_sidecar_lie_side_by_side(output_uri: str) -> None:
    """Both are named by the job id below the output URI, with or without a slash at its end."""
    settings = Settings(output_uri=output_uri)  # type: ignore[call-arg]
    assert output_video_uri(settings, "talk-1") == "s3://bucket/output/talk-1.mp4"
    assert output_sidecar_uri(settings, "talk-1") == "s3://bucket/output/talk-1.json"
