"""Check fingerprints of clips, the encoded frames, and messages about clips that were made otherwise."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.errors import PermanentError, S2VError, TransientError
from s2v_tasks.rendering import fingerprints, leader, renderer
from s2v_tasks.rendering.fingerprints import clip_fingerprints
from s2v_tasks.schemas.manifest import Manifest, Producer
from s2v_tasks.schemas.plan import ClipPlan, Estimate, InheritedClip, Plan, Sampling, SpeechFacts
from s2v_tasks.settings import load_settings

GOLDEN = ["bfa875e91a2d9ce4", "346bc9c9aa7ad674", "1f4f739f46415138", "df8280c744f3f32d"]
GOLDEN_FADES = [*GOLDEN[:2], "fe1b91534a38c963", "8da4de2b37021da1"]  # of the two clips that meet in a cross-fade


def clip(index: int, **changes: Any) -> ClipPlan:
    """Return one of four clips: two chains, the first of three clips of 16, 16 and 80 frames."""
    start, frames = ((0, 16), (16, 16), (32, 80), (112, 48))[index]
    fields: dict[str, Any] = {
        "clip_index": index,
        "chain_index": index // 3,
        "predecessor": (None, 0, 1, None)[index],
        "successor": (1, 2, None, None)[index],
        "infer_frames": frames,
        "start_frame": start,
        "end_frame": start + frames,
        "seed": 7 + index,
        "latent_shape": (16, frames // 4, 16, 16),
        "tokens": 100,
        "pflops": 1.0,
    }
    return ClipPlan(**fields | changes)


def plan(*clips: ClipPlan, **changes: Any) -> Plan:
    """Return the plan of these clips, which replace those of the same index."""
    taken = {given.clip_index: given for given in clips}
    fields: dict[str, Any] = {
        "job_id": "job-1",
        "preset": "quick",
        "model": "tiny",
        "width": 128,
        "height": 192,
        "speech": SpeechFacts(num_samples=160_000, sample_rate=16_000),
        "num_frames": 160,
        "covered_seconds": 10.0,
        "sampling": Sampling(
            sample_steps=2, sample_guide_scale=4.5, sample_shift=3.0, sample_solver="unipc", start_from_ref=False
        ),
        "base_seed": 7,
        "clips": tuple(taken.get(index, clip(index)) for index in range(4)),
        "estimate": Estimate(
            pflops=2.0,
            gpu="cpu",
            gpu_seconds=12.5,
            longest_chain_seconds=12.5,
            cost=0.1,
            currency="USD",
            peak_gpu_memory_gib=4.0,
        ),
    }
    return Plan(**fields | changes)


def prints(
    of: Plan,
    *,
    snapshot: str = "snapshot",
    options: EngineOptions = EngineOptions(),  # noqa: B008 (frozen)
    encoder: str = "x264",
    **inputs: str,
) -> list[str]:
    return clip_fingerprints(of, inputs or {"conditions": "ab"}, snapshot, options, encoder)


def test_fingerprints_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fingerprints of finished clips do not change, because another value would render them again."""
    monkeypatch.setattr(fingerprints, "REVISION", 5)
    assert [found[:16] for found in prints(plan())] == GOLDEN
    assert [found[:16] for found in prints(plan(clip(3, fade_in_frames=4), clip(2, fade_out_frames=4)))] == GOLDEN_FADES


def test_a_revision_of_the_engine_renders_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another revision of the engine changes all fingerprints."""
    before = prints(plan())
    monkeypatch.setattr(fingerprints, "REVISION", fingerprints.REVISION + 1)
    assert not set(before) & set(prints(plan()))


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"seed": 99}, [0]),
        ({"end_frame": 30}, [0]),
        ({"start_frame": 17}, [0]),
        ({"fade_in_frames": 2}, [0]),
        ({"fade_out_frames": 2}, [0]),
        ({"infer_frames": 20}, []),
        ({"predecessor": None}, [0]),
        ({"successor": None}, []),
        ({"tokens": 7, "pflops": 9.0, "latent_shape": (1, 2, 3, 4), "chain_index": 5}, [0, 1, 2]),
    ],
    ids=str,
)
def test_a_change_of_a_clip_reaches_those_behind_it_in_its_chain(change: dict[str, Any], kept: list[int]) -> None:
    """A change that affects bytes changes the fingerprints of the clip and of later ones of its chain.

    The first clip carries as many frames as later clips need.
    """
    before, after = prints(plan()), prints(plan(clip(1, **change)))
    assert [index for index in range(4) if before[index] == after[index]] == [*kept, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 160},
        {"height": 160},
        {"sampling": Sampling(
            sample_steps=3, sample_guide_scale=4.5, sample_shift=3.0, sample_solver="unipc", start_from_ref=False
        )},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_size_and_sampling_belong_to_every_clip(changes: dict[str, Any]) -> None:
    """Another size or sampling changes the fingerprints of all clips."""
    assert not set(prints(plan())) & set(prints(plan(**changes)))


def test_adapters_belong_to_every_clip() -> None:
    """Digest and strength change all fingerprints, the name does not; without adapters they do not change."""
    adapter = {"name": "voice", "sha256": "a" * 64, "strength": 1.0}
    made = prints(plan(adapters=(adapter,)))
    assert made == prints(plan(adapters=(adapter | {"name": "other"},)))
    for others in ((), (adapter | {"strength": 0.5},), (adapter | {"sha256": "b" * 64},), (adapter, adapter)):
        assert not set(made) & set(prints(plan(adapters=others)))
    assert prints(plan(adapters=())) == prints(plan())


def test_inherited_clips_keep_their_fingerprints() -> None:
    """Inherited clips have the fingerprints of the parent job, and later clips continue from them."""
    inherited = tuple(
        InheritedClip(clip_index=index, fingerprint=f"f{index}", source_job_id="job-0", source_manifest_key="m.json")
        for index in range(2)
    )
    found = prints(plan(inherited=inherited))
    assert found[:2] == ["f0", "f1"]
    own = prints(plan())
    assert (found[2] != own[2], found[3] == own[3]) == (True, True)


def test_a_clip_stores_its_frames_and_those_that_fade_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Surplus frames are not stored, and a key frame is at the end of the fade-in."""
    encoded: list[Any] = []

    def encode(frames: Iterable[Any], path: Path, **options: Any) -> None:
        encoded.extend([[int(frame[0, 0, 0]) for frame in frames], path, options])

    monkeypatch.setattr(leader, "encode_clip", encode)
    pieces = iter([torch.full((4, 2, 2, 3), number, dtype=torch.uint8) for number in range(5)])
    short = clip(1, infer_frames=20, end_frame=28, fade_in_frames=3, fade_out_frames=5)
    leader._encode(short, tmp_path, pieces)
    frames, path, options = encoded
    assert frames == [*[0] * 4, *[1] * 4, *[2] * 4, *[3] * 4, 4]
    assert (path, options) == (tmp_path / "clip.mp4", {"fps": 16, "key_frame": 3})


@pytest.mark.parametrize(("index", "has_poster"), [(0, True), (1, False), (3, False)])
def test_only_the_first_clip_of_a_job_has_a_poster(
    index: int, has_poster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first clips of other chains have no poster."""
    monkeypatch.setattr(leader, "encode_clip", lambda frames, *_, **__: list(frames))
    short = clip(index, infer_frames=16, end_frame=clip(index).start_frame + 16)
    leader._encode(short, tmp_path, iter([torch.zeros((16, 16, 16, 3), dtype=torch.uint8)]))
    assert (tmp_path / "poster.jpg").exists() is has_poster


@pytest.mark.parametrize(
    ("facts", "error", "words"),
    [
        ({}, PermanentError, "from other inputs, weights or settings"),
        ({"encoder": "ours"}, PermanentError, r"again with `s2v retry job-1`: all clips that were made so"),
        ({"encoder": "theirs"}, TransientError, "by the encoder theirs, but this process has ours"),
    ],
    ids=["unknown", "same", "other"],
)
def test_a_clip_of_another_encoder_is_distinguished_from_one_of_other_inputs(
    facts: dict[str, Any], error: type[S2VError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may have the same encoder, so only this error is retried; clips of earlier versions name none."""
    monkeypatch.setattr(leader, "encoder_build", lambda: "ours")
    now = datetime(2026, 11, 20, tzinfo=UTC)
    made = Manifest(
        step="render_clip", job_id="job-1", fingerprint="f", producer=Producer(package_version="1"), inputs={},
        outputs={}, started_at=now, finished_at=now, facts={"start_frame": 0, "end_frame": 16} | facts,
    )  # fmt: skip
    found = leader._not_planned(made, "expected", 2)
    assert type(found) is error
    assert re.search(rf"^Clip 2 of job job-1 .*{words}", str(found))


def test_ranks_wait_for_a_leader_that_waits_for_two_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit of ranks covers an outage of S3 followed by one of PostgreSQL."""
    monkeypatch.setenv("S2V_RETRY_SECONDS", "900")
    load_settings.cache_clear()
    assert renderer.leader_waits_seconds(load_settings()) == 1800
