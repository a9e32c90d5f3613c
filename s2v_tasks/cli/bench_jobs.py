"""`s2v bench orchestration` and `s2v bench queue`: overhead of jobs outside the GPU, and simulation of the queue."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from s2v_tasks.cli.bench import bench
from s2v_tasks.cli.terminal import AsJson, console, print_json
from s2v_tasks.schemas.job import PRIORITIES

if TYPE_CHECKING:
    from s2v_tasks.capacity.benchmark_report import Report
    from s2v_tasks.capacity.counting import JobCounts, StepCount
    from s2v_tasks.capacity.simulation import Outcome


@bench.command()
def orchestration(
    jobs: Annotated[int, typer.Option(min=1, max=1000, help="Jobs that are submitted at once.")] = 2,
    clips: Annotated[int, typer.Option(min=1, max=9, help="Clips of each job, in one chain.")] = 2,
    clip_seconds: Annotated[float, typer.Option(min=0.0, help="Simulated time of a clip, without computation.")] = 15.0,
    render: Annotated[
        bool, typer.Option("--render", help="Render with tiny networks, instead of only waiting for --clip-seconds.")
    ] = False,
    clips_per_pod: Annotated[int, typer.Option(min=1, max=9, help="Like the request field clips_per_pod.")] = 1,
    renders: Annotated[int, typer.Option(min=1, help="Clips rendered at the same time, like S2V_LOCAL_RENDERS.")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Tasks that Airflow runs at the same time.")] = 4,
    idle_seconds: Annotated[float, typer.Option(min=1.0, help="Time without jobs, measured first.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Run jobs on a separate embedded Airflow and count the overhead of each job outside the GPU.

    Steps, stores and Airflow are real, in a temporary folder; only the networks are replaced. For the same --clips and
    --clips-per-pod the counts are always equal; times depend on the machine. docs/capacity.md explains them.
    """
    from s2v_tasks.capacity.bench_airflow import Load, measure
    from s2v_tasks.capacity.benchmark_report import report

    load = Load(
        jobs=jobs,
        clips=clips,
        clip_seconds=None if render else clip_seconds,
        clips_per_pod=clips_per_pod,
        renders=renders,
        workers=workers,
        idle_seconds=idle_seconds,
    )
    result = report(measure(load))
    if as_json:
        print_json(asdict(result))
        return
    console.print(_table_of_steps(result))
    _print_counts(result)
    _print_times(result)
    _print_links(result)


def _table_of_steps(result: "Report") -> Table:
    columns = ("statements", "S3 reads", "S3 writes", "bytes sent", "bytes received")
    table = Table("process", *columns, title="One job")
    for name, count in result.steps:
        table.add_row(name, *_cells(count))
    table.add_row(f"{result.counts.processes} processes", *_cells(result.counts), style="bold")
    return table


def _cells(count: "StepCount | JobCounts") -> list[str]:
    values = (count.statements, count.s3_reads, count.s3_writes, count.bytes_sent, count.bytes_received)
    return [f"{value:,}" for value in values]


def _print_counts(result: "Report") -> None:
    calls = ", ".join(f"{number} {name}" for name, number in result.calls.items())
    console.print(
        f"Task instances {result.counts.task_instances}, tries {result.counts.tries}, triggers of all jobs "
        f"{result.triggers}. API calls {result.counts.api_calls}: {calls}."
    )
    console.print(f"While a clip is rendered: {result.polls_per_minute:g} statements per minute.")
    if result.differing:
        console.print(
            f"[yellow]Jobs whose counts differ from those of the first: {', '.join(result.differing)}.[/yellow]"
        )


def _print_times(result: "Report") -> None:
    times = result.times
    table = Table("Airflow", "CPU seconds per job", "share of a core without a job")
    for name, seconds in times.cpu_seconds_per_job.items():
        table.add_row(name, f"{seconds:.1f}", f"{times.idle_cpu_share[name]:.3f}")
    console.print(table)
    for name, most in result.open_busy.connections.items():
        before = result.open_idle.connections.get(name, 0)
        console.print(f"Database {name}: at most {most} connections at once; {before} without a job.")
    console.print(f"Airflow: at most {result.open_busy.triggers} triggers at once.")
    for name, number in times.transactions_per_job.items():
        idle = times.idle_transactions_per_minute[name]
        console.print(f"Database {name}: {number:.0f} transactions per job; {idle} per minute without a job.")
    console.print(
        f"Write-ahead log: {times.wal_bytes_per_job / 1e6:.2f} MB per job. Scheduler: {times.loops} busy loops, median "
        f"{times.loop_seconds_median:.3f} s, longest {times.loop_seconds_longest:.3f} s; "
        f"{times.loop_cpu_seconds_per_task:.3f} CPU seconds per task."
    )
    console.print(f"First job ended after {times.first_end_seconds:g} s, last after {times.last_end_seconds:g} s.")


def _print_links(result: "Report") -> None:
    if result.link is not None:
        table = Table(*asdict(result.link), "sum", title="Seconds between two clips")
        table.add_row(*(f"{value:.1f}" for value in asdict(result.link).values()), f"{result.link.seconds:.1f}")
        console.print(table)
    if result.inside_seconds is not None:
        console.print(f"Seconds between two clips of one process: {result.inside_seconds:.1f}")


@bench.command()
def queue(
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs, or of groups that render one clip.")] = 1000,
    jobs_per_day: Annotated[float, typer.Option(min=1, help="Jobs that arrive in a day, at random times.")] = 100_000,
    hours: Annotated[float, typer.Option(min=0.1, help="Time in which jobs arrive.")] = 24.0,
    clips: Annotated[float, typer.Option(min=1, help="Clips of a job, mean.")] = 3.0,
    clip_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of the solver for a clip, mean.")] = 200.0,
    clips_per_pod: Annotated[int, typer.Option(min=1, help="Like the request field clips_per_pod.")] = 1,
    start_seconds: Annotated[float, typer.Option(min=0, help="From the start of a pod to its first solver step.")] = 60,
    workers: Annotated[int, typer.Option(min=1, help="Worker slots of Airflow.")] = 64,
    schedulers: Annotated[int, typer.Option(min=1, help="Replicas of the scheduler.")] = 8,
    schedule_seconds: Annotated[float, typer.Option(min=0, help="Time of a scheduler for one task.")] = 0.35,
    max_running_jobs: Annotated[
        int, typer.Option(min=1, help="Jobs running at the same time, like S2V_MAX_RUNNING_JOBS.")
    ] = 1600,
    preemptions_per_hour: Annotated[float, typer.Option(min=0, help="Preemptions of one GPU per hour of use.")] = 0.05,
    failures: Annotated[float, typer.Option(min=0, max=1, help="Share of the attempts at a clip that fail.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Simulate the queue of an installation: utilisation of its resources, and the time that jobs wait.

    A day with 100,000 jobs takes about half a minute. Tasks are ordered by the rule of the real system.
    """
    from s2v_tasks.capacity.demand import Demand, Site
    from s2v_tasks.capacity.simulation import Simulation

    site = Site(
        gpus, workers, schedulers, max_running_jobs, start_seconds=start_seconds, schedule_seconds=schedule_seconds
    )
    demand = Demand(
        jobs_per_day,
        seconds=hours * 3600,
        clips=clips,
        clip_seconds=clip_seconds,
        clips_per_pod=clips_per_pod,
        preemptions_per_hour=preemptions_per_hour,
        failures=failures,
        seed=seed,
    )
    outcome = Simulation(site, demand).run()
    if as_json:
        print_json(_summary(outcome))
    else:
        _print_outcome(outcome)


def _summary(outcome: "Outcome") -> dict[str, object]:
    from s2v_tasks.capacity.simulation import percentile

    return {
        "jobs": len(outcome.jobs),
        "failed": sum(job.failed for job in outcome.jobs),
        "shares": outcome.shares,
        "longest_queues": outcome.longest_queues,
        "solver_share": outcome.solver_share,
        "saturated": outcome.saturated,
        "wait_seconds": {
            name: [round(percentile(outcome.waits(name), part), 1) for part in (50, 95, 99)] for name in PRIORITIES
        },
        "whole_seconds": [round(percentile(outcome.whole(), part), 1) for part in (50, 95, 99)],
    }


def _print_outcome(outcome: "Outcome") -> None:
    from s2v_tasks.capacity.simulation import percentile

    table = Table("part", "share in use", "longest queue")
    for name, share in outcome.shares.items():
        table.add_row(name, f"{share:.1%}", f"{outcome.longest_queues[name]}")
    console.print(table)
    waits = Table("from arrival to the first GPU", "median s", "95 % s", "99 % s")
    for name in reversed(PRIORITIES):
        waits.add_row(name, *(f"{percentile(outcome.waits(name), part):,.0f}" for part in (50, 95, 99)))
    waits.add_row("to the end, all", *(f"{percentile(outcome.whole(), part):,.0f}" for part in (50, 95, 99)))
    console.print(waits)
    failed = sum(job.failed for job in outcome.jobs)
    console.print(
        f"{len(outcome.jobs)} jobs, {failed} failed. Solver: {outcome.solver_share:.1%} of all GPU time until the last "
        f"job ended. First limit that is reached: {outcome.saturated}."
    )
