"""Check the benches of loading and of the VAE at tiny size."""

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from s2v_tasks.cli.bench import bench
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.reading import BUFFER_BYTES
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.verification.bench import load, step
from s2v_tasks.verification.bench.decode import DecodeBench, bench_decode
from s2v_tasks.verification.bench.load import bench_load, check_loaded, write_checkpoint


def test_synthetic_checkpoint_loads(tmp_path: Path) -> None:
    """A checkpoint of a chosen size has an index and the released proportions, and the loader loads it."""
    written = write_checkpoint(tmp_path, 4e7)
    assert 2e7 < written < 6e7
    transformer = Snapshot(tmp_path).build_transformer()
    Snapshot(tmp_path).fill_transformer(transformer, "cpu", torch.bfloat16)
    weights = transformer.state_dict()
    assert sum(value.nbytes for value in weights.values()) == written
    assert weights["blocks.39.ffn.0.weight"].unique().numel() > 1000
    with pytest.raises(PermanentError, match="too small"):
        write_checkpoint(tmp_path, 1e6)


def test_weights_that_the_loader_mixes_up_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as in the files pass. The content of another buffer in the middle of a weight does not."""
    # Each buffer of a weight has other content.
    assert BUFFER_BYTES % (load._BLOCK_NUMBERS * torch.bfloat16.itemsize)
    monkeypatch.setattr(load, "_BLOCK_NUMBERS", 1021)
    write_checkpoint(tmp_path, 4e7)
    transformer = Snapshot(tmp_path).build_transformer()
    Snapshot(tmp_path).fill_transformer(transformer, "cpu", torch.float32)
    check_loaded(transformer)
    largest = max(transformer.parameters(), key=torch.numel).flatten()
    largest[2048:3072] = largest[1024:2048].clone()
    with pytest.raises(RuntimeError, match="was loaded with other values than the file has"):
        check_loaded(transformer)


WATCHED = """
import time, torch
from s2v_tasks.verification.bench.load import _peak_of_own_memory
with _peak_of_own_memory() as peak:
    held = torch.ones(1 << 24)
    end = time.monotonic() + 10
    while peak[0] < held.nbytes * 0.9 and time.monotonic() < end:
        held.add_(1)
    del held
print(peak[0])
"""


def test_own_memory_is_watched() -> None:
    """Memory that is released before the end counts towards the peak; here 67 MB in a process of its own."""
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True)
    assert 60e6 < int(done.stdout) < 100e6


def test_own_memory_is_counted_without_the_field_of_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In gVisor, whose status of a process has no RssAnon, the resident memory is counted."""
    for text, expected in (("VmRSS:\t  12 kB\nRssAnon:\t 5 kB\n", 5), ("VmRSS:\t  12 kB\nThreads:\t1\n", 12)):
        (tmp_path / "status").write_text(text)
        monkeypatch.setattr(load, "_STATUS", tmp_path / "status")
        assert load._own_bytes() == expected * 1024


def test_work_that_the_gpu_has_queued_before_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time begins when the GPU has finished the warm-up, and ends when it has finished the work."""
    events: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda _device: events.append("wait"))
    monkeypatch.setattr(step.time, "perf_counter", lambda: events.append("clock") or 0.0)
    step.timed(lambda: events.append("work") or torch.ones(1), torch.device("cuda"))
    assert events == ["wait", "clock", "work", "wait", "clock"]


def test_the_vae_is_measured_in_each_way() -> None:
    """Decoding the clip alone gives the frames of decoding all; bfloat16 differs when decoding and when encoding."""
    rows = bench_decode(DecodeBench(base_dim=4, num_frames=8, height=16, width=16, bfloat16=True), num_ranks=1)
    assert [(row.name, row.max_abs_diff == 0) for row in rows] == [
        ("decode all frames", True),
        ("decode the clip", True),
        ("encode the clip", True),
        ("decode the clip, bfloat16", False),
        ("encode the clip, bfloat16", False),
    ]
    assert all(row.relative_error < 0.2 for row in rows)
    assert min(row.seconds for row in rows) > 0


def test_the_vae_is_measured_on_ranks() -> None:
    """Bands on two ranks give the frames of one rank, up to rounding."""
    rows = bench_decode(DecodeBench(base_dim=4, num_frames=4, height=16, width=16), num_ranks=2)
    assert rows[-1].name == "decode the clip, 2 ranks"
    assert rows[-1].max_abs_diff < 1e-4


def test_loading_is_compared_with_one_thread() -> None:
    """The bench loads the same checkpoint by each loader, and the command prints the ratio to one thread."""
    answer = CliRunner().invoke(
        bench, ["load", "--gigabytes", "0.04", "--ranks", "1"], env={"COLUMNS": "120"}, catch_exceptions=False
    )
    ratios = dict(re.findall(r"(naive|one thread|threads)\s*│ 1\s*│\s*[\d.]+\s*│\s*([\d.]+)", answer.stdout))
    assert list(ratios) == ["naive", "one thread", "threads"]
    assert ratios["one thread"] == "1.00"


def test_loading_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that do not end in time are killed, and the checkpoint is deleted."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(TransientError, match=r"by one thread took more than 0\.1 s"):
        list(bench_load(8e6, 1, with_naive=False, most_seconds=0.1))
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []
