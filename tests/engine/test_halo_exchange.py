"""Check the VAE that is split over ranks."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from s2v_tasks.engine.distributed.halo_exchange import ParallelVae
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.errors import PermanentError

NUM_RANKS = 4
# Latent rows and columns: 4 ranks get 2, 2, 1, 1 and 2, 1, 1, 1 rows; 2 ranks 3, 3 and 3, 2.
SIZES = ((6, 2), (5, 3))
GATE = 1e-4


def random_vae() -> Vae:
    torch.manual_seed(0)
    return Vae(AutoencoderKLWan(base_dim=4).eval(), "cpu")


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1


def decoded(vae: ParallelVae, latents: Tensor, num_frames: int) -> Tensor:
    return torch.cat(list(vae.decode_pieces(latents, num_frames)), dim=2)


def compare_on_rank(rank: int, folder: Path) -> None:
    """Compare encoding, decoding and decoding of the end with one rank: over all ranks, and over each half of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_RANKS)
    alone = random_vae()
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    for group in (None, halves[rank // 2]):
        split = ParallelVae(random_vae(), group)
        for height, width in SIZES:
            pixels, latents = noise(1, 3, 5, 8 * height, 8 * width), noise(1, 16, 3, height, width)
            for actual, expected in (
                (split.encode(pixels), alone.encode(pixels)),
                (decoded(split, latents, 9), alone.decode(latents)),
                (decoded(split, latents, 4), alone.decode(latents)[:, :, -4:]),
            ):
                assert expected.std() > 100 * GATE
                torch.testing.assert_close(actual, expected, rtol=0, atol=GATE)
        with pytest.raises(PermanentError, match="expected a row for each"):
            decoded(split, noise(1, 16, 1, 1, 4), 1)
    dist.destroy_process_group()


def test_split_vae_equals_one_rank(tmp_path: Path) -> None:
    """Bands of rows on 2 and 4 ranks, even and uneven, give the latents and pixels of a single rank on every rank."""
    multiprocessing.set_forkserver_preload([ParallelVae.__module__])  # imported once for all ranks
    start_processes(compare_on_rank, (tmp_path,), NUM_RANKS, start_method="forkserver")  # type: ignore[no-untyped-call]
