"""The embedded stack as commands: the whole system on one machine, on loopback, with nothing to configure."""

from pathlib import Path
from typing import Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.people import (
    BaseSeed,
    FromRef,
    GuideScale,
    InferFrames,
    NumClip,
    SampleSteps,
    Shift,
    Size,
    SolverName,
    overrides,
)
from s2v_tasks.settings import load_settings

STACK = "Embedded stack"


@app.command(rich_help_panel=STACK)
def demo(
    image: Annotated[Path | None, typer.Option(help="Reference picture; left out: the sample.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Speech file; left out: the sample.")] = None,
    pose_video: Annotated[Path | None, typer.Option(help="Pose video.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt; left out: the sample's.")] = None,
    preset: Annotated[str | None, typer.Option(help="Named defaults.")] = None,
    num_clip: NumClip = None,
    infer_frames: InferFrames = None,
    sample_steps: SampleSteps = None,
    sample_guide_scale: GuideScale = None,
    sample_shift: Shift = None,
    sample_solver: SolverName = None,
    size: Size = None,
    base_seed: BaseSeed = -1,
    start_from_ref: FromRef = False,
    job_id: Annotated[str | None, typer.Option(help="Name of the job; the same name continues or reuses it.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the finished video.")] = Path("out"),
) -> None:
    """Run the DAG on this machine, with a tiny model: S3 in, talking video out."""
    fields = overrides(locals())
    from s2v_tasks.embedded.demo import DemoInputs, run_demo

    inputs = DemoInputs(image=image, audio=audio, pose_video=pose_video)
    raise typer.Exit(run_demo(load_settings().home, inputs, fields, out_dir=out, job_id=job_id))


@app.command(rich_help_panel=STACK)
def up() -> None:
    """Start PostgreSQL, S3 and Airflow with its UI."""
    from s2v_tasks.embedded.stack import up as start

    start(load_settings().home)


@app.command(rich_help_panel=STACK)
def down() -> None:
    """Stop them; their state stays."""
    from s2v_tasks.embedded.stack import down as stop

    stop(load_settings().home)


@app.command(rich_help_panel=STACK)
def status() -> None:
    """Say what runs and where."""
    from s2v_tasks.embedded.stack import status as show

    show(load_settings().home)
