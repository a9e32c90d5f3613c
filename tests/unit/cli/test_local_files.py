"""Local files and folders that cannot be used: one sentence and the exit code of its kind, never a traceback."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError, check_utf8, of_local_file

SAMPLES = Path(__file__).parents[2] / "samples"
IMAGE, AUDIO = SAMPLES / "portrait.jpg", SAMPLES / "speech.mp3"


def s2v(
    *arguments: str | bytes | Path, limit: Callable[[], None] | None = None, **variables: str
) -> "subprocess.CompletedProcess[bytes]":
    """The command line in a process of its own, with settings."""
    environment = os.environ | {f"S2V_{name}": value for name, value in variables.items()}
    command = [sys.executable, "-m", "s2v_tasks.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, check=False, preexec_fn=limit)


def sentence(done: "subprocess.CompletedProcess[bytes]", exit_code: int) -> str:
    """Return the message of a command that ended with this exit code: one line without a traceback."""
    text = done.stderr.decode()
    assert done.returncode == exit_code, text
    [line] = [line for line in text.splitlines() if "Error: " in line]
    assert "Traceback" not in text
    return line


def plan(image: str | bytes | Path = IMAGE, audio: str | bytes | Path = AUDIO) -> tuple[str | bytes | Path, ...]:
    return "plan", "--image", image, "--audio", audio


def test_a_full_disk_may_have_room_later(tmp_path: Path) -> None:
    """Exit code 75; here a file may have no more than 1,000 bytes."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, 1000))
    line = sentence(s2v(*plan(), limit=limit, WORK_DIR=str(tmp_path)), 75)
    assert line.startswith("TransientError: The disk is full (")
    assert "S2V_WORK_DIR" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/none/below"])
def test_a_work_dir_that_is_no_folder_is_a_configuration_error(tmp_path: Path, name: str) -> None:
    """A file, a folder below a file, a place where nobody may write: exit code 78, and the setting is named."""
    (tmp_path / "file").touch()
    line = sentence(s2v(*plan(), WORK_DIR=str(tmp_path / name)), 78)
    assert line.startswith("ConfigurationError: /")
    assert "S2V_WORK_DIR" in line


@pytest.mark.parametrize("command", ["demo", "up"])
def test_a_home_that_is_no_folder_is_a_configuration_error(tmp_path: Path, command: str) -> None:
    """The embedded stack has nowhere to live."""
    (tmp_path / "file").touch()
    for home in ("file", "file/below"):
        assert "S2V_HOME" in sentence(s2v(command, HOME=str(tmp_path / home)), 78)


@pytest.mark.parametrize("command", ["plan", "submit", "demo"])
def test_a_name_that_is_not_utf_8_is_bad_input(tmp_path: Path, command: str) -> None:
    """A file of an older system: the sentence shows the odd byte."""
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(IMAGE.read_bytes())
    line = sentence(s2v(command, "--image", name, "--audio", AUDIO), 65)
    assert r"caf\udce9.png is not valid UTF-8" in line


def test_a_file_argument_that_cannot_be_used_is_bad_input(tmp_path: Path) -> None:
    """Too long a name, a folder, a file that is not there; for each the name is in the sentence."""
    assert "File name too long" in sentence(s2v(*plan(image="x" * 300)), 65)
    assert str(tmp_path) in sentence(s2v(*plan(image=tmp_path)), 65)
    assert "none.wav" in sentence(s2v(*plan(audio=tmp_path / "none.wav")), 65)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_argument_that_may_not_be_read_is_bad_input(tmp_path: Path) -> None:
    """The rights of the file are to be changed, not those of a folder of this system."""
    image = tmp_path / "image.png"
    image.write_bytes(IMAGE.read_bytes())
    image.chmod(0)
    assert "image.png" in sentence(s2v(*plan(image=image)), 65)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_way_to_have_no_room(number: int) -> None:
    """Of the disk, of the account, of one file; whatever the name of the file."""
    error = of_local_file(OSError(number, os.strerror(number), "/data/a"), ["/data/a"])
    assert isinstance(error, TransientError)
    assert os.strerror(number) in str(error)


@pytest.mark.parametrize(
    "words",
    [
        "No space left on device", "Disk quota exceeded", "File too large", "error (os error 28)", "(os error 122)",
    ],
)  # fmt: skip
def test_no_room_as_other_programs_say_it(words: str) -> None:
    """ffmpeg and safetensors have errors of their own; what is to be tried again already stays as it is."""
    for error in (PermanentError(f"ffmpeg: {words}"), RuntimeError(words)):
        assert isinstance(of_local_file(error), TransientError)
    assert of_local_file(TransientError(words)) is None


@pytest.mark.parametrize(
    "name", ["EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENOENT", "ENXIO"]
)
def test_every_way_in_which_a_folder_is_wrong(name: str) -> None:
    """Exit code 78; where the file is an argument of the command 65, however it was given."""
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)), b"/a/b")
    assert isinstance(of_local_file(error, ["/a", "b"]), ConfigurationError)
    for argument in ("/a/b", "--out=/a/b"):
        named = of_local_file(error, ["--image", argument])
        assert isinstance(named, PermanentError)
        assert not isinstance(named, ConfigurationError)


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EILSEQ])
def test_every_way_in_which_a_name_is_wrong(number: int) -> None:
    """Exit code 65, wherever the name came from."""
    error = of_local_file(OSError(number, os.strerror(number), "x"))
    assert isinstance(error, PermanentError)
    assert not isinstance(error, ConfigurationError)


@pytest.mark.parametrize("error", [OSError("words"), ConnectionRefusedError(errno.ECONNREFUSED, "refused"), KeyError()])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    """A fault of the program must show its traceback."""
    assert of_local_file(error, ["a"]) is None


def test_text_in_utf_8_is_accepted() -> None:
    """Of any language; only bytes that are no text are refused, the first and the last of them too."""
    check_utf8(["--prompt", "Grüße 🎬", ""])
    for byte in (b"\x80", b"\xff"):
        with pytest.raises(PermanentError):
            check_utf8(["a", os.fsdecode(byte)])


def test_the_exit_code_is_right_where_the_error_file_cannot_be_written(tmp_path: Path) -> None:
    """The disk that is full may be the one that should take the reason."""
    done = s2v(*plan(image="none.png"))
    environment = {"STEP_ERROR_FILE": str(tmp_path / "none" / "error.json")}
    done = subprocess.run(
        [sys.executable, "-m", "s2v_tasks.cli", *plan(image="none.png")],
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    assert "none.png is not a file" in sentence(done, 65)
    assert b"The error file could not be written" in done.stderr


def test_an_error_file_takes_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a name that is no text."""
    from s2v_tasks.cli import leave_error

    monkeypatch.setenv("STEP_ERROR_FILE", str(tmp_path / "error.json"))
    leave_error(65, "caf\udce9")
    assert json.loads((tmp_path / "error.json").read_text())["exit_code"] == 65
