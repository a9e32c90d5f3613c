"""A metadata store, and plans to store in it."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.schemas.plan import ClipPlan, Estimate, Plan, Sampling, SpeechFacts
from tests.integration.conftest import stored_job


@pytest.fixture
def metadata(engine: sa.Engine) -> MetadataStore:
    return MetadataStore(engine)


def job(metadata: MetadataStore, job_id: str = "job-1") -> Job:
    return stored_job(metadata, job_id)


@pytest.fixture
def plan() -> Callable[..., Plan]:
    """Makes plans of job-1 with the given number of clips in one chain."""
    return _plan


@pytest.fixture
def another_job(metadata: MetadataStore) -> Iterator[None]:
    """A second job, with a clip like one of the tests and one that is being rendered; the test must not change it."""
    metadata.jobs.enqueue("another", {"prompt": "Another person speaks."}, dag_run_id="another-run")
    metadata.jobs.start("another")
    metadata.jobs.record_plan("another", _plan(3))
    metadata.conditions.start("another")
    metadata.clips.start("another", 1, "take-1")
    metadata.clips.end_take("another", 1, reused=False)
    metadata.clips.start("another", 0, "f")
    before = metadata.jobs.get("another")
    yield
    assert metadata.jobs.get("another") == before


@pytest.fixture
def planned(metadata: MetadataStore, another_job: None) -> Callable[..., MetadataStore]:
    """Stores job-1 as started and planned; its request may have more fields."""

    def start(num_clip: int = 2, **fields: str) -> MetadataStore:
        metadata.jobs.enqueue("job-1", {"prompt": "A person speaks."} | fields)
        metadata.jobs.start("job-1")
        metadata.jobs.record_plan("job-1", _plan(num_clip))
        return metadata

    return start


def _plan(num_clip: int, infer_frames: int = 48) -> Plan:
    clips = tuple(
        ClipPlan(
            clip_index=index,
            chain_index=0,
            predecessor=index - 1 if index else None,
            successor=index + 1 if index + 1 < num_clip else None,
            infer_frames=infer_frames,
            start_frame=infer_frames * index,
            end_frame=infer_frames * (index + 1),
            seed=index,
            latent_shape=(16, infer_frames // 4, 104, 60),
            tokens=100,
            pflops=1.0,
        )
        for index in range(num_clip)
    )
    return Plan(
        job_id="job-1",
        preset="quick",
        model="tiny",
        width=480,
        height=832,
        speech=SpeechFacts(num_samples=16000, sample_rate=16000),
        num_frames=num_clip * infer_frames,
        covered_seconds=1.0,
        sampling=Sampling(
            sample_steps=2, sample_guide_scale=4.5, sample_shift=3.0, sample_solver="unipc", start_from_ref=False
        ),
        base_seed=0,
        clips=clips,
        estimate=Estimate(
            pflops=2.0,
            gpu="h100",
            gpu_seconds=12.5,
            longest_chain_seconds=12.5,
            cost=0.1,
            currency="USD",
            peak_gpu_memory_gib=40.0,
        ),
    )
