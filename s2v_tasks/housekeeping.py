"""Delete expired objects, report mismatches between S3 and the database, close jobs whose DAG run is gone.

After the retention time these are deleted: superseded clips and saved states of interrupted clips, if the job has ended
and no running rerun needs it; folders in accepted/ and rejected/ of the drop folder, unless a running job or a
published result names their files. Incomplete multipart uploads of jobs and inputs are aborted after a day, but not in
the output prefix, which others may use. Nothing else is deleted: inputs, plan, clips and result of a job stay for its
next start, also if it failed.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from s2v_tasks.log import get_logger
from s2v_tasks.metadata.housekeeping import OpenRun
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.settings import Settings
from s2v_tasks.storage.layout import drop_folder_uri
from s2v_tasks.storage.locations import printable
from s2v_tasks.storage.objects import ListedObject, UnfinishedUpload
from s2v_tasks.storage.s3 import ObjectStore

_MAX_LOGGED = 100  # of each kind; `s2v housekeeping --json` lists all
UNFINISHED_UPLOAD_AGE = timedelta(days=1)
_JOB_AND_NAME = re.compile(r"([^/]+)/(.+)", re.DOTALL)
_EXPIRING = re.compile(r"clips/\d{4}/(superseded|partial)/.+", re.DOTALL)
# Objects of a job without a row in the database.
_UNRECORDED = re.compile(r"(request|plan|result)\.json|clips/\d{4}/quality\.json|.*manifest\.json", re.DOTALL)


@dataclass(frozen=True)
class Differences:
    """Mismatches between PostgreSQL and S3; they are reported, not repaired."""

    rows_without_object: tuple[str, ...]
    other_size: tuple[str, ...]
    objects_without_row: tuple[str, ...]
    objects_without_job: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """Findings of one round: objects and uploads to remove, jobs to close, mismatches."""

    objects: tuple[ListedObject, ...]
    uploads: tuple[UnfinishedUpload, ...]
    lost_jobs: tuple[OpenRun, ...]
    differences: Differences

    def listing(self) -> dict[str, Any]:
        """Return all findings as JSON values."""
        return {
            "delete": [item.uri for item in self.objects],
            "delete_bytes": sum(item.size_bytes for item in self.objects),
            "abort_uploads": [upload.uri for upload in self.uploads],
            "close_jobs": [job.job_id for job in self.lost_jobs],
            "differences": asdict(self.differences),
        }

    def log(self, *, applied: bool) -> None:
        """Log the number of findings of each kind, and the first of them one by one; `applied`: they were removed."""
        listing = self.listing()
        work = {name: listing[name] for name in ("delete", "abort_uploads", "close_jobs")}
        kinds = work if applied else {f"would_{name}": names for name, names in work.items()}
        for kind, names in {**kinds, **listing["differences"]}.items():
            get_logger().info(kind, count=len(names))
            for name in names[:_MAX_LOGGED]:
                get_logger().info(kind, what=printable(name))


class Housekeeping:
    """One round of housekeeping of an installation."""

    def __init__(self, store: ObjectStore, metadata: MetadataStore, settings: Settings) -> None:
        self._store, self._jobs, self._queries, self._settings = store, metadata.jobs, metadata.housekeeping, settings

    def find(self, gone_runs: Collection[str] = ()) -> Findings:
        """Find what is to be deleted, aborted and closed, and change nothing.

        `gone_runs`: DAG runs that ended or do not exist.
        """
        now = datetime.now(UTC)
        expired_before = now - timedelta(days=self._settings.retention_days)
        jobs = list(self._store.listing("jobs/"))
        settled = self._queries.settled_jobs(expired_before)
        expired = [item for item in jobs if self._is_expired(item, settled) and item.modified_at < expired_before]
        uploads = [*self._store.unfinished_uploads("jobs/"), *self._store.unfinished_uploads("uploads/")]
        return Findings(
            objects=(*expired, *self._expired_drops(expired_before)),
            uploads=tuple(
                upload
                for upload in uploads
                if upload.started_at < now - UNFINISHED_UPLOAD_AGE and self._job_of(upload.uri)[0] in {None, *settled}
            ),
            lost_jobs=tuple(job for job in self._queries.silent_runs() if job.dag_run_id in gone_runs),
            differences=self._differences(jobs),
        )

    def apply(self, found: Findings) -> None:
        """Remove and close the findings, except those of jobs that were started again since."""
        settled = self._queries.settled_jobs(datetime.now(UTC))
        objects = [item.uri for item in found.objects if self._job_of(item.uri)[0] in {None, *settled}]
        used_folders = {uri.rpartition("/")[0] for uri in self._queries.named_inputs()}
        self._store.delete_all([uri for uri in objects if uri.rpartition("/")[0] not in used_folders])
        for upload in found.uploads:
            if self._job_of(upload.uri)[0] in {None, *settled}:
                self._store.abort_upload(upload)
        for job in found.lost_jobs:
            self._jobs.close_lost(job.job_id, job.dag_run_id)

    def _is_expired(self, item: ListedObject, settled: Collection[str]) -> bool:
        job_id, name = self._job_of(item.uri)
        return job_id in settled and _EXPIRING.fullmatch(name) is not None

    def _expired_drops(self, before: datetime) -> Iterator[ListedObject]:
        """Yield the files of expired drops; a folder is deleted completely or not at all."""
        named = self._queries.named_inputs()
        for part in ("accepted", "rejected"):
            root = f"{drop_folder_uri(self._settings)}/{part}/"
            folders: dict[str, list[ListedObject]] = {}
            for item in self._store.listing(root):
                folders.setdefault(item.uri.removeprefix(root).partition("/")[0], []).append(item)
            for files in folders.values():
                if all(item.modified_at < before and item.uri not in named for item in files):
                    yield from files

    def _differences(self, objects: list[ListedObject]) -> Differences:
        known, rows = self._queries.job_ids(), self._queries.artifacts()
        sizes = {item.uri: item.size_bytes for item in objects}
        row_uris = {self._store.uri(key): row for key, row in rows.items()}
        below = self._store.uri("jobs/")
        unexplained, strange = [], []
        for uri in sizes:
            job_id, name = self._job_of(uri)
            if job_id not in known:
                strange.append(uri)
            elif uri not in row_uris and not _UNRECORDED.fullmatch(name) and not _EXPIRING.fullmatch(name):
                unexplained.append(uri)
        return Differences(
            rows_without_object=tuple(uri for uri in row_uris if uri.startswith(below) and uri not in sizes),
            other_size=tuple(uri for uri, row in row_uris.items() if sizes.get(uri, row.size_bytes) != row.size_bytes),
            objects_without_row=tuple(unexplained),
            objects_without_job=tuple(strange),
        )

    def _job_of(self, uri: str) -> tuple[str | None, str]:
        """Return the job of an object and the name of the object below its prefix."""
        jobs = self._store.uri("jobs/")
        match = _JOB_AND_NAME.fullmatch(uri.removeprefix(jobs)) if uri.startswith(jobs) else None
        return (match[1], match[2]) if match else (None, "")
