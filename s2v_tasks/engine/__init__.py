"""The S2V model and its inference. It works on tensors, independent of storage, schemas and Airflow.

"Spec b.2" and the like refer to the sections of docs/wan-s2v.md, from which the engine was written.

This module sets environment variables for torch. They take effect if this package is imported before torch. A variable
that is already set keeps its value.
"""

import os
from pathlib import Path

from s2v_tasks.errors import ConfigurationError

_COMPILE_THREADS = 4  # the default of torch, one per CPU, starts up to 32 processes of 600 MB on each rank
_ALLOCATOR = "PYTORCH_ALLOC_CONF"
# The name before torch 2.9; newer versions read it first.
_ALLOCATOR_NAMES = (_ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF")
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def _set_defaults() -> None:
    """Set the environment variables of every process of the engine."""
    # Threads that wait for each other sleep instead of spinning. On a machine that has other work too (Airflow, a
    # database) spinning made a clip on two CPU threads four times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Clips of different lengths leave free blocks that fit no later tensor: segments that grow avoid them.
    if not any(name in os.environ for name in _ALLOCATOR_NAMES):
        os.environ[_ALLOCATOR] = "expandable_segments:True"
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(_COMPILE_THREADS, len(os.sched_getaffinity(0)))))


def use_compile_cache(folder: Path) -> None:
    """Let torch.compile keep its results in `folder`, where the next process finds them."""
    os.environ.setdefault(_CACHE, str(folder.absolute()))


def check_compile_cache() -> None:
    """Create the folder of `use_compile_cache`; ConfigurationError if this process cannot write to it."""
    if _CACHE not in os.environ:
        return
    path = Path(os.environ[_CACHE])
    problem = f"the compile cache {path} is not a writable folder; set S2V_COMPILE_CACHE to one"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{problem} ({error.strerror})") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigurationError(problem)


_set_defaults()
