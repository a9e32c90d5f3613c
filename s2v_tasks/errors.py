"""Errors of the system and their process exit codes.

Every message names the value, the expectation and the remedy.
"""

import errno
import fcntl
import json
import os
from collections.abc import Collection
from pathlib import Path

ERROR_FILE_VARIABLE = "STEP_ERROR_FILE"
_LONGEST_MESSAGE = 900  # characters, so that their UTF-8 fits into a termination message
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Messages of ffmpeg and safetensors for the same errors.
NO_ROOM_WORDS = ("No space left on device", "Disk quota exceeded", "File too large", "os error 28", "os error 122")
_BAD_NAME = {errno.ENAMETOOLONG, errno.EILSEQ}
_BAD_FOLDER = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
_BAD_FOLDER |= {errno.ENOENT, errno.ENXIO}


class S2VError(Exception):
    """Base class of all errors that the system raises."""

    exit_code = 1
    is_recorded = False  # True if the step has stored it in the metadata store


class PermanentError(S2VError):
    """Bad input: the same call fails again, so it is never retried."""

    exit_code = 65


class ConfigurationError(PermanentError):
    """Wrong installation (a setting, a missing tool, missing weights) that a person must change."""

    exit_code = 78


class JobCancelledError(PermanentError):
    """The job was cancelled: its steps end, and no step begins until the job is started again."""


class JobTakenError(PermanentError):
    """The job id belongs to another request; the job with this id is unchanged."""


class TransientError(S2VError):
    """Failure of the environment (network, storage, preemption): the same call may succeed later."""

    exit_code = 75


class UnavailableError(TransientError):
    """A service (S3 or PostgreSQL) does not answer: the same call succeeds when it is back."""


def of_local_file(error: Exception, arguments: Collection[str] = ()) -> S2VError | None:
    """Return the error of this system for an error of the local disk; None for an error of another kind.

    TransientError: the disk is full. ConfigurationError: a folder of this system is missing or not writable.
    PermanentError: a file name is not usable, or a file among the `arguments` of the command is not readable.
    """
    # Errors of this system may quote a request, a name or a file, which can contain any words.
    if not isinstance(error, S2VError) and any(words in str(error) for words in NO_ROOM_WORDS):
        return no_room(error)
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = "" if error.filename is None else os.fsdecode(error.filename)
    problem = f"{_shown(name) or 'A file'}: {error.strerror}"
    if error.errno in NO_ROOM:
        return no_room(error)
    if error.errno in _BAD_NAME:
        return PermanentError(f"{problem}: expected a shorter name; rename the file.")
    named = {os.path.realpath(os.fsdecode(path)) for path in (error.filename, error.filename2) if path}
    if any(os.path.realpath(given) in named for argument in arguments if (given := argument.rpartition("=")[2])):
        return PermanentError(f"{problem}: expected a file or folder that this account may use; correct the argument.")
    if error.errno in _BAD_FOLDER:
        return ConfigurationError(
            f"{problem}: expected an existing folder that this account may read and write; correct its rights, or "
            "choose another one by S2V_WORK_DIR, S2V_HOME, TMPDIR or the argument of the command."
        )
    return None


def check_utf8(arguments: Collection[str]) -> None:
    """Raise PermanentError for a command argument that is not UTF-8, such as a file name of an older system."""
    for argument in arguments:
        if any("\udc80" <= character <= "\udcff" for character in argument):
            raise PermanentError(f"{_shown(argument)} is not valid UTF-8: expected UTF-8; rename the file.")


def leave_error(exit_code: int, message: str, *, is_recorded: bool = True) -> None:
    """Write exit code and message to the file that the parent process chose: torchrun hides both from its caller.

    is_recorded: False if the parent must store the message, because this process could not reach the metadata store.
    Of several ranks, only the first failure is written: the others fail because of it. In a pod the file is the
    termination message of the container. It exists from the start, and Kubernetes keeps 4096 bytes of it.
    """
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if not path:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        message = f"rank {os.environ['RANK']}: {message}"
    with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END) == 0:
            record = {"exit_code": exit_code, "message": message[:_LONGEST_MESSAGE]}
            record |= {} if is_recorded else {"is_recorded": False}
            json.dump(record, file, ensure_ascii=False)


def no_room(error: Exception | str) -> TransientError:
    """Return the error for a full disk; `error` is the message of the system or of a program."""
    return TransientError(
        f"The disk is full ({_shown(' '.join(str(error).split()))}): free space, or set S2V_WORK_DIR, for the "
        "embedded stack S2V_HOME, to a folder on a larger disk."
    )


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
