"""Render one clip of the tiny snapshot as a worker does, and print the SHA-256 of its frames as JSON."""

import argparse
import hashlib
import json
from itertools import count
from pathlib import Path

import s2v_tasks.engine  # noqa: F401  (sets the environment that torch reads)

# isort: split
import torch
from torch import Tensor

from s2v_tasks.engine.clip import Callbacks, ClipInputs, Sampling
from s2v_tasks.engine.denoising import DenoiseState, Interrupted
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.networks import load_pipeline
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.worker import open_worker

_MADE_BY = "tests.gpu.render_tiny"


def main() -> None:
    """Render the clip, or stop at a given step and save the state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("device", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--stop-at", type=int, help="which question for an interrupt is answered by yes, from 1")
    parser.add_argument("--state", type=Path, help="where a stopped clip is saved and continued from")
    options = parser.parse_args()
    sha256, asked = hashlib.sha256(), count(1)

    def take(frames: Tensor) -> None:
        sha256.update(frames.cpu().numpy().tobytes())

    with open_worker(options.device) as worker:
        engine = EngineOptions(compiled=options.compile)
        pipeline, _ = load_pipeline(worker, Snapshot.open(options.snapshot), "auto", engine, guided=True)
        state = DenoiseState.load(options.state, _MADE_BY) if options.state and options.state.exists() else None
        try:
            pipeline.stream_clip(
                _inputs(),
                Sampling(sample_steps=4, sample_guide_scale=4.0, sample_shift=3.0, sample_solver="unipc"),
                Callbacks(take, is_interrupted=lambda: next(asked) == options.stop_at),
                state=state,
            )
        except Interrupted as stop:
            stop.state.save(options.state, _MADE_BY)
    print(json.dumps({"sha256": sha256.hexdigest()}))


def _inputs() -> ClipInputs:
    """Return conditions of 16 frames of 64x64 pixels, drawn from a seed on the CPU."""
    generator = torch.Generator().manual_seed(3)
    return ClipInputs(
        reference_u8=torch.randint(0, 256, (64, 64, 3), generator=generator).to(torch.uint8),
        context=torch.randn(5, 32, generator=generator),
        context_null=torch.randn(3, 32, generator=generator),
        audio=torch.randn(16, 25, 32, generator=generator),
        pose=None,
        seed=11,
        motion=None,
        start_from_ref=False,
        keep_motion_frames=0,
    )


if __name__ == "__main__":
    main()
