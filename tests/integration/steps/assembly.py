"""Builders of a job whose clip and speech are small files in S3."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from s2v_tasks.media.encode import encode_clip
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.manifest import ClipFacts, StagedFacts, StagedImage, StagedSpeech
from s2v_tasks.schemas.plan import ClipPlan, Estimate, Plan, Sampling, SpeechFacts
from s2v_tasks.schemas.steps import RENDER_CLIP, STAGE_INPUTS
from s2v_tasks.steps import mux_audio, stitch
from s2v_tasks.storage.artifacts import Built, OutputFile, Work

NUM_FRAMES = 24
RATE = 16_000
SIZE = 64

PLAN = Plan(
    job_id="my-job",
    preset="quick",
    model="tiny",
    width=SIZE,
    height=SIZE,
    speech=SpeechFacts(num_samples=RATE * 2, sample_rate=RATE),
    num_frames=NUM_FRAMES,
    covered_seconds=1.5,
    sampling=Sampling(
        sample_steps=2, sample_guide_scale=4.5, sample_shift=3.0, sample_solver="unipc", start_from_ref=True
    ),
    base_seed=0,
    clips=(
        ClipPlan(
            clip_index=0,
            chain_index=0,
            predecessor=None,
            successor=None,
            infer_frames=24,
            start_frame=0,
            end_frame=NUM_FRAMES,
            seed=1,
            latent_shape=(16, 4, 8, 8),
            tokens=64,
            pflops=0.1,
        ),
    ),
    estimate=Estimate(
        pflops=0.1, gpu="cpu", gpu_seconds=1, longest_chain_seconds=1, cost=0, currency="EUR", peak_gpu_memory_gib=1
    ),
)


def moving_frames() -> np.ndarray:
    """Return frames `[24, 64, 64, 3]` of which no two are alike."""
    rows = np.arange(SIZE)
    waves = [128 + 100 * np.sin((rows[:, None] + rows[None] + 5 * k) / 7) for k in range(NUM_FRAMES)]
    return np.repeat(np.stack(waves)[..., None], 3, axis=-1).astype(np.uint8)


def speech(level: float = 0.2, seed: int = 3) -> np.ndarray:
    """Return 2 s of noise: half a second more than the video needs."""
    return np.random.default_rng(seed).uniform(-level, level, RATE * 2).astype(np.float32)


def put_plan(job: StepContext, **changes: Any) -> None:
    plan = PLAN.model_copy(update=changes)
    job.store.put_bytes(job.layout.plan, plan.model_dump_json().encode(), "application/json")


def put_request(job: StepContext, **changes: Any) -> None:
    asked = job.request().model_copy(update=changes)
    job.store.put_bytes(job.layout.request, asked.model_dump_json().encode(), "application/json")


def stage(job: StepContext, samples: np.ndarray) -> None:
    """Store the speech as stage_inputs does."""
    facts = StagedFacts(
        image=StagedImage(width=SIZE, height=SIZE), speech=StagedSpeech(num_samples=len(samples), sample_rate=RATE)
    )

    def build(folder: Path) -> Built:
        soundfile.write(folder / "audio.wav", samples, RATE, subtype="FLOAT")
        audio = OutputFile(folder / "audio.wav", job.layout.audio("wav"), "audio/wav")
        return Built({"audio": audio, "audio_16k": copied(folder, audio.path, job.layout.audio_16k)}, facts)

    job.produce(Work(STAGE_INPUTS, job.job_id, job.layout.input_manifest, f"speech-{samples.sum()}", {}), build)


def copied(folder: Path, source: Path, key: str) -> OutputFile:
    target = folder / "audio_16k.wav"
    target.write_bytes(source.read_bytes())
    return OutputFile(target, key, "audio/wav")


def render(job: StepContext, frames: np.ndarray) -> None:
    """Store the clip as render_clip does."""

    def build(folder: Path) -> Built:
        encode_clip(frames, folder / "clip.mp4")
        outputs = {"clip": OutputFile(folder / "clip.mp4", job.layout.clip(0), "video/mp4")}
        return Built(outputs, ClipFacts(start_frame=0, end_frame=NUM_FRAMES, source_job_id="an-earlier-job"))

    made_from = f"clip-{int(frames.sum())}"
    job.produce(Work(RENDER_CLIP, job.job_id, job.layout.clip_manifest(0), made_from, {}, clip_index=0), build)


def assemble(job: StepContext) -> None:
    stitch.run(job)
    mux_audio.run(job)
