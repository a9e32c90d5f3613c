"""Split the time between two clips of a chain: from the end of one to the first solver step of the next.

The start and the end come from attempts in the metadata store, the times between from Airflow's task instances, and the
parts of a process from `capacity.recording`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from statistics import mean
from typing import Any

from s2v_tasks.schemas.steps import CLIP_RENDER_TASK, CLIP_WAIT_TASK

Attempts = Mapping[int, tuple[float, float]]  # clip → start and end
_MOMENTS = ("created", "imported", "attempt", "loaded", "first_step")


@dataclass(frozen=True)
class Link:
    """Seconds between two clips that two processes render, in order.

    ending: the first process reports and ends, and Airflow notices; sensor: until the wait of the second clip has
    ended; scheduling: until a worker takes its task; worker: until the process of the step is started; imports: Python
    and libraries; inputs: settings, manifests, fingerprints; weights: an attempt begins, the networks are loaded;
    first_step: inputs are encoded and the first solver step is computed, compiled where that is set.
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


_CLIP_TASKS = (CLIP_WAIT_TASK, CLIP_RENDER_TASK)


def seconds_inside(attempts: Attempts, renders: Iterable[int]) -> list[float]:
    """Return the seconds between clips of one process: from the end of an attempt to the start of the next one."""
    first = set(renders)
    return [attempts[clip][0] - attempts[clip - 1][1] for clip in sorted(attempts) if clip and clip not in first]


def mean_link(found: list[Link]) -> Link | None:
    """Return the mean of each part; None without a link."""
    if not found:
        return None
    return Link(*(round(mean(values), 2) for values in zip(*(asdict(link).values() for link in found), strict=True)))
