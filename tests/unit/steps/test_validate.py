"""Check the quality of a whole video, computed from the records of its clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2v_tasks.schemas.quality import Finding, FrameSeries, LookQuality, ReferenceLook, SeamQuality, Take, TakeRecord
from s2v_tasks.steps import validate
from s2v_tasks.steps.validate import MeasuredClips
from s2v_tasks.storage.clip_state import KeptTake
from s2v_tasks.validation.quality_limits import load_quality_limits
from tests.unit.rendering.test_leader import plan
from tests.unit.rendering.test_takes import MEASURED

LIMITS = load_quality_limits(Path(__file__).parents[3] / "config")
LOOK = ReferenceLook(
    num_faces=1, face_height=0.5, skin_lab=(60.0, 10.0, 10.0), background_lab=(40.0, 0.0, 0.0), contrast=40.0,
    sharpness=1.0,
)  # fmt: skip
SPEECH = np.arange(16_000 * 4, dtype=np.float32)  # of 64 frames
Known = KeptTake | None


def known(
    index: int, *, takes: int = 1, kept: int = 0, reference: ReferenceLook | None = LOOK, **changes: Any
) -> Known:
    """Return the record of clip `index`, of 16 frames, whose mouth opens by its index, and its kept take."""
    darkness = (None, index / 4, *[None] * 14)
    series = FrameSeries(mouth=(float(index), *[None] * 15), darkness=darkness, shifts=(), skin=(), background=())
    measured = MEASURED.model_copy(update={"start_frame": 16 * index, "end_frame": 16 * index + 16} | changes)
    penalties = [Finding(level="fail", measure="face_share", message="no face", penalty=11.0 + n) for n in range(takes)]
    made = tuple(
        Take(
            take=number, seed=number, fingerprint=f"f{number}", measured=measured,
            findings=(penalties[number],) if takes > 1 else (), series=series, measure_seconds=0.0,
        )
        for number in range(takes)
    )  # fmt: skip
    record = TakeRecord(clip_index=index, fingerprint="f0", reference=reference, takes=made, kept=kept)
    return KeptTake(record, made[kept])


def failed(index: int) -> Known:
    """Return the record of a clip that could not be measured."""
    take = Take(take=0, seed=0, fingerprint="f0", error="OSError: gone", measure_seconds=0.0)
    return KeptTake(TakeRecord(clip_index=index, fingerprint="f0", takes=(take,), kept=0), take)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Records the inputs of the lip sync of the whole video, and measures nothing."""
    seen: list[Any] = []
    monkeypatch.setattr(validate, "measure_lip_sync", lambda *given: seen.extend(given))
    return seen


def test_lip_sync_of_the_whole_video_leaves_out_what_was_not_measured(synced: list[Any]) -> None:
    """Frames of an unmeasured clip have no mouth, and speech after the last measured frame is not used."""
    report = MeasuredClips((failed(0), known(1), None, known(3)), LIMITS).report(np.append(SPEECH, SPEECH))
    mouth, speech, rate, fps = synced
    assert (rate, fps, len(mouth.opening), len(mouth.darkness)) == (16_000, 16, 64, 64)
    assert [index for index in range(64) if not np.isnan(mouth.opening[index])] == [16, 48]
    assert (mouth.opening[16], mouth.opening[48]) == (1.0, 3.0)
    assert [index for index in range(64) if not np.isnan(mouth.darkness[index])] == [17, 49]
    assert (mouth.darkness[17], mouth.darkness[49]) == (0.25, 0.75)
    assert np.array_equal(speech, SPEECH)
    assert report is not None
    assert report.video is not None
    assert [clip.start_frame for clip in report.video.clips] == [16, 48]
    assert report.video.reference == LOOK
    assert (report.num_takes, report.kept_takes) == ((1, 1, 0, 1), (0, 0, 0, 0))
    assert "Clip 0 was not measured: OSError: gone" in report.sentences
    assert "Clip 2 was not measured." in report.sentences


def test_a_video_without_measures_has_reasons(synced: list[Any]) -> None:
    """The report has the reasons without measures; a job without measurement has no quality report."""
    report = MeasuredClips((failed(0), None), LIMITS).report(SPEECH)
    assert report is not None
    assert report.video is None
    assert report.sentences == ("Clip 0 was not measured: OSError: gone", "Clip 1 was not measured.")
    nothing = MeasuredClips((None, None), LIMITS)
    assert (nothing.report(SPEECH), nothing.notes(), nothing.for_fingerprint()) == (None, [], [])
    assert synced == []


def test_sentences_about_takes_findings_seams_and_drift(synced: list[Any]) -> None:
    """The kept take has the scores of all takes, and the drift of colours comes last."""
    seam = SeamQuality(start_frame=16, jump=0.5, colour_jump=0.5, skin_step=0.1, background_step=0.1)
    looks = [
        LookQuality(skin_difference=10.0 * n, background_difference=10.0 * n, contrast_ratio=1.0, sharpness_ratio=1.0)
        for n in range(3)
    ]
    clips = (known(0, look=looks[0], reference=None), known(1, takes=2, kept=1, look=looks[1], seam=seam),
             known(2, look=looks[2]))  # fmt: skip
    report = MeasuredClips(clips, LIMITS).report(SPEECH)
    assert report is not None
    assert (report.num_takes, report.kept_takes) == ((1, 2, 1), (0, 1, 0))
    first = report.sentences.index("Clip 1 was rendered 2 times; take 1 is kept (take 0: -11.0, take 1: -12.0).")
    assert report.sentences[first + 1] == "Clip 1 (fail): no face."
    assert "Seams: 1 of 1 invisible." in report.sentences[:first]
    assert report.sentences[-1].startswith("Drift (")
    assert not any(sentence.startswith(("Clip 0", "Clip 2")) for sentence in report.sentences)


@pytest.mark.parametrize("later", [None, LOOK.model_copy(update={"contrast": 80.0})], ids=["none", "other"])
@pytest.mark.usefixtures("synced")
def test_the_reference_of_a_video_is_that_of_its_first_measured_clip(later: ReferenceLook | None) -> None:
    """Records of later clips may have none, or one that was measured by another version."""
    report = MeasuredClips((known(0, reference=None), known(1), known(2, reference=later)), LIMITS).report(SPEECH)
    assert report is not None
    assert report.video is not None
    assert report.video.reference == LOOK


def test_the_contact_sheet_has_a_note_for_each_clip() -> None:
    """A note has the measures of the clip, and the kept take if there were retakes."""
    notes = MeasuredClips((known(0), known(1, takes=3, kept=1), failed(2), None), LIMITS).notes()
    assert notes[1] == f"{notes[0]}   take 1 of 3"
    assert notes[2:] == ["not measured", "not measured"]
    assert "take" not in notes[0]


def test_a_report_depends_on_records_and_limits() -> None:
    """Other measures or limits give another fingerprint, and equal ones the same."""

    def digest(*clips: Known, **limits: Any) -> list[str]:
        return MeasuredClips(clips, LIMITS.model_copy(update=limits)).for_fingerprint()

    same = digest(known(0), None)
    assert len(same) == 1
    assert same == digest(known(0), None)
    others = [
        digest(known(0), known(1)),
        digest(known(0, end_frame=15), None),
        digest(known(0), None, min_speech_share=0.9),
    ]
    assert all(other != same for other in others)


def test_the_level_of_the_speech_is_that_of_the_part_in_the_video() -> None:
    """The level of a preview is that of its part of the speech."""
    tone = 0.1 * np.sin(np.arange(16_000 * 10) / 5)
    speech = np.append(tone, np.zeros(16_000 * 10)).astype(np.float32)
    assert validate._expected(plan(), speech).speech_rms_dbfs == pytest.approx(-23.0, abs=0.05)
