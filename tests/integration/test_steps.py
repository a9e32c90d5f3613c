"""Check the steps one by one, in this process, with PostgreSQL, S3 and the tiny snapshot."""

import importlib
import json
import re
import unicodedata
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.metadata.jobs import JobRepository
from s2v_tasks.metadata.tables import Job
from s2v_tasks.runtime import attempts
from s2v_tasks.runtime.context import run_step
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.steps import STAGE_INPUTS
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.steps.plan_clips import plan_files
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

SAMPLES = Path(__file__).parents[1] / "samples"
JOB = "step-by-step"
LAYOUT = JobLayout(JOB)
Run = Callable[..., dict[str, Any]]
Render = Callable[..., list[bool]]
Assemble = Callable[[], None]
Found = Callable[[], Job]
GiveUp = Callable[[], None]


def test_running_everything_twice_changes_nothing(
    store: ObjectStore, render: Render, assemble: Assemble, found: Found
) -> None:
    """Each step of a finished job reuses its artifacts, and the result stays the same, byte for byte."""
    assert render() == [False, False]
    assemble()
    before = {artifact.key: artifact.sha256 for artifact in found().artifacts}
    result, manifest = store.get_bytes(LAYOUT.result), store.get_bytes(LAYOUT.clip_manifest(1))
    assert "webhook_url" not in json.loads(result)["request"]  # it may hold a secret
    assert render() == [True, True]
    assemble()
    job = found()
    assert {artifact.key: artifact.sha256 for artifact in job.artifacts} == before
    assert (store.get_bytes(LAYOUT.result), store.get_bytes(LAYOUT.clip_manifest(1))) == (result, manifest)
    assert job.status == "succeeded"


def test_inputs_may_have_any_name(run: Run, store: ObjectStore, give_up: GiveUp) -> None:
    """Inputs with blanks, umlauts, emoji and characters that URLs escape are staged and planned."""
    names = {"image_uri": "Fotos für Anna/Über uns 🎬 (1)?.JPG", "audio_uri": "Rede #1 & 50 % + 'neu'.mp3"}
    for name, sample in zip(names.values(), ("portrait.jpg", "speech.mp3"), strict=True):
        store.upload(SAMPLES / sample, name, "application/octet-stream")
        store.delete(sample)
    run("stage_inputs", **{field: store.uri(name) for field, name in names.items()})
    assert len(run("plan_clips")["clips"]) == 2
    give_up()
    with pytest.raises(PermanentError, match=r"has an empty, '\.' or '\.\.' segment"):
        run("stage_inputs", image_uri=store.uri("Fotos für Anna/../geheim.jpg"))


def test_inputs_are_found_in_another_normal_form(run: Run, store: ObjectStore, give_up: GiveUp) -> None:
    """Objects with names in NFD are staged for names in NFC, and staged inputs suffice if they are deleted later."""
    names = {"image_uri": "Über uns é.jpg", "audio_uri": "Größe ガ.mp3"}
    for name, sample in zip(names.values(), ("portrait.jpg", "speech.mp3"), strict=True):
        store.upload(SAMPLES / sample, unicodedata.normalize("NFD", name), "application/octet-stream")
    fields = {field: store.uri(name) for field, name in names.items()}
    assert run("stage_inputs", **fields) == {"reused": False}
    store.delete(unicodedata.normalize("NFD", names["image_uri"]))
    assert run("stage_inputs", **fields) == {"reused": True}
    give_up()
    with pytest.raises(PermanentError, match="is a folder, not a file"):
        run("stage_inputs", image_uri=store.uri("inputs/").removesuffix("/"), audio_uri=store.uri(f"jobs/{JOB}"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' is given more than once"),
        ('{"prompt": NaN}', "NaN is not a number"),
        ('{"max_cost": 1e999}', "1e999 is too large"),
        ('{"num_clip": ' + "9" * 400 + "}", "a number of 400 digits is too large"),
        ("[" * 40 + "]" * 40, "nested too deeply"),
        ('{"num_clip": true}', "num_clip True: expected a number"),
        ('\ufeff{"prompt": 5}', "prompt 5: "),
        ('{"\\u0000": "\\ud800"}', "Bad request"),
    ],
)
def test_a_request_is_strict_json(settings: Settings, text: str, words: str, found: Found) -> None:
    """An ambiguous request is refused with one sentence, which is stored."""
    with pytest.raises(PermanentError, match=re.escape(words)):
        run_step(importlib.import_module("s2v_tasks.steps.stage_inputs").run, step=STAGE_INPUTS, job_id=JOB,
                 request_json=text)  # fmt: skip
    assert found().status == "failed"
    assert words in str(found().reason)


def test_colours_that_may_be_wrong_are_a_warning_of_the_plan(
    run: Run, store: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    """A picture with a damaged colour profile is used, and each plan of it has a warning."""
    with Image.open(SAMPLES / "portrait.jpg") as portrait:
        portrait.save(tmp_path / "photo.jpg", icc_profile=b"damaged")
    store.upload(tmp_path / "photo.jpg", "photo.jpg", "image/jpeg")
    run("stage_inputs", image_uri=store.uri("photo.jpg"))
    sentence = "The colours of the picture may be wrong. The colour profile is ignored: it is damaged."
    assert sentence in run("plan_clips")["warnings"]
    shown: list[Plan] = []
    plan_files(tmp_path / "photo.jpg", SAMPLES / "speech.mp3", {}, shown.append)
    assert sentence in shown[0].warnings


def test_a_job_goes_on_when_its_sources_are_gone(run: Run, store: ObjectStore, give_up: GiveUp) -> None:
    """Staged inputs suffice for another start, unless they are damaged or the request or its files changed."""
    run("stage_inputs")
    store.delete("portrait.jpg")
    assert run("stage_inputs") == {"reused": True}
    give_up()
    assert run("stage_inputs", prompt="Another prompt.") == {"reused": True}
    give_up()
    with pytest.raises(PermanentError, match=r"other\.jpg does not exist"):
        run("stage_inputs", image_uri=store.uri("other.jpg"))
    store.put_bytes("speech.mp3", b"other speech", "audio/mpeg")
    with pytest.raises(PermanentError, match=r"portrait\.jpg does not exist"):
        run("stage_inputs")
    store.upload(SAMPLES / "speech.mp3", "speech.mp3", "audio/mpeg")
    assert run("stage_inputs") == {"reused": True}
    store.delete(LAYOUT.image)
    with pytest.raises(PermanentError, match=r"portrait\.jpg does not exist"):
        run("stage_inputs")


def test_clips_of_another_plan_are_not_stitched(run: Run, render: Render, give_up: GiveUp) -> None:
    """Clips that were rendered for other frames are refused."""
    render()
    give_up()
    run("stage_inputs", infer_frames=20)
    run("plan_clips")
    with pytest.raises(PermanentError, match=r"belongs to another plan.*`s2v retry .*renders clip 0 again"):
        run("stitch")


def test_a_failed_check_fails_the_job(
    run: Run,
    store: ObjectStore,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    render: Render,
    found: Found,
) -> None:
    """The report is stored, the job fails with its sentence, and nothing is published."""
    render()
    run("stitch")
    run("mux_audio")
    config = Path(__file__).parents[2] / "config"
    for path in config.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("min_mean_luma: 8.0", "min_mean_luma: 250.0")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()
    with pytest.raises(PermanentError, match=r"failed 1 of \d+ checks: not black"):
        run("validate")
    job = found()
    assert job.status == "failed"
    assert "validate: The video failed 1 of " in (job.reason or "")
    assert json.loads(store.get_bytes(LAYOUT.report))["checks"]
    with pytest.raises(TransientError, match="s2v validate"):
        run("publish")
    assert not store.exists(f"{settings.output_uri}/{JOB}.mp4")


def test_a_finished_job_stays_finished_when_a_step_runs_again(
    run: Run, store: ObjectStore, render: Render, assemble: Assemble, found: Found
) -> None:
    """A step that reuses everything changes neither job, clips nor result; closing the job succeeds."""
    render()
    assemble()
    before = found()
    for step in ("plan_clips", "encode_conditions", "stitch", "mux_audio", "validate"):
        run(step)
    assert run("close_job")["status"] == "succeeded"
    after = found()
    assert (after.status, after.clips) == (before.status, before.clips)
    assert store.exists(LAYOUT.result)


def unavailable(*_: Any, **__: Any) -> None:
    raise TransientError("the database is away")


@pytest.mark.parametrize("prompt", ["a\0b", "\ud800"])
def test_text_that_postgresql_cannot_store_is_bad_input(run: Run, prompt: str, found: Found) -> None:
    """A prompt with NUL or a lone surrogate fails the job like other bad input."""
    with pytest.raises(PermanentError, match="prompt"):
        run("stage_inputs", prompt=prompt)
    assert found().status == "failed"


def test_a_plan_over_budget_ends_the_job_before_anything_is_spent(run: Run, store: ObjectStore, found: Found) -> None:
    """The reason of the job has the numbers, and no plan is stored."""
    run("stage_inputs", max_gpu_seconds=0.001)
    with pytest.raises(
        PermanentError, match=r"over budget: .* expected at most 0\.001 \(max_gpu_seconds of the request"
    ):
        run("plan_clips")
    assert (found().status, store.exists(LAYOUT.plan)) == ("failed", False)


def test_a_plan_that_was_not_recorded_is_made_again(
    run: Run, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, found: Found, give_up: GiveUp
) -> None:
    """If a process stops between storing and recording a plan, the next attempt does both."""
    run("stage_inputs")
    run("plan_clips")
    give_up()
    run("stage_inputs", sample_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(JobRepository, "record_plan", unavailable)
        with pytest.raises(TransientError):
            run("plan_clips")
    run("plan_clips")
    assert Plan.model_validate_json(store.get_bytes(LAYOUT.plan)).sampling.sample_steps == 3
    assert {clip.progress_steps for clip in found().clips} == {3}


def test_a_plan_lists_the_clips_of_each_render_task(run: Run, give_up: GiveUp) -> None:
    """Clips that share a process are one item: its first clip, their number, and the item before it."""
    run("stage_inputs", num_clip=5, clips_per_pod=2)
    tasks = run("plan_clips")["clips"]
    assert [(task["clip_index"], task["count"], task["predecessor"]) for task in tasks] == [
        (0, 2, None),
        (2, 2, 0),
        (4, 1, 1),
    ]
    assert tasks[1]["label"] == "clips 3-4/5 frames 32..64"
    give_up()
    run("stage_inputs", num_clip=2)
    assert run("plan_clips")["clips"][1]["label"] == "clip 2/2 frames 16..32"


def test_the_used_sound_is_recorded_and_in_the_plan(run: Run, store: ObjectStore, tmp_path: Path) -> None:
    """Staging records track, mix and pose frames of a job, and its plan warns of unusual ones."""
    noise = np.random.default_rng(7).integers(-9000, 9000, (3 * 16000, 1))
    noise = (noise * np.abs(np.sin(np.arange(len(noise)) * 2 * np.pi / 16000))[:, None] ** 2).astype(int)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.concatenate([noise, -noise], axis=1).astype("<i2").tobytes())
    encode_clip(np.zeros((16, 64, 64, 3), np.uint8), tmp_path / "pose.mp4")
    for name in ("a.wav", "pose.mp4"):
        store.upload(tmp_path / name, name, "application/octet-stream")
    run("stage_inputs", audio_uri=store.uri("a.wav"), pose_video_uri=store.uri("pose.mp4"))
    facts = json.loads(store.get_bytes(LAYOUT.input_manifest))["facts"]
    assert (facts["speech"]["mix"], facts["speech"]["track"]) == ("channel 1 of 2", 1)
    assert facts["pose"] == {"num_frames": 16}
    _, note, pose, *_ = run("plan_clips")["warnings"]
    assert [note] == facts["speech"]["notes"]
    assert pose.startswith("The pose video lasts 1.00 s, the video 2.00 s")


def test_a_clip_of_an_earlier_start_that_is_stored_late_does_not_enter_the_video(
    run: Run, render: Render, give_up: GiveUp, assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The video is not joined with a clip of another prompt, and a new start brings the right clip back."""
    monkeypatch.setattr(attempts, "_SILENT_SECONDS", 0.0)  # the late process cannot reach the database
    for step in ("stage_inputs", "plan_clips", "encode_conditions"):
        run(step)
    run("render_clip", 0)
    write = ArtifactStore._write

    def write_late(*arguments: Any) -> Any:
        monkeypatch.setattr(ArtifactStore, "_write", write)
        give_up()
        assert render(prompt="Something else entirely.") == [False, False]
        return write(*arguments)

    monkeypatch.setattr(ArtifactStore, "_write", write_late)
    run("render_clip", 1)
    with pytest.raises(PermanentError, match=r"0001/manifest\.json was made for another request .* clip 1 again"):
        run("stitch")
    assert run("render_clip", 1)["reused"]
    assemble()
