"""Check the parts of the time between two clips against cases that are split by hand."""

from datetime import UTC, datetime
from typing import Any

from s2v_tasks.capacity.benchmark_report import Link, links, mean_link, seconds_inside


def row(task_id: str, map_index: int, start: float, end: float) -> dict[str, Any]:
    dates = {"start_date": datetime.fromtimestamp(start, UTC), "end_date": datetime.fromtimestamp(end, UTC)}
    return {"task_id": task_id, "map_index": map_index} | dates


def moments(*times: float) -> dict[str, float]:
    return dict(zip(("created", "imported", "attempt", "loaded", "first_step"), times, strict=True))


def test_a_link_is_split_at_the_moments_of_its_tasks_and_its_process() -> None:
    """With two processes of two clips each, the parts between clip 1 and clip 2 add up to the whole time."""
    tasks = [
        row("clip.render", 0, 5, 61),
        row("clip.render", 1, 66, 100),
        row("clip.wait", 0, 1, 2),
        row("clip.wait", 1, 1, 63),
        row("stitch", -1, 101, 102),
    ]
    renders = {0: moments(6, 8, 9, 9.5, 11), 2: moments(68, 75, 76, 80, 82)}
    attempts = {0: (9.0, 40.0), 1: (40.5, 60.0), 2: (76.0, 90.0), 3: (90.5, 99.0)}
    (link,) = links(attempts, tasks, renders)
    assert link == Link(1, 2, 3, 2, 7, 1, 4, 2)
    assert link.seconds == 82 - 60
    assert seconds_inside(attempts, renders) == [0.5, 0.5]


def test_a_wait_that_ends_before_the_render_has_no_negative_time() -> None:
    """The trigger may see the success before Airflow stores the end of the task: the part is then 0."""
    tasks = [row("clip.render", 0, 5, 22), row("clip.render", 1, 23, 50), row("clip.wait", 1, 1, 21.5)]
    renders = {0: moments(6, 7, 8, 9, 10), 1: moments(24, 25, 26, 27, 28)}
    (link,) = links({0: (8.0, 20.0), 1: (26.0, 49.0)}, tasks, renders)
    assert (link.ending, link.sensor, link.scheduling) == (2, 0, 1)


def test_the_mean_is_that_of_each_part() -> None:
    """The mean is computed for each part; a job of one clip has none."""
    assert mean_link([Link(1, 1, 1, 1, 1, 1, 1, 1), Link(3, 1, 1, 1, 1, 1, 1, 2)]) == Link(2, 1, 1, 1, 1, 1, 1, 1.5)
    assert mean_link([]) is None
