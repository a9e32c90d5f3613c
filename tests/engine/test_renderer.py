"""Check the renderer of a rank: the networks that it keeps, and the inputs and sampling of a clip of the plan."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from s2v_tasks.engine.clip import Callbacks, Sampling
from s2v_tasks.engine.denoising import DenoiseState, Interrupted
from s2v_tasks.engine.images import fit_pose
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.media.frames import read_frames
from s2v_tasks.rendering import renderer as renderer_module
from s2v_tasks.rendering.renderer import Order, Renderer, _clip_inputs
from s2v_tasks.schemas.plan import Sampling as PlannedSampling
from tests.engine.small_pipeline import SIDE, make_pipeline
from tests.engine.small_pipeline import inputs as small_inputs
from tests.engine.test_adapters import MODULES, factors, in_layout, weights, written
from tests.unit.rendering.test_leader import clip, plan

SAMPLING: dict[str, Any] = {
    "sample_steps": 4, "sample_guide_scale": 4.0, "sample_shift": 3.0, "sample_solver": "dpm++", "guide_steps": (1, 3)
}  # fmt: skip
CONDITIONS, NAMES = small_inputs(32), ("reference_u8", "context", "context_null", "audio")


def order_of(folder: Path, snapshot: Snapshot | None = None, *, index: int = 0, **paths: Path) -> Order:
    """Return the order of a clip of 16 frames, whose conditions are those of the small pipeline."""
    save_file({name: getattr(CONDITIONS, name) for name in NAMES}, folder / "conditions.safetensors")
    planned = plan(width=SIDE, height=SIDE, sampling=PlannedSampling(**SAMPLING, start_from_ref=index == 0))
    everything: Any = snapshot  # the inputs of a clip need no snapshot
    options = EngineOptions(step_cache=0.3)
    return Order(
        planned, clip(index), everything, {"conditions": folder / "conditions.safetensors"} | paths, options, "auto"
    )


@pytest.fixture(scope="module")
def snapshot(tiny_snapshot_path: Path) -> Snapshot:
    return Snapshot.open(tiny_snapshot_path)


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(Worker(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("place", ["load_pipeline", "_clip_inputs"])
def test_a_full_gpu_fails_a_render_for_good(
    renderer: Renderer, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Too little memory for the networks or for the clip is a permanent error with the remedy."""

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 79 << 30)
    monkeypatch.setattr(renderer_module, place, fails)
    with pytest.raises(PermanentError, match=r"GPU is full.*S2V_OFFLOAD=blocks"):
        renderer.render(order_of(tmp_path, snapshot), None)


def test_a_gpu_that_fills_up_over_several_clips_is_a_reason_for_a_new_process(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first clip of the process fitted: a new process may render the next one, so the error is transient."""

    def fails(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    renderer._pipeline, order = make_pipeline(), order_of(tmp_path)
    renderer.render(order, None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 79 << 30)
    monkeypatch.setattr(renderer_module, "_clip_inputs", fails)
    with pytest.raises(TransientError, match=r"GPU is full.*rendered before: try again with a new one"):
        renderer.render(order, None)


def test_the_networks_are_loaded_once(renderer: Renderer, snapshot: Snapshot, tmp_path: Path) -> None:
    """The second clip uses the networks of the first; their facts are those of the loading."""
    assert "skipped_share" not in renderer.clip_facts()
    started = time.monotonic()
    pipeline = renderer.load(order_of(tmp_path, snapshot))
    elapsed, facts = time.monotonic() - started, dict(renderer.facts)
    assert renderer.load(order_of(tmp_path, snapshot, index=1)) is pipeline
    assert renderer.facts == facts
    assert 0 <= facts.pop("load_seconds") <= elapsed + 0.001
    expected = {"device": "cpu", "world_size": 1, "parallel_layout": "cfg1,ulysses1", "precision": "float32"}
    assert facts.items() >= (expected | {"step_cache": 0.3, "vae_precision": "float32"}).items()
    assert "adapters" not in facts


@pytest.mark.parametrize(("scale", "layout"), [(4.0, "cfg2,ulysses1"), (1.0, "cfg1,ulysses2")])
def test_ranks_compute_one_branch_each_if_the_plan_is_guided(
    scale: float, layout: str, snapshot: Snapshot, tmp_path: Path
) -> None:
    """Two ranks share the tokens of a plan without guidance, which has one branch."""
    order = order_of(tmp_path, snapshot)
    sampling = order.plan.sampling.model_copy(update={"sample_guide_scale": scale})
    order = replace(order, plan=order.plan.model_copy(update={"sampling": sampling}))
    # The other rank does not exist; the message names the layout that was chosen for both.
    with pytest.raises(ConfigurationError, match=rf"parallel layout {layout} takes .* but 1 were started"):
        Renderer(Worker(0, 2, torch.device("cpu"))).load(order)


def test_a_compiled_render_needs_a_writable_cache(
    renderer: Renderer, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the compile cache is checked before the networks are loaded, and only for a compiled render."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match=r"the compile cache .* is not a writable folder"):
        renderer.load(replace(order_of(tmp_path), options=EngineOptions(compiled=True)))
    assert renderer.facts == {}
    assert renderer.load(order_of(tmp_path, snapshot))


def test_adapters_of_the_order_are_merged(renderer: Renderer, snapshot: Snapshot, tmp_path: Path) -> None:
    """The weights are those of the snapshot and the adapter, and the facts name the adapter."""
    plain = weights(snapshot)
    adapter = written(tmp_path / "a.safetensors", in_layout("peft", factors(plain)))
    merged = renderer.load(replace(order_of(tmp_path, snapshot), adapters=(adapter,))).transformer.state_dict()
    expected = weights(snapshot, adapter)
    assert all(torch.equal(weight, expected[key]) for key, weight in merged.items())
    assert not torch.equal(merged[f"{MODULES[0]}.weight"], plain[f"{MODULES[0]}.weight"])
    assert renderer.facts["adapters"] == {adapter.name: adapter.strength}


def test_the_name_of_a_renderer_has_all_that_changes_bytes(renderer: Renderer) -> None:
    """A state is not continued on another device, with another layout or kernel, or with another version."""
    names = ("device", "device_model", "parallel_layout", "attention", "torch_version", "cudnn_version")
    renderer.facts = dict.fromkeys(names, "a")
    plain = renderer.name
    for name in names:
        renderer.facts = dict.fromkeys(names, "a") | {name: "b"}
        assert renderer.name != plain


def test_a_saved_state_is_compared_with_the_loaded_networks(
    renderer: Renderer, snapshot: Snapshot, tmp_path: Path
) -> None:
    """The state of an equal renderer is continued, also before the first clip; without a file there is no state."""
    elsewhere, path = Renderer(Worker(0, 1, torch.device("cpu"))), tmp_path / "state.safetensors"
    elsewhere.load(order_of(tmp_path, snapshot))
    DenoiseState(2, {"latents": torch.zeros(1)}).save(path, elsewhere.name)
    found = renderer.saved_state(order_of(tmp_path, snapshot, state=path))
    assert found is not None
    assert found.step == 2
    assert renderer.saved_state(order_of(tmp_path, snapshot)) is None


def test_a_clip_is_rendered_with_the_sampling_of_the_plan(renderer: Renderer, tmp_path: Path) -> None:
    """Frames, motion state and steps are those of the engine, from the first step or from a saved state."""
    renderer._pipeline = pipeline = make_pipeline()
    pipeline.options = EngineOptions(step_cache=0.3)
    order, frames, steps = order_of(tmp_path), list[Tensor](), list[tuple[int, int]]()
    motion = renderer.render(order, None, Callbacks(frames.append, lambda *step: steps.append(step)))
    inputs = _clip_inputs(order)
    assert renderer.clip_facts()["skipped_share"] == round(pipeline.skipped_share, 4) > 0
    expected = pipeline.render_clip(inputs, Sampling(**SAMPLING))
    assert np.array_equal(torch.cat(frames).numpy(), expected.frames_u8)
    assert motion is not None
    assert expected.motion is not None
    assert torch.equal(motion.latents, expected.motion.latents)
    asked = iter([False] * 3 + [True])
    with pytest.raises(Interrupted) as stop:
        pipeline.render_clip(inputs, Sampling(**SAMPLING), Callbacks(is_interrupted=lambda: next(asked)))
    num_done = stop.value.state.step
    renderer.render(order, stop.value.state, Callbacks(on_step=lambda *step: steps.append(step)))
    assert steps == [(step, 4) for step in (1, 2, 3, 4, *range(num_done + 1, 5))]
    assert 0 < num_done < 4


def test_a_clip_gets_its_part_of_the_inputs(tmp_path: Path) -> None:
    """Speech and pose are those of its frames; the state of the clip before it is passed on."""
    random = np.random.default_rng(1).integers(0, 255, (40, SIDE, SIDE, 3), np.uint8)
    encode_clip(random, tmp_path / "pose.mp4")
    state = {"latents": torch.rand(1, 16, 19, 8, 8), "frames": torch.rand(1, 3, 5, SIDE, SIDE)}
    save_file(state, tmp_path / "motion.safetensors")
    order = order_of(tmp_path, index=1, pose=tmp_path / "pose.mp4", motion=tmp_path / "motion.safetensors")
    inputs = _clip_inputs(order)
    assert torch.equal(inputs.audio, CONDITIONS.audio[16:])
    assert all(torch.equal(getattr(inputs, name), getattr(CONDITIONS, name)) for name in NAMES if name != "audio")
    expected = fit_pose(
        read_frames(tmp_path / "pose.mp4", start_frame=16, end_frame=32), SIDE, SIDE, compat="corrected"
    )
    assert inputs.pose is not None
    assert torch.equal(inputs.pose, expected)
    assert inputs.motion is not None
    assert torch.equal(inputs.motion.latents, state["latents"])
    assert torch.equal(inputs.motion.frames, state["frames"])
    assert (inputs.seed, inputs.start_from_ref, inputs.keep_motion_frames) == (8, False, 0)


def test_the_first_clip_of_a_chain_has_no_state(tmp_path: Path) -> None:
    """Without files of a pose and of a state the clip has neither; its state keeps the frames for later clips."""
    inputs = _clip_inputs(order_of(tmp_path))
    assert (inputs.pose, inputs.motion) == (None, None)
    assert torch.equal(inputs.audio, CONDITIONS.audio[:16])
    assert (inputs.seed, inputs.start_from_ref, inputs.keep_motion_frames) == (7, True, 57)
