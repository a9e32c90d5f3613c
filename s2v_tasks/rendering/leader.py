"""The leader, rank 0: it finds clips that exist, and renders, encodes, stores and measures those that are missing."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors.torch import save_file

from s2v_tasks import log
from s2v_tasks.engine.clip import Callbacks, MotionState
from s2v_tasks.engine.denoising import Interrupted
from s2v_tasks.engine.loading import snapshot_id
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import PermanentError, S2VError, TransientError, UnavailableError
from s2v_tasks.media.background import background_consumer
from s2v_tasks.media.contact_sheet import poster
from s2v_tasks.media.encode import Frames, encode_clip, encoder_build
from s2v_tasks.rendering.fingerprints import clip_fingerprints
from s2v_tasks.rendering.progress import Progress, clip_facts
from s2v_tasks.rendering.renderer import Order, Renderer, plan_adapters, plan_options
from s2v_tasks.rendering.saved_states import StateSaver
from s2v_tasks.rendering.takes import TakeGate, as_take, with_takes
from s2v_tasks.runtime.attempts import AttemptInterruptedError, ClipAttempt
from s2v_tasks.runtime.context import StepContext, check_made_from, made_from_others
from s2v_tasks.runtime.outages import tried_once
from s2v_tasks.runtime.requirements import open_snapshot
from s2v_tasks.schemas.manifest import Artifact, ClipFacts, ConditionsFacts, Manifest, PartialClipFacts
from s2v_tasks.schemas.plan import FPS, ClipPlan, Plan
from s2v_tasks.schemas.quality import TakeRecord
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP, STAGE_INPUTS
from s2v_tasks.storage.artifacts import Built, OutputFile, Work
from s2v_tasks.storage.clip_state import PartialClip

if TYPE_CHECKING:
    from torch import Tensor


_CLIP, _POSTER = "clip.mp4", "poster.jpg"  # names of files while a clip is made


class Leader:
    """Rank 0 of the ranks that render clips of a job; it shares each clip with the followers as an `Order`."""

    def __init__(self, ctx: StepContext, worker: Worker) -> None:
        self._ctx, self._worker = ctx, worker
        self._plan, self._request = ctx.plan(), ctx.request()
        self._snapshot = open_snapshot(ctx.settings, self._plan.model)
        self._inputs = _inputs(ctx, self._request)
        self._options = plan_options(ctx.settings, self._plan)
        self._adapters = plan_adapters(ctx.settings, self._plan)
        self._prints = self._fingerprints(self._plan)
        self._gate = TakeGate(ctx, self._plan, self._request)
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
        """Store the clip and decide which take is kept; return True if nothing was rendered.

        Takes are rendered in order until the decision. If the kept take is not the last one, it becomes the clip again.
        """
        log.bind(clip_index=clip.clip_index)
        before = self._before(clip)
        takes = self._gate.begin(clip, self._fingerprint(clip, 0, before))
        reused = True
        while True:
            number = self._gate.next_take(clip, takes)
            made, takes = self._make(clip, number, before, takes)
            reused = reused and made
            if takes is None or takes.kept == number:
                self._gate.check(clip, takes)
                return reused

    def _make(self, clip: ClipPlan, number: int, before: "_Before", takes: TakeRecord | None) -> "_Made":
        """Store and measure one take, unless that was already done."""
        ctx, index, taken = self._ctx, clip.clip_index, as_take(clip, number)
        inputs = dict(self._inputs)
        if before.manifest is not None:
            inputs["motion"] = before.manifest.outputs["motion"]
        made_from = self._fingerprint(clip, number, before)
        work = Work(RENDER_CLIP, ctx.job_id, ctx.layout.clip_manifest(index), made_from, inputs, clip_index=index)
        saved_clip = PartialClip(ctx.artifacts, ctx.layout, index, made_from)
        chain_takes = (*before.takes, number)
        with ClipAttempt(ctx, work, world_size=self._worker.world_size) as attempt:
            produced = attempt.produce(lambda folder: self._build(taken, inputs, saved_clip, folder, chain_takes))
            saved_clip.drop()
            takes = self._gate.judge(taken, takes, produced.manifest, before.manifest)
            if takes is None or takes.kept == number:
                attempt.succeed(produced, takes)
            else:
                attempt.end_take(produced)
        return _Made(produced.reused, takes)

    def _before(self, clip: ClipPlan) -> "_Before":
        """Return the previous clip with the planned fingerprint; TransientError until its take is decided."""
        if clip.predecessor is None:
            return _Before(None, ())
        manifest = self._ctx.clip_manifest(clip.predecessor)
        chain = self._chain(clip)[:-1]
        known = manifest.facts_as(ClipFacts).chain_takes or (0,) * len(chain)
        inherited = len(self._plan.inherited)
        # Takes of inherited clips are part of their fingerprints; takes of this job exist only with the gate.
        takes = tuple(
            take if index < inherited or self._gate.has_retakes else 0
            for index, take in zip(chain, known, strict=False)
        )
        expected = self._fingerprint(self._plan.clips[clip.predecessor], takes[-1], _Before(None, takes[:-1]))
        if manifest.fingerprint != expected:
            raise _not_planned(manifest, expected, clip.predecessor)
        if clip.predecessor >= inherited:
            self._gate.check_decided(manifest)
        return _Before(manifest, takes)

    def _chain(self, clip: ClipPlan) -> list[int]:
        """Return the indexes of the clips of a chain up to this clip."""
        earlier = self._plan.clips[: clip.clip_index + 1]
        return [other.clip_index for other in earlier if other.chain_index == clip.chain_index]

    def _fingerprint(self, clip: ClipPlan, number: int, before: "_Before") -> str:
        """Return the fingerprint of a take that follows these takes of its chain."""
        takes = dict(zip(self._chain(clip), (*before.takes, number), strict=True))
        if not any(takes.values()):
            return self._prints[clip.clip_index]
        return self._fingerprints(with_takes(self._plan, takes))[clip.clip_index]

    def _fingerprints(self, plan: Plan) -> list[str]:
        return clip_fingerprints(
            plan,
            {name: item.sha256 for name, item in self._inputs.items()},
            snapshot_id(self._snapshot),
            self._options,
            encoder_build(),
        )

    def _build(
        self,
        clip: ClipPlan,
        inputs: dict[str, Artifact],
        saved_clip: PartialClip,
        folder: Path,
        chain_takes: tuple[int, ...],
    ) -> Built:
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
            self._adapters,
        )
        self._worker.share(order)
        state = self._renderer.saved_state(order)
        earlier_seconds = 0.0
        if saved and state:
            earlier_seconds = saved.facts_as(PartialClipFacts).render_seconds
            num_steps = self._plan.sampling.sample_steps
            log.get_logger().info(f"clip {clip.clip_index} continues after solver step {state.step} of {num_steps}")
        with StateSaver(saved_clip, folder, self._renderer.name, earlier_seconds) as saver:
            try:
                progress = Progress(ctx, self._plan, clip, self._worker.peak_memory_bytes)
                with background_consumer(partial(_encode, clip, folder)) as take:
                    callbacks = Callbacks(on_frames=take, on_step=progress, on_state=saver.offer)
                    motion = self._renderer.render(order, state, callbacks)
                    render_seconds = saver.render_seconds
            except Interrupted as stop:
                self._worker.done()
                saver.save(stop.state)
                raise AttemptInterruptedError(
                    f"clip {clip.clip_index} was interrupted after solver step {stop.state.step} of "
                    f"{self._plan.sampling.sample_steps}: the next attempt continues there."
                ) from stop
        engine_facts = self._renderer.clip_facts()
        self._worker.done()
        self._check_wanted(clip)
        facts = clip_facts(ctx.settings, clip, engine_facts, render_seconds)
        planned = self._plan.clips[clip.clip_index]
        made: dict[str, Any] = {"plan_digest": self._plan.digest_of(planned), "encoder": encoder_build()}
        if any(chain_takes):
            made |= {"take": chain_takes[-1], "seed": clip.seed, "chain_takes": chain_takes}
        return Built(self._outputs(clip.clip_index, motion, folder), facts.model_copy(update=made))

    def _outputs(self, clip_index: int, motion: MotionState | None, folder: Path) -> dict[str, OutputFile]:
        """Return the files of a rendered clip in `folder`, after writing the motion state for the next clip."""
        layout = self._ctx.layout
        outputs = {"clip": OutputFile(folder / _CLIP, layout.clip(clip_index), "video/mp4")}
        if clip_index == 0:
            outputs["poster"] = OutputFile(folder / _POSTER, layout.poster, "image/jpeg")
        if motion is not None:
            path = folder / "motion_out.safetensors"
            save_file({"latents": motion.latents.contiguous(), "frames": motion.frames.contiguous()}, path)
            outputs["motion"] = OutputFile(path, layout.motion(clip_index), "application/octet-stream")
        return outputs

    def _check_wanted(self, clip: ClipPlan) -> None:
        """Raise TransientError if the plan or the inputs of the clip have changed while it was rendered.

        Another start of the job may have stored its clip in the meantime. The question does not wait for S3, because
        the clip is not yet kept on disk.
        """
        index = clip.clip_index
        with suppress(UnavailableError), tried_once():
            plan = self._ctx.plan()
            planned = {other.clip_index: plan.digest_of(other) for other in plan.clips}
            is_planned = planned.get(index) == self._plan.digest_of(self._plan.clips[index])
            if not is_planned or _inputs(self._ctx, self._ctx.request()) != self._inputs:
                raise TransientError(
                    f"The request or the plan of job {self._ctx.job_id} has changed while clip {index} was rendered: "
                    "the clip is not stored. Run the step again if the job needs it."
                )

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


@dataclass(frozen=True)
class _Before:
    """The previous clip of the chain (None for the first), and the takes of all earlier clips of the chain."""

    manifest: Manifest | None
    takes: tuple[int, ...]


class _Made(NamedTuple):
    """The result of one take: True if it existed, and the measured takes (None: nothing is measured)."""

    reused: bool
    takes: TakeRecord | None


def _encode(clip: ClipPlan, folder: Path, pieces: "Iterator[Tensor]") -> None:
    """Encode the frames of the clip as they arrive, without extra rendered frames. The first clip has a poster."""
    rendered = (frame for piece in pieces for frame in piece.cpu().numpy())
    frames: Iterator[Frames] = islice(rendered, clip.stored_frames)
    if clip.clip_index == 0:
        frames = _with_poster(frames, clip.stored_frames // 2, folder / _POSTER)
    encode_clip(frames, folder / _CLIP, fps=FPS, key_frame=clip.fade_in_frames)


def _with_poster(frames: "Iterator[Frames]", shown: int, path: Path) -> "Iterator[Frames]":
    """Yield the frames; save one of them as the poster."""
    for index, frame in enumerate(frames):
        if index == shown:
            poster(frame, path)
        yield frame


def _not_planned(made: Manifest, expected: str, index: int) -> S2VError:
    """Return the error for clip `index`, which has another fingerprint; only another encoder is worth a retry."""
    text = f"Clip {index} of job {made.job_id} has fingerprint {made.fingerprint[:12]}: expected {expected[:12]}."
    theirs, ours = made.facts_as(ClipFacts).encoder, encoder_build()
    if theirs not in {None, ours}:
        return TransientError(
            f"{text} It was made by the encoder {theirs}, but this process has {ours}; use the same ffmpeg on all "
            f"machines, or render clip {index} again first."
        )
    return PermanentError(
        f"{text} It was made from other inputs, weights or settings, or by a version with other frames. Start the job "
        f"again with `s2v retry {made.job_id}`: all clips that were made so are rendered again."
    )


def _inputs(ctx: StepContext, request: Request) -> dict[str, Artifact]:
    """Return the artifacts that all clips of the job read; PermanentError for conditions of another request."""
    conditions = ctx.manifest(ctx.layout.conditions_manifest, ENCODE_CONDITIONS)
    inputs = {"conditions": conditions.outputs["conditions"]}
    staged = ctx.manifest(ctx.layout.input_manifest, STAGE_INPUTS).outputs
    if conditions.facts_as(ConditionsFacts).prompt not in {None, request.prompt}:
        raise made_from_others(conditions, ENCODE_CONDITIONS)
    check_made_from(conditions, {name: staged[name] for name in ("image", "audio_16k")}, ENCODE_CONDITIONS)
    if "pose" in staged:
        inputs["pose"] = staged["pose"]
    return inputs
