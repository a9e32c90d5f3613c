"""Check that the training recipe has the networks of the engine, and that every stage takes a step."""

import ctypes.util
import json
import lzma
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from s2v_tasks.engine.encoders.vae import Vae, key_pairs

RECIPE = Path(__file__).parents[1] / "samples" / "talker"
needs_espeak = pytest.mark.skipif(not ctypes.util.find_library("espeak-ng"), reason="libespeak-ng1 is not installed")


@pytest.fixture(autouse=True)
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the modules of the recipe import each other, as when its script runs, and computes on one thread."""
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def test_transformer_for_training_is_that_of_the_engine() -> None:
    """The velocity of the trainable function equals that of S2VTransformer, with and without history."""
    from trainable_transformer import CONFIG, Scene, new_transformer, velocity

    generator = torch.Generator().manual_seed(0)
    net = new_transformer(generator, {**CONFIG, "dim": 64, "ffn_dim": 96, "num_layers": 3})
    latents = torch.randn(1, 16, 3, 8, 16, generator=generator)
    reference, motion = latents[:, :, :1] + 1, torch.randn(1, 16, 19, 8, 16, generator=generator)
    features, sigma = torch.randn(1, 12, 25, 32, generator=generator), torch.tensor([0.7])
    for history in (None, motion):
        expected, _ = velocity(net, latents, sigma, Scene(reference, history, features))
        with torch.inference_mode():
            clip_tokens = net.prepare_clip_tokens(3, reference, history, None)
            conditioning = net.prepare_conditioning(torch.randn(5, 32, generator=generator), features[0])
            (actual,) = net(latents, 1000 * sigma, clip_tokens, [conditioning])
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_vae_for_training_is_that_of_the_engine() -> None:
    """Latents and frames of the VAE that works on whole videos equal those of the engine's VAE."""
    import fast_vae
    from export import vae_state

    vae = fast_vae.new_vae(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in vae.parameters():
            if value.requires_grad:
                value += 0.03 * torch.randn(value.shape, generator=generator)
    fast_vae.keep_frames_apart(vae)
    mean, std = torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16)
    state = vae_state(vae, mean, std)
    assert set(state) == {official for official, _ in key_pairs()}
    engine = Vae.from_state_dict(state, "cpu")
    pixels = torch.rand(1, 3, 9, 32, 32, generator=generator) * 2 - 1
    with torch.inference_mode():
        latents = fast_vae.encode(vae, pixels)
        scaled = (latents - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
        torch.testing.assert_close(engine.encode(pixels), scaled, atol=1e-4, rtol=1e-4)
        frames = fast_vae.decode(vae, latents).clamp(-1, 1)
        torch.testing.assert_close(engine.decode(scaled), frames, atol=1e-4, rtol=1e-4)


class _Line:
    """A stage that fits a straight line."""

    name, least_steps = "line", 0

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1)
        nn.init.zeros_(self.module.weight)
        nn.init.zeros_(self.module.bias)
        self.optimizers = [torch.optim.AdamW(self.module.parameters(), lr=0.1)]

    def rate(self, step: int) -> float:
        return 1 / (1 + step)

    def loss(self, step: int) -> Tensor:
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return (self.module(x) - 2 * x).square().mean()

    def evaluate(self) -> dict[str, float]:
        return {"weight": self.module.weight.item()}

    def reached(self, measures: dict[str, float]) -> bool:
        return measures["weight"] > 1.9


def test_interrupted_training_continues(tmp_path: Path) -> None:
    """Three steps and three more give the checkpoint of six, and each call writes a line of measures."""
    from training import Limits, is_complete, train

    for folder, calls in (("once", (6,)), ("twice", (3, 6))):
        for steps in calls:
            assert not train(_Line(), tmp_path / folder, Limits(max_steps=steps))
    once, twice = (torch.load(tmp_path / name / "line.pt", weights_only=True) for name in ("once", "twice"))
    assert once["step"] == twice["step"] == 6
    for kind in ("module", "averaged"):
        assert all(torch.equal(value, twice[kind][name]) for name, value in once[kind].items())
    lines = [json.loads(line) for line in (tmp_path / "twice" / "line.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert [is_complete(tmp_path / "once" / "line.pt", steps) for steps in (6, 7)] == [True, False]


def test_learning_rate_falls_to_nothing_at_the_end() -> None:
    """The rate falls evenly over the last steps; without a last step it does not fall."""
    from training import Limits

    limits = Limits(max_steps=8, cooling_steps=4)
    assert [limits.cooling(step) for step in range(3, 8)] == [1, 1, 0.75, 0.5, 0.25]
    assert Limits(cooling_steps=4).cooling(100) == Limits(max_steps=8).cooling(7) == 1


def test_training_goes_on_from_the_packed_weights(tmp_path: Path) -> None:
    """Packed weights that become checkpoints and are packed again are the same, but for rounding in the VAE's scale."""
    from export import export
    from packed import begin

    from s2v_tasks.verification.talker_snapshot import PACKED

    begin(tmp_path / "out")
    before, after = (load(lzma.decompress(packed)) for packed in (PACKED.read_bytes(), export(tmp_path / "out")))
    assert before.keys() == after.keys()
    for name, value in before.items():
        rescaled = name in ("vae/conv1.weight", "vae/conv1.bias", "vae/conv2.weight", "vae/conv2.bias")
        torch.testing.assert_close(after[name], value, rtol=0.02 if rescaled else 0, atol=0.02 if rescaled else 0)


@needs_espeak
def test_audio_stage_steps() -> None:
    """The audio encoder takes a step with synthetic speech."""
    from audio_stage import AudioStage

    stage = AudioStage(num_test=0)
    stage.loss(0).backward()
    assert stage.encoder.feature_extractor.conv_layers[0].conv.weight.grad.abs().sum() > 0


@needs_espeak
def test_vae_stage_steps() -> None:
    """The VAE takes a step with drawn clips."""
    from vae_stage import VaeStage

    stage = VaeStage(pool=1, num_test=0)
    stage.loss(0).backward()
    assert stage.vae.encoder.conv_in.weight.grad.abs().sum() > 0


@needs_espeak
def test_anchor_keeps_the_latents() -> None:
    """A VAE whose latents differ from those of its anchor has a higher loss; its anchor does not learn."""
    import fast_vae
    from vae_stage import VaeStage

    VaeStage(pool=1, num_test=0).loss(0)  # the first words that espeak-ng says in a process are not repeatable
    same = fast_vae.new_vae(torch.Generator().manual_seed(0))
    other = fast_vae.new_vae(torch.Generator().manual_seed(1))
    alone, near, far = (VaeStage(anchor=anchor, pool=1, num_test=0).loss(0) for anchor in (None, same, other))
    assert near.item() == pytest.approx(alone.item())
    assert far > near
    far.backward()
    assert other.encoder.conv_in.weight.grad is None


@needs_espeak
def test_transformer_stage_steps(tmp_path: Path) -> None:
    """The transformer takes a step with a film on disk, and every trained weight has a gradient."""
    from films import NUM_FRAMES, NUM_LATENTS, Film
    from trainable_transformer import CONFIG
    from transformer_stage import TransformerStage

    rng = np.random.default_rng(0)
    shapes = {
        "latents": (16, NUM_LATENTS, 8, 8), "reference": (16, 1, 8, 8), "features": (NUM_FRAMES, 25, 32),
        "mouths": (NUM_FRAMES, 2), "mouth_cells": (8, 8), "before": (16, 19, 8, 8),
    }  # fmt: skip
    film = Film(**{name: torch.from_numpy(rng.standard_normal(shape)).half() for name, shape in shapes.items()})
    (tmp_path / "films").mkdir()
    torch.save(asdict(film), tmp_path / "films" / "film-00000.pt")
    stage = TransformerStage(
        tmp_path, config={**CONFIG, "dim": 64, "ffn_dim": 96, "num_layers": 2, "audio_inject_layers": [0]}
    )
    for step in range(6):
        stage.loss(step).backward()
    trained = {name: value.grad for name, value in stage.module.named_parameters() if value.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None] == []
