"""Measure many viewers of the Videos page on a separate Airflow, while jobs run and after they have ended.

Periods without and with viewers alternate, so that both see the same load. Afterwards the memory of the API server is
measured while it answers thousands of requests of all kinds.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import mean, median

import psutil

from s2v_tasks.capacity.airflow_state import Reading
from s2v_tasks.capacity.bench_airflow import BenchAirflow, Load, bench_airflow
from s2v_tasks.capacity.browsing import PAGE, POLL, Answer, AnswerTimes, Browser, answer_times, watch
from s2v_tasks.capacity.simulation import percentile
from s2v_tasks.errors import TransientError
from s2v_tasks.log import get_logger
from s2v_tasks.metadata.store import open_metadata

_BROWSERS = 4  # at the same time, while the memory is read
_RANGE = {"Range": "bytes=0-65535"}


@dataclass(frozen=True)
class Watching:
    """Viewers and measurement windows: `rounds` pairs of one window without and one with viewers."""

    viewers: int = 200
    rounds: int = 2
    window_seconds: float = 60.0
    requests: int = 10_000
    warm_up: int = 1_000


@dataclass(frozen=True)
class Window:
    """The measurements of one window."""

    has_viewers: bool
    meters: Reading
    busy_share: float  # of all cores, by all programs
    heartbeat_age: float  # the longest
    loops: list[dict[str, float]]
    answers: list[Answer] = field(repr=False)


@dataclass(frozen=True)
class SchedulerTimes:
    """The scheduler in all windows of one kind. `cpu_shares`: components of Airflow, of a core."""

    loops: int
    loop_seconds_mean: float
    loop_seconds_p95: float
    loop_cpu_seconds_mean: float
    longest_heartbeat_age: float
    cpu_shares: dict[str, float]
    busy_share: float


@dataclass(frozen=True)
class ViewersReport:
    """`memory_bytes`: requests answered → resident memory of the API server."""

    alone: SchedulerTimes
    watched: SchedulerTimes
    polls: AnswerTimes
    pages: AnswerTimes
    memory_bytes: dict[int, int]
    memory_answers: AnswerTimes


def measure_viewers(load: Load, watching: Watching) -> ViewersReport:
    """Run the jobs with simulated viewers, and measure the memory when they have ended."""
    with bench_airflow(load) as airflow:
        airflow.submit()
        _wait_for_clips(airflow, load)
        windows = [
            _window(airflow, load, watching, has_viewers=has_viewers)
            for _ in range(watching.rounds)
            for has_viewers in (False, True)
        ]
        if airflow.has_ended():
            raise TransientError("The jobs ended before the last window: expected longer ones; raise --clip-seconds.")
        airflow.wait()
        addresses = _addresses(load.job_ids())
        memory, answers = memory_of(airflow.api_server(), airflow.installation.url, addresses, watching)
    return viewers_report(windows, memory, answers)


def _wait_for_clips(airflow: BenchAirflow, load: Load) -> None:
    """Return when a clip is rendered."""
    deadline = time.monotonic() + load.most_seconds
    while True:
        with open_metadata(airflow.settings) as metadata:
            cards = metadata.gallery.cards(load.job_ids())
        if any(card.active is not None for card in cards):
            return
        if time.monotonic() > deadline or any(card.has_ended for card in cards):
            states = ", ".join(f"{card.job_id} {card.status}" for card in cards)
            raise TransientError(f"No clip is rendered within {load.most_seconds:.0f} s: expected one. Jobs: {states}.")
        time.sleep(1)


def _window(airflow: BenchAirflow, load: Load, watching: Watching, *, has_viewers: bool) -> Window:
    ended, ages = threading.Event(), [0.0]
    observer = threading.Thread(target=_observe_heartbeat, args=(airflow, ended, ages))
    observer.start()
    psutil.cpu_percent()
    before = airflow.state.read()
    answers: list[Answer] = []
    if has_viewers:
        answers = watch(airflow.installation.url, load.job_ids(), watching.viewers, watching.window_seconds)
    else:
        time.sleep(watching.window_seconds)
    after, busy = airflow.state.read(), psutil.cpu_percent() / 100
    ended.set()
    observer.join()
    loops = airflow.loops(before.at, after.at)
    get_logger().info("bench_window", has_viewers=has_viewers, answers=len(answers), loops=len(loops))
    return Window(has_viewers, after.since(before), busy, max(ages), loops, answers)


def _observe_heartbeat(airflow: BenchAirflow, ended: threading.Event, ages: list[float]) -> None:
    while not ended.wait(1):
        ages.append(airflow.state.heartbeat_age())


def _addresses(job_ids: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Return URLs of all kinds of answers, with the headers to send."""
    found: list[tuple[str, dict[str, str]]] = []
    for job_id in job_ids:
        job = f"/s2v/job/{job_id}"
        found += [("/s2v/videos", {}), ("/s2v/videos?status=succeeded&text=portrait", {}), (job, {})]
        found += [(f"{job}/state.json", {}), (f"/s2v/videos/changes.json?jobs={','.join(job_ids)}", {})]
        found += [(f"{job}/{name}", _RANGE) for name in ("video.mp4", "clips/0.mp4", "speech.wav")]
        found += [(f"{job}/{name}", {}) for name in ("poster.jpg", "waveform.json", "contact-sheet.jpg", "picture.png")]
    return found


def memory_of(
    server: psutil.Process, url: str, addresses: Sequence[tuple[str, dict[str, str]]], watching: Watching
) -> tuple[dict[int, int], list[Answer]]:
    """Return the memory of a server after the warm-up and after each further thousand requests, and the answers."""
    readings: dict[int, int] = {}
    answers: list[Answer] = []
    total = watching.warm_up + watching.requests
    with ThreadPoolExecutor(_BROWSERS) as pool:
        while len(answers) < total:
            begin = len(answers)
            number = min(watching.warm_up if begin == 0 else 1000, total - begin)
            parts = pool.map(
                _ask,
                [url] * _BROWSERS,
                [
                    [addresses[k % len(addresses)] for k in range(begin + browser, begin + number, _BROWSERS)]
                    for browser in range(_BROWSERS)
                ],
            )
            answers += [answer for part in parts for answer in part]
            readings[len(answers)] = sum(part.memory_info().rss for part in [server, *server.children(recursive=True)])
            get_logger().info("bench_memory", requests=len(answers), megabytes=readings[len(answers)] // 1_000_000)
    return readings, answers


def _ask(url: str, addresses: Sequence[tuple[str, dict[str, str]]]) -> list[Answer]:
    browser = Browser(url)
    answers = [browser.get(path, PAGE, **headers)[0] for path, headers in addresses]
    browser.close()
    return answers


def viewers_report(windows: Sequence[Window], memory: dict[int, int], answers: Sequence[Answer]) -> ViewersReport:
    """Return the figures of a benchmark."""
    watched = [window for window in windows if window.has_viewers]
    given = [answer for window in watched for answer in window.answers]
    seconds = sum(window.meters.at for window in watched)
    return ViewersReport(
        alone=scheduler_times([window for window in windows if not window.has_viewers]),
        watched=scheduler_times(watched),
        polls=answer_times(given, POLL, seconds),
        pages=answer_times(given, PAGE, seconds),
        memory_bytes=memory,
        memory_answers=answer_times(answers, PAGE, sum(answer.seconds for answer in answers) / _BROWSERS),
    )


def scheduler_times(windows: Sequence[Window]) -> SchedulerTimes:
    """Return the figures of the scheduler over these windows."""
    loops = sorted(loop["seconds"] for window in windows for loop in window.loops)
    seconds = sum(window.meters.at for window in windows)
    components = windows[0].meters.cpu_seconds
    return SchedulerTimes(
        loops=len(loops),
        loop_seconds_mean=mean(loops),
        loop_seconds_p95=percentile(loops, 95),
        loop_cpu_seconds_mean=mean(loop["cpu_seconds"] for window in windows for loop in window.loops),
        longest_heartbeat_age=max(window.heartbeat_age for window in windows),
        cpu_shares={name: sum(window.meters.cpu_seconds[name] for window in windows) / seconds for name in components},
        busy_share=median(window.busy_share for window in windows),
    )
