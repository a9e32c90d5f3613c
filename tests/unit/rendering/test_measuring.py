"""Check the parts of videos, speech and earlier records from which a clip is measured."""

import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from s2v_tasks.errors import UnavailableError
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.rendering import measuring
from s2v_tasks.rendering.measuring import ClipMeasurer
from s2v_tasks.schemas.manifest import Artifact, Manifest, Producer
from s2v_tasks.schemas.plan import ClipPlan
from s2v_tasks.schemas.quality import FrameSeries, TakeRecord
from s2v_tasks.settings import Settings
from s2v_tasks.storage.clip_state import KeptTake
from tests.unit.rendering.test_leader import clip, plan
from tests.unit.rendering.test_takes import MEASURED, take

SERIES = FrameSeries(mouth=(0.5,), shifts=(), skin=(None,), background=((1.0, 2.0, 3.0),))
NUM_STORED = 18  # of each video; clips of the plan have 16 frames or more


class Meter:
    """Records what it measures: the brightness of each picture, in steps of ten."""

    def __init__(self, _finder: Any, _reference: Any, before: "Meter | None" = None) -> None:
        self.before, self.mouth, self.end = before, [], ()
        self.kept_series: FrameSeries | None = None

    @classmethod
    def of_end(cls, finder: Any, reference: Any, last: Iterable[Any], series: FrameSeries | None) -> "Meter":
        meter = cls(finder, reference)
        for picture in last:
            meter.take(picture)
        meter.kept_series = series
        return meter

    def take(self, picture: Any) -> None:
        self.mouth.append(round(float(picture.mean()) / 10))

    def finish(self, *given: Any) -> Any:
        self.end = given
        return MEASURED

    def series(self) -> FrameSeries:
        return SERIES


def manifest(index: int) -> Manifest:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    video = Artifact(key=f"clip-{index}.mp4", sha256="ab", size_bytes=1)
    return Manifest(
        step="render_clip", job_id="job-1", clip_index=index, fingerprint=f"f{index}", outputs={"clip": video},
        producer=Producer(package_version="1"), inputs={}, started_at=now, finished_at=now,
        facts={"start_frame": 0, "end_frame": 16},
    )  # fmt: skip


@pytest.fixture
def meters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Meter]:
    """The meters of the measured clips, in order."""
    made: list[Meter] = []

    class Noted(Meter):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self)

    monkeypatch.setattr(measuring, "ClipMeter", Noted)
    levels = np.arange(1, NUM_STORED + 1, dtype=np.uint8) * 10
    frames = np.broadcast_to(levels[:, None, None, None], (NUM_STORED, 64, 64, 3))
    encode_clip(np.ascontiguousarray(frames), tmp_path / "clip-0.mp4")
    for index in (1, 2, 3):
        shutil.copy(tmp_path / "clip-0.mp4", tmp_path / f"clip-{index}.mp4")
    soundfile.write(tmp_path / "speech.wav", np.arange(44_000) / 2**16, 16_000, subtype="FLOAT")
    return made


@pytest.fixture
def measurer(tmp_path: Path, meters: list[Meter]) -> ClipMeasurer:
    """A measurer of a job whose videos and speech (2.75 s) are files, with one kept take of clip 0."""
    work = tmp_path / "work"
    work.mkdir()
    ctx: Any = SimpleNamespace(
        artifacts=SimpleNamespace(fetch=lambda artifact, path: Path(shutil.copy(tmp_path / artifact.key, path))),
        settings=Settings(work_dir=work), work_dir=work, store=None, layout=None,
    )  # fmt: skip
    found = ClipMeasurer(ctx, plan())
    kept = take(0).model_copy(update={"series": SERIES})
    record = TakeRecord(clip_index=0, fingerprint="f0", takes=(kept,), kept=0)
    known: Any = SimpleNamespace(kept=lambda clip: KeptTake(record, kept) if clip.clip_index == 0 else None)
    found._records = known
    vars(found).update(_finder=None, _reference=SimpleNamespace(look=None), _speech_path=tmp_path / "speech.wav")
    return found


def test_a_clip_is_measured_with_the_end_of_the_clip_before(measurer: ClipMeasurer, meters: list[Meter]) -> None:
    """A clip is measured by its own frames and its part of the speech, without surplus frames.

    The last three frames of the clip before it, and the measures of its kept take, are passed, too.
    """
    taken = measurer.take(clip(1), 2, manifest(1), manifest(0))
    assert (taken.take, taken.seed, taken.fingerprint, taken.error, taken.series) == (2, 8, "f1", None, SERIES)
    before, meter = meters
    assert before.mouth == [14, 15, 16]
    assert before.kept_series == SERIES
    assert meter.before is before
    assert meter.mouth == list(range(1, 17))
    start_frame, fps, speech, rate = meter.end
    assert (start_frame, fps, rate) == (16, 16, 16_000)
    assert np.array_equal(speech, (np.arange(16_000, 32_000) / 2**16).astype(np.float32))


def test_a_clip_before_that_was_not_measured_lends_its_frames_alone(
    measurer: ClipMeasurer, meters: list[Meter]
) -> None:
    """Without measures of the clip before, only its last frames are passed."""
    measurer.take(clip(2, infer_frames=16, end_frame=48), 0, manifest(2), manifest(1))
    before, meter = meters
    assert (before.mouth, before.kept_series) == ([14, 15, 16], None)
    assert len(meter.end[2]) == 44_000 - 32_000  # the speech ends within the clip


@pytest.mark.parametrize("earlier", [None, manifest(2)])
def test_the_first_clip_of_a_chain_has_no_clip_before(
    measurer: ClipMeasurer, meters: list[Meter], earlier: Manifest | None
) -> None:
    """A cut is no seam, and after the end of the speech there is no audio."""
    measurer.take(clip(3, infer_frames=16, end_frame=128), 0, manifest(3), earlier)
    (meter,) = meters
    assert meter.before is None
    assert len(meter.end[2]) == 0


def test_a_clip_of_too_few_frames_is_not_measured(measurer: ClipMeasurer) -> None:
    """The reason has both numbers, and the record names the clip and its seed."""
    longer: ClipPlan = clip(0, infer_frames=20, end_frame=20)
    taken = measurer.take(longer, 0, manifest(0), None)
    assert taken.error == "PermanentError: clip-0.mp4 has 18 frames, expected 20."
    assert (taken.measured, taken.seed, taken.fingerprint) == (None, 7, "f0")


def test_a_store_that_is_away_is_waited_for(measurer: ClipMeasurer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is retried and does not count as a clip that cannot be measured."""

    def away(*_: Any) -> None:
        raise UnavailableError("S3 does not answer")

    monkeypatch.setattr(measurer, "_measured", away)
    with pytest.raises(UnavailableError, match="S3 does not answer"):
        measurer.take(clip(0), 0, manifest(0), None)
