"""Follow a job to its end: a live bar on a terminal, a line for each change elsewhere, JSON lines for machines."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from s2v_tasks.cli.terminal import console, open_metadata_store, print_json
from s2v_tasks.errors import PermanentError

if TYPE_CHECKING:
    from s2v_tasks.cli.airflow_run import AwaitedRun, Waiting
    from s2v_tasks.metadata.store import MetadataStore
    from s2v_tasks.metadata.tables import Job

Watch = Annotated[bool, typer.Option("--watch", help="Follow it to its end, then end with the exit code of the job.")]
POLL_SECONDS = 1.0
_LOOKS_PER_QUESTION = 5  # at the metadata store, before Airflow is asked again

FindRun = Callable[[], "AwaitedRun | None"]
Show = Callable[["Job"], None]


def watch_job(
    job_id: str,
    *,
    as_json: bool,
    ended_before: datetime | None = None,
    may_come: bool = False,
    find_run: "FindRun | None" = None,
) -> int:
    """Show the job until it ends; its exit code: 0 succeeded, 130 cancelled, else 65, 75 or 78; 1 after Ctrl-C.

    `ended_before`: an earlier end, which is not the awaited one. `may_come`: the job may not exist yet.
    `find_run`: asks Airflow for the run of a job that has not begun.
    """
    from s2v_tasks.cli import airflow_run

    ask = find_run or partial(airflow_run.find_run, job_id)
    try:
        with open_metadata_store() as metadata:
            _await_begin(metadata, job_id, airflow_run.Waiting(ask), ended_before=ended_before, may_come=may_come)
            with _display(as_json) as show:
                while True:
                    job = metadata.jobs.get(job_id)
                    assert job is not None  # noqa: S101 - it has begun
                    show(job)
                    if job.has_ended:
                        break
                    time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        typer.echo(f"No longer watched. The job is not touched by that; `s2v cancel {job_id}` ends it.", err=True)
        return 1
    if not as_json:
        end = f"[bold]{job.job_id}[/bold] {job.status}: {escape(job.reason or job.video_uri or '')}"
        console.print(end, highlight=False)
    return job.exit_code


def _await_begin(
    metadata: "MetadataStore", job_id: str, waiting: "Waiting", *, ended_before: datetime | None, may_come: bool
) -> None:
    """Wait until the awaited work of the job has started, and print what it waits for."""
    for look in count():
        if look % _LOOKS_PER_QUESTION == 1:
            waiting.ask()
        job = metadata.jobs.get(job_id)
        if job is not None and not (job.has_ended and job.finished_at == ended_before):
            return
        if look % _LOOKS_PER_QUESTION == 1:
            waiting.report(job)
            if job is None and waiting.run is None and not may_come:
                raise unknown_job(job_id)
        if look:
            time.sleep(POLL_SECONDS)


def last_end(metadata: "MetadataStore", job_id: str) -> datetime | None:
    """Return when the job ended, if it did."""
    job = metadata.jobs.get(job_id)
    return job.finished_at if job else None


def unknown_job(job_id: str) -> PermanentError:
    """Return the error for an unknown job."""
    return PermanentError(f"Job {job_id!r} is not known: `s2v jobs` lists the jobs that are.")


@contextmanager
def _display(as_json: bool) -> Iterator[Show]:
    if as_json:
        yield _lines(as_json=True)
    elif not console.is_terminal:
        yield _lines(as_json=False)
    else:
        with _bar() as show:
            yield show


@contextmanager
def _bar() -> Iterator[Show]:
    """Shows a job in place: what it is at in one line, a bar with the numbers in another."""
    headline = Text("waiting for the job to begin", no_wrap=True, overflow="ellipsis")
    bar = Progress(BarColumn(bar_width=None), TextColumn("{task.description}", markup=False), expand=True)
    task = bar.add_task("", total=None)

    def show(job: "Job") -> None:
        from s2v_tasks.cli.progress import clock, job_progress

        now = job_progress(job)
        headline.plain = now.headline
        began = job.started_at
        took = "" if began is None else clock(((job.finished_at or datetime.now(UTC)) - began).total_seconds())
        numbers = "  ".join(part for part in (now.numbers, took) if part)
        bar.update(task, description=numbers, completed=now.steps_done, total=now.steps_total or None)
        live.refresh()

    with Live(Group(headline, bar), console=console, auto_refresh=False) as live:
        yield show


def _lines(*, as_json: bool) -> Show:
    """Shows a job by printing a line whenever there is something new."""
    shown: list[str] = []

    def show(job: "Job") -> None:
        from s2v_tasks.cli.progress import clip_states, job_progress

        now = job_progress(job)
        if now.line in shown[-1:]:
            return
        shown.append(now.line)
        if as_json:
            end = {"reason": job.reason, "video_uri": job.video_uri, "exit_code": job.exit_code}
            print_json(asdict(now) | {"clips": clip_states(job)} | (end if job.has_ended else {}), indent=None)
        else:
            console.print(now.line, markup=False)

    return show
