"""Check `s2v bench tasks`: seconds of tasks outside the work of their steps."""

from datetime import UTC, datetime, timedelta
from typing import Any

from s2v_tasks.cli.bench import TaskTime, task_times
from s2v_tasks.metadata.tables import Event

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def instance(task_id: str, start: float | None, end: float | None, map_index: int = -1) -> dict[str, Any]:
    dates = {"start_date": start, "end_date": end}
    moments = {n: None if s is None else (NOON + timedelta(seconds=s)).isoformat() for n, s in dates.items()}
    return {"task_id": task_id, "map_index": map_index} | moments


def finished(step: str, seconds: float, clip_index: int | None = None) -> Event:
    detail = {"seconds": seconds}
    return Event(job_id="talk", clip_index=clip_index, step=step, event="step_finished", detail=detail, at=NOON)


def test_the_time_of_a_task_is_split_at_the_work_of_its_step() -> None:
    """The time before a task starts at the latest end of an earlier one; clips are sorted by index."""
    instances = [
        instance("stage_inputs", 1, 5),
        instance("clip.render", 20, 30, 1),
        instance("clip.render", 8, 18, 0),
        instance("clip.wait", 19, 19.5, 1),
        instance("publish", None, None),
    ]
    events = [
        finished("stage_inputs", 3.5),
        finished("render_clip", 6, clip_index=4),
        finished("render_clip", 7, clip_index=2),
        finished("stage_inputs", 2.5),
    ]
    assert list(task_times(instances, events)) == [
        TaskTime("stage_inputs", -1, before=0.0, around=1.5, work=2.5),
        TaskTime("clip.render", 0, before=3.0, around=3.0, work=7),
        TaskTime("clip.wait", 1, before=1.0, around=0.5, work=0.0),
        TaskTime("clip.render", 1, before=0.5, around=4.0, work=6),
    ]
