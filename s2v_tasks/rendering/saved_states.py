"""Saved states of a clip while it is rendered: one from time to time, and one when it is interrupted.

A process that is killed without a warning, perhaps with its node, loses only the steps since its last saved state.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Self

from safetensors import SafetensorError

from s2v_tasks import log
from s2v_tasks.engine.denoising import DenoiseState
from s2v_tasks.errors import S2VError
from s2v_tasks.runtime.outages import tried_once
from s2v_tasks.schemas.manifest import PartialClipFacts
from s2v_tasks.storage.clip_state import PartialClip

# A state is at most six latents: 86 MB in float32 for 80 frames of 1024x704. The GPU waits only for its copy.
SAVE_SECONDS = 120.0


class StateSaver:
    """Stores solver states of one clip; at the end of the block none is on its way.

    `made_by` names the renderer, see `DenoiseState.save`. `earlier_seconds`: those of the attempt that this one
    continues.
    """

    def __init__(self, saved_clip: PartialClip, folder: Path, made_by: str, earlier_seconds: float) -> None:
        self._saved_clip, self._path, self._made_by = saved_clip, folder / "saved.safetensors", made_by
        self._started = time.monotonic() - earlier_seconds
        self._due = time.monotonic() + SAVE_SECONDS
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="saved-states")
        self._saving: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    @property
    def render_seconds(self) -> float:
        """Return the seconds for which the clip has been rendered, with those of earlier attempts."""
        return time.monotonic() - self._started

    def offer(self, state: Callable[[], DenoiseState]) -> None:
        """Store the state in a thread if the last one is old enough and no other is on its way.

        A failure is logged: the clip does not need this state.
        """
        is_busy = self._saving is not None and not self._saving.done()
        if is_busy or time.monotonic() < self._due:
            return
        copied, seconds = state(), self.render_seconds
        self._due = time.monotonic() + SAVE_SECONDS
        self._saving = self._threads.submit(copy_context().run, self._try_to_store, copied, seconds)

    def save(self, state: DenoiseState) -> None:
        """Store the state of an interrupted clip, after the one that is on its way; nothing before its first step."""
        seconds = self.render_seconds
        self._threads.shutdown()
        if state.step:
            self._store(state, seconds)

    def _try_to_store(self, state: DenoiseState, seconds: float) -> None:
        try:
            with tried_once():
                self._store(state, seconds)
        except (S2VError, OSError, SafetensorError) as error:
            log.get_logger().warning("state_not_saved", step=state.step, error=str(error))

    def _store(self, state: DenoiseState, seconds: float) -> None:
        if not state.is_finite:
            log.get_logger().warning("state_not_finite", step=state.step)
            return
        state.save(self._path, self._made_by)
        self._saved_clip.save(self._path, PartialClipFacts(solver_step=state.step, render_seconds=seconds))
