"""Peak memory of one GPU that renders a clip, by formula, and the refusal of a plan that does not fit.

Symbols: L tokens of a forward, D width of the transformer, F width of its feed-forward layers. Weights and products are
bf16 (2 bytes), the residual stream is fp32 (4 bytes).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.clips import FRAMES_PER_LATENT, MIN_INFER_FRAMES
from s2v_tasks.planning.estimate import GIB, MOTION_FRAMES, ClipShape, clip_tokens
from s2v_tasks.planning.resolution import SIDE_MULTIPLE
from s2v_tasks.schemas.model_card import GpuCard, ModelCard
from s2v_tasks.schemas.plan import Plan, Sampling
from s2v_tasks.settings import Settings

# Bytes per token and unit of width at the peak, which is attention: the residual stream (4), queries, keys and values
# (6) and the result (2), or while the values are computed their modulated norm (2).
ATTENTION_BYTES = 12
# With guidance in one process, the residual stream of the branch that waits.
WAITING_BRANCH_BYTES = 4
# Ulysses: queries, keys and values stacked (6), cut into shares (6) and received (6), beside what they were made from.
EXCHANGE_BYTES = 18
# First-block cache, per branch: the residual of the first block (4) and of the others (4); in the first
# block: the tokens before it (4).
CACHED_BRANCH_BYTES, CACHED_FORWARD_BYTES = 8, 4
# Feed-forward and text attention pass this many tokens at a time, or compiled all of them: the input (2 D) and the
# hidden layer before and behind its activation (4 F).
CHUNK_TOKENS = 32768
# Bytes per squared width that a GPU needs beyond the counted tensors (workspaces of libraries, weights cast to fp32).
# Measured for the 14B shapes in bf16 as 3.0 to 3.1 GB at 832x448x80, 1024x704x80, 1024x704x112 and 1280x704x80. Later
# a step of 832x448x80 needed 0.5 GB of it (docs/gpu.md).
RESERVE_BYTES_PER_SQUARED_WIDTH = 117
# Tensors of four frames with the decoder's full width at full resolution: at the peak, in its last level, two frames
# pass as input (0.5), normalised (0.5), behind what the convolution keeps (1) and padded (1), beside the output of the
# level before (1), what 7 convolutions keep of the last level (4, one of them twice), what those of the earlier levels
# keep (2.3) and the frames (0.2). A test counts them.
DECODER_BUFFERS = 10.8
ENCODER_BUFFERS = 9.2
BRANCHES = 2
MOST_RANKS = 8
# As in the engine: weights that fill more of a rank's memory are sharded.
SHARDED_FROM_SHARE = 0.5


@dataclass(frozen=True)
class RenderSetup:
    """The settings of an installation on which the memory of a GPU depends."""

    num_ranks: int = 1
    parallel_layout: str = "auto"
    float8_weights: bool = False
    bfloat16_vae: bool = False
    first_block_cache: bool = False
    offloaded_blocks: bool = False
    compiled: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "RenderSetup":
        """Read the setup from the settings."""
        return cls(
            num_ranks=settings.nproc_per_node,
            parallel_layout=settings.parallel_layout,
            float8_weights=settings.weights_dtype != "auto",
            bfloat16_vae=settings.vae_precision == "bfloat16",
            first_block_cache=settings.step_cache > 0,
            offloaded_blocks=settings.offload == "blocks",
            compiled=settings.compile,
        )

    def for_sampling(self, sampling: Sampling) -> "RenderSetup":
        """Return the setup of a plan whose sampling may choose the first-block cache."""
        if sampling.step_cache is None:
            return self
        return replace(self, first_block_cache=sampling.step_cache > 0)


ONE_GPU = RenderSetup()


@dataclass(frozen=True)
class _Sharing:
    """Ranks per guidance branch, ranks that share the tokens of a branch, and whether weights are sharded."""

    cfg: int
    ulysses: int
    fsdp: bool


def peak_memory_gib(
    shape: ClipShape, model: ModelCard, gpu: GpuCard, *, guided: bool, setup: RenderSetup = ONE_GPU
) -> float:
    """Return the peak memory of one GPU in GiB: what stays, and the larger of denoising and decoding."""
    sharing = _sharing(model, gpu, setup, guided=guided)
    branches = 1 if not guided or sharing.cfg == BRANCHES else BRANCHES
    text = branches * model.num_layers * model.text_len * 2 * model.dim * 2
    stays = _weight_bytes(model, setup, sharing) + text
    denoising = _forward_bytes(shape, model, setup, sharing, branches)
    return (stays + max(denoising, _vae_bytes(shape, model, setup))) / GIB


def block_bytes(model: ModelCard) -> int:
    """Return the bytes of the weights of one block in bf16."""
    return 2 * _block_parameters(model)


def check_memory(plan: Plan, model: ModelCard, gpu: GpuCard, setup: RenderSetup) -> None:
    """Raise PermanentError for a plan that does not fit the GPU; it names single changes that would fit."""
    guided, setup = plan.sampling.guided_steps > 0, setup.for_sampling(plan.sampling)

    def needs(shape: ClipShape) -> float:
        return peak_memory_gib(shape, model, gpu, guided=guided, setup=setup)

    shape = max(plan_shapes(plan), key=needs, default=None)
    if shape is None or needs(shape) <= gpu.memory_gib:
        return
    changes = [*_changes(shape, model, gpu, setup, guided=guided)]
    remedy = f"Each of these alone fits: {'; '.join(changes)}" if changes else "Choose a smaller size and shorter clips"
    raise PermanentError(
        f"A clip of {shape.infer_frames} frames at {shape.width} x {shape.height} needs {needs(shape):.1f} GiB of GPU "
        f"memory; expected at most {gpu.memory_gib:g}, what {gpu.name} (S2V_GPU) has. {remedy}; or use a larger GPU."
    )


def plan_shapes(plan: Plan) -> list[ClipShape]:
    """Return what the memory and cost of each clip that the plan renders depend on."""
    return [
        ClipShape(
            width=plan.width,
            height=plan.height,
            infer_frames=clip.infer_frames,
            with_motion=clip.predecessor is not None or plan.sampling.start_from_ref,
            starts_chain=clip.predecessor is None,
            ends_chain=clip.successor is None,
        )
        for clip in plan.clips[len(plan.inherited) :]
    ]


def _forward_bytes(shape: ClipShape, model: ModelCard, setup: RenderSetup, sharing: _Sharing, branches: int) -> float:
    waiting = WAITING_BRANCH_BYTES * (branches - 1)
    if setup.first_block_cache:
        waiting += CACHED_BRANCH_BYTES * branches + CACHED_FORWARD_BYTES
    attention = waiting + ATTENTION_BYTES + (EXCHANGE_BYTES if sharing.ulysses > 1 else 0)
    tokens = clip_tokens(shape) / sharing.ulysses
    chunk_tokens = tokens if setup.compiled else min(tokens, CHUNK_TOKENS)
    ffn = tokens * (waiting + 4) * model.dim + chunk_tokens * (2 * model.dim + 4 * model.ffn_dim)
    return max(tokens * attention * model.dim, ffn) + RESERVE_BYTES_PER_SQUARED_WIDTH * model.dim**2


def _vae_bytes(shape: ClipShape, model: ModelCard, setup: RenderSetup) -> float:
    """Return what decoding needs, or encoding the motion state for the next clip; ranks share the rows of a frame."""
    pixels, number_bytes = shape.width * shape.height / setup.num_ranks, 2 if setup.bfloat16_vae else 4
    buffer = FRAMES_PER_LATENT * model.vae_base_dim * pixels * number_bytes
    newest = 0 if shape.ends_chain else MOTION_FRAMES * 3 * shape.width * shape.height * 4
    return max(DECODER_BUFFERS * buffer + newest, ENCODER_BUFFERS * buffer + 2 * newest)


def _weight_bytes(model: ModelCard, setup: RenderSetup, sharing: _Sharing) -> float:
    block = _block_parameters(model)
    transformer: float = 2 * model.transformer_parameters - (model.num_layers * block if setup.float8_weights else 0)
    if setup.offloaded_blocks:
        # Two blocks: the one that computes and the next one.
        transformer = 2 * (model.transformer_parameters - (model.num_layers - 2) * block)
    if sharing.fsdp:
        # A share of all, and two blocks whole: the one that computes and the next one.
        transformer = transformer / setup.num_ranks + 2 * 2 * block
    return transformer + (2 if setup.bfloat16_vae else 4) * model.vae_parameters


def _block_parameters(model: ModelCard) -> int:
    return 8 * model.dim**2 + 2 * model.dim * model.ffn_dim


def _sharing(model: ModelCard, gpu: GpuCard, setup: RenderSetup, *, guided: bool) -> _Sharing:
    """Return how the ranks share a clip; "auto" is the rule of `engine.distributed.mesh.choose_layout`."""
    if setup.parallel_layout != "auto":
        sizes = {name: int(size) for name, size in re.findall(r"(cfg|ulysses)(\d+)", setup.parallel_layout)}
        return _Sharing(sizes.get("cfg", 1), sizes.get("ulysses", 1), "fsdp" in setup.parallel_layout)
    cfg = BRANCHES if guided and setup.num_ranks % BRANCHES == 0 else 1
    crowded = 2 * model.transformer_parameters > SHARDED_FROM_SHARE * gpu.memory_gib * GIB
    can_shard = setup.num_ranks > 1 and not setup.float8_weights and not setup.offloaded_blocks
    return _Sharing(cfg, setup.num_ranks // cfg, fsdp=crowded and can_shard)


def _changes(shape: ClipShape, model: ModelCard, gpu: GpuCard, setup: RenderSetup, *, guided: bool) -> Iterator[str]:
    """Yield the smallest change of each kind that makes the clip fit."""

    def fits(shape: ClipShape, setup: RenderSetup = setup) -> bool:
        return peak_memory_gib(shape, model, gpu, guided=guided, setup=setup) <= gpu.memory_gib

    for infer_frames in range(shape.infer_frames - FRAMES_PER_LATENT, MIN_INFER_FRAMES - 1, -FRAMES_PER_LATENT):
        if fits(replace(shape, infer_frames=infer_frames)):
            yield f"infer_frames {infer_frames}"
            break
    for height in range(shape.height - SIDE_MULTIPLE, 2 * SIDE_MULTIPLE - 1, -SIDE_MULTIPLE):
        width = round(shape.width * height / shape.height / SIDE_MULTIPLE) * SIDE_MULTIPLE
        if width >= 2 * SIDE_MULTIPLE and fits(replace(shape, width=width, height=height)):
            yield f"size {width}*{height}"
            break
    for change, changed in _other_setups(model, setup):
        if fits(shape, changed):
            yield change
    for num_ranks in (2, 4, MOST_RANKS):
        if num_ranks > setup.num_ranks and fits(shape, replace(setup, num_ranks=num_ranks, parallel_layout="auto")):
            yield f"S2V_NPROC_PER_NODE={num_ranks} with as many GPUs"
            break


def _other_setups(model: ModelCard, setup: RenderSetup) -> Iterator[tuple[str, RenderSetup]]:
    """Yield the settings that spare memory and are not used yet, with the setup that they make."""
    if not setup.bfloat16_vae:
        yield "S2V_VAE_PRECISION=bfloat16", replace(setup, bfloat16_vae=True)
    if setup.compiled:
        yield "S2V_COMPILE=false", replace(setup, compiled=False)
    if setup.offloaded_blocks:
        return
    if not setup.float8_weights:
        yield "S2V_WEIGHTS_DTYPE=fp8", replace(setup, float8_weights=True)
        host_gib = model.num_layers * block_bytes(model) / GIB
        change = f"S2V_OFFLOAD=blocks with {host_gib:.0f} GiB of host memory for each process"
        yield change, replace(setup, offloaded_blocks=True)
