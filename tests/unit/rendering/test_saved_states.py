"""Check when solver states of a clip are saved while it is rendered, and what becomes of failures."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Timer
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from s2v_tasks.engine.denoising import DenoiseState
from s2v_tasks.errors import UnavailableError
from s2v_tasks.rendering import saved_states
from s2v_tasks.rendering.saved_states import SAVE_SECONDS, StateSaver
from s2v_tasks.schemas.manifest import PartialClipFacts

EARLIER_SECONDS = 40.0


def state(step: int, value: float = 0.0) -> DenoiseState:
    return DenoiseState(step, {"latents": torch.full((2,), value)})


class Site:
    """A clock, and a saved clip that records its states and may hold the first one or refuse all."""

    def __init__(self, folder: Path) -> None:
        self.now, self.saved = 100.0, []
        self.held, self.began, self.error = Event(), Event(), None
        self.held.set()
        saved_clip: Any = self
        self.saver = StateSaver(saved_clip, folder, "cpu", EARLIER_SECONDS)

    def save(self, path: Path, facts: PartialClipFacts) -> None:
        self.began.set()
        if facts.solver_step == 1:
            assert self.held.wait(10)
        if self.error is not None:
            raise self.error
        loaded = DenoiseState.load(path, "cpu")
        assert loaded is not None
        self.saved.append((loaded.step, facts.solver_step, facts.render_seconds))

    def offer(self, step: int, *, after: float = SAVE_SECONDS, value: float = 0.0) -> list[int]:
        """Offer a state after some seconds, and return once it is saved; return the step if it was copied."""
        copied: list[int] = []
        self.now += after

        def copy() -> DenoiseState:
            copied.append(step)
            return state(step, value)

        self.saver.offer(copy)
        if self.held.is_set() and self.saver._saving is not None:
            self.saver._saving.result(10)
        return copied


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    clock = SimpleNamespace(monotonic=lambda: site.now)
    monkeypatch.setattr(saved_states, "time", SimpleNamespace(monotonic=lambda: 100.0))
    site = Site(tmp_path)
    monkeypatch.setattr(saved_states, "time", clock)
    with site.saver:
        yield site


def test_a_state_is_saved_from_time_to_time(site: Site) -> None:
    """States between are not even copied from the GPU; the saved seconds are those of all attempts until then."""
    assert site.offer(1, after=1) == []
    assert site.offer(2, after=SAVE_SECONDS - 1) == [2]
    assert site.offer(3, after=SAVE_SECONDS - 1) == []
    assert site.offer(4, after=1) == [4]
    assert site.saved == [(2, 2, EARLIER_SECONDS + SAVE_SECONDS), (4, 4, EARLIER_SECONDS + 2 * SAVE_SECONDS)]


def test_the_gpu_does_not_wait_for_a_slow_store(site: Site) -> None:
    """While a state is on its way, the next ones are left out."""
    site.held.clear()
    assert site.offer(1) == [1]
    assert site.began.wait(10)
    assert site.offer(2) == []
    site.held.set()
    site.saver._threads.submit(lambda: None).result(10)
    assert site.offer(3, after=0) == [3]
    assert [step for step, *_ in site.saved] == [1, 3]


def test_a_state_that_cannot_be_saved_costs_no_clip(site: Site) -> None:
    """The failure is logged, and a later state is saved again."""
    with capture_logs() as lines:
        for error in (UnavailableError("S3 is away"), OSError("no space left on device")):
            site.error = error
            assert site.offer(1) == [1]
    assert [(line["event"], line["error"]) for line in lines] == [
        ("state_not_saved", "S3 is away"), ("state_not_saved", "no space left on device"),
    ]  # fmt: skip
    site.error = None
    assert site.offer(3) == [3]
    assert [step for step, *_ in site.saved] == [3]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_not_saved(site: Site, value: float) -> None:
    """A faulty GPU made it: each later attempt would continue from it and fail."""
    with capture_logs() as lines:
        assert site.offer(1, value=value) == [1]
        site.saver.save(state(2, value))
    assert [line["event"] for line in lines] == ["state_not_finite"] * 2
    assert site.saved == []


def test_the_state_of_an_interruption_is_saved_last(site: Site) -> None:
    """It waits for the one that is on its way, so that the older one does not replace it; its failure is raised."""
    site.held.clear()
    site.offer(1)
    assert site.began.wait(10)
    Timer(0.2, site.held.set).start()
    site.saver.save(state(2))
    assert [step for step, *_ in site.saved] == [1, 2]
    site.error = UnavailableError("S3 is away")
    with pytest.raises(UnavailableError):
        site.saver.save(state(3))


def test_no_state_is_on_its_way_after_the_end(site: Site) -> None:
    """The end waits for it: the state of a finished clip is deleted afterwards."""
    site.held.clear()
    site.offer(1)
    assert site.began.wait(10)
    Timer(0.2, site.held.set).start()
    site.saver.__exit__()
    assert [step for step, *_ in site.saved] == [1]
