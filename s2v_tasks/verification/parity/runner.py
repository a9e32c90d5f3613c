"""Run every golden file of a folder, of any weights and dimensions, in this process or on several ranks."""

import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import spawn

from s2v_tasks.engine.distributed.mesh import Layout
from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.verification.parity import components, forward, loops
from s2v_tasks.verification.parity.golden import CPU_FLOAT32, EXACT, CaseResult, Goldens, OutputSize, Target, failed

# Files of these kinds in a folder of goldens that are not cases.
_DOCUMENTS = ("README", "manifest", "mutation_results", "upstream_timing")
# Cases are small: a rank that waits this long for another rank never gets an answer.
_TIMEOUT = timedelta(minutes=2)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(
    folder: Path, *, output_size: OutputSize, layout: Layout | None = None, target: Target = CPU_FLOAT32
) -> list[CaseResult]:
    """Return all rows of the parity table, in the order of the file names.

    For `output_size` and `layout` see `Goldens`. Where a process group has been initialised, its ranks compute the
    forwards and loops together. `target` is the device and dtype of the networks; in bfloat16 only the forwards of the
    transformer are compared. A *.safetensors or *.json file that no case reads, or that gives no row, is a failing row;
    other files are ignored. Raises PermanentError when the folder has nothing to run.
    """
    if not folder.is_dir():
        raise PermanentError(f"{folder} is not a folder; give a folder of golden files")
    goldens = Goldens(folder, output_size, layout, target)
    files = [path for path in goldens.files() if not path.name.startswith((*_DOCUMENTS, "."))]
    if not files:
        raise PermanentError(f"{folder} holds no golden files; expected *.safetensors or *.json of the golden format")
    if target.dtype == torch.bfloat16:
        return sorted(forward.cases(goldens), key=lambda row: row.name)
    rows = [*forward.cases(goldens), *components.cases(goldens), *loops.cases(goldens), *_unknown(files)]
    silent = [path for path in files if not any(f"{row.name} ".startswith(f"{path.stem} ") for row in rows)]
    rows += [failed(path.stem, EXACT, "the file gave nothing to compare") for path in silent]
    return sorted(rows, key=lambda row: row.name)


def run_on_ranks(
    folder: Path, *, num_ranks: int, output_size: OutputSize, layout: Layout | None = None
) -> list[CaseResult]:
    """Return the rows of `run` on `num_ranks` gloo processes: for each case the row of the rank with the largest error.

    An error of a rank ends all ranks and is raised here, with its traceback.
    """
    with tempfile.TemporaryDirectory() as meeting_point:
        rows_of_ranks = mp.get_context("spawn").SimpleQueue()
        run_here = partial(run, folder, output_size=output_size, layout=layout)
        work = partial(_work, num_ranks, Path(meeting_point), rows_of_ranks, run_here)
        ranks = spawn(work, nprocs=num_ranks, join=False)  # type: ignore[no-untyped-call]
        # Read before joining: a rank ends only when its rows have been taken.
        found: list[list[CaseResult]] = []
        while len(found) < num_ranks and not ranks.join(timeout=0.2):
            while not rows_of_ranks.empty():
                found.append(rows_of_ranks.get())
        while not rows_of_ranks.empty():
            found.append(rows_of_ranks.get())
        while not ranks.join():
            pass
    worst: dict[str, CaseResult] = {}
    for row in (row for rows in found for row in rows):
        if row.name not in worst or row.max_abs_diff > worst[row.name].max_abs_diff:
            worst[row.name] = row
    return sorted(worst.values(), key=lambda row: row.name)


def parse_target(device: str, dtype: str, *, num_ranks: int = 1) -> Target:
    """Return the device and dtype of the networks; ConfigurationError if this machine lacks the device."""
    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}.")
    if device not in {"cpu", "cuda"} or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigurationError(f"device is {device!r}; expected cpu, or cuda where there is a GPU.")
    if num_ranks > 1 and (device, dtype) != ("cpu", "float32"):
        raise ConfigurationError(
            f"{num_ranks} processes on {device} in {dtype}: expected cpu and float32 with several. Start one process."
        )
    return Target(torch.device(device), _DTYPES[dtype])


def _unknown(files: list[Path]) -> Iterator[CaseResult]:
    known = (*forward.PREFIXES, *components.PREFIXES, *loops.PREFIXES)
    for path in files:
        if not path.name.startswith(known):
            yield failed(path.stem, EXACT, f"{path.name}: no case reads this file")


def _work(
    num_ranks: int,
    meeting_point: Path,
    rows_of_ranks: "mp.SimpleQueue[list[CaseResult]]",
    run_here: Callable[[], list[CaseResult]],
    rank: int,
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(meeting_point / "store"), num_ranks)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=_TIMEOUT)
    rows_of_ranks.put(run_here())
    dist.destroy_process_group()
