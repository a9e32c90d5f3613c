"""Check the order of clips on rank 0, and the takes of a clip until one is kept."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.errors import PermanentError
from s2v_tasks.rendering import leader
from s2v_tasks.rendering.leader import Leader
from s2v_tasks.rendering.takes import as_take, with_takes
from s2v_tasks.schemas.manifest import Artifact, ClipFacts, Manifest, Producer
from s2v_tasks.schemas.plan import ClipPlan, InheritedClip, Plan
from s2v_tasks.schemas.quality import TakeRecord
from s2v_tasks.schemas.steps import RENDER_CLIP
from s2v_tasks.storage.artifacts import Produced, Work
from s2v_tasks.storage.layout import JobLayout
from tests.unit.rendering.test_leader import clip, plan

NOW = datetime(2026, 11, 20, tzinfo=UTC)
CONDITIONS = Artifact(key="conditions.safetensors", sha256="b" * 64, size_bytes=1)
MOTION = Artifact(key="motion.safetensors", sha256="c" * 64, size_bytes=1)


def manifest(fingerprint: str, chain_takes: tuple[int, ...] = ()) -> Manifest:
    return Manifest(
        step="render_clip", job_id="job-1", fingerprint=fingerprint, producer=Producer(package_version="1"), inputs={},
        outputs={"motion": MOTION}, started_at=NOW, finished_at=NOW,
        facts=ClipFacts(start_frame=0, end_frame=16, chain_takes=chain_takes),
    )  # fmt: skip


def record(kept: int | None, index: int = 1) -> TakeRecord:
    return TakeRecord(clip_index=index, fingerprint="f", kept=kept)


class Site:
    """A leader without engine and services, which is its own gate and records its calls."""

    def __init__(self, of: Plan) -> None:
        self.stored: dict[int, Manifest] = {}
        self.has_retakes = False
        self.decided: list[Manifest] = []
        self.begun: list[tuple[int, str]] = []
        self.checked: list[tuple[int, TakeRecord | None]] = []
        self.takes: TakeRecord | None = None
        self.numbers = [0]
        self.judgements: list[TakeRecord | None] = []
        self.judged: list[tuple[Any, ...]] = []
        self.existing: set[str] = set()
        self.works: list[Work] = []
        self.ended: list[tuple[str, TakeRecord | None]] = []
        self.dropped: list[tuple[Any, ...]] = []
        self.chain_takes: list[tuple[int, ...]] = []
        self.layout, self.job_id, self.world_size = JobLayout("job-1"), "job-1", 1
        self.artifacts = None
        self.leader = Leader.__new__(Leader)
        vars(self.leader).update(
            _ctx=self, _worker=self, _plan=of, _inputs={"conditions": CONDITIONS}, _snapshot=None,
            _options=EngineOptions(), _adapters=(), _gate=self,
        )  # fmt: skip
        self.leader._prints = self.prints(of)

    def prints(self, of: Plan, **takes: int) -> list[str]:
        """Return the fingerprints of the clips with these takes (`_1=2`: take 2 of clip 1)."""
        return self.leader._fingerprints(with_takes(of, {int(name[1:]): take for name, take in takes.items()}))

    def clip_manifest(self, index: int) -> Manifest:
        return self.stored[index]

    def check_decided(self, predecessor: Manifest) -> None:
        self.decided.append(predecessor)

    def begin(self, of: ClipPlan, fingerprint: str) -> TakeRecord | None:
        self.begun.append((of.clip_index, fingerprint))
        return self.takes

    def next_take(self, _clip: ClipPlan, _takes: TakeRecord | None) -> int:
        return self.numbers.pop(0)

    def judge(
        self, of: ClipPlan, takes: TakeRecord | None, made: Manifest, predecessor: Manifest | None
    ) -> TakeRecord | None:
        self.judged.append((of, takes, made.fingerprint, predecessor))
        return self.judgements.pop(0)

    def check(self, of: ClipPlan, takes: TakeRecord | None) -> None:
        self.checked.append((of.clip_index, takes))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(leader, "snapshot_id", lambda _snapshot: "snapshot")
    monkeypatch.setattr(leader, "encoder_build", lambda: "x264")
    return Site(plan())


def test_a_count_beyond_the_plan_is_refused(site: Site) -> None:
    """The message names the requested clips and those of the plan; the last clip is accepted."""
    assert site.leader.clips(3, 1) == plan().clips[3:]
    assert site.leader.clips(1, 2) == plan().clips[1:3]
    with pytest.raises(PermanentError, match=r"^clip_index 4: expected clips of the plan, 0 to 3\.$"):
        site.leader.clips(4, 1)
    with pytest.raises(PermanentError, match=r"^clip_index 3 with count 2: expected clips of the plan, 0 to 3\.$"):
        site.leader.clips(3, 2)


@pytest.mark.parametrize("index", [0, 3])
def test_the_first_clip_of_a_chain_needs_no_other(site: Site, index: int) -> None:
    """The first clip of a chain has no predecessor and waits for no decision."""
    assert site.leader._before(clip(index)) == leader._Before(None, ())
    assert site.decided == []


@pytest.mark.parametrize("chain_takes", [(), (0, 0)])
def test_a_clip_follows_the_one_before_it(site: Site, chain_takes: tuple[int, ...]) -> None:
    """A clip continues its predecessor; a manifest of an earlier version, without takes, counts as the first take."""
    site.stored[1] = manifest(site.prints(plan())[1], chain_takes)
    assert site.leader._before(clip(2)) == leader._Before(site.stored[1], (0, 0))
    assert site.decided == [site.stored[1]]


@pytest.mark.parametrize("has_retakes", [True, False])
def test_a_clip_follows_the_kept_takes_of_a_job_with_the_gate(site: Site, has_retakes: bool) -> None:
    """With the gate a clip continues a kept retake; without it, that retake is not the predecessor in the plan."""
    site.has_retakes = has_retakes
    made = site.prints(plan(), _1=1)[1]
    site.stored[1] = manifest(made, (0, 1))
    if has_retakes:
        assert site.leader._before(clip(2)) == leader._Before(site.stored[1], (0, 1))
    else:
        with pytest.raises(
            PermanentError, match=f"has fingerprint {made[:12]}: expected {site.prints(plan())[1][:12]}"
        ):
            site.leader._before(clip(2))


def test_a_clip_of_other_inputs_is_not_continued(site: Site) -> None:
    """The message has the clip and the command that renders it again, and no decision is read."""
    site.stored[0] = manifest("other")
    with pytest.raises(PermanentError, match=r"^Clip 0 of job job-1 has .*from other inputs.*`s2v retry job-1`"):
        site.leader._before(clip(1))
    assert site.decided == []


@pytest.mark.parametrize(("num_inherited", "takes"), [(1, (2, 0)), (2, (2, 1))])
def test_inherited_clips_keep_their_takes(site: Site, num_inherited: int, takes: tuple[int, ...]) -> None:
    """Takes of inherited clips come from their manifests; only clips of this job need a decision."""
    inherited = tuple(
        InheritedClip(clip_index=index, fingerprint=f"f{index}", source_job_id="job-0", source_manifest_key="m.json")
        for index in range(num_inherited)
    )
    site = Site(plan(inherited=inherited))
    site.stored[1] = manifest(site.leader._prints[1], (2, 1))
    assert site.leader._before(clip(2)).takes == takes
    assert site.decided == ([] if num_inherited == 2 else [site.stored[1]])


class Attempt:
    """An attempt that stores nothing; outputs with a fingerprint of `site.existing` are reused."""

    def __init__(self, site: Site, work: Work, *, world_size: int) -> None:
        assert world_size == 1
        self._site, self._work = site, work

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *_: object) -> None: ...

    def produce(self, build: Callable[[Path], tuple[int, ...]]) -> Produced:
        assert (self._work.step, self._work.clip_index) == (RENDER_CLIP, 1)
        self._site.works.append(self._work)
        self._site.chain_takes.append(build(Path("folder")))
        return Produced(manifest(self._work.fingerprint), self._work.fingerprint in self._site.existing)

    def succeed(self, _produced: Produced, takes: TakeRecord | None) -> None:
        self._site.ended.append(("succeeded", takes))

    def end_take(self, _produced: Produced) -> None:
        self._site.ended.append(("ended", None))


@pytest.fixture
def chained(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A leader whose clip 0 is stored; it records the saved states that are deleted."""
    site.stored[0] = manifest(site.prints(plan())[0])

    def partial(_artifacts: object, _layout: JobLayout, *of: Any) -> Any:
        return SimpleNamespace(drop=lambda: site.dropped.append(of))

    monkeypatch.setattr(leader, "ClipAttempt", Attempt)
    monkeypatch.setattr(Leader, "_build", lambda *of: of[-1])
    monkeypatch.setattr(leader, "PartialClip", partial)
    return site


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_clip_without_measurement_is_made_once(chained: Site, is_stored: bool) -> None:
    """It has the predecessor's motion state and take, and the saved state of an interruption is deleted."""
    made = chained.prints(plan())[1]
    chained.existing = {made} if is_stored else set()
    chained.judgements = [None]
    assert chained.leader.render(clip(1)) is is_stored
    (work,) = chained.works
    assert work.inputs == {"conditions": CONDITIONS, "motion": MOTION}
    assert (work.fingerprint, work.manifest_key) == (made, chained.layout.clip_manifest(1))
    assert chained.begun == [(1, made)]
    assert chained.judged == [(clip(1), None, made, chained.stored[0])]
    assert chained.chain_takes == [(0, 0)]
    assert chained.ended == [("succeeded", None)]
    assert chained.dropped == [(1, made)]
    assert chained.checked == [(1, None)]


@pytest.mark.parametrize("num_stored", [0, 1, 2])
def test_takes_are_made_until_one_is_kept(chained: Site, num_stored: int) -> None:
    """Only the kept take ends the clip, which counts as reused if all its takes were stored. Each knows its chain."""
    prints = [chained.prints(plan(), _1=take)[1] for take in range(2)]
    chained.existing = set(prints[:num_stored])
    chained.numbers, chained.takes = [0, 1], record(None)
    chained.judgements = [record(None), record(1)]
    assert chained.leader.render(clip(1)) is (num_stored == 2)
    assert [work.fingerprint for work in chained.works] == prints
    assert [(of.seed, takes) for of, takes, *_ in chained.judged] == [
        (8, record(None)), (as_take(clip(1), 1).seed, record(None)),
    ]  # fmt: skip
    assert chained.chain_takes == [(0, 0), (0, 1)]
    assert chained.ended == [("ended", None), ("succeeded", record(1))]
    assert chained.dropped == [(1, made) for made in prints]
    assert chained.checked == [(1, record(1))]


def test_an_earlier_take_becomes_the_clip_again(chained: Site) -> None:
    """If an earlier take is the best, it is produced again as the clip."""
    chained.numbers, chained.takes = [1, 0], record(None)
    chained.judgements = [record(0), record(0)]
    assert not chained.leader.render(clip(1))
    assert [work.fingerprint for work in chained.works] == [chained.prints(plan(), _1=take)[1] for take in (1, 0)]
    assert chained.ended == [("ended", None), ("succeeded", record(0))]
