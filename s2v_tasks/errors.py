"""The errors of the system and the process exit codes they become.

Every message names the offending value, what was expected and the remedy.
"""

import errno
import os
from collections.abc import Collection

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The same as other programs and libraries say it: ffmpeg, safetensors (written in Rust).
_NO_ROOM_WORDS = ("No space left on device", "Disk quota exceeded", "File too large", "os error 28", "os error 122")
_BAD_NAME = {errno.ENAMETOOLONG, errno.EILSEQ}
_BAD_FOLDER = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
_BAD_FOLDER |= {errno.ENOENT, errno.ENXIO}


class S2VError(Exception):
    """Base of all errors that the system raises on purpose."""

    exit_code = 1


class PermanentError(S2VError):
    """The input is bad: the same call fails again, so it is never retried."""

    exit_code = 65


class ConfigurationError(PermanentError):
    """The installation is wrong (setting, missing tool, missing weights): a person must change it."""

    exit_code = 78


class JobCancelledError(PermanentError):
    """A person cancelled the job: its steps end, and none begins until the job is started again."""


class JobTakenError(PermanentError):
    """The job id belongs to another request: the job that has it stays what it is."""


class TransientError(S2VError):
    """The outside world failed (network, storage, preemption): the same call may succeed later."""

    exit_code = 75


class UnavailableError(TransientError):
    """A service does not answer (the store, the database): the same call succeeds as soon as it is back."""


def of_local_file(error: Exception, arguments: Collection[str] = ()) -> S2VError | None:
    """What an error of the local disk means; None for an error of another kind.

    TransientError: there is no room. ConfigurationError: a folder of this system is none, or cannot be written to.
    PermanentError: the fault is in a name, or in a file that is among the `arguments` of the command.
    """
    if not isinstance(error, TransientError) and any(words in str(error) for words in _NO_ROOM_WORDS):
        return _no_room(error)
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = "" if error.filename is None else os.fsdecode(error.filename)
    told = f"{_shown(name) or 'A file'}: {error.strerror}"
    if error.errno in _NO_ROOM:
        return _no_room(error)
    if error.errno in _BAD_NAME:
        return PermanentError(f"{told}: expected a shorter name; rename the file.")
    if name and any(name == argument.rpartition("=")[2] for argument in arguments):
        return PermanentError(f"{told}: expected a file or folder that this account may use; correct the argument.")
    if error.errno in _BAD_FOLDER:
        return ConfigurationError(
            f"{told}: expected a folder that is there and that this account may write to; check S2V_WORK_DIR, S2V_HOME "
            "and TMPDIR, and the rights of the folder."
        )
    return None


def check_utf8(arguments: Collection[str]) -> None:
    """PermanentError when an argument of a command is no text: a file name of an older system, for example."""
    for argument in arguments:
        if any("\udc80" <= character <= "\udcff" for character in argument):
            raise PermanentError(
                f"{_shown(argument)} is not valid UTF-8: expected a name or a text in UTF-8; rename the file."
            )


def _no_room(error: Exception) -> TransientError:
    return TransientError(
        f"There is no room on the disk ({_shown(' '.join(str(error).split()))}): free some, or set S2V_WORK_DIR to a "
        "folder with more."
    )


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
