"""The memory of a process does not grow with the clips that it renders."""

import gc
import os
from pathlib import Path

import torch

from s2v_tasks.engine.clip import ClipInputs, MotionState, Sampling
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.media.encode import encode_clip

SAMPLING = Sampling(sample_steps=1, sample_guide_scale=4.0, sample_shift=3.0, sample_solver="unipc")


def resident_bytes() -> int:
    """Memory that this process has now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of_a_chain(snapshot: Snapshot, num_clips: int, folder: Path) -> list[int]:
    """Resident bytes after each of the clips of one chain, rendered and encoded in this process."""
    pipeline = S2VPipeline.from_snapshot(snapshot, "cpu")
    generator = torch.Generator().manual_seed(3)
    reference = torch.randint(0, 256, (64, 64, 3), generator=generator).to(torch.uint8)
    context, context_null = torch.randn(2, 5, 32, generator=generator)
    motion: MotionState | None = None
    memory = []
    for index in range(num_clips):
        audio = torch.randn(16, 25, 32, generator=generator)
        clip = ClipInputs(
            reference, context, context_null, audio, None, index, motion, start_from_ref=False, keep_motion_frames=57
        )
        output = pipeline.render_clip(clip, SAMPLING, lambda _done, _total: None)
        encode_clip(output.frames_u8, folder / "clip.mp4")
        motion = output.motion
        memory.append(resident_bytes())
    return memory


def test_the_last_clip_of_a_chain_needs_no_more_memory_than_an_early_one(
    tiny_snapshot_path: Path, tmp_path: Path
) -> None:
    """After 8 clips the process has at most 2 % more memory than after 4."""
    memory = memory_of_a_chain(Snapshot.open(tiny_snapshot_path), 8, tmp_path)
    assert memory[-1] < 1.02 * memory[3]
