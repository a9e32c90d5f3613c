"""The steps of the pipeline as commands, for Airflow and for people.

Each prints one JSON object, the result, on stdout; logs go to stderr.
"""

import importlib
import json
import os
from datetime import datetime
from typing import Annotated, Any

import typer

from s2v_tasks.cli import app
from s2v_tasks.schemas import steps
from s2v_tasks.schemas.approval import ApprovalStatus, parse_rejection
from s2v_tasks.settings import compile_cache_dir, load_settings

JobId = Annotated[str, typer.Option(help="The job: lower-case letters, digits and hyphens.")]
STEPS = "Pipeline steps"


def _run(step: steps.Step, job_id: str, clip_index: int | None = None, **arguments: Any) -> None:
    from s2v_tasks.runtime.context import run_step

    # Step modules load heavy libraries (torch, boto3, SQLAlchemy), so only the module that runs is imported.
    body = importlib.import_module(f"s2v_tasks.steps.{step.name}").run
    result = run_step(body, step=step, job_id=job_id, clip_index=clip_index, **arguments)
    typer.echo(json.dumps({"job_id": job_id} | result))


def _prepare_torch() -> None:
    """Set the environment that torch reads; call it before anything imports torch."""
    from s2v_tasks.engine import use_compile_cache

    use_compile_cache(compile_cache_dir(load_settings()))


@app.command(rich_help_panel=STEPS)
def stage_inputs(
    job_id: JobId,
    request_json: Annotated[str, typer.Option(help="The request as JSON; fields as in the UI form.")],
    run_id: Annotated[str | None, typer.Option(help="The DAG run that runs the job.")] = None,
) -> None:
    """Check the request, fetch its files, and store them in normalised form under the prefix of the job."""
    _run(steps.STAGE_INPUTS, job_id, request_json=request_json, run_id=run_id)


@app.command(rich_help_panel=STEPS)
def plan_clips(job_id: JobId) -> None:
    """Fix every clip and every frame in plan.json."""
    _run(steps.PLAN_CLIPS, job_id)


@app.command(rich_help_panel=STEPS)
def encode_conditions(job_id: JobId) -> None:
    """Encode prompt and speech once for all clips."""
    _prepare_torch()
    _run(steps.ENCODE_CONDITIONS, job_id)


@app.command(rich_help_panel=STEPS)
def render_clip(
    job_id: JobId,
    clip_index: Annotated[int, typer.Option(min=0, help="Index of the clip, from 0.")],
    count: Annotated[
        int, typer.Option(min=1, help="Number of consecutive clips; the model is loaded once for all.")
    ] = 1,
) -> None:
    """Render clips. Each is stored before the next starts; finished clips are reused. torchrun starts several ranks."""
    _prepare_torch()
    if int(os.environ.get("RANK", "0")) > 0:
        from s2v_tasks.rendering.renderer import follow

        follow(job_id)
        return
    _run(steps.RENDER_CLIP, job_id, clip_index, count=count)


@app.command(rich_help_panel=STEPS)
def stitch(job_id: JobId) -> None:
    """Join the clips by stream copy."""
    _run(steps.STITCH, job_id)


@app.command(rich_help_panel=STEPS)
def mux_audio(job_id: JobId) -> None:
    """Add the speech, in sync, to the joined clips."""
    _run(steps.MUX_AUDIO, job_id)


@app.command(rich_help_panel=STEPS)
def validate(job_id: JobId) -> None:
    """Check the finished video against the plan; write the report and the contact sheet."""
    _run(steps.VALIDATE, job_id)


@app.command(rich_help_panel=STEPS)
def publish(job_id: JobId) -> None:
    """Copy the validated video to the output and close the job."""
    _run(steps.PUBLISH, job_id)


@app.command(rich_help_panel=STEPS)
def close_job(
    job_id: JobId,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%dT%H:%M:%S%z"], help="Start of the run; an earlier end of the job is ignored."),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="The DAG run that ends.")] = None,
    failed_task: Annotated[
        str | None, typer.Option(help="The task that failed in Airflow; used if no step gave a reason.")
    ] = None,
) -> None:
    """Close a job: mark it failed if its step ended without a report."""
    _run(steps.CLOSE_JOB, job_id, since=since, run_id=run_id, failed_task=failed_task)


@app.command(rich_help_panel=STEPS)
def ask_approval(
    job_id: JobId,
    clip_index: Annotated[int | None, typer.Option(min=0, help="Index of the clip. Omitted: the whole video.")] = None,
    run_id: Annotated[str | None, typer.Option(help="The DAG run that waits.")] = None,
) -> None:
    """Record that a person must approve a clip or the video; print the decision if there is one."""
    _run(steps.ASK_APPROVAL, job_id, clip_index, run_id=run_id)


@app.command(rich_help_panel=STEPS)
def record_approval(
    job_id: JobId,
    status: Annotated[
        ApprovalStatus, typer.Option(help="The answer: approved, rejected, or expired (no answer in time).")
    ],
    clip_index: Annotated[int | None, typer.Option(min=0, help="Index of the clip. Omitted: the whole video.")] = None,
    run_id: Annotated[str | None, typer.Option(help="The DAG run that waits.")] = None,
    user: Annotated[str | None, typer.Option(help="Name of the person in Airflow.")] = None,
    rejection: Annotated[str | None, typer.Option(help="Note and changed fields of a rejection, as JSON.")] = None,
) -> None:
    """Record the answer that a person gave in Airflow or by `s2v approve` or `s2v reject`."""
    answer = None if rejection is None else parse_rejection(rejection)
    _run(steps.RECORD_APPROVAL, job_id, clip_index, status=status, run_id=run_id, user=user, rejection=answer)


@app.command(rich_help_panel=STEPS)
def record_failure(
    job_id: JobId,
    step: Annotated[str, typer.Option(help="The failed step, for example render-clip.")],
    reason: Annotated[str, typer.Option(help="The reason in one sentence.")],
    clip_index: Annotated[int | None, typer.Option(min=0, help="Index of the first clip of the task.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of clips of the task.")] = 1,
) -> None:
    """Record the reason of a step that ended without a report: killed, out of memory, never started."""
    from s2v_tasks.runtime.context import open_context
    from s2v_tasks.steps.record_failure import run

    with open_context(job_id, load_settings()) as context:
        run(context, step=steps.step_of_command(step), reason=reason, clip_index=clip_index, count=count)
    typer.echo(json.dumps({"job_id": job_id}))
