"""The leader, rank 0: it finds clips that exist, and renders, encodes and stores those that are missing."""

import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from s2v_tasks import log
from s2v_tasks.engine.loading import snapshot_id
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.resume import Interrupted
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.media.background import background_consumer
from s2v_tasks.media.encode import encode_clip, encoder_build
from s2v_tasks.rendering.fingerprints import clip_fingerprints
from s2v_tasks.rendering.order import Order, Renderer
from s2v_tasks.rendering.progress import Progress, clip_facts
from s2v_tasks.runtime.attempts import AttemptInterruptedError, ClipAttempt
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.runtime.requirements import open_snapshot
from s2v_tasks.schemas.facts import ClipFacts, PartialClipFacts
from s2v_tasks.schemas.manifest import Artifact, Manifest
from s2v_tasks.schemas.plan import FPS, ClipPlan
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP, STAGE_INPUTS
from s2v_tasks.storage.artifacts import Built, OutputFile, Work
from s2v_tasks.storage.partial_clips import PartialClip

if TYPE_CHECKING:
    from torch import Tensor


class Leader:
    """Rank 0 of the ranks that render clips of a job; it shares each clip with the followers as an `Order`."""

    def __init__(self, ctx: StepContext, worker: Worker) -> None:
        self._ctx, self._worker = ctx, worker
        self._plan = ctx.plan()
        self._snapshot = open_snapshot(ctx.settings, self._plan.model)
        self._inputs = _inputs(ctx)
        self._options = EngineOptions.of(ctx.settings)
        self._prints = clip_fingerprints(
            self._plan,
            {name: item.sha256 for name, item in self._inputs.items()},
            snapshot_id(self._snapshot.path),
            self._options,
            encoder_build(),
        )
        self._renderer = Renderer(worker)
        self._fetched: dict[str, Path] = {}  # inputs of all clips that are on disk

    def clips(self, first: int, count: int) -> tuple[ClipPlan, ...]:
        """Return `count` clips of the plan from `first` on; PermanentError if the plan has fewer."""
        num_clip = self._plan.num_clip
        if first + count > num_clip:
            wanted = f"clip_index {first}" + (f" with count {count}" if count > 1 else "")
            raise PermanentError(f"{wanted}: expected clips of the plan, 0 to {num_clip - 1}.")
        return self._plan.clips[first : first + count]

    def render(self, clip: ClipPlan) -> bool:
        """Make the clip durable; return True if it existed."""
        ctx, index = self._ctx, clip.clip_index
        log.bind(clip_index=index)
        inputs = dict(self._inputs)
        predecessor = self._predecessor(clip)
        if predecessor is not None:
            inputs["motion"] = predecessor.outputs["motion"]
        manifest_key, made_from = ctx.layout.clip_manifest(index), self._prints[index]
        work = Work(RENDER_CLIP, ctx.job_id, manifest_key, made_from, inputs, clip_index=index)
        saved_clip = PartialClip(ctx.artifacts, ctx.layout, index, made_from)
        with ClipAttempt(ctx, work, world_size=self._worker.world_size) as attempt:
            produced = attempt.produce(lambda folder: self._build(clip, inputs, saved_clip, folder))
            saved_clip.drop()
            attempt.succeed(produced)
        return produced.reused

    def _predecessor(self, clip: ClipPlan) -> Manifest | None:
        """Return the manifest of the clip before; TransientError unless it has the fingerprint of this plan."""
        if clip.predecessor is None:
            return None
        key = self._ctx.layout.clip_manifest(clip.predecessor)
        manifest = self._ctx.clip_manifest(clip.predecessor)
        expected = self._prints[clip.predecessor]
        if manifest.fingerprint != expected:
            raise TransientError(
                f"{key} has fingerprint {manifest.fingerprint[:12]}: expected {expected[:12]}. It was made "
                f"{_difference(manifest)}; render clip {clip.predecessor} again first."
            )
        return manifest

    def _build(self, clip: ClipPlan, inputs: dict[str, Artifact], saved_clip: PartialClip, folder: Path) -> Built:
        """Render and encode the clip in `folder`; AttemptInterruptedError if it is interrupted with its state saved."""
        ctx = self._ctx
        saved = saved_clip.find()
        needed = inputs if saved is None else inputs | {"state": saved.outputs["state"]}
        order = Order(
            self._plan,
            clip,
            self._snapshot,
            self._fetch(needed, folder),
            self._options,
            ctx.settings.parallel_layout,
        )
        self._worker.share(order)
        state = self._renderer.saved_state(order)
        earlier_seconds = saved.facts_as(PartialClipFacts).render_seconds if saved and state else 0.0
        started = time.monotonic()
        try:
            progress = Progress(ctx, self._plan, clip, self._worker.peak_memory_bytes)
            with background_consumer(partial(_encode, clip, folder / "clip.mp4")) as take:
                motion = self._renderer.render(order, state, take, on_step=progress)
                render_seconds = earlier_seconds + time.monotonic() - started
        except Interrupted as stop:
            self._worker.done()
            step, num_steps = stop.state.step, self._plan.sampling.sample_steps
            if step:
                stop.state.save(folder / "interrupted.safetensors", self._renderer.name)
                seconds = earlier_seconds + time.monotonic() - started
                facts = PartialClipFacts(solver_step=step, render_seconds=seconds)
                saved_clip.save(folder / "interrupted.safetensors", facts)
            raise AttemptInterruptedError(
                f"clip {clip.clip_index} was interrupted after solver step {step} of {num_steps}: "
                "the next attempt goes on there."
            ) from stop
        engine_facts = self._renderer.clip_facts()
        self._worker.done()
        outputs = {"clip": OutputFile(folder / "clip.mp4", ctx.layout.clip(clip.clip_index), "video/mp4")}
        if motion is not None:
            path = folder / "motion_out.safetensors"
            save_file({"latents": motion.latents.contiguous(), "frames": motion.frames.contiguous()}, path)
            outputs["motion"] = OutputFile(path, ctx.layout.motion(clip.clip_index), "application/octet-stream")
        made = {"plan_digest": self._plan.digest_of(clip), "encoder": encoder_build()}
        return Built(outputs, clip_facts(ctx.settings, clip, engine_facts, render_seconds).model_copy(update=made))

    def _fetch(self, needed: dict[str, Artifact], folder: Path) -> dict[str, Path]:
        """Return local paths of the inputs of a clip; inputs that all clips read are downloaded once."""
        paths = {}
        for name, artifact in needed.items():
            is_shared = name in self._inputs
            path = (self._ctx.work_dir if is_shared else folder) / Path(artifact.key).name
            paths[name] = self._fetched.get(name) or self._ctx.artifacts.fetch(artifact, path)
            if is_shared:
                self._fetched[name] = path
        return paths


def _encode(clip: ClipPlan, path: Path, pieces: "Iterator[Tensor]") -> None:
    """Encode the stored frames of the clip as they come; a few more may be rendered."""
    frames = (frame for piece in pieces for frame in piece.cpu().numpy())
    encode_clip(islice(frames, clip.stored_frames), path, fps=FPS, key_frame=clip.fade_in_frames)


def _difference(made: Manifest) -> str:
    """Return how a clip of another fingerprint was made, in words."""
    theirs, ours = made.facts_as(ClipFacts).encoder, encoder_build()
    return "from other inputs" if theirs in {None, ours} else f"by the encoder {theirs}, and here is {ours}"


def _inputs(ctx: StepContext) -> dict[str, Artifact]:
    """Return the artifacts that all clips of the job read."""
    conditions = ctx.manifest(ctx.layout.conditions_manifest, ENCODE_CONDITIONS)
    inputs = {"conditions": conditions.outputs["conditions"]}
    staged = ctx.manifest(ctx.layout.input_manifest, STAGE_INPUTS).outputs
    if "pose" in staged:
        inputs["pose"] = staged["pose"]
    return inputs
