"""`s2v bench`: benchmarks of the engine on this machine, and the overhead of the tasks of a run.

Each benchmark of the engine compares its variants in one run.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from s2v_tasks.cli import app
from s2v_tasks.cli.airflow_api import AirflowApi
from s2v_tasks.cli.terminal import OPERATORS, AsJson, console, open_metadata_store, print_json
from s2v_tasks.cli.watch import unknown_job
from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.steps import CLIP_WAIT_TASK, RENDER_CLIP, RENDER_TASK
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.metadata.tables import Event

bench = typer.Typer(help="Measure the engine on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench", rich_help_panel=OPERATORS)

# About 50 million parameters with the head size of the released model; and the released model.
PRESETS = {
    "50m": {"dim": 512, "ffn_dim": 1408, "num_heads": 4, "num_layers": 8},
    "14b": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}
# Below this size the start of the processes takes as long as loading.
_TELLING_GIGABYTES = 2.0
PresetName = Annotated[
    str, typer.Option(help=f"Dimensions: {', '.join(PRESETS)}; other options override some of them.")
]
Dim = Annotated[int | None, typer.Option(min=64, help="Width of the transformer.")]
Layers = Annotated[int | None, typer.Option(min=1, help="Number of blocks.")]
Heads = Annotated[int | None, typer.Option(min=1, help="Attention heads.")]
Ffn = Annotated[int | None, typer.Option(min=1, help="Width of the feed-forward layers.")]
VideoSize = Annotated[str, typer.Option(help="W*H of the video, multiples of 64.")]
Frames = Annotated[int, typer.Option(min=4, max=120, help="Frames of the clip, a multiple of 4.")]
Repeats = Annotated[int, typer.Option(min=1, help="Steps that are timed; the median counts.")]
LayoutName = Annotated[str, typer.Option(help="How several ranks share the work: auto, or like cfg2,ulysses2.")]


@bench.command()
def load(
    gigabytes: Annotated[float, typer.Option(min=0.008, help="Size of the checkpoint that is written.")] = 0.5,
    ranks: Annotated[int, typer.Option(min=1, max=8, help="Processes that load at the same time.")] = 2,
    naive: Annotated[bool, typer.Option(help="Also measure a loader with two copies in host memory.")] = True,
) -> None:
    """Load a checkpoint of a given size from the page cache; compare with one thread on the same number of ranks."""
    from s2v_tasks.verification.bench.load import bench_load

    results = list(bench_load(gigabytes * 1e9, ranks, _device(), with_naive=naive))
    slow = {result.num_ranks: result.seconds for result in results if result.name == "one thread"}
    table = Table("loader", "ranks", "seconds", "ratio", "GB/s", "peak host memory per rank / checkpoint")
    for result in results:
        table.add_row(
            result.name,
            str(result.num_ranks),
            f"{result.seconds:.2f}",
            f"{slow[result.num_ranks] / result.seconds:.2f}",
            f"{result.bytes_per_second / 1e9:.2f}",
            f"{result.host_memory_ratio:.2f}",
        )
    console.print(table)
    if gigabytes < _TELLING_GIGABYTES:
        console.print(
            f"[yellow]{gigabytes:g} GB load faster than the processes start: compare loaders with --gigabytes "
            f"{_TELLING_GIGABYTES:g} or more.[/yellow]"
        )


@bench.command()
def decode(
    size: VideoSize = "256*256",
    frames: Frames = 16,
    base_dim: Annotated[int, typer.Option(min=8, help="Channels of the VAE; 96 in the released model.")] = 96,
    ranks: Annotated[
        int, typer.Option(min=1, max=8, help="Number of processes; each decodes one part of every frame.")
    ] = 2,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="Also measure bfloat16, and its error against float32.")
    ] = False,
) -> None:
    """Decode and encode a later clip of a chain: all frames, only the clip, and the clip on several ranks."""
    from s2v_tasks.verification.bench.decode import DecodeBench, bench_decode

    width, height = sides(size)
    results = bench_decode(DecodeBench(base_dim, frames, height, width, bfloat16), ranks, _device())
    decoded = results[0].seconds
    encoded = next(result.seconds for result in results if result.name.startswith("encode"))
    table = Table("VAE", "seconds", "ratio", "max abs diff", "relative error")
    for result in results:
        ratio = (encoded if result.name.startswith("encode") else decoded) / result.seconds
        table.add_row(
            result.name,
            f"{result.seconds:.2f}",
            f"{ratio:.2f}",
            f"{result.max_abs_diff:.1e}",
            f"{result.relative_error:.1e}",
        )
    console.print(table)


def _device() -> str:
    from s2v_tasks.engine.worker import choose_device

    return choose_device(load_settings().device).type


def dimensions(preset: str, given: dict[str, int | None]) -> dict[str, Any]:
    if preset not in PRESETS:
        raise PermanentError(f"--preset {preset!r}: expected one of {', '.join(PRESETS)}.")
    dimensions: dict[str, Any] = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
    if preset != "14b" or given["num_layers"]:
        dimensions["audio_inject_layers"] = list(range(0, dimensions["num_layers"], 3))  # about as dense as in the 14B
    return dimensions


def sides(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\*(\d+)", size)
    if match is None or any(int(side) % 64 or int(side) == 0 for side in match.groups()):
        raise PermanentError(f"--size {size!r}: expected W*H, both multiples of 64, like 832*448.")
    return int(match[1]), int(match[2])


def latent_frames(frames: int) -> int:
    if frames % 4:
        raise PermanentError(f"--frames {frames}: expected a multiple of 4.")
    return frames // 4


@dataclass(frozen=True)
class TaskTime:
    """Seconds of one task.

    `before`: from the end of the previous task to the start by Airflow. `around`: in the task, outside the work of its
    step (processes, imports, connections). `work`: measured by the step, 0 for a task without a step.
    """

    task: str
    map_index: int
    before: float
    around: float
    work: float


@bench.command()
def tasks(
    job_id: Annotated[str, typer.Argument(help="A finished job that Airflow has run.")],
    as_json: AsJson = False,
) -> None:
    """Show for each task of a run the time that passed outside the work of its step."""
    with open_metadata_store() as metadata:
        job = metadata.jobs.get(job_id)
    if job is None:
        raise unknown_job(job_id)
    if job.dag_run_id is None:
        raise PermanentError(f"Job {job_id} has no run in Airflow: expected one that was submitted to Airflow.")
    instances = AirflowApi.from_settings(load_settings()).task_instances(job.dag_run_id)
    times = list(task_times(instances, job.events))
    whole = sum(time.before + time.around + time.work for time in times if time.task != CLIP_WAIT_TASK)
    outside = sum(time.before + time.around for time in times if time.task != CLIP_WAIT_TASK)
    if as_json:
        print_json({"tasks": [asdict(time) for time in times], "outside_seconds": outside, "seconds": whole})
        return
    table = Table("task", "before s", "around s", "work s")
    for time in times:
        name = time.task if time.map_index < 0 else f"{time.task} [{time.map_index}]"
        table.add_row(name, f"{time.before:.1f}", f"{time.around:.1f}", f"{time.work:.1f}")
    console.print(table)
    console.print(
        f"Time outside the work of the steps: {outside:.1f} of {whole:.1f} s; tasks that wait for clips are not "
        "counted."
    )


def task_times(instances: Iterable[Mapping[str, Any]], events: Iterable["Event"]) -> Iterator[TaskTime]:
    """Return the seconds of each task that ran, in the order of their starts.

    `instances`: task instances from Airflow's REST API; `events`: events of the job.
    """
    ran = sorted((i for i in instances if i["start_date"] and i["end_date"]), key=lambda i: i["start_date"])
    work = _work_seconds(events)
    for instance in ran:
        start, end = _moment(instance, "start_date"), _moment(instance, "end_date")
        # A wait ends when the previous clip is rendered: its own render follows.
        earlier = [_moment(other, "end_date") for other in ran if _moment(other, "end_date") <= start]
        before = (start - max(earlier)).total_seconds() if earlier else 0.0
        step, position = instance["task_id"].rpartition(".")[2], max(instance["map_index"], 0)
        seconds = work.get(RENDER_CLIP.name if step == RENDER_TASK else step, [])
        worked = seconds[position] if position < len(seconds) else 0.0
        around = (end - start).total_seconds() - worked
        yield TaskTime(instance["task_id"], instance["map_index"], before, around, worked)


def _work_seconds(events: Iterable["Event"]) -> dict[str, list[float]]:
    """Return the latest seconds of each step; of the clips in the order of their indices."""
    latest: dict[str, dict[int, float]] = {}
    for event in events:
        if event.event == JobEvent.STEP_FINISHED and event.step:
            latest.setdefault(event.step, {})[event.clip_index or 0] = event.detail["seconds"]
    return {step: [seconds[index] for index in sorted(seconds)] for step, seconds in latest.items()}


def _moment(instance: Mapping[str, Any], name: str) -> datetime:
    return datetime.fromisoformat(instance[name])
