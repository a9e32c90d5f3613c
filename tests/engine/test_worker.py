"""Check a process of the render group: its device, its end, and the end of the other ranks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from s2v_tasks.engine.loading.networks import vae_precision
from s2v_tasks.engine.worker import Worker, check_gpus, choose_device, explained_gpu_memory, open_worker
from s2v_tasks.errors import ConfigurationError, PermanentError, S2VError, TransientError

LEADER_THAT_ENDS = """
import sys
from s2v_tasks.engine.worker import open_worker

num_orders, fails = int(sys.argv[1]), sys.argv[2] == "fails"
with open_worker("cpu") as worker:
    if worker.is_leader:
        for number in range(num_orders):
            worker.share(f"order {number}")
            worker.done()
        if fails:
            raise ValueError("the leader failed")
    else:
        orders = []
        while order := worker.share():
            orders.append(order)
        print(orders, flush=True)
"""


# Rank 0 reports its failure only after torchrun has sent SIGTERM.
LEADER_THAT_LOSES_THE_OTHER = """
import os, signal, time
from s2v_tasks.engine.worker import open_worker
from s2v_tasks.errors import TransientError

try:
    with open_worker("cpu") as worker:
        if not worker.is_leader:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            worker.interrupted()
except TransientError as error:
    while not worker._terminating:
        time.sleep(0.01)
    print(error, flush=True)
"""
# As on a GPU that waits for the other: rank 0 neither asks nor exchanges anything.
LEADER_THAT_HEARS_NOTHING = """
import os, signal, sys, time
from s2v_tasks.engine import worker as engine_worker
from s2v_tasks.engine.worker import open_worker

engine_worker.POLL_SECONDS = engine_worker.UNWIND_SECONDS = 0.5
with open_worker("cpu") as worker:
    worker.share("order")
    if not worker.is_leader:
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "saves":
        worker.done()
    time.sleep(5)
    print("went on", flush=True)
"""
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.parametrize(("num_orders", "end"), [(0, "fails"), (2, "peace")])
def test_all_ranks_end_when_the_leader_ends(num_orders: int, end: str, tmp_path: Path) -> None:
    """If the leader ends or fails, with or without a shared order, the other ranks end without an error of theirs."""
    (tmp_path / "ranks.py").write_text(LEADER_THAT_ENDS)
    process = subprocess.run(
        [sys.executable, *TWO_RANKS, str(tmp_path / "ranks.py"), str(num_orders), end],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.stdout.strip() == str([f"order {number}" for number in range(num_orders)]), process.stderr
    assert (process.returncode != 0) == ("the leader failed" in process.stderr) == (end == "fails")
    assert "lost another rank" not in process.stderr


def test_a_rank_reports_a_lost_rank_despite_sigterm(tmp_path: Path) -> None:
    """A rank writes down that it lost another, although torchrun sends SIGTERM to the remaining ranks."""
    (tmp_path / "ranks.py").write_text(LEADER_THAT_LOSES_THE_OTHER)
    command = [sys.executable, *TWO_RANKS, str(tmp_path / "ranks.py")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert process.stdout.startswith("rank 0 of 2 lost another rank"), process.stderr


@pytest.mark.parametrize("doing", ["waits", "saves"])
def test_a_rank_that_waits_for_one_that_is_gone_is_ended(doing: str, tmp_path: Path) -> None:
    """A rank that waits for a lost one ends within seconds, and reports that it may be tried again.

    Work of the leader alone, such as saving, continues.
    """
    (tmp_path / "ranks.py").write_text(LEADER_THAT_HEARS_NOTHING)
    command = [sys.executable, *TWO_RANKS, str(tmp_path / "ranks.py"), doing]
    report = tmp_path / "error.json"
    environment = os.environ | {"STEP_ERROR_FILE": str(report)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ("ranks [1] ended, and this rank still waits" in process.stdout + process.stderr) == (doing == "waits"), (
        process.stderr
    )
    assert ("went on" in process.stdout) == (doing == "saves"), process.stderr
    assert report.exists() == (doing == "waits")
    if doing == "waits":
        assert json.loads(report.read_text())["exit_code"] == TransientError.exit_code


def test_without_torchrun_it_is_a_group_of_one() -> None:
    """There is one rank without a process group; SIGTERM sets a flag, and its handler is restored afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    with open_worker("cpu") as worker:
        assert (worker.rank, worker.world_size, worker.is_leader, worker.device.type) == (0, 1, True, "cpu")
        assert not worker.interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        assert worker.interrupted()
        assert worker.share("order") == "order"
    assert signal.getsignal(signal.SIGTERM) is before


def test_errors_pass_through_the_worker_unchanged() -> None:
    """The caller gets the exception that the work raises."""
    with pytest.raises(PermanentError, match="bad input"), open_worker("cpu"):
        raise PermanentError("bad input")


def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, or fewer GPUs than ranks, is a configuration error with the numbers."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigurationError, match="no GPU is visible"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigurationError, match="4 processes render a clip, but 2 GPUs"):
        choose_device("auto")
    assert choose_device("cpu").type == "cpu"
    for num_processes, device, num_gpus in ((2, "auto", 2), (2, "cuda", 2), (1, "cuda", 2), (4, "cpu", 0)):
        assert check_gpus(device, num_processes) == num_gpus
    with pytest.raises(ConfigurationError, match="3 processes render a clip, but 2 GPUs"):
        check_gpus("cuda", 3)


def test_a_gpu_that_does_not_start_is_a_fault_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML counts GPUs that CUDA cannot use: the step is tried again, perhaps elsewhere, with the words of CUDA."""

    def fails(_device: int) -> None:
        raise RuntimeError("CUDA driver initialization failed, system not yet initialized\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", fails)
    with pytest.raises(TransientError, match=r"GPU 0 does not start \(.*not yet initialized\): expected .*nvidia-smi"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("chosen", "world_size", "expected"),
    [(None, "1", 8), (None, "2", 4), ("1", "2", 4), ("3", "1", None), ("3", "2", None), ("1", "1", None)],
)
def test_a_number_of_threads_that_the_user_sets_is_kept(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, world_size: str, expected: int | None
) -> None:
    """Without OMP_NUM_THREADS, or with the 1 that torchrun sets, the ranks share all CPUs; another value is kept."""
    numbers: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(8))
    monkeypatch.setenv("WORLD_SIZE", world_size)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    choose_device("cpu")
    assert numbers == ([] if expected is None else [expected])


def test_the_facts_state_the_precision_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The facts state TF32, torch's default for convolutions on a GPU, or fp32 if TF32 is off."""
    gpu = torch.device("cuda")
    assert vae_precision(gpu, "float32") == "tf32"
    assert [vae_precision(torch.device("cpu"), precision) for precision in ("float32", "bfloat16")] == [
        "float32",
        "bfloat16",
    ]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert [vae_precision(gpu, precision) for precision in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("own", "free", "expected", "end"),
    [(76, 2, PermanentError, "Use a smaller size."), (40, 1, TransientError, "needs the GPU alone.")],
)
def test_a_full_gpu_is_explained(
    monkeypatch: pytest.MonkeyPatch, own: int, free: int, expected: type[S2VError], end: str
) -> None:
    """A process that needs too much fails for good, with the remedy; beside other processes it may be tried again."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: own << 30)
    words = "CUDA out of memory. Tried to allocate 3.10 GiB. GPU 0 has a total capacity of 80.00 GiB."
    with pytest.raises(S2VError) as caught, explained_gpu_memory("Use a smaller size."):
        raise torch.OutOfMemoryError(words)
    assert type(caught.value) is expected
    held = f"this process holds {own}.0 and others hold {80 - free - own}.0 of 80.0 GiB. Tried to allocate 3.10 GiB."
    assert held in str(caught.value)
    assert str(caught.value).endswith(end)


def test_memory_is_counted() -> None:
    """The peak memory of the process is stated in bytes."""
    peaks = Worker(0, 1, torch.device("cpu")).peak_memory_bytes()
    assert 50 * 2**20 < peaks["peak_host_memory_bytes"] < 2**40
