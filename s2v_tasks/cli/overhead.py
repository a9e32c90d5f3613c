"""`s2v bench tasks`: how much time the tasks of a run spend outside the work of their steps."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from s2v_tasks.cli.airflow_api import AirflowApi
from s2v_tasks.cli.bench import bench
from s2v_tasks.cli.terminal import console, open_metadata_store, print_json
from s2v_tasks.cli.watch import unknown_job
from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.steps import CLIP_WAIT_TASK, RENDER_CLIP, RENDER_TASK
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.metadata.tables import Event


@dataclass(frozen=True)
class TaskTime:
    """Seconds of one task.

    `before`: from the end of the task before it until Airflow starts it. `around`: in the task, outside the work of its
    step (processes, imports, connections). `work`: what the step measured of itself, 0 for a task without a step.
    """

    task: str
    map_index: int
    before: float
    around: float
    work: float


@bench.command()
def tasks(
    job_id: Annotated[str, typer.Argument(help="A finished job that Airflow has run.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show for each task of a run how much time passed outside the work of its step."""
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
    console.print(f"outside the work: {outside:.1f} of {whole:.1f} s, the waits of the clips left out")


def task_times(instances: Iterable[Mapping[str, Any]], events: Iterable["Event"]) -> Iterator[TaskTime]:
    """Return the seconds of each task that ran, in the order of their starts.

    `instances` are task instances as Airflow's REST API gives them, `events` those of the job.
    """
    ran = sorted((i for i in instances if i["start_date"] and i["end_date"]), key=lambda i: i["start_date"])
    work = _work_seconds(events)
    for instance in ran:
        start, end = _moment(instance, "start_date"), _moment(instance, "end_date")
        # A wait ends when the clip before it is rendered: what follows it is its own render.
        earlier = [_moment(other, "end_date") for other in ran if _moment(other, "end_date") <= start]
        before = (start - max(earlier)).total_seconds() if earlier else 0.0
        step, position = instance["task_id"].rpartition(".")[2], max(instance["map_index"], 0)
        seconds = work.get(RENDER_CLIP.name if step == RENDER_TASK else step, [])
        worked = seconds[position] if position < len(seconds) else 0.0
        around = (end - start).total_seconds() - worked
        yield TaskTime(instance["task_id"], instance["map_index"], before, around, worked)


def _work_seconds(events: Iterable["Event"]) -> dict[str, list[float]]:
    """The latest seconds of each step, of the clips by their index."""
    latest: dict[str, dict[int, float]] = {}
    for event in events:
        if event.event == JobEvent.STEP_FINISHED and event.step:
            latest.setdefault(event.step, {})[event.clip_index or 0] = event.detail["seconds"]
    return {step: [seconds[index] for index in sorted(seconds)] for step, seconds in latest.items()}


def _moment(instance: Mapping[str, Any], name: str) -> datetime:
    return datetime.fromisoformat(instance[name])
