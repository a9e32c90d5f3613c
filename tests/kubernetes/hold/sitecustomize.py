"""Hold a render at a solver step, so that a test meets it there on a machine of any speed. Hold a worker; spoil a clip.
Save each solver state. Record the moments of a process.

Python imports this module at the start of each process of a pod and of Airflow, because PYTHONPATH has its folder. A
render waits behind its `HELD_STEP`-th solver step while the file `<job_id>.<clip_index>.hold` is in `HOLD_FOLDER`, and
leaves `<job_id>.<clip_index>.reached` beside it. SIGTERM ends the wait: the product decides what follows.

In the same way a worker of Airflow that has made the pod of a clip waits before it leaves it to the triggerer, while
`<job_id>.<clip_index>.worker.hold` is there. The clip whose seed is `SPOILED_SEED` becomes one of a single colour. With
`SAVE_SECONDS` a render saves its state that often, and waits until it is stored. With `BENCH_FOLDER` a step records its
moments there, as in a benchmark.
"""

import os
import signal
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

HELD_STEP = 3
_POLL_SECONDS = 0.02


class _Finder(MetaPathFinder):
    """Changes the modules of `_CHANGES` as soon as they are imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        spec = PathFinder.find_spec(name, path) if name in _CHANGES else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_change(module: Any) -> None:
            load(module)
            _CHANGES[name](module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


def _hold(progress_module: Any) -> None:
    """Let the reports of solver steps wait."""
    report = progress_module.Progress.__call__

    def report_and_wait(progress: Any, step: int, num_steps: int) -> None:
        report(progress, step, num_steps)
        if step == HELD_STEP:
            _wait(f"{progress._ctx.job_id}.{progress._clip.clip_index}")

    progress_module.Progress.__call__ = report_and_wait


def _hold_worker(pods_module: Any) -> None:
    """Let workers wait between the creation of a pod and the deferral of the task."""
    defer = pods_module.StepPodOperator.defer

    def wait_and_defer(operator: Any, **arguments: Any) -> None:
        if operator.clip is not None:
            _wait(f"{operator.labels.get('s2v/job-id')}.{operator.clip['clip_index']}.worker")
        defer(operator, **arguments)

    pods_module.StepPodOperator.defer = wait_and_defer


def _spoil(pipeline_module: Any) -> None:
    """Add a constant to the noise of one seed."""
    draw = pipeline_module.S2VPipeline._draw_noise

    def draw_spoiled(pipeline: Any, seed: int, shape: tuple[int, ...]) -> Any:
        noise = draw(pipeline, seed, shape)
        return noise + 20 if str(seed) == os.environ.get("SPOILED_SEED") else noise

    pipeline_module.S2VPipeline._draw_noise = draw_spoiled


def _save_states(saved_states_module: Any) -> None:
    """Change the seconds between two saved states, and let the render wait until each is stored."""
    if "SAVE_SECONDS" not in os.environ:
        return
    saved_states_module.SAVE_SECONDS = float(os.environ["SAVE_SECONDS"])
    offer = saved_states_module.StateSaver.offer

    def offer_and_wait(saver: Any, state: Any) -> None:
        offer(saver, state)
        if saver._saving is not None:
            saver._saving.result()

    saved_states_module.StateSaver.offer = offer_and_wait


_CHANGES = {
    "s2v_tasks.engine.pipeline": _spoil,
    "s2v_tasks.orchestration.pods": _hold_worker,
    "s2v_tasks.rendering.progress": _hold,
    "s2v_tasks.rendering.saved_states": _save_states,
}


def _wait(name: str) -> None:
    if "HOLD_FOLDER" not in os.environ:
        return
    folder = Path(os.environ["HOLD_FOLDER"])
    is_asked_to_end = False
    heed: Any = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: Any) -> None:
        nonlocal is_asked_to_end
        is_asked_to_end = True
        heed(number, frame)

    signal.signal(signal.SIGTERM, end)
    try:
        hold = folder / f"{name}.hold"
        if hold.exists():
            (folder / f"{name}.reached").touch()
        while hold.exists() and not is_asked_to_end:
            time.sleep(_POLL_SECONDS)
    finally:
        signal.signal(signal.SIGTERM, heed)


sys.meta_path.insert(0, _Finder())
if "BENCH_FOLDER" in os.environ:
    from s2v_tasks.capacity import recording

    recording.install()
