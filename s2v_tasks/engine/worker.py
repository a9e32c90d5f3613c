"""A render process under torchrun: its rank and device, and the messages between the ranks.

Only the leader (rank 0) uses storage, database and encoder. It sends work to the followers with `share`. All ranks stop
at the same solver step, because `interrupted` combines the answers of all ranks.
"""

import os
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from enum import Enum
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError, leave_error
from s2v_tasks.log import get_logger

T = TypeVar("T")
# Error messages of gloo if the process at the other end of a connection has ended.
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Connection refused")
# A rank may wait this long for the others: the leader downloads the inputs before it shares them.
_TIMEOUT = timedelta(minutes=30)
POLL_SECONDS = 1.0
_GIB = 1 << 30
# Above this share of a GPU, memory that torch did not allocate belongs to other processes; CUDA and NCCL need less.
_OTHERS_SHARE = 0.1
UNWIND_SECONDS = 10.0  # time for a rank to report the lost rank itself and to clean up


class GroupState(Enum):
    """The state of the group of ranks, as this rank sees it."""

    WAITING = "waiting"  # the other ranks wait in `share` for the leader
    WORKING = "working"  # the ranks need each other for the value that was shared
    ENDED = "ended"  # nothing more is shared


class Worker:
    """One process of the group that renders a clip."""

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self._terminating = False
        self.state = GroupState.WAITING

    @property
    def is_leader(self) -> bool:
        """Return True for rank 0, which alone uses storage, the database and the encoder."""
        return self.rank == 0

    def share(self, value: T | None = None) -> T | None:
        """Return the leader's `value` on every rank; all ranks call it. None means that all work is done."""
        self.state = GroupState.ENDED
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        if box[0] is not None:
            self.state = GroupState.WORKING
        return box[0]

    @property
    def asked_to_end(self) -> bool:
        """Return True after a SIGTERM to this process."""
        return self._terminating

    def done(self) -> None:
        """End the common work on the shared value: the other ranks return to `share`."""
        self.state = GroupState.WAITING

    def interrupted(self) -> bool:
        """Return True if any rank received SIGTERM; all ranks call it at the same points.

        The exchange runs on the CPU, so that the queue of the GPU is not drained. It fails if a rank has died.
        """
        if self.world_size == 1:
            return self._terminating
        flag = torch.tensor([self._terminating], dtype=torch.uint8)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def total(self, value: Tensor) -> Tensor:
        """Sum a tensor over all ranks in place; all ranks call it."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def peak_memory_bytes(self) -> dict[str, int]:
        """Return the peak memory of this process so far, on the host and on its GPU."""
        peaks = {"peak_host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        if self.device.type == "cuda":
            peaks["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return peaks

    def largest(self, values: dict[str, int]) -> dict[str, int]:
        """Return the maximum of each value over all ranks; all ranks call it with the same names."""
        if self.world_size == 1:
            return values
        numbers = torch.tensor(list(values.values()))
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return dict(zip(values, numbers.tolist(), strict=True))

    def _terminate(self, _signal: int, _frame: Any) -> None:
        self._terminating = True


@contextmanager
def open_worker(device: str, *, leader_waits_seconds: float = 0.0) -> Iterator[Worker]:
    """Join the group that torchrun has started, on the device chosen by `device` ("auto", "cpu" or "cuda").

    A process can join only once, because the store of torchrun keeps the addresses of the first group. Without torchrun
    the group has one process. Deterministic kernels are enabled, so that repeated runs give the same bytes. From here
    on SIGTERM does not end the process: `Worker.interrupted` reports it. The other ranks wait `leader_waits_seconds`
    longer than usual for the leader, which may wait for its services. Raises ConfigurationError if the device does not
    exist, TransientError if another rank has ended. After an error a rank ignores SIGTERM. A rank that still waits for
    an ended rank, for example on a GPU, is killed (`PeerWatch`).
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    worker = Worker(rank, world_size, choose_device(device))
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if worker.device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=_TIMEOUT + timedelta(seconds=leader_waits_seconds))
            watch = _watch_others(worker)
        except RuntimeError as error:
            raise TransientError(
                f"rank {rank} of {world_size} could not join the others ({error}). Try again."
            ) from error
    previous = signal.signal(signal.SIGTERM, worker._terminate)
    try:
        try:
            yield worker
        finally:
            if worker.is_leader and world_size > 1 and worker.state is GroupState.WAITING:
                worker.share(None)
            if world_size > 1:
                watch.close()
    except RuntimeError as error:
        if world_size > 1 and (isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST_PEER)):
            raise TransientError(
                f"rank {rank} of {world_size} lost another rank, whose own log lines say why ({error}). Try again."
            ) from error
        raise
    finally:
        if world_size == 1:
            signal.signal(signal.SIGTERM, previous)
    if world_size > 1:
        # Not after an error: until this process has reported it, the connections must stay open, and it must survive
        # the SIGTERM that torchrun sends to all ranks if one fails.
        dist.destroy_process_group()
        signal.signal(signal.SIGTERM, previous)


class PeerWatch(threading.Thread):
    """Kills this process if one of `pids`, all on this machine, ends while the ranks work `together`.

    On a CPU an exchange with a dead rank fails at once. On a GPU it is only queued: the device waits forever, and the
    host continues until the queue is full and then blocks, without reacting to signals or other ranks.
    """

    def __init__(self, pids: Sequence[int], together: Callable[[], bool]) -> None:
        super().__init__(name="peers", daemon=True)
        self._pids, self._together = pids, together
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop watching: the common work has ended, and no rank is killed any more."""
        self._closed.set()
        self.join()

    def run(self) -> None:
        """Watch until the common work ends or a rank is gone."""
        while not self._closed.wait(POLL_SECONDS):
            gone = [rank for rank, pid in enumerate(self._pids) if not _runs(pid)]
            if gone and self._together() and not self._closed.wait(UNWIND_SECONDS) and self._together():
                message = f"ranks {gone} ended, and this rank still waits for them: it is stopped at once. Try again."
                get_logger().error(message)
                with suppress(OSError):
                    leave_error(TransientError.exit_code, message)
                os._exit(TransientError.exit_code)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _watch_others(worker: Worker) -> PeerWatch:
    pids = torch.zeros(worker.world_size, dtype=torch.int64)
    pids[worker.rank] = os.getpid()
    dist.all_reduce(pids)
    watch = PeerWatch(pids.tolist(), together=lambda: worker.state is GroupState.WORKING)
    watch.start()
    return watch


@contextmanager
def explained_gpu_memory(remedy: str, *, is_new: bool = True) -> Iterator[None]:
    """Replace the error of torch for a full GPU by one with the cause and the `remedy`.

    PermanentError if this process needs more than the GPU has: it would fail again. TransientError if other processes
    hold a part of the GPU, or if this process has already rendered (not `is_new`): a new one begins with free memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        own = torch.cuda.memory_reserved()
        others = total - free - own
        wanted = re.search(r"Tried to allocate [\d.]+ \w+", str(error))
        problem = (
            f"The GPU is full: this process holds {own / _GIB:.1f} and others hold {others / _GIB:.1f} of "
            f"{total / _GIB:.1f} GiB. {wanted[0] if wanted else 'torch tried to allocate more'}."
        )
        if others > _OTHERS_SHARE * total:
            raise TransientError(f"{problem} End the other processes; this one needs the GPU alone.") from error
        if not is_new:
            raise TransientError(f"{problem} This process has rendered before: try again with a new one.") from error
        raise PermanentError(f"{problem} {remedy}") from error


def check_gpus(device: str, num_processes: int) -> int:
    """Return the number of GPUs for processes on `device`; ConfigurationError if there are too few."""
    num_gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and num_gpus == 0:
        raise ConfigurationError(
            "S2V_DEVICE is cuda, but no GPU is visible: expected a CUDA device, or S2V_DEVICE=cpu."
        )
    if 0 < num_gpus < num_processes:
        raise ConfigurationError(
            f"{num_processes} processes render a clip, but {num_gpus} GPUs are visible: expected one GPU per process. "
            f"Set S2V_NPROC_PER_NODE to at most {num_gpus}."
        )
    return num_gpus


def choose_device(device: str) -> torch.device:
    """Return the device of this process for "cpu", "cuda" or "auto" (a GPU if there is one).

    Raises ConfigurationError if there is no GPU for "cuda", or fewer GPUs than processes, and TransientError if the GPU
    of this process does not start.
    """
    local_rank, world_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if check_gpus(device, world_size) == 0:
        chosen = os.environ.get("OMP_NUM_THREADS")
        # torchrun sets it to 1 for its children; together they may use all cores.
        if chosen is None or (world_size > 1 and chosen == "1"):
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world_size))
        return torch.device("cpu")
    try:
        torch.cuda.set_device(local_rank)
    except RuntimeError as error:
        raise TransientError(
            f"GPU {local_rank} does not start ({str(error).splitlines()[0]}): expected a working CUDA device. Check "
            "the driver of this machine with `nvidia-smi`; the next try may be on another machine."
        ) from error
    use_deterministic_kernels()
    return torch.device("cuda", local_rank)


def use_deterministic_kernels() -> None:
    """Let a GPU use kernels that give the same bytes each time."""
    # cuBLAS repeats its results only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # No kernel reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
