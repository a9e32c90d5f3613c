"""Clips that are spoiled on purpose for the quality gate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.metadata.tables import Job
from s2v_tasks.rendering.takes import take_seed
from s2v_tasks.schemas.quality import TakeRecord
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.clip_state import TakeRecords
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

JOB = "step-by-step"
LAYOUT = JobLayout(JOB)
CONFIG = Path(__file__).parents[2] / "config"
SAMPLES = Path(__file__).parents[1] / "samples"
GATE = {"quality": "gate", "num_clip": 3}
PLANNED = [7, 8, 9]  # seeds of the three clips
Run = Callable[..., dict[str, Any]]
Assemble = Callable[[], None]
Found = Callable[[], Job]
Spoil = Callable[..., list[int]]
RETAKE = take_seed(PLANNED[1], 1)


@pytest.fixture
def findable_face(store: ObjectStore) -> None:
    """A picture whose face can be detected in the blurred output of the tiny networks."""
    store.upload(SAMPLES / "woman.jpg", "portrait.jpg", "image/jpeg")


@pytest.fixture
def one_limit(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of which only one can fail a clip."""
    write_one_limit(tmp_path)
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()


def write_one_limit(folder: Path) -> None:
    """Write limits of which only the share of frames with a face can fail, because the tiny networks draw blur."""
    for path in CONFIG.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    limits = yaml.safe_load((CONFIG / "quality.yaml").read_text(encoding="utf-8"))
    for measure, value in limits.items():
        if isinstance(value, dict) and measure != "face_share":
            value.update({name: None for name in value if name.startswith("fail")})
    (folder / "quality.yaml").write_text(yaml.safe_dump(limits), encoding="utf-8")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """A function that spoils the noise of seeds and returns the list of all seeds drawn from then on.

    The clips of `flat` seeds have one colour; those of `wild` seeds show a face in a few frames.
    """
    draw = S2VPipeline._draw_noise

    def spoil(*flat: int, wild: int = -1) -> list[int]:
        drawn: list[int] = []

        def spoiled(pipeline: S2VPipeline, seed: int, shape: tuple[int, ...]) -> Any:
            drawn.append(seed)
            noise = draw(pipeline, seed, shape)
            return noise + 20 if seed in flat else noise * 40 if seed == wild else noise

        monkeypatch.setattr(S2VPipeline, "_draw_noise", spoiled)
        return drawn

    return spoil


def record(store: ObjectStore, clip_index: int) -> TakeRecord:
    found = TakeRecords(store, LAYOUT).read(clip_index)
    assert found is not None
    return found


def prepare(run: Run, **fields: Any) -> None:
    for step in ("stage_inputs", "plan_clips", "encode_conditions"):
        run(step, **(fields if step == "stage_inputs" else {}))
