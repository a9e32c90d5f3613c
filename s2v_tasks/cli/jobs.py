"""`s2v jobs`, `s2v job`, `s2v fetch`, `s2v link`, `s2v costs`: jobs in the metadata store, their results and cost."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from s2v_tasks.cli import app
from s2v_tasks.cli.request_options import parse_labels
from s2v_tasks.cli.terminal import (
    PEOPLE,
    AsJson,
    JobId,
    console,
    open_metadata_store,
    path_option,
    print_json,
    print_table,
)
from s2v_tasks.cli.watch import Watch, find_new_start, unknown_job, watch_job
from s2v_tasks.errors import TransientError
from s2v_tasks.schemas.job import JobStatus
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.metadata.costs import Spending
    from s2v_tasks.metadata.tables import Clip, Event, Job
    from s2v_tasks.schemas.manifest import ClipFacts
    from s2v_tasks.schemas.quality import TakeRecord

_LONGEST_DETAIL = 100


@app.command(rich_help_panel=PEOPLE)
def jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of jobs.")] = 20,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs with this status.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only jobs with this label.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with open_metadata_store() as metadata:
        found = metadata.jobs.recent(limit, status=status, labels=parse_labels(label or []))
    if as_json:
        print_json([asdict(job) for job in found])
        return
    rows = [
        (
            job.job_id,
            job.status,
            str(job.num_clip or ""),
            str(job.num_frames or ""),
            f"{job.width}*{job.height}" if job.width else "",
            " ".join(f"{name}={value}" for name, value in sorted(job.labels.items())),
            f"{job.created_at:%Y-%m-%d %H:%M:%S}",
            job.reason or job.video_uri or "",
        )
        for job in found
    ]
    print_table(("job", "status", "clips", "frames", "size", "labels", "created", "video or reason"), rows)


@app.command(rich_help_panel=PEOPLE)
def job(
    job_id: JobId,
    watch: Watch = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch a line after each change.")] = False,
) -> None:
    """Show one job: its status, cost, clips, artifacts and events.

    Exit codes with --watch: 0 succeeded, 65 bad input, 75 try again, 78 configuration, 130 cancelled.
    """
    if watch:
        raise typer.Exit(watch_job(job_id, as_json=as_json))
    with open_metadata_store() as metadata:
        found = metadata.jobs.get(job_id)
        spent = next(iter(metadata.costs.spending("job", job_id=job_id)), None)
    if found is None:
        _show_awaited(job_id, as_json=as_json)
        return
    start = find_new_start(found)
    if as_json:
        new_start = {"run_id": start.run_id, "run_state": start.state} if start else None
        print_json(asdict(found) | {"spending": asdict(spent) if spent else None, "new_start": new_start})
        return
    _print_job(found, spent)
    if start:
        console.print(f"It will start again. {start.sentence}", markup=False)


def _show_awaited(job_id: str, *, as_json: bool) -> None:
    """Show the run of a job that is not in the database yet; PermanentError if Airflow has none either."""
    from s2v_tasks.cli.awaited_runs import find_run

    try:
        run = find_run(job_id)
    except TransientError as error:
        raise TransientError(f"Job {job_id!r} is not in the database, and may wait in Airflow. {error}") from error
    if run is None:
        raise unknown_job(job_id)
    run.check_begins()
    if as_json:
        facts = {"run_id": run.run_id, "run_state": run.state, "dag_is_paused": run.dag_is_paused}
        print_json({"job_id": job_id, "status": JobStatus.QUEUED} | facts)
    else:
        console.print(run.sentence, markup=False)


def _print_job(found: "Job", spent: "Spending | None") -> None:
    console.print(f"[bold]{found.job_id}[/bold]  {found.status}  {escape(found.reason or found.video_uri or '')}")
    if found.parent_job_id:
        console.print(f"rerun of {found.parent_job_id} from clip {found.from_clip}", markup=False)
    if waiting := found.waiting_approval:
        what = "the video" if waiting.clip_index is None else f"clip {waiting.clip_index}"
        console.print(f"waits for approval of {what} until {waiting.expires_at:%Y-%m-%d %H:%M} UTC", markup=False)
    console.print(_cost_line(found, spent), markup=False)
    print_table(
        (
            "clip", "status", "frames", "step", "attempts", "reused", "render s", "PFLOP", "MFU", "peak GiB", "quality",
            "fingerprint",
        ),
        [_clip_cells(clip) for clip in found.clips],
    )  # fmt: skip
    for clip in found.clips:
        for sentence in _quality_sentences(clip.takes):
            console.print(sentence, markup=False, highlight=False)
    artifacts = [(artifact.key, str(artifact.size_bytes), artifact.sha256[:12]) for artifact in found.artifacts]
    print_table(("artifact", "bytes", "sha256"), artifacts)
    print_table(("at", "step", "clip", "event", "detail"), [_event_cells(event) for event in found.events])


def _clip_cells(clip: "Clip") -> tuple[str, ...]:
    return (
        str(clip.clip_index),
        clip.status,
        f"{clip.start_frame}..{clip.end_frame}",
        f"{clip.progress_step or 0}/{clip.progress_steps or '?'}",
        str(clip.attempts),
        f"of {clip.source_job_id}" if clip.source_job_id else "yes" if clip.reused else "no",
        f"{clip.render_seconds:.1f}" if clip.render_seconds is not None else "",
        *_cost_cells(clip.clip_facts),
        _quality_cell(clip.takes),
        (clip.fingerprint or "")[:12],
    )


def _event_cells(event: "Event") -> tuple[str, ...]:
    clip_index = "" if event.clip_index is None else str(event.clip_index)
    detail = json.dumps(event.detail, ensure_ascii=False)
    if len(detail) > _LONGEST_DETAIL:
        detail = f"{detail[: _LONGEST_DETAIL - 3]}..."
    return f"{event.at:%H:%M:%S}", event.step or "", clip_index, event.event, detail


def _cost_line(found: "Job", spent: "Spending | None") -> str:
    """Return the cost of the job so far, and the cost that its plan expects."""
    used, wasted = (spent.used_gpu_seconds, spent.wasted_gpu_seconds) if spent else (0.0, 0.0)
    conditions = spent.conditions_gpu_seconds if spent else 0.0
    line = f"GPU-seconds: {used:.1f} used ({conditions:.1f} for the conditions), {wasted:.1f} wasted"
    if found.estimated_gpu_seconds is None:
        return line
    line += f", about {found.estimated_gpu_seconds:.1f} expected for the clips"
    if found.cost_per_gpu_hour is None:
        return line
    expected = found.estimated_gpu_seconds * found.cost_per_gpu_hour / 3600
    cost = spent.cost or 0.0 if spent else 0.0
    return f"{line}; cost: {cost:.4f} {found.currency}, about {expected:.4f} expected"


def _quality_cell(takes: "TakeRecord | None") -> str:
    """Return the findings of the kept take in a few words, with the number of the take if there are several."""
    if takes is None or not takes.takes:
        return ""
    take = takes.kept_take or takes.takes[-1]
    if take.measured is None:
        text = "not measured"
    else:
        levels = [finding.level for finding in take.findings]
        counts = [f"{levels.count(level)} {level}" for level in ("fail", "warn") if level in levels]
        text = ", ".join(counts) or "ok"
    return text if len(takes.takes) == 1 else f"{text}; take {take.take} of {len(takes.takes)}"


def _quality_sentences(takes: "TakeRecord | None") -> list[str]:
    """Return the measures and the findings of the kept take as sentences."""
    from s2v_tasks.validation.quality import clip_in_words, findings_in_words

    take = takes.kept_take if takes else None
    if takes is None or take is None:
        return []
    if take.measured is None:
        return [f"Clip {takes.clip_index} was not measured: {take.error}"]
    words = [f"Clip {takes.clip_index}: {clip_in_words(take.measured)}"]
    return words + findings_in_words(takes.clip_index, take.findings)


def _cost_cells(facts: "ClipFacts | None") -> tuple[str, str, str]:
    """Return operations, utilisation of the device, and peak memory (of the GPU, or of the process on a CPU)."""
    if facts is None:
        return "", "", ""
    peak_bytes = facts.peak_gpu_memory_bytes or facts.peak_host_memory_bytes
    return (
        "" if facts.pflops is None else f"{facts.pflops:.3g}",
        "" if facts.mfu is None else f"{facts.mfu:.1%}",
        "" if peak_bytes is None else f"{peak_bytes / 2**30:.2f}",
    )


@app.command(rich_help_panel=PEOPLE)
def fetch(
    job_id: JobId,
    to: Annotated[Path, path_option("Folder for the files.")] = Path("out"),
    as_json: AsJson = False,
) -> None:
    """Download video, report and contact sheet of a job that succeeded; their checksums are verified."""
    from s2v_tasks.storage.artifacts import ArtifactStore
    from s2v_tasks.storage.result_files import fetch_result
    from s2v_tasks.storage.s3 import ObjectStore

    fetched = fetch_result(ArtifactStore(ObjectStore.from_settings(load_settings())), job_id, to)
    files = {name: str(getattr(fetched, name)) for name in ("video", "report", "contact_sheet", "description")}
    if as_json:
        print_json({"job_id": job_id, "sha256": fetched.facts["sha256"]} | files)
    else:
        for name, path in files.items():
            console.print(f"{name.replace('_', ' ')}: {path}", markup=False)


@app.command(rich_help_panel=PEOPLE)
def link(
    job_id: JobId,
    file: Annotated[str, typer.Argument(help="video, report or contact-sheet.")] = "video",
) -> None:
    """Print a presigned URL of a file of a job. It is valid for one hour and needs no login."""
    from s2v_tasks.storage.result_files import result_link
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    store, public_store = ObjectStore.from_settings(settings), ObjectStore.seen_by_browsers(settings)
    url = result_link(settings, store, public_store, job_id, file)
    typer.echo(json.dumps({"job_id": job_id, "file": file, "url": url}))


@app.command(rich_help_panel=PEOPLE)
def costs(
    by: Annotated[Literal["all", "label", "preset", "day", "job"], typer.Option(help="Group by.")] = "all",
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Only attempts that started at this UTC time or later."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show GPU-seconds and cost, at the price at the time of planning.

    Wasted: attempts that failed, were cancelled or were lost. A job counts once for each of its labels.
    """
    with open_metadata_store() as metadata:
        lines = metadata.costs.spending(by, since=since.replace(tzinfo=UTC) if since else None)
    if as_json:
        print_json([asdict(line) for line in lines])
        return
    rows = [
        (
            line.name,
            str(line.jobs),
            f"{line.used_gpu_seconds:.1f}",
            f"{line.conditions_gpu_seconds:.1f}",
            f"{line.wasted_gpu_seconds:.1f}",
            "" if line.cost is None else f"{line.cost:.4f}",
            f"{line.wasted_cost or 0:.4f}",
            line.currency or "",
        )
        for line in lines
    ]
    print_table((by, "jobs", "GPU-seconds used", "for conditions", "wasted", "cost", "wasted cost", "currency"), rows)
