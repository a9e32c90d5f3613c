"""Commands for people: what will it cost, what is there, does this engine compute the right thing."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from s2v_tasks.cli import app
from s2v_tasks.errors import ConfigurationError, PermanentError

if TYPE_CHECKING:
    from s2v_tasks.metadata.records import JobRecord
    from s2v_tasks.metadata.repository import Ledger

PEOPLE = "For people"
# Into a pipe or a file rows keep their width, so that a line is a row.
console = Console(width=None if sys.stdout.isatty() else 180)

db = typer.Typer(help="The project's own database.", no_args_is_help=True)
snapshot = typer.Typer(help="Model weights on disk.", no_args_is_help=True)
app.add_typer(db, name="db", rich_help_panel="For operators")
app.add_typer(snapshot, name="snapshot", rich_help_panel="For operators")

Preset = Annotated[str, typer.Option(help="Named defaults: quick, balanced, high, long.")]
NumClip = Annotated[int | None, typer.Option(help="Number of clips; left out: as many as the speech needs.")]
InferFrames = Annotated[int | None, typer.Option(help="Frames per clip: a multiple of 4 from 16 to 120.")]
SampleSteps = Annotated[int | None, typer.Option(help="Solver steps of each clip.")]
GuideScale = Annotated[float | None, typer.Option(help="Guidance scale; 1 turns guidance off.")]
Shift = Annotated[float | None, typer.Option(help="Shift of the noise schedule.")]
SolverName = Annotated[str | None, typer.Option(help="unipc or dpm++.")]
Size = Annotated[str | None, typer.Option(help="W*H: bounds the area; the aspect ratio follows the image.")]
BaseSeed = Annotated[int, typer.Option(help="Seed of the first clip; -1: derived from the job id.")]
FromRef = Annotated[bool, typer.Option("--start-from-ref", help="Begin with the reference picture itself.")]


def overrides(arguments: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request among the arguments of a command, without those left out."""
    from s2v_tasks.schemas.request import Request

    return {name: arguments[name] for name in Request.model_fields if arguments.get(name) is not None}


@app.command(rich_help_panel=PEOPLE)
def plan(
    audio: Annotated[Path, typer.Option(help="Speech file.")],
    image: Annotated[Path, typer.Option(help="Reference picture.")],
    preset: Preset = "balanced",
    num_clip: NumClip = None,
    infer_frames: InferFrames = None,
    sample_steps: SampleSteps = None,
    sample_guide_scale: GuideScale = None,
    sample_shift: Shift = None,
    sample_solver: SolverName = None,
    size: Size = None,
    base_seed: BaseSeed = -1,
    start_from_ref: FromRef = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show clips, frames, size and cost of a video before anything is spent."""
    fields = overrides(locals())
    from s2v_tasks.planning.table import plan_table
    from s2v_tasks.steps.plan_clips import plan_files

    result = plan_files(image, audio, fields)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        console.print(plan_table(result))


@app.command(rich_help_panel=PEOPLE)
def jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """List jobs, newest first."""
    found = _ledger().jobs(limit=limit)
    if as_json:
        typer.echo(json.dumps([_plain(job) for job in found], indent=2, default=str))
        return
    table = Table("job", "status", "clips", "frames", "size", "created", "video or reason")
    for job in found:
        table.add_row(
            job.job_id,
            job.status,
            str(job.num_clip or ""),
            str(job.num_frames or ""),
            f"{job.width}*{job.height}" if job.width else "",
            f"{job.created_at:%Y-%m-%d %H:%M:%S}",
            escape(job.reason or job.video_uri or ""),
        )
    console.print(table)


@app.command(rich_help_panel=PEOPLE)
def job(
    job_id: Annotated[str, typer.Argument(help="The job.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show one job: its state, its clips, its artifacts and what happened."""
    found = _ledger().job(job_id)
    if found is None:
        raise PermanentError(f"Job {job_id!r} is not known: `s2v jobs` lists the jobs that are.")
    if as_json:
        typer.echo(json.dumps(_plain(found), indent=2, default=str))
        return
    _print_job(found)


def _print_job(found: "JobRecord") -> None:
    console.print(f"[bold]{found.job_id}[/bold]  {found.status}  {escape(found.reason or found.video_uri or '')}")
    clips = Table(
        "clip", "status", "frames", "step", "attempts", "reused", "render s", "PFLOP", "MFU", "peak GiB", "fingerprint"
    )
    for clip in found.clips:
        clips.add_row(
            str(clip.clip_index),
            clip.status,
            f"{clip.start_frame}..{clip.end_frame}",
            f"{clip.progress_step or 0}/{clip.progress_steps or '?'}",
            str(clip.attempts),
            "yes" if clip.reused else "no",
            f"{clip.render_seconds:.1f}" if clip.render_seconds is not None else "",
            *_meter(clip.facts or {}),
            (clip.fingerprint or "")[:12],
        )
    console.print(clips)
    artifacts = Table("artifact", "bytes", "sha256")
    for artifact in found.artifacts:
        artifacts.add_row(artifact.key, str(artifact.size_bytes), artifact.sha256[:12])
    console.print(artifacts)
    events = Table("at", "step", "clip", "event", "detail")
    for event in found.events:
        clip_index = "" if event.clip_index is None else str(event.clip_index)
        detail = json.dumps(event.detail, ensure_ascii=False)
        events.add_row(f"{event.at:%H:%M:%S}", event.step or "", clip_index, event.event, escape(detail[:100]))
    console.print(events)


def _meter(facts: dict[str, Any]) -> tuple[str, str, str]:
    """Operations, utilisation of the device, and peak memory: of the GPU, on a CPU of the process."""
    peak_bytes = facts.get("peak_gpu_memory_bytes", facts.get("peak_host_memory_bytes"))
    return (
        f"{facts['pflops']:.3g}" if "pflops" in facts else "",
        f"{facts['mfu']:.1%}" if "mfu" in facts else "",
        f"{peak_bytes / 2**30:.2f}" if peak_bytes is not None else "",
    )


@app.command(rich_help_panel=PEOPLE)
def parity(
    folder: Annotated[Path, typer.Argument(help="Folder with golden files.")],
    nproc: Annotated[int, typer.Option(min=1, help="Processes that share each forward and loop, on the CPU.")] = 1,
    layout: Annotated[
        str, typer.Option(help="How they share the work: auto, or parts like cfg2,ulysses2,fsdp.")
    ] = "auto",
) -> None:
    """Compare this engine with recorded tensors; exit code 1 when one case is outside its gate."""
    from s2v_tasks.engine.parallel.layout import Layout
    from s2v_tasks.engine.parity.launch import run_on_ranks
    from s2v_tasks.engine.parity.runner import run
    from s2v_tasks.planning.resolution import output_size

    shared = None if layout == "auto" else Layout.parse(layout)
    if nproc == 1:
        results = run(folder, output_size=output_size, layout=shared)
    else:
        results = run_on_ranks(folder, num_ranks=nproc, output_size=output_size, layout=shared)
    table = Table("case", "max abs diff", "gate", "ok", "note")
    for result in results:
        table.add_row(
            escape(result.name),
            f"{result.max_abs_diff:.2e}",
            f"{result.gate:.0e}",
            "ok" if result.ok else "FAIL",
            escape(result.note),
        )
    console.print(table)
    failed = [result.name for result in results if not result.ok]
    typer.echo(f"{len(results) - len(failed)} of {len(results)} cases inside their gates")
    if failed:
        raise typer.Exit(1)


@db.command("upgrade")
def db_upgrade(revision: Annotated[str, typer.Argument(help="Alembic revision.")] = "head") -> None:
    """Bring the database to the newest schema."""
    from s2v_tasks.metadata.migrate import upgrade

    upgrade(_database_url(), revision)
    typer.echo(f"database is at {revision}")


@snapshot.command("init-tiny")
def snapshot_init_tiny(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal bytes.")] = 0,
) -> None:
    """Write a tiny checkpoint with random weights in the official layout, for demos and tests."""
    from s2v_tasks.engine.tiny_snapshot import write_tiny_snapshot

    write_tiny_snapshot(folder, seed)
    typer.echo(str(folder))


@snapshot.command("verify")
def snapshot_verify(
    folder: Annotated[Path, typer.Argument(help="Snapshot with a SHA256SUMS beside its files.")],
) -> None:
    """Compare all weight files with the sha256 digests of SHA256SUMS, as `sha256sum` writes them."""
    from s2v_tasks.engine.loading.checksums import verify_checksums

    typer.echo(f"{verify_checksums(folder)} files are as listed")


def _database_url() -> str:
    from s2v_tasks.settings import load_settings

    url = load_settings().database_url
    if url is None:
        raise ConfigurationError("S2V_DATABASE_URL is not set: expected a PostgreSQL URL, or run `make up` first.")
    return url.get_secret_value()


def _ledger() -> "Ledger":
    from s2v_tasks.metadata.repository import Ledger
    from s2v_tasks.metadata.session import engine_from_settings
    from s2v_tasks.settings import load_settings

    return Ledger(engine_from_settings(load_settings()))


def _plain(record: Any) -> Any:
    from dataclasses import asdict

    return asdict(record)
