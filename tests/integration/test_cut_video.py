"""Check a video that is cut into chains, from the request to the published file."""

import importlib
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from s2v_tasks.engine.clip import ClipInputs
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.media.frames import read_frames
from s2v_tasks.runtime.context import run_step
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.steps import Step
from s2v_tasks.settings import Settings
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

JOB = "cut-video"
LAYOUT = JobLayout(JOB)
SAMPLE_RATE = 16_000
REQUEST: dict[str, Any] = {
    "prompt": "A drawn portrait speaks.",
    "infer_frames": 44,
    "sample_steps": 2,
    "size": "128*128",
    "base_seed": 7,
    "continuity": "cut",
    "transition": "crossfade",
    "min_chain_seconds": 2,
    "max_chain_seconds": 8,
}


@pytest.fixture
def engine_inputs(monkeypatch: pytest.MonkeyPatch) -> dict[int, ClipInputs]:
    """Return the inputs of the engine for each clip, by seed."""
    inputs: dict[int, ClipInputs] = {}
    stream_clip = S2VPipeline.stream_clip

    def listening(self: S2VPipeline, clip: ClipInputs, *args: Any, **kwargs: Any) -> Any:
        inputs[clip.seed] = clip
        return stream_clip(self, clip, *args, **kwargs)

    monkeypatch.setattr(S2VPipeline, "stream_clip", listening)
    return inputs


def step(name: str, clip_index: int | None = None, **arguments: Any) -> dict[str, Any]:
    body = importlib.import_module(f"s2v_tasks.steps.{name}").run
    return run_step(body, step=Step(name), job_id=JOB, clip_index=clip_index, **arguments)


def three_sentences(path: Path) -> None:
    """Return 8.4 s of speech: sentences of 2, 3.2 and 2 s with pauses of 0.6 s."""
    noise = np.random.default_rng(3)
    parts = [(2.0, 0.1), (0.6, 0.0002), (3.2, 0.1), (0.6, 0.0002), (2.0, 0.1)]
    samples = np.concatenate([noise.standard_normal(int(s * SAMPLE_RATE)) * level for s, level in parts])
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())


def test_chains_of_a_cut_video_are_rendered_apart_and_joined_in_sync(
    settings: Settings, store: ObjectStore, tmp_path: Path, engine_inputs: dict[int, ClipInputs]
) -> None:
    """Each chain gets its own part of the speech and no state of another; frames are in their places; checks pass."""
    three_sentences(tmp_path / "speech.wav")
    store.upload(tmp_path / "speech.wav", "speech.wav", "audio/wav")
    uris = {"image_uri": store.uri("portrait.jpg"), "audio_uri": store.uri("speech.wav")}
    step("stage_inputs", request_json=json.dumps(REQUEST | uris))
    planned = step("plan_clips")["clips"]
    plan = Plan.model_validate_json(store.get_bytes(LAYOUT.plan))
    assert [(clip.start_frame, clip.end_frame) for clip in plan.clips] == [(0, 37), (37, 81), (81, 98), (98, 135)]
    assert [clip["predecessor"] for clip in planned] == [None, None, 1, None]
    step("encode_conditions")
    for index in (3, 1, 2, 0):  # the last chain first: it waits for nobody
        step("render_clip", index)
    for name in ("stitch", "mux_audio"):
        step(name)
    assert step("validate")["num_checks"] >= 13
    step("publish")

    sound = load(store.get_bytes(LAYOUT.conditions))["audio"]
    for clip in plan.clips:
        inputs = engine_inputs[clip.seed]
        assert (inputs.motion is None) == (clip.predecessor is None)
        assert len(inputs.audio) == clip.infer_frames
        assert torch.equal(inputs.audio, sound[clip.start_frame : clip.start_frame + clip.infer_frames])

    joined = decoded(store, f"{settings.output_uri}/{JOB}.mp4", tmp_path)
    assert len(joined) == plan.num_frames == 135
    for clip in plan.clips:
        stored = decoded(store, store.uri(LAYOUT.clip(clip.clip_index)), tmp_path)
        assert len(stored) == clip.stored_frames
        shown = slice(clip.fade_in_frames, clip.num_frames)
        assert np.array_equal(joined[clip.start_frame : clip.end_frame][shown], stored[shown])


def decoded(store: ObjectStore, uri: str, folder: Path) -> Any:
    path = folder / "video.mp4"
    path.write_bytes(store.get_bytes(uri))
    return read_frames(path, start_frame=0, end_frame=10_000)
