"""A process of an earlier start goes on beside the next start: no clip of that start is made from its work."""

from collections.abc import Callable
from typing import Any

import pytest

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.rendering.renderer import Renderer
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore
from tests.integration.conftest import JOB

LAYOUT = JobLayout(JOB)
Run = Callable[..., dict[str, Any]]
GiveUp = Callable[[], None]


def test_conditions_of_an_earlier_start_are_not_rendered(run: Run, store: ObjectStore, give_up: GiveUp) -> None:
    """If an earlier start stores the conditions of its prompt last, the render names the step to run again."""
    for step in ("stage_inputs", "plan_clips", "encode_conditions"):
        run(step)
    earlier = store.get_bytes(LAYOUT.conditions_manifest)
    give_up()
    run("stage_inputs", prompt="Somebody else shouts.")
    for step in ("plan_clips", "encode_conditions"):
        run(step)
    store.put_bytes(LAYOUT.conditions_manifest, earlier, "application/json")
    with pytest.raises(PermanentError, match=r"made from other inputs.*run `s2v encode-conditions` again"):
        run("render_clip", 0)


def test_a_clip_of_an_earlier_plan_is_not_stored(
    run: Run, store: ObjectStore, give_up: GiveUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip that is finished after the next start has planned other clips does not replace one of those."""
    for step in ("stage_inputs", "plan_clips", "encode_conditions"):
        run(step)
    facts = Renderer.clip_facts

    def late(renderer: Renderer) -> dict[str, Any]:
        give_up()
        run("stage_inputs", base_seed=9)
        run("plan_clips")
        return facts(renderer)

    monkeypatch.setattr(Renderer, "clip_facts", late)
    with pytest.raises(TransientError, match="has changed while clip 0 was rendered"):
        run("render_clip", 0)
    assert not store.exists(LAYOUT.clip(0))
