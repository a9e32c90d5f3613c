"""Render one clip from its conditions to its frames: encode, prepare, denoise, decode (spec d).

Legend: B batch (1), C channels, F pixel frames, H W pixels, T latent frames, h = H/8, w = W/8. Pixels and the VAE are
fp32 in [-1, 1]; the transformer runs in the dtype of its weights.

Clips of a chain follow each other through `MotionState`, the newest pixel frames and their latents, in full precision:
a chain that continues from a saved state is bit-identical to an uninterrupted one.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from s2v_tasks.engine.acceleration.first_block_cache import FirstBlockCache
from s2v_tasks.engine.clip import Callbacks, ClipInputs, ClipLatents, ClipOutput, Codec, MotionState, Sampling
from s2v_tasks.engine.denoising import DenoiseState, Denoising, Interrupted, InterruptionCheck
from s2v_tasks.engine.distributed.mesh import BranchSplit
from s2v_tasks.engine.images import Compat, is_finite, pad_pose, to_pixels, to_u8
from s2v_tasks.engine.models.attention import KeysValues
from s2v_tasks.engine.models.forward_inputs import ClipTokens, Conditioning, LayerHook
from s2v_tasks.engine.models.transformer import MOTION_FRAMES, S2VTransformer
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.schedulers import make_scheduler
from s2v_tasks.errors import PermanentError

T = TypeVar("T")
NO_CALLBACKS, DEFAULT_OPTIONS = Callbacks(), EngineOptions()
_START_FROM_REF_FRAMES = 6
# Frames at the start of a chain that are bad because decoding starts from the reference latent, without a history.
_LOST_FRAMES = 3


class S2VPipeline:
    """Renders clips with one transformer and one VAE on one device.

    `dtype` is the dtype of the transformer's weights. `options` defines the device of the noise and the first-block
    cache. `compat="reference"` repeats the known errors of the reference: the first clip of a chain then has 3 frames
    less. `branches` splits the guidance branches over ranks; the transformer itself may be shared by several ranks
    (`engine.distributed.mesh.parallelize` does both). `total` sums a tensor over these ranks.
    """

    def __init__(
        self,
        transformer: S2VTransformer,
        vae: Codec,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        options: EngineOptions = DEFAULT_OPTIONS,
        compat: Compat = "corrected",
        branches: BranchSplit | None = None,
        total: Callable[[Tensor], Tensor] = lambda sums: sums,
    ) -> None:
        self.transformer = transformer
        self.vae = vae
        self.device = torch.device(device)
        self.dtype = dtype
        self.options = options
        self.compat = compat
        self.branches = branches
        self.total = total
        self.skipped_share = 0.0  # of the latest clip's forwards, by the first-block cache
        self._contexts: dict[str, Tensor] = {}
        self._texts: list[tuple[KeysValues, ...]] = []

    def render_clip(
        self,
        inputs: ClipInputs,
        sampling: Sampling,
        callbacks: Callbacks = NO_CALLBACKS,
        *,
        noise: Tensor | None = None,
        state: DenoiseState | None = None,
    ) -> ClipOutput:
        """Render a clip as `stream_clip` does and return all its frames."""
        pieces: list[Tensor] = []
        collecting = replace(callbacks, on_frames=pieces.append)
        motion = self.stream_clip(inputs, sampling, collecting, noise=noise, state=state)
        return ClipOutput(torch.cat(pieces).cpu().numpy(), motion)

    @torch.inference_mode()
    def stream_clip(
        self,
        inputs: ClipInputs,
        sampling: Sampling,
        callbacks: Callbacks = NO_CALLBACKS,
        *,
        noise: Tensor | None = None,
        state: DenoiseState | None = None,
    ) -> MotionState | None:
        """Render a clip and pass its frames to `callbacks` in order, as they are decoded.

        `noise` `[16, T, h, w]` replaces the draw from `inputs.seed`. If `callbacks.is_interrupted` returns True,
        Interrupted is raised with the state from which another call with the same inputs resumes. Returns the motion
        state for the next clip of the chain, None for the last clip. Raises PermanentError for inconsistent inputs.
        """
        clip = self._encode(inputs)
        clip_tokens, conditionings = self._prepare(inputs, clip, sampling)
        noise = self._draw_noise(inputs.seed, clip.noise_shape) if noise is None else noise
        denoising = self.start_denoising(noise, conditionings, sampling)
        if state is not None:
            self._restore(denoising, state, clip_tokens)
        latents = self.denoise(denoising, clip_tokens, sampling, callbacks)
        denoising.cache = None  # the residuals of all tokens, which decoding does not need

        starts_chain = clip.history is None
        newest = _NewestFrames(MOTION_FRAMES)
        for number, frames in enumerate(self._decode(latents, clip)):
            if callbacks.is_interrupted():
                raise Interrupted(denoising.state())
            if number == 0 and starts_chain and self.compat == "corrected":
                callbacks.on_frames(to_u8(frames[:, :, :1].expand(-1, -1, _LOST_FRAMES, -1, -1)))
            callbacks.on_frames(to_u8(frames))
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
        """Return a history that ends with the reference picture, grey before it."""
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
        # The first latent of the VAE covers one frame; a copied frame in front makes it four for each latent.
        return self.vae.encode(torch.cat([frames[:, :, :1], frames], dim=2))[:, :, 1:]

    def _prepare(
        self, inputs: ClipInputs, clip: ClipLatents, sampling: Sampling
    ) -> tuple[ClipTokens, tuple[Conditioning, ...]]:
        """Compute the constant inputs of the steps, with the conditioning of the branches that this rank computes.

        If only some steps are guided, every rank has both branches: all ranks compute cond at the other steps.
        """
        motion = None if clip.history is None else clip.history.latents
        clip_tokens = self.transformer.prepare_clip_tokens(clip.noise_shape[1], clip.reference, motion, clip.pose)
        cond_audio = inputs.audio.to(self.device, self.dtype)
        names = ["cond", "uncond"] if sampling.is_guided else ["cond"]
        contexts = {"cond": inputs.context, "uncond": inputs.context_null}
        audios = {"cond": cond_audio, "uncond": torch.zeros_like(cond_audio)}
        own = names if sampling.is_partly_guided else self._mine(names)
        texts = self._prepare_texts({name: contexts[name] for name in names}, own)
        prepared = [self.transformer.prepare_audio(audios[name]) for name in own]
        return clip_tokens, tuple(map(Conditioning, texts, prepared, own))

    def _prepare_texts(self, contexts: dict[str, Tensor], own: Sequence[str]) -> Sequence[tuple[KeysValues, ...]]:
        """Return the texts of the branches `own`, cached for the next clip: prompts rarely change within a job."""
        # All ranks compare all prompts, so that they agree on computing them (and on gathering the weights for it).
        is_cached = list(contexts) == list(self._contexts) and len(own) == len(self._texts)
        if not is_cached or not all(map(torch.equal, contexts.values(), self._contexts.values())):
            self._texts = [self.transformer.prepare_text(contexts[name].to(self.device)) for name in own]
            self._contexts = contexts
        return self._texts

    def _mine(self, branches: Sequence[T]) -> Sequence[T]:
        return branches if self.branches is None or len(branches) == 1 else self.branches.mine(branches)

    def _draw_noise(self, seed: int, shape: tuple[int, ...]) -> Tensor:
        """Draw noise in the transformer's dtype on the device, or in fp32 on the CPU (spec d.6).

        Each kind of device and each dtype gives other noise; fp32 noise of the CPU is the same everywhere.
        """
        if self.options.noise_device == "cpu":
            return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        generator = torch.Generator(device=self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    def start_denoising(self, noise: Tensor, conditionings: Sequence[Conditioning], sampling: Sampling) -> Denoising:
        """Return a denoising that starts from `noise` `[16, T, h, w]`; `conditionings` come from `_prepare`."""
        scheduler = make_scheduler(
            sampling.sample_solver, num_steps=sampling.sample_steps, shift=sampling.sample_shift, device=self.device
        )
        threshold = self.options.step_cache
        cache = FirstBlockCache(threshold, self.total) if threshold else None
        guided = self._mine(conditionings)

        def branches_at(step: int) -> Sequence[Conditioning]:
            return guided if sampling.is_guided_at(step) else conditionings[:1]

        return Denoising(scheduler, branches_at, noise.to(self.device, self.dtype)[None], cache)

    def _restore(self, denoising: Denoising, state: DenoiseState, clip_tokens: ClipTokens) -> None:
        """Resume from `state`: restore the solver, and compute again the steps that fill the first-block cache."""

        def compute(latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> None:
            with self._hooked(denoising):
                self.transformer(latents, timestep[None], clip_tokens, [conditioning])

        denoising.restore(state, compute)

    @torch.inference_mode()
    def denoise(
        self, denoising: Denoising, clip_tokens: ClipTokens, sampling: Sampling, callbacks: Callbacks = NO_CALLBACKS
    ) -> Tensor:
        """Take the remaining solver steps and return the latents `[1, 16, T, h, w]` of the clip.

        Raises PermanentError for latents that are not finite. They are checked once at the end, so that no step waits.
        """
        with self._hooked(denoising, InterruptionCheck(denoising, callbacks.is_interrupted)):
            while denoising.step < sampling.sample_steps:
                timestep = denoising.scheduler.timesteps[denoising.step]
                cond, *uncond = self._predict_noise(denoising, timestep, clip_tokens, sampling)
                prediction = uncond[0] + sampling.sample_guide_scale * (cond - uncond[0]) if uncond else cond
                denoising.advance(prediction, timestep)
                callbacks.on_step(denoising.step, sampling.sample_steps)
                callbacks.on_state(denoising.state)
        self.skipped_share = denoising.skipped_share
        if not is_finite(denoising.latents):
            raise PermanentError(
                "the latents of the clip have NaN or infinite values, expected finite numbers. The weights are damaged "
                "or do not fit this dtype: compare their checksums, and try without adapters and with "
                "S2V_WEIGHTS_DTYPE=auto."
            )
        return denoising.latents

    def _hooked(self, denoising: Denoising, *hooks: LayerHook) -> AbstractContextManager[None]:
        """Attach `hooks` and the first-block cache of this clip to the transformer."""
        return self.transformer.hooked(*hooks, *([] if denoising.cache is None else [denoising.cache]))

    def _predict_noise(
        self, denoising: Denoising, timestep: Tensor, clip_tokens: ClipTokens, sampling: Sampling
    ) -> Sequence[Tensor]:
        """Return the noise predictions of all branches, cond before uncond, from all ranks."""
        branches = denoising.begin_step()
        predictions: list[Tensor] = self.transformer(denoising.latents, timestep[None], clip_tokens, branches)
        if self.branches is None or not sampling.is_guided_at(denoising.step):
            return predictions
        return self.branches.exchange(predictions[0])

    def _decode(self, latents: Tensor, clip: ClipLatents) -> Iterator[Tensor]:
        """Yield the valid frames `[1, 3, n, H, W]`, a few at a time; at the start of a chain 3 less in total."""
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
        # The memory layout affects the choice of kernels, so a state must have the same layout as after a reload.
        kept = buffer[:, :, MOTION_FRAMES - keep :].clone(memory_format=torch.contiguous_format)
        return MotionState(self.vae.encode(buffer).contiguous(), kept)


class _NewestFrames:
    """Keeps the newest `count` of the added frames."""

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
    """Return mid grey frames, the history of a first clip."""
    return like.new_zeros(*like.shape[:2], num_frames, *like.shape[3:])
