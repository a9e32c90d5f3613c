"""Check the warnings of a plan about inputs and choices."""

from typing import Any

import pytest

from s2v_tasks.schemas.manifest import StagedFaces, StagedSound
from s2v_tasks.schemas.plan import InputFacts
from tests.unit.planning.conftest import seconds


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"image_size": (200, 200)},
            ["only 200 x 200 pixels", "256 x 256 pixels is smaller than the training sizes of wan2.2-s2v-14b"],
        ),
        ({"image_size": (800, 450)}, []),
        ({"image_size": (3000, 1000)}, ["Filling 1024 x 384 cuts 11% of the picture away"]),
        ({"size": "128*192", "image_size": (1920, 1280)}, ["192 x 128 pixels is smaller"]),
    ],
)
def test_picture_warnings(plan_of: Any, changes: dict[str, Any], expected: list[str]) -> None:
    """A small picture, a video below the trained sizes and a large crop are warnings, and nothing else is."""
    warnings = plan_of(seconds(2), **changes).warnings
    assert len(warnings) == len(expected)
    assert all(part in warning for part, warning in zip(expected, warnings, strict=True))


@pytest.mark.parametrize(("prompt", "is_warned"), [("人" * 683, True), ("人" * 682, False), ("man " * 500, False)])
def test_a_prompt_that_is_probably_too_long_is_a_warning(plan_of: Any, prompt: str, is_warned: bool) -> None:
    """Only a GPU pod has the tokenizer, so the plan estimates the tokens of a prompt."""
    warnings = plan_of(seconds(2), prompt=prompt).warnings
    sentence = "The prompt may be too long: it has 683 characters, about 512 tokens. The model reads at most 512, and"
    assert [warning.startswith(sentence) for warning in warnings] == [True] * is_warned


def test_unusual_cuts_are_warnings(plan_of: Any, sentences: Any, speech: Any) -> None:
    """No cut although cuts were requested, and a cut within speech, are warnings with their remedy."""
    (whole,) = plan_of(seconds(20), samples=sentences, continuity="cut", min_chain_seconds=14).warnings
    assert whole.startswith(
        "The video has no cut. Its speech of 20.00 s has no pause of 0.5 s that is 14 s (min_chain_seconds) or more"
    )
    (spoken,) = plan_of(
        seconds(10), samples=speech((10, -20)), continuity="cut", min_chain_seconds=4, max_chain_seconds=8
    ).warnings
    assert "is within speech, at its quietest place" in spoken
    assert "Lower min_chain_seconds or raise max_chain_seconds" in spoken


def sound(**changes: Any) -> StagedSound:
    """Return the facts of the audio of an ordinary speech, with changes."""
    values = {"lead_in_seconds": 0.3, "silent_share": 0.1, "clipped_share": 0.0, "movement_db": 7.0} | changes
    return StagedSound(**values)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, []),
        ({"speech_rms_dbfs": -60.0, "pose_frames": 72}, []),
        ({"speech_rms_dbfs": -60.1}, ["The speech is silent (-60 dB of full scale)"]),
        ({"pose_frames": 71}, ["The pose video lasts 4.44 s, the video 5.00 s"]),
        ({"pose_frames": 0}, ["The pose video lasts 0.00 s"]),
        ({"image_warning": "Its profile is ignored."}, ["The colours of the picture may be wrong. Its profile is"]),
        ({"faces": StagedFaces(num_faces=1, area_share=0.2, turn=0.1, confidence=1.0)}, []),
        ({"faces": StagedFaces(num_faces=0)}, ["No face was found in the picture."]),
        ({"faces": StagedFaces(num_faces=3, area_share=0.2)}, ["The picture shows 3 faces"]),
        (
            {"faces": StagedFaces(num_faces=1, area_share=0.03)},
            ["of the frame, expected 5% or more. Crop it closer."],
        ),
        ({"faces": StagedFaces(num_faces=1, area_share=0.2, turn=-0.7)}, ["The face is seen from the side"]),
        ({"faces": StagedFaces(num_faces=1, area_share=0.2, confidence=0.3)}, ["Parts of the face seem to be covered"]),
        ({"faces": StagedFaces(num_faces=1, area_share=0.2, turn=-0.6, confidence=0.5)}, []),
        ({"faces": StagedFaces(num_faces=1, area_share=0.2, turn=0.61)}, ["The face is seen from the side"]),
        ({"faces": StagedFaces(num_faces=1, area_share=0.2, confidence=0.49)}, ["Parts of the face seem to be"]),
        ({"sound": sound()}, []),
        ({"sound": sound(lead_in_seconds=1.99, silent_share=0.5, movement_db=2.0, clipped_share=0.005)}, []),
        ({"sound": sound(lead_in_seconds=2.0)}, ["The speech begins after 2.0 s of silence"]),
        ({"sound": sound(silent_share=0.51)}, ["51% of the speech is silence"]),
        ({"sound": sound(movement_db=1.9)}, ["The level changes by only 1.9 dB"]),
        ({"sound": sound(clipped_share=0.006)}, ["The recording is clipped (0.6% of its samples)"]),
        ({"sound": sound(movement_db=None, silent_share=1.0, lead_in_seconds=5.0)}, []),
        ({"speech_notes": ("Track 2 is used.", "Channel 1 is used."), "pose_frames": 8}, ["Track", "Channel", "pose"]),
    ],
)
def test_input_warnings(plan_of: Any, inputs: dict[str, Any], expected: list[str]) -> None:
    """Notes of staging, silent speech and a pose video that ends more than a tenth early are warnings."""
    warnings = plan_of(seconds(5), inputs=InputFacts(**inputs)).warnings
    assert len(warnings) == len(expected)
    assert all(part in warning for part, warning in zip(expected, warnings, strict=True))


def test_pose_video_needs_to_last_as_long_as_a_preview(plan_of: Any) -> None:
    """A pose video that is shorter than the speech gives no warning if the preview is shorter still."""
    facts = InputFacts(pose_frames=48)
    assert len(plan_of(seconds(20), inputs=facts).warnings) == 1
    (preview,) = plan_of(seconds(20), inputs=facts, preset="quick").warnings
    assert preview.startswith("This is a preview")


def test_the_face_is_measured_in_the_cropped_picture(plan_of: Any) -> None:
    """The size of a face counts within the cropped picture: a little less than 5 % of the whole may suffice."""
    inputs = InputFacts(faces=StagedFaces(num_faces=1, area_share=0.047))
    (small,) = plan_of(seconds(5), inputs=inputs, image_size=(832, 448)).warnings
    assert small.startswith("The face fills 4.7% of the frame")
    assert plan_of(seconds(5), inputs=inputs, image_size=(832, 480)).warnings == ()


def test_two_faces_are_one_too_many(plan_of: Any) -> None:
    """Two faces give a warning, together with the other ones."""
    several, small = plan_of(seconds(5), inputs=InputFacts(faces=StagedFaces(num_faces=2, area_share=0.02))).warnings
    assert several.startswith("The picture shows 2 faces")
    assert small.startswith("The face fills 2.1% of the frame")
