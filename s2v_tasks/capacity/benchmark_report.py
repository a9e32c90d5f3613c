"""The report of a benchmark of the orchestration: counts, times, and the time between two clips."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from s2v_tasks.capacity.bench_airflow import Measured
from s2v_tasks.capacity.counting import JobCounts, StepCount, Times, api_calls, job_counts, steps_of, times
from s2v_tasks.capacity.links import Link, links, mean_link, seconds_inside
from s2v_tasks.schemas.steps import RENDER_CLIP


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
        renders = dict(_renders(measured.steps, job))
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
        link=mean_link(between),
        inside_seconds=round(mean(inside), 2) if inside else None,
    )


def _polls_per_minute(measured: Measured) -> float:
    records = [record for record in measured.steps if record["command"][:1] == [RENDER_CLIP.command]]
    minutes: float = sum(record["moments"]["ended"] - record["moments"]["attempt"] for record in records) / 60
    polls: int = sum(record["polls"] for record in records)
    return round(polls / minutes, 1)


def _renders(records: Iterable[Mapping[str, Any]], job_id: str) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Yield first clip and moments of each process that rendered clips of a job."""
    for record in records:
        words = record["command"]
        if words[:1] == [RENDER_CLIP.command] and job_id in words:
            yield int(words[words.index("--clip-index") + 1]), record["moments"]
