"""stitch: join the clips by stream copy; only the frames of a cross-fade are encoded. Writes assembly/silent.mp4."""

from pathlib import Path
from typing import Any

from s2v_tasks.errors import TransientError
from s2v_tasks.media.concat import stitch
from s2v_tasks.media.crossfade import crossfade
from s2v_tasks.schemas.manifest import fingerprint
from s2v_tasks.steps.context import StepContext
from s2v_tasks.storage.artifacts import Built, OutputFile

REVISION = 1  # raise it when the same clips would be joined differently


def run(ctx: StepContext) -> dict[str, Any]:
    plan = ctx.plan()
    clips = {}
    for clip in plan.clips:
        key = ctx.layout.clip_manifest(clip.clip_index)
        manifest = ctx.manifest(key, made_by=f"render-clip --clip-index {clip.clip_index}")
        frames = manifest.facts["start_frame"], manifest.facts["end_frame"]
        if frames != (clip.start_frame, clip.end_frame):
            raise TransientError(
                f"{key} has frames {frames[0]}..{frames[1]}: expected {clip.start_frame}..{clip.end_frame}. "
                f"It belongs to another plan; render clip {clip.clip_index} again first."
            )
        clips[f"clip_{clip.clip_index:04d}"] = manifest.outputs["clip"]

    def build(folder: Path) -> Built:
        pieces: list[Path] = []
        for clip, (name, artifact) in zip(plan.clips, clips.items(), strict=True):
            path = folder / f"{name}.mp4"
            ctx.artifacts.fetch(artifact, path)
            if clip.fade_in_frames:
                pieces += crossfade(pieces.pop(), path, clip.fade_in_frames, folder)
            else:
                pieces.append(path)
        stitch(pieces, folder / "silent.mp4", expected_frames=plan.num_frames)
        return Built({"silent": OutputFile(folder / "silent.mp4", ctx.layout.silent, "video/mp4")}, facts={})

    fades = [clip.fades for clip in plan.clips if any(clip.fades)]
    parts = [plan.num_frames, [item.sha256 for item in clips.values()], *([fades] if fades else [])]
    produced = ctx.produce(
        step="stitch",
        manifest_key=ctx.layout.silent_manifest,
        fingerprint=fingerprint("stitch", REVISION, *parts),
        inputs=clips,
        build=build,
    )
    return {"reused": produced.reused}
