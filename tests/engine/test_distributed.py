"""Check that several ranks render the clip of a single rank in each layout."""

import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from s2v_tasks.engine.clip import ClipInputs, MotionState, Sampling
from s2v_tasks.engine.denoising import Denoising
from s2v_tasks.engine.distributed.mesh import BranchSplit, Layout, choose_layout, parallelize
from s2v_tasks.engine.distributed.ulysses import split_tokens
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.errors import ConfigurationError

# Twelve heads can be shared among 2, 3 and 4 ranks.
SMALL = {
    "dim": 96, "ffn_dim": 64, "num_heads": 12, "num_layers": 3, "freq_dim": 16, "text_dim": 12, "text_len": 8,
    "audio_dim": 6, "audio_inject_layers": [0, 2],
}  # fmt: skip
GATE = 2e-5
NUM_FRAMES, SIDE = 28, 64
GUIDED, UNGUIDED = Sampling(2, 4.0, 3.0, "unipc"), Sampling(2, 1.0, 3.0, "unipc")
PARTLY_GUIDED = Sampling(3, 4.0, 3.0, "euler", guide_steps=(1, 2))
LATENT_FRAMES = NUM_FRAMES // 4


class FirstPixels:
    """Takes the place of the VAE: returns every eighth pixel of every fourth frame, in three channels."""

    def encode(self, pixels_BCTHW: Tensor, /) -> Tensor:
        small = pixels_BCTHW[:, :, ::4, ::8, ::8]
        return torch.cat([small, small.new_ones(1, 13, *small.shape[2:])], dim=1)

    def decode_pieces(self, latents_BCZhw: Tensor, num_frames: int, /) -> Iterator[Tensor]:
        frames = latents_BCZhw[:, :3].repeat_interleave(4, dim=2)[:, :, 3:]
        pixels = frames.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4).clamp(-1, 1)
        yield pixels[:, :, -num_frames:]


class RecordedPipeline(S2VPipeline):
    """Records the latents and noise predictions of every step."""

    seen: list[Tensor]

    def _predict_noise(self, denoising: Denoising, *args: Any) -> Sequence[Tensor]:
        predictions = super()._predict_noise(denoising, *args)
        self.seen += [denoising.latents, *predictions]
        return predictions


def random_transformer() -> S2VTransformer:
    torch.manual_seed(0)
    transformer = S2VTransformer(S2VConfig.from_json(SMALL)).requires_grad_(requires_grad=False)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return transformer


def render_two_clips(transformer: S2VTransformer, branches: BranchSplit | None, sampling: Sampling) -> list[Tensor]:
    """Return latents and velocities of each step of two clips of a chain, and the motion state after them."""
    pipeline = RecordedPipeline(transformer, FirstPixels(), "cpu", torch.float32, branches=branches)
    pipeline.seen = []
    generator = torch.Generator().manual_seed(1)
    motion: MotionState | None = None
    for seed in (1, 2):
        inputs = ClipInputs(
            reference_u8=np.full((SIDE, SIDE, 3), 90, dtype=np.uint8),
            context=torch.randn(5, 12, generator=generator),
            context_null=torch.randn(3, 12, generator=generator),
            audio=torch.randn(NUM_FRAMES, 25, 6, generator=generator),
            pose=torch.rand(1, 3, NUM_FRAMES, SIDE, SIDE, generator=generator),
            seed=seed,
            motion=motion,
            start_from_ref=False,
            keep_motion_frames=73,
        )
        motion = pipeline.render_clip(inputs, sampling).motion
        assert motion is not None
        pipeline.seen.append(motion.latents)
    return pipeline.seen


def compare_on_rank(rank: int, folder: Path, num_ranks: int, layouts: list[str], sampling: Sampling) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    alone = render_two_clips(random_transformer(), None, sampling)
    for layout in map(Layout.parse, layouts):
        transformer = random_transformer()
        branches = parallelize(transformer, layout, "cpu")
        assert all(isinstance(p, DTensor) == layout.fsdp for p in transformer.parameters())
        received: list[int] = []
        transformer.audio_injector.injector_adain_layers[0].register_forward_hook(
            lambda _module, args, _output, received=received: received.append(args[0].shape[0])
        )
        together = render_two_clips(transformer, branches, sampling)
        # A rank injects only into the frames of which it holds tokens.
        assert (max(received) < LATENT_FRAMES) == (layout.ulysses > 1)
        for actual, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=GATE, msg=lambda text: f"{layout}: {text}")  # noqa: B023
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("num_ranks", "layouts", "sampling"),
    [
        pytest.param(2, ["cfg2", "ulysses2", "ulysses2,fsdp", "cfg2,fsdp"], GUIDED, id="2-ranks"),
        pytest.param(2, ["cfg2", "cfg2,fsdp"], PARTLY_GUIDED, id="2-ranks-partly-guided"),
        pytest.param(3, ["ulysses3", "ulysses3,fsdp"], UNGUIDED, id="3-ranks-uneven-unguided"),
        pytest.param(4, ["ulysses4", "cfg2,ulysses2", "cfg2,ulysses2,fsdp"], GUIDED, id="4-ranks"),
    ],
)
def test_ranks_together_equal_one_rank(tmp_path: Path, num_ranks: int, layouts: list[str], sampling: Sampling) -> None:
    """First and following clip equal those of one rank at every step, also for uneven numbers of tokens."""
    tokens = (LATENT_FRAMES + 1) * 16
    assert num_ranks != 3 or (tokens % 3 and (tokens + 24) % 3)
    multiprocessing.set_forkserver_preload([parallelize.__module__, S2VPipeline.__module__])  # once for all ranks
    start_processes(  # type: ignore[no-untyped-call]
        compare_on_rank, (tmp_path, num_ranks, layouts, sampling), num_ranks, start_method="forkserver"
    )


def test_shards_of_tokens_differ_by_one_at_most() -> None:
    """Every token is on one rank, the longer shards first; if there are more ranks than tokens, some have none."""
    assert split_tokens(80, 4) == [0, 20, 40, 60, 80]
    assert split_tokens(11, 4) == [0, 3, 6, 9, 11]
    assert split_tokens(2, 3) == [0, 1, 2, 2]


@pytest.mark.parametrize("bounds", [(0, 5), (3, 16), (15, 17), (20, 112), (110, 120), (112, 128)])
def test_injection_into_a_shard_equals_its_part_of_the_whole(bounds: tuple[int, int]) -> None:
    """Audio injection gives equal values in a shard that begins or ends within a frame, or has no video tokens."""
    transformer = random_transformer()
    generator = torch.Generator().manual_seed(3)
    sound = transformer.prepare_audio(torch.randn(NUM_FRAMES, 25, 6, generator=generator))[1]
    video = torch.randn(1, 16 * LATENT_FRAMES, 96, generator=generator)
    whole = transformer.audio_injector(1, video, 0, 16, sound)
    held = slice(*(min(bound, 16 * LATENT_FRAMES) for bound in bounds))
    part = transformer.audio_injector(1, video[:, held], held.start, 16, sound)
    torch.testing.assert_close(part, whole[:, held], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("world_size", "num_heads", "guided", "expected"),
    [
        (1, 40, True, "cfg1,ulysses1"),
        (2, 40, True, "cfg2,ulysses1"),
        (2, 40, False, "cfg1,ulysses2"),
        (5, 40, True, "cfg1,ulysses5"),
        (8, 40, True, "cfg2,ulysses4"),
        (8, 40, False, "cfg1,ulysses8"),
    ],
)
def test_layout_follows_the_rule(world_size: int, num_heads: int, guided: bool, expected: str) -> None:
    """The default layout splits the branches first, then the tokens."""
    assert str(choose_layout(world_size, num_heads, guided=guided)) == expected


def test_weights_are_sharded_if_they_fill_half_of_a_rank() -> None:
    """Weights are sharded if they take more than half of a rank's memory, but never on a single rank."""
    assert choose_layout(2, 40, guided=True, weight_bytes=33, memory_bytes=48).fsdp
    assert not choose_layout(2, 40, guided=True, weight_bytes=33, memory_bytes=80).fsdp
    assert not choose_layout(1, 40, guided=True, weight_bytes=33, memory_bytes=48).fsdp


@pytest.mark.parametrize("layout", [Layout(), Layout(2, 4, fsdp=True), Layout(1, 3)])
def test_a_layout_can_be_written_and_read(layout: Layout) -> None:
    """`str` and `parse` are inverse, and parts may be omitted."""
    assert Layout.parse(str(layout)) == layout
    assert Layout.parse("fsdp, ulysses2") == Layout(1, 2, fsdp=True)


@pytest.mark.parametrize("text", ["", "cfg", "cfg0", "tensor2", "cfg2,cfg2", "fsdp2"])
def test_a_layout_that_cannot_be_read_is_refused(text: str) -> None:
    """The message has the invalid part and an example."""
    with pytest.raises(ConfigurationError, match="like cfg2,ulysses4,fsdp"):
        Layout.parse(text)


@pytest.mark.parametrize(
    ("layout", "world_size", "guided", "message"),
    [
        (Layout(2, 2), 8, True, "takes 2 x 2 = 4 ranks, but 8 were started"),
        (Layout(3, 1), 3, True, "guidance has 2 branches"),
        (Layout(2, 1), 2, False, "there is one branch; use cfg1"),
        (Layout(1, 3), 3, True, "remainder 1 \\(40 = 13 x 3 \\+ 1\\)"),
    ],
)
def test_an_impossible_layout_is_refused(layout: Layout, world_size: int, guided: bool, message: str) -> None:
    """A layout that does not fit the number of ranks is refused with the arithmetic."""
    with pytest.raises(ConfigurationError, match=message):
        layout.check(world_size, 40, guided=guided)
