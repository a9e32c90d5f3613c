"""encode_conditions: encode prompt, speech and reference image as tensors, once for all clips of the job.

Writes conditions/{conditions.safetensors, manifest.json}. A render process then needs neither the text encoder
(11 GB) nor the audio encoder. Equal conditions of another job, such as the parent of a rerun, are copied.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from s2v_tasks.engine.conditions import NEGATIVE_PROMPT, encode_conditions
from s2v_tasks.engine.loading import snapshot_id
from s2v_tasks.engine.worker import choose_device, explained_gpu_memory
from s2v_tasks.media.speech import load_waveform
from s2v_tasks.runtime.attempts import ConditionsAttempt
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.runtime.requirements import open_snapshot
from s2v_tasks.schemas.manifest import ConditionsFacts, fingerprint
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, STAGE_INPUTS
from s2v_tasks.storage.artifacts import Built, OutputFile, Work
from s2v_tasks.storage.layout import JobLayout

REVISION = 2  # increase it when the same inputs are encoded differently


def run(ctx: StepContext) -> dict[str, Any]:
    """Encode the conditions, or reuse them."""
    plan, prompt = ctx.plan(), ctx.request().prompt
    staged = ctx.manifest(ctx.layout.input_manifest, STAGE_INPUTS).outputs
    inputs = {name: staged[name] for name in ("image", "audio_16k")}
    snapshot = open_snapshot(ctx.settings, plan.model)
    num_frames = max(clip.start_frame + clip.infer_frames for clip in plan.clips)

    def build(folder: Path) -> Built:
        image = ctx.artifacts.fetch(inputs["image"], folder / "image.png")
        speech = ctx.artifacts.fetch(inputs["audio_16k"], folder / "audio_16k.wav")
        with explained_gpu_memory("Use a GPU with 16 GB or more for this step, or S2V_DEVICE=cpu."):
            tensors = encode_conditions(
                snapshot,
                prompt=prompt,
                negative_prompt=NEGATIVE_PROMPT,
                waveform=load_waveform(speech),
                num_frames=num_frames,
                image_u8=np.asarray(Image.open(image).convert("RGB")),
                width=plan.width,
                height=plan.height,
                device=choose_device(ctx.settings.device),
            )
        path = folder / "conditions.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        facts = ConditionsFacts(prompt=prompt, shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return Built({"conditions": OutputFile(path, ctx.layout.conditions, "application/octet-stream")}, facts)

    made_from = fingerprint(
        ENCODE_CONDITIONS.name,
        REVISION,
        snapshot_id(snapshot),
        [prompt, NEGATIVE_PROMPT],
        [item.sha256 for item in inputs.values()],
        [plan.width, plan.height, num_frames],
    )
    others = ctx.metadata.artifacts.jobs_with_conditions(made_from)
    elsewhere = [JobLayout(job_id).conditions_manifest for job_id in others]
    work = Work(ENCODE_CONDITIONS, ctx.job_id, ctx.layout.conditions_manifest, made_from, inputs, elsewhere=elsewhere)
    with ConditionsAttempt(ctx, work) as attempt:
        produced = attempt.produce(build)
        attempt.succeed(produced)
    return {"reused": produced.reused}
