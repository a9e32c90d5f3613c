"""`s2v bench viewers`: the effect of viewers of the Videos page on scheduler and API server."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from s2v_tasks.cli.bench import bench
from s2v_tasks.cli.terminal import AsJson, console, print_json

if TYPE_CHECKING:
    from s2v_tasks.capacity.browsing import AnswerTimes
    from s2v_tasks.capacity.viewers import SchedulerTimes, ViewersReport


@bench.command()
def viewers(
    number: Annotated[
        int, typer.Option("--viewers", min=1, max=2000, help="Number of open pages of simulated viewers.")
    ] = 200,
    rounds: Annotated[
        int, typer.Option(min=1, help="Number of pairs of a window without and a window with viewers.")
    ] = 2,
    window_seconds: Annotated[float, typer.Option(min=5.0, help="Time of each window.")] = 60.0,
    jobs: Annotated[int, typer.Option(min=1, max=24, help="Jobs that run meanwhile.")] = 4,
    clips: Annotated[int, typer.Option(min=1, max=9, help="Clips of each job.")] = 5,
    clip_seconds: Annotated[float, typer.Option(min=0.0, help="Simulated time of a clip, without computation.")] = 60.0,
    requests: Annotated[
        int, typer.Option(min=0, help="Requests during the measurement of memory, after the jobs.")
    ] = 10_000,
    warm_up: Annotated[int, typer.Option(min=1, help="Requests before the first measurement of memory.")] = 1_000,
    as_json: AsJson = False,
) -> None:
    """Simulate viewers of jobs on a separate Airflow; compare the scheduler with and without viewers in one run.

    Half of the viewers show the gallery, half the page of one job; each polls like the script of its page. The jobs
    must run longer than all windows. Then the memory of the API server is measured over requests of all kinds.
    """
    from s2v_tasks.capacity.bench_airflow import Load
    from s2v_tasks.capacity.viewers import Watching, measure_viewers

    load = Load(jobs=jobs, clips=clips, clip_seconds=clip_seconds, sample_steps=30, renders=jobs, workers=jobs + 2)
    report = measure_viewers(load, Watching(number, rounds, window_seconds, requests, warm_up))
    if as_json:
        print_json(asdict(report))
        return
    console.print(_table_of_answers(report))
    console.print(_table_of_the_scheduler(report.alone, report.watched))
    table = Table("requests", "memory of the API server")
    for answered, size in report.memory_bytes.items():
        table.add_row(f"{answered:,}", f"{size / 1e6:.1f} MB")
    console.print(table)


def _table_of_answers(report: "ViewersReport") -> Table:
    columns = ("per second", "median", "95 %", "longest", "304", "bytes of a 304", "bytes of a 200", "failures")
    table = Table("answers", *columns)
    rows = {"polls": report.polls, "reloads of pages": report.pages, "requests for the memory": report.memory_answers}
    for name, times in rows.items():
        table.add_row(name, *_cells(times))
    return table


def _cells(times: "AnswerTimes") -> list[str]:
    seconds = (times.median_seconds, times.p95_seconds, times.longest_seconds)
    return [
        f"{times.per_second:.1f}",
        *(f"{1000 * value:.0f} ms" for value in seconds),
        f"{times.unchanged_share:.1%}",
        f"{times.unchanged_bytes:.0f}",
        f"{times.changed_bytes:.0f}",
        str(times.failures),
    ]


def _table_of_the_scheduler(alone: "SchedulerTimes", watched: "SchedulerTimes") -> Table:
    table = Table("", "without viewers", "with viewers", "ratio")

    def add(name: str, values: tuple[float, float], form: str) -> None:
        ratio = f"{values[1] / values[0]:.2f}" if values[0] else ""
        table.add_row(name, *(form.format(value) for value in values), ratio)

    add("loop of the scheduler, mean", (alone.loop_seconds_mean, watched.loop_seconds_mean), "{:.4f} s")
    add("loop of the scheduler, 95 %", (alone.loop_seconds_p95, watched.loop_seconds_p95), "{:.4f} s")
    add("CPU of a loop, mean", (alone.loop_cpu_seconds_mean, watched.loop_cpu_seconds_mean), "{:.4f} s")
    add("loops", (alone.loops, watched.loops), "{:.0f}")
    add("longest age of its heartbeat", (alone.longest_heartbeat_age, watched.longest_heartbeat_age), "{:.1f} s")
    for name, share in alone.cpu_shares.items():
        add(f"{name}, of a core", (share, watched.cpu_shares[name]), "{:.1%}")
    add("all programs, of all cores", (alone.busy_share, watched.busy_share), "{:.1%}")
    return table
