"""One clip, from its conditions to its frames: encode, prepare, denoise, decode (spec d).

Legend: B batch (1), C channels, F pixel frames, H W pixels, T latent frames, h = H/8, w = W/8.
Pixels and everything of the VAE are fp32 in [-1, 1]; the transformer runs in the dtype of its weights.

Clips of a chain follow each other through `MotionState`, the newest pixel frames and their latents. It holds full
precision, so that a chain that continues from a saved state equals one that never stopped, bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from s2v_tasks.engine.images import Compat, pad_pose, to_pixels
from s2v_tasks.engine.loading.snapshot import Snapshot
from s2v_tasks.engine.models.attention import KeysValues
from s2v_tasks.engine.models.transformer import MOTION_FRAMES, Guidance, S2VTransformer, Scene
from s2v_tasks.engine.parallel.guidance import BranchSplit
from s2v_tasks.engine.resume import DenoiseState, Interrupted
from s2v_tasks.engine.schedulers import make_scheduler
from s2v_tasks.errors import PermanentError

_LATENT_CHANNELS = 16
_START_FROM_REF_FRAMES = 6
# Decoding behind the reference latent instead of a history spoils this many frames at the start of a chain.
_LOST_FRAMES = 3


class Codec(Protocol):
    """The VAE as the pipeline uses it; see `engine.encoders.vae.Vae`."""

    def encode(self, pixels_BCTHW: Tensor, /) -> Tensor:
        """Pixels `[1, 3, F, H, W]` to normalised latents `[1, 16, 1 + (F-1)//4, h, w]`."""
        ...

    def decode(self, latents_BCZhw: Tensor, num_frames: int, /) -> Tensor:
        """Normalised latents `[1, 16, T, h, w]` to the last `num_frames` of their 4T - 3 frames, clamped pixels."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How a clip is denoised; the names are those of the request."""

    sample_steps: int
    sample_guide_scale: float
    sample_shift: float
    sample_solver: str
    noise_device: Literal["run", "cpu"] = "run"  # where noise is drawn; "cpu": the same numbers on every device


@dataclass(frozen=True)
class MotionState:
    """What a clip leaves to the next one of its chain."""

    latents: Tensor  # [1, 16, 19, h, w], the newest 73 pixel frames encoded
    frames: Tensor  # [1, 3, n, H, W], as many of the newest pixel frames as a later clip needs


@dataclass(frozen=True)
class ClipInputs:
    """Everything that is particular to a clip."""

    reference_u8: NDArray[np.uint8] | Tensor  # [H, W, 3], fitted
    context: Tensor  # [len, text_dim], the prompt
    context_null: Tensor  # [len, text_dim], the negative prompt
    audio: Tensor  # [F, 25, audio_dim], one row per frame of this clip
    pose: Tensor | None  # [1, 3, n, H, W] pixels of this clip, n <= F; None: no pose video
    seed: int
    motion: MotionState | None  # None: the first clip of its chain
    start_from_ref: bool
    keep_motion_frames: int | None  # `motion_frames_needed`; None: the last clip of its chain leaves no state


@dataclass(frozen=True)
class ClipOutput:
    """A rendered clip."""

    frames_u8: NDArray[np.uint8]  # [F, H, W, 3]
    motion: MotionState | None


@dataclass(frozen=True)
class _ClipLatents:
    reference: Tensor  # [1, 16, 1, h, w]
    history: MotionState | None  # None: nothing precedes, the clip starts from noise alone
    pose: Tensor | None  # [1, 16, T, h, w]
    num_frames: int

    @property
    def noise_shape(self) -> tuple[int, int, int, int]:
        height, width = self.reference.shape[-2:]
        return (_LATENT_CHANNELS, self.num_frames // 4, height, width)


def motion_frames_needed(later_infer_frames: Sequence[int]) -> int | None:
    """How many newest pixel frames a clip's state must carry, given the frames of each later clip of its chain.

    None where no clip follows. The next clip reads old frames only to fill up its own 73-frame history, and only if
    another clip needs that history.
    """
    if not later_infer_frames:
        return None
    if len(later_infer_frames) == 1:
        return 0
    return max(0, MOTION_FRAMES - later_infer_frames[0])


class S2VPipeline:
    """Renders clips with one transformer and one VAE on one device.

    `dtype` is that of the transformer's weights. `compat="reference"` repeats the reference where it is known to be
    wrong: the first clip of a chain then has 3 frames fewer than asked for. `branches` splits guidance over ranks; the
    transformer itself may be shared by several ranks (`engine.parallel.mesh.parallelize` does both).
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
    ) -> None:
        self.transformer = transformer
        self.vae = vae
        self.device = torch.device(device)
        self.dtype = dtype
        self.compat = compat
        self.branches = branches
        self._contexts: list[Tensor] = []
        self._texts: list[tuple[KeysValues, ...]] = []

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, device: torch.device | str) -> "S2VPipeline":
        """Load transformer and VAE of a snapshot: bf16 on a GPU; fp32 on a CPU, where bf16 is emulated and slow."""
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        return cls(snapshot.load_transformer(device, dtype), snapshot.load_vae(device), device, dtype)

    @torch.inference_mode()
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
        """Render a clip; `on_step(done, total)` is called after each solver step.

        `noise` `[16, T, h, w]` replaces the draw from `inputs.seed`. `interrupted()` is asked before each solver step
        and before decoding: where it is true, Interrupted is raised with the state at that point. Called again with
        that `state` and the same inputs, the clip goes on there. Raises PermanentError for inputs that do not fit each
        other.
        """
        clip = self._encode(inputs)
        scene, guidances = self._prepare(inputs, clip, sampling)
        start: Tensor | DenoiseState
        if state is not None:
            start = state
        else:
            start = self._draw_noise(inputs.seed, clip.noise_shape, sampling.noise_device) if noise is None else noise
        latents = self._denoise(start, scene, guidances, sampling, on_step, interrupted)
        frames = self._decode(latents, clip)
        motion = None
        if inputs.keep_motion_frames is not None:
            motion = self._next_motion(clip.history, frames, inputs.keep_motion_frames)
        if clip.history is None and self.compat == "corrected":
            frames = torch.cat([frames[:, :, :1].expand(-1, -1, _LOST_FRAMES, -1, -1), frames], dim=2)
        return ClipOutput(_to_u8(frames), motion)

    def _encode(self, inputs: ClipInputs) -> _ClipLatents:
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
        return _ClipLatents(self.vae.encode(pixels), history, pose, num_frames)

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

    def _prepare(
        self, inputs: ClipInputs, clip: _ClipLatents, sampling: Sampling
    ) -> tuple[Scene, tuple[Guidance, ...]]:
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
        self, latents: Tensor, timestep: Tensor, scene: Scene, guidances: tuple[Guidance, ...], guided: bool
    ) -> tuple[Tensor, ...]:
        """The velocity of each guidance branch, whichever rank computes it."""
        velocities = tuple(self.transformer(latents, timestep[None], scene, guidance) for guidance in guidances)
        return self.branches.exchange(velocities[0]) if self.branches is not None and guided else velocities

    def _draw_noise(self, seed: int, shape: tuple[int, ...], noise_device: Literal["run", "cpu"]) -> Tensor:
        """Noise in the transformer's dtype from a generator on the device, or in fp32 from one on the CPU (spec d.6).

        Each kind of device and each dtype has numbers of its own; those of the CPU in fp32 are the same everywhere.
        """
        if noise_device == "cpu":
            return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator(device=self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    def _denoise(
        self,
        start: Tensor | DenoiseState,
        scene: Scene,
        guidances: tuple[Guidance, ...],
        sampling: Sampling,
        on_step: Callable[[int, int], None],
        interrupted: Callable[[], bool],
    ) -> Tensor:
        """From noise `[16, T, h, w]`, or from where another call stopped, to the clip's latents `[1, 16, T, h, w]`."""
        scheduler = make_scheduler(
            sampling.sample_solver, num_steps=sampling.sample_steps, shift=sampling.sample_shift, device=self.device
        )
        if isinstance(start, DenoiseState):
            first, latents = start.step, start.restore(scheduler, self.device)
        else:
            first, latents = 0, start.to(self.device, self.dtype)[None]
        guided = sampling.sample_guide_scale > 1
        for step in range(first, sampling.sample_steps):
            if interrupted():
                raise Interrupted(DenoiseState.capture(step, latents, scheduler))
            timestep = scheduler.timesteps[step]
            velocity, *untold = self._velocities(latents, timestep, scene, guidances, guided)
            if untold:
                velocity = untold[0] + sampling.sample_guide_scale * (velocity - untold[0])
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            on_step(step + 1, sampling.sample_steps)
        if interrupted():
            raise Interrupted(DenoiseState.capture(sampling.sample_steps, latents, scheduler))
        return latents

    def _decode(self, latents: Tensor, clip: _ClipLatents) -> Tensor:
        """The clip's valid frames `[1, 3, n, H, W]`; n is 3 fewer at the start of a chain."""
        before = clip.reference if clip.history is None else clip.history.latents
        frames = self.vae.decode(torch.cat([before, latents.float()], dim=2), clip.num_frames)
        return frames[:, :, _LOST_FRAMES:] if clip.history is None else frames

    def _next_motion(self, history: MotionState | None, frames: Tensor, keep: int) -> MotionState:
        newest = frames[:, :, -MOTION_FRAMES:]
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


def _grey(like: Tensor, num_frames: int) -> Tensor:
    """Mid grey frames, what precedes the first clip."""
    return like.new_zeros(*like.shape[:2], num_frames, *like.shape[3:])


def _to_u8(frames_BCFHW: Tensor) -> NDArray[np.uint8]:
    """Pixels to bytes `[F, H, W, 3]`, truncated as the reference does (spec d.7)."""
    bytes_BCFHW = ((frames_BCFHW.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    array: NDArray[Any] = rearrange(bytes_BCFHW, "1 c f h w -> f h w c").cpu().numpy()
    return np.ascontiguousarray(array)
