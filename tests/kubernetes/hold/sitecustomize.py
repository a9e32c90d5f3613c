"""Hold a render at a solver step, so that a test meets it there on a machine of any speed.

Python imports this module at the start of each process of a pod, because its folder is on PYTHONPATH there. The render
waits behind its `HELD_STEP`-th solver step while the file `<job_id>.<clip_index>.hold` is in `HOLD_FOLDER`, and leaves
`<job_id>.<clip_index>.reached` beside it. SIGTERM ends the wait: the product decides what follows.
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
_MODULE = "s2v_tasks.rendering.progress"
_POLL_SECONDS = 0.02


class _Finder(MetaPathFinder):
    """Changes `Progress` of the module that reports solver steps as soon as it is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        spec = PathFinder.find_spec(name, path) if name == _MODULE else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_hold(module: Any) -> None:
            load(module)
            report = module.Progress.__call__

            def report_and_wait(progress: Any, step: int, num_steps: int) -> None:
                report(progress, step, num_steps)
                if step == HELD_STEP:
                    _wait(f"{progress._ctx.job_id}.{progress._clip.clip_index}")

            module.Progress.__call__ = report_and_wait

        spec.loader.exec_module = load_and_hold  # type: ignore[method-assign]
        return spec


def _wait(name: str) -> None:
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
