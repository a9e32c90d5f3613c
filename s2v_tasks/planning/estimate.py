"""The cost of a clip: tokens, floating point operations, seconds and money; and the budget of a plan.

Operations are counted by formula (a multiply-add is two). The counts of the 14B model agree with spec f.1 to four
digits. Symbols: D = dim, F = ffn_dim, N = video tokens, n = tokens of one latent frame, M = motion tokens,
L = N + n + M = all tokens of a forward.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.clips import FRAMES_PER_LATENT
from s2v_tasks.schemas.model_card import GpuCard, ModelCard
from s2v_tasks.schemas.plan import Estimate
from s2v_tasks.schemas.request import Request
from s2v_tasks.settings import Settings

VAE_SCALE = 8  # pixels of a side per latent
LATENT_CHANNELS = 16
PATCH = 2  # latents of a side per token
MOTION_FRAMES = 73  # pixel frames of the motion buffer
MOTION_LATENTS = 19
LOST_FRAMES = 3  # of the first clip of a chain, behind the latent of the picture
AUDIO_TOKENS_PER_LATENT_FRAME = 5
GIB = 1024**3
# Operations of the VAE at 1024x704 with 96 channels, counted on the released architecture. They are linear in the
# latent frames; the first costs less because it stands for one pixel frame, not four. Encoding 19 and 21 latents takes
# 268 and 297 TFLOP, decoding all of 21 latents 499 and the last 80 frames of 39 latents 687.
VAE_PIXELS, VAE_BASE_DIM = 1024 * 704, 96
ENCODE_FIRST, ENCODE_NEXT = 4.99e12, 14.621e12


@dataclass(frozen=True)
class DecoderLevel:
    """A level of the decoder: operations of the first and of each other latent, and the latents that it looks back."""

    first_flops: float
    next_flops: float
    context_latents: int


DECODER_LEVELS = (
    DecoderLevel(1.1686e12, 1.2483e12, 24),
    DecoderLevel(2.2190e12, 5.0758e12, 7),
    DecoderLevel(2.3918e12, 9.5670e12, 3),
    DecoderLevel(2.1638e12, 8.6552e12, 4),
)


@dataclass(frozen=True)
class ClipShape:
    """Dimensions of a clip that decide its cost."""

    width: int
    height: int
    infer_frames: int
    with_motion: bool  # False: the first clip of a chain that does not start from the reference picture
    starts_chain: bool
    ends_chain: bool

    @property
    def latent_frames(self) -> int:
        return self.infer_frames // FRAMES_PER_LATENT

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return LATENT_CHANNELS, self.latent_frames, self.height // VAE_SCALE, self.width // VAE_SCALE


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of one forward of the transformer, by part, and the operations that a step does not need."""

    linear: float  # projections and feed-forward layers of the blocks
    self_attention: float
    text_attention: float
    injection: float
    embeddings: float  # text projection and its keys and values, patches in and out
    constant: float  # part that is constant over the steps of a clip: text, and the audio of the injections
    unseen: float  # what the last block would make of the reference and motion tokens, which nothing reads
    shared: float  # what the guidance branches have in common: the self attention of the first block

    @property
    def total(self) -> float:
        return self.linear + self.self_attention + self.text_attention + self.injection + self.embeddings

    def per_step(self, branches: int) -> float:
        """Return the operations of a step with all branches in one process; separate ranks repeat the shared part."""
        return branches * (self.total - self.constant - self.unseen) - (branches - 1) * self.shared


@dataclass(frozen=True)
class Cost:
    """Operations of a clip: the transformer in bfloat16, the VAE in float32 that is rounded to TF32."""

    transformer_flops: float
    vae_flops: float

    @property
    def pflops(self) -> float:
        return (self.transformer_flops + self.vae_flops) / 1e15


def frame_tokens(shape: ClipShape) -> int:
    """Return n, the tokens of one latent frame."""
    side = VAE_SCALE * PATCH
    return (shape.height // side) * (shape.width // side)


def clip_tokens(shape: ClipShape) -> int:
    """Return L, the tokens of one forward (spec c.2)."""
    n = frame_tokens(shape)
    h, w = shape.height // VAE_SCALE, shape.width // VAE_SCALE
    motion = n + (h // 4) * (w // 4) + 4 * (h // 8) * (w // 8)
    return shape.latent_frames * n + n + (motion if shape.with_motion else 0)


def forward_flops(shape: ClipShape, model: ModelCard) -> ForwardFlops:
    """Return the operations of one forward (spec f.1)."""
    dim, layers, all_tokens = model.dim, model.num_layers, clip_tokens(shape)
    video_tokens = shape.latent_frames * frame_tokens(shape)
    audio_tokens = AUDIO_TOKENS_PER_LATENT_FRAME * shape.latent_frames
    # self-attention q, k, v, o and cross-attention q, o; then the two feed-forward layers
    linear = 2 * all_tokens * (6 * dim**2 + 2 * dim * model.ffn_dim) * layers
    # k, v of the audio tokens, scale and shift of each frame; then q, o of the video tokens, scores and values
    injections = len(model.audio_inject_layers)
    audio_projections = injections * 4 * (audio_tokens + shape.latent_frames) * dim**2
    injection = audio_projections + injections * (
        4 * video_tokens * dim**2 + 4 * video_tokens * AUDIO_TOKENS_PER_LATENT_FRAME * dim
    )
    patch_values = 64
    text = 2 * model.text_len * (model.text_dim * dim + dim**2 + 2 * dim**2 * layers)
    others = all_tokens - video_tokens
    unseen = 2 * others * (4 * dim**2 + 2 * dim * model.ffn_dim) + 4 * others * (all_tokens + model.text_len) * dim
    return ForwardFlops(
        linear=linear,
        self_attention=4 * all_tokens**2 * dim * layers,
        text_attention=4 * all_tokens * model.text_len * dim * layers,
        injection=injection,
        embeddings=text + 4 * video_tokens * patch_values * dim,
        constant=text + audio_projections,
        unseen=unseen,
        shared=8 * all_tokens * dim**2 + 4 * all_tokens**2 * dim,
    )


def vae_encode_flops(width: int, height: int, latent_frames: int, model: ModelCard) -> float:
    """Return the operations to encode the pixel frames of `latent_frames`."""
    return (ENCODE_FIRST + ENCODE_NEXT * (latent_frames - 1)) * _vae_scale(width, height, model)


def vae_decode_flops(width: int, height: int, latent_frames: int, num_frames: int, model: ModelCard) -> float:
    """Return the operations to decode the last `num_frames` of the 4 * `latent_frames` - 3 frames.

    Each level starts at the first latent on which those frames depend, see `engine.encoders.vae_decoder`.
    """
    flops = 0.0
    start = (FRAMES_PER_LATENT * latent_frames - num_frames) // FRAMES_PER_LATENT
    for level in reversed(DECODER_LEVELS):
        start = max(0, start - level.context_latents)
        flops += level.next_flops * (latent_frames - start)
        if start == 0:
            flops += level.first_flops - level.next_flops
    return flops * _vae_scale(width, height, model)


def clip_cost(shape: ClipShape, model: ModelCard, *, sample_steps: int, guided_steps: int) -> Cost:
    """Return the operations of a clip: all solver steps (a guided one has two branches), decoding, motion state."""
    branches = 2 if guided_steps else 1
    forward = forward_flops(shape, model)
    encodes = (shape.starts_chain and shape.with_motion) + (not shape.ends_chain)
    encode = vae_encode_flops(shape.width, shape.height, MOTION_LATENTS, model)
    # Before the clip come the latents of the motion state, else that of the picture, behind which 3 frames are lost.
    latents = shape.latent_frames + (MOTION_LATENTS if shape.with_motion else 1)
    frames = shape.infer_frames - (0 if shape.with_motion else LOST_FRAMES)
    decode = vae_decode_flops(shape.width, shape.height, latents, frames, model)
    steps = guided_steps * forward.per_step(2) + (sample_steps - guided_steps) * forward.per_step(1)
    transformer = steps + branches * forward.constant
    return Cost(transformer, encodes * encode + decode)


def compute_seconds(cost: Cost, gpu: GpuCard) -> float:
    """Return the expected seconds of one clip on `gpu` with loaded weights."""
    return cost.transformer_flops / (gpu.bf16_tflops * 1e12 * gpu.utilization) + vae_seconds(cost, gpu)


def vae_seconds(cost: Cost, gpu: GpuCard) -> float:
    """Return the expected seconds of the VAE in one clip."""
    return cost.vae_flops / (gpu.tf32_tflops * 1e12 * gpu.vae_utilization)


def load_seconds(gpu: GpuCard, model: ModelCard) -> float:
    """Return the expected seconds to load the weights to `gpu`, once per process."""
    return weight_bytes(model) / (gpu.load_gb_per_second * 1e9)


def weight_bytes(model: ModelCard) -> int:
    """Return the bytes of the weights that rendering keeps on the GPU."""
    return 2 * model.transformer_parameters + 4 * model.vae_parameters


def _vae_scale(width: int, height: int, model: ModelCard) -> float:
    return width * height / VAE_PIXELS * (model.vae_base_dim / VAE_BASE_DIM) ** 2


def check_budget(estimate: Estimate, request: Request, settings: Settings) -> None:
    """Raise PermanentError that names every limit of request and installation that the plan exceeds."""
    problems = [*_exceeded(estimate, request, settings)]
    if problems:
        raise PermanentError(
            f"The plan is over budget: {'; '.join(problems)}. Reduce it (num_clip for a preview, fewer sample_steps, "
            "a smaller size, guidance 1), or raise the limit."
        )


def _exceeded(estimate: Estimate, request: Request, settings: Settings) -> Iterator[str]:
    for limit, source in (
        (request.max_gpu_seconds, "max_gpu_seconds of the request"),
        (settings.max_gpu_seconds, "S2V_MAX_GPU_SECONDS"),
    ):
        if limit is not None and estimate.gpu_seconds > limit:
            yield f"{estimate.gpu_seconds:,.0f} GPU-seconds on {estimate.gpu}, expected at most {limit:,g} ({source})"
    for limit, source in ((request.max_cost, "max_cost of the request"), (settings.max_cost, "S2V_MAX_COST")):
        if limit is not None and estimate.cost > limit:
            yield f"{estimate.cost:,.4g} {estimate.currency}, expected at most {limit:,g} ({source})"
