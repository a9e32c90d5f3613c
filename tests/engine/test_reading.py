"""Check that threads read weights with bounded memory, and that errors of a thread reach the caller."""

import errno
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from s2v_tasks.engine.loading import reading
from s2v_tasks.engine.loading.reading import Part, read_parts
from s2v_tasks.engine.loading.shards import Conversion, load_shards
from s2v_tasks.errors import ConfigurationError, TransientError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer of 64 bytes: each tensor below takes several."""
    monkeypatch.setattr(reading, "BUFFER_BYTES", 64)


def write(path: Path, tensors: list[Tensor]) -> list[Part]:
    parts, offset = [], 3  # not aligned, as behind a header of any length
    data = [b"abc"]
    for tensor in tensors:
        parts.append(Part(path, offset, tensor.dtype, tuple(tensor.shape)))
        data.append(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        offset += tensor.nbytes
    path.write_bytes(b"".join(data))
    return parts


@pytest.mark.parametrize("num_threads", [1, 8])
def test_parts_come_in_their_order_and_dtype(tmp_path: Path, num_threads: int) -> None:
    """Tensors of all dtypes, also without rows or without dimensions, are read as they were written."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 5), (0, 7), (), (33,), (3, 4, 5)]
    dtypes = [torch.bfloat16, torch.float32, torch.float32, torch.float16, torch.float64]
    tensors = [torch.randn(shape, generator=generator).to(t) for shape, t in zip(shapes, dtypes, strict=True)]
    read = list(read_parts(write(tmp_path / "file", tensors), CPU, torch.float32, num_threads=num_threads))
    assert [tensor.dtype for tensor in read] == [torch.float32] * len(tensors)
    assert all(torch.equal(actual, tensor.float()) for actual, tensor in zip(read, tensors, strict=True))


def test_reading_stays_a_bounded_way_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the caller works on one tensor, the bytes that are read ahead stay below the limit."""
    monkeypatch.setattr(reading, "AHEAD_BYTES", 1000)
    started: list[int] = []
    parts = write(tmp_path / "file", [torch.ones(100) for _ in range(20)])  # of 400 bytes each

    def counted() -> list[Part]:
        for part in parts:
            started.append(1)
            yield part  # type: ignore[misc]

    for number, _ in enumerate(read_parts(counted(), CPU, torch.float32, num_threads=2)):
        assert len(started) <= number + 3
    assert len(started) == 20


def test_memory_that_a_sandbox_refuses_is_filled_by_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors are the same if no call may write to page-locked memory, as in older releases of gVisor."""

    def refused(*_: object) -> int:
        raise OSError(errno.EFAULT, "refused")

    monkeypatch.setattr("os.preadv", refused)
    tensors = [torch.arange(100.0), torch.arange(33.0)]
    read = list(read_parts(write(tmp_path / "file", tensors), CPU, torch.float32))
    assert all(map(torch.equal, read, tensors))


def test_a_file_that_ends_early_is_damaged(tmp_path: Path) -> None:
    """The message names the file, the byte and the remedy, and no thread keeps running."""
    parts = write(tmp_path / "file", [torch.ones(100) for _ in range(20)])
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-150])
    with pytest.raises(ConfigurationError, match=r"file ends at byte 7853, within a weight; download it again"):
        list(read_parts(parts, CPU, torch.float32))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")]


def test_an_error_of_a_thread_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that fails is a transient error, and the module stays without weights."""
    save_file({"weight": torch.ones(4, 4, dtype=torch.bfloat16)}, tmp_path / "shard")

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.preadv", broken)
    with torch.device("meta"):
        module = nn.Linear(4, 4, bias=False)
    with pytest.raises(TransientError, match=r"shard cannot be read \(Input/output error\)\. Try again"):
        load_shards(module, [tmp_path / "shard"], Conversion(torch.float32), device="cpu", source="a test")
    assert module.weight.is_meta


def test_types_that_are_no_weights_are_named(tmp_path: Path) -> None:
    """Integers in a shard are a configuration error."""
    save_file({"weight": torch.ones(4, 4, dtype=torch.int64)}, tmp_path / "shard")
    with torch.device("meta"):
        module = nn.Linear(4, 4, bias=False)
    with pytest.raises(ConfigurationError, match="shard has weights of type I64; expected one of"):
        load_shards(module, [tmp_path / "shard"], Conversion(torch.float32), device="cpu", source="a test")
