"""Check clips: reuse, the order of rendering, and the end of a render process."""

import io
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.encode import encoder_build
from s2v_tasks.media.frames import iter_rgb
from s2v_tasks.metadata.clips import ClipRepository
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.rendering import fingerprints, leader, renderer
from s2v_tasks.runtime import attempts
from s2v_tasks.schemas.manifest import Artifact, ClipFacts, Manifest
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

JOB = "step-by-step"
LAYOUT = JobLayout(JOB)
Run = Callable[..., dict[str, Any]]
Render = Callable[..., list[bool]]
Assemble = Callable[[], None]
Found = Callable[[], Job]
GiveUp = Callable[[], None]


def manifest_of(store: ObjectStore, clip_index: int) -> Manifest:
    read = ArtifactStore(store).read_manifest(LAYOUT.clip_manifest(clip_index))
    assert read is not None
    return read


def test_another_prompt_renders_anew_and_the_old_one_is_not_lost(
    store: ObjectStore, render: Render, assemble: Assemble, give_up: GiveUp
) -> None:
    """A changed request withdraws the success and keeps the old clips, which are reused when it returns."""
    render()
    assemble()
    old = store.get_bytes(LAYOUT.clip(1))
    give_up()
    assert render(prompt="Something else entirely.") == [False, False]
    assert not store.exists(LAYOUT.result)
    assert store.get_bytes(LAYOUT.clip(1)) != old
    give_up()
    assert render() == [True, True]
    assert store.get_bytes(LAYOUT.clip(1)) == old


def test_a_lost_clip_is_rendered_again_to_the_same_bytes(store: ObjectStore, render: Render) -> None:
    """A lost output is rendered again; the clip after it is not."""
    render()
    first, second = (store.get_bytes(LAYOUT.clip(index)) for index in (0, 1))
    store.delete(LAYOUT.clip(0))
    assert render() == [False, True]
    assert (store.get_bytes(LAYOUT.clip(0)), store.get_bytes(LAYOUT.clip(1))) == (first, second)


@pytest.mark.parametrize("clip_index", [None, 0])
def test_work_in_progress_is_not_repeated(
    run: Run, metadata: MetadataStore, monkeypatch: pytest.MonkeyPatch, clip_index: int | None
) -> None:
    """A second process of the same task waits for the first instead of rendering the clip again."""
    run("stage_inputs")
    run("plan_clips")
    if clip_index is None:
        metadata.conditions.start(JOB)
    else:
        run("encode_conditions")
        metadata.clips.start(JOB, clip_index, "f0")
    waits = []

    def end_the_other(seconds: float) -> None:
        waits.append(seconds)
        if clip_index is None:
            metadata.conditions.end(JOB, outcome="failed", reason="ended")
        else:
            metadata.clips.fail(JOB, clip_index, "ended", outcome="interrupted")

    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=end_the_other))
    run("encode_conditions") if clip_index is None else run("render_clip", clip_index)
    job = metadata.jobs.get(JOB)
    assert job is not None
    assert len(waits) == 1
    assert [attempt.outcome for attempt in job.attempts][-2:] == [
        "failed" if clip_index is None else "interrupted",
        "succeeded",
    ]


def test_clips_rendered_by_one_process_are_those_of_a_process_each(
    run: Run, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, render: Render, found: Found
) -> None:
    """With `count` the networks are loaded once, or not at all if every clip exists, and the bytes are equal."""
    loads: list[int] = []
    load = renderer.load_pipeline
    monkeypatch.setattr(renderer, "load_pipeline", lambda *args, **named: loads.append(1) or load(*args, **named))
    fetched: list[str] = []
    fetch = ArtifactStore.fetch

    def noted(artifacts: ArtifactStore, artifact: Artifact, path: Path) -> Path:
        fetched.append(path.name)
        return fetch(artifacts, artifact, path)

    monkeypatch.setattr(ArtifactStore, "fetch", noted)
    render(num_clip=3)
    run("render_clip", 2)
    assert len(loads) == 3
    outputs = [manifest_of(store, index).outputs for index in range(3)]
    for index in range(3):
        store.delete(LAYOUT.clip_manifest(index))
    fetched.clear()
    assert run("render_clip", 0, count=3) == {"clip_index": 0, "count": 3, "reused": False}
    assert len(loads) == 4
    assert sorted(fetched) == ["conditions.safetensors", "motion.safetensors", "motion.safetensors"]
    assert [manifest_of(store, index).outputs for index in range(3)] == outputs
    assert run("render_clip", 0, count=3)["reused"]
    assert len(loads) == 4
    assert [(clip.status, clip.attempts) for clip in found().clips] == [("succeeded", 2)] * 3
    store.delete(LAYOUT.clip_manifest(2))
    assert run("render_clip", 0, count=3) == {"clip_index": 0, "count": 3, "reused": False}
    assert [(clip.reused, clip.attempts) for clip in found().clips] == [(True, 2), (True, 2), (False, 3)]
    with pytest.raises(PermanentError, match="clip_index 2 with count 2: expected clips of the plan, 0 to 2"):
        run("render_clip", 2, count=2)


def test_a_process_that_is_ended_keeps_the_clips_that_it_finished(
    run: Run, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, found: Found
) -> None:
    """After SIGTERM in the second of two clips, the first is stored, and the second is pending for the next try."""
    for step in ("stage_inputs", "plan_clips", "encode_conditions"):
        run(step)
    monkeypatch.setattr(Worker, "interrupted", lambda _worker: store.exists(LAYOUT.clip_manifest(0)))
    with pytest.raises(TransientError, match="clip 1 was interrupted"):
        run("render_clip", 0, count=2)
    assert (manifest_of(store, 0).facts_as(ClipFacts).render_seconds or 0) > 0
    assert [clip.status for clip in found().clips] == ["succeeded", "pending"]
    assert not store.has_any(f"jobs/{JOB}/clips/0001/partial/")  # no step was done: there is nothing to continue


def test_a_clip_needs_the_clip_before_it(run: Run, give_up: GiveUp) -> None:
    """Without its predecessor a clip may be tried again; after a clip of another request it may not."""
    run("stage_inputs")
    run("plan_clips")
    run("encode_conditions")
    with pytest.raises(TransientError, match="render-clip --clip-index 0"):
        run("render_clip", 1)
    run("render_clip", 0)
    give_up()
    run("stage_inputs", prompt="Something else entirely.")
    run("plan_clips")
    run("encode_conditions")
    with pytest.raises(PermanentError, match="made from other inputs"):
        run("render_clip", 1)
    with pytest.raises(PermanentError, match="clip_index 2: expected clips of the plan, 0 to 1"):
        run("render_clip", 2)


def clip_fingerprints(
    plan: Plan, inputs: dict[str, str], snapshot: str, options: EngineOptions, encoder: str = "x264"
) -> list[str]:
    return fingerprints.clip_fingerprints(plan, inputs, snapshot, options, encoder)


def test_a_fingerprint_follows_all_that_a_clip_is_made_from(run: Run, store: ObjectStore) -> None:
    """A change in one clip changes its fingerprint and those of later clips of its chain, and no earlier one."""
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
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(), "another x264"),
        clip_fingerprints(sampling, {"conditions": "a"}, "snapshot", EngineOptions()),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(noise_device="cpu")),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(attention="flash3")),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(compiled=True)),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(weights_dtype="fp8")),
        clip_fingerprints(plan, {"conditions": "a"}, "snapshot", EngineOptions(step_cache=0.1)),
    ):
        assert not set(prints) & set(other)


def test_clips_of_one_job_are_encoded_by_one_build(
    run: Run, store: ObjectStore, render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip names its encoder; a process with another encoder continues and reuses none of the clips."""
    render()
    assert [manifest_of(store, index).facts_as(ClipFacts).encoder for index in range(2)] == [encoder_build()] * 2
    monkeypatch.setattr(leader, "encoder_build", lambda: "ffmpeg 5.1, x264 - core 164")
    with pytest.raises(
        TransientError, match=r"^Clip 0 of job .* made by the encoder ffmpeg .*, but this process has"
    ) as caught:
        run("render_clip", 1)
    assert encoder_build() in str(caught.value)
    assert "ffmpeg 5.1, x264 - core 164; use the same ffmpeg" in str(caught.value)
    assert [run("render_clip", index)["reused"] for index in range(2)] == [False, False]
    assert manifest_of(store, 1).facts_as(ClipFacts).encoder == "ffmpeg 5.1, x264 - core 164"


def test_only_a_clip_with_a_successor_leaves_a_motion_state(store: ObjectStore, render: Render) -> None:
    """Every clip but the last of its chain stores a motion state."""
    render()
    first, last = (manifest_of(store, index) for index in (0, 1))
    assert set(first.outputs) == {"clip", "motion", "poster"}
    assert set(last.outputs) == {"clip"}
    assert last.inputs["motion"] == first.outputs["motion"]
    made = first.facts_as(ClipFacts)
    assert (made.device, made.precision, made.world_size) == ("cpu", "float32", 1)
    assert (made.load_seconds is not None, made.skipped_share) == (True, 0)
    assert not made.model_extra


def test_the_first_clip_leaves_a_frame_as_the_poster_of_its_job(
    store: ObjectStore, render: Render, tmp_path: Path
) -> None:
    """The poster is the middle frame of the first clip."""
    render()
    with Image.open(io.BytesIO(store.get_bytes(LAYOUT.poster))) as picture:
        assert picture.format == "JPEG"
        shown = np.asarray(picture, dtype=int)
    clip = store.download(manifest_of(store, 0).outputs["clip"], tmp_path / "clip.mp4")
    frames = [np.asarray(frame, dtype=int) for frame in iter_rgb(clip)]
    errors = [np.abs(frame - shown).mean() for frame in frames]
    assert errors.index(min(errors)) == len(frames) // 2


def unavailable(*_: Any, **__: Any) -> None:
    raise TransientError("the database is away")


def test_a_database_that_is_away_does_not_stop_a_render(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress that cannot be written is logged, and the clip is rendered."""
    run("stage_inputs")
    run("plan_clips")
    run("encode_conditions")
    monkeypatch.setattr(ClipRepository, "record_progress", unavailable)
    assert run("render_clip", 0) == {"clip_index": 0, "count": 1, "reused": False}


def test_progress_has_remaining_time_and_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of a rendering clip has the solver step, the remaining seconds and, on a GPU, its memory."""
    seen: list[dict[str, Any]] = []
    record = ClipRepository.record_progress

    def note(metadata: MetadataStore, *arguments: Any, **keywords: Any) -> None:
        seen.append(keywords)
        record(metadata, *arguments, **keywords)

    monkeypatch.setattr(ClipRepository, "record_progress", note)
    monkeypatch.setattr("s2v_tasks.rendering.progress.PROGRESS_SECONDS", 0.0)
    seconds = count()  # a clock by which each solver step takes one
    monkeypatch.setattr("s2v_tasks.rendering.progress.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    monkeypatch.setattr(Worker, "peak_memory_bytes", lambda _: {"peak_gpu_memory_bytes": 40 * 2**30})
    for step in ("stage_inputs", "plan_clips", "encode_conditions"):
        run(step)
    run("render_clip", 0)
    assert [progress["step"] for progress in seen] == list(range(1, seen[0]["num_steps"] + 1))
    num_steps = seen[0]["num_steps"]
    assert [progress["eta_seconds"] for progress in seen] == [num_steps - step for step in range(1, num_steps + 1)]
    assert seen[0]["gpu_memory_bytes"] == 40 * 2**30
