"""Clips are measured once they are durable; with `quality: gate` a bad one is rendered again before the next starts."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.metadata.clips import ClipRepository
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.perception.faces import FaceFinder
from s2v_tasks.rendering import order as clip_order
from s2v_tasks.rendering.measuring import ClipMeasurer
from s2v_tasks.rendering.take_gate import TakeGate
from s2v_tasks.rendering.takes import take_seed
from s2v_tasks.runtime import attempts
from s2v_tasks.runtime.context import run_step
from s2v_tasks.schemas.facts import ClipFacts
from s2v_tasks.schemas.quality import TakeRecord
from s2v_tasks.schemas.report import Report
from s2v_tasks.schemas.steps import Step
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.kept_outputs import KeptOutputs
from s2v_tasks.storage.layout import JobLayout, output_sidecar_uri
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.storage.take_records import TakeRecords

JOB = "step-by-step"
LAYOUT = JobLayout(JOB)
CONFIG = Path(__file__).parents[2] / "config"
SAMPLES = Path(__file__).parents[1] / "samples"
GATE = {"quality": "gate", "num_clip": 3}
PLANNED = [7, 8, 9]  # seeds of the three clips
Run = Callable[..., dict[str, Any]]
Assemble = Callable[[], None]
Found = Callable[[], Job]
Spoil = Callable[..., list[int]]
RETAKE = take_seed(PLANNED[1], 1)


@pytest.fixture(autouse=True)
def _picture(store: ObjectStore) -> None:
    """The tiny networks draw a blur of the picture, in which only some faces are still found."""
    store.upload(SAMPLES / "woman.jpg", "portrait.jpg", "image/jpeg")


@pytest.fixture
def one_limit(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of which only the share of frames with a face can fail: the tiny networks draw blur."""
    for path in CONFIG.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    limits = yaml.safe_load((CONFIG / "quality.yaml").read_text(encoding="utf-8"))
    for measure, value in limits.items():
        if isinstance(value, dict) and measure != "face_share":
            value.update({name: None for name in value if name.startswith("fail")})
    (tmp_path / "quality.yaml").write_text(yaml.safe_dump(limits), encoding="utf-8")
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """A function that spoils the noise of seeds; it returns the list of all seeds that are drawn from then on.

    The clips of `flat` seeds are of one colour, those of `wild` seeds show a face in a few frames.
    """
    draw = S2VPipeline._draw_noise

    def spoil(*flat: int, wild: int = -1) -> list[int]:
        drawn: list[int] = []

        def spoiled(pipeline: S2VPipeline, seed: int, shape: tuple[int, ...]) -> Any:
            drawn.append(seed)
            noise = draw(pipeline, seed, shape)
            return noise + 20 if seed in flat else noise * 40 if seed == wild else noise

        monkeypatch.setattr(S2VPipeline, "_draw_noise", spoiled)
        return drawn

    return spoil


def record(store: ObjectStore, clip_index: int) -> TakeRecord:
    found = TakeRecords(store, LAYOUT).read(clip_index)
    assert found is not None
    return found


def prepare(run: Run, **fields: Any) -> None:
    for step in ("stage_inputs", "plan_clips", "encode_conditions"):
        run(step, **(fields if step == "stage_inputs" else {}))


def test_a_report_has_the_measures_of_each_clip(
    run: Run, store: ObjectStore, settings: Settings, assemble: Assemble, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are in quality.json, PostgreSQL, events, report and sidecar; clips are measured once."""
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
    """`quality: off` leaves no trace."""
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
    """The reason is an event and a sentence of the report; the next start measures the clip."""

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
    """Clip 1 has one retake, clip 2 continues it, and the cost of the first take is wasted."""
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


def run_job(job_id: str, step: str, clip_index: int | None = None, **arguments: Any) -> dict[str, Any]:
    body = importlib.import_module(f"s2v_tasks.steps.{step}").run
    return run_step(body, step=Step(step), job_id=job_id, clip_index=clip_index, **arguments)


@pytest.mark.usefixtures("one_limit")
def test_the_video_is_that_of_an_unspoiled_job_with_the_seed_of_the_retake(
    run: Run, store: ObjectStore, assemble: Assemble, spoil: Spoil, request_json: Callable[..., str]
) -> None:
    """A job whose clip 1 has the seed of the retake from the start has the same video, to the byte."""

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
    """The inherited clip is the retake, with its record; a clip whose takes are not decided is not inherited."""
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
    with pytest.raises(TransientError, match=r"Clip 1 is not decided: expected a kept take in .*quality\.json"):
        run("render_clip", 2)


class Killed(BaseException):
    """Stands for SIGKILL: no handler of errors sees it."""


def before(owner: type, name: str, when: Callable[..., bool]) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a function that makes the first call of a method for which `when` is true end the process."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        method = getattr(owner, name)

        def killing(*arguments: Any, **named: Any) -> Any:
            if when(*arguments, **named):
                raise Killed
            return method(*arguments, **named)

        patch.setattr(owner, name, killing)

    return plant


def always(*_: Any, **__: Any) -> bool:
    return True


def of_take(number: int) -> Callable[..., bool]:
    """Return a condition on the arguments of a method that has a record or the number of a take."""

    def matches(_self: Any, *arguments: Any, **_named: Any) -> bool:
        last = [len(value.takes) - 1 for value in arguments if isinstance(value, TakeRecord)]
        return number in (last or [value for value in arguments if isinstance(value, int)])

    return matches


def stores(name: str, retake: bool) -> Callable[..., bool]:
    """Return a condition: an object of this name is stored while there is a superseded take, or none."""

    def matches(store: ObjectStore, *arguments: Any) -> bool:
        key = next(value for value in arguments if isinstance(value, str))
        has_take = store.has_any(f"jobs/{JOB}/clips/0001/superseded/")
        return key == f"jobs/{JOB}/clips/0001/{name}" and has_take == retake

    return matches


def loaded_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loader that loads for its first call: all renders of a test have the same networks."""
    loaded: list[Any] = []

    def load_once(*arguments: Any, **named: Any) -> Any:
        if not loaded:
            loaded.append(load(*arguments, **named))
        return loaded[0]

    return load_once


def gives_way(artifacts: ArtifactStore, manifest_key: str, _fingerprint: str) -> bool:
    return artifacts.store.exists(manifest_key)


# Points of a kill, and how many more times than once the retake is then rendered: it was not durable.
KILLS = {
    "before the first take is measured": (before(ClipMeasurer, "take", of_take(0)), 0),
    "before its measures are stored": (before(TakeRecords, "write", of_take(0)), 0),
    "after its measures are stored": (before(TakeGate, "_report", of_take(0)), 0),
    "before its attempt ends": (before(ClipRepository, "end_take", always), 0),
    "before the retake is rendered": (before(S2VPipeline, "_draw_noise", lambda _p, seed, _s: seed == RETAKE), 0),
    "before the first take gives way": (before(ArtifactStore, "_retire", gives_way), 1),
    "after the first take gave way": (before(ObjectStore, "upload", stores("clip.mp4", retake=True)), 1),
    "before the manifest of the retake": (before(ObjectStore, "put_bytes", stores("manifest.json", retake=True)), 1),
    "before the retake is measured": (before(ClipMeasurer, "take", of_take(1)), 0),
    "before its decision is stored": (before(TakeRecords, "write", of_take(1)), 0),
    "before its quality is recorded": (before(ClipRepository, "record_quality", always), 0),
    "before its success is recorded": (before(ClipRepository, "succeed", always), 0),
}


@pytest.mark.usefixtures("one_limit")
def test_a_kill_between_two_takes_changes_neither_bytes_nor_takes(
    run: Run, store: ObjectStore, spoil: Spoil, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the process is killed, the next one decides the same and renders nothing that is durable."""
    monkeypatch.setattr(attempts, "_SILENT_SECONDS", 0.0)
    monkeypatch.setattr(clip_order, "load_pipeline", loaded_once(clip_order.load_pipeline))
    prepare(run, **GATE)
    drawn = spoil(PLANNED[1])
    run("render_clip", 0, count=2)
    keys = [LAYOUT.clip(1), LAYOUT.motion(1)]
    expected = [store.get_bytes(key) for key in keys]
    for point, (plant, num_lost) in KILLS.items():
        store.delete_all([item.uri for item in store.listing(f"jobs/{JOB}/clips/0001/")])
        num_attempts = len(found().attempts)
        drawn.clear()
        with monkeypatch.context() as patch:
            patch.setattr(KeptOutputs, "put", lambda *_: None)  # a killed process keeps nothing
            plant(patch)
            with pytest.raises(Killed):
                run("render_clip", 1)
        run("render_clip", 1)
        assert [store.get_bytes(key) for key in keys] == expected, point
        assert [(take.seed, take.fails) for take in record(store, 1).takes] == [(8, True), (RETAKE, False)], point
        assert (drawn.count(8), drawn.count(RETAKE)) == (1, 1 + num_lost), point
        outcomes = [attempt.outcome for attempt in found().attempts[num_attempts:]]
        assert outcomes.count("succeeded") == 1, point
        assert set(outcomes) <= {"succeeded", "superseded", "lost"}, point
        assert found().clips[1].status == "succeeded", point


@pytest.mark.usefixtures("one_limit")
def test_the_best_of_bad_takes_becomes_the_clip_again(
    run: Run,
    store: ObjectStore,
    spoil: Spoil,
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
    give_up: Callable[[], None],
) -> None:
    """A kill while it is put back changes nothing; with `after_retakes: stop` the job fails with its findings."""

    def is_decided(*_: Any) -> bool:
        takes = TakeRecords(store, LAYOUT).read(1)
        return takes is not None and takes.kept == 0

    monkeypatch.setattr(attempts, "_SILENT_SECONDS", 0.0)
    prepare(run, **GATE, max_retakes=1, after_retakes="stop")
    drawn = spoil(RETAKE, wild=PLANNED[1])
    run("render_clip", 0)
    with monkeypatch.context() as patch:
        before(ArtifactStore, "_restore", is_decided)(patch)
        with pytest.raises(Killed):
            run("render_clip", 1)
    with pytest.raises(PermanentError, match=r"Clip 1 fails the quality gate in all 2 takes.*take 0: a face in"):
        run("render_clip", 1)
    assert drawn == [7, 8, RETAKE]
    assert "fails the quality gate" in str(found().reason)
    give_up()
    prepare(run, **GATE, max_retakes=1)
    assert run("render_clip", 1)["reused"]
    run("render_clip", 2)
    assert drawn == [7, 8, RETAKE, 9]
    takes = record(store, 1)
    assert takes.kept == 0
    assert takes.takes[0].score > takes.takes[1].score
    outcomes = [attempt.outcome for attempt in found().attempts if attempt.clip_index == 1]
    assert outcomes == ["succeeded", "superseded"]


@pytest.mark.usefixtures("one_limit")
def test_a_budget_ends_the_retakes(run: Run, store: ObjectStore, spoil: Spoil) -> None:
    """With a limit that the job has used up, the first take stays, and the job goes on."""
    prepare(run, **GATE, max_gpu_seconds=12)
    drawn = spoil(PLANNED[1])
    assert run("render_clip", 0, count=3)["count"] == 3
    assert RETAKE not in drawn
    assert record(store, 1).kept == 0
