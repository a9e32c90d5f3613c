"""Check the formulas of cost."""

from dataclasses import replace

import pytest

from s2v_tasks.planning.estimate import (
    ClipShape,
    clip_cost,
    clip_tokens,
    compute_seconds,
    forward_flops,
    load_seconds,
    vae_decode_flops,
    vae_encode_flops,
    weight_bytes,
)
from s2v_tasks.schemas.model_card import GpuCard, ModelCard


def clip(width: int = 832, height: int = 480, *, with_motion: bool = True, **changes: int | bool) -> ClipShape:
    fields = {"infer_frames": 80, "starts_chain": not with_motion, "ends_chain": False} | changes
    return ClipShape(width=width, height=height, with_motion=with_motion, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "tokens", "linear", "attention", "text", "injection", "total"),
    [
        (clip(832, 480, with_motion=False), 32760, 783, 879, 13.7, 39, 1718),
        (clip(832, 480), 35074, 839, 1008, 14.7, 39, 1903),
        (clip(1024, 704, with_motion=False), 59136, 1414, 2865, 24.8, 71, 4377),
        (clip(1024, 704), 63360, 1515, 3289, 26.6, 71, 4903),
    ],
)
def test_forward_flops_equal_the_counted_ones(
    model_14b: ModelCard,
    shape: ClipShape,
    tokens: int,
    linear: float,
    attention: float,
    text: float,
    injection: float,
    total: float,
) -> None:
    """Tokens and operations of a forward of the 14B model equal the counted table (spec f.1) in all digits."""
    flops = forward_flops(shape, model_14b)
    assert clip_tokens(shape) == tokens
    assert round(flops.linear / 1e12) == linear
    assert round(flops.self_attention / 1e12) == attention
    assert round(flops.text_attention / 1e12, 1) == text
    assert round(flops.injection / 1e12) == injection
    assert round(flops.total / 1e12) == total


def test_forty_steps_equal_the_counted_ones(model_14b: ModelCard) -> None:
    """Guidance doubles the forwards: 40 steps of a first 480x832 clip are 137 PFLOPs, 1.2 % less than twice."""
    shape = clip(with_motion=False)
    forward = forward_flops(shape, model_14b)
    assert round(40 * 2 * forward.total / 1e15) == 137
    guided = clip_cost(shape, model_14b, sample_steps=40, guided_steps=40)
    assert guided.transformer_flops / (40 * 2 * forward.total) == pytest.approx(0.988, abs=0.002)
    unguided = clip_cost(shape, model_14b, sample_steps=40, guided_steps=0)
    assert unguided.transformer_flops * 2 == pytest.approx(guided.transformer_flops + 40 * forward.shared)
    assert unguided.vae_flops == guided.vae_flops


def test_vae_flops_equal_the_counted_ones(model_14b: ModelCard) -> None:
    """Operations to encode 73 and 81 frames, and to decode latents at 1024x704, equal torch's count."""
    assert [round(vae_encode_flops(1024, 704, n, model_14b) / 1e12) for n in (19, 21)] == [268, 297]
    decoded = [(21, 80), (39, 153), (39, 80), (47, 112), (31, 48)]
    tflops = [round(vae_decode_flops(1024, 704, latents, frames, model_14b) / 1e12) for latents, frames in decoded]
    assert tflops == [499, 941, 687, 884, 491]


def test_vae_work_of_a_clip(model_14b: ModelCard) -> None:
    """A motion state is encoded only for a successor, or for a first clip that starts from the picture."""

    def vae_tflops(**changes: bool) -> int:
        shape = clip(1024, 704, **changes)
        return round(clip_cost(shape, model_14b, sample_steps=2, guided_steps=2).vae_flops / 1e12)

    assert vae_tflops(with_motion=False, starts_chain=True) == 499 + 268
    assert vae_tflops(with_motion=False, starts_chain=True, ends_chain=True) == 499
    assert vae_tflops(with_motion=True) == 687 + 268
    assert vae_tflops(with_motion=True, starts_chain=True) in (
        687 + 2 * 268,
        687 + 2 * 268 + 1,
    )  # sums of rounded parts


def test_weights_of_the_14b_model(model_14b: ModelCard) -> None:
    """The transformer in bfloat16 and the VAE in float32 take 32.59 + 0.51 GB (spec a)."""
    assert weight_bytes(model_14b) == 32_591_511_218 + 507_570_124


def test_seconds_follow_the_card(model_14b: ModelCard, h100: GpuCard) -> None:
    """A GPU of twice the speed computes in half the time; loading time depends on the size of the weights."""
    cost = clip_cost(clip(), model_14b, sample_steps=40, guided_steps=40)
    assert load_seconds(h100, model_14b) == weight_bytes(model_14b) / 2e9
    fast = h100.model_copy(update={"bf16_tflops": h100.bf16_tflops * 2, "tf32_tflops": h100.tf32_tflops * 2})
    computing = compute_seconds(cost, h100)
    assert compute_seconds(cost, fast) == pytest.approx(computing / 2)
    sampling = cost.transformer_flops / (h100.bf16_tflops * 1e12 * h100.utilization)
    assert sampling < computing < 1.2 * sampling


def test_decoding_on_a_gpu_takes_seconds_not_most_of_a_minute(model_14b: ModelCard, h100: GpuCard) -> None:
    """The VAE of a 1024x704 clip is planned at TF32 speed, about 10 s on an H100."""
    cost = clip_cost(clip(1024, 704), model_14b, sample_steps=2, guided_steps=2)
    assert 8 < compute_seconds(replace(cost, transformer_flops=0), h100) < 12


@pytest.mark.parametrize(("guided", "branches"), [(0, 1), (1, 2)])
def test_constant_values_are_counted_once_per_clip(model_14b: ModelCard, guided: int, branches: int) -> None:
    """Text and audio of a clip are projected once for each branch, for any number of steps."""
    one, two = (clip_cost(clip(), model_14b, sample_steps=n, guided_steps=n * guided).transformer_flops for n in (1, 2))
    assert 2 * one - two == pytest.approx(branches * forward_flops(clip(), model_14b).constant, rel=1e-4)


def test_constant_values_are_projections_of_text_and_audio(model_14b: ModelCard) -> None:
    """512 tokens of text are embedded and give keys and values in 40 layers; 5 tokens of audio per frame do in 12."""
    text = 512 * (2 * 4096 * 5120 + 2 * 5120**2 + 40 * 2 * 2 * 5120**2)
    frames = 20
    audio = 12 * (5 * frames + frames) * 2 * 2 * 5120**2
    flops = forward_flops(clip(), model_14b)
    assert flops.constant == text + audio
    assert flops.embeddings == text + 2 * (frames * 30 * 52) * 2 * 64 * 5120


def test_a_vae_of_half_the_channels_costs_a_quarter(model_14b: ModelCard) -> None:
    """Operations of a convolution grow with the pixels and the square of its channels."""
    small = model_14b.model_copy(update={"vae_base_dim": 48})
    assert vae_encode_flops(1024, 704, 19, small) == pytest.approx(vae_encode_flops(1024, 704, 19, model_14b) / 4)
    assert vae_decode_flops(512, 704, 21, 80, small) == pytest.approx(
        vae_decode_flops(1024, 704, 21, 80, model_14b) / 8
    )
