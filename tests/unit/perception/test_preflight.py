"""Check faces and audio of the inputs before a job costs anything."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.perception.preflight import listen, look
from tests.unit.perception.drawn import SAMPLE_RATE, Person, speech

SAMPLES = Path(__file__).parents[2] / "samples"


def saved(picture: np.ndarray, folder: Path) -> Path:
    Image.fromarray(picture).save(folder / "image.png")
    return folder / "image.png"


def test_the_sample_portrait_is_one_large_frontal_face() -> None:
    """The sample portrait leads to no warning."""
    found = look(SAMPLES / "portrait.jpg")
    assert found.num_faces == 1
    assert found.area_share is not None
    assert found.turn is not None
    assert found.confidence is not None
    assert 0.08 < found.area_share < 0.25
    assert abs(found.turn) < 0.2
    assert found.confidence > 0.9


def test_no_face_and_several_faces_are_counted(tmp_path: Path) -> None:
    """A grey wall has no face; two people side by side have two."""
    assert look(saved(np.full((200, 300, 3), 120, np.uint8), tmp_path)).num_faces == 0
    pair = np.concatenate([Person(0).draw(0, 0), Person(5).draw(0, 0)], axis=1)
    assert look(saved(pair, tmp_path)).num_faces == 2


def test_a_small_face_has_a_small_share_at_every_resolution(tmp_path: Path) -> None:
    """The share of a face does not depend on the resolution: pictures are scaled to 1280 pixels at most."""
    picture = np.full((1200, 1000, 3), 150, np.uint8)
    picture[600:960, 300:588] = np.asarray(Image.fromarray(Person(2).draw(0, 0)).resize((288, 360)))
    image, sizes = Image.fromarray(picture), ((1000, 1200), (2500, 3000))
    shares = [look(saved(np.asarray(image.resize(size)), tmp_path)).area_share for size in sizes]
    assert shares[0] == pytest.approx(0.021, abs=0.006)
    assert shares[1] == pytest.approx(shares[0], abs=0.004)


def test_speech_moves_and_noise_and_chords_do_not() -> None:
    """The level of speech changes by 6 dB and more per tenth of a second, that of noise and chords by under 1."""
    for name in ("baker", "tickets", "delay", "harbour"):
        movement = listen(speech(name), SAMPLE_RATE).movement_db
        assert movement is not None
        assert movement > 6
    seconds = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    noise = np.random.default_rng(0).normal(0, 0.1, len(seconds))
    chord = 0.2 * sum(np.sin(2 * np.pi * hertz * seconds) for hertz in (220, 277, 330))
    for steady in (noise, chord):
        movement = listen(np.asarray(steady, np.float32), SAMPLE_RATE).movement_db
        assert movement is not None
        assert movement < 1


def test_lead_in_silence_and_clipping_are_measured() -> None:
    """Three seconds of silence before the speech are found, and clipping is a share of the samples."""
    late = listen(np.concatenate([np.zeros(3 * SAMPLE_RATE, np.float32), speech("baker")]), SAMPLE_RATE)
    assert late.lead_in_seconds == pytest.approx(3.0, abs=0.1)
    assert late.silent_share == pytest.approx(0.35, abs=0.05)
    assert late.clipped_share == 0
    assert listen(np.clip(6 * speech("baker"), -1, 1), SAMPLE_RATE).clipped_share > 0.01
    # A quiet recording whose tops are flat was not clipped by its level.
    assert listen(np.clip(6 * speech("baker"), -1, 1) / 4, SAMPLE_RATE).clipped_share == 0


def test_silence_and_an_empty_speech_have_no_movement() -> None:
    """Without audio no measure is made."""
    silent = listen(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
    assert (silent.silent_share, silent.movement_db) == (1.0, None)
    assert listen(np.zeros(10, np.float32), SAMPLE_RATE).movement_db is None
