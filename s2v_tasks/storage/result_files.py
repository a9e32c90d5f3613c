"""The result of a job (video, report, contact sheet): download the files, and sign links to them for browsers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.schemas.manifest import Artifact
from s2v_tasks.settings import Settings
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.layout import JobLayout, output_video_uri
from s2v_tasks.storage.s3 import ObjectStore

LINK_SECONDS = 3600


@dataclass(frozen=True)
class FetchedResult:
    """The local files, and the content of `result.json` as `facts`."""

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
    description = artifacts.store.find_bytes(layout.result)
    if description is None:
        raise PermanentError(f"Job {job_id} has no result: expected a job that succeeded; see `s2v job {job_id}`.")
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


def result_link(settings: Settings, store: ObjectStore, public_store: ObjectStore, job_id: str, file: str) -> str:
    """Return a URL that reads a file of a job for an hour; PermanentError when the job has no such file.

    `public_store`: see `ObjectStore.seen_by_browsers`.
    """
    layout = JobLayout(job_id)
    addresses = {
        "video": output_video_uri(settings, job_id),
        "report": layout.report,
        "contact-sheet": layout.contact_sheet,
    }
    if file not in addresses:
        raise PermanentError(f"{file!r} is not a file of a job: expected one of {', '.join(addresses)}.")
    if not store.exists(addresses[file]):
        raise PermanentError(f"Job {job_id} has no {file} yet: `s2v job {job_id}` shows how far it is.")
    return public_store.link(addresses[file], seconds=LINK_SECONDS)
