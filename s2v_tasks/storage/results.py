"""The result of a job as files: its video, its report, its contact sheet."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.schemas.manifest import Artifact
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectMissingError


@dataclass(frozen=True)
class FetchedResult:
    """The files, and what `result.json` says of the job."""

    video: Path
    report: Path
    contact_sheet: Path
    description: Path
    facts: dict[str, Any]


def fetch_result(artifacts: ArtifactStore, job_id: str, folder: Path) -> FetchedResult:
    """Download the result of a job into `folder`; every file is verified and appears whole, the description last.

    PermanentError when the job has not succeeded; TransientError when an object is lost or damaged.
    """
    layout, folder = JobLayout(job_id), folder.resolve()
    try:
        description = artifacts.store.get_bytes(layout.result)
    except ObjectMissingError:
        raise PermanentError(
            f"Job {job_id} has no result: expected a job that succeeded; see `s2v job {job_id}`."
        ) from None
    facts = json.loads(description)
    report = artifacts.read_manifest(layout.report_manifest)
    if report is None:
        raise TransientError(f"{layout.report_manifest} is lost: run `s2v validate` for job {job_id} again.")
    folder.mkdir(parents=True, exist_ok=True)
    video = Artifact(key=facts["video_uri"], sha256=facts["sha256"], size_bytes=facts["size_bytes"])
    fetched = FetchedResult(
        video=artifacts.fetch(video, folder / f"{job_id}.mp4"),
        report=artifacts.fetch(report.outputs["report"], folder / f"{job_id}.report.json"),
        contact_sheet=artifacts.fetch(report.outputs["contact_sheet"], folder / f"{job_id}.contact_sheet.jpg"),
        description=folder / f"{job_id}.json",
        facts=facts,
    )
    part = fetched.description.with_name(fetched.description.name + ".part")
    part.write_bytes(description)
    part.replace(fetched.description)
    return fetched
