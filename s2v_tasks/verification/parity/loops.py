"""Golden cases of the clip loop: the real pipeline in reference mode, with the golden noise.

Like the goldens, a case starts from the original image, the 30 Hz speech features and the raw pose frames.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from s2v_tasks.engine.audio_features import frame_features, reference_num_repeat
from s2v_tasks.engine.clip import ClipInputs, Codec, MotionState, Sampling
from s2v_tasks.engine.denoising import Denoising
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.images import fit_image, fit_pose, pad_pose, reference_pose_step
from s2v_tasks.engine.models.transformer import MOTION_FRAMES
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.verification.parity.golden import (
    EXACT,
    LOOP_GATE,
    CaseResult,
    Golden,
    Goldens,
    OutputSize,
    compare,
    compare_all,
    load_golden,
    load_transformer,
    per_file,
    share_among_ranks,
)

PREFIXES = ("loop_",)
# A float difference within the loop gate can cross the border between two bytes.
_BYTE_GATE = 1.0


def cases(goldens: Goldens) -> Iterator[CaseResult]:
    """Run every golden loop."""
    yield from per_file(goldens.files(PREFIXES), partial(_run_file, goldens), LOOP_GATE)


class LinearCodec:
    """The linear replacement of the VAE in the goldens: patches of 4 frames x 8 x 8 pixels times a matrix."""

    def __init__(self, golden: Golden) -> None:
        self._encode_ZP, self._encode_bias = golden["vae_E"], golden["vae_be"]
        self._decode_PZ, self._decode_bias = golden["vae_D"], golden["vae_bd"]

    def encode(self, pixels_BCTHW: Tensor, /) -> Tensor:
        """Encode pixels to latents. Three copies of the first frame are put in front: a latent covers four frames."""
        used = pixels_BCTHW[:, :, : 1 + 4 * ((pixels_BCTHW.shape[2] - 1) // 4)]
        padded = torch.cat([used[:, :, :1].expand(-1, -1, 3, -1, -1), used], dim=2)
        patches = rearrange(padded, "b c (t f) (h y) (w x) -> b t h w (c f y x)", f=4, y=8, x=8)
        return rearrange(F.linear(patches, self._encode_ZP, self._encode_bias), "b t h w z -> b z t h w")

    def decode_pieces(self, latents_BCZhw: Tensor, num_frames: int, /) -> Iterator[Tensor]:
        """Yield the last `num_frames` frames of latents, clamped, in one piece."""
        latents = rearrange(latents_BCZhw, "b z t h w -> b t h w z")
        patches = F.linear(latents, self._decode_PZ, self._decode_bias)
        frames = rearrange(patches, "b t h w (c f y x) -> b c (t f) (h y) (w x)", c=3, f=4, y=8, x=8)
        yield frames[:, :, -num_frames:].clamp(-1, 1)


@dataclass
class _Seen:
    """Tensors that one clip passed through the VAE and the transformer."""

    encoded: list[Tensor] = field(default_factory=list)
    decoder_input: Tensor = field(default_factory=lambda: torch.empty(0))
    num_decoded: int = 0
    latents: list[Tensor] = field(default_factory=list)
    velocities: list[Tensor] = field(default_factory=list)
    frames: Tensor = field(default_factory=lambda: torch.empty(0))


class _ObservedCodec:
    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.seen = _Seen()

    def encode(self, pixels_BCTHW: Tensor, /) -> Tensor:
        latents = self._codec.encode(pixels_BCTHW)
        self.seen.encoded.append(latents)
        return latents

    def decode_pieces(self, latents_BCZhw: Tensor, num_frames: int, /) -> Iterator[Tensor]:
        # The golden counts the frames that the latents stand for, also those that need not be decoded.
        self.seen.decoder_input, self.seen.num_decoded = latents_BCZhw, 4 * latents_BCZhw.shape[2] - 3
        return self._codec.decode_pieces(latents_BCZhw, num_frames)


class _ObservedPipeline(S2VPipeline):
    """The pipeline, with the latents and velocities of each step noted, and the frames before they become bytes."""

    def __init__(self, goldens: Goldens, golden: Golden) -> None:
        target = goldens.target
        self.observed = _ObservedCodec(_codec(goldens.folder, golden, target.device))
        transformer = load_transformer(goldens.folder, target)
        branches = share_among_ranks(transformer, goldens.layout, guided=golden.metadata["guide_scale"] > 1)
        super().__init__(transformer, self.observed, target.device, target.dtype, compat="reference", branches=branches)

    def _predict_noise(self, denoising: Denoising, *args: Any) -> Sequence[Tensor]:
        predictions = super()._predict_noise(denoising, *args)
        self.observed.seen.latents.append(denoising.latents)
        self.observed.seen.velocities += predictions
        return predictions

    def _decode(self, latents: Tensor, clip: Any) -> Iterator[Tensor]:
        frames = torch.cat(list(super()._decode(latents, clip)), dim=2)
        self.observed.seen.latents.append(latents)
        self.observed.seen.frames = frames
        yield frames


def _codec(folder: Path, golden: Golden, device: torch.device) -> Codec:
    if golden.metadata["vae"] == "lin":
        return LinearCodec(golden)
    for path in sorted(folder.glob("vae_*.safetensors")):
        return Vae.from_state_dict(load_golden(path, device).with_prefix("w."), device)
    raise ConfigurationError(f"{golden.name} needs the VAE weights of vae_*.safetensors; add that file to {folder}")


def _run_file(goldens: Goldens, path: Path) -> Iterator[CaseResult]:
    golden = load_golden(path, goldens.target.device)
    pipeline = _ObservedPipeline(goldens, golden)
    clips: list[_Seen] = []
    motion_latents: list[Tensor] = []
    videos: list[Tensor] = []
    meta = golden.metadata
    sampling = Sampling(meta["steps"], meta["guide_scale"], meta["shift"], meta["solver"])
    motion: MotionState | None = None
    for index, inputs in enumerate(_clip_inputs(golden, goldens.output_size)):
        pipeline.observed.seen = _Seen()
        output = pipeline.render_clip(ClipInputs(**inputs, motion=motion), sampling, noise=golden[f"clip{index}.noise"])
        motion = output.motion
        clips.append(pipeline.observed.seen)
        videos.append(torch.from_numpy(output.frames_u8))
        motion_latents.append(pipeline.observed.seen.encoded[-1])
    yield _counts(golden, clips)
    yield compare_all(golden.name, _close(golden, clips, motion_latents), LOOP_GATE)
    video = rearrange(torch.cat(videos), "f h w c -> c f h w")
    yield compare(f"{golden.name} bytes", video[:, [0, -1]], golden["frames_u8_first_last"], _BYTE_GATE)


def _clip_inputs(golden: Golden, output_size: OutputSize) -> Iterable[dict[str, Any]]:
    """Yield the inputs of each clip of the loop, without the motion state."""
    meta = golden.metadata
    image = golden["image_u8"].cpu().numpy()
    height, width = output_size(image.shape[0], image.shape[1], meta["max_area"])
    num_frames, features = meta["infer_frames"], golden["audio_feat30"]
    available = reference_num_repeat(features.shape[1], num_frames)
    num_clips = min(meta["clips_requested"] or available, available)
    audio = frame_features(features, available * num_frames)
    pose = None
    if meta["pose"]:
        step = reference_pose_step(meta["pose"][3])
        frames = golden["pose_frames_u8"][::step][: num_clips * num_frames].cpu().numpy()
        pose = pad_pose(fit_pose(frames, width, height, compat="reference"), num_clips * num_frames)
    reference = fit_image(image, width, height, compat="reference")
    for index in range(num_clips):
        part = slice(index * num_frames, (index + 1) * num_frames)
        yield {
            "reference_u8": reference,
            "context": golden["context"],
            "context_null": golden["context_null"],
            "audio": audio[part],
            "pose": None if pose is None else pose[:, :, part],
            "seed": meta["seed"] + index,
            "start_from_ref": meta["start_from_ref"],
            "keep_motion_frames": MOTION_FRAMES,
        }


def _counts(golden: Golden, clips: list[_Seen]) -> CaseResult:
    frames = sum(clip.frames.shape[2] for clip in clips)
    height, width = clips[0].frames.shape[-2:]
    meta = golden.metadata
    actual = [len(clips), frames, height, width, *(clip.num_decoded for clip in clips)]
    decoded = [golden[f"clip{index}.decode_frames"].item() for index in range(meta["clips_run"])]
    expected = [meta["clips_run"], meta["frames"], meta["H"], meta["W"], *decoded]
    return compare(f"{golden.name} counts", torch.tensor(actual), torch.tensor(expected), EXACT)


def _close(golden: Golden, clips: list[_Seen], motion_latents: list[Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield all (key, actual, golden) of a loop that are compared within the loop gate."""
    video = torch.cat([clip.frames for clip in clips], dim=2)[0]
    found = {
        "ref_latents": _first(clips[0].encoded, golden["ref_latents"]),
        "video_sub4": video[:, :, ::4, ::4],
        "video_frame_channel_mean": video.mean(dim=(2, 3)),
        "video_frame_channel_std": video.std(dim=(2, 3)),
        "video": video,
    }
    if golden.metadata["start_from_ref"]:
        found["motion_latents_clip0"] = _first(clips[0].encoded, golden["motion_latents_clip0"])
    guided = golden.metadata["guide_scale"] > 1
    for index, clip in enumerate(clips):
        found[f"clip{index}.latents_per_step"] = torch.cat(clip.latents[1:])
        found[f"clip{index}.pred_cond_step0"] = clip.velocities[0][0]
        if guided:
            found[f"clip{index}.pred_uncond_step0"] = clip.velocities[1][0]
        found[f"clip{index}.decode_in_tail"] = clip.decoder_input[0, :, :2]
        found[f"clip{index}.motion_latents_after"] = motion_latents[index]
        if golden.metadata["pose"]:
            found[f"cond_latents_full{index}"] = _first(clip.encoded, golden[f"cond_latents_full{index}"])
    for key, actual in found.items():
        if key in golden:
            yield key, actual, golden[key]


def _first(encoded: list[Tensor], like: Tensor) -> Tensor:
    """Return the first tensor that was encoded to the shape of `like`."""
    return next((latents for latents in encoded if latents.shape == like.shape), torch.empty(0))
