"""A job of the page: its records in PostgreSQL and its files in S3."""

import io
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2v_tasks.media.assembly import mux, stitch
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.manifest import Artifact, ClipFacts, Manifest, Producer
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.layout import JobLayout, output_video_uri
from s2v_tasks.storage.s3 import ObjectStore

CLIP_FRAMES = 16
POSTER_COLOUR = "#335577"
SPEECH = Path(__file__).parents[1] / "samples" / "speech.mp3"
REQUEST: dict[str, Any] = {
    "image_uri": "s3://bucket/picture.png",
    "audio_uri": "s3://bucket/speech.wav",
    "prompt": "A person explains something.",
}


def plan_of(job_id: str, num_clip: int) -> Plan:
    """Return a plan of clips of one second."""
    clips = [
        {
            **{"clip_index": k, "chain_index": 0, "seed": 7 + k, "tokens": 1, "pflops": 1.0},
            **{"predecessor": k - 1 if k else None, "successor": k + 1 if k + 1 < num_clip else None},
            **{"infer_frames": CLIP_FRAMES, "start_frame": k * CLIP_FRAMES, "end_frame": (k + 1) * CLIP_FRAMES},
            "latent_shape": (16, 4, 16, 16),
        }
        for k in range(num_clip)
    ]
    estimate = {"pflops": 1.0, "gpu": "h100-sxm", "gpu_seconds": 120.0, "longest_chain_seconds": 120.0, "cost": 0.1}
    estimate |= {"currency": "USD", "peak_gpu_memory_gib": 40.0}
    sampling = {"sample_steps": 4, "sample_guide_scale": 4.5, "sample_shift": 3.0, "sample_solver": "unipc"}
    return Plan.model_validate({
        **{"job_id": job_id, "preset": "balanced", "model": "tiny", "width": 128, "height": 192, "base_seed": 7},
        "speech": {"num_samples": num_clip * 16000, "sample_rate": 16000},
        **{"num_frames": num_clip * CLIP_FRAMES, "covered_seconds": float(num_clip), "clips": clips},
        **{
            "sampling": sampling | {"start_from_ref": False},
            "estimate": estimate,
            "warnings": ["The speech is quiet."],
        },
    })


def add_job(metadata: MetadataStore, store: ObjectStore, job_id: str, num_clip: int = 2, **fields: Any) -> JobLayout:
    """Add a planned job with its staged inputs, running, without finished clips."""
    layout, plan = JobLayout(job_id), plan_of(job_id, num_clip)
    metadata.jobs.enqueue(job_id, REQUEST | fields)
    metadata.jobs.start(job_id)
    metadata.jobs.record_plan(job_id, plan)
    store.put_bytes(layout.plan, plan.model_dump_json().encode(), "application/json")
    picture = io.BytesIO()
    Image.new("RGB", (640, 960), "#88aacc").save(picture, format="PNG")
    outputs = {
        "image": store.put_bytes(layout.image, picture.getvalue(), "image/png"),
        "audio_16k": store.put_bytes(layout.audio_16k, float_wav(num_clip * 16000), "audio/wav"),
    }
    record(metadata, job_id, "stage_inputs", outputs)
    return layout


def add_rendered_clip(metadata: MetadataStore, store: ObjectStore, job_id: str, clip_index: int) -> None:
    """Store a clip of one second, with a colour of its own, as rendered."""
    metadata.clips.start(job_id, clip_index, f"{clip_index}" * 64)
    with tempfile.TemporaryDirectory() as folder:
        store.upload(_clip(Path(folder), clip_index), JobLayout(job_id).clip(clip_index), "video/mp4")
    if clip_index == 0:
        frame = io.BytesIO()
        Image.new("RGB", (64, 96), POSTER_COLOUR).save(frame, format="JPEG")
        store.put_bytes(JobLayout(job_id).poster, frame.getvalue(), "image/jpeg")
    facts = ClipFacts(start_frame=clip_index * CLIP_FRAMES, end_frame=(clip_index + 1) * CLIP_FRAMES, mfu=0.4)
    metadata.clips.succeed(job_id, clip_index, facts, False)


def add_finished_job(metadata: MetadataStore, store: ObjectStore, job_id: str, **fields: Any) -> None:
    """Add a job of two clips with its published video, which has sound."""
    layout = add_job(metadata, store, job_id, **fields)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = [_clip(folder, clip_index) for clip_index in range(2)]
        stitch(clips, folder / "silent.mp4", 2 * CLIP_FRAMES)
        mux(folder / "silent.mp4", SPEECH, folder / "video.mp4", num_frames=2 * CLIP_FRAMES, fps=16)
        video = store.upload(folder / "video.mp4", layout.muxed, "video/mp4")
        store.upload(folder / "video.mp4", output_video_uri(load_settings(), job_id), "video/mp4")
    for clip_index in range(2):
        add_rendered_clip(metadata, store, job_id, clip_index)
    record(metadata, job_id, "mux_audio", {"muxed": video})
    metadata.jobs.succeed(job_id, output_video_uri(load_settings(), job_id), video.sha256)


def _clip(folder: Path, clip_index: int) -> Path:
    path = folder / f"{clip_index}.mp4"
    frames = np.full((CLIP_FRAMES, 96, 64, 3), 40 + 40 * clip_index, dtype=np.uint8)
    frames[:, :, :, 0] += np.arange(CLIP_FRAMES, dtype=np.uint8)[:, None, None]
    encode_clip(frames, path, 16)
    return path


def record(metadata: MetadataStore, job_id: str, step: str, outputs: dict[str, Artifact], **facts: Any) -> None:
    """Record the outputs of a step."""
    if step == "stage_inputs":
        facts = {"image": {"width": 640, "height": 960}, "speech": {"num_samples": 16000, "sample_rate": 16000}}
    times = {"started_at": "2026-11-01T10:00:00Z", "finished_at": "2026-11-01T10:00:01Z"}
    manifest = {"step": step, "job_id": job_id, "fingerprint": "f" * 64, "inputs": {}, "outputs": outputs, **times}
    metadata.artifacts.record(
        Manifest.model_validate(manifest | {"producer": Producer(package_version="0"), "facts": facts})
    )


def float_wav(num_samples: int) -> bytes:
    """Return a WAV like that of stage_inputs: mono, float32, 16 kHz; the first half is silent, the second loud."""
    half = num_samples // 2
    data = struct.pack("<f", 0.0) * half + struct.pack("<f", 0.5) * (num_samples - half)
    form = struct.pack("<HHIIHHH", 3, 1, 16000, 64000, 4, 32, 0)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body
