"""Check that a clip that is interrupted and continued has the bytes of an uninterrupted one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from s2v_tasks.engine.clip import Callbacks, ClipInputs, ClipOutput, Sampling
from s2v_tasks.engine.denoising import DenoiseState, Interrupted
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.networks import load_pipeline
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.options import EngineOptions, NoiseDevice
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import PermanentError
from s2v_tasks.rendering.renderer import Renderer
from tests.engine.clip_inputs import random_clip

RANKS = "cpu cfg1,ulysses1"
SAMPLING = Sampling(sample_steps=5, sample_guide_scale=4.0, sample_shift=3.0, sample_solver="unipc")


def load(snapshot: Snapshot, **options: Any) -> S2VPipeline:
    worker = Worker(0, 1, torch.device("cpu"))
    pipeline, _ = load_pipeline(worker, snapshot, "auto", EngineOptions(**options), guided=True)
    return pipeline


def transformer_of(snapshot: Snapshot, dtype: torch.dtype) -> S2VTransformer:
    transformer = snapshot.build_transformer()
    snapshot.fill_transformer(transformer, "cpu", dtype)
    return transformer


@pytest.fixture(scope="module")
def snapshot(tiny_snapshot_path: Path) -> Snapshot:
    return Snapshot.open(tiny_snapshot_path)


@pytest.fixture(scope="module")
def pipeline(snapshot: Snapshot) -> S2VPipeline:
    return load(snapshot)


@pytest.fixture(scope="module")
def inputs() -> ClipInputs:
    return random_clip(seed=11, keep_motion_frames=0)


def after(num_asked: int) -> Callable[[], bool]:
    """Return a check that interrupts when it is called for the `num_asked`-th time."""
    asked = iter([False] * (num_asked - 1) + [True])
    return lambda: next(asked)


def stopped(pipeline: S2VPipeline, inputs: ClipInputs, sampling: Sampling, forwards: int, folder: Path) -> DenoiseState:
    """Return the state from disk of a clip that was stopped after `forwards` calls, forwards first, then decodings."""
    with pytest.raises(Interrupted) as stop:
        pipeline.render_clip(inputs, sampling, Callbacks(is_interrupted=after(forwards + 1)))
    stop.value.state.save(folder / "state.safetensors", RANKS)
    state = DenoiseState.load(folder / "state.safetensors", RANKS)
    assert state is not None
    assert state.is_finite  # otherwise it would not be saved
    return state


def assert_same(one: ClipOutput, other: ClipOutput) -> None:
    assert one.motion is not None
    assert other.motion is not None
    assert np.array_equal(one.frames_u8, other.frames_u8)
    assert torch.equal(one.motion.latents, other.motion.latents)


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_a_clip_stopped_at_any_step_goes_on_bit_for_bit(
    pipeline: S2VPipeline, inputs: ClipInputs, tmp_path: Path, solver: str
) -> None:
    """A clip stopped before, in or after any step, or while it is decoded, continues to the same bytes."""
    sampling = replace(SAMPLING, sample_solver=solver)
    whole = pipeline.render_clip(inputs, sampling)
    for forwards in (0, 2, 3, 5, 6, 8, 10, 12):
        state = stopped(pipeline, inputs, sampling, forwards, tmp_path)
        step = min(forwards // 2, sampling.sample_steps)
        assert state.step == step
        steps: list[tuple[int, int]] = []
        resumed = pipeline.render_clip(
            inputs, sampling, Callbacks(on_step=lambda *progress, seen=steps: seen.append(progress)), state=state
        )
        assert steps == [(done, sampling.sample_steps) for done in range(step + 1, sampling.sample_steps + 1)]
        assert_same(whole, resumed)


def test_a_clip_goes_on_from_a_state_that_was_copied_between_its_steps(
    pipeline: S2VPipeline, inputs: ClipInputs
) -> None:
    """A copy of the state is offered after each step; copying does not change the clip, and each copy continues it."""
    whole = pipeline.render_clip(inputs, SAMPLING)
    copies: list[DenoiseState] = []
    assert_same(whole, pipeline.render_clip(inputs, SAMPLING, Callbacks(on_state=lambda copy: copies.append(copy()))))
    assert [state.step for state in copies] == list(range(1, SAMPLING.sample_steps + 1))
    for state in copies:
        assert state.is_finite
        assert_same(whole, pipeline.render_clip(inputs, SAMPLING, state=state))


def test_the_first_block_cache_is_restored(snapshot: Snapshot, inputs: ClipInputs, tmp_path: Path) -> None:
    """A clip interrupted before any of its steps, also a skipped one, ends in the same bytes."""
    pipeline = load(snapshot, step_cache=0.2)
    sampling = replace(SAMPLING, sample_steps=8)
    whole = pipeline.render_clip(inputs, sampling)
    share = pipeline.skipped_share
    assert 0 < share < 0.9
    for step in range(sampling.sample_steps + 1):
        state = stopped(pipeline, inputs, sampling, 2 * step + step % 2, tmp_path)
        assert_same(whole, pipeline.render_clip(inputs, sampling, state=state))
        assert pipeline.skipped_share == share


def test_the_cache_is_restored_where_guidance_begins_and_ends(
    snapshot: Snapshot, inputs: ClipInputs, tmp_path: Path
) -> None:
    """A clip whose steps 2 to 5 are guided, interrupted before any of its steps, ends in the same bytes."""
    pipeline = load(snapshot, step_cache=0.2)
    sampling = replace(SAMPLING, sample_steps=8, guide_steps=(2, 6))
    whole = pipeline.render_clip(inputs, sampling)
    share = pipeline.skipped_share
    assert 0 < share < 0.9
    for step in range(sampling.sample_steps + 1):
        state = stopped(pipeline, inputs, sampling, 2 * step, tmp_path)
        assert_same(whole, pipeline.render_clip(inputs, sampling, state=state))
        assert pipeline.skipped_share == pytest.approx(share)


def test_a_state_of_other_ranks_is_not_used(pipeline: S2VPipeline, inputs: ClipInputs, tmp_path: Path) -> None:
    """A state of another device or layout is ignored, and the clip starts at its first step."""
    stopped(pipeline, inputs, SAMPLING, 4, tmp_path)
    assert DenoiseState.load(tmp_path / "state.safetensors", "cpu cfg2,ulysses1") is None


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_a_clip_may_be_stopped_again_and_again(
    pipeline: S2VPipeline, inputs: ClipInputs, tmp_path: Path, solver: str
) -> None:
    """One step per attempt gives the same bytes as all steps in one attempt."""
    sampling = replace(SAMPLING, sample_solver=solver)
    state = stopped(pipeline, inputs, sampling, 2, tmp_path)
    while state.step < sampling.sample_steps:
        with pytest.raises(Interrupted) as stop:
            pipeline.render_clip(inputs, sampling, Callbacks(is_interrupted=after(3)), state=state)
        assert stop.value.state.step == state.step + 1
        state = stop.value.state
    assert_same(pipeline.render_clip(inputs, sampling), pipeline.render_clip(inputs, sampling, state=state))


def test_bf16_latents_keep_their_dtype_in_the_state(snapshot: Snapshot, inputs: ClipInputs, tmp_path: Path) -> None:
    """In bf16, an interrupted clip equals an uninterrupted one, too."""
    vae = snapshot.load_vae("cpu")
    pipeline = S2VPipeline(transformer_of(snapshot, torch.bfloat16), vae, "cpu", torch.bfloat16)
    whole = pipeline.render_clip(inputs, SAMPLING)
    for solver_step in (1, 3):
        state = stopped(pipeline, inputs, SAMPLING, 2 * solver_step, tmp_path)
        assert_same(whole, pipeline.render_clip(inputs, SAMPLING, state=state))


def test_noise_from_the_cpu_does_not_depend_on_the_dtype_of_the_run(snapshot: Snapshot) -> None:
    """With `noise_device="cpu"` bf16 and fp32 start from equal noise, and each seed has its own."""
    shape = (16, 4, 8, 8)

    def draw(dtype: torch.dtype, noise_device: NoiseDevice, seed: int = 1) -> Tensor:
        options = EngineOptions(noise_device=noise_device)
        transformer = transformer_of(snapshot, dtype)
        return S2VPipeline(transformer, snapshot.load_vae("cpu"), "cpu", dtype, options=options)._draw_noise(
            seed, shape
        )

    wide, narrow = torch.float32, torch.bfloat16
    assert torch.equal(draw(wide, "cpu"), draw(narrow, "cpu"))
    assert not torch.equal(draw(wide, "run"), draw(narrow, "run").float())
    assert not torch.equal(draw(wide, "cpu"), draw(wide, "cpu", seed=2))


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    """Bytes that are not tensors and tensors that are not a state are permanent errors."""
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(PermanentError, match="not a saved state"):
        DenoiseState.load(path, RANKS)
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(PermanentError, match="other"):
        DenoiseState.load(path, RANKS)


@pytest.mark.parametrize(
    ("fact", "other"),
    [
        ("device", "cpu"),
        ("device_model", "NVIDIA H200"),
        ("parallel_layout", "cfg2,ulysses1"),
        ("attention", "flash"),
        ("torch_version", "2.14.0"),
        ("cudnn_version", "92000"),
    ],
)
def test_a_state_is_continued_by_the_same_hardware_and_software_alone(fact: str, other: str, tmp_path: Path) -> None:
    """A state of another device, GPU model, layout, kernel or version is not continued."""
    facts = {"device": "cuda", "device_model": "NVIDIA H100", "parallel_layout": "cfg1,ulysses1"}
    facts |= {"attention": "cudnn", "torch_version": "2.13.0", "cudnn_version": "91900", "load_seconds": 1.0}
    here, elsewhere = Renderer(Worker(0, 1, torch.device("cpu"))), Renderer(Worker(0, 1, torch.device("cpu")))
    here.facts, elsewhere.facts = facts, facts | {fact: other}
    path = tmp_path / "state.safetensors"
    DenoiseState(1, {"latents": torch.zeros(1)}).save(path, here.name)
    assert DenoiseState.load(path, here.name) is not None
    assert DenoiseState.load(path, elsewhere.name) is None
