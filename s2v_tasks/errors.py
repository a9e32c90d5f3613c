"""The errors of the system and the process exit codes they become.

Every message names the offending value, what was expected and the remedy.
"""


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
