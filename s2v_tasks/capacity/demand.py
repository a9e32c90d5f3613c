"""Inputs of the simulation of the queue: an installation, and the jobs that arrive at it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from s2v_tasks.schemas.job import PRIORITIES, Priority, task_weight

DAY = 86400.0


@dataclass(frozen=True)
class Site:
    """An installation, with its times in seconds.

    `task`: a step on a worker; `visit`: a worker starts or ends a pod; `schedule`: a scheduler handles one task;
    `start`: from the start of a pod to its first solver step; `link`: from the end of a clip until the next clip
    requests a GPU.
    """

    gpus: int
    workers: int
    schedulers: int
    max_running_jobs: int
    task_seconds: float = 3.0
    visit_seconds: float = 2.0
    schedule_seconds: float = 0.35
    start_seconds: float = 60.0
    link_seconds: float = 3.0


@dataclass(frozen=True)
class Demand:
    """Jobs of one kind. `clips` and `clip_seconds` are means; the value of each job and clip is random."""

    jobs_per_day: float
    seconds: float = DAY  # in which jobs arrive
    clips: float = 3.0
    clip_seconds: float = 200.0
    encode_seconds: float = 20.0
    chains: int = 1
    clips_per_pod: int = 1
    shares: tuple[float, float, float] = (0.2, 0.7, 0.1)  # of the priorities, in ascending order
    preemptions_per_hour: float = 0.0  # of a GPU in use
    failures: float = 0.0  # share of attempts at a clip
    solver_steps: int = 30
    seed: int = 0

    def arrivals(self, rng: random.Random) -> Iterator["Job"]:
        """Yield the jobs in the order of their arrival."""
        now = rng.expovariate(self.jobs_per_day / DAY)
        while now < self.seconds:
            (priority,) = rng.choices(PRIORITIES, self.shares)
            clips = max(self.chains, round(rng.triangular(1, 2 * self.clips - 1, self.clips)))
            seconds = [rng.triangular(0.8, 1.2, 1.0) * self.clip_seconds for _ in range(clips)]
            yield Job(now, priority, [seconds[chain :: self.chains] for chain in range(self.chains)])
            now += rng.expovariate(self.jobs_per_day / DAY)


@dataclass(eq=False)
class Job:
    """One job: the seconds of the clips of each chain, and its outcome."""

    arrived: float
    priority: Priority
    chains: list[list[float]]
    first_gpu: float | None = None
    ended: float | None = None
    failed: bool = False
    open_chains: int = 0

    def weight(self, own: int) -> int:
        """Return the weight of a task of this job."""
        return task_weight(self.priority, self.arrived, own)
