"""The S2V transformer: noisy latents to velocity, conditioned on image, motion, pose, text and sound (spec c).

Legend: B batch (1), C latent channels, T latent frames, h w latent height and width, n = (h/2)(w/2) patches per frame,
N = T*n video tokens, M reference and motion tokens, L = N + M, D model width, S text rows, A sound tokens per frame,
c complex channels of a head.

What does not change over the solver steps of a clip is computed once: `prepare_scene` (what both guidance branches
share) and `prepare_guidance` (what differs between them); `forward` is then one call per step and branch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.audio import NUM_FEATURE_LAYERS, AudioInjector, CausalAudioEncoder
from s2v_tasks.engine.models.blocks import Block, Head
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.framepack import MOTION_LATENTS, FramePacker
from s2v_tasks.engine.models.layers import Fp32Linear, Linear, PatchConv, timestep_sinusoid
from s2v_tasks.engine.models.rope import reference_grid, rope_table, video_grid
from s2v_tasks.errors import PermanentError

MOTION_FRAMES = 4 * MOTION_LATENTS - 3
_VIDEO, _REFERENCE, _MOTION = 0, 1, 2


@dataclass(frozen=True)
class Scene:
    """What a clip sees, constant over its steps and the same for both guidance branches."""

    extra_BMD: Tensor  # reference and motion tokens
    cond_BND: Tensor  # added to the video tokens; [1, 1, D] where there is no pose
    rope_Lc: Tensor  # complex64
    latent_shape: tuple[int, int, int]  # T, h, w


@dataclass(frozen=True)
class Guidance:
    """What a clip is told, constant over its steps: text, and sound per latent frame."""

    context_BSD: Tensor
    audio_tokens_TAD: Tensor
    audio_global_TD: Tensor


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

    def prepare_scene(
        self,
        num_latent_frames: int,
        reference_BC1hw: Tensor,
        motion_BCFhw: Tensor | None,
        cond_BCThw: Tensor | None,
    ) -> Scene:
        """Tokens of the reference, of the motion history (None: none, the first clip) and of the pose (None: no pose).

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

        no_pose = self.cond_encoder.bias[None, None]  # type: ignore[index]  # what zeros are embedded to
        cond_BND = no_pose if cond_BCThw is None else self.cond_encoder(cond_BCThw)
        rope_Lc = rope_table(grids, self.config.head_dim).to(torch.complex64).to(reference_BC1hw.device)
        return Scene(torch.cat(extra, dim=1), cond_BND, rope_Lc, (num_latent_frames, height, width))

    def prepare_guidance(self, context_SD: Tensor, features_FKC: Tensor) -> Guidance:
        """Project the text rows `[len, text_dim]` and encode the clip's sound `[num_frames, 25, audio_dim]`."""
        missing = self.config.text_len - context_SD.shape[0]
        if missing < 0:
            raise PermanentError(
                f"the prompt has {context_SD.shape[0]} tokens; at most {self.config.text_len} fit. Shorten it."
            )
        context_BSD = self.text_embedding(F.pad(context_SD, (0, 0, 0, missing))[None])
        tokens_BTAD, global_BTAD = self.encode_audio(rearrange(features_FKC, "f k c -> 1 k c f"))
        return Guidance(context_BSD, tokens_BTAD[0, MOTION_LATENTS:], global_BTAD[0, MOTION_LATENTS:].squeeze(1))

    def encode_audio(self, features_BKCF: Tensor) -> tuple[Tensor, Tensor]:
        """Sound tokens of the history (the clip's first frame repeated) and of the clip."""
        if features_BKCF.shape[1:3] != (NUM_FEATURE_LAYERS, self.config.audio_dim):
            raise PermanentError(
                f"speech features have layers x width {list(features_BKCF.shape[1:3])}; expected "
                f"[{NUM_FEATURE_LAYERS}, {self.config.audio_dim}]. Encode the conditions with this snapshot."
            )
        history = features_BKCF[..., :1].expand(-1, -1, -1, MOTION_FRAMES)
        return self.casual_audio_encoder(torch.cat([history, features_BKCF], dim=-1))  # type: ignore[no-any-return]

    def forward(self, latents_BCThw: Tensor, timestep_1: Tensor, scene: Scene, guidance: Guidance) -> Tensor:
        """Velocity `[1, 16, T, h, w]` in fp32 at `timestep_1` `[1]`."""
        num_frames, height, width = scene.latent_shape
        if latents_BCThw.shape[2:] != scene.latent_shape or guidance.audio_tokens_TAD.shape[0] != num_frames:
            raise PermanentError(
                f"latents {list(latents_BCThw.shape[2:])} and sound for {guidance.audio_tokens_TAD.shape[0]} latent "
                f"frames do not fit the scene {list(scene.latent_shape)}; prepare all three for one clip."
            )
        e_2D, e_26D = self._embed_time(timestep_1)
        video_BND = self.patch_embedding(latents_BCThw) + scene.cond_BND + self.trainable_cond_mask.weight[_VIDEO]
        num_video = video_BND.shape[1]
        x_BLD = torch.cat([video_BND, scene.extra_BMD], dim=1)

        for layer, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, e_26D, num_video, scene.rope_Lc, guidance.context_BSD)
            if layer in self.config.audio_inject_layers:
                index = self.config.audio_inject_layers.index(layer)
                x_BLD = self._inject(index, x_BLD, num_video, guidance)

        patches = self.head(x_BLD[:, :num_video], e_2D[:1])
        velocity: Tensor = rearrange(
            patches,
            "b (t y x) (dy dx c) -> b c t (y dy) (x dx)",
            t=num_frames, y=height // 2, x=width // 2, dy=2, dx=2,
        )  # fmt: skip
        return velocity

    def _embed_time(self, timestep_1: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the given timestep and of 0: `[2, D]`, and their modulations `[2, 6, D]`, fp32."""
        times = torch.cat([timestep_1, torch.zeros_like(timestep_1)])
        e_2D = self.time_embedding(timestep_sinusoid(times, self.config.freq_dim).float())
        return e_2D, self.time_projection(e_2D).unflatten(1, (6, -1))

    def _inject(self, index: int, x_BLD: Tensor, num_video: int, guidance: Guidance) -> Tensor:
        video_BND, extra_BMD = x_BLD[:, :num_video], x_BLD[:, num_video:]
        residual = self.audio_injector(index, video_BND, guidance.audio_tokens_TAD, guidance.audio_global_TD)
        return torch.cat([video_BND + residual, extra_BMD], dim=1)
