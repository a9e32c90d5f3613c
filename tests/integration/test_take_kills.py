"""Check that a process that is killed between two takes of a clip is continued without a repeated render."""

from collections.abc import Callable
from typing import Any

import pytest

from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.clips import ClipRepository
from s2v_tasks.rendering import renderer
from s2v_tasks.rendering.measuring import ClipMeasurer
from s2v_tasks.rendering.takes import TakeGate
from s2v_tasks.runtime import attempts
from s2v_tasks.schemas.quality import TakeRecord
from s2v_tasks.storage.artifacts import ArtifactStore
from s2v_tasks.storage.clip_state import TakeRecords
from s2v_tasks.storage.kept_outputs import KeptOutputs
from s2v_tasks.storage.s3 import ObjectStore
from tests.integration.spoiled_clips import GATE, JOB, LAYOUT, PLANNED, RETAKE, Found, Run, Spoil, prepare, record

pytestmark = pytest.mark.usefixtures("findable_face")


class Killed(BaseException):
    """Takes the place of SIGKILL: no handler of errors catches it."""


def before(owner: type, name: str, when: Callable[..., bool]) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a function that ends the process at the first call of a method for which `when` is true."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        method = getattr(owner, name)

        def killing(*arguments: Any, **named: Any) -> Any:
            if when(*arguments, **named):
                raise Killed
            return method(*arguments, **named)

        patch.setattr(owner, name, killing)

    return plant


def always(*_: Any, **__: Any) -> bool:
    return True


def of_take(number: int) -> Callable[..., bool]:
    """Return a condition that is true for the record or the number of this take."""

    def matches(_self: Any, *arguments: Any, **_named: Any) -> bool:
        last = [len(value.takes) - 1 for value in arguments if isinstance(value, TakeRecord)]
        return number in (last or [value for value in arguments if isinstance(value, int)])

    return matches


def stores(name: str, retake: bool) -> Callable[..., bool]:
    """Return a condition that is true if an object of this name is stored with or without a superseded take."""

    def matches(store: ObjectStore, *arguments: Any) -> bool:
        key = next(value for value in arguments if isinstance(value, str))
        has_take = store.has_any(f"jobs/{JOB}/clips/0001/superseded/")
        return key == f"jobs/{JOB}/clips/0001/{name}" and has_take == retake

    return matches


def loaded_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loader that loads at its first call, so that all renders of a test share their networks."""
    loaded: list[Any] = []

    def load_once(*arguments: Any, **named: Any) -> Any:
        if not loaded:
            loaded.append(load(*arguments, **named))
        return loaded[0]

    return load_once


def gives_way(artifacts: ArtifactStore, manifest_key: str, _fingerprint: str) -> bool:
    return artifacts.store.exists(manifest_key)


# Points of a kill, and how many more times than once the retake is then rendered: it was not durable.
KILLS = {
    "before the first take is measured": (before(ClipMeasurer, "take", of_take(0)), 0),
    "before its measures are stored": (before(TakeRecords, "write", of_take(0)), 0),
    "after its measures are stored": (before(TakeGate, "_report", of_take(0)), 0),
    "before its attempt ends": (before(ClipRepository, "end_take", always), 0),
    "before the retake is rendered": (before(S2VPipeline, "_draw_noise", lambda _p, seed, _s: seed == RETAKE), 0),
    "before the first take gives way": (before(ArtifactStore, "_retire", gives_way), 1),
    "after the first take gave way": (before(ObjectStore, "upload", stores("clip.mp4", retake=True)), 1),
    "before the manifest of the retake": (before(ObjectStore, "put_bytes", stores("manifest.json", retake=True)), 1),
    "before the retake is measured": (before(ClipMeasurer, "take", of_take(1)), 0),
    "before its decision is stored": (before(TakeRecords, "write", of_take(1)), 0),
    "before its quality is recorded": (before(ClipRepository, "record_quality", always), 0),
    "before its success is recorded": (before(ClipRepository, "succeed", always), 0),
}


@pytest.mark.usefixtures("one_limit")
def test_a_kill_between_two_takes_changes_neither_bytes_nor_takes(
    run: Run, store: ObjectStore, spoil: Spoil, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill at any point, the next process decides the same and renders no stored take again."""
    monkeypatch.setattr(attempts, "_SILENT_SECONDS", 0.0)
    monkeypatch.setattr(renderer, "load_pipeline", loaded_once(renderer.load_pipeline))
    prepare(run, **GATE)
    drawn = spoil(PLANNED[1])
    run("render_clip", 0, count=2)
    keys = [LAYOUT.clip(1), LAYOUT.motion(1)]
    expected = [store.get_bytes(key) for key in keys]
    for point, (plant, num_lost) in KILLS.items():
        store.delete_all([item.uri for item in store.listing(f"jobs/{JOB}/clips/0001/")])
        num_attempts = len(found().attempts)
        drawn.clear()
        with monkeypatch.context() as patch:
            patch.setattr(KeptOutputs, "put", lambda *_: None)  # a killed process keeps nothing
            plant(patch)
            with pytest.raises(Killed):
                run("render_clip", 1)
        run("render_clip", 1)
        assert [store.get_bytes(key) for key in keys] == expected, point
        assert [(take.seed, take.fails) for take in record(store, 1).takes] == [(8, True), (RETAKE, False)], point
        assert (drawn.count(8), drawn.count(RETAKE)) == (1, 1 + num_lost), point
        outcomes = [attempt.outcome for attempt in found().attempts[num_attempts:]]
        assert outcomes.count("succeeded") == 1, point
        assert set(outcomes) <= {"succeeded", "superseded", "lost"}, point
        assert found().clips[1].status == "succeeded", point


@pytest.mark.usefixtures("one_limit")
def test_the_best_of_bad_takes_becomes_the_clip_again(
    run: Run,
    store: ObjectStore,
    spoil: Spoil,
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
    give_up: Callable[[], None],
) -> None:
    """A kill while the best take is restored changes nothing; `after_retakes: stop` fails the job."""

    def is_decided(*_: Any) -> bool:
        takes = TakeRecords(store, LAYOUT).read(1)
        return takes is not None and takes.kept == 0

    monkeypatch.setattr(attempts, "_SILENT_SECONDS", 0.0)
    prepare(run, **GATE, max_retakes=1, after_retakes="stop")
    drawn = spoil(RETAKE, wild=PLANNED[1])
    run("render_clip", 0)
    with monkeypatch.context() as patch:
        before(ArtifactStore, "_restore", is_decided)(patch)
        with pytest.raises(Killed):
            run("render_clip", 1)
    with pytest.raises(PermanentError, match=r"Clip 1 fails the quality gate in all 2 takes.*take 0: a face in"):
        run("render_clip", 1)
    assert drawn == [7, 8, RETAKE]
    assert "fails the quality gate" in str(found().reason)
    give_up()
    prepare(run, **GATE, max_retakes=1)
    assert run("render_clip", 1)["reused"]
    run("render_clip", 2)
    assert drawn == [7, 8, RETAKE, 9]
    takes = record(store, 1)
    assert takes.kept == 0
    assert takes.takes[0].score > takes.takes[1].score
    outcomes = [attempt.outcome for attempt in found().attempts if attempt.clip_index == 1]
    assert outcomes == ["succeeded", "superseded"]
