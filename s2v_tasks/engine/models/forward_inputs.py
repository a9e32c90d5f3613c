"""Inputs of a forward of the transformer, and the hooks around its layers.

Legend: T latent frames, h w latent height and width, N video tokens, M reference and motion tokens, L = N + M, D model
width, c complex channels of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from s2v_tasks.engine.models.attention import KeysValues
from s2v_tasks.engine.models.audio import AudioConditioning


@dataclass(frozen=True)
class ClipTokens:
    """Inputs of a clip that are the same for all its steps and for both guidance branches.

    Holds the tokens `start` to `end` of `[video N][reference and motion M]`.
    """

    latent_shape: tuple[int, int, int]  # T, h, w of the whole clip
    start: int
    end: int
    extra_BMD: Tensor  # reference and motion tokens
    cond_BND: Tensor  # added to the video tokens; [1, 1, D] without a pose
    rope_Lc2: Tensor
    e0_6D: Tensor  # modulation of the reference and motion tokens, for timestep 0

    @property
    def patches_per_frame(self) -> int:
        """Return the tokens of one latent frame."""
        return self.latent_shape[1] * self.latent_shape[2] // 4

    @property
    def num_video(self) -> int:
        """Return the number of video tokens of the whole clip."""
        return self.latent_shape[0] * self.patches_per_frame

    @property
    def video(self) -> slice:
        """Return the video tokens of the clip that this object holds."""
        return slice(min(self.start, self.num_video), min(self.end, self.num_video))

    def part(self, start: int, end: int) -> "ClipTokens":
        """Return the tokens from `start` to `end`; views, no copies."""
        video = slice(min(start, self.num_video), min(end, self.num_video))
        extra = slice(max(start, self.num_video) - self.num_video, max(end, self.num_video) - self.num_video)
        cond_BND = self.cond_BND if self.cond_BND.shape[1] == 1 else self.cond_BND[:, video]
        return replace(
            self,
            start=start,
            end=end,
            extra_BMD=self.extra_BMD[:, extra],
            cond_BND=cond_BND,
            rope_Lc2=self.rope_Lc2[start:end],
        )


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of one guidance branch, constant over the steps: text for each block, audio for each injection."""

    text: tuple[KeysValues, ...]
    audio: tuple[AudioConditioning, ...]
    name: str = "cond"  # or "uncond"


@dataclass(frozen=True)
class LayerInputs:
    """Inputs of a forward that all its layers share."""

    e_26D: Tensor  # modulations of the video tokens and of the others
    clip_tokens: ClipTokens
    conditionings: Sequence[Conditioning]


# Maps the index of a layer and the tokens of each branch `[1, L, D]` to its output; may work in place.
RunLayer = Callable[[int, list[Tensor], LayerInputs], list[Tensor]]


class LayerHook(Protocol):
    """A wrapper around each layer, attached from outside; `run` runs the layer itself."""

    def __call__(self, run: RunLayer, layer: int, states: list[Tensor], inputs: LayerInputs, /) -> list[Tensor]:
        """Return what the layer returns."""
        ...
