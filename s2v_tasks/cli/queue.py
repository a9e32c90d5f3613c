"""The drop folder and the queue of jobs that wait to be started."""

from typing import Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import INGESTION, open_metadata_store, print_json

_SILENT_ASKED_AFTER = 50  # each costs Airflow a question, every minute


@app.command(rich_help_panel=INGESTION)
def sweep_drops() -> None:
    """Sweep the drop folder: each folder becomes a job, or is rejected with an error.json."""
    from datetime import UTC, datetime

    from s2v_tasks.ingestion.drop_sweep import Sweeper
    from s2v_tasks.schemas.preset import load_presets
    from s2v_tasks.settings import config_dir, load_settings
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    with open_metadata_store() as metadata:
        presets = load_presets(config_dir(settings))
        sweeper = Sweeper(settings, ObjectStore.from_settings(settings), metadata.drops, presets)
        print_json(sweeper.run(datetime.now(UTC)), indent=None)


@app.command(rich_help_panel=INGESTION)
def next_jobs() -> None:
    """Show which waiting jobs may start now, by priority, then by age, under S2V_MAX_RUNNING_JOBS.

    And some runs whose jobs have been silent for a while: one that Airflow does not know holds a place for nothing.
    """
    from dataclasses import asdict

    from s2v_tasks.settings import load_settings

    with open_metadata_store() as metadata:
        jobs = [asdict(job) for job in metadata.queue.next(load_settings().max_running_jobs)]
        silent = [job.dag_run_id for job in metadata.housekeeping.silent_runs(_SILENT_ASKED_AFTER)]
        print_json({"jobs": jobs, "waiting": metadata.queue.num_waiting(), "silent_runs": silent}, indent=None)


@app.command(rich_help_panel=INGESTION)
def mark_started(job_ids: Annotated[list[str], typer.Argument(help="Jobs that have their DAG run.")]) -> None:
    """Note that jobs are started, so that they wait no longer."""
    with open_metadata_store() as metadata:
        metadata.queue.mark_started(job_ids)
    print_json({"started": len(job_ids)}, indent=None)


@app.command(rich_help_panel=INGESTION)
def refuse_job(
    job_id: Annotated[str, typer.Argument(help="A job that waits to be started.")],
    reason: Annotated[str, typer.Option(help="Why it never will be, in one sentence.")],
) -> None:
    """Mark a waiting job failed that Airflow refuses to start, so that it holds up no other."""
    with open_metadata_store() as metadata:
        metadata.jobs.fail(job_id, reason)
    print_json({"job_id": job_id}, indent=None)


@app.command(rich_help_panel=INGESTION)
def close_lost(run_ids: Annotated[list[str], typer.Argument(help="DAG runs that ended or do not exist.")]) -> None:
    """Close the jobs of these runs, so that they take no place any more; those that are not silent are left alone."""
    with open_metadata_store() as metadata:
        lost = [job for job in metadata.housekeeping.silent_runs() if job.dag_run_id in run_ids]
        closed = [job.job_id for job in lost if metadata.jobs.close_lost(job.job_id, job.dag_run_id)]
    print_json({"closed": closed}, indent=None)
