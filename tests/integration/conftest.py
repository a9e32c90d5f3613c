"""The embedded services, once for all integration tests: PostgreSQL, S3 and the tiny snapshot.

A test that runs steps in its own process uses `settings` (an installation of its own) instead of `stack`.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.embedded.guard import temporary_home
from s2v_tasks.embedded.stack import Services
from s2v_tasks.metadata.session import create_engine, engine_from_settings
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.runtime.context import StepContext, open_context, run_step
from s2v_tasks.schemas.steps import PIPELINE, Step
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot
from tests.integration.batch_site import site as site
from tests.integration.drop_folder import Folder
from tests.integration.spoiled_clips import findable_face as findable_face
from tests.integration.spoiled_clips import one_limit as one_limit
from tests.integration.spoiled_clips import spoil as spoil

SAMPLES = Path(__file__).parents[1] / "samples"
JOB = "step-by-step"
REQUEST: dict[str, Any] = {
    "prompt": "A drawn portrait speaks.",
    "num_clip": 2,
    "infer_frames": 16,
    "sample_steps": 2,
    "size": "128*128",
    "base_seed": 7,
}
Run = Callable[..., dict[str, Any]]


def run_job(job_id: str, step: str, clip_index: int | None = None, **arguments: Any) -> dict[str, Any]:
    """Run one step of a job in this process."""
    body = importlib.import_module(f"s2v_tasks.steps.{step}").run
    known = {known.name: known for known in PIPELINE}
    return run_step(body, step=known.get(step, Step(step)), job_id=job_id, clip_index=clip_index, **arguments)


def stored_job(metadata: MetadataStore, job_id: str) -> Job:
    """Return a job that exists."""
    record = metadata.jobs.get(job_id)
    assert record is not None
    return record


@pytest.fixture(scope="session")
def stack_home() -> Iterator[Path]:
    """A home folder with running services, which end with this process, even if it is killed."""
    with temporary_home() as home, pytest.MonkeyPatch.context() as patch, ExitStack() as cleanup:
        patch.setenv("S2V_HOME", str(home))
        load_settings.cache_clear()
        cleanup.enter_context(Services(home).in_use())
        patch.undo()
        yield home


@pytest.fixture
def stack(stack_home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of the running services, for this process and its children."""
    monkeypatch.setenv("S2V_HOME", str(stack_home))
    load_settings.cache_clear()
    return load_settings()


@pytest.fixture(scope="session")
def tiny_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "snapshot"
    write_tiny_snapshot(folder, seed=0)
    return folder


@pytest.fixture
def settings(
    s3_settings: Settings, postgres_url: str, tiny_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """An installation of its own, with the samples in its bucket."""
    values = {"DATABASE_URL": postgres_url, "SNAPSHOT_PATH": str(tiny_snapshot), "MODEL": "tiny", "GPU": "cpu"}
    for name, value in values.items():
        monkeypatch.setenv(f"S2V_{name}", value)
    load_settings.cache_clear()
    store = ObjectStore.from_settings(load_settings())
    for name in ("portrait.jpg", "speech.mp3"):
        store.upload(SAMPLES / name, name, "application/octet-stream")
    return load_settings()


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore.from_settings(settings)


@pytest.fixture
def metadata(settings: Settings) -> Iterator[MetadataStore]:
    engine = engine_from_settings(settings)
    yield MetadataStore(engine)
    engine.dispose()


@pytest.fixture
def engine(postgres_url: str) -> Iterator[sa.Engine]:
    """Connections to a fresh, migrated database."""
    engine = create_engine(postgres_url)
    yield engine
    engine.dispose()


@pytest.fixture
def context(s3_settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepContext]:
    """The context of the queued job `my-job`."""
    monkeypatch.setenv("S2V_DATABASE_URL", postgres_url)
    load_settings.cache_clear()
    with open_context("my-job", load_settings()) as context:
        context.metadata.jobs.enqueue("my-job", {})
        yield context


@pytest.fixture
def folder(s3_settings: Settings, object_store: ObjectStore, postgres_url: str) -> Iterator[Folder]:
    """An empty drop folder."""
    engine = create_engine(postgres_url)
    yield Folder(s3_settings, object_store, engine)
    engine.dispose()


@pytest.fixture
def request_json(store: ObjectStore) -> Callable[..., str]:
    """Makes the request of the job "step-by-step": two clips of the samples, with changed fields."""

    def write(**fields: Any) -> str:
        uris = {"image_uri": store.uri("portrait.jpg"), "audio_uri": store.uri("speech.mp3")}
        return json.dumps(uris | REQUEST | fields)

    return write


@pytest.fixture
def run(request_json: Callable[..., str]) -> Run:
    """Runs one step of the job; `stage_inputs` takes fields of the request, other steps their own options."""

    def run(step: str, clip_index: int | None = None, **fields: Any) -> dict[str, Any]:
        arguments = {"request_json": request_json(**fields)} if step == "stage_inputs" else fields
        return run_job(JOB, step, clip_index, **arguments)

    return run


@pytest.fixture
def render(run: Run) -> Callable[..., list[bool]]:
    """Runs the job from its request to its clips; returns the reused clips."""

    def render(**fields: Any) -> list[bool]:
        run("stage_inputs", **fields)
        run("plan_clips")
        run("encode_conditions")
        return [run("render_clip", clip_index)["reused"] for clip_index in range(2)]

    return render


@pytest.fixture
def give_up(metadata: MetadataStore) -> Callable[[], None]:
    """Fails the job, so that it may be started again with another request."""

    def give_up() -> None:
        metadata.jobs.fail(JOB, "A person gave it up.")

    return give_up


@pytest.fixture
def assemble(run: Run) -> Callable[[], None]:
    """Runs the job from its clips to the published video."""

    def assemble() -> None:
        for step in ("stitch", "mux_audio", "validate", "publish"):
            run(step)

    return assemble


@pytest.fixture
def found(metadata: MetadataStore) -> Callable[[], Job]:
    """Reads the job from the metadata store."""

    return lambda: stored_job(metadata, JOB)


@pytest.fixture
def processes_of() -> Callable[[str], list[str]]:
    """A function that returns the running processes of a job."""

    def processes_of(job_id: str) -> list[str]:
        """Return the command lines of the other running processes that work on a job."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            if folder.name == str(os.getpid()):
                continue
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if job_id in words:
                found.append(" ".join(words))
        return found

    return processes_of
