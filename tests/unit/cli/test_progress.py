"""Check the progress of a job as the command line shows it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from s2v_tasks.cli.watch import clock, job_progress
from s2v_tasks.metadata.tables import Attempt, Clip, Event, Job

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def clip(clip_index: int, status: str, **values: Any) -> Clip:
    facts: dict[str, Any] = dict.fromkeys(Clip.__dataclass_fields__) | {
        "clip_index": clip_index,
        "status": status,
        "start_frame": 80 * clip_index,
        "end_frame": 80 * clip_index + 80,
        "attempts": 0 if status == "pending" else 1,
        "progress_steps": 40,
        "reused": False,
        "updated_at": NOW,
    }
    return Clip(**facts | values)


def event(name: str, exit_code: int | None = None) -> Event:
    detail = {} if exit_code is None else {"exit_code": exit_code, "error": "why"}
    return Event(id=1, job_id="talk", clip_index=None, step="encode_conditions", event=name, detail=detail, at=NOW)


def job(*clips: Clip, status: str = "running", events: tuple[Event, ...] = ()) -> Job:
    values: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__) | {"job_id": "talk", "status": status}
    return Job(**values | {"clips": clips, "events": events, "attempts": (), "artifacts": (), "approvals": ()})


def test_steps_are_counted_over_the_whole_plan() -> None:
    """The bar counts the steps of finished, running and pending clips, and never starts again."""
    now = job_progress(
        job(
            clip(0, "succeeded", render_seconds=80.0, progress_step=38),
            clip(1, "rendering", progress_step=10, eta_seconds=60.0, gpu_memory_bytes=3 * 2**30, attempts=2),
            clip(2, "pending"),
        )
    )
    assert (now.steps_done, now.steps_total, now.clips_done, now.clips_total) == (50, 120, 1, 3)
    assert now.eta_seconds == pytest.approx(70 * 2.0)
    assert now.line == "talk  clip 2/3 step 10/40  3.0 GiB  50/120 steps, 1/3 clips  eta 0:02:20"


def test_clips_side_by_side_shorten_the_time_to_go() -> None:
    """Two chains that render at once halve the remaining time; a clip of another job does not count."""
    now = job_progress(
        job(
            clip(0, "succeeded", render_seconds=4000.0, source_job_id="parent"),
            clip(1, "rendering", progress_step=20, eta_seconds=20.0),
            clip(2, "rendering", progress_step=20, eta_seconds=20.0),
        )
    )
    assert now.eta_seconds == pytest.approx(20.0)


def test_the_time_to_go_is_known_from_the_first_step_to_the_last() -> None:
    """The remaining time is known also while the first clip is decoded, but not when only joining is left."""
    attempt = Attempt(
        job_id="talk",
        clip_index=0,
        attempt=1,
        started_at=NOW - timedelta(seconds=400),
        finished_at=None,
        gpu_seconds=None,
        world_size=1,
        reason=None,
        node=None,
        outcome="running",
        step="render_clip",
        fingerprint=None,
    )
    decoding = job(clip(0, "rendering", progress_step=40, eta_seconds=0.0), clip(1, "pending"))
    assert job_progress(replace(decoding, attempts=(attempt,))).eta_seconds == pytest.approx(400)
    stitching = job(clip(0, "succeeded", render_seconds=80.0), clip(1, "succeeded", render_seconds=80.0))
    assert job_progress(stitching).eta_seconds is None


def test_before_the_first_clip_the_step_that_is_done_is_named() -> None:
    """Before the first clip, and without a plan, the line names the last finished step."""
    now = job_progress(job(events=(event("step_finished"),)))
    assert now.line == "talk  encode_conditions done"


@pytest.mark.parametrize(
    ("status", "events", "expected"),
    [
        ("succeeded", (event("step_failed", 75), event("step_finished")), 0),
        ("cancelled", (event("step_failed", 65),), 130),
        ("failed", (event("step_failed", 75), event("step_failed", 65)), 65),
        ("failed", (event("step_failed", 78),), 78),
        ("failed", (event("step_failed", 1),), 75),
        ("failed", (), 75),
    ],
)
def test_a_job_has_an_exit_code(status: str, events: tuple[Event, ...], expected: int) -> None:
    """The code is that of the last failure, 75 without a reported reason, and 130 after a cancel."""
    assert replace(job(), status=status, events=events).exit_code == expected


def test_remaining_time_is_shown_as_a_clock() -> None:
    """More than a day is shown in hours."""
    assert [clock(0.9), clock(61), clock(90061)] == ["0:00:00", "0:01:01", "25:01:01"]
