"""Check a rerun: a new job that inherits clips of an earlier one and renders the rest with changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from s2v_tasks.cli.job_control import rerun
from s2v_tasks.cli.jobs import fetch
from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.runtime.context import open_context
from s2v_tasks.runtime.inheritance import parent_request
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.settings import Settings
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.objects import file_sha256
from s2v_tasks.storage.s3 import ObjectStore
from tests.integration.conftest import SAMPLES, run_job, stored_job

PARENT, CHILD = "first-take", "second-take"
REQUEST: dict[str, Any] = {
    "prompt": "A drawn portrait speaks.",
    "num_clip": 4,
    "infer_frames": 16,
    "sample_steps": 2,
    "size": "128*128",
    "labels": {"team": "news"},
}

pytestmark = pytest.mark.usefixtures("settings")


def stage(store: ObjectStore, job_id: str, **fields: Any) -> list[dict[str, Any]]:
    """Stage and plan a job; return the clips of its plan."""
    uris = {"image_uri": store.uri("portrait.jpg"), "audio_uri": store.uri("speech.mp3")}
    run_job(job_id, "stage_inputs", request_json=json.dumps(uris | REQUEST | fields))
    tasks: list[dict[str, Any]] = run_job(job_id, "plan_clips")["clips"]
    return tasks


def make(store: ObjectStore, job_id: str, num_clip: int | None = None, **fields: Any) -> None:
    """Run a job to its end, or up to its first `num_clip` render tasks."""
    tasks = stage(store, job_id, **fields)
    run_job(job_id, "encode_conditions")
    for task in tasks[:num_clip]:
        run_job(job_id, "render_clip", task["clip_index"], count=task["count"])
    if num_clip is None:
        for step in ("stitch", "mux_audio", "validate", "publish"):
            run_job(job_id, step)


def objects(store: ObjectStore, job_id: str) -> dict[str, str | None]:
    """Return keys and checksums of the objects of a job."""
    artifacts = ArtifactStore(store)
    layout = JobLayout(job_id)
    checksums: dict[str, str | None] = {}
    for index in range(4):
        manifest = artifacts.read_manifest(layout.clip_manifest(index))
        assert manifest is not None
        checksums |= {f"{index}/{name}": artifact.sha256 for name, artifact in manifest.outputs.items()}
    return checksums | {"result": str(store.get_bytes(layout.result))}


def test_clips_before_the_change_are_reused_and_cost_nothing(
    store: ObjectStore, metadata: MetadataStore, tmp_path: Path
) -> None:
    """Clips 0 and 1 equal the parent's and have no attempt; clips 2 and 3 are rendered; the parent does not change."""
    make(store, PARENT)
    before, parent = objects(store, PARENT), JobLayout(PARENT)
    store.delete("portrait.jpg")  # the staged inputs of the parent are enough
    make(store, CHILD, prompt="Somebody else shouts.", parent_job_id=PARENT, from_clip=2)
    after, child = objects(store, CHILD), JobLayout(CHILD)
    same = {name for name, checksum in before.items() if after.get(name) == checksum}
    assert same == {"0/clip", "0/motion", "0/poster", "1/clip", "1/motion"}
    for index in (0, 1):
        assert store.get_bytes(child.clip(index)) == store.get_bytes(parent.clip(index))
    assert objects(store, PARENT) == before

    job = stored_job(metadata, CHILD)
    assert [clip.source_job_id for clip in job.clips] == [PARENT, PARENT, None, None]
    assert [attempt.clip_index for attempt in job.attempts] == [None, 2, 3]  # None: the conditions, for other words
    assert job.labels == {"team": "news"}
    (spent,) = metadata.costs.spending("job", job_id=CHILD)
    assert spent.used_gpu_seconds == pytest.approx(sum(attempt.gpu_seconds or 0 for attempt in job.attempts))
    result = json.loads(store.get_bytes(child.result))
    assert [clip["rendered_by"] for clip in result["clips"]] == [PARENT, PARENT, CHILD, CHILD]

    plans = [Plan.model_validate_json(store.get_bytes(layout.plan)) for layout in (parent, child)]
    assert [clip.seed for clip in plans[0].clips] == [clip.seed for clip in plans[1].clips]
    assert plans[1].estimate.gpu_seconds < plans[0].estimate.gpu_seconds

    folder = tmp_path / "videos" / "of today"  # which is made
    fetch(CHILD, to=folder, as_json=False)
    assert file_sha256(folder / f"{CHILD}.mp4") == result["sha256"]
    assert {path.suffix for path in folder.iterdir()} == {".mp4", ".json", ".jpg"}


def test_only_changed_clips_are_rendered(store: ObjectStore, metadata: MetadataStore) -> None:
    """The first rendered clip continues an inherited one; a new plan is equal; a rerun may have a rerun.

    Conditions of the same prompt and speech are inherited, too.
    """
    make(store, PARENT, num_clip=1)
    tasks = stage(store, CHILD, base_seed=5, parent_job_id=PARENT, from_clip=1)
    assert [(task["clip_index"], task["predecessor"]) for task in tasks] == [(1, None), (2, 0), (3, 1)]
    plan = store.get_bytes(JobLayout(CHILD).plan)
    assert run_job(CHILD, "plan_clips")["clips"] == tasks
    assert store.get_bytes(JobLayout(CHILD).plan) == plan
    assert [clip.seed for clip in Plan.model_validate_json(plan).clips[1:]] == [6, 7, 8]
    assert run_job(CHILD, "encode_conditions")["reused"]
    assert not run_job(CHILD, "render_clip", 1)["reused"]
    assert [attempt.clip_index for attempt in stored_job(metadata, CHILD).attempts] == [1]
    stage(store, "third-take", base_seed=5, sample_steps=3, parent_job_id=CHILD, from_clip=2)
    assert [clip.source_job_id for clip in stored_job(metadata, "third-take").clips] == [PARENT, CHILD, None, None]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"from_clip": 2}, "Clip 0 of job first-take is not finished.*Rerun from clip 0"),
    ({"from_clip": 4}, "from_clip 4: expected 0 to 3"),
    ({"from_clip": 1, "size": "128*192"}, r"size '128\*192': expected '128\*128'"),
    ({"from_clip": 1, "parent_job_id": "never-submitted"}, "never-submitted has no request.json"),
    ({"from_clip": 1, "parent_job_id": CHILD}, "is the job itself"),
    ({"from_clip": 1, "max_gpu_seconds": 0.001}, "over budget"),
]


# Another legal value of each field of a request.
CHANGES: dict[str, Any] = {
    "image_uri": "s3://bucket/b.png", "audio_uri": "s3://bucket/b.wav", "pose_video_uri": "s3://bucket/b.mp4",
    "prompt": "Other words.", "preset": "quick", "num_clip": 3, "infer_frames": 20, "sample_steps": 9,
    "sample_guide_scale": 2.0, "sample_shift": 4.0, "sample_solver": "dpm++", "guide_steps": [0, 1],
    "adapters": [], "step_cache": "fast",
    "size": "256*256", "base_seed": 9, "start_from_ref": True, "continuity": "cut",
    "min_chain_seconds": 3.0, "max_chain_seconds": 90.0,
    "transition": "crossfade", "clips_per_pod": 2, "priority": "high", "labels": {"team": "sport"},
    "max_gpu_seconds": 7.0, "max_cost": 8.0, "webhook_url": "https://hooks.example.com/x",
    "quality": "gate", "max_retakes": 1, "after_retakes": "stop", "approval": "result",
}  # fmt: skip
MAY_CHANGE = {
    "prompt", "preset", "guide_steps", "adapters", "step_cache",
    "sample_steps", "sample_guide_scale", "sample_shift", "sample_solver",
    "base_seed", "clips_per_pod",
    "priority", "labels", "max_gpu_seconds", "max_cost", "webhook_url",
    "quality", "max_retakes", "after_retakes", "approval",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_rerun_may_change(store: ObjectStore, settings: Settings, name: str) -> None:
    """A rerun may change the sampling and fields on which no clip depends, and nothing else."""
    assert {*CHANGES, "parent_job_id", "from_clip"} == set(Request.model_fields)
    base = {"image_uri": "s3://bucket/a.png", "audio_uri": "s3://bucket/a.wav", "prompt": "A person speaks."}
    if name in ("min_chain_seconds", "max_chain_seconds", "transition"):
        base["continuity"] = "cut"
    earlier = parse_request(base)
    store.put_bytes(JobLayout(PARENT).request, earlier.model_dump_json().encode(), "application/json")
    request = parse_request(base | {name: CHANGES[name], "parent_job_id": PARENT, "from_clip": 1})
    with open_context(CHILD, settings) as ctx:
        if name in MAY_CHANGE:
            assert parent_request(ctx, request) == earlier
        else:
            with pytest.raises(PermanentError, match=rf"^{name} .*: expected .*, as in job {PARENT}"):
                parent_request(ctx, request)


def test_a_rerun_that_cannot_be_is_refused(store: ObjectStore) -> None:
    """The message names the missing clip or the field that may not change, and the remedy."""
    stage(store, PARENT)
    for fields, words in REFUSED:
        with pytest.raises(PermanentError, match=words):
            stage(store, CHILD, **{"parent_job_id": PARENT} | fields)


def test_only_clips_of_the_current_parent_are_reused(
    store: ObjectStore, metadata: MetadataStore, tmp_path: Path
) -> None:
    """Clips of an earlier start with another prompt, seed, size or picture are refused until those return."""
    make(store, PARENT, num_clip=1)
    Image.open(SAMPLES / "portrait.jpg").rotate(180).save(tmp_path / "turned.png")
    store.upload(tmp_path / "turned.png", "turned.png", "image/png")
    turned = {"image_uri": store.uri("turned.png")}
    for change in ({"prompt": "Somebody else."}, {"base_seed": 9}, {"size": "256*256"}, turned):
        metadata.jobs.fail(PARENT, "A person gave it up.")
        stage(store, PARENT, **change)
        with pytest.raises(PermanentError, match="Clip 0 of job first-take belongs to an earlier start"):
            stage(store, CHILD, **{"parent_job_id": PARENT, "from_clip": 1} | change)
    run_job(PARENT, "encode_conditions")
    with pytest.raises(PermanentError, match=r"belongs to an earlier start.*Rerun from clip 0"):
        stage(store, CHILD, **{"parent_job_id": PARENT, "from_clip": 1} | change)
    metadata.jobs.fail(PARENT, "A person gave it up.")
    stage(store, PARENT)
    run_job(PARENT, "encode_conditions")
    stage(store, CHILD, parent_job_id=PARENT, from_clip=1)
    assert stored_job(metadata, CHILD).clips[0].source_job_id == PARENT


def test_a_parent_that_was_not_planned_again_is_refused(store: ObjectStore, metadata: MetadataStore) -> None:
    """A start with another request withdraws the earlier plan, so that a rerun does not use it."""
    stage(store, PARENT)
    uris = {"image_uri": store.uri("portrait.jpg"), "audio_uri": store.uri("speech.mp3")}
    metadata.jobs.fail(PARENT, "A person gave it up.")
    run_job(PARENT, "stage_inputs", request_json=json.dumps(uris | REQUEST | {"sample_steps": 3}))
    with pytest.raises(PermanentError, match=r"first-take has no plan\.json"):
        stage(store, CHILD, parent_job_id=PARENT, from_clip=0, sample_steps=3)


def test_a_rerun_needs_its_parent_only_until_it_is_planned(store: ObjectStore, metadata: MetadataStore) -> None:
    """It continues after its parent was started again with another prompt, or deleted; a lost copy needs the parent."""
    make(store, PARENT, num_clip=1)
    rerun = {"prompt": "Somebody else shouts.", "parent_job_id": PARENT, "from_clip": 1}
    tasks, plan = stage(store, CHILD, **rerun), store.get_bytes(JobLayout(CHILD).plan)
    metadata.jobs.fail(PARENT, "A person gave it up.")
    stage(store, PARENT, prompt="Somebody whispers.")
    assert (stage(store, CHILD, **rerun), store.get_bytes(JobLayout(CHILD).plan)) == (tasks, plan)
    store.delete_all([found.uri for found in store.listing(f"jobs/{PARENT}/")])
    assert (stage(store, CHILD, **rerun), store.get_bytes(JobLayout(CHILD).plan)) == (tasks, plan)
    store.delete(JobLayout(CHILD).clip(0))
    with pytest.raises(PermanentError, match=r"first-take has no request\.json"):
        stage(store, CHILD, **rerun)


def test_a_rerun_without_a_change_is_not_submitted(store: ObjectStore, metadata: MetadataStore) -> None:
    """A clip beyond the plan, or no change, is refused before a job exists; each real change is submitted."""
    stage(store, PARENT, base_seed=-1)
    plan = Plan.model_validate_json(store.get_bytes(JobLayout(PARENT).plan))
    with pytest.raises(PermanentError, match="from_clip 4: expected 0 to 3, the clips of job first-take"):
        rerun(parent=PARENT, from_clip=4, prompt="Other words.", via="drop")
    for same in ({}, {"prompt": REQUEST["prompt"]}, {"sample_steps": 2}, {"base_seed": plan.base_seed},
                 {"sample_shift": plan.sampling.sample_shift}, {"priority": "high"}):  # fmt: skip
        with pytest.raises(
            PermanentError,
            match=r"Nothing is changed: .* from 3 on.*--prompt, --preset, --base-seed.*--adapter,.*s2v fetch",
        ):
            rerun(parent=PARENT, from_clip=3, via="drop", **same)
    for change in ({"prompt": "Other words."}, {"sample_steps": 3}, {"base_seed": 8}, {"sample_shift": 4.5}):
        with pytest.raises(typer.Exit) as done:
            rerun(parent=PARENT, from_clip=3, via="drop", as_json=True, **change)
        assert done.value.exit_code == 0
    assert [job.job_id for job in metadata.jobs.recent()] == [PARENT]  # the others wait in the drop folder
    with pytest.raises(
        PermanentError, match="Job 'nobody' has no inputs in S3: expected a job whose first step has finished"
    ):
        rerun(parent="nobody", via="drop")
    store.delete(JobLayout(PARENT).plan)
    with pytest.raises(PermanentError, match="Job first-take has no plan"):
        rerun(parent=PARENT, via="drop")


def test_inherited_clips_may_be_rendered_with_the_fields_of_the_job(
    store: ObjectStore, metadata: MetadataStore
) -> None:
    """A rerun without changes is accepted from an inherited clip on, and refused from a clip of the job itself."""
    make(store, PARENT, num_clip=2)
    stage(store, CHILD, prompt="Other words.", parent_job_id=PARENT, from_clip=2)
    with pytest.raises(PermanentError, match="Nothing is changed"):
        rerun(parent=CHILD, from_clip=2, via="drop")
    with pytest.raises(typer.Exit):
        rerun(parent=CHILD, from_clip=1, via="drop", as_json=True)


def test_a_preview_becomes_the_video_itself(store: ObjectStore) -> None:
    """`s2v rerun --preset high` keeps clips, frames and seeds of a preview; the sampling is that of the preset."""
    make(store, PARENT, preset="preview", sample_steps=1)
    with pytest.raises(typer.Exit):
        rerun(parent=PARENT, preset="high", sample_steps=2, job_id=CHILD, via="drop", as_json=True)
    uri = next(found.uri for found in store.listing("drop/incoming/") if found.uri.endswith("request.json"))
    request = json.loads(store.get_bytes(uri))
    assert request.pop("job_id") == CHILD
    run_job(CHILD, "stage_inputs", request_json=json.dumps(request))
    run_job(CHILD, "plan_clips")
    before, after = (Plan.model_validate_json(store.get_bytes(JobLayout(job).plan)) for job in (PARENT, CHILD))
    assert (before.preview, before.sampling.sample_steps, before.sampling.guided_steps) == (True, 1, 0)
    assert (after.preview, after.preset) == (False, "high")
    assert after.sampling.model_dump() == {
        "sample_steps": 2, "sample_guide_scale": 5.0, "sample_shift": 3.0, "sample_solver": "unipc",
        "start_from_ref": False,
    }  # fmt: skip
    cost = {"pflops"}
    assert [clip.model_dump(exclude=cost) for clip in after.clips] == [
        clip.model_dump(exclude=cost) for clip in before.clips
    ]
    assert before.warnings[0].startswith("Preview quality: 1 steps without guidance")
    assert "s2v rerun first-take --preset high" in before.warnings[0]
    assert not any(warning.startswith("Preview") for warning in after.warnings)
    run_job(CHILD, "encode_conditions")
    assert not run_job(CHILD, "render_clip", 0)["reused"]


def test_a_job_without_result_is_not_fetched(tmp_path: Path) -> None:
    """Fetching a job without result leaves no file in the folder."""
    with pytest.raises(PermanentError, match="has no result"):
        fetch("never-submitted", to=tmp_path / "out")
    assert not (tmp_path / "out").exists()
