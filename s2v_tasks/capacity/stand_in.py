"""Stand-ins for the networks in a benchmark of the orchestration: their time, and outputs of the right shapes.

They replace two names of two modules inside a process of the benchmark (`capacity.recording`). No setting enables them.
"""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2v_tasks.engine.clip import Callbacks, MotionState
    from s2v_tasks.rendering.renderer import Order

_AUDIO_DIM, _TEXT_DIM, _TOKENS = 32, 32, 8
_LATENT_FRAMES, _CHANNELS = 19, 16
_STRIPES = 16  # pixels


def replace_encoders(module: Any) -> None:
    """Let `steps.encode_conditions` store drawn conditions."""
    import torch

    def encode(_snapshot: Any, *, num_frames: int, image_u8: Any, **_: Any) -> dict[str, Any]:
        return {
            "context": torch.zeros(_TOKENS, _TEXT_DIM),
            "context_null": torch.zeros(_TOKENS, _TEXT_DIM),
            "audio": torch.zeros(num_frames, 25, _AUDIO_DIM),
            "reference_u8": torch.tensor(image_u8),
        }

    module.encode_conditions = encode


def replace_renderer(module: Any, clip_seconds: float) -> None:
    """Make the renderer of `rendering.renderer` wait for `clip_seconds` and return drawn frames."""
    module.Renderer = type("Renderer", (StandIn,), {"clip_seconds": clip_seconds})


class StandIn:
    """Has the methods of `rendering.renderer.Renderer` that the leader calls."""

    clip_seconds = 0.0
    name = "stand-in"

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def saved_state(self, _order: "Order") -> None:
        """Return None: no clip is interrupted."""

    def render(self, order: "Order", _state: None, callbacks: "Callbacks") -> "MotionState | None":
        """Wait, pass on frames with moving stripes, and return a motion state of the usual shape."""
        import torch

        from s2v_tasks.engine.clip import MotionState

        plan, clip = order.plan, order.clip
        num_steps = plan.sampling.sample_steps
        callbacks.on_step(1, num_steps)
        for step in range(2, num_steps + 1):
            time.sleep(self.clip_seconds / (num_steps - 1))
            callbacks.on_step(step, num_steps)
        columns = torch.arange(plan.width)[None, :] + 2 * torch.arange(clip.infer_frames)[:, None]
        rows = (64 + 128 * (columns // _STRIPES % 2)).to(torch.uint8)
        callbacks.on_frames(rows[:, None, :, None].expand(-1, plan.height, -1, 3).contiguous())
        if clip.successor is None:
            return None
        return MotionState(
            latents=torch.zeros(1, _CHANNELS, _LATENT_FRAMES, plan.height // 8, plan.width // 8),
            frames=torch.zeros(1, 3, 1, plan.height, plan.width),
        )

    def clip_facts(self) -> dict[str, Any]:
        """Return the facts of a clip that the leader stores."""
        return {"device": "cpu", "world_size": self._worker.world_size, "parallel_layout": "one rank"}
