"""Starts the ranks of a parity run on this machine and brings their rows together."""

import tempfile
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import spawn

from s2v_tasks.engine.distributed.mesh import Layout
from s2v_tasks.verification.parity.results import CaseResult
from s2v_tasks.verification.parity.runner import OutputSize, run

# Cases are small: a rank that hears nothing for so long waits for one that will not come.
_TIMEOUT = timedelta(minutes=2)


def run_on_ranks(
    folder: Path, *, num_ranks: int, output_size: OutputSize, layout: Layout | None = None
) -> list[CaseResult]:
    """The rows of `runner.run` with `num_ranks` gloo processes; of each row that of the rank that is furthest off.

    An error of a rank ends all of them and is raised here, with its traceback.
    """
    with tempfile.TemporaryDirectory() as meeting_point:
        rows_of_ranks = mp.get_context("spawn").SimpleQueue()
        work = partial(_work, num_ranks, Path(meeting_point), rows_of_ranks, folder, output_size, layout)
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


def _work(
    num_ranks: int,
    meeting_point: Path,
    rows_of_ranks: "mp.SimpleQueue[list[CaseResult]]",
    folder: Path,
    output_size: OutputSize,
    layout: Layout | None,
    rank: int,
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(meeting_point / "store"), num_ranks)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=_TIMEOUT)
    rows_of_ranks.put(run(folder, output_size=output_size, layout=layout))
    dist.destroy_process_group()
