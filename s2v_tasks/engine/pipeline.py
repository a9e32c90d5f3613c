"""One clip, from its conditions to its frames: encode, prepare, denoise, decode (spec d).

Legend: B batch (1), C channels, F pixel frames, H W pixels, T latent frames, h = H/8, w = W/8.
Pixels and everything of the VAE are fp32 in [-1, 1]; the transformer runs in the dtype of its weights.

Clips of a chain follow each other through `MotionState`, the newest pixel frames and their latents. It holds full
precision, so that a chain that continues from a saved state equals one that never stopped, bit for bit.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from s2v_tasks.engine.branch import Branch, bases, skipped_share
from s2v_tasks.engine.clip import ClipInputs, ClipLatents, ClipOutput, Codec, MotionState, Sampling, TakeFrames
from s2v_tasks.engine.distributed.cfg import BranchSplit
from s2v_tasks.engine.images import Compat, pad_pose, to_pixels, to_u8
from s2v_tasks.engine.loading.snapshot import Snapshot
from s2v_tasks.engine.models.attention import KeysValues
from s2v_tasks.engine.models.step_memory import StepMemory
from s2v_tasks.engine.models.transformer import MOTION_FRAMES, Guidance, S2VTransformer, Scene
from s2v_tasks.engine.options import NoiseDevice
from s2v_tasks.engine.resume import DenoiseState, Interrupted
from s2v_tasks.engine.schedulers import make_scheduler
from s2v_tasks.errors import PermanentError

_START_FROM_REF_FRAMES = 6
# Decoding behind the reference latent instead of a history spoils this many frames at the start of a chain.
_LOST_FRAMES = 3


class S2VPipeline:
    """Renders clips with one transformer and one VAE on one device.

    `dtype` is that of the transformer's weights. `compat="reference"` repeats the reference where it is known to be
    wrong: the first clip of a chain then has 3 frames fewer than asked for. `branches` splits guidance over ranks; the
    transformer itself may be shared by several ranks (`engine.distributed.mesh.parallelize` does both). `total` sums a
    tensor over these ranks.
    """

    def __init__(
        self,
        transformer: S2VTransformer,
        vae: Codec,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        compat: Compat = "corrected",
        branches: BranchSplit | None = None,
        total: Callable[[Tensor], Tensor] = lambda sums: sums,
    ) -> None:
        self.transformer = transformer
        self.vae = vae
        self.device = torch.device(device)
        self.dtype = dtype
        self.compat = compat
        self.branches = branches
        self.total = total
        self.skipped_share = 0.0  # of the latest clip's forwards, by the step cache
        self._contexts: list[Tensor] = []
        self._texts: list[tuple[KeysValues, ...]] = []

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, device: torch.device | str) -> "S2VPipeline":
        """Load transformer and VAE of a snapshot: bf16 on a GPU; fp32 on a CPU, where bf16 is emulated and slow."""
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        return cls(snapshot.load_transformer(device, dtype), snapshot.load_vae(device), device, dtype)

    def render_clip(
        self,
        inputs: ClipInputs,
        sampling: Sampling,
        on_step: Callable[[int, int], None],
        noise: Tensor | None = None,
        *,
        state: DenoiseState | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> ClipOutput:
        """`stream_clip`, with all frames at once."""
        pieces: list[Tensor] = []
        motion = self.stream_clip(inputs, sampling, pieces.append, on_step, noise, state=state, interrupted=interrupted)
        return ClipOutput(torch.cat(pieces).cpu().numpy(), motion)

    @torch.inference_mode()
    def stream_clip(
        self,
        inputs: ClipInputs,
        sampling: Sampling,
        take: TakeFrames,
        on_step: Callable[[int, int], None],
        noise: Tensor | None = None,
        *,
        state: DenoiseState | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> MotionState | None:
        """Render a clip; `on_step(done, total)` is called after each solver step.

        `take` is given the frames in order, a few at a time as they are decoded. `noise` `[16, T, h, w]` replaces the
        draw from `inputs.seed`. `interrupted()` is asked for each branch of a step and as frames are decoded; if true,
        Interrupted is raised with the state in which the solver step, or decoding, began. Called again with that state
        and the same inputs, the clip goes on there. Raises PermanentError for inputs that do not fit each other.
        """
        clip = self._encode(inputs)
        scene, guidances = self._prepare(inputs, clip, sampling)
        start: Tensor | DenoiseState
        if state is not None:
            start = state
        else:
            start = self._draw_noise(inputs.seed, clip.noise_shape, sampling.noise_device) if noise is None else noise
        latents, capture = self.denoise(start, scene, guidances, sampling, on_step, interrupted)
        starts_chain = clip.history is None
        newest = _Newest(MOTION_FRAMES)
        for number, frames in enumerate(self._decode(latents, clip)):
            if interrupted():
                raise Interrupted(capture())
            if number == 0 and starts_chain and self.compat == "corrected":
                take(to_u8(frames[:, :, :1].expand(-1, -1, _LOST_FRAMES, -1, -1)))
            take(to_u8(frames))
            if inputs.keep_motion_frames is not None:
                newest.add(frames)
        if inputs.keep_motion_frames is None:
            return None
        return self._next_motion(clip.history, newest.frames, inputs.keep_motion_frames)

    def _encode(self, inputs: ClipInputs) -> ClipLatents:
        num_frames = inputs.audio.shape[0]
        if num_frames < 4 or num_frames % 4:
            raise PermanentError(f"a clip of {num_frames} frames cannot be rendered; infer_frames is a multiple of 4")
        pixels = to_pixels(np.asarray(inputs.reference_u8)).to(self.device)
        history = inputs.motion
        if history is not None:
            history = MotionState(history.latents.to(self.device), history.frames.to(self.device))
        elif inputs.start_from_ref:
            history = self._still_history(pixels)
        pose = None if inputs.pose is None else self._encode_pose(inputs.pose, num_frames, pixels.shape)
        return ClipLatents(self.vae.encode(pixels), history, pose, num_frames)

    def _still_history(self, reference_pixels: Tensor) -> MotionState:
        """A history that ends in the reference picture, grey before it."""
        still = reference_pixels.expand(-1, -1, _START_FROM_REF_FRAMES, -1, -1)
        frames = torch.cat([_grey(still, MOTION_FRAMES - _START_FROM_REF_FRAMES), still], dim=2)
        return MotionState(self.vae.encode(frames), frames)

    def _encode_pose(self, pose: Tensor, num_frames: int, reference_shape: torch.Size) -> Tensor:
        if pose.shape[-2:] != reference_shape[-2:] or pose.shape[2] > num_frames:
            raise PermanentError(
                f"the pose has {pose.shape[2]} frames of {list(pose.shape[-2:])}; expected at most {num_frames} frames "
                f"of {list(reference_shape[-2:])}. Fit it to the clip first."
            )
        frames = pad_pose(pose.to(self.device), num_frames)
        # The VAE's first latent sees a single frame; a copy of it in front gives each latent its four frames.
        return self.vae.encode(torch.cat([frames[:, :, :1], frames], dim=2))[:, :, 1:]

    def _prepare(self, inputs: ClipInputs, clip: ClipLatents, sampling: Sampling) -> tuple[Scene, tuple[Guidance, ...]]:
        """All that stays the same over the steps; of the guidance branches only those that this rank computes."""
        motion = None if clip.history is None else clip.history.latents
        scene = self.transformer.prepare_scene(clip.noise_shape[1], clip.reference, motion, clip.pose)
        audio = inputs.audio.to(self.device, self.dtype)
        contexts, sounds = [inputs.context], [audio]
        if sampling.sample_guide_scale > 1:
            contexts.append(inputs.context_null)
            sounds.append(torch.zeros_like(audio))
        texts = self._prepare_texts(contexts)
        heard = [self.transformer.prepare_sound(sound) for sound in self._mine(sounds)]
        return scene, tuple(Guidance(text, sound) for text, sound in zip(texts, heard, strict=True))

    def _prepare_texts(self, contexts: list[Tensor]) -> Sequence[tuple[KeysValues, ...]]:
        """The texts of this rank's branches, kept for the next clip: prompts seldom change within a job."""
        known = len(contexts) == len(self._contexts) and all(map(torch.equal, contexts, self._contexts))
        # All ranks compare all prompts, so that they agree on whether they compute (and gather weights for it) or not.
        if not known:
            self._texts = [self.transformer.prepare_text(context.to(self.device)) for context in self._mine(contexts)]
            self._contexts = contexts
        return self._texts

    def _mine(self, branches: list[Tensor]) -> Sequence[Tensor]:
        return branches if self.branches is None or len(branches) == 1 else self.branches.mine(branches)

    def _velocities(
        self,
        latents: Tensor,
        timestep: Tensor,
        scene: Scene,
        branches: Sequence[Branch],
        guided: bool,
        before_each: Callable[[], None],
    ) -> Sequence[Tensor]:
        """The velocity of each guidance branch, whichever rank computes it."""
        guidances = [branch.guidance for branch in branches]
        memories = [branch.memory for branch in branches if branch.memory is not None]
        velocities: list[Tensor] = self.transformer(latents, timestep[None], scene, guidances, memories, before_each)
        return self.branches.exchange(velocities[0]) if self.branches is not None and guided else velocities

    def _draw_noise(self, seed: int, shape: tuple[int, ...], noise_device: NoiseDevice) -> Tensor:
        """Noise in the transformer's dtype from a generator on the device, or in fp32 from one on the CPU (spec d.6).

        Each kind of device and each dtype has numbers of its own; those of the CPU in fp32 are the same everywhere.
        """
        if noise_device == "cpu":
            return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator(device=self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    @torch.inference_mode()
    def denoise(
        self,
        start: Tensor | DenoiseState,
        scene: Scene,
        guidances: tuple[Guidance, ...],
        sampling: Sampling,
        on_step: Callable[[int, int], None],
        interrupted: Callable[[], bool],
    ) -> tuple[Tensor, Callable[[], DenoiseState]]:
        """From noise `[16, T, h, w]`, or from where another call stopped, to the clip's latents `[1, 16, T, h, w]`.

        With them comes what makes the state from which another call would give them again.
        """
        scheduler = make_scheduler(
            sampling.sample_solver, num_steps=sampling.sample_steps, shift=sampling.sample_shift, device=self.device
        )
        branches = [
            Branch(guidance, StepMemory(sampling.step_cache, self.total) if sampling.step_cache else None)
            for guidance in guidances
        ]
        if isinstance(start, DenoiseState):
            first, latents = start.step, start.restore(scheduler, self.device)
            for branch, basis in zip(branches, start.bases(self.device), strict=False):
                timestep = scheduler.timesteps[basis.step]
                self.transformer(basis.latents, timestep[None], scene, [branch.guidance], [branch.memory])
                branch.resume(basis)
        else:
            first, latents = 0, start.to(self.device, self.dtype)[None]
        guided = sampling.sample_guide_scale > 1
        for step in range(first, sampling.sample_steps):
            begun = partial(DenoiseState.capture, step, latents, scheduler, bases(branches))
            timestep = scheduler.timesteps[step]
            poll = partial(_poll, interrupted, begun)
            velocity, *untold = self._velocities(latents, timestep, scene, branches, guided, poll)
            for branch in branches:
                branch.note(step, latents)
            if untold:
                velocity = untold[0] + sampling.sample_guide_scale * (velocity - untold[0])
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            on_step(step + 1, sampling.sample_steps)
        self.skipped_share = skipped_share(branches, sampling.sample_steps)
        return latents, partial(DenoiseState.capture, sampling.sample_steps, latents, scheduler, bases(branches))

    def _decode(self, latents: Tensor, clip: ClipLatents) -> Iterator[Tensor]:
        """The clip's valid frames `[1, 3, n, H, W]`, a few at a time; at the start of a chain 3 fewer in all."""
        before = clip.reference if clip.history is None else clip.history.latents
        num_frames = clip.num_frames - (_LOST_FRAMES if clip.history is None else 0)
        return self.vae.decode_pieces(torch.cat([before, latents.float()], dim=2), num_frames)

    def _next_motion(self, history: MotionState | None, newest: Tensor, keep: int) -> MotionState:
        missing = MOTION_FRAMES - newest.shape[2]
        old = _grey(newest, missing) if history is None else history.frames
        if old.shape[2] < missing:
            raise PermanentError(
                f"the motion state carries {old.shape[2]} pixel frames, the next clip needs {missing}. "
                "Render the previous clip again with the current plan."
            )
        buffer = torch.cat([old[:, :, old.shape[2] - missing :], newest], dim=2)
        # The layout in memory decides which kernels run: a state must have the one that it has after a reload.
        kept = buffer[:, :, MOTION_FRAMES - keep :].clone(memory_format=torch.contiguous_format)
        return MotionState(self.vae.encode(buffer).contiguous(), kept)


def _poll(interrupted: Callable[[], bool], begun: Callable[[], DenoiseState]) -> None:
    """Give up a step in its middle, if need be: that is sooner than it ends."""
    if interrupted():
        raise Interrupted(begun())


class _Newest:
    """The newest `count` frames of those that go by."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pieces: deque[Tensor] = deque()

    def add(self, frames_BCFHW: Tensor) -> None:
        self._pieces.append(frames_BCFHW)
        while sum(piece.shape[2] for piece in self._pieces) - self._pieces[0].shape[2] >= self._count:
            self._pieces.popleft()

    @property
    def frames(self) -> Tensor:
        return torch.cat(tuple(self._pieces), dim=2)[:, :, -self._count :]


def _grey(like: Tensor, num_frames: int) -> Tensor:
    """Mid grey frames, what precedes the first clip."""
    return like.new_zeros(*like.shape[:2], num_frames, *like.shape[3:])
