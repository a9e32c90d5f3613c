"""Measure how long the VAE takes to decode and encode a later clip of a chain, with random weights.

Variants of the same weights and inputs in one run, each with its difference to the first one of its kind:

- "decode all frames": also the frames of the motion history, which are discarded, like the reference
- "decode the clip": only the latents on which the frames of the clip depend
- "decode the clip, n ranks": the same in bands of rows on n processes
- "encode the clip"
- each on one rank in bfloat16, with weights in the memory format channels last

Each is computed once before it is timed: the first call chooses kernels and allocates memory.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from s2v_tasks.engine.distributed.halo_exchange import ParallelVae
from s2v_tasks.engine.encoders.vae import Vae, lay_out_channels_last, use_onednn
from s2v_tasks.engine.models.layers import MOTION_LATENTS
from s2v_tasks.engine.worker import use_deterministic_kernels
from s2v_tasks.verification.bench.step import timed

_LATENT_CHANNELS = 16


@dataclass(frozen=True)
class DecodeBench:
    """The clip to measure."""

    base_dim: int  # 96 in the released VAE
    num_frames: int  # of the clip, a multiple of 4
    height: int  # of the picture, a multiple of 8, with at least a latent row for each rank
    width: int
    bfloat16: bool = False


@dataclass(frozen=True)
class DecodeResult:
    """One variant; its differences are those to the first variant with the same kind of output."""

    name: str
    seconds: float
    max_abs_diff: float = 0.0
    relative_error: float = 0.0  # L2 norm of the difference over that of the first variant's output


def bench_decode(bench: DecodeBench, num_ranks: int, device: str = "cpu") -> list[DecodeResult]:
    """Measure on one and on `num_ranks` processes; `device` is "cpu" or "cuda", one GPU per rank."""
    with tempfile.TemporaryDirectory() as name:
        start_processes(  # type: ignore[no-untyped-call]
            _rank, (Path(name), bench, num_ranks, device), num_ranks, start_method="spawn"
        )
        return [DecodeResult(**row) for row in json.loads((Path(name) / "rows.json").read_text())]


def random_vae(
    base_dim: int, device: torch.device, dtype: torch.dtype = torch.float32, *, channels_last: bool = False
) -> Vae:
    """Return a VAE with random weights, equal on every rank; in float32 on a CPU it runs as in a render."""
    torch.manual_seed(0)
    with device:  # on a GPU without the seconds that a CPU needs to draw them
        model = AutoencoderKLWan(base_dim=base_dim).eval().requires_grad_(requires_grad=False)
    model = nn.Module.to(model, device, dtype)  # the method of diffusers warns about modules that this model lacks
    if channels_last:
        lay_out_channels_last(model)
    elif device.type == "cpu" and dtype == torch.float32:
        use_onednn(model)
    return Vae(model, device)


def _rank(rank: int, meeting: Path, bench: DecodeBench, num_ranks: int, device: str) -> None:
    torch.set_num_threads(1)
    target = torch.device("cuda", rank) if device == "cuda" else torch.device("cpu")
    backend = "nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(target)
        use_deterministic_kernels()
    dist.init_process_group(backend, init_method=f"file://{meeting}/ranks", rank=rank, world_size=num_ranks)
    measured = _Measured(bench, target)
    if rank == 0:
        measured.alone()
    if num_ranks > 1:
        split = ParallelVae(random_vae(bench.base_dim, target))
        dist.barrier()
        measured.decode(f"decode the clip, {num_ranks} ranks", split.decode_pieces)
    if rank == 0:
        (meeting / "rows.json").write_text(json.dumps([asdict(row) for row in measured.rows]))
    dist.barrier()
    dist.destroy_process_group()


class _Measured:
    """The inputs of the bench, the first output of each kind, and the rows so far."""

    def __init__(self, bench: DecodeBench, device: torch.device) -> None:
        self.rows: list[DecodeResult] = []
        self._bench, self._device = bench, device
        self._first: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        num_latents = MOTION_LATENTS + bench.num_frames // 4
        shape = (1, _LATENT_CHANNELS, num_latents, bench.height // 8, bench.width // 8)
        self._latents = torch.randn(shape, generator=generator).to(device)
        pixels = (1, 3, bench.num_frames + 1, bench.height, bench.width)
        self._pixels = (torch.rand(pixels, generator=generator) * 2 - 1).to(device)

    def alone(self) -> None:
        """Measure the variants on one rank."""
        vae, end = random_vae(self._bench.base_dim, self._device), self._bench.num_frames
        self._add("decode all frames", "frames", lambda: vae.decode(self._latents)[:, :, -end:])
        self.decode("decode the clip", vae.decode_pieces)
        self._add("encode the clip", "latents", lambda: vae.encode(self._pixels))
        if self._bench.bfloat16:
            small = random_vae(self._bench.base_dim, self._device, torch.bfloat16, channels_last=True)
            self.decode("decode the clip, bfloat16", small.decode_pieces)
            self._add("encode the clip, bfloat16", "latents", lambda: small.encode(self._pixels))

    def decode(self, name: str, decode_pieces: Callable[[Tensor, int], Iterator[Tensor]]) -> None:
        """Measure decoding of the frames of the clip by the method of a VAE."""
        end = self._bench.num_frames
        self._add(name, "frames", lambda: torch.cat(list(decode_pieces(self._latents, end)), dim=2))

    def _add(self, name: str, kind: str, compute: Callable[[], Tensor]) -> None:
        compute()
        output, seconds = timed(compute, self._device)
        first = self._first.setdefault(kind, output)
        error = output - first
        relative = (error.norm() / first.norm()).item()
        self.rows.append(DecodeResult(name, seconds, error.abs().max().item(), relative))
