"""Jobs from files: sweep the drop folder, check and start batches, and list the waiting jobs for Airflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import INGESTION, AsJson, open_metadata_store, print_json, print_table
from s2v_tasks.settings import config_dir, load_settings

if TYPE_CHECKING:
    from s2v_tasks.ingestion.batches import Batches

ManifestUri = Annotated[str, typer.Argument(help="S3 URI of the manifest: .jsonl or .csv, one request per row.")]
BatchId = Annotated[str, typer.Argument(help="The batch, as `s2v start-batch` prints it.")]
_SILENT_ASKED_AFTER = 50  # each costs a request to Airflow, every minute


@app.command(rich_help_panel=INGESTION)
def sweep_drops() -> None:
    """Sweep the drop folder: each folder becomes a job, or is rejected with an error.json."""
    from datetime import UTC, datetime

    from s2v_tasks.ingestion.drop_sweep import Sweeper
    from s2v_tasks.schemas.catalogue import load_catalogue
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    with open_metadata_store() as metadata:
        catalogue = load_catalogue(config_dir(settings))
        sweeper = Sweeper(settings, ObjectStore.from_settings(settings), metadata.drops, catalogue)
        print_json(sweeper.run(datetime.now(UTC)), indent=None)


@app.command(rich_help_panel=INGESTION)
def check_batch(manifest_uri: ManifestUri, as_json: AsJson = False) -> None:
    """Check every row of a manifest and its files, and list all errors; exit code 65 if there are any.

    Rows are identified by their first line, counted from 1 including the heading of a CSV.
    """
    from dataclasses import asdict

    with _batches() as batches:
        right, errors = batches.check(manifest_uri)
    if as_json:
        print_json({"rows": len(right) + len(errors), "errors": [asdict(error) for error in errors]})
    else:
        if errors:
            rows = [(str(error.line), error.row_id or "", error.error) for error in errors]
            print_table(("line", "id", "error"), rows)
        typer.echo(f"{len(right)} of {len(right) + len(errors)} rows are valid")
    if errors:
        raise typer.Exit(65)


@app.command(rich_help_panel=INGESTION)
def start_batch(
    manifest_uri: ManifestUri,
    retry_failed: Annotated[bool, typer.Option(help="Also queue rows whose job failed or was cancelled.")] = False,
) -> None:
    """Queue the new jobs of a manifest; nothing if one row has an error."""
    with _batches() as batches:
        print_json(batches.start(manifest_uri, retry_failed=retry_failed), indent=None)


@app.command(rich_help_panel=INGESTION)
def batch_state(batch_id: BatchId) -> None:
    """Show the number of jobs of a batch by status, and if all have ended."""
    with _batches() as batches:
        print_json(batches.state(batch_id), indent=None)


@app.command(rich_help_panel=INGESTION)
def summarise_batch(batch_id: BatchId) -> None:
    """Write the outcome of each row and a summary to files next to the manifest."""
    with _batches() as batches:
        print_json(batches.summarise(batch_id), indent=None)


@contextmanager
def _batches() -> Iterator["Batches"]:
    from s2v_tasks.ingestion.batches import Batches
    from s2v_tasks.schemas.catalogue import load_catalogue
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    with open_metadata_store() as metadata:
        catalogue = load_catalogue(config_dir(settings))
        yield Batches(ObjectStore.from_settings(settings), metadata.batches, catalogue)


@app.command(rich_help_panel=INGESTION)
def next_jobs() -> None:
    """List the waiting jobs that may start now, by priority, then by age, within S2V_MAX_RUNNING_JOBS.

    It also lists some DAG runs without a recent heartbeat. A run that is gone would count as running.
    """
    from dataclasses import asdict

    with open_metadata_store() as metadata:
        jobs = [asdict(job) for job in metadata.queue.next(load_settings().max_running_jobs)]
        silent = [job.dag_run_id for job in metadata.housekeeping.silent_runs(_SILENT_ASKED_AFTER)]
        print_json({"jobs": jobs, "waiting": metadata.queue.num_waiting(), "silent_runs": silent}, indent=None)


@app.command(rich_help_panel=INGESTION)
def mark_started(job_ids: Annotated[list[str], typer.Argument(help="Jobs that have a DAG run now.")]) -> None:
    """Record that jobs have a DAG run and no longer wait."""
    with open_metadata_store() as metadata:
        started = metadata.queue.mark_started(job_ids)
    print_json({"started": started}, indent=None)


@app.command(rich_help_panel=INGESTION)
def refuse_job(
    job_id: Annotated[str, typer.Argument(help="A job that waits to be started.")],
    reason: Annotated[str, typer.Option(help="The reason in one sentence.")],
) -> None:
    """Mark a waiting job as failed because Airflow refuses its run. A job that does not wait is not changed."""
    with open_metadata_store() as metadata:
        refused = metadata.jobs.refuse(job_id, reason)
    print_json({"job_id": job_id, "refused": refused}, indent=None)


@app.command(rich_help_panel=INGESTION)
def close_lost(run_ids: Annotated[list[str], typer.Argument(help="DAG runs that ended or do not exist.")]) -> None:
    """Close the jobs of lost DAG runs, so that they no longer count as running. Jobs with a heartbeat are kept."""
    with open_metadata_store() as metadata:
        lost = [job for job in metadata.housekeeping.silent_runs() if job.dag_run_id in run_ids]
        closed = [job.job_id for job in lost if metadata.jobs.close_lost(job.job_id, job.dag_run_id)]
    print_json({"closed": closed}, indent=None)
