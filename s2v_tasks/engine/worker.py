"""The render process under torchrun: which rank it is, on which device it works, with which numerics."""

import os
from dataclasses import dataclass

import torch

from s2v_tasks.errors import ConfigurationError


@dataclass(frozen=True)
class Worker:
    """One process of the group that renders a clip."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_leader(self) -> bool:
        """Only the leader touches storage, the database and the encoder."""
        return self.rank == 0


def open_worker(device: str) -> Worker:
    """Read what torchrun set up and choose the device ("auto", "cpu" or "cuda").

    Without torchrun it is a group of one. A run repeats its bytes: deterministic kernels are switched on.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if world_size != 1:
        raise ConfigurationError(
            f"{world_size} processes were started for one clip: expected 1, several GPUs are not supported yet. "
            "Set S2V_NPROC_PER_NODE=1."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "S2V_DEVICE is cuda, but no GPU is visible: expected a CUDA device, or S2V_DEVICE=cpu."
        )
    if device == "cpu" or not torch.cuda.is_available():
        # torchrun sets OMP_NUM_THREADS=1 for its children; one process may use all cores.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world_size))
        return Worker(rank, world_size, torch.device("cpu"))
    torch.cuda.set_device(local_rank)
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # cuBLAS repeats its results only with a fixed workspace
    torch.use_deterministic_algorithms(True, warn_only=True)
    return Worker(rank, world_size, torch.device("cuda", local_rank))
