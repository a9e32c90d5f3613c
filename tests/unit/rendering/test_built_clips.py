"""Check the build of a clip on rank 0: continuation of an interrupted clip, and the stored outputs."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch
from safetensors.torch import load_file

from s2v_tasks.capacity.stand_in import StandIn
from s2v_tasks.engine.clip import Callbacks, MotionState
from s2v_tasks.engine.denoising import DenoiseState, Interrupted
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.rendering import leader, saved_states
from s2v_tasks.rendering.leader import Leader
from s2v_tasks.rendering.renderer import Order
from s2v_tasks.runtime.attempts import AttemptInterruptedError
from s2v_tasks.schemas.manifest import Artifact, ClipFacts, Manifest, PartialClipFacts, Producer
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.artifacts import Built
from s2v_tasks.storage.layout import JobLayout
from tests.unit.rendering.test_leader import clip, plan

MOTION = MotionState(latents=torch.zeros(1, 2), frames=torch.ones(1, 2))
SAVED_STEP, EARLIER_SECONDS, SECONDS = 3, 10.0, 2.5
STATE = Artifact(key="jobs/job-1/clips/0001/partial/f/state-0003.safetensors", sha256="a" * 64, size_bytes=1)
CONDITIONS = Artifact(key="jobs/job-1/conditions/conditions.safetensors", sha256="b" * 64, size_bytes=1)
BEFORE = Artifact(key="jobs/job-1/clips/0000/motion.safetensors", sha256="c" * 64, size_bytes=1)
PRODUCER = Producer(package_version="1")
NOW = datetime(2026, 11, 20, tzinfo=UTC)


class Site:
    """A leader whose renderer takes 2.5 seconds for black frames; it records orders, downloads and saved states."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work_dir = folder / "clip", folder / "work"
        self.folder.mkdir()
        self.now = 100.0
        self.orders: list[Order] = []
        self.rendered_from: list[DenoiseState | None] = []
        self.fetched: list[Path] = []
        self.saved: list[tuple[int, str, PartialClipFacts]] = []
        self.num_done = 0
        self.interrupted_at: int | None = None
        self.motion: MotionState | None = None
        self.known_state: DenoiseState | None = None  # None: it was saved on another device
        self.saved_manifest: Manifest | None = None
        self.name, self.layout, self.settings = "cpu", JobLayout("job-1"), load_settings()
        self.artifacts = SimpleNamespace(fetch=self.fetch)
        self.leader = Leader.__new__(Leader)
        vars(self.leader).update(
            _ctx=self, _worker=self, _plan=plan(), _inputs={"conditions": CONDITIONS}, _snapshot=None,
            _options=EngineOptions(), _adapters=(), _renderer=self, _fetched={},
        )  # fmt: skip

    def build(self, index: int = 1, chain_takes: tuple[int, ...] = (0, 0), **inputs: Artifact) -> Built:
        made: Any = self  # in the place of the saved state, too
        return self.leader._build(clip(index), {"conditions": CONDITIONS} | inputs, made, self.folder, chain_takes)

    def plan(self) -> Plan:
        return plan()

    def request(self) -> None:
        """There is none: the inputs of the clip are fixed."""

    def fetch(self, _artifact: Artifact, path: Path) -> Path:
        self.fetched.append(path)
        return path

    def share(self, order: Order) -> None:
        self.orders.append(order)

    def done(self) -> None:
        self.num_done += 1

    def peak_memory_bytes(self) -> dict[str, int]:
        return {}

    def find(self) -> Manifest | None:
        return self.saved_manifest

    def save(self, path: Path, facts: PartialClipFacts) -> None:
        state = DenoiseState.load(path, self.name)
        assert state is not None
        self.saved.append((state.step, path.name, facts))

    def saved_state(self, _order: Order) -> DenoiseState | None:
        return self.known_state

    def clip_facts(self) -> dict[str, Any]:
        return {"device": "cpu", "precision": "float32", "world_size": 1}

    def render(self, _order: Order, state: DenoiseState | None, callbacks: Callbacks) -> MotionState | None:
        self.rendered_from.append(state)
        self.now += SECONDS
        if self.interrupted_at is not None:
            raise Interrupted(DenoiseState(self.interrupted_at, {"latents": torch.zeros(1)}))
        callbacks.on_frames(torch.zeros((16, 16, 16, 3), dtype=torch.uint8))
        return self.motion


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path)
    monkeypatch.setattr(saved_states, "time", SimpleNamespace(monotonic=lambda: site.now))
    monkeypatch.setattr(leader, "encode_clip", lambda frames, path, **_: path.write_bytes(bytes(len(list(frames)))))
    monkeypatch.setattr(leader, "encoder_build", lambda: "x264")
    monkeypatch.setattr(leader, "_inputs", lambda *_: {"conditions": CONDITIONS})
    yield site
    assert site.num_done == 1  # the other ranks wait for it


def interrupted_before(site: Site, *, is_loadable: bool = True) -> DenoiseState:
    """Add an attempt of 10 seconds that was interrupted after step 3; return its state."""
    state = DenoiseState(SAVED_STEP, {"latents": torch.zeros(1)})
    site.saved_manifest = Manifest(
        step="render_clip", job_id="job-1", fingerprint="f", producer=PRODUCER, inputs={}, outputs={"state": STATE},
        started_at=NOW, finished_at=NOW,
        facts=PartialClipFacts(solver_step=SAVED_STEP, render_seconds=EARLIER_SECONDS),
    )  # fmt: skip
    site.known_state = state if is_loadable else None
    return state


def test_an_interruption_before_the_first_step_leaves_nothing(site: Site) -> None:
    """Nothing is saved, because no step was computed."""
    site.interrupted_at = 0
    with pytest.raises(AttemptInterruptedError, match="clip 1 was interrupted after solver step 0 of 2"):
        site.build()
    assert site.saved == []


@pytest.mark.parametrize(
    ("was_interrupted", "is_loadable", "seconds"),
    [(False, False, SECONDS), (True, True, EARLIER_SECONDS + SECONDS), (True, False, SECONDS)],
)
def test_seconds_of_earlier_attempts_count_where_their_work_is_continued(
    site: Site, was_interrupted: bool, is_loadable: bool, seconds: float
) -> None:
    """The saved seconds include those of an earlier attempt only if its state is continued, which the log then says."""
    if was_interrupted:
        interrupted_before(site, is_loadable=is_loadable)
    site.interrupted_at = 5
    with (
        structlog.testing.capture_logs() as logged,
        pytest.raises(AttemptInterruptedError, match="after solver step 5 of 2: the next attempt continues there"),
    ):
        site.build()
    continued = [line["event"] for line in logged if "continues" in line["event"]]
    assert continued == ([f"clip 1 continues after solver step {SAVED_STEP} of 2"] if is_loadable else [])
    assert site.saved == [(5, "saved.safetensors", PartialClipFacts(solver_step=5, render_seconds=seconds))]


@pytest.mark.parametrize(
    ("is_loadable", "seconds"), [(True, EARLIER_SECONDS + SECONDS), (False, SECONDS)], ids=["same", "another device"]
)
def test_a_clip_continues_from_its_saved_state(site: Site, is_loadable: bool, seconds: float) -> None:
    """The order has the file of the state for all ranks, and the facts have the seconds of both attempts."""
    state = interrupted_before(site, is_loadable=is_loadable)
    built = site.build()
    assert site.orders[0].paths["state"] == site.folder / "state-0003.safetensors"
    assert site.rendered_from == [state if is_loadable else None]
    assert isinstance(built.facts, ClipFacts)
    assert built.facts.render_seconds == seconds


def test_conditions_are_downloaded_once(site: Site) -> None:
    """The conditions are downloaded once per process, and the motion state once per clip."""
    site.build(motion=BEFORE)
    site.num_done = 0
    site.build(2, (0, 0, 0), motion=BEFORE)
    assert site.fetched == [site.work_dir / "conditions.safetensors", *[site.folder / "motion.safetensors"] * 2]
    assert [order.paths for order in site.orders] == [
        {"conditions": site.work_dir / "conditions.safetensors", "motion": site.folder / "motion.safetensors"}
    ] * 2


@pytest.mark.parametrize("index", [0, 1, 3])
@pytest.mark.parametrize("has_motion", [False, True])
def test_a_clip_has_the_outputs_of_its_place(site: Site, index: int, has_motion: bool) -> None:
    """Only the first clip of a job has a poster, and a motion state is stored if the engine returns one."""
    site.motion = MOTION if has_motion else None
    built = site.build(index)
    keys = {name: output.key for name, output in built.outputs.items()}
    expected = {"clip": site.layout.clip(index)}
    if index == 0:
        expected["poster"] = site.layout.poster
    if has_motion:
        expected["motion"] = site.layout.motion(index)
        assert set(load_file(built.outputs["motion"].path)) == {"latents", "frames"}
    assert keys == expected
    assert all(output.path.exists() for output in built.outputs.values())


@pytest.mark.parametrize(
    ("chain_takes", "facts"),
    [
        ((0, 0), (0, None, ())),
        ((1, 0), (0, 8, (1, 0))),
        ((0, 2), (2, 8, (0, 2))),
    ],
)
def test_a_clip_names_its_take_if_its_chain_has_a_retake(
    site: Site, chain_takes: tuple[int, ...], facts: tuple[Any, ...]
) -> None:
    """Manifests of chains without retakes have no fields about takes."""
    made = site.build(1, chain_takes).facts
    assert isinstance(made, ClipFacts)
    assert (made.take, made.seed, made.chain_takes) == facts
    assert (made.encoder, made.plan_digest) == ("x264", plan().digest_of(plan().clips[1]))
    assert (made.start_frame, made.end_frame, made.device) == (16, 32, "cpu")


def test_a_benchmark_without_networks_makes_a_whole_clip(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in of the renderer reports its steps, and gives all frames and a motion state for the next clip."""
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(leader, "Progress", lambda *_: lambda *step: steps.append(step))
    vars(site).update(world_size=1)
    vars(site.leader).update(_renderer=StandIn(site))
    outputs = site.build(0).outputs
    assert steps == [(1, 2), (2, 2)]
    assert len(outputs["clip"].path.read_bytes()) == 16
    assert set(outputs) == {"clip", "poster", "motion"}
