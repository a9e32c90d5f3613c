"""How long the VAE takes to decode a later clip of a chain, with random weights: all frames, the clip's, on ranks.

Variants of the same weights and latents in one run, each as far from the first as it says:

- "all frames": also those of the motion history, which are thrown away, as the reference decodes
- "clip only": what the clip's frames depend on
- "clip only, n ranks": the same in bands of rows on n processes
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from s2v_tasks.engine.distributed.halo_exchange import ParallelVae
from s2v_tasks.engine.encoders.cpu_convolution import use_onednn
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.models.framepack import MOTION_LATENTS

_LATENT_CHANNELS = 16


@dataclass(frozen=True)
class DecodeBench:
    """What is measured."""

    base_dim: int  # 96 in the released VAE
    num_frames: int  # of the clip, a multiple of 4
    height: int  # of the picture, a multiple of 8, with at least a latent row for each rank
    width: int


@dataclass(frozen=True)
class DecodeResult:
    """One variant; `max_abs_diff` is that of its frames to the first variant's."""

    name: str
    seconds: float
    max_abs_diff: float


def bench_decode(bench: DecodeBench, num_ranks: int, device: str = "cpu") -> list[DecodeResult]:
    """Decode on one and on `num_ranks` processes; `device` is "cpu" or "cuda", one GPU per rank."""
    with tempfile.TemporaryDirectory() as name:
        start_processes(  # type: ignore[no-untyped-call]
            _rank, (Path(name), bench, num_ranks, device), num_ranks, start_method="spawn"
        )
        return [DecodeResult(**row) for row in json.loads((Path(name) / "rows.json").read_text())]


def _rank(rank: int, meeting: Path, bench: DecodeBench, num_ranks: int, device: str) -> None:
    torch.set_num_threads(1)
    target = torch.device("cuda", rank) if device == "cuda" else torch.device("cpu")
    backend = "nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(target)
    dist.init_process_group(backend, init_method=f"file://{meeting}/ranks", rank=rank, world_size=num_ranks)
    shape = (1, _LATENT_CHANNELS, MOTION_LATENTS + bench.num_frames // 4, bench.height // 8, bench.width // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(target)
    rows: list[DecodeResult] = []
    if rank == 0:
        alone = _random_vae(bench.base_dim, target)
        whole, seconds = _timed(lambda: alone.decode(latents)[:, :, -bench.num_frames :])
        rows.append(DecodeResult("all frames", seconds, 0.0))
        end, seconds = _timed(lambda: alone.decode(latents, bench.num_frames))
        rows.append(DecodeResult("clip only", seconds, (end - whole).abs().max().item()))
    if num_ranks > 1:
        split = ParallelVae(_random_vae(bench.base_dim, target))
        dist.barrier()
        frames, seconds = _timed(lambda: torch.cat(list(split.decode_pieces(latents, bench.num_frames)), dim=2))
        if rank == 0:
            difference = (frames - whole).abs().max().item()
            rows.append(DecodeResult(f"clip only, {num_ranks} ranks", seconds, difference))
    if rank == 0:
        (meeting / "rows.json").write_text(json.dumps([asdict(row) for row in rows]))
    dist.barrier()
    dist.destroy_process_group()


def _random_vae(base_dim: int, device: torch.device) -> Vae:
    torch.manual_seed(0)
    model = AutoencoderKLWan(base_dim=base_dim).eval().requires_grad_(requires_grad=False).to(device)
    if device.type == "cpu":
        use_onednn(model)
    return Vae(model, device)


def _timed(decode: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    frames = decode()
    if frames.is_cuda:
        torch.cuda.synchronize()
    return frames, time.perf_counter() - start
