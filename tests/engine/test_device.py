"""Check the clip loop on another device than the host.

Torch's meta device takes the place of a GPU, with shapes, dtypes and devices but no values. It refuses operations on
tensors of two devices, and reading a value, for which the host would wait for a GPU. Other reasons to wait, which it
allows, are searched for among the operations.
"""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s2v_tasks.engine import images
from s2v_tasks.engine import pipeline as pipeline_module
from s2v_tasks.engine.clip import Callbacks, ClipInputs, MotionState, Sampling
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.pipeline import S2VPipeline

SMALL = {
    "dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "freq_dim": 16, "text_dim": 12, "text_len": 8,
    "audio_dim": 6, "audio_inject_layers": [1],
}  # fmt: skip
SIDE, NUM_FRAMES = 64, 16


class NoWaiting(TorchDispatchMode):
    """Fails, while `active`, if the host would wait for a GPU: for copies between them and for checks of a result."""

    active = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.active:
            inputs = {tensor.device.type for tensor in tree_leaves(args) if isinstance(tensor, Tensor)}
            outputs = {tensor.device.type for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}
            # A number of the host beside tensors of the device travels with the call.
            assert not inputs or not outputs or inputs & outputs, f"{func} copies within the steps"
            assert "linalg" not in str(func) or "meta" not in inputs, f"{func} is checked within the steps"
        return result


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_the_loop_stays_on_its_device(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips of a chain with guidance and a pose in bf16 are computed on the device, and no step waits for it."""
    waiting = NoWaiting()

    def is_finite(_values: Tensor) -> bool:
        assert not waiting.active, "a step waits for a value"
        return True

    for module in (pipeline_module, images):
        monkeypatch.setattr(module, "is_finite", is_finite)
    with torch.device("meta"):
        transformer = S2VTransformer(S2VConfig.from_json(SMALL)).to(torch.bfloat16)
        vae = Vae(AutoencoderKLWan(base_dim=8), "meta")
    options = EngineOptions(noise_device="cpu")
    pipeline = S2VPipeline(
        transformer.requires_grad_(requires_grad=False), vae, "meta", torch.bfloat16, options=options
    )
    sampling = Sampling(4, sample_guide_scale=4.0, sample_shift=3.0, sample_solver=solver)
    motion: MotionState | None = None

    def between_steps(done: int, total: int) -> None:
        waiting.active = done < total

    for _ in range(2):
        frames: list[Tensor] = []
        with waiting:
            motion = pipeline.stream_clip(clip(motion=motion), sampling, Callbacks(frames.append, between_steps))
        assert [piece.device.type for piece in frames] == ["meta"] * len(frames)
        assert sum(piece.shape[0] for piece in frames) == NUM_FRAMES
        assert motion is not None
        assert (motion.latents.device.type, motion.latents.dtype) == ("meta", torch.float32)


def clip(**changes: Any) -> ClipInputs:
    """Return the inputs of a clip on the host."""
    values: dict[str, Any] = {
        "reference_u8": np.zeros((SIDE, SIDE, 3), np.uint8),
        "context": torch.zeros(5, SMALL["text_dim"]),
        "context_null": torch.zeros(3, SMALL["text_dim"]),
        "audio": torch.zeros(NUM_FRAMES, 25, SMALL["audio_dim"]),
        "pose": torch.zeros(1, 3, NUM_FRAMES, SIDE, SIDE),
        "seed": 1,
        "motion": None,
        "start_from_ref": False,
        "keep_motion_frames": 73,
    }
    return ClipInputs(**values | changes)
