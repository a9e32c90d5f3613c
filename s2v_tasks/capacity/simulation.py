"""Simulate the queue of many jobs on many GPUs: a discrete-event simulation with a seed.

Jobs arrive at random. They start by priority and age, at most `max_running_jobs` at a time. Their tasks need slots of
three pools: workers of Airflow, GPUs, and schedulers, which start each task. Waiting tasks get a slot by
`schemas.job.task_weight`, the rule of Airflow's policy. A task holds its slot while it waits for a scheduler.

A job is staged and planned on a worker, encoded on a GPU, rendered clip by clip along its chains, and finished on a
worker. A preempted clip continues at its last solver step. A failed clip starts again.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import quantiles

from s2v_tasks.capacity.demand import Demand, Job, Site
from s2v_tasks.schemas.job import Priority

MOST_RETRIES = 2  # of a failing clip, as `orchestration.retry_policy.OWN_FAILURES`
_RETRY_SECONDS = 10.0
_FIRST, _ENCODE, _RENDER, _LAST = 1, 3, 5, 6  # weights of the tasks within a run: later ones are larger
_TASKS_BEFORE, _TASKS_AFTER = 2, 5  # of a job on workers
_POD_VISITS = 2  # a task in a pod visits a worker when it begins and when it ends


class Pool:
    """Slots and the queue for them: the largest weight first, then first in, first out."""

    def __init__(self, slots: int, clock: Callable[[], float]) -> None:
        self.slots, self.used, self.used_seconds, self.longest = slots, 0, 0.0, 0
        self._clock, self._since, self._count = clock, 0.0, 0
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []

    def request(self, weight: int, then: Callable[[], None]) -> None:
        """Call `then` with a slot, now or later."""
        self._count += 1
        heapq.heappush(self._waiting, (-weight, self._count, then))
        self._give()
        self.longest = max(self.longest, len(self._waiting))

    def release(self) -> None:
        """Give a slot back."""
        self._use(-1)
        self._give()

    def _give(self) -> None:
        while self.used < self.slots and self._waiting:
            self._use(1)
            heapq.heappop(self._waiting)[2]()

    def _use(self, change: int) -> None:
        now = self._clock()
        self.used_seconds += self.used * (now - self._since)
        self._since, self.used = now, self.used + change


@dataclass
class Outcome:
    """The result: mean shares of the used slots while jobs arrived, and the seconds that jobs waited."""

    jobs: list[Job]
    shares: dict[str, float]  # GPUs, workers, schedulers, running jobs
    longest_queues: dict[str, int]
    solver_share: float  # of all GPU time while jobs arrived and until the last one ended
    seconds: float
    events: int

    @property
    def saturated(self) -> str:
        """Return the resource with the largest used share."""
        return max(self.shares, key=lambda name: self.shares[name])

    def waits(self, priority: Priority | None = None) -> list[float]:
        """Return the seconds from the arrival of each job to its first GPU, ascending."""
        chosen = [job for job in self.jobs if job.first_gpu is not None and priority in {None, job.priority}]
        return sorted(job.first_gpu - job.arrived for job in chosen if job.first_gpu is not None)

    def whole(self) -> list[float]:
        """Return the seconds from arrival to end of the jobs that succeeded, ascending."""
        return sorted(job.ended - job.arrived for job in self.jobs if job.ended is not None and not job.failed)


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of sorted values; 0 if there are none."""
    return values[0] if len(values) == 1 else quantiles(values, n=100)[percent - 1] if values else 0.0


@dataclass
class Simulation:
    """Processes the events in the order of their time until all jobs have ended."""

    site: Site
    demand: Demand
    jobs: list[Job] | None = None  # instead of arrivals at random
    now: float = 0.0
    solver_seconds: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0

    def run(self) -> Outcome:
        """Return the outcome."""
        site, self._rng = self.site, random.Random(self.demand.seed)
        slots = {"GPUs": site.gpus, "workers": site.workers, "schedulers": site.schedulers}
        self.pools = {
            name: Pool(n, lambda: self.now) for name, n in (slots | {"running": site.max_running_jobs}).items()
        }
        jobs = list(self.demand.arrivals(self._rng)) if self.jobs is None else self.jobs
        for job in jobs:
            self._after(job.arrived, lambda job=job: self._arrive(job))  # type: ignore[misc]
        shares: dict[str, float] = {}
        busy_until = max(job.arrived for job in jobs)
        while self._events:
            at, _, event = heapq.heappop(self._events)
            if at > busy_until and not shares:
                self.now = busy_until
                shares = self._shares()
            self.now = at
            event()
        queues = {name: pool.longest for name, pool in self.pools.items()}
        solver_share = self.solver_seconds / (site.gpus * self.now)
        return Outcome(jobs, shares or self._shares(), queues, solver_share, self.now, self._number)

    def _shares(self) -> dict[str, float]:
        for pool in self.pools.values():
            pool._use(0)
        return {name: pool.used_seconds / (pool.slots * self.now or 1.0) for name, pool in self.pools.items()}

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, event))

    def _arrive(self, job: Job) -> None:
        self.pools["running"].request(
            job.weight(0), lambda: self._on_worker(job, _FIRST, _TASKS_BEFORE, lambda: self._encode(job))
        )

    def _on_worker(self, job: Job, own: int, tasks: int, then: Callable[[], None]) -> None:
        """Run tasks one after the other on one worker."""
        site = self.site

        def begin() -> None:
            self._scheduled(tasks, lambda: self._after(tasks * site.task_seconds, end))

        def end() -> None:
            self.pools["workers"].release()
            then()

        self.pools["workers"].request(job.weight(own), begin)

    def _scheduled(self, tasks: int, then: Callable[[], None]) -> None:
        """Start tasks in the order of their requests; each takes the time of one scheduler."""

        def end() -> None:
            self.pools["schedulers"].release()
            then()

        self.pools["schedulers"].request(0, lambda: self._after(tasks * self.site.schedule_seconds, end))

    def _in_pod(self, job: Job, own: int, work: Callable[[], float], then: Callable[[], None]) -> None:
        """Hold a GPU for one task: `work` returns the seconds of the pod when it begins."""

        def begin() -> None:
            if job.first_gpu is None:
                job.first_gpu = self.now
            # Both visits of a worker come before the pod: the GPU is held during both, and their sum is the same.
            self._scheduled(_POD_VISITS, lambda: self.pools["workers"].request(job.weight(own), visit))

        def visit() -> None:
            self._after(_POD_VISITS * self.site.visit_seconds, leave)

        def leave() -> None:
            self.pools["workers"].release()
            self._after(work(), end)

        def end() -> None:
            self.pools["GPUs"].release()
            then()

        self.pools["GPUs"].request(job.weight(own), begin)

    def _encode(self, job: Job) -> None:
        def render() -> None:
            job.open_chains = len(job.chains)
            for clips in job.chains:
                self._render(job, clips, saved=0.0, failures=0)

        seconds = self.site.start_seconds + self.demand.encode_seconds
        self._in_pod(job, _ENCODE, lambda: seconds, render)

    def _render(self, job: Job, clips: list[float], *, saved: float, failures: int) -> None:
        """Render the remaining clips of a chain; `saved` seconds of the first are done."""
        made: list[Attempt] = []

        def work() -> float:
            made.append(self._attempt(clips[: self.demand.clips_per_pod], saved))
            return made[0].seconds

        def then() -> None:
            attempt = made[0]
            left = clips[attempt.finished :]
            self.solver_seconds += sum(clips[: attempt.finished])
            count = (0 if attempt.finished else failures) + attempt.failed
            if not left or count > MOST_RETRIES:
                job.failed = job.failed or bool(left)
                self._close_chain(job)
                return
            delay = _RETRY_SECONDS if attempt.failed or attempt.preempted else self.site.link_seconds
            self._after(delay, lambda: self._render(job, left, saved=attempt.saved, failures=count))

        self._in_pod(job, _RENDER, work, then)

    def _attempt(self, clips: list[float], saved: float) -> "Attempt":
        """Draw at random how a pod that renders these clips ends."""
        demand, rng, at = self.demand, self._rng, self.site.start_seconds
        rate = demand.preemptions_per_hour / 3600
        preempted_at = rng.expovariate(rate) if rate else float("inf")
        for number, seconds in enumerate(clips):
            need = seconds - saved
            failed_at = at + rng.random() * need if rng.random() < demand.failures else float("inf")
            if min(preempted_at, failed_at) < at + need:
                if failed_at < preempted_at:
                    return Attempt(failed_at, number, failed=True)
                step = seconds / demand.solver_steps
                kept = (saved + max(0.0, preempted_at - at)) // step * step
                return Attempt(preempted_at, number, saved=kept, preempted=True)
            at, saved = at + need, 0.0
        return Attempt(at, len(clips))

    def _close_chain(self, job: Job) -> None:
        job.open_chains -= 1
        if job.open_chains == 0:
            self._on_worker(job, _LAST, 1 if job.failed else _TASKS_AFTER, lambda: self._close(job))

    def _close(self, job: Job) -> None:
        job.ended = self.now
        self.pools["running"].release()


@dataclass(frozen=True)
class Attempt:
    """One pod: its seconds, the clips that it finished, and the seconds of the next clip that are saved."""

    seconds: float
    finished: int
    saved: float = 0.0
    failed: bool = False
    preempted: bool = False
