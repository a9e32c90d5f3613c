"""The kernels of a computation by the time that they take, from torch's profiler."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

MOST_KERNELS = 25


@dataclass(frozen=True)
class KernelTime:
    """One kernel, or on a CPU one operator without those that it calls."""

    name: str
    seconds: float
    calls: int
    share: float  # of the time of all


def longest_kernels(compute: Callable[[], object], device: torch.device, most: int = MOST_KERNELS) -> list[KernelTime]:
    """Run `compute` once under the profiler and return its longest kernels, the longest first."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        compute()
        if on_gpu:
            torch.cuda.synchronize(device)
    averages = profiler.key_averages()
    times = {
        event.key: ((event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6, event.count)
        for event in averages
    }
    total = sum(seconds for seconds, _ in times.values()) or 1.0
    longest = sorted(times.items(), key=lambda item: item[1][0], reverse=True)[:most]
    return [KernelTime(name, seconds, calls, seconds / total) for name, (seconds, calls) in longest if seconds > 0]
