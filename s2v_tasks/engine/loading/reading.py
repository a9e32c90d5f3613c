"""Read parts of files on several threads, straight to the device that keeps them.

Each thread has one buffer, page-locked for a GPU. It fills the buffer from the file and copies it to the device on its
own stream, so that reads and copies overlap. Host memory is bounded by the buffers and by `AHEAD_BYTES`, for files of
any size.
"""

import errno
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from s2v_tasks.errors import ConfigurationError, TransientError

NUM_THREADS = min(8, max(4, len(os.sched_getaffinity(0))))
BUFFER_BYTES = 8 << 20
# Bytes in the files of tensors that are read ahead of the caller.
AHEAD_BYTES = 256 << 20


@dataclass(frozen=True)
class Part:
    """A tensor in a file, or some of its rows: it begins at byte `offset`."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    read_as: torch.dtype | None = None  # the dtype of the result; None: the dtype of the caller

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the part in its file."""
        return prod(self.shape) * self.dtype.itemsize


def read_parts(
    parts: Iterable[Part], device: torch.device, dtype: torch.dtype, *, num_threads: int = NUM_THREADS
) -> Generator[Tensor, None, None]:
    """Yield the tensors of `parts`, in their order, on `device` in `dtype`.

    Raises ConfigurationError if a file ends within a part, TransientError if it cannot be read.
    """
    reader = _Reader(device, dtype)
    waiting: deque[_Pending] = deque()
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(num_threads, "weights", initializer=reader.begin_thread)
        files: dict[Path, int] = {}
        try:
            for part in parts:
                if part.path not in files:
                    files[part.path] = stack.enter_context(_opened(part.path)).fileno()
                waiting.append(reader.start(pool, files[part.path], part))
                while sum(pending.part.size_bytes for pending in waiting) > AHEAD_BYTES:
                    yield waiting.popleft().result(dtype)
            while waiting:
                yield waiting.popleft().result(dtype)
        finally:
            # After an error, or if the caller stops early, the queued reads are dropped.
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Pending:
    """A part whose reads are queued for the threads."""

    part: Part
    tensor: Tensor
    reads: list[Future[None]]

    def result(self, dtype: torch.dtype) -> Tensor:
        """Wait for the reads and return the tensor; raises the first error of a thread."""
        for read in self.reads:
            read.result()
        return self.tensor.to(self.part.read_as or dtype)


class _Reader:
    """The buffers and streams of the threads, one each."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        if str(device) == "cuda":  # without a number
            device = torch.device("cuda", torch.cuda.current_device())
        self._device, self._dtype = device, dtype
        self._own = threading.local()

    def begin_thread(self) -> None:
        """Select the GPU of this thread: a new thread starts with the first GPU of the machine."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def start(self, pool: ThreadPoolExecutor, file: int, part: Part) -> _Pending:
        """Allocate the tensor of `part` and queue its reads, one per buffer, for the threads."""
        on_gpu = self._device.type == "cuda"
        with torch.inference_mode(mode=False):  # other threads write to it
            # On a CPU a thread converts the content of its buffer; a GPU converts the whole tensor at the end.
            tensor = torch.empty(
                part.shape, dtype=part.dtype if on_gpu else part.read_as or self._dtype, device=self._device
            )
        allocated = torch.cuda.current_stream(self._device).record_event() if on_gpu else None
        numbers, step = tensor.view(-1), BUFFER_BYTES // part.dtype.itemsize
        reads = [
            pool.submit(self._read, file, part, start, numbers[start : start + step], allocated)
            for start in range(0, len(numbers), step)
        ]
        return _Pending(part, tensor, reads)

    def _read(self, file: int, part: Part, start: int, target: Tensor, allocated: torch.cuda.Event | None) -> None:
        """Fill `target`, the values of `part` from `start` on, from the file."""
        buffer = self._buffer()[: len(target) * part.dtype.itemsize]
        _fill(buffer, file, part.offset + start * part.dtype.itemsize, part.path)
        stream = self._stream()
        with torch.cuda.stream(stream) if stream else nullcontext():
            if stream and allocated:
                stream.wait_event(allocated)
            target.copy_(buffer.view(part.dtype), non_blocking=True)
            if stream:
                stream.synchronize()

    def _buffer(self) -> Tensor:
        if not hasattr(self._own, "buffer"):
            pinned = self._device.type == "cuda"
            self._own.buffer = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=pinned)
        buffer: Tensor = self._own.buffer
        return buffer

    def _stream(self) -> torch.cuda.Stream | None:
        if self._device.type == "cuda" and not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return getattr(self._own, "stream", None)


def _opened(path: Path) -> FileIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error


def _fill(buffer: Tensor, file: int, offset: int, path: Path) -> None:
    free = buffer.numpy().data
    while free:
        try:
            num_bytes = _read_into(free, file, offset)
        except OSError as error:
            raise _unreadable(path, error) from error
        if num_bytes == 0:
            raise ConfigurationError(f"{path} ends at byte {offset}, within a weight; download it again")
        free, offset = free[num_bytes:], offset + num_bytes


def _read_into(free: memoryview, file: int, offset: int) -> int:
    """Read bytes of `file` from `offset` on into `free`, and return their number.

    In gVisor, older releases refuse calls that write to page-locked memory: the process then copies the bytes itself.
    """
    try:
        return os.preadv(file, [free], offset)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
    content = os.pread(file, len(free), offset)
    free[: len(content)] = content
    return len(content)


def _unreadable(path: Path, error: OSError) -> TransientError:
    return TransientError(f"{path} cannot be read ({error.strerror}). Try again; look at the volume if that repeats.")
