"""Check the simulation of the queue against cases that are computed by hand."""

from dataclasses import replace

import pytest

from s2v_tasks.capacity.demand import Demand, Job, Site
from s2v_tasks.capacity.simulation import Outcome, Simulation, percentile
from s2v_tasks.schemas.job import Priority

# One GPU and enough of everything else; a pod needs 10 s to its first step, a clip 100 s, the conditions 20 s.
SITE = Site(1, 8, 8, 99, task_seconds=1, visit_seconds=0, schedule_seconds=0, start_seconds=10, link_seconds=5)
DEMAND = Demand(1, encode_seconds=20)
BEFORE, ENCODED, CLIP, AFTER = 2, 30, 110, 5


def job(arrived: float, clips: int, priority: Priority = "normal", chains: int = 1) -> Job:
    return Job(arrived, priority, [[100.0] * clips for _ in range(chains)])


def play(*jobs: Job, site: Site = SITE, demand: Demand = DEMAND) -> Outcome:
    return Simulation(site, demand, list(jobs)).run()


def test_a_job_alone_takes_the_sum_of_its_parts() -> None:
    """2 s of staging and planning, encoding, two clips with a link between them, and 5 s to the end add up."""
    alone = job(7, 2)
    outcome = play(alone)
    assert alone.first_gpu == 7 + BEFORE
    assert alone.ended == 7 + BEFORE + ENCODED + CLIP + 5 + CLIP + AFTER
    assert outcome.whole() == [BEFORE + ENCODED + CLIP + 5 + CLIP + AFTER]
    assert outcome.solver_share == pytest.approx(200 / alone.ended)


def test_of_the_tasks_that_wait_the_older_run_goes_first() -> None:
    """The task of the older run gets a free GPU; a task of the other run uses it while the older has none."""
    first, second = job(0, 2), job(20, 1)
    play(first, second)
    # Until 32 the first job encodes, until 62 the second. Then both have a clip: first until 172, second until 282.
    # The second clip of the first job asks at 177, 5 s after its first, and gets the GPU at 282.
    assert second.first_gpu == BEFORE + ENCODED
    assert second.ended == 282 + AFTER
    assert first.ended == 282 + CLIP + AFTER


@pytest.mark.parametrize(("priority", "order"), [("high", [2, 1]), ("normal", [1, 2]), ("low", [1, 2])])
def test_a_higher_priority_gets_the_next_free_gpu(priority: Priority, order: list[int]) -> None:
    """Tasks are sorted as by Airflow's policy: priority, then age."""
    jobs = [job(0, 1), job(20, 1), job(40, 1, priority)]
    play(*jobs)
    ends = [(item.ended, number) for number, item in enumerate(jobs)]
    assert [number for _, number in sorted(ends)] == [0, *order]


def test_chains_render_at_the_same_time() -> None:
    """Two chains on two GPUs take as long as one chain on one."""
    both = job(0, 1, chains=2)
    play(both, site=replace(SITE, gpus=2))
    assert both.ended == BEFORE + ENCODED + CLIP + AFTER


def test_several_clips_of_a_pod_start_once() -> None:
    """With clips_per_pod 2, the second clip of a pod costs neither a link nor a start."""
    whole = job(0, 2)
    play(whole, demand=replace(DEMAND, clips_per_pod=2))
    assert whole.ended == BEFORE + ENCODED + 10 + 200 + AFTER


def test_the_limit_of_running_jobs_keeps_gpus_idle() -> None:
    """With one job at a time on two GPUs, the second job starts when the first has ended."""
    first, second = job(0, 1), job(0, 1)
    outcome = play(first, second, site=replace(SITE, gpus=2, max_running_jobs=1))
    one = BEFORE + ENCODED + CLIP + AFTER
    assert (first.ended, second.first_gpu, second.ended) == (one, one + BEFORE, 2 * one)
    assert outcome.longest_queues["running"] == 1


def test_a_scheduler_hands_tasks_over_one_after_the_other() -> None:
    """With 3 s per task, a job alone takes 3 s more for each of 7 tasks on workers and 4 visits of pods."""
    slow = job(0, 1)
    play(slow, site=replace(SITE, schedulers=1, schedule_seconds=3))
    assert slow.ended == BEFORE + ENCODED + CLIP + AFTER + 3 * (7 + 4)


def test_a_clip_that_always_fails_ends_its_job_after_three_attempts() -> None:
    """A clip that fails by itself has three attempts, none of which is useful work."""
    broken = job(0, 2)
    outcome = play(broken, demand=replace(DEMAND, failures=1.0))
    assert (broken.failed, outcome.solver_share, outcome.whole()) == (True, 0.0, [])


def test_a_preempted_clip_continues_at_its_step() -> None:
    """A preemption adds a start and a delay, but no solver step is repeated."""
    kept = [job(0, 20)]
    demand = replace(DEMAND, preemptions_per_hour=60.0, solver_steps=1000, seed=3)
    outcome = play(*kept, demand=demand)
    undisturbed = play(job(0, 20)).seconds
    (ended,) = outcome.whole()
    assert not kept[0].failed
    assert outcome.solver_share == pytest.approx(2000 / outcome.seconds)
    # A preemption each 60 s of a pod, of which 10 s are its start: about 2000 / 50 more pods of 10 s and a delay of 10.
    assert undisturbed + 20 * 20 < ended < undisturbed + 60 * 20


def test_the_same_seed_gives_the_same_day() -> None:
    """Arrivals, lengths, preemptions and failures are drawn from one seed."""
    site, demand = Site(4, 8, 1, 16), Demand(500, preemptions_per_hour=0.2, failures=0.02, seed=5)
    first, again, other = (Simulation(site, replace(demand, seed=seed)).run() for seed in (5, 5, 6))
    assert (first.shares, first.waits(), first.events) == (again.shares, again.waits(), again.events)
    assert first.waits() != other.waits()
    assert all(item.ended is not None for item in first.jobs)


def test_more_jobs_than_gpus_can_render_saturate_the_gpus() -> None:
    """At twice the load the GPUs are always in use, and jobs wait for hours."""
    outcome = Simulation(Site(2, 8, 1, 16), Demand(2 * 2 * 86400 / 900)).run()
    assert outcome.saturated == "GPUs"
    assert outcome.shares["GPUs"] > 0.95
    assert percentile(outcome.waits(), 95) > 3600


def test_percentiles_of_few_values() -> None:
    """No value gives 0, one value gives itself."""
    assert (percentile([], 95), percentile([3.0], 50), percentile([1.0, 2.0, 3.0], 50)) == (0.0, 3.0, 2.0)
