"""Run a batch: check its manifest as a whole, queue its jobs, and write errors and summary to its folder."""

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.ingestion.batch_manifest import MAX_BYTES, BatchEntry, RowError, check_rows, job_ids, read_manifest
from s2v_tasks.metadata.ingestion import BatchRepository, NewRow, RowOutcome
from s2v_tasks.metadata.queue import NewJob
from s2v_tasks.schemas.catalogue import Catalogue
from s2v_tasks.schemas.job import ENDED_STATUSES, JobStatus
from s2v_tasks.schemas.plan import FPS
from s2v_tasks.schemas.request_fields import is_plain_number
from s2v_tasks.storage.inputs import find_input
from s2v_tasks.storage.locations import parse_uri, printable
from s2v_tasks.storage.s3 import ObjectStore

# Up to this many files of one folder are checked one by one, more by listing the folder.
_LOOKED_AT_ONE_BY_ONE = 20
_ERRORS_IN_MESSAGE = 5


def _check_uri(manifest_uri: str) -> None:
    """Raise PermanentError for a local file or another URL, which would be the name of an object of this bucket."""
    if not manifest_uri.startswith("s3://"):
        raise PermanentError(
            f"{manifest_uri!r} is not an S3 URI: expected s3://bucket/folder/name.jsonl; upload the manifest first."
        )


class Batches:
    """Checks, starts and summarises batches."""

    def __init__(self, store: ObjectStore, batches: BatchRepository, catalogue: Catalogue) -> None:
        self._store, self._batches, self._catalogue = store, batches, catalogue

    def check(self, manifest_uri: str) -> tuple[list[BatchEntry], list[RowError]]:
        """Return the valid rows and the errors of a manifest, including missing input files; nothing is written."""
        _check_uri(manifest_uri)
        return self._check(manifest_uri, self._store.get_bytes(manifest_uri, max_bytes=MAX_BYTES))

    def start(self, manifest_uri: str, *, retry_failed: bool = False) -> dict[str, Any]:
        """Queue the jobs of a manifest that do not exist yet; PermanentError, and no job, if a row is wrong.

        The errors of all rows are then in `<manifest>.errors.csv`. `retry_failed`: also queue failed and cancelled jobs
        again; they reuse their finished clips.
        """
        _check_uri(manifest_uri)
        report_uri = f"{manifest_uri}.errors.csv"
        self._store.access.check_write(parse_uri(report_uri))  # before any cost: the summary is written there too
        data = self._store.get_bytes(manifest_uri, max_bytes=MAX_BYTES)
        entries, errors = self._check(manifest_uri, data)
        if errors:
            self._store.put_bytes(report_uri, csv_of(errors), "text/csv")
            raise PermanentError(
                f"{len(errors)} of {len(entries) + len(errors)} rows of {manifest_uri} are wrong, nothing was started: "
                + "; ".join(f"line {error.line}: {error.error}" for error in errors[:_ERRORS_IN_MESSAGE])
                + f". All errors: {report_uri}"
            )
        self._store.delete(report_uri)  # of an earlier version
        etag = hashlib.sha256(data).hexdigest()
        # "lines": earlier versions stored the same manifest with other numbers of rows.
        batch_id = hashlib.sha256(f"{manifest_uri}@{etag}#lines".encode()).hexdigest()[:24]
        added = self._batches.register(batch_id, manifest_uri, etag, _new_rows(manifest_uri, entries))
        retried = self._batches.retry(batch_id) if retry_failed else 0
        return {"batch_id": batch_id, "rows": len(entries), "new_jobs": added, "retried_jobs": retried}

    def state(self, batch_id: str) -> dict[str, Any]:
        """Return the number of jobs of a batch by status, and whether all have ended."""
        counts = self._batches.counts(batch_id)
        if not counts:
            self._manifest_uri(batch_id)
        return {"batch_id": batch_id, "jobs": counts, "ended": set(counts) <= set(ENDED_STATUSES)}

    def summarise(self, batch_id: str) -> dict[str, Any]:
        """Write the outcome of each row and the totals to the folder of the manifest."""
        manifest_uri = self._manifest_uri(batch_id)
        outcomes, summary_uri = self._batches.outcomes(batch_id), f"{manifest_uri}.summary.csv"
        numbers = {"batch_id": batch_id, "manifest_uri": manifest_uri, "summary_uri": summary_uri} | _numbers(outcomes)
        self._store.put_bytes(summary_uri, csv_of(outcomes), "text/csv")
        document = json.dumps(numbers, indent=2).encode()
        self._store.put_bytes(f"{manifest_uri}.summary.json", document, "application/json")
        if self.state(batch_id)["ended"]:
            self._batches.finish(batch_id)
        return numbers

    def _manifest_uri(self, batch_id: str) -> str:
        """Return the manifest of a batch; PermanentError for an unknown batch."""
        manifest_uri = self._batches.manifest_uri(batch_id)
        if manifest_uri is None:
            raise PermanentError(f"Batch {batch_id!r} does not exist: `s2v start-batch` prints the id of a batch.")
        return manifest_uri

    def _check(self, manifest_uri: str, data: bytes) -> tuple[list[BatchEntry], list[RowError]]:
        rows = read_manifest(data, manifest_uri, self._catalogue)
        return check_rows(rows, self._refused(sorted({uri for row in rows for uri in row.uris})))

    def _refused(self, uris: Iterable[str]) -> dict[str, str]:
        """Return the input files that may not be read or do not exist, each with the reason."""
        refused, folders = {}, defaultdict(list)
        for uri in uris:
            try:
                self._store.access.check_input(parse_uri(uri))
            except PermanentError as error:
                refused[uri] = str(error)
            else:
                folders[uri.rpartition("/")[0]].append(uri)
        for folder_uri, wanted in folders.items():
            for uri in self._unlisted(folder_uri, wanted):
                if problem := self._problem(uri):
                    refused[uri] = problem
        return refused

    def _unlisted(self, folder_uri: str, wanted: list[str]) -> list[str]:
        """Return the files that a listing of their folder lacks; return all files if a listing would cost more."""
        if len(wanted) <= _LOOKED_AT_ONE_BY_ONE:
            return wanted
        missing = set(wanted)
        for item in self._store.listing(f"{folder_uri}/"):
            missing.discard(item.uri)
            if not missing:
                break
        return sorted(missing)

    def _problem(self, uri: str) -> str | None:
        """Return the reason why an allowed input file cannot be read, None if it can."""
        try:
            return None if find_input(self._store, uri) else f"{printable(uri)} does not exist."
        except PermanentError as error:
            return str(error)


def csv_of(rows: list[RowError] | list[RowOutcome]) -> bytes:
    """Return records as CSV with a heading."""
    text = io.StringIO()
    writer = csv.writer(text)
    if rows:
        names = [field.name for field in fields(rows[0])]
        writer.writerow(names)
        writer.writerows([_cell(asdict(row)[name]) for name in names] for row in rows)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    """Return `value`; a text that a spreadsheet would execute as a formula begins with an apostrophe."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@")) and not is_plain_number(value)
    return f"'{value}" if is_formula else value


def _new_rows(manifest_uri: str, entries: list[BatchEntry]) -> list[NewRow]:
    """Return rows with their jobs; jobs of equal priority start in the order of the manifest."""
    now = datetime.now(UTC)
    return [
        NewRow(
            entry.line,
            entry.row_id,
            NewJob(
                job_id,
                entry.request.model_dump(mode="json", exclude_none=True),
                now + timedelta(microseconds=entry.line),
            ),
        )
        for entry, job_id in zip(entries, job_ids(manifest_uri, entries), strict=True)
    ]


def _numbers(outcomes: list[RowOutcome]) -> dict[str, Any]:
    """Return jobs by status, seconds of video, GPU-seconds and cost of the whole batch."""
    counts: dict[str, int] = defaultdict(int)
    costs: dict[str, float] = defaultdict(float)
    for outcome in outcomes:
        counts[outcome.status] += 1
        if outcome.cost is not None and outcome.currency is not None:
            costs[outcome.currency] += outcome.cost
    frames = sum(outcome.num_frames or 0 for outcome in outcomes if outcome.status == JobStatus.SUCCEEDED)
    return {
        "rows": len(outcomes),
        "jobs": dict(counts),
        "video_seconds": frames / FPS,
        "gpu_seconds": round(sum(outcome.gpu_seconds for outcome in outcomes), 3),
        "cost": {currency: round(cost, 4) for currency, cost in costs.items()},
    }
