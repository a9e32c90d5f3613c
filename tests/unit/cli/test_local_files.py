"""Check local files and folders that cannot be used: one sentence, an exit code, and no traceback."""

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
    """Run the command line in a process of its own, with settings."""
    environment = os.environ | {f"S2V_{name}": value for name, value in variables.items()}
    command = [sys.executable, "-m", "s2v_tasks.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, check=False, preexec_fn=limit)


def sentence(done: "subprocess.CompletedProcess[bytes]", exit_code: int) -> str:
    """Return the message of a command with this exit code: one line without a traceback."""
    text = done.stderr.decode()
    assert done.returncode == exit_code, text
    [line] = [line for line in text.splitlines() if "Error: " in line]
    assert "Traceback" not in text
    return line


def plan(image: str | bytes | Path = IMAGE, audio: str | bytes | Path = AUDIO) -> tuple[str | bytes | Path, ...]:
    return "plan", "--image", image, "--audio", audio


def test_a_full_disk_may_have_room_later(tmp_path: Path) -> None:
    """A full disk ends with exit code 75; here a file may have at most 1,000 bytes."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, 1000))
    line = sentence(s2v(*plan(), limit=limit, WORK_DIR=str(tmp_path)), 75)
    assert line.startswith("TransientError: The disk is full (")
    assert "S2V_WORK_DIR" in line
    assert "S2V_HOME" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/none/below"])
def test_a_work_dir_that_is_no_folder_is_a_configuration_error(tmp_path: Path, name: str) -> None:
    """A file, a folder below a file, and a place without write access end with code 78 and name the setting."""
    (tmp_path / "file").touch()
    line = sentence(s2v(*plan(), WORK_DIR=str(tmp_path / name)), 78)
    assert line.startswith("ConfigurationError: /")
    assert "S2V_WORK_DIR" in line


@pytest.mark.parametrize("command", ["demo", "up"])
def test_a_home_that_is_no_folder_is_a_configuration_error(tmp_path: Path, command: str) -> None:
    """A home that cannot be a folder is refused with the name of the setting."""
    (tmp_path / "file").touch()
    for home in ("file", "file/below"):
        assert "S2V_HOME" in sentence(s2v(command, HOME=str(tmp_path / home)), 78)


@pytest.mark.parametrize("command", ["plan", "submit", "demo"])
def test_a_name_that_is_not_utf_8_is_bad_input(tmp_path: Path, command: str) -> None:
    """The message shows the invalid byte of the name as an escape."""
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(IMAGE.read_bytes())
    line = sentence(s2v(command, "--image", name, "--audio", AUDIO), 65)
    assert r"caf\udce9.png is not valid UTF-8" in line


def test_a_file_argument_that_cannot_be_used_is_bad_input(tmp_path: Path) -> None:
    """A name that is too long, a folder, a missing file and an empty file are named in the message."""
    assert "File name too long" in sentence(s2v(*plan(image="x" * 300)), 65)
    assert str(tmp_path) in sentence(s2v(*plan(image=tmp_path)), 65)
    assert "none.wav" in sentence(s2v(*plan(audio=tmp_path / "none.wav")), 65)
    empty = tmp_path / "empty.wav"
    empty.touch()
    for arguments in (plan(audio=empty), ("submit", *plan(audio=empty)[1:], "--prompt", "x")):
        assert "empty.wav" in (line := sentence(s2v(*arguments), 65))
        assert "is empty (0 bytes)" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--image", IMAGE, "--audio"],
        ["submit", "--prompt", "x", "--image", IMAGE, "--audio"],
        ["demo", "--pose-video"],
        ["measure"],
        ["fetch", "my-job", "--to"],
        ["snapshot", "verify"],
    ],
)
def test_a_url_is_not_taken_for_a_local_file(arguments: list[str | Path]) -> None:
    """A URL is repeated as it was typed, with both slashes, and nothing is written; a blank path is refused too."""
    line = sentence(s2v(*arguments, "https://host/speech.wav"), 65)
    assert line.startswith("PermanentError: 'https://host/speech.wav' is a URL: expected a path on this machine")
    assert sentence(s2v(*arguments, " "), 65).startswith("PermanentError: ' ' is blank: expected a path on this")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_argument_that_may_not_be_read_is_bad_input(tmp_path: Path) -> None:
    """A file without read permission is bad input, and the message is about the file."""
    image = tmp_path / "image.png"
    image.write_bytes(IMAGE.read_bytes())
    image.chmod(0)
    assert "image.png" in sentence(s2v(*plan(image=image)), 65)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_kind_of_full_disk(number: int) -> None:
    """A full disk, a full quota and a limit on file sizes are transient errors, whatever the name of the file."""
    error = of_local_file(OSError(number, os.strerror(number), "/data/a"), ["/data/a"])
    assert isinstance(error, TransientError)
    assert os.strerror(number) in str(error)


@pytest.mark.parametrize(
    "words",
    [
        "No space left on device", "Disk quota exceeded", "File too large", "error (os error 28)", "(os error 122)",
    ],
)  # fmt: skip
def test_a_full_disk_in_messages_of_other_programs(words: str) -> None:
    """Messages of libraries are recognised; errors of this system do not change, because they may quote a request."""
    assert isinstance(of_local_file(RuntimeError(words)), TransientError)
    for error in (PermanentError(f"s3://s2v/drop/{words}.png does not exist."), TransientError(words)):
        assert of_local_file(error) is None


@pytest.mark.parametrize(
    "name", ["EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENOENT", "ENXIO"]
)
def test_every_kind_of_wrong_folder(name: str) -> None:
    """A wrong folder ends with code 78, or with 65 if the file is an argument of the command."""
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)), b"/a/b")
    assert isinstance(of_local_file(error, ["/a", "b"]), ConfigurationError)
    for argument in ("/a/b", "--out=/a/b", "/a/c/../b", os.path.relpath("/a/b")):
        named = of_local_file(error, ["--image", argument])
        assert isinstance(named, PermanentError)
        assert not isinstance(named, ConfigurationError)


def test_a_file_where_a_folder_is_written_is_bad_input(tmp_path: Path) -> None:
    """A file in the place of the new folder is named, and is unchanged."""
    file = tmp_path / "video.mp4"
    file.touch()
    assert "correct the argument" in sentence(s2v("snapshot", "init-tiny", file), 65)
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EILSEQ])
def test_every_kind_of_wrong_name(number: int) -> None:
    """A wrong name ends with code 65, wherever it came from."""
    error = of_local_file(OSError(number, os.strerror(number), "x"))
    assert isinstance(error, PermanentError)
    assert not isinstance(error, ConfigurationError)


@pytest.mark.parametrize("error", [OSError("words"), ConnectionRefusedError(errno.ECONNREFUSED, "refused"), KeyError()])
def test_other_errors_are_unchanged(error: Exception) -> None:
    """A bug keeps its traceback."""
    assert of_local_file(error, ["a"]) is None


def test_text_in_utf_8_is_accepted() -> None:
    """Text of any language is accepted; invalid bytes are refused, also at the start and the end."""
    check_utf8(["--prompt", "Grüße 🎬", ""])
    for byte in (b"\x80", b"\xff"):
        with pytest.raises(PermanentError):
            check_utf8(["a", os.fsdecode(byte)])


def test_the_exit_code_is_right_where_the_error_file_cannot_be_written(tmp_path: Path) -> None:
    """On a full disk the error file may be missing, but the exit code is right."""
    done = s2v(*plan(image="none.png"))
    environment = {"STEP_ERROR_FILE": str(tmp_path / "none" / "error.json")}
    done = subprocess.run(
        [sys.executable, "-m", "s2v_tasks.cli", *plan(image="none.png")],
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    assert "none.png' is not a file" in sentence(done, 65)
    assert b"The error file could not be written" in done.stderr


def test_an_error_file_takes_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message with a name that is not UTF-8 is written."""
    from s2v_tasks.errors import leave_error

    monkeypatch.setenv("STEP_ERROR_FILE", str(tmp_path / "error.json"))
    leave_error(65, "caf\udce9")
    assert json.loads((tmp_path / "error.json").read_text())["exit_code"] == 65
