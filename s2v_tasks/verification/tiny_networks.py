"""Weights of the tiny networks: small, drawn from a seed, and arranged so that the video shows the reference picture.

With random weights alone the video would be noise, which shows no errors. A few weights are therefore set to fixed
values. The others are weak random values, so that text, audio and motion have an effect:

- The VAE keeps red, green and blue in latent channels 0-2, averaged over 8 x 8 pixels and 4 frames. Beside each colour
  it carries the negative, because silu(a) - silu(-a) = a passes through its activations unchanged, and a large
  constant, which keeps its norms linear.
- In the transformer's first block the video patches attend to the reference patch at their own place, and the head
  returns a velocity away from that patch: the solver leads from noise to the reference picture, with some noise left.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from s2v_tasks.engine.encoders.vae import LATENT_MEAN, LATENT_STD

_NUM_COLOURS = 3
# One unit of colour in a normalised latent: large enough that noise of size 1 is only a mild flicker.
_COLOUR_GAIN = 2.0
_VAE_CONSTANT = 8.0
_BLUR = torch.tensor([0.25, 0.5, 0.25])

_TOKEN_CONSTANT = 32.0
_PATCH_VALUES = 4 * _NUM_COLOURS
_VELOCITY_GAIN = 1.5


def draw(shapes: Mapping[str, torch.Size], generator: torch.Generator, gains: Mapping[str, float]) -> dict[str, Tensor]:
    """Draw random weights for named shapes: biases 0, norms 1, the rest normal with variance gain^2 / fan-in.

    `gains` maps regular expressions over names to gains; the first match counts, 1.0 without a match.
    """
    state = {}
    for name, shape in sorted(shapes.items()):
        gain = next((gain for pattern, gain in gains.items() if re.search(pattern, name)), 1.0)
        if name.endswith(("bias", "modulation", "padding_tokens", "masked_spec_embed")):
            state[name] = torch.zeros(shape)
        elif len(shape) == 1 or name.endswith(("gamma", "original0", "encoder.weights")):
            state[name] = torch.ones(shape)
        else:
            state[name] = torch.randn(shape, generator=generator) * (gain / math.sqrt(math.prod(shape[1:])))
    return state


def shapes_of(build: Callable[[], nn.Module], names: Iterable[tuple[str, str]] = ()) -> dict[str, torch.Size]:
    """Return the names and shapes of a module's weights; `names` are (official, library) pairs by which to rename."""
    with torch.device("meta"):
        state: dict[str, Any] = build().state_dict()
    pairs = list(names)
    if not pairs:
        return {name: value.shape for name, value in state.items()}
    return {official: state[library].shape for official, library in pairs}


def show_pictures_in_vae(state: dict[str, Tensor]) -> None:
    """Set the colour path of a VAE with official keys (base width at least 8)."""
    for name, value in state.items():
        if name.endswith(("shortcut.weight", "time_conv.weight", "resample.1.weight")):
            value.zero_()
        # Views of the kernels from each channel to the same channel: [*kernel, channels].
        same = value.diagonal(dim1=0, dim2=1) if value.ndim >= 4 else value
        if name.endswith("shortcut.weight"):
            same[:] = 1
        elif name.startswith("encoder.") and name.endswith("resample.1.weight"):
            same[:2, :2] = 0.25  # the mean of 2 x 2 pixels; the padding is at the right and below
        elif name.startswith("encoder.") and name.endswith("time_conv.weight"):
            same[1:] = 0.5  # the mean of the two frames that become one
        elif name.startswith("decoder.") and name.endswith("resample.1.weight"):
            same[:] = _BLUR.outer(_BLUR)[..., None]
        elif name.startswith("decoder.") and name.endswith("time_conv.weight"):
            # Of the two frames that one becomes, the first lies halfway to the one before. At the start there is none,
            # and the mean with zero halves colours and constant alike, which the norm before the output undoes.
            between, current = (half.diagonal(dim1=0, dim2=1) for half in value.chunk(2))
            between[1:] = 0.5
            current[-1] = 1
    for half_name in ("encoder", "decoder"):
        _colours_to_pairs(state[f"{half_name}.conv1.weight"], state[f"{half_name}.conv1.bias"])
        _pairs_to_colours(state[f"{half_name}.head.2.weight"])
    _connect_latents(state)


def _colours_to_pairs(weight: Tensor, bias: Tensor) -> None:
    """Set the weights that give colours, their negatives and the constant from three channels of colours."""
    weight.zero_()
    for colour in range(_NUM_COLOURS):
        weight[colour, colour, -1, 1, 1] = 1  # the last tap in time is the current frame
        weight[_NUM_COLOURS + colour, colour, -1, 1, 1] = -1
    bias[2 * _NUM_COLOURS] = _VAE_CONSTANT


def _pairs_to_colours(weight: Tensor) -> None:
    """Decode colours as silu(colour) - silu(-colour), scaled back by what the norm before it divided them by."""
    scale = _VAE_CONSTANT / math.sqrt(weight.shape[1])
    weight[:_NUM_COLOURS] = 0
    for colour in range(_NUM_COLOURS):
        weight[colour, colour, -1, 1, 1] = scale
        weight[colour, _NUM_COLOURS + colour, -1, 1, 1] = -scale


def _connect_latents(state: dict[str, Tensor]) -> None:
    """Connect colours with the first normalised latent channels; the other channels stay at their mean."""
    for name in ("conv1.weight", "conv2.weight"):
        state[name].zero_()
    state["conv1.bias"][: len(LATENT_MEAN)] = torch.tensor(LATENT_MEAN)
    for colour in range(_NUM_COLOURS):
        gain = _COLOUR_GAIN * LATENT_STD[colour]
        state["conv1.weight"][colour, colour] = gain
        state["conv2.weight"][colour, colour] = 1 / gain
        state["conv2.bias"][colour] = -LATENT_MEAN[colour] / gain


def show_reference_in_transformer(state: dict[str, Tensor], num_heads: int) -> None:
    """Set the path from the reference patches to the velocity in a transformer with official keys.

    The channels of a token: 0-11 its own colours (2 x 2 latent pixels), 12-23 those of the reference at its place,
    24-27 a large constant and the mark of reference tokens, each with its negative, so that the mean stays 0.
    """
    own, fetched = slice(0, _PATCH_VALUES), slice(_PATCH_VALUES, 2 * _PATCH_VALUES)
    constant, mark = 2 * _PATCH_VALUES, 2 * _PATCH_VALUES + 2
    dim = state["patch_embedding.bias"].shape[0]
    # Four channels of this size dominate every layer norm, which then divides by the same number everywhere.
    norm_scale = _TOKEN_CONSTANT * math.sqrt(4 / dim)

    state["patch_embedding.weight"][: 2 * _PATCH_VALUES] = 0
    for value in range(_PATCH_VALUES):
        pixel, colour = divmod(value, _NUM_COLOURS)
        state["patch_embedding.weight"][value, colour, 0, pixel // 2, pixel % 2] = 1
        # The head's values are ordered pixel, channel.
        row = state["head.head.weight"][pixel * len(LATENT_MEAN) + colour]
        row.zero_()
        row[value] = _VELOCITY_GAIN * norm_scale
        row[_PATCH_VALUES + value] = -_VELOCITY_GAIN * norm_scale
    for embedding in ("patch_embedding", "frame_packer.proj", "frame_packer.proj_2x", "frame_packer.proj_4x"):
        state[f"{embedding}.bias"][constant : constant + 2] = torch.tensor([1, -1]) * _TOKEN_CONSTANT
    state["trainable_cond_mask.weight"][:, :constant] = 0
    for kind, sign in enumerate((-1, 1, -1)):  # video, reference, motion
        state["trainable_cond_mask.weight"][kind, mark : mark + 2] = torch.tensor([1, -1]) * sign * _TOKEN_CONSTANT

    # What the random rest adds to a patch is a tint: the same for its four pixels.
    for name, weight in state.items():
        if name.endswith((".o.weight", "ffn.2.weight")):
            for start in (0, _PATCH_VALUES):
                tint = weight[start : start + _NUM_COLOURS].clone()
                weight[start : start + _PATCH_VALUES] = tint.repeat(4, 1)
    _attend_to_own_place(state, "blocks.0.self_attn", num_heads, mark)
    state["blocks.0.modulation"][0, 2] = 1  # the gate of the attention
    state["blocks.0.self_attn.v.weight"][:_PATCH_VALUES] = 0
    state["blocks.0.self_attn.v.weight"][:_PATCH_VALUES, own] = torch.eye(_PATCH_VALUES)
    state["blocks.0.self_attn.o.weight"][fetched] = 0
    state["blocks.0.self_attn.o.weight"][fetched, :_PATCH_VALUES] = torch.eye(_PATCH_VALUES) * norm_scale


def _attend_to_own_place(state: dict[str, Tensor], attention: str, num_heads: int, mark: int) -> None:
    """Make each token attend to the reference patch of its own row and column, at any distance in time.

    Equal constants in the fastest rotating pairs of the row and column bands match best at distance 0. The slowest pair
    of the time band hardly rotates: through it a key says whether it is a reference patch.
    """
    dim = state[f"{attention}.q.bias"].shape[0]
    head_dim = dim // num_heads
    band = 2 * (head_dim // 6)
    time_band = head_dim - 2 * band
    places = [time_band, time_band + 2, time_band + band, time_band + band + 2]
    for name in ("q", "k"):
        state[f"{attention}.{name}.weight"].mul_(0.01)
        state[f"{attention}.norm_{name}.weight"].fill_(4.0)
    for head in range(0, dim, head_dim):
        for name in ("q", "k"):
            state[f"{attention}.{name}.bias"][[head + place for place in places]] = 2.0
        state[f"{attention}.q.bias"][head + time_band - 2] = 2.0
        state[f"{attention}.k.weight"][head + time_band - 2, mark] = 0.5
