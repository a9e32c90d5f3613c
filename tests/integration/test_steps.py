"""The steps one by one, in this process, against real PostgreSQL and S3 with the tiny snapshot."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.metadata.repository import Ledger
from s2v_tasks.schemas.manifest import Manifest
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.steps import clip_order
from s2v_tasks.steps.context import run_step
from s2v_tasks.steps.render_clip import clip_fingerprints
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

SAMPLES = Path(__file__).parents[1] / "samples"
JOB = "step-by-step"
LAYOUT = JobLayout(JOB)
REQUEST: dict[str, Any] = {
    "prompt": "A drawn portrait speaks.",
    "num_clip": 2,
    "infer_frames": 16,
    "sample_steps": 2,
    "size": "128*128",
    "base_seed": 7,
}
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(store: ObjectStore) -> Run:
    """Run one step of the job; `stage_inputs` takes fields of the request, the others their own options."""

    def run(step: str, clip_index: int | None = None, **fields: Any) -> dict[str, Any]:
        arguments = fields
        if step == "stage_inputs":
            uris = {"image_uri": store.uri("portrait.jpg"), "audio_uri": store.uri("speech.mp3")}
            arguments = {"request_json": json.dumps(uris | REQUEST | fields)}
        body = importlib.import_module(f"s2v_tasks.steps.{step}").run
        return run_step(body, step=step, job_id=JOB, clip_index=clip_index, **arguments)

    return run


def render(run: Run, **fields: Any) -> list[bool]:
    """From the request to the clips; which of the clips were reused."""
    run("stage_inputs", **fields)
    run("plan_clips")
    run("encode_conditions")
    return [run("render_clip", clip_index)["reused"] for clip_index in range(2)]


def assemble(run: Run) -> None:
    for step in ("stitch", "mux_audio", "validate", "publish"):
        run(step)


def test_running_everything_twice_changes_nothing(run: Run, store: ObjectStore, ledger: Ledger) -> None:
    """A finished job that runs again reuses each artifact, and its result stays the same to the byte."""
    assert render(run) == [False, False]
    assemble(run)
    before = {artifact.key: artifact.sha256 for artifact in found(ledger).artifacts}
    result, manifest = store.get_bytes(LAYOUT.result), store.get_bytes(LAYOUT.clip_manifest(1))
    assert "webhook_url" not in json.loads(result)["request"]  # it may hold a secret
    assert render(run) == [True, True]
    assemble(run)
    job = found(ledger)
    assert {artifact.key: artifact.sha256 for artifact in job.artifacts} == before
    assert (store.get_bytes(LAYOUT.result), store.get_bytes(LAYOUT.clip_manifest(1))) == (result, manifest)
    assert job.status == "succeeded"


def test_inputs_may_have_any_name(run: Run, store: ObjectStore) -> None:
    """They are found, staged and planned for under names with blanks, umlauts, emoji and what URLs would escape."""
    names = {"image_uri": "Fotos für Anna/Über uns 🎬 (1)?.JPG", "audio_uri": "Rede #1 & 50 % + 'neu'.mp3"}
    for name, sample in zip(names.values(), ("portrait.jpg", "speech.mp3"), strict=True):
        store.upload(SAMPLES / sample, name, "application/octet-stream")
        store.delete(sample)
    run("stage_inputs", **{field: store.uri(name) for field, name in names.items()})
    assert len(run("plan_clips")["clips"]) == 2
    with pytest.raises(PermanentError, match=r"has an empty, '\.' or '\.\.' segment"):
        run("stage_inputs", image_uri=store.uri("Fotos für Anna/../geheim.jpg"))


def test_another_prompt_renders_anew_and_the_old_one_is_not_lost(run: Run, store: ObjectStore) -> None:
    """A changed request takes back the old success, keeps the old clips aside, and finds them again."""
    render(run)
    assemble(run)
    old = store.get_bytes(LAYOUT.clip(1))
    assert render(run, prompt="Something else entirely.") == [False, False]
    assert not store.exists(LAYOUT.result)
    assert store.get_bytes(LAYOUT.clip(1)) != old
    assert render(run) == [True, True]
    assert store.get_bytes(LAYOUT.clip(1)) == old


def test_a_lost_clip_is_rendered_again_to_the_same_bytes(run: Run, store: ObjectStore) -> None:
    """An output that vanished is noticed; the clip that follows it is not rendered again."""
    render(run)
    first, second = (store.get_bytes(LAYOUT.clip(index)) for index in (0, 1))
    store.delete(LAYOUT.clip(0))
    assert render(run) == [False, True]
    assert (store.get_bytes(LAYOUT.clip(0)), store.get_bytes(LAYOUT.clip(1))) == (first, second)


def test_clips_rendered_by_one_process_are_those_of_a_process_each(
    run: Run, store: ObjectStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `count` the networks are loaded once, and not at all when every clip is there; the bytes are the same."""
    loads: list[int] = []
    load = clip_order.load_pipeline
    monkeypatch.setattr(clip_order, "load_pipeline", lambda *args, **named: loads.append(1) or load(*args, **named))
    render(run)
    assert len(loads) == 2
    outputs = [manifest(store, index).outputs for index in range(2)]
    for index in range(2):
        store.delete(LAYOUT.clip_manifest(index))
    assert run("render_clip", 0, count=2) == {"clip_index": 0, "count": 2, "reused": False}
    assert len(loads) == 3
    assert [manifest(store, index).outputs for index in range(2)] == outputs
    assert run("render_clip", 0, count=2)["reused"]
    assert len(loads) == 3
    assert [(clip.status, clip.attempts) for clip in found(ledger).clips] == [("succeeded", 2), ("succeeded", 2)]
    with pytest.raises(PermanentError, match="clip_index 1 with count 2: expected clips within 0 to 1"):
        run("render_clip", 1, count=2)


def test_a_process_that_is_ended_keeps_the_clips_that_it_finished(
    run: Run, store: ObjectStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM during the second of two clips: the first is durable, the other one failed and may be tried again."""
    for step in ("stage_inputs", "plan_clips", "encode_conditions"):
        run(step)
    monkeypatch.setattr(Worker, "interrupted", lambda _worker: store.exists(LAYOUT.clip_manifest(0)))
    with pytest.raises(TransientError, match="clip 1 was interrupted"):
        run("render_clip", 0, count=2)
    assert manifest(store, 0).facts["render_seconds"] > 0
    assert [clip.status for clip in found(ledger).clips] == ["succeeded", "failed"]


def test_a_clip_needs_the_clip_before_it(run: Run, store: ObjectStore) -> None:
    """Out of turn, or behind a clip of another request, a clip is not rendered but tried again later."""
    run("stage_inputs")
    run("plan_clips")
    run("encode_conditions")
    with pytest.raises(TransientError, match="render-clip --clip-index 0"):
        run("render_clip", 1)
    run("render_clip", 0)
    run("stage_inputs", prompt="Something else entirely.")
    run("plan_clips")
    run("encode_conditions")
    with pytest.raises(TransientError, match="made from other inputs"):
        run("render_clip", 1)
    with pytest.raises(PermanentError, match="clip_index 2: expected clips within 0 to 1"):
        run("render_clip", 2)


def test_clips_of_another_plan_are_not_stitched(run: Run) -> None:
    """Clips that were rendered for other frames are refused."""
    render(run)
    run("stage_inputs", infer_frames=20)
    run("plan_clips")
    with pytest.raises(TransientError, match="belongs to another plan"):
        run("stitch")


def test_a_failed_check_fails_the_job(
    run: Run, store: ObjectStore, ledger: Ledger, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is there for the person who looks; the job is failed with its sentence; nothing is published."""
    render(run)
    run("stitch")
    run("mux_audio")
    config = Path(__file__).parents[2] / "config"
    for path in config.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("min_mean_luma: 8.0", "min_mean_luma: 250.0")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()
    with pytest.raises(PermanentError, match="failed 1 of 13 checks"):
        run("validate")
    job = found(ledger)
    assert job.status == "failed"
    assert "validate: The video failed 1 of 13 checks" in (job.reason or "")
    assert json.loads(store.get_bytes(LAYOUT.report))["checks"]
    with pytest.raises(TransientError, match="s2v validate"):
        run("publish")
    assert not store.exists(f"{settings.output_uri}/{JOB}.mp4")


def test_passing_faults_leave_the_job_running_until_it_is_closed(run: Run, ledger: Ledger) -> None:
    """What may work at the next attempt is no failure of the job; closing it makes the last words its reason."""
    run("stage_inputs")
    with pytest.raises(TransientError):
        run("encode_conditions")
    assert found(ledger).status == "running"
    assert run("close_job")["status"] == "failed"
    assert "encode_conditions: jobs/step-by-step/plan.json is not there" in (found(ledger).reason or "")
    run("plan_clips")
    assert (found(ledger).status, found(ledger).reason) == ("running", None)


def test_a_job_that_died_without_a_word_gets_a_reason(run: Run, ledger: Ledger) -> None:
    """A step that was killed wrote nothing; a failure that a later attempt made good is not blamed."""
    with pytest.raises(PermanentError):
        run("stage_inputs", preset="unheard-of")
    run("stage_inputs")
    run("close_job")
    assert "was killed before it could say why" in (found(ledger).reason or "")


def test_a_fingerprint_follows_all_that_a_clip_is_made_from(run: Run, store: ObjectStore) -> None:
    """A change in one clip changes it and those behind it in its chain; the clips before keep theirs."""
    run("stage_inputs", num_clip=3)
    run("plan_clips")
    plan = Plan.model_validate_json(store.get_bytes(LAYOUT.plan))
    prints = clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions())
    assert prints == clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions())
    reseeded = plan.model_copy(
        update={"clips": (plan.clips[0], plan.clips[1].model_copy(update={"seed": 99}), plan.clips[2])}
    )
    changed = clip_fingerprints(reseeded, {"conditions": "a"}, "snapshot", EngineOptions())
    assert [a == b for a, b in zip(prints, changed, strict=True)] == [True, False, False]
    fading = plan.model_copy(
        update={"clips": (*plan.clips[:2], plan.clips[2].model_copy(update={"fade_out_frames": 4}))}
    )
    changed = clip_fingerprints(fading, {"conditions": "a"}, "snapshot", EngineOptions())
    assert [a == b for a, b in zip(prints, changed, strict=True)] == [True, True, False]
    sampling = plan.model_copy(update={"sampling": plan.sampling.model_copy(update={"sample_shift": 4.0})})
    for other in (
        clip_fingerprints(plan, {"conditions": "b"}, "snapshot", EngineOptions()),
        clip_fingerprints(plan, {"conditions": "a"}, "another", EngineOptions()),
        clip_fingerprints(sampling, {"conditions": "a"}, "snapshot", EngineOptions()),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(noise_device="cpu")),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(attention="flash3")),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(compiled=True)),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(weights_dtype="fp8")),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(step_cache=0.1)),
    ):
        assert not set(prints) & set(other)


def test_only_a_clip_with_a_successor_leaves_a_motion_state(run: Run, store: ObjectStore) -> None:
    """The state is there for the clip that follows; nobody follows the last one."""
    render(run)
    first, last = (manifest(store, index) for index in (0, 1))
    assert set(first.outputs) == {"clip", "motion"}
    assert set(last.outputs) == {"clip"}
    assert last.inputs["motion"] == first.outputs["motion"]


@pytest.mark.parametrize(
    ("fields", "exit_code", "sentence"),
    [
        ({"size": "100*100"}, 65, "multiples of 32"),
        ({"image_uri": "s3://nowhere-at-all/picture.png"}, 65, "S2V_ALLOWED_INPUT_URIS"),
    ],
)
def test_a_refused_step_says_why_in_one_sentence(
    store: ObjectStore, ledger: Ledger, tmp_path: Path, fields: dict[str, Any], exit_code: int, sentence: str
) -> None:
    """Exit code, stderr, the file for the parent process and the job's reason all carry it."""
    uris = {"image_uri": store.uri("portrait.jpg"), "audio_uri": store.uri("speech.mp3")}
    error_file = tmp_path / "error.json"
    done = s2v("stage-inputs", "--job-id", JOB, "--request-json", json.dumps(uris | REQUEST | fields), error_file)
    assert done.returncode == exit_code
    left = json.loads(error_file.read_text())
    assert left["exit_code"] == exit_code
    assert sentence in left["message"]
    assert done.stderr.strip().splitlines()[-1] == f"PermanentError: {left['message']}"
    job = found(ledger)
    assert (job.status, job.reason) == ("failed", f"stage_inputs: {left['message']}")


def test_an_unknown_setting_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable ends every command with 78 and its name."""
    monkeypatch.setenv("S2V_MAX_CLIP", "3")
    done = s2v("jobs", tmp_path / "error.json")
    assert done.returncode == 78
    assert "S2V_MAX_CLIP: not a setting" in done.stderr


def s2v(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line as Airflow does; the last argument is the file for the error."""
    import os

    *command, error_file = map(str, arguments)
    return subprocess.run(
        [sys.executable, "-m", "s2v_tasks.cli", *command],
        env=os.environ | {"STEP_ERROR_FILE": error_file},
        capture_output=True,
        text=True,
        check=False,
    )


def found(ledger: Ledger) -> Any:
    job = ledger.job(JOB)
    assert job is not None
    return job


def manifest(store: ObjectStore, clip_index: int) -> Manifest:
    read = ArtifactStore(store).read_manifest(LAYOUT.clip_manifest(clip_index))
    assert read is not None
    return read


def test_a_finished_job_stays_finished_when_a_step_runs_again(run: Run, store: ObjectStore, ledger: Ledger) -> None:
    """A step that reuses everything leaves the job, its clips and its result as they are; closing it agrees."""
    render(run)
    assemble(run)
    before = found(ledger)
    for step in ("plan_clips", "encode_conditions", "stitch", "mux_audio", "validate"):
        run(step)
    assert run("close_job")["status"] == "succeeded"
    after = found(ledger)
    assert (after.status, after.clips) == (before.status, before.clips)
    assert store.exists(LAYOUT.result)


def test_an_old_outcome_is_not_that_of_new_work(run: Run, ledger: Ledger) -> None:
    """Work that ended before its first step is not crowned by the success of the work before."""
    with pytest.raises(PermanentError):
        run("stage_inputs", preset="unheard-of")
    now = datetime.now(UTC)
    assert close_since(now - timedelta(hours=1))["status"] == "failed"
    assert close_since(now + timedelta(seconds=1))["status"] == "not run"
    assert found(ledger).status == "failed"


def close_since(since: datetime) -> dict[str, Any]:
    body = importlib.import_module("s2v_tasks.steps.close_job").run
    return run_step(body, step="close_job", job_id=JOB, since=since)


def unavailable(*_: Any, **__: Any) -> None:
    raise TransientError("the database is away")


def test_a_database_that_is_away_does_not_stop_a_render(
    run: Run, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress that cannot be written is a line in the log; the clip is rendered all the same."""
    run("stage_inputs")
    run("plan_clips")
    run("encode_conditions")
    monkeypatch.setattr(Ledger, "clip_progress", unavailable)
    assert run("render_clip", 0) == {"clip_index": 0, "count": 1, "reused": False}


def test_progress_tells_time_to_go_and_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a clip renders, its row has the solver step, the seconds that are left and, on a GPU, its memory."""
    seen: list[dict[str, Any]] = []
    record = Ledger.clip_progress

    def note(ledger: Ledger, *arguments: Any, **keywords: Any) -> None:
        seen.append(keywords)
        record(ledger, *arguments, **keywords)

    monkeypatch.setattr(Ledger, "clip_progress", note)
    monkeypatch.setattr("s2v_tasks.steps.clip_meter.PROGRESS_SECONDS", 0.0)
    seconds = count()  # a clock by which each solver step takes one
    monkeypatch.setattr("s2v_tasks.steps.clip_meter.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    monkeypatch.setattr(Worker, "peak_memory_bytes", lambda _: {"peak_gpu_memory_bytes": 40 * 2**30})
    for step in ("stage_inputs", "plan_clips", "encode_conditions"):
        run(step)
    run("render_clip", 0)
    assert [progress["step"] for progress in seen] == list(range(1, seen[0]["num_steps"] + 1))
    num_steps = seen[0]["num_steps"]
    assert [progress["eta_seconds"] for progress in seen] == [num_steps - step for step in range(1, num_steps + 1)]
    assert seen[0]["gpu_memory_bytes"] == 40 * 2**30


@pytest.mark.parametrize("prompt", ["a\0b", "\ud800"])
def test_text_that_no_database_takes_is_refused_on_record(run: Run, ledger: Ledger, prompt: str) -> None:
    """A prompt with characters that are none ends like any other bad input."""
    with pytest.raises(PermanentError, match="prompt"):
        run("stage_inputs", prompt=prompt)
    assert found(ledger).status == "failed"


def test_words_of_a_user_are_never_markup(run: Run, tmp_path: Path) -> None:
    """`s2v jobs` shows a reason as it is, brackets included."""
    with pytest.raises(PermanentError):
        run("stage_inputs", size="[/x]")
    for command in (("jobs",), ("job", JOB)):
        done = s2v(*command, tmp_path / "error.json")
        assert done.returncode == 0, done.stderr
        assert "[/x]" in done.stdout


def test_a_plan_for_a_missing_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """`s2v plan` says which file is not there."""
    done = s2v("plan", "--audio", tmp_path / "none.wav", "--image", SAMPLES / "portrait.jpg", tmp_path / "error.json")
    assert done.returncode == 65
    assert "none.wav is not a file" in done.stderr


def test_a_plan_over_budget_ends_the_job_before_anything_is_spent(run: Run, store: ObjectStore, ledger: Ledger) -> None:
    """The reason of the job has the numbers; no plan is left that a later step could follow."""
    run("stage_inputs", max_gpu_seconds=0.001)
    with pytest.raises(
        PermanentError, match=r"over budget: .* expected at most 0\.001 \(max_gpu_seconds of the request"
    ):
        run("plan_clips")
    assert (found(ledger).status, store.exists(LAYOUT.plan)) == ("failed", False)


def test_a_plan_that_was_not_put_on_record_is_made_again(
    run: Run, ledger: Ledger, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is lost between the plan and its record leaves neither believed: the next attempt does both."""
    run("stage_inputs")
    run("plan_clips")
    run("stage_inputs", sample_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "job_planned", unavailable)
        with pytest.raises(TransientError):
            run("plan_clips")
    run("plan_clips")
    assert Plan.model_validate_json(store.get_bytes(LAYOUT.plan)).sampling.sample_steps == 3
    assert {clip.progress_steps for clip in found(ledger).clips} == {3}


def test_a_plan_says_which_clips_a_task_renders(run: Run) -> None:
    """Clips that share a process are one turn: its first clip and their number, and the turn that it continues."""
    run("stage_inputs", num_clip=5, clips_per_pod=2)
    turns = run("plan_clips")["clips"]
    assert [(turn["clip_index"], turn["count"], turn["predecessor"]) for turn in turns] == [
        (0, 2, None),
        (2, 2, 0),
        (4, 1, 1),
    ]
    assert turns[1]["label"] == "clips 3-4/5 frames 32..64"
    run("stage_inputs", num_clip=2)
    assert run("plan_clips")["clips"][1]["label"] == "clip 2/2 frames 16..32"
