"""Check the measurement of stored clips, and `quality: gate`, which renders a bad clip again before the next."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Attempt
from s2v_tasks.perception.faces import FaceFinder
from s2v_tasks.rendering.measuring import ClipMeasurer
from s2v_tasks.schemas.manifest import ClipFacts
from s2v_tasks.schemas.report import Report
from s2v_tasks.settings import Settings
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.clip_state import TakeRecords
from s2v_tasks.storage.layout import JobLayout, output_sidecar_uri
from s2v_tasks.storage.s3 import ObjectStore
from tests.integration.conftest import run_job
from tests.integration.spoiled_clips import (
    GATE,
    JOB,
    LAYOUT,
    PLANNED,
    RETAKE,
    Assemble,
    Found,
    Run,
    Spoil,
    prepare,
    record,
)

pytestmark = pytest.mark.usefixtures("findable_face")


def test_a_report_has_the_measures_of_each_clip(
    run: Run, store: ObjectStore, settings: Settings, assemble: Assemble, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measures are in quality.json, PostgreSQL, events, report and sidecar, and are taken once per clip."""
    measured: list[int] = []
    take = ClipMeasurer.take

    def noted(measurer: ClipMeasurer, *arguments: Any) -> Any:
        measured.append(arguments[0].clip_index)
        return take(measurer, *arguments)

    monkeypatch.setattr(ClipMeasurer, "take", noted)
    prepare(run)
    for _ in range(2):
        for index in range(2):
            run("render_clip", index)
        assemble()
    assert measured == [0, 1]
    first, second = (record(store, index).takes[0] for index in range(2))
    assert first.measured is not None
    assert second.measured is not None
    assert (first.measured.seam, second.measured.seam is None) == (None, False)
    assert first.series is not None
    assert len(first.series.mouth) == 16
    job = found()
    takes = [clip.takes for clip in job.clips]
    assert [known.kept if known else None for known in takes] == [0, 0]
    assert takes[0] is not None
    assert takes[0].takes[0].measured == first.measured
    assert takes[0].takes[0].series is None
    assert [event.clip_index for event in job.events if event.event == "clip_measured"] == [0, 1]
    report = Report.model_validate_json(store.get_bytes(LAYOUT.report)).quality
    assert report is not None
    assert report.sentences[0].startswith("Faces: ")
    assert any(sentence.startswith("Clip 1 (fail): the face has ") for sentence in report.sentences)
    assert (report.num_takes, report.kept_takes) == ((1, 1), (0, 0))
    sidecar = json.loads(store.get_bytes(output_sidecar_uri(settings, JOB)))
    assert sidecar["quality"] == list(report.sentences)
    assert "quality" not in json.loads(store.get_bytes(LAYOUT.request))  # the default leaves requests as they were


def test_without_quality_nothing_is_measured(run: Run, store: ObjectStore, assemble: Assemble, found: Found) -> None:
    """With `quality: off` nothing is measured or stored."""
    prepare(run, quality="off")
    for index in range(2):
        run("render_clip", index)
    assemble()
    assert not store.exists(LAYOUT.clip_quality(0))
    assert [clip.quality for clip in found().clips] == [None, None]
    assert Report.model_validate_json(store.get_bytes(LAYOUT.report)).quality is None


def test_a_failure_to_measure_loses_no_clip(
    run: Run, store: ObjectStore, assemble: Assemble, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is in an event and in the report, and the next start measures the clip."""

    def missing(_finder: FaceFinder) -> None:
        raise ConfigurationError("face_landmark.tflite is missing.")

    prepare(run)
    with monkeypatch.context() as patch:
        patch.setattr(FaceFinder, "__init__", missing)
        run("render_clip", 0)
    (event,) = [event for event in found().events if event.event == "clip_measured"]
    assert event.detail["error"] == "ConfigurationError: face_landmark.tflite is missing."
    assert found().clips[0].status == "succeeded"
    run("render_clip", 1)
    assemble()
    report = Report.model_validate_json(store.get_bytes(LAYOUT.report)).quality
    assert report is not None
    assert "Clip 0 was not measured: ConfigurationError: face_landmark.tflite is missing." in report.sentences
    assert run("render_clip", 0)["reused"]
    assert record(store, 0).takes[0].measured is not None


@pytest.mark.usefixtures("one_limit")
def test_a_bad_clip_is_rendered_again_before_the_next_one(
    run: Run, store: ObjectStore, assemble: Assemble, found: Found, spoil: Spoil, metadata: MetadataStore
) -> None:
    """Clip 1 has one retake, clip 2 continues the retake, and the cost of the first take is wasted."""
    prepare(run, **GATE)
    drawn = spoil(PLANNED[1])
    for index in range(3):
        run("render_clip", index)
    assert drawn == [7, 8, RETAKE, 9]
    assert [(take.take, take.seed, take.fails) for take in record(store, 1).takes] == [(0, 8, True), (1, RETAKE, False)]
    artifacts = ArtifactStore(store)
    kept, last = (artifacts.read_manifest(LAYOUT.clip_manifest(index)) for index in (1, 2))
    assert kept is not None
    assert last is not None
    facts = kept.facts_as(ClipFacts)
    assert (facts.take, facts.seed, facts.chain_takes) == (1, RETAKE, (0, 1))
    assert last.inputs["motion"] == kept.outputs["motion"]
    first_take = record(store, 1).takes[0].fingerprint
    assert store.exists(LAYOUT.superseded_clip(1, first_take, "clip.mp4"))
    outcomes = [(a.clip_index, a.outcome) for a in found().attempts if a.clip_index is not None]
    assert outcomes == [(0, "succeeded"), (1, "superseded"), (1, "succeeded"), (2, "succeeded")]
    (spent,) = metadata.costs.spending("job", job_id=JOB)
    assert spent.wasted_gpu_seconds == pytest.approx(found().attempts[2].gpu_seconds)
    assert [clip.fingerprint for clip in found().clips][1] == kept.fingerprint
    assert sum(event.event == "clip_succeeded" for event in found().events) == 3
    assemble()
    report = Report.model_validate_json(store.get_bytes(LAYOUT.report)).quality
    assert report is not None
    assert (report.num_takes, report.kept_takes) == ((1, 2, 1), (0, 1, 0))
    assert any(sentence.startswith("Clip 1 was rendered 2 times; take 1 is kept") for sentence in report.sentences)


@pytest.mark.usefixtures("one_limit")
def test_the_video_is_that_of_an_unspoiled_job_with_the_seed_of_the_retake(
    run: Run, store: ObjectStore, assemble: Assemble, spoil: Spoil, request_json: Callable[..., str]
) -> None:
    """The video equals that of a job whose clip 1 has the seed of the retake from the start, byte for byte."""

    def rerun(job_id: str, parent: str, from_clip: int, base_seed: int, num_rendered: int) -> None:
        fields = {"parent_job_id": parent, "from_clip": from_clip, "base_seed": base_seed, "num_clip": 3}
        run_job(job_id, "stage_inputs", request_json=request_json(**fields))
        for step in ("plan_clips", "encode_conditions"):
            run_job(job_id, step)
        for index in range(from_clip, from_clip + num_rendered):
            run_job(job_id, "render_clip", index)

    prepare(run, **GATE)
    spoil(PLANNED[1])
    run("render_clip", 0, count=3)
    assemble()
    spoil()
    rerun("other-seed", JOB, from_clip=1, base_seed=RETAKE - 1, num_rendered=1)
    rerun("unspoiled", "other-seed", from_clip=2, base_seed=PLANNED[0], num_rendered=1)
    for step in ("stitch", "mux_audio"):
        run_job("unspoiled", step)
    assert store.get_bytes(JobLayout("unspoiled").muxed) == store.get_bytes(LAYOUT.muxed)


@pytest.mark.usefixtures("one_limit")
def test_a_rerun_continues_the_kept_take(
    run: Run, store: ObjectStore, metadata: MetadataStore, spoil: Spoil, request_json: Callable[..., str]
) -> None:
    """A rerun inherits the retake with its record; a clip whose takes are undecided is not inherited."""
    prepare(run, **GATE)
    spoil(PLANNED[1])
    run("render_clip", 0, count=2)
    child = JobLayout("child")
    fields = {"parent_job_id": JOB, "from_clip": 2, "prompt": "Other words."}
    run_job("child", "stage_inputs", request_json=request_json(**GATE | fields))
    for step in ("plan_clips", "encode_conditions"):
        run_job("child", step)
    run_job("child", "render_clip", 2)
    artifacts = ArtifactStore(store)
    clips = metadata.jobs.get("child")
    assert clips is not None
    assert [takes.kept if (takes := clip.takes) else None for clip in clips.clips] == [0, 1, 0]
    inherited, rendered = (artifacts.read_manifest(child.clip_manifest(index)) for index in (1, 2))
    assert inherited is not None
    assert rendered is not None
    assert inherited.facts_as(ClipFacts).take == 1
    assert rendered.inputs["motion"].sha256 == inherited.outputs["motion"].sha256
    assert rendered.facts_as(ClipFacts).chain_takes == (0, 1, 0)
    assert TakeRecords(store, child).kept(inherited) is not None
    store.put_bytes(
        LAYOUT.clip_quality(1),
        record(store, 1).model_copy(update={"kept": None}).model_dump_json().encode(),
        "application/json",
    )
    other = request_json(**GATE | fields | {"prompt": "More words."})
    run_job("second-child", "stage_inputs", request_json=other)
    with pytest.raises(PermanentError, match="Clip 1 of job step-by-step is not finished"):
        run_job("second-child", "plan_clips")
    with pytest.raises(TransientError, match=r"Clip 1 has no chosen take yet: expected one in .*quality\.json"):
        run("render_clip", 2)


@pytest.mark.usefixtures("one_limit")
def test_a_budget_ends_the_retakes(run: Run, store: ObjectStore, engine: sa.Engine, spoil: Spoil) -> None:
    """If the job has used its limit, the first take stays and the job continues."""
    prepare(run, **GATE, max_gpu_seconds=12)
    drawn = spoil(PLANNED[1])
    run("render_clip", 0)
    with engine.begin() as connection:  # as if it had taken as long on a slower machine
        connection.execute(sa.update(Attempt).where(Attempt.clip_index == 0).values(gpu_seconds=12.0))
    assert run("render_clip", 1, count=2)["count"] == 2
    assert RETAKE not in drawn
    assert record(store, 1).kept == 0
