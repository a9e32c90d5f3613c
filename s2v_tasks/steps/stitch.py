"""stitch: join the clips by stream copy; only the frames of a cross-fade are encoded. Writes assembly/silent.mp4.

Clips of several encoders, as in a rerun after an update, are joined if their decoded frames stay equal. Otherwise the
step fails and names the clips to render again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.assembly import crossfade, stitch
from s2v_tasks.media.encode import encoder_build
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.manifest import AssemblyFacts, ClipFacts, Manifest, fingerprint
from s2v_tasks.schemas.plan import ClipPlan, Plan
from s2v_tasks.schemas.steps import STITCH
from s2v_tasks.storage.artifacts import Built, OutputFile, Work

REVISION = 1  # increase it when the same clips are joined differently


def run(ctx: StepContext) -> dict[str, Any]:
    """Join the clips, or reuse the joined video."""
    plan = ctx.plan()
    inputs = _inputs_of_clips(ctx)
    manifests = [_manifest_of(ctx, plan, clip, inputs) for clip in plan.clips]
    clips = {f"clip_{index:04d}": manifest.outputs["clip"] for index, manifest in enumerate(manifests)}
    fades = [clip.fades for clip in plan.clips if any(clip.fades)]
    encoders = [manifest.facts_as(ClipFacts).encoder or "an earlier version" for manifest in manifests]

    def build(folder: Path) -> Built:
        paths = [ctx.artifacts.fetch(artifact, folder / f"{name}.mp4") for name, artifact in clips.items()]
        used = {*encoders, encoder_build()} if fades else set(encoders)
        video = folder / "silent.mp4"
        try:
            stitch(_pieces(plan, paths), video, expected_frames=plan.num_frames, compare_frames=len(used) > 1)
        except PermanentError as error:
            if len(used) == 1:
                raise
            raise PermanentError(f"{error} {_remedy(ctx.job_id, encoders)}") from error
        return Built(
            {"silent": OutputFile(video, ctx.layout.silent, "video/mp4")},
            facts=AssemblyFacts(encoders=tuple(sorted(used))),
        )

    parts = [
        plan.num_frames,
        [item.sha256 for item in clips.values()],
        *([fades, encoder_build()] if fades else []),
    ]
    made_from = fingerprint(STITCH.name, REVISION, *parts)
    work = Work(STITCH, ctx.job_id, ctx.layout.silent_manifest, made_from, clips)
    return {"reused": ctx.produce(work, build).reused}


def _manifest_of(ctx: StepContext, plan: Plan, clip: ClipPlan, inputs: dict[str, str]) -> Manifest:
    """Return the manifest of a finished clip; PermanentError if it belongs to another plan or other inputs.

    A process of an earlier start, which Airflow has lost, may store its clip after the clip of this start.
    """
    key = ctx.layout.clip_manifest(clip.clip_index)
    manifest = ctx.clip_manifest(clip.clip_index)
    facts = manifest.facts_as(ClipFacts)
    frames = facts.start_frame, facts.end_frame
    remedy = f"Start the job again with `s2v retry {ctx.job_id}`, which renders clip {clip.clip_index} again."
    if frames != (clip.start_frame, clip.end_frame):
        raise PermanentError(
            f"{key} has frames {frames[0]}..{frames[1]}: expected {clip.start_frame}..{clip.end_frame}. "
            f"It belongs to another plan. {remedy}"
        )
    if not _belongs(manifest, facts, plan, clip, inputs):
        raise PermanentError(
            f"{key} was made for another request or plan: expected a clip of this start of the job. An earlier start "
            f"may have stored it late. {remedy}"
        )
    return manifest


def _inputs_of_clips(ctx: StepContext) -> dict[str, str]:
    """Return the SHA-256 of the artifacts from which all clips are made, by name."""
    found = (ctx.artifacts.read_manifest(key) for key in (ctx.layout.conditions_manifest, ctx.layout.input_manifest))
    outputs = {name: item.sha256 for manifest in found if manifest for name, item in manifest.outputs.items()}
    return {name: outputs[name] for name in ("conditions", "pose") if name in outputs}


def _belongs(manifest: Manifest, facts: ClipFacts, plan: Plan, clip: ClipPlan, inputs: dict[str, str]) -> bool:
    """Return True if a clip is of this plan and of these inputs. Clips of earlier versions do not name their plan."""
    if clip.clip_index < len(plan.inherited):
        return manifest.fingerprint == plan.inherited[clip.clip_index].fingerprint
    made_from = {name: artifact.sha256 for name, artifact in manifest.inputs.items() if name != "motion"}
    is_current = "conditions" not in inputs or made_from == inputs
    return is_current and facts.plan_digest in {None, plan.digest_of(clip)}


def _pieces(plan: Plan, paths: list[Path]) -> list[Path]:
    """Return the files to join in order: clips, cut at cross-fades, and the mixed frames of cross-fades."""
    pieces: list[Path] = []
    for clip, path in zip(plan.clips, paths, strict=True):
        if clip.fade_in_frames:
            pieces += crossfade(pieces.pop(), path, clip.fade_in_frames, path.parent)
        else:
            pieces.append(path)
    return pieces


def _remedy(job_id: str, encoders: Sequence[str]) -> str:
    """Return a sentence with the encoder of each clip, and the remedy."""
    here = encoder_build()
    made = "; ".join(
        f"{encoder}: clips {', '.join(str(index) for index, other in enumerate(encoders) if other == encoder)}"
        for encoder in dict.fromkeys(encoders)
    )
    first = next(index for index, encoder in enumerate(encoders) if encoder != here)
    return f"They are of several encoders ({made}): `s2v rerun {job_id} --from-clip {first}` renders all with {here}."
