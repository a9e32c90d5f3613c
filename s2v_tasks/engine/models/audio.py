"""Audio in the transformer: the causal encoder of speech features and the per-frame injection (spec b.4, c.8).

Legend: B batch (1), K layers of speech features (25), C their width, F pixel frames, T latent frames, A audio tokens
per frame, D model width, n patches per latent frame, N video tokens, H heads, d head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.models.attention import CrossAttention, KeysValues
from s2v_tasks.engine.models.layers import Fp32Linear, LayerNorm, Linear

NUM_FEATURE_LAYERS = 25
_ENCODER_EPS = 1e-6
_ADAIN_EPS = 1e-5  # unlike every other norm of the network


class CausalConv(nn.Module):
    """A causal fp32 convolution over time; before the start, the first sample is repeated."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size=3, stride=stride)

    def forward(self, x_BCF: Tensor) -> Tensor:
        padded = F.pad(x_BCF, (2, 0), mode="replicate")
        return F.conv1d(padded, self.conv.weight.float(), self.conv.bias.float(), stride=self.conv.stride)  # type: ignore[union-attr]


class MotionEncoder(nn.Module):
    """Encodes feature frames as audio tokens, four frames in one: local tokens in groups, and one global token."""

    def __init__(self, audio_dim: int, dim: int, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.conv1_local = CausalConv(audio_dim, num_groups * (dim // 4), stride=1)
        self.conv1_global = CausalConv(audio_dim, dim // 4, stride=1)
        self.conv2 = CausalConv(dim // 4, dim // 2, stride=2)
        self.conv3 = CausalConv(dim // 2, dim, stride=2)
        self.final_linear = Fp32Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x_BCF: Tensor) -> tuple[Tensor, Tensor]:
        """Return local tokens `[B, T, num_groups + 1, D]` and global tokens `[B, T, 1, D]`, fp32."""
        grouped = rearrange(self.conv1_local(x_BCF), "b (g c) f -> (b g) c f", g=self.num_groups)
        local = rearrange(self._tail(grouped), "(b g) t d -> b t g d", g=self.num_groups)
        padding = self.padding_tokens.float().expand(*local.shape[:2], 1, -1)
        local_BTAD = torch.cat([local, padding], dim=2)
        global_BTD = self.final_linear(self._tail(self.conv1_global(x_BCF)))
        return local_BTAD, global_BTD[:, :, None]

    def _tail(self, x_BCF: Tensor) -> Tensor:
        x_BFC = _norm_silu(x_BCF.transpose(1, 2))
        x_BFC = _norm_silu(self.conv2(x_BFC.transpose(1, 2)).transpose(1, 2))
        return _norm_silu(self.conv3(x_BFC.transpose(1, 2)).transpose(1, 2))


class CausalAudioEncoder(nn.Module):
    """Learned mix of the feature layers, then the causal encoder; all in fp32."""

    def __init__(self, audio_dim: int, dim: int, num_groups: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(1, NUM_FEATURE_LAYERS, 1, 1))
        self.encoder = MotionEncoder(audio_dim, dim, num_groups)

    def forward(self, features_BKCF: Tensor) -> tuple[Tensor, Tensor]:
        """Encode states `[1, 25, C, F]` to local `[1, ceil(F/4), A, D]` and global `[1, ceil(F/4), 1, D]` tokens."""
        gains = F.silu(self.weights.float())
        mixed_BCF = (features_BKCF.float() * (gains / gains.sum(dim=1, keepdim=True))).sum(dim=1)
        return self.encoder(mixed_BCF)  # type: ignore[no-any-return]


class AdaptiveNorm(nn.Module):
    """Layer norm whose gain and shift come from the global audio token of the frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = Linear(dim, 2 * dim)
        self.norm = LayerNorm(dim, _ADAIN_EPS)

    def gain_shift(self, global_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and shift of each frame, `[T, 1, D]`."""
        shift, scale = self.linear(F.silu(global_TD))[:, None].chunk(2, dim=-1)
        return 1 + scale, shift

    def forward(self, x_TnD: Tensor, gain_T1D: Tensor, shift_T1D: Tensor) -> Tensor:
        return torch.addcmul(shift_T1D, self.norm(x_TnD), gain_T1D)


@dataclass(frozen=True)
class AudioConditioning:
    """Conditioning of one injection, constant over the solver steps: keys and values, gain and shift per frame."""

    tokens: KeysValues  # [T, A, H, d]
    gain_T1D: Tensor
    shift_T1D: Tensor


class AudioInjector(nn.Module):
    """Cross attention of each latent frame's patches to that frame's audio tokens, one set per injected layer."""

    def __init__(self, dim: int, num_heads: int, num_injections: int, eps: float) -> None:
        super().__init__()
        self.injector = nn.ModuleList(CrossAttention(dim, num_heads, eps) for _ in range(num_injections))
        self.injector_adain_layers = nn.ModuleList(AdaptiveNorm(dim) for _ in range(num_injections))

    def prepare(self, tokens_TAD: Tensor, global_TD: Tensor) -> tuple[AudioConditioning, ...]:
        """Return the conditioning of each injection from the audio tokens of a clip."""
        pairs = zip(self.injector, self.injector_adain_layers, strict=True)
        return tuple(
            AudioConditioning(attention.keys_values(tokens_TAD), *norm.gain_shift(global_TD))  # type: ignore[operator]
            for attention, norm in pairs
        )

    def forward(
        self, index: int, video_BND: Tensor, start: int, patches_per_frame: int, audio: AudioConditioning
    ) -> Tensor:
        """Return the residual `[B, N, D]` of injection `index` for the video tokens from token `start` of the clip on.

        The range of tokens may begin and end within a frame: each token attends to the audio of its frame.
        """
        count, num_frames = video_BND.shape[1], audio.gain_T1D.shape[0]
        first = min(start // patches_per_frame, num_frames - 1)
        stop = max(-(-(start + count) // patches_per_frame), first + 1)
        before, behind = start - first * patches_per_frame, stop * patches_per_frame - start - count
        if before or behind:
            video_BND = F.pad(video_BND, (0, 0, before, behind))
        frames_TnD = rearrange(video_BND, "1 (t n) d -> t n d", n=patches_per_frame)
        frames = slice(first, stop)
        adapted = self.injector_adain_layers[index](frames_TnD, audio.gain_T1D[frames], audio.shift_T1D[frames])
        tokens = KeysValues(audio.tokens.keys[frames], audio.tokens.values[frames])
        residual_TnD = self.injector[index](adapted, tokens)
        return residual_TnD.flatten(0, 1)[None, before : before + count]  # type: ignore[no-any-return]


def _norm_silu(x_BFC: Tensor) -> Tensor:
    return F.silu(F.layer_norm(x_BFC, x_BFC.shape[-1:], eps=_ENCODER_EPS))
