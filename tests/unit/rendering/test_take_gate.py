"""Check the gate of retakes without a render: budgets, and the effects of the kept take."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.rendering.takes import TakeGate, can_afford_retake
from s2v_tasks.schemas.manifest import Manifest, Producer
from s2v_tasks.schemas.plan import InheritedClip
from s2v_tasks.schemas.quality import Finding, ReferenceLook, Take, TakeRecord
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.storage.layout import JobLayout
from tests.unit.rendering.test_leader import clip, plan
from tests.unit.rendering.test_takes import MEASURED, take

FIELDS = {"image_uri": "s3://bucket/a.png", "audio_uri": "s3://bucket/a.wav", "prompt": "A woman speaks."}
# The plan of four clips is estimated at 12.5 GPU-seconds and 0.10 USD, the same for each clip.
CLIP_SECONDS = 12.5 / 4


def context(used: float = 0.0, wasted: float = 0.0, **settings: float | None) -> Any:
    """Return a context whose job has spent so many GPU-seconds; all jobs together have spent more."""

    def spending(_group: str, *, job_id: str | None = None) -> list[Any]:
        others = [] if job_id == "job-1" else [SimpleNamespace(used_gpu_seconds=1e6, wasted_gpu_seconds=1e6)]
        return [SimpleNamespace(used_gpu_seconds=used, wasted_gpu_seconds=wasted), *others]

    limits = {"max_gpu_seconds": None, "max_cost": None} | settings
    return SimpleNamespace(
        job_id="job-1",
        settings=SimpleNamespace(**limits),
        metadata=SimpleNamespace(costs=SimpleNamespace(spending=spending)),
        store=None,
        layout=JobLayout("job-1"),
    )


@pytest.mark.parametrize(
    ("ctx", "request_fields", "index", "affordable"),
    [
        (context(used=1e9), {}, 1, True),
        (context(used=CLIP_SECONDS), {"max_gpu_seconds": 4 * CLIP_SECONDS}, 1, True),
        (context(used=CLIP_SECONDS + 0.01), {"max_gpu_seconds": 4 * CLIP_SECONDS}, 1, False),
        (context(wasted=CLIP_SECONDS + 0.01), {"max_gpu_seconds": 4 * CLIP_SECONDS}, 1, False),
        (context(used=3 * CLIP_SECONDS), {"max_gpu_seconds": 4 * CLIP_SECONDS}, 3, True),
        (context(used=3 * CLIP_SECONDS + 0.01), {"max_gpu_seconds": 4 * CLIP_SECONDS}, 3, False),
        (context(used=CLIP_SECONDS), {"max_cost": 0.1}, 1, True),
        (context(used=CLIP_SECONDS), {"max_cost": 0.099}, 1, False),
        (context(used=CLIP_SECONDS, max_gpu_seconds=12.0), {}, 1, False),
        (context(used=CLIP_SECONDS, max_cost=0.099), {}, 1, False),
        (context(used=CLIP_SECONDS, max_gpu_seconds=12.0), {"max_gpu_seconds": 99}, 1, False),
        (context(used=CLIP_SECONDS, max_gpu_seconds=99.0), {"max_gpu_seconds": 12}, 1, False),
        (context(used=CLIP_SECONDS, max_gpu_seconds=99.0), {"max_gpu_seconds": 98}, 1, True),
    ],
)
def test_a_retake_needs_room_for_itself_and_all_clips_behind_it(
    ctx: Any, request_fields: dict[str, Any], index: int, affordable: bool
) -> None:
    """The tightest limit counts, against all GPU-seconds of the job and the estimate of the remaining clips."""
    asked = parse_request(FIELDS | request_fields)
    assert can_afford_retake(ctx, plan(), clip(index), asked) is affordable


def test_inherited_clips_need_no_room() -> None:
    """The estimate of a rerun covers its rendered clips only."""
    inherited = tuple(
        InheritedClip(clip_index=index, fingerprint=f"f{index}", source_job_id="job-0", source_manifest_key="m.json")
        for index in range(3)
    )
    asked = parse_request(FIELDS | {"max_gpu_seconds": 12.5})
    assert can_afford_retake(context(), plan(inherited=inherited), clip(3), asked)
    assert not can_afford_retake(context(used=0.1), plan(inherited=inherited), clip(3), asked)


def test_a_price_of_nothing_is_no_limit() -> None:
    """A budget in money is ignored if a GPU costs nothing."""
    free = plan()
    free = free.model_copy(update={"estimate": free.estimate.model_copy(update={"cost": 0.0})})
    assert can_afford_retake(context(used=1e6), free, clip(1), parse_request(FIELDS | {"max_cost": 0.1}))


def record(*takes: Take, kept: int | None = None) -> TakeRecord:
    return TakeRecord(clip_index=1, fingerprint="f", takes=takes, kept=kept)


def gate(ctx: Any = None, **fields: Any) -> TakeGate:
    return TakeGate(ctx or context(), plan(), parse_request(FIELDS | fields))


def bad(number: int) -> Take:
    """Return a take with a finding of each level."""
    findings = (
        Finding(level="fail", measure="face_share", message="no face", penalty=11.0),
        Finding(level="warn", measure="skin_difference", message="a little pale", penalty=1.5),
    )
    return Take(take=number, seed=number, fingerprint=f"f{number}", measured=MEASURED, findings=findings,
                measure_seconds=0.0)  # fmt: skip


def test_a_bad_clip_ends_a_job_that_says_so() -> None:
    """Only the gate with `after_retakes: stop` fails the job, with the failing findings and without warnings."""
    takes = record(bad(0), bad(1), kept=0)
    with pytest.raises(PermanentError, match=r"Clip 1 fails .* in all 2 takes.* take 0: no face\. See") as stopped:
        gate(quality="gate", after_retakes="stop").check(clip(1), takes)
    assert "pale" not in str(stopped.value)
    gate(quality="gate", after_retakes="stop").check(clip(1), record(take(0, 1.0), kept=0))
    gate(quality="gate", after_retakes="stop").check(clip(1), None)
    with capture_logs() as lines:
        gate(quality="gate").check(clip(1), takes)
    assert [(line["event"], line["kept"], line["num_takes"], line["problems"]) for line in lines] == [
        ("retakes_used_up", 0, 2, "no face")
    ]
    with capture_logs() as lines:
        gate(quality="report", after_retakes="stop").check(clip(1), takes)
    assert lines == []


@pytest.mark.parametrize(
    ("fields", "takes", "number"),
    [
        ({"quality": "gate", "max_retakes": 2}, None, 0),
        ({"quality": "gate", "max_retakes": 2}, record(), 0),
        ({"quality": "gate", "max_retakes": 2}, record(bad(0)), 1),
        ({"quality": "gate", "max_retakes": 2}, record(bad(0), bad(1)), 2),
        ({"quality": "gate", "max_retakes": 1}, record(bad(0), bad(1)), 0),
        ({"quality": "gate", "max_retakes": 2}, record(bad(0), take(1)), 1),
        ({"quality": "gate", "max_retakes": 2, "max_gpu_seconds": 1}, record(take(0, 12), take(1, 11)), 1),
        ({"quality": "report", "max_retakes": 2}, record(bad(0)), 0),
    ],
)
def test_the_next_take_is_the_kept_one_once_that_is_decided(
    fields: dict[str, Any], takes: TakeRecord | None, number: int
) -> None:
    """A bad take is followed by another while retakes and budget last; without the gate there is one take."""
    assert gate(**fields).next_take(clip(1), takes) == number


LOOK = ReferenceLook(
    num_faces=1, face_height=0.5, skin_lab=None, background_lab=(40.0, 0.0, 0.0), contrast=40.0, sharpness=1.0
)


class Records:
    """The records of a job in memory, and which were written."""

    def __init__(self, found: TakeRecord | None = None) -> None:
        self.found, self.written = found, []

    def begin(self, clip_index: int, fingerprint: str) -> TakeRecord:
        return self.found or TakeRecord(clip_index=clip_index, fingerprint=fingerprint)

    def write(self, record: TakeRecord) -> None:
        self.written.append(record)

    def kept(self, made: Manifest) -> Any:
        take = self.found.kept_take if self.found else None
        return (self.found, take) if take and take.fingerprint == made.fingerprint else None


def with_records(found: TakeRecord | None = None, *, measures: Take | None = None, **fields: Any) -> Any:
    """Return a gate over records in memory that measures `measures`, and the events that it records."""
    ctx, events = context(), []
    ctx.metadata.events = SimpleNamespace(record=lambda *place, **event: events.append((*place, event)))
    made = gate(ctx, **fields)
    records: Any = Records(found)
    measurer: Any = SimpleNamespace(take=lambda *_: measures, reference=LOOK)
    made._records, made._measurer = records, measurer
    return made, records, events


def manifest(number: int) -> Manifest:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    return Manifest(
        step="render_clip", job_id="job-1", clip_index=1, fingerprint=f"f{number}",
        producer=Producer(package_version="1"),
        inputs={}, outputs={}, started_at=now, finished_at=now, facts={"start_frame": 0, "end_frame": 16},
    )  # fmt: skip


def test_only_without_retakes_a_failed_measure_is_tried_again() -> None:
    """With the gate, a failed measure is kept, so that a later process decides the same."""
    failed = record(take(0, measured=False), kept=0)
    assert with_records(failed, quality="off")[0].begin(clip(1), "f") is None
    again = with_records(failed, quality="report")[0].begin(clip(1), "f")
    assert (again.takes, again.fingerprint, again.clip_index) == ((), "f", 1)
    assert with_records(failed, quality="gate")[0].begin(clip(1), "f") == failed
    good = record(take(0), kept=0)
    assert with_records(good, quality="report")[0].begin(clip(1), "f") == good


def test_a_new_take_is_measured_and_recorded() -> None:
    """The record has the take, the look of the reference picture and the decision; the event has the findings."""
    one, records, events = with_records(measures=bad(0), quality="report")
    judged = one.judge(clip(1), record(), manifest(0), None)
    assert judged == TakeRecord(clip_index=1, fingerprint="f", reference=LOOK, takes=(bad(0),), kept=0)
    assert records.written == [judged]
    ((job_id, name, event),) = events
    assert (job_id, name, event["clip_index"]) == ("job-1", "clip_measured", 1)
    assert event["detail"] == {
        "take": 0, "kept": 0, "seconds": 0.0, "findings": ["fail: no face", "warn: a little pale"]
    }  # fmt: skip


def test_a_take_without_measures_has_a_reason() -> None:
    """The record has the reason and keeps the known look of the reference picture."""
    failed = Take(take=0, seed=0, fingerprint="f0", error="OSError: gone", measure_seconds=0.0)
    one, records, events = with_records(measures=failed, quality="report")
    judged = one.judge(clip(1), record(), manifest(0), None)
    assert (judged.reference, judged.kept, records.written) == (None, 0, [judged])
    assert events[0][2]["detail"]["error"] == "OSError: gone"


def test_a_known_take_is_not_measured_again() -> None:
    """Only a missing decision is stored, and nothing is stored if clips are not measured."""
    known = record(take(0), kept=0)
    one, records, events = with_records(measures=bad(1), quality="gate")
    assert one.judge(clip(1), known, manifest(0), None) == known
    assert (records.written, events) == ([], [])
    assert one.judge(clip(1), record(take(0)), manifest(0), None) == known
    assert (records.written, events) == ([known], [])
    assert one.judge(clip(1), None, manifest(0), None) is None


def test_a_clip_waits_for_the_decision_about_the_clip_before() -> None:
    """With retakes, a clip waits until the kept take of its predecessor is decided."""
    for undecided in (None, record(bad(0)), record(bad(0), take(1), kept=1)):
        with pytest.raises(
            TransientError, match=r"Clip 1 has no chosen take yet: .*Run `s2v render-clip --clip-index 1`"
        ):
            with_records(undecided, quality="gate")[0].check_decided(manifest(0))
        with_records(undecided, quality="report")[0].check_decided(manifest(0))
    with_records(record(bad(0), take(1), kept=1), quality="gate")[0].check_decided(manifest(1))
