"""Sections of correctness: versions, goldens, and equal bytes from repeated renders."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


def versions(machine: Machine, _clock: Clock) -> Rows:
    """Return versions and GPU, and the kernel that torch chooses for attention at head width 128."""
    rows: Rows = [{"name": "python", "version": sys.version.split()[0]}]
    rows += [{"name": name, "version": metadata.version(name)} for name in _PACKAGES if find_spec(name)]
    heads, tokens = (2, 64) if machine.tiny else (40, 4096)
    q = torch.randn(1, heads, tokens, 128, device=machine.device, dtype=machine.dtype)
    chosen = longest_kernels(lambda: F.scaled_dot_product_attention(q, q, q), machine.device, most=1)
    rows.append({"name": "torch chooses", "kernel": chosen[0].name if chosen else "unknown"})
    rows.append({"name": "S2V_ATTENTION=auto", "kernel": kernel_name("auto", machine.device)})
    if machine.device.type == "cuda":
        properties = torch.cuda.get_device_properties(machine.device)
        rows.append({
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": properties.total_memory / 2**30,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        })
    return rows


def goldens(machine: Machine, _clock: Clock) -> Rows:
    """Compare with the recorded tensors: in float32 without TF32 at the gates of a CPU, and in bfloat16."""
    rows: Rows = []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with _without_tf32():
            cases = runner.run(
                REPOSITORY / "tests" / "golden", output_size=output_size, target=Target(machine.device, dtype)
            )
        wrong = [case for case in cases if not case.ok]
        worst = max(cases, key=lambda case: case.max_abs_diff / case.gate if case.gate else case.max_abs_diff)
        row = {"name": name, "ok": not wrong, "cases": len(cases), "worst": worst.name, "diff": worst.max_abs_diff}
        rows.append(row | ({"failed": [f"{case.name} {case.max_abs_diff:.2e}" for case in wrong]} if wrong else {}))
    return rows


def repeatable(machine: Machine, _clock: Clock) -> Rows:
    """Render a clip of the tiny snapshot in processes of their own: the bytes must be the same.

    Twice; stopped in its middle and continued by another process; compiled, twice.
    """
    snapshot = machine.work_dir / "tiny"
    write_tiny_snapshot(snapshot, seed=0)
    state = machine.work_dir / "state.safetensors"
    state.unlink(missing_ok=True)
    first, second = _digest(machine), _digest(machine)
    _digest(machine, "--stop-at", "3", "--state", str(state))
    resumed = _digest(machine, "--state", str(state))
    compiled = [_digest(machine, "--compile") for _ in range(2)]
    return [
        {"name": "two processes", "ok": first == second, "sha256": first},
        {"name": "stopped and continued", "ok": resumed == first, "sha256": resumed},
        {"name": "compiled, two processes", "ok": compiled[0] == compiled[1], "sha256": compiled[0]},
    ]


def _digest(machine: Machine, *options: str) -> str:
    """Return the SHA-256 of the frames that a new process renders; empty if it is stopped."""
    command = [sys.executable, "-m", "tests.gpu.render_tiny", str(machine.work_dir / "tiny"), machine.device.type]
    # At toy size the compiler is disabled to save time; the option still passes through the engine.
    environment = os.environ | ({"TORCH_COMPILE_DISABLE": "1"} if machine.tiny else {})
    done = subprocess.run(
        [*command, *options], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
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
