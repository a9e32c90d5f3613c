"""The S2V transformer: predict noise from latents, conditioned on image, motion, pose, text and audio (spec c).

Legend: B batch (1), C latent channels, T latent frames, h w latent height and width, n = (h/2)(w/2) patches per frame,
N = T*n video tokens, M reference and motion tokens, L = N + M, P values of a patch, D model width, S text rows,
A audio tokens per frame, K layers of speech features, F pixel frames, c complex channels of a head.

Everything that is constant over the solver steps of a clip is computed once: `prepare_clip_tokens` for both guidance
branches, `prepare_text` once per prompt and `prepare_audio` once per clip. `forward` is one call per step. The branches
share all work before their conditioning differs: the first self attention. `ClipTokens.part` limits `forward` to a
range of the tokens, for sequence parallelism. Hooks around the layers attach the first-block cache and interruption.
`lend_block` provides a block while it computes; offload replaces it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import log
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.attention import Attend, KeysValues, sdpa
from s2v_tasks.engine.models.audio import NUM_FEATURE_LAYERS, AudioConditioning, AudioInjector, CausalAudioEncoder
from s2v_tasks.engine.models.blocks import Block, Head
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.forward_inputs import ClipTokens, Conditioning, LayerHook, LayerInputs, RunLayer
from s2v_tasks.engine.models.layers import MOTION_LATENTS, Fp32Linear, FramePacker, Linear, PatchConv, timestep_sinusoid
from s2v_tasks.engine.models.rope import cos_sin, reference_grid, rope_table, video_grid
from s2v_tasks.errors import PermanentError

MOTION_FRAMES = 4 * MOTION_LATENTS - 3
_VIDEO, _REFERENCE, _MOTION = 0, 1, 2
LendBlock = Callable[[int], AbstractContextManager[Any]]
_MAX_GRAPHS = 64  # limit of graphs of the compiler; a process needs three for each clip shape


class S2VTransformer(nn.Module):
    """The network; its state-dict keys are those of the official checkpoint."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.patch_embedding = PatchConv(config.in_dim, dim, (1, 2, 2))
        self.cond_encoder = PatchConv(config.cond_dim, dim, (1, 2, 2))
        self.frame_packer = FramePacker(config.in_dim, dim, config.framepack_drop_mode)
        self.trainable_cond_mask = nn.Embedding(3, dim)
        self.text_embedding = nn.Sequential(Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), Linear(dim, dim))
        self.time_embedding = nn.Sequential(Fp32Linear(config.freq_dim, dim), nn.SiLU(), Fp32Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Fp32Linear(dim, 6 * dim))
        self.casual_audio_encoder = CausalAudioEncoder(config.audio_dim, dim, config.num_audio_token)
        self.audio_injector = AudioInjector(dim, config.num_heads, len(config.audio_inject_layers), config.eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.layer_hooks: list[LayerHook] = []
        # Provides a block while it computes; `acceleration.offload` copies its weights to the device.
        self.lend_block: LendBlock = partial(_own_block, self.blocks)

    def choose_kernels(self, attend: Attend = sdpa, *, compiled: bool = False) -> None:
        """Run self attention on a kernel of `models.attention`; with `compiled`, compile the blocks.

        The first block, which the branches share, and the last, which computes video tokens only, have separate graphs;
        the others share one. Each number of tokens has its own graphs, so that the result of a clip does not depend on
        earlier clips.
        """
        if compiled:
            # The setting is used because the argument of `compile` exists only from torch 2.13 on.
            torch._dynamo.config.recompile_limit = _MAX_GRAPHS
        for block in self.blocks:
            cast(Block, block).self_attn.attend = attend
            if compiled:
                block.compile(dynamic=False)

    def prepare_clip_tokens(
        self,
        num_latent_frames: int,
        reference_BC1hw: Tensor,
        motion_BCFhw: Tensor | None,
        cond_BCThw: Tensor | None,
    ) -> ClipTokens:
        """Embed the reference, the motion history (None for a first clip) and the pose (None: no pose).

        Raises PermanentError if the latent sides are not multiples of 8.
        """
        height, width = reference_BC1hw.shape[-2:]
        if height % 8 or width % 8:
            raise PermanentError(
                f"latents of {width}x{height} cannot be packed; expected sides that are multiples of 8. "
                "Choose a frame size whose sides are multiples of 64."
            )
        kinds_3D = self.trainable_cond_mask.weight
        rows, columns = height // 2, width // 2
        grids = [video_grid(num_latent_frames, rows, columns), reference_grid(rows, columns)]
        extra = [self.patch_embedding(reference_BC1hw) + kinds_3D[_REFERENCE]]
        if motion_BCFhw is not None:
            tokens, motion_grids = self.frame_packer(motion_BCFhw, 2 if self.config.add_last_motion else 0)
            extra.append(tokens + kinds_3D[_MOTION])
            grids += motion_grids

        # Cloned because sharded weights live only while this method runs.
        no_pose = self.cond_encoder.bias[None, None].clone()  # type: ignore[index]  # what zeros are embedded to
        rope_Lc2 = cos_sin(rope_table(grids, self.config.head_dim)).to(reference_BC1hw.device)
        _, e_16D = self._embed_time(torch.zeros(1, device=reference_BC1hw.device))
        return ClipTokens(
            latent_shape=(num_latent_frames, height, width),
            start=0,
            end=rope_Lc2.shape[0],
            extra_BMD=torch.cat(extra, dim=1),
            cond_BND=no_pose if cond_BCThw is None else self.cond_encoder(cond_BCThw),
            rope_Lc2=rope_Lc2,
            e0_6D=e_16D[0],
        )

    def prepare_conditioning(self, context_SD: Tensor, features_FKC: Tensor, name: str = "cond") -> Conditioning:
        """Return the result of `prepare_text` and `prepare_audio`."""
        return Conditioning(self.prepare_text(context_SD), self.prepare_audio(features_FKC), name)

    def prepare_text(self, context_SD: Tensor) -> tuple[KeysValues, ...]:
        """Return the keys and values of each block for the rows `[len, text_dim]` of a prompt.

        Raises PermanentError for more rows than `text_len`.
        """
        missing = self.config.text_len - context_SD.shape[0]
        if missing < 0:
            raise PermanentError(
                f"the prompt has {context_SD.shape[0]} tokens; at most {self.config.text_len} fit. Shorten it."
            )
        context_BSD = self.text_embedding(F.pad(context_SD, (0, 0, 0, missing))[None])
        bias_S = None
        if missing > 1 and context_BSD.dtype == torch.float32:
            # All rows of the padding are equal: one row stands for all, by a bias, which would be too coarse in bf16.
            context_BSD = context_BSD[:, : 1 - missing]
            bias_S = context_BSD.new_zeros(context_BSD.shape[1])
            bias_S[-1] = log(missing)
        texts = []
        for layer in range(len(self.blocks)):
            with self.lend_block(layer) as block:
                texts.append(block.cross_attn.keys_values(context_BSD)._replace(bias_S=bias_S))
        return tuple(texts)

    def prepare_audio(self, features_FKC: Tensor) -> tuple[AudioConditioning, ...]:
        """Return the audio conditioning of each injection for the features `[num_frames, 25, audio_dim]` of a clip."""
        tokens_BTAD, global_BTAD = self.encode_audio(rearrange(features_FKC, "f k c -> 1 k c f"))
        return self.audio_injector.prepare(tokens_BTAD[0, MOTION_LATENTS:], global_BTAD[0, MOTION_LATENTS:].squeeze(1))

    def encode_audio(self, features_BKCF: Tensor) -> tuple[Tensor, Tensor]:
        """Return local and global audio tokens of the history (the clip's first frame repeated) and of the clip.

        Raises PermanentError if the shape of the features does not match the transformer.
        """
        if features_BKCF.shape[1:3] != (NUM_FEATURE_LAYERS, self.config.audio_dim):
            raise PermanentError(
                f"speech features have layers x width {list(features_BKCF.shape[1:3])}; expected "
                f"[{NUM_FEATURE_LAYERS}, {self.config.audio_dim}]. Encode the conditions with this snapshot."
            )
        history = features_BKCF[..., :1].expand(-1, -1, -1, MOTION_FRAMES)
        return self.casual_audio_encoder(torch.cat([history, features_BKCF], dim=-1))  # type: ignore[no-any-return]

    def forward(
        self,
        latents_BCThw: Tensor,
        timestep_1: Tensor,
        clip_tokens: ClipTokens,
        conditionings: Sequence[Conditioning],
    ) -> list[Tensor]:
        """Predict the noise (velocity) `[1, 16, T, h, w]`, fp32, at `timestep_1` `[1]` for each of `conditionings`.

        All branches pass a layer before the next layer, so that its weights are needed once. Raises PermanentError for
        inputs of different clips.
        """
        for conditioning in conditionings:
            self._check_fit(latents_BCThw, clip_tokens, conditioning)
        e_1D, e_16D = self._embed_time(timestep_1)
        inputs = LayerInputs(torch.stack([e_16D[0], clip_tokens.e0_6D]), clip_tokens, conditionings)
        run_layer = self._hooked_layer()

        states = [self._embed_tokens(latents_BCThw, clip_tokens)]
        for layer in range(len(self.blocks)):
            states = run_layer(layer, states, inputs)
        return [_unpatchify(self.head(x_BND, e_1D), clip_tokens.latent_shape) for x_BND in states]

    @contextmanager
    def hooked(self, *hooks: LayerHook) -> Iterator[None]:
        """Run every layer through `hooks`, the first one outermost, outside of already attached hooks."""
        before = self.layer_hooks
        self.layer_hooks = [*hooks, *before]
        try:
            yield
        finally:
            self.layer_hooks = before

    def _hooked_layer(self) -> RunLayer:
        run_layer: RunLayer = self._run_layer
        for hook in reversed(self.layer_hooks):
            run_layer = partial(hook, run_layer)
        return run_layer

    def _check_fit(self, latents_BCThw: Tensor, clip_tokens: ClipTokens, conditioning: Conditioning) -> None:
        num_latents = clip_tokens.latent_shape[0]
        num_frames = conditioning.audio[0].gain_T1D.shape[0] if conditioning.audio else num_latents
        if tuple(latents_BCThw.shape[2:]) != clip_tokens.latent_shape or num_frames != num_latents:
            raise PermanentError(
                f"latents {list(latents_BCThw.shape[2:])} and audio for {num_frames} latent frames do not fit the clip "
                f"{list(clip_tokens.latent_shape)}; prepare all three for one clip."
            )

    def _embed_tokens(self, latents_BCThw: Tensor, clip_tokens: ClipTokens) -> Tensor:
        """Return the tokens `[video N][reference and motion M]` `[1, L, D]`; the residual stream is fp32."""
        video_BND = self.patch_embedding.tokens(self.patch_embedding.patches(latents_BCThw)[:, clip_tokens.video])
        video_BND = video_BND + clip_tokens.cond_BND + self.trainable_cond_mask.weight[_VIDEO]
        return torch.cat([video_BND, clip_tokens.extra_BMD], dim=1).float()

    def _run_layer(self, layer: int, states: list[Tensor], inputs: LayerInputs) -> list[Tensor]:
        """Run a block for each conditioning, then inject the audio if the layer has an injection.

        The first layer gets one common state and returns one state per branch: the branches share its self attention.
        The last layer returns only the video tokens, because the others are not used.
        """
        clip_tokens, conditionings = inputs.clip_tokens, inputs.conditionings
        num_video = clip_tokens.video.stop - clip_tokens.video.start
        is_last = layer == len(self.blocks) - 1
        texts = [conditioning.text[layer] for conditioning in conditionings]
        calls = [(states[0], texts)] if layer == 0 else zip(states, ([text] for text in texts), strict=True)
        outputs: list[Tensor] = []
        with self.lend_block(layer) as block:
            for x_BLD, own_texts in calls:
                outputs += block(x_BLD, inputs.e_26D, num_video, clip_tokens.rope_Lc2, own_texts, is_last)
        if layer in self.config.audio_inject_layers:
            index = self.config.audio_inject_layers.index(layer)
            start, per_frame = clip_tokens.video.start, clip_tokens.patches_per_frame
            for y_BLD, conditioning in zip(outputs, conditionings, strict=True):
                video_BND = y_BLD[:, :num_video]
                video_BND += self.audio_injector(index, video_BND, start, per_frame, conditioning.audio[index])
        return outputs

    def _embed_time(self, timestep_1: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding of a timestep `[1, D]` and its modulation `[1, 6, D]`, fp32."""
        e_1D = self.time_embedding(timestep_sinusoid(timestep_1, self.config.freq_dim).float())
        return e_1D, self.time_projection(e_1D).unflatten(1, (6, -1))


def _own_block(blocks: nn.ModuleList, layer: int) -> AbstractContextManager[Any]:
    # No method of the transformer: a reference to itself would keep its weights on the GPU when it is dropped.
    return nullcontext(blocks[layer])


def _unpatchify(patches_BNP: Tensor, latent_shape: tuple[int, int, int]) -> Tensor:
    num_frames, height, width = latent_shape
    latents: Tensor = rearrange(
        patches_BNP,
        "b (t y x) (dy dx c) -> b c t (y dy) (x dx)",
        t=num_frames, y=height // 2, x=width // 2, dy=2, dx=2,
    )  # fmt: skip
    return latents
