"""Check that constant values are computed once, and that compiled and eager blocks agree."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial, partialmethod

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from s2v_tasks.engine.clip import ClipInputs, MotionState, Sampling
from s2v_tasks.engine.models import transformer as transformer_module
from s2v_tasks.engine.models.blocks import Block
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.forward_inputs import ClipTokens, Conditioning
from s2v_tasks.engine.models.rope import cos_sin, rope_table, rotate, video_grid
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.pipeline import S2VPipeline

SMALL = {
    "dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 3, "freq_dim": 16, "text_dim": 12, "text_len": 8,
    "audio_dim": 6, "audio_inject_layers": [0, 2],
}  # fmt: skip
LAYERS, INJECTIONS, STEPS, BRANCHES, NUM_FRAMES, SIDE = 3, 2, 3, 2, 8, 64
T = NUM_FRAMES // 4


class NoVae:
    """Takes the place of the VAE: returns latents and pixels of the right shape."""

    def encode(self, pixels_BCTHW: Tensor, /) -> Tensor:
        return pixels_BCTHW.new_ones(1, 16, 1 + (pixels_BCTHW.shape[2] - 1) // 4, SIDE // 8, SIDE // 8)

    def decode_pieces(self, latents_BCZhw: Tensor, num_frames: int, /) -> Iterator[Tensor]:
        yield latents_BCZhw.new_zeros(1, 3, num_frames, SIDE, SIDE)


@pytest.fixture
def model() -> S2VTransformer:
    torch.manual_seed(0)
    transformer = S2VTransformer(S2VConfig.from_json(SMALL)).requires_grad_(requires_grad=False)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return transformer


@pytest.fixture
def calls(model: S2VTransformer, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return a counter of the runs of each module, with `*` for layer numbers, and of computed rope tables."""
    counted: Counter[str] = Counter()

    def count(name: str, *_: object) -> None:
        counted[name] += 1

    def counted_table(*args: object) -> Tensor:
        count("rope_table")
        return rope_table(*args)  # type: ignore[arg-type]

    for name, module in model.named_modules():
        module.register_forward_hook(partial(count, re.sub(r"\.\d+", ".*", name)))
    monkeypatch.setattr(transformer_module, "rope_table", counted_table)
    return counted


def render(pipeline: S2VPipeline, motion: MotionState | None, prompt: float) -> MotionState:
    inputs = ClipInputs(
        reference_u8=np.zeros((SIDE, SIDE, 3), dtype=np.uint8),
        context=torch.full((5, 12), prompt),
        context_null=torch.zeros(3, 12),
        audio=torch.ones(NUM_FRAMES, 25, 6),
        pose=torch.zeros(1, 3, NUM_FRAMES, SIDE, SIDE),
        seed=1,
        motion=motion,
        start_from_ref=False,
        keep_motion_frames=73,
    )
    state = pipeline.render_clip(inputs, Sampling(STEPS, 4.0, 3.0, "unipc")).motion
    assert state is not None
    return state


def test_constant_values_are_computed_once_per_clip(model: S2VTransformer, calls: Counter[str]) -> None:
    """Audio, history, reference, pose, positions and the modulation of timestep 0 are computed once per clip."""
    pipeline = S2VPipeline(model, NoVae(), "cpu", torch.float32)
    first = render(pipeline, None, prompt=1.0)
    calls.clear()
    render(pipeline, first, prompt=2.0)
    forwards = STEPS * BRANCHES
    expected = {
        "rope_table": 1,
        "patch_embedding": 1,  # of the reference; video patches are embedded in the forward
        "cond_encoder": 1,
        "frame_packer": 1,
        "time_projection": 1 + STEPS,
        "text_embedding": BRANCHES,
        "casual_audio_encoder": BRANCHES,
        "audio_injector.injector_adain_layers.*.linear": BRANCHES * INJECTIONS,
        "audio_injector.injector.*.k": BRANCHES * INJECTIONS,
        "audio_injector.injector.*.v": BRANCHES * INJECTIONS,
        "audio_injector.injector.*.q": forwards * INJECTIONS,
        "blocks.*.cross_attn.k": BRANCHES * LAYERS,
        "blocks.*.cross_attn.v": BRANCHES * LAYERS,
        "blocks.*.cross_attn.q": forwards * LAYERS,
        "blocks.*.self_attn": STEPS * (1 + BRANCHES * (LAYERS - 1)),  # that of the first block for both branches
        "": STEPS,
    }
    assert {name: calls[name] for name in expected} == expected


def test_prompts_that_stay_are_projected_once_per_job(model: S2VTransformer, calls: Counter[str]) -> None:
    """The next clip with the same prompts reuses their keys and values; another prompt has new ones."""
    pipeline = S2VPipeline(model, NoVae(), "cpu", torch.float32)
    motion = None
    seen = []
    for prompt in (1.0, 1.0, 2.0):
        calls.clear()
        motion = render(pipeline, motion, prompt)
        seen.append((calls["text_embedding"], calls["blocks.*.cross_attn.k"]))
    assert seen == [(BRANCHES, BRANCHES * LAYERS), (0, 0), (BRANCHES, BRANCHES * LAYERS)]


class NoReading(TorchFunctionMode):
    """Fails if the host reads a tensor, for which it would wait for all earlier work of a GPU."""

    _READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero")

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func.__name__ not in self._READS, f"{func.__name__} in the forward"
        return func(*args, **(kwargs or {}))


def test_a_forward_never_waits_for_the_device(model: S2VTransformer) -> None:
    """A forward reads no value of a tensor on the host."""
    clip_tokens, conditioning = prepare(model)
    with NoReading():
        model(latents(), torch.tensor([500]), clip_tokens, [conditioning])


def prepare(model: S2VTransformer) -> tuple[ClipTokens, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    reference, motion = (torch.randn(1, 16, n, 8, 8, generator=generator) for n in (1, 19))
    clip_tokens = model.prepare_clip_tokens(T, reference, motion, None)
    audio = torch.randn(NUM_FRAMES, 25, 6, generator=generator)
    return clip_tokens, model.prepare_conditioning(torch.randn(5, 12, generator=generator), audio)


def latents() -> Tensor:
    return torch.randn(1, 16, T, 8, 8, generator=torch.Generator().manual_seed(2))


def test_rotation_in_real_numbers_equals_the_complex_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rotation for compiled blocks equals the rotation for eager blocks."""
    rope = cos_sin(rope_table([video_grid(2, 3, 4)], 16))
    x = torch.randn(1, 24, 2, 16)
    eager = rotate(x.clone(), rope)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, rope), eager, rtol=0, atol=1e-6)


def test_compiled_blocks_give_the_same_velocity(model: S2VTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks are captured as three complete graphs for each length of clip, however many clips a process renders.

    Code generation is left out in this test, because it takes long.
    """
    captured: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        captured.append(len(graph.graph.nodes))
        return graph

    def velocities(num_latents: int, *, first: bool) -> Tensor:
        generator = torch.Generator().manual_seed(num_latents)
        reference, motion = (torch.randn(1, 16, n, 8, 8, generator=generator) for n in (1, 19))
        clip_tokens = model.prepare_clip_tokens(num_latents, reference, None if first else motion, None)
        audio = torch.randn(4 * num_latents, 25, 6, generator=generator)
        context = torch.randn(5, 12, generator=generator)
        conditionings = [model.prepare_conditioning(context, sound) for sound in (audio, torch.zeros_like(audio))]
        noise = torch.randn(1, 16, num_latents, 8, 8, generator=generator)
        return torch.stack(model(noise, torch.tensor([500]), clip_tokens, conditionings))

    chain = [(T, True), (T, False), (T - 1, False), (T + 3, True)]
    monkeypatch.setattr(Block, "compile", partialmethod(Block.compile, backend=backend, fullgraph=True))
    with torch.inference_mode():
        expected = [velocities(num_latents, first=first) for num_latents, first in chain]
        model.choose_kernels(compiled=True)
        actual = [velocities(num_latents, first=first) for num_latents, first in chain]
    for compiled, eager in zip(actual, expected, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=0, atol=2e-5)
    assert len(captured) == 3 * len(chain)  # the first block, the last one, and the others
