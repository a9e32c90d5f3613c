"""mux_audio: add the speech to the stitched clips, in sync and with the same length.

Writes assembly/{muxed.mp4, manifest.json}.
"""

from pathlib import Path
from typing import Any

from s2v_tasks.media.assembly import mux
from s2v_tasks.runtime.context import StepContext, check_made_from
from s2v_tasks.schemas.manifest import AssemblyFacts, fingerprint
from s2v_tasks.schemas.steps import MUX_AUDIO, STAGE_INPUTS, STITCH
from s2v_tasks.storage.artifacts import Built, OutputFile, Work

REVISION = 3  # increase it when the same inputs are muxed differently


def run(ctx: StepContext) -> dict[str, Any]:
    """Mux the video, or reuse it."""
    plan = ctx.plan()
    stitched = ctx.manifest(ctx.layout.silent_manifest, STITCH)
    clips = {f"clip_{clip.clip_index:04d}": ctx.clip_manifest(clip.clip_index).outputs["clip"] for clip in plan.clips}
    check_made_from(stitched, clips, STITCH)
    inputs = {
        "silent": stitched.outputs["silent"],
        "audio": ctx.manifest(ctx.layout.input_manifest, STAGE_INPUTS).outputs["audio"],
    }

    def build(folder: Path) -> Built:
        silent = ctx.artifacts.fetch(inputs["silent"], folder / "silent.mp4")
        audio = ctx.artifacts.fetch(inputs["audio"], folder / "audio")
        mux(silent, audio, folder / "muxed.mp4", num_frames=plan.num_frames, fps=plan.fps)
        return Built({"muxed": OutputFile(folder / "muxed.mp4", ctx.layout.muxed, "video/mp4")}, AssemblyFacts())

    made_from = fingerprint(MUX_AUDIO.name, REVISION, plan.num_frames, [item.sha256 for item in inputs.values()])
    work = Work(MUX_AUDIO, ctx.job_id, ctx.layout.mux_manifest, made_from, inputs)
    return {"reused": ctx.produce(work, build).reused}
