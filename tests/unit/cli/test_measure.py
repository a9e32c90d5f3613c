"""Check `s2v measure` on video files."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from s2v_tasks.cli.measure import _speech as speech_of
from s2v_tasks.cli.measure import measure as measure_command
from s2v_tasks.errors import PermanentError
from s2v_tasks.media import ffmpeg
from s2v_tasks.media.assembly import mux
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.media.uploaded_video import open_uploaded_video
from tests.unit.perception.drawn import Person, openings, speech


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A talking video with sound, its reference picture, and other speech."""
    folder = tmp_path_factory.mktemp("measure")
    person = Person(2)
    frames = np.stack(person.frames(openings("delay")))
    encode_clip(frames, folder / "silent.mp4")
    soundfile.write(folder / "speech.wav", speech("delay"), 16000)
    mux(folder / "silent.mp4", folder / "speech.wav", folder / "video.mp4", num_frames=len(frames), fps=16)
    soundfile.write(folder / "other.wav", speech("harbour")[: len(frames) * 1000], 16000)
    Image.fromarray(person.draw(0, 0)).save(folder / "person.png")
    return folder


def measure(*arguments: object) -> Result:
    """Run the command alone, because the whole program would configure logs for the test process."""
    command = typer.Typer()
    command.command()(measure_command)
    return CliRunner().invoke(command, list(map(str, arguments)))


def measured(*arguments: object) -> str:
    done = measure(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_talking_video_is_measured_with_its_own_sound(folder: Path) -> None:
    """After H.264 and AAC, the lag is that of the drawn mouth, and the text is that of a good video."""
    words = measured(folder / "video.mp4", "--image", folder / "person.png")
    assert "Faces: found in 100% of the frames" in words
    assert "Lip sync: the mouth " in words
    found = json.loads(measured(folder / "video.mp4", "--json"))
    assert found["lip_sync"]["lag_ms"] == pytest.approx(0, abs=30)
    assert found["lip_sync"]["correlation"] > found["lip_sync"]["other_correlation"] + 0.2
    assert found["clips"][0]["seam"] is None


def test_the_delay_of_an_encoder_is_no_lag(folder: Path) -> None:
    """In Matroska the delay of AAC has time stamps before 0, and the speech begins with the picture."""
    sources = [ffmpeg.own_input(folder / name) for name in ("silent.mp4", "speech.wav")]
    joined = ffmpeg.ffmpeg.output(*sources, ffmpeg.file_url(folder / "video.mkv"), vcodec="copy", acodec="aac")
    ffmpeg.run(joined, doing="joining", error=PermanentError)
    found = speech_of(open_uploaded_video(folder / "video.mkv", "The video"), None, folder, 99)
    assert found is not None
    lags = range(-400, 401)
    likeness = [float(np.dot(found[1000 : 1000 + 20000], speech("delay")[1000 + lag :][:20000])) for lag in lags]
    assert abs(lags[int(np.argmax(likeness))]) <= 16


def test_other_speech_is_named_as_such(folder: Path) -> None:
    """`--audio` replaces the audio of the video, and a mismatch is reported."""
    words = measured(folder / "video.mp4", "--audio", folder / "other.wav")
    assert "the mouth does not follow the speech" in words


def test_seams_are_measured_between_clips_of_the_given_length(folder: Path) -> None:
    """79 frames in clips of 40 have one seam."""
    assert "Seams: 1 of 1 invisible." in measured(folder / "silent.mp4", "--clip-frames", 40)


def test_a_video_without_sound_or_face_is_reported(tmp_path: Path) -> None:
    """A moving gradient is reported as without audio and without a face."""
    ramp = np.linspace(0, 200, 96 * 128).reshape(96, 128, 1).astype(np.uint8)
    encode_clip(np.stack([np.roll(np.repeat(ramp, 3, axis=2), n, axis=1) for n in range(40)]), tmp_path / "hills.mp4")
    words = measured(tmp_path / "hills.mp4")
    assert "Faces: none was found." in words
    assert "Lip sync: not measured, there is no sound." in words


def test_a_face_of_half_a_second_is_too_short_for_lip_sync(tmp_path: Path) -> None:
    """Lip sync is not measured in eight frames with a moving mouth."""
    frames = np.stack(Person(2).frames(openings("delay")[8:16]))
    encode_clip(frames, tmp_path / "short.mp4")
    soundfile.write(tmp_path / "speech.wav", speech("delay")[8000:16000], 16000)
    words = measured(tmp_path / "short.mp4", "--audio", tmp_path / "speech.wav")
    assert "Lip sync: not measured, a face is visible for less than two seconds." in words


def test_a_file_that_is_no_video_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """The sentence names the file and what is accepted."""
    (tmp_path / "notes.mp4").write_text("no video")
    done = measure(tmp_path / "notes.mp4")
    assert isinstance(done.exception, PermanentError)
    assert "notes.mp4 is not a readable video (expected MP4, MOV, WebM, MKV or AVI)" in str(done.exception)
