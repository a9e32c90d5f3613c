"""The report of a benchmark of the orchestration: counts, times, and the time between two clips.

The time between two clips of a chain is split from the end of one clip to the first solver step of the next. Its start
and end come from attempts in the metadata store, the times between from Airflow's task instances, and the parts of a
process from `capacity.recording`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from statistics import mean
from typing import Any

from s2v_tasks.capacity.airflow_state import Open
from s2v_tasks.capacity.bench_airflow import Measured
from s2v_tasks.capacity.counting import JobCounts, StepCount, Times, api_calls, job_counts, steps_of, times
from s2v_tasks.schemas.steps import CLIP_RENDER_TASK, CLIP_WAIT_TASK, RENDER_CLIP

Attempts = Mapping[int, tuple[float, float]]  # clip → start and end
_CLIP_TASKS = (CLIP_WAIT_TASK, CLIP_RENDER_TASK)
_MOMENTS = ("created", "imported", "attempt", "loaded", "first_step")


@dataclass(frozen=True)
class Link:
    """Seconds between two clips that two processes render, in order.

    ending: the first process reports and ends, and Airflow notices; sensor: until the wait of the second clip has
    ended; scheduling: until a worker takes its task; worker: until the process of the step is started; imports: Python
    and libraries; inputs: settings, manifests, fingerprints; weights: an attempt begins, the networks are loaded;
    first_step: inputs are encoded and the first solver step is computed, compiled if that is set.
    """

    ending: float
    sensor: float
    scheduling: float
    worker: float
    imports: float
    inputs: float
    weights: float
    first_step: float

    @property
    def seconds(self) -> float:
        """Return the sum of the parts."""
        return round(float(sum(asdict(self).values())), 2)


@dataclass(frozen=True)
class Report:
    """`steps`, `counts` and `calls` are equal in all jobs except those in `differing`."""

    steps: list[tuple[str, StepCount]]
    counts: JobCounts
    calls: dict[str, int]
    triggers: int  # of all jobs
    differing: list[str]
    polls_per_minute: float  # statements of a render that repeat in time: heartbeats, looking for a cancellation
    times: Times
    open_idle: Open
    open_busy: Open
    link: Link | None
    inside_seconds: float | None  # between clips of one process (clips_per_pod)


def report(measured: Measured) -> Report:
    """Return the report of a benchmark."""
    job_ids = measured.load.job_ids()
    steps = steps_of(measured.steps)
    tasks = {job: [task for task in measured.tasks if task["run_id"] == job] for job in job_ids}
    calls = api_calls(measured.api_log, measured.tasks)
    counts = {job: (job_counts(steps[job], tasks[job], calls[job].total()), steps[job], calls[job]) for job in job_ids}
    between: list[Link] = []
    inside: list[float] = []
    for job in job_ids:
        renders = dict(render_moments(measured.steps, job))
        attempts = {clip: (start, end) for clip, start, end in measured.attempts[job]}
        between += links(attempts, tasks[job], renders)
        inside += seconds_inside(attempts, renders)
    first = job_ids[0]
    return Report(
        steps=[(count.step if clip < 0 else f"{count.step} {clip}", count) for clip, count in steps[first]],
        counts=counts[first][0],
        calls=dict(calls[first].most_common()),
        triggers=measured.num_triggers,
        differing=[job for job in job_ids if counts[job] != counts[first]],
        polls_per_minute=_polls_per_minute(measured),
        times=times(measured),
        open_idle=measured.open_idle,
        open_busy=measured.open_busy,
        link=mean_link(between),
        inside_seconds=round(mean(inside), 2) if inside else None,
    )


def _polls_per_minute(measured: Measured) -> float:
    records = [record for record in measured.steps if record["command"][:1] == [RENDER_CLIP.command]]
    minutes: float = sum(record["moments"]["ended"] - record["moments"]["attempt"] for record in records) / 60
    polls: int = sum(record["polls"] for record in records)
    return round(polls / minutes, 1)


def render_moments(records: Iterable[Mapping[str, Any]], job_id: str) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Yield first clip and moments of each process that rendered clips of a job. `records`: of `capacity.recording`."""
    for record in records:
        words = record["command"]
        if words[:1] == [RENDER_CLIP.command] and job_id in words:
            yield int(words[words.index("--clip-index") + 1]), record["moments"]


def links(
    attempts: Attempts, tasks: Iterable[Mapping[str, Any]], renders: Mapping[int, Mapping[str, float]]
) -> Iterator[Link]:
    """Yield the links of one job of one chain.

    `tasks`: its task instances, as Airflow stores them; `renders`: first clip of a process → its moments.
    """
    rows = list(tasks)
    waits, runs = ({t["map_index"]: t for t in rows if t["task_id"] == name} for name in _CLIP_TASKS)
    for position, clip in list(enumerate(sorted(renders)))[1:]:
        times = [
            attempts[clip - 1][1],
            runs[position - 1]["end_date"].timestamp(),
            waits[position]["end_date"].timestamp(),
            runs[position]["start_date"].timestamp(),
            *(renders[clip][name] for name in _MOMENTS),
        ]
        # The wait may see the end of a render before Airflow writes its time down.
        yield Link(*(later - earlier for earlier, later in pairwise(accumulate(times, max))))


def seconds_inside(attempts: Attempts, renders: Iterable[int]) -> list[float]:
    """Return the seconds between clips of one process: from the end of an attempt to the start of the next one."""
    first = set(renders)
    return [attempts[clip][0] - attempts[clip - 1][1] for clip in sorted(attempts) if clip and clip not in first]


def mean_link(found: list[Link]) -> Link | None:
    """Return the mean of each part; None without a link."""
    if not found:
        return None
    return Link(*(round(mean(values), 2) for values in zip(*(asdict(link).values() for link in found), strict=True)))
