"""Sections of correctness: versions, goldens, and equal bytes from repeated renders."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from s2v_tasks.engine.models.attention import kernel_name
from s2v_tasks.planning.resolution import output_size
from s2v_tasks.verification.bench.step import longest_kernels
from s2v_tasks.verification.parity import runner
from s2v_tasks.verification.parity.golden import Target
from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot
from tests.gpu.machine import REPOSITORY, Clock, Machine, Rows

_PACKAGES = ("torch", "triton", "transformers", "diffusers", "accelerate", "torchao", "flash_attn", "sageattention")
# The most for one process that renders the tiny clip: on a GPU, and on a CPU that other tests share.
_PROCESS_SECONDS, _TINY_PROCESS_SECONDS = 180.0, 1200.0


def versions(machine: Machine, _clock: Clock) -> Rows:
    """Return versions and GPU, and the kernel that torch chooses for attention at head width 128."""
    yield {"name": "python", "version": sys.version.split()[0]}
    yield from ({"name": name, "version": metadata.version(name)} for name in _PACKAGES if find_spec(name))
    heads, tokens = (2, 64) if machine.tiny else (40, 4096)
    q = torch.randn(1, heads, tokens, 128, device=machine.device, dtype=machine.dtype)
    chosen = longest_kernels(lambda: F.scaled_dot_product_attention(q, q, q), machine.device)
    yield {"name": "torch chooses", "kernel": chosen[0].name if chosen else "unknown"}
    yield {"name": "S2V_ATTENTION=auto", "kernel": kernel_name("auto", machine.device)}
    if machine.device.type == "cuda":
        properties = torch.cuda.get_device_properties(machine.device)
        yield {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": properties.total_memory / 2**30,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }


def goldens(machine: Machine, _clock: Clock) -> Rows:
    """Compare with the recorded tensors: in float32 without TF32 at the gates of a CPU, and in bfloat16."""
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with _without_tf32():
            cases = runner.run(
                REPOSITORY / "tests" / "golden", output_size=output_size, target=Target(machine.device, dtype)
            )
        wrong = [case for case in cases if not case.ok]
        worst = max(cases, key=lambda case: case.max_abs_diff / case.gate if case.gate else case.max_abs_diff)
        row = {"name": name, "ok": not wrong, "cases": len(cases), "worst": worst.name, "diff": worst.max_abs_diff}
        yield row | ({"failed": [f"{case.name} {case.max_abs_diff:.2e}" for case in wrong]} if wrong else {})


def repeatable(machine: Machine, _clock: Clock) -> Rows:
    """Render a clip of the tiny snapshot in processes of their own: the bytes must be the same.

    Twice; stopped in its middle and continued by another process; compiled, twice. Independent processes run at once.
    """
    write_tiny_snapshot(machine.work_dir / "tiny", seed=0)
    state = machine.work_dir / "state.safetensors"
    state.unlink(missing_ok=True)
    runs = ((), (), ("--stop-at", "3", "--state", str(state)), ("--compile",), ("--compile",))
    with ThreadPoolExecutor(min(len(runs), os.cpu_count() or 1)) as processes:
        digests = processes.map(partial(_digest, machine), range(len(runs)), runs)
        first, second, _, compiled, compiled_again = digests
    yield {"name": "two processes", "ok": first == second, "sha256": first}
    was_stopped = state.exists()
    resumed = _digest(machine, len(runs), ("--state", str(state)))
    yield {"name": "stopped and continued", "ok": was_stopped and resumed == first, "sha256": resumed}
    yield {"name": "compiled, two processes", "ok": compiled == compiled_again, "sha256": compiled}


def _digest(machine: Machine, number: int, options: tuple[str, ...]) -> str:
    """Return the SHA-256 of the frames that a new process renders, without those that a stopped one lacks.

    Each process, by its number, has its own folder of compiled kernels, so that it compiles itself. A process that
    hangs is ended.
    """
    command = [sys.executable, "-m", "tests.gpu.render_tiny", str(machine.work_dir / "tiny"), machine.device.type]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(machine.work_dir / f"compiled-{number}")}
    if machine.tiny:
        # The compiler is disabled to save time; the option still passes through the engine.
        environment["TORCH_COMPILE_DISABLE"] = "1"
    done = subprocess.run(
        [*command, *options],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TINY_PROCESS_SECONDS if machine.tiny else _PROCESS_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"render_tiny ended with code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return str(json.loads(done.stdout.splitlines()[-1])["sha256"])


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolve and multiply float32 in float32 on a GPU."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
