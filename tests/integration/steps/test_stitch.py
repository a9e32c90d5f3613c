"""Check the step stitch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.media import assembly, encode
from s2v_tasks.media.encode import encode_clip, encoder_build
from s2v_tasks.media.frames import read_frames
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.manifest import AssemblyFacts, ClipFacts
from s2v_tasks.schemas.plan import ClipPlan, Estimate, Plan, Sampling, SpeechFacts
from s2v_tasks.schemas.steps import RENDER_CLIP, STITCH
from s2v_tasks.steps import stitch
from s2v_tasks.storage.artifacts import Built, OutputFile, Work

OTHER = "ffmpeg 5.1.9, x264 - core 164 r3095, digest 8f905914e21e"
LENGTHS = (12, 9, 7)


def a_plan(fade: int) -> Plan:
    """Three clips; the last one is a chain of its own and may fade in."""
    clips, start = [], 0
    for index, num_frames in enumerate(LENGTHS):
        clips.append(
            ClipPlan(
                clip_index=index,
                chain_index=index // 2,
                predecessor=0 if index == 1 else None,
                successor=1 if index == 0 else None,
                infer_frames=16,
                start_frame=start,
                end_frame=start + num_frames,
                seed=index,
                latent_shape=(16, 4, 8, 8),
                tokens=64,
                pflops=0.1,
                fade_out_frames=fade if index == 1 else 0,
                fade_in_frames=fade if index == 2 else 0,
            )
        )
        start += num_frames
    return Plan(
        job_id="my-job",
        preset="quick",
        model="tiny",
        width=64,
        height=64,
        speech=SpeechFacts(num_samples=28_000, sample_rate=16_000),
        num_frames=start,
        covered_seconds=1.75,
        sampling=Sampling(
            sample_steps=2, sample_guide_scale=4.5, sample_shift=3.0, sample_solver="unipc", start_from_ref=True
        ),
        base_seed=0,
        clips=tuple(clips),
        estimate=Estimate(
            pflops=0.3, gpu="cpu", gpu_seconds=1, longest_chain_seconds=1, cost=0, currency="EUR", peak_gpu_memory_gib=1
        ),
    )


def finish(context: StepContext, clip: ClipPlan, encoder: str | None, seed: int = 0) -> np.ndarray[Any, Any]:
    """Store a clip as rendered with `encoder`; return its decoded frames."""
    frames = np.random.default_rng([seed, clip.clip_index]).integers(0, 255, (clip.stored_frames, 64, 64, 3), np.uint8)
    decoded = []

    def build(folder: Path) -> Built:
        encode_clip(frames, folder / "clip.mp4", key_frame=clip.fade_in_frames)
        decoded.append(read_frames(folder / "clip.mp4", start_frame=0, end_frame=99))
        outputs = {"clip": OutputFile(folder / "clip.mp4", context.layout.clip(clip.clip_index), "video/mp4")}
        facts = ClipFacts(start_frame=clip.start_frame, end_frame=clip.end_frame)
        return Built(outputs, facts.model_copy(update={"encoder": encoder}) if encoder else facts)

    index, key = clip.clip_index, context.layout.clip_manifest(clip.clip_index)
    context.produce(Work(RENDER_CLIP, context.job_id, key, f"fingerprint-{index}-{seed}", {}, index), build)
    return decoded[0]


def store_plan(context: StepContext, fade: int = 0) -> Plan:
    plan = a_plan(fade)
    context.store.put_bytes(context.layout.plan, plan.model_dump_json().encode(), "application/json")
    return plan


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The videos whose frames were compared with those of their clips."""
    seen: list[Path] = []
    check: Callable[..., None] = assembly._check_frames
    monkeypatch.setattr(assembly, "_check_frames", lambda output, clips: seen.append(output) or check(output, clips))
    return seen


@pytest.mark.parametrize("old", [OTHER, None])
def test_clips_of_two_encoders_are_joined_where_that_changes_no_frame(
    old: str | None, context: StepContext, compared: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of two encoders are joined after a comparison of all frames, and both encoders are recorded."""
    plan = store_plan(context)
    params = encode._H264["x264-params"]
    monkeypatch.setitem(encode._H264, "x264-params", f"{params}:no-mbtree=1:trellis=0")
    decoded = [finish(context, plan.clips[0], old)]
    monkeypatch.setitem(encode._H264, "x264-params", params)
    decoded += [finish(context, clip, encoder_build()) for clip in plan.clips[1:]]
    assert stitch.run(context) == {"reused": False}
    assert len(compared) == 1
    made = context.manifest(context.layout.silent_manifest, STITCH)
    assert made.facts_as(AssemblyFacts).encoders == tuple(sorted([old or "an earlier version", encoder_build()]))
    video = context.artifacts.fetch(made.outputs["silent"], tmp_path / "silent.mp4")
    assert np.array_equal(read_frames(video, start_frame=0, end_frame=99), np.concatenate(decoded))


@pytest.mark.parametrize("encoder", [encoder_build(), OTHER, None])
def test_clips_of_one_encoder_need_no_proof(encoder: str | None, context: StepContext, compared: list[Path]) -> None:
    """Clips of one encoder are joined without decoding a frame."""
    plan = store_plan(context)
    for clip in plan.clips:
        finish(context, clip, encoder)
    stitch.run(context)
    assert compared == []


@pytest.mark.parametrize(("encoder", "times"), [(encoder_build(), 0), (OTHER, 1)])
def test_a_crossfade_is_encoded_by_this_process(
    encoder: str, times: int, context: StepContext, compared: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of a cross-fade have this process's encoder; with another encoder they are encoded again."""
    plan = store_plan(context, fade=4)
    for clip in plan.clips:
        finish(context, clip, encoder)
    assert stitch.run(context) == {"reused": False}
    assert len(compared) == times
    made = context.manifest(context.layout.silent_manifest, STITCH).facts_as(AssemblyFacts)
    assert made.encoders == tuple(sorted({encoder, encoder_build()}))
    assert stitch.run(context) == {"reused": True}
    monkeypatch.setattr(stitch, "encoder_build", lambda: "a third")
    assert stitch.run(context) == {"reused": False}


@pytest.mark.parametrize(("odd", "first"), [(0, 0), (1, 1), (2, 2)])
def test_clips_of_two_encoders_that_do_not_fit_are_named(
    odd: int, first: int, context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different H.264 headers are refused with the encoders, their clips and the command to render them again."""
    plan = store_plan(context)
    for clip in plan.clips:
        monkeypatch.setitem(encode._H264, "bf", 2 if clip.clip_index == odd else 0)
        finish(context, clip, OTHER if clip.clip_index == odd else encoder_build())
    others = ", ".join(str(index) for index in range(3) if index != odd)
    with pytest.raises(PermanentError, match="clips of one video need one encoding profile") as raised:
        stitch.run(context)
    assert f"{OTHER}: clips {odd}" in str(raised.value)
    assert f"{encoder_build()}: clips {others}" in str(raised.value)
    assert f"`s2v rerun my-job --from-clip {first}` renders all with {encoder_build()}." in str(raised.value)


def test_clips_of_one_encoder_that_do_not_fit_blame_no_encoder(
    context: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If clips of one encoder do not fit, the message is that of the encoding profile alone."""
    plan = store_plan(context)
    for clip in plan.clips:
        monkeypatch.setitem(encode._H264, "bf", 2 * clip.clip_index)
        finish(context, clip, OTHER)
    with pytest.raises(PermanentError, match=r"render the clips with another profile again\.$"):
        stitch.run(context)


def test_another_clip_is_joined_anew(context: StepContext) -> None:
    """The joined video is reused for the same clips only."""
    plan = store_plan(context)
    for clip in plan.clips:
        finish(context, clip, encoder_build())
    assert [stitch.run(context)["reused"] for _ in range(2)] == [False, True]
    finish(context, plan.clips[1], encoder_build(), seed=1)
    assert [stitch.run(context)["reused"] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(("start", "end"), [(20, 28), (21, 27)])
def test_a_clip_of_other_frames_is_not_joined(context: StepContext, start: int, end: int) -> None:
    """A clip that starts or ends at another frame than planned is refused."""
    plan = store_plan(context)
    for clip in plan.clips[:2]:
        finish(context, clip, encoder_build())
    finish(context, plan.clips[2].model_copy(update={"start_frame": start, "end_frame": end}), encoder_build())
    with pytest.raises(PermanentError, match=rf"has frames {start}\.\.{end}: expected 21\.\.28.* renders clip 2 again"):
        stitch.run(context)
