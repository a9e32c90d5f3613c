"""Compute counts per job (equal on every machine) and times (different) from the records of a benchmark."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from s2v_tasks.capacity.bench_airflow import Measured
from s2v_tasks.schemas.steps import PIPELINE

_COMMANDS = {step.command: step.name for step in PIPELINE}
_CALL = re.compile(r"\[http\.access\].* method=(\w+) path=(\S+) query=(\S*)")
_IN_TIME = ("heartbeat",)  # last path segments of calls that a running task repeats
_BUSY_LOOP_SECONDS = 0.05  # an idle loop of the scheduler is shorter


@dataclass(frozen=True)
class StepCount:
    """Counts of one process of a step; `polls` depend on its duration, the others do not."""

    step: str
    statements: int
    s3_reads: int
    s3_writes: int
    bytes_sent: int = field(compare=False)  # stored times and prompts differ by some bytes
    bytes_received: int = field(compare=False)
    polls: int = field(compare=False)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "StepCount":
        """Return the counts of a record of `StepRecorder`."""
        requests, sizes = record["requests"], record["bytes"]
        reads = requests.get("GET", 0) + requests.get("HEAD", 0)
        return cls(
            _COMMANDS[record["command"][0]],
            sum(record["statements"].values()),
            reads,
            sum(requests.values()) - reads,
            sizes.get("sent", 0),
            sizes.get("received", 0),
            record["polls"],
        )


@dataclass(frozen=True)
class JobCounts:
    """The overhead of one job outside the GPU, without the parts that depend on time."""

    processes: int
    task_instances: int
    tries: int
    api_calls: int
    statements: int
    s3_reads: int
    s3_writes: int
    bytes_sent: int = field(compare=False)  # stored times and prompts differ by some bytes
    bytes_received: int = field(compare=False)


def steps_of(records: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, StepCount]]]:
    """Return for each job its steps in the order of the pipeline, each with its first clip (-1: no clip)."""
    found: dict[str, list[tuple[int, StepCount]]] = {}
    for record in records:
        words = record["command"]
        if words and words[0] in _COMMANDS:
            clip = int(words[words.index("--clip-index") + 1]) if "--clip-index" in words else -1
            found.setdefault(words[words.index("--job-id") + 1], []).append((clip, StepCount.of(record)))
    order = [step.name for step in PIPELINE]
    return {job: sorted(steps, key=lambda item: (order.index(item[1].step), item[0])) for job, steps in found.items()}


def job_counts(steps: list[tuple[int, StepCount]], tasks: Sequence[Mapping[str, Any]], api_calls: int) -> JobCounts:
    """Return the sums over one job; `tasks` are its task instances, as Airflow stores them."""
    counts = [count for _, count in steps]
    return JobCounts(
        processes=len(counts),
        task_instances=len(tasks),
        tries=sum(task["try_number"] for task in tasks),
        api_calls=api_calls,
        statements=sum(count.statements for count in counts),
        s3_reads=sum(count.s3_reads for count in counts),
        s3_writes=sum(count.s3_writes for count in counts),
        bytes_sent=sum(count.bytes_sent for count in counts),
        bytes_received=sum(count.bytes_received for count in counts),
    )


def api_calls(log: Iterable[str], tasks: Iterable[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """Return for each job its calls of the API server, without heartbeats: method and kind → number.

    `log` is that of the API server, `tasks` are the task instances of all jobs.
    """
    jobs = {str(task["id"]): task["run_id"] for task in tasks}
    runs = set(jobs.values())
    found: dict[str, Counter[str]] = {run: Counter() for run in runs}
    for line in log:
        if (match := _CALL.search(line)) is None:
            continue
        method, path, query = match.groups()
        parts = path.split("/")
        job = next((jobs.get(part, part) for part in parts if part in jobs or part in runs), None)
        job = job or next((run for run in runs if f"run_ids={run}&" in f"{query}&"), None)
        if job is not None and parts[-1] not in _IN_TIME:
            kind = parts[2] if parts[2] == "xcoms" else parts[-1]
            found[job][f"{method} {kind}"] += 1
    return found


@dataclass(frozen=True)
class Times:
    """Times, valid for this machine only."""

    seconds_per_job: float  # of the whole benchmark, per job
    first_end_seconds: float  # from the submission of all jobs to the end of the first
    last_end_seconds: float
    loops: int
    loop_seconds_median: float  # of loops in which the scheduler had work
    loop_seconds_longest: float
    loop_cpu_seconds_per_task: float  # of all loops while the jobs ran
    cpu_seconds_per_job: dict[str, float]  # by component of Airflow, beyond an idle Airflow
    idle_cpu_share: dict[str, float]  # of a core, without a job
    transactions_per_job: dict[str, float]  # by database, above those without a job
    idle_transactions_per_minute: dict[str, float]
    wal_bytes_per_job: float


def times(measured: Measured) -> Times:
    """Return the times of a benchmark."""
    idle, busy, num_jobs = measured.idle, measured.busy, measured.load.jobs
    begin = min(run["queued_at"] for run in measured.runs)
    ends = sorted((run["end_date"] - begin).total_seconds() for run in measured.runs)
    loops = [loop["seconds"] for loop in measured.loops if loop["seconds"] >= _BUSY_LOOP_SECONDS]

    def above_idle(busy_value: float, idle_value: float) -> float:
        return round((busy_value - idle_value * busy.at / idle.at) / num_jobs, 2)

    return Times(
        seconds_per_job=round(busy.at / num_jobs, 1),
        first_end_seconds=round(ends[0], 1),
        last_end_seconds=round(ends[-1], 1),
        loops=len(loops),
        loop_seconds_median=round(median(loops), 3) if loops else 0.0,
        loop_seconds_longest=round(max(loops), 3) if loops else 0.0,
        loop_cpu_seconds_per_task=round(sum(loop["cpu_seconds"] for loop in measured.loops) / len(measured.tasks), 4),
        cpu_seconds_per_job={k: above_idle(v, idle.cpu_seconds[k]) for k, v in busy.cpu_seconds.items()},
        idle_cpu_share={k: round(v / idle.at, 3) for k, v in idle.cpu_seconds.items()},
        transactions_per_job={k: above_idle(v, idle.transactions[k]) for k, v in busy.transactions.items()},
        idle_transactions_per_minute={k: round(60 * v / idle.at) for k, v in idle.transactions.items()},
        wal_bytes_per_job=above_idle(busy.wal_bytes, idle.wal_bytes),
    )
