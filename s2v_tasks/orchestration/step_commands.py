"""Run a step or another `s2v` command as a child process: command line, log, result, failure.

The command lines are equal in a worker and in a pod. A child never outlives its task.
"""

import contextlib
import errno
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from s2v_tasks.errors import ERROR_FILE_VARIABLE, PermanentError
from s2v_tasks.orchestration.retry_policy import Fault, fault_of
from s2v_tasks.parent_death import end_with_parent
from s2v_tasks.schemas.job import job_id_of_run
from s2v_tasks.schemas.steps import CLIP_WAIT_TASK, CLOSE_JOB, RECORD_FAILURE, STAGE_INPUTS, Step
from s2v_tasks.scratch import scratch_folder
from s2v_tasks.settings import load_settings

CLI = ("-m", "s2v_tasks.cli")
_TASK_NAME = re.compile(r"(?P<task>.+?)(_(?P<map_index>\d+))?")  # a mapped task as Airflow lists it: clip.render_3
# A render ends at its next forward (of an H100 at 14B: 5 to 20 s), saves its state and uploads it before it ends.
TERMINATION_GRACE_SECONDS = 90.0
_POLL_SECONDS = 0.5


def step_arguments(step: Step, context: Mapping[str, Any], clip: Mapping[str, Any] | None = None) -> list[str]:
    """Return the arguments of the Python interpreter that run `step` for the job of a task.

    `clip` selects the clips of the plan that the task renders: `count` from `clip_index` on.
    """
    arguments = [*_launcher(step), *CLI, step.command, "--job-id", job_id_of(context)]
    if step == STAGE_INPUTS:
        arguments += ["--run-id", context["run_id"], "--request-json", json.dumps(request_of(context))]
    if step == CLOSE_JOB:
        since = context["dag_run"].start_date.strftime("%Y-%m-%dT%H:%M:%S%z")
        arguments += ["--since", since, "--run-id", context["run_id"]]
    return arguments + _clip_options(clip)


def _clip_options(clip: Mapping[str, Any] | None) -> list[str]:
    return [] if clip is None else ["--clip-index", str(clip["clip_index"]), "--count", str(clip["count"])]


def job_id_of(context: Mapping[str, Any]) -> str:
    """Return the job of a task's run."""
    return job_id_of_run(context["run_id"], context["params"].get("job_id"))


def request_of(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a task's run: its params without the job id."""
    return {name: value for name, value in context["params"].items() if name != "job_id"}


def num_processes(step: Step) -> int:
    """Return the number of processes of `step`, each with a GPU if there are any."""
    return load_settings().nproc_per_node if step.is_distributed else 1


def in_dag_test() -> bool:
    """Return True if this task runs in the process of `dag.test()`, which has no scheduler and no triggerer."""
    # Only dag.test() has a supervisor in the process of its task. Imported here, because a parse of the DAG does not
    # need it.
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    return isinstance(getattr(task_runner, "SUPERVISOR_COMMS", None), InProcessSupervisorComms)


def _launcher(step: Step) -> list[str]:
    """Return the arguments of torchrun for several processes. One process starts faster without it."""
    processes = num_processes(step)
    if processes == 1:
        return []
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*torchrun, "--shutdown-timeout", str(int(TERMINATION_GRACE_SECONDS) - 10)]


class StepFailedError(Exception):
    """A step ended without success."""

    def __init__(self, exit_code: int, message: str, *, reported_by_step: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        self.reported_by_step = reported_by_step  # then the reason is stored already

    @property
    def fault(self) -> Fault:
        """Return the fault, which decides about retries."""
        return fault_of(self.exit_code)


def reported_failure(text: str) -> StepFailedError | None:
    """Return the failure reported by the step (`errors.leave_error`); None if it ended without a report."""
    try:
        record = json.loads(text)
        exit_code, message = int(record["exit_code"]), str(record["message"])
        return StepFailedError(exit_code, message, reported_by_step=bool(record.get("is_recorded", True)))
    except (ValueError, KeyError, TypeError):
        return None


class StepProcess:
    """One run of a step's command.

    The child and its descendants have the path of the error file in their environment. They are found by it, because
    torchrun puts its workers into separate sessions, which a signal to the process group does not reach.
    """

    def __init__(self, command: Sequence[str], log_line: Callable[[str], None]) -> None:
        self._command = list(command)
        self._log_line = log_line
        self._process: subprocess.Popen[bytes] | None = None
        self._error_file = Path()
        self._last_line = ""

    def run(self) -> dict[str, Any]:
        """Run to the end and return the JSON object on the last line of stdout; StepFailedError if it fails."""
        with scratch_folder(None, "task") as folder, (folder / "stdout").open("w+b") as stdout:
            self._error_file = folder / "error.json"
            self._process = self._started(stdout)
            try:
                self._stream_log(self._process)
                return_code = self._process.wait()
            finally:
                self.terminate()
            if return_code != 0:
                raise self._failure(return_code)
            stdout.seek(0)
            return self._result(stdout.read().decode())

    def _started(self, stdout: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                # torchrun never deletes its folder for logs (`--log-dir`), so it is made inside of ours.
                env=step_environment(self._error_file) | {"PET_LOG_DIR": str(self._error_file.parent)},
                start_new_session=True,
                # If the task's process is killed, the step saves its state and ends.
                preexec_fn=partial(end_with_parent, signal.SIGTERM, os.getpid()),
            )
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            longest = max(len(os.fsencode(argument)) for argument in self._command)
            raise StepFailedError(
                PermanentError.exit_code,
                f"An argument of the step has {longest} bytes: expected at most 128 KiB. Shorten the request.",
                reported_by_step=True,  # not stored: the first step did not run, so the job may belong to another run
            ) from None

    def terminate(self) -> None:
        """End the child and all its descendants: by SIGTERM, and by SIGKILL after the grace period."""
        if self._process is None:
            return
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERMINATION_GRACE_SECONDS)
        for pid in _marked_processes(f"{ERROR_FILE_VARIABLE}={self._error_file}".encode()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _stream_log(self, process: subprocess.Popen[bytes]) -> None:
        """Forward stderr line by line until the child ends, even if an orphan process keeps the pipe open."""
        assert process.stderr is not None  # noqa: S101 - opened as a pipe above
        descriptor, pending, ended_at = process.stderr.fileno(), b"", None
        with selectors.DefaultSelector() as selector, process.stderr:
            selector.register(descriptor, selectors.EVENT_READ)
            while ended_at is None or time.monotonic() - ended_at < _POLL_SECONDS:
                if selector.select(_POLL_SECONDS):
                    chunk = os.read(descriptor, 65536)
                    if not chunk:
                        break
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        self._pass_on(line)
                if ended_at is None and process.poll() is not None:
                    ended_at = time.monotonic()
            self._pass_on(pending)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._last_line = text
            self._log_line(text)

    def _failure(self, return_code: int) -> StepFailedError:
        """Return the failure reported by the step, which torchrun hides behind its exit code 1."""
        if self._error_file.exists() and (failure := reported_failure(self._error_file.read_text())):
            return failure
        if return_code < 0:
            return StepFailedError(return_code, f"The step was killed by {signal.Signals(-return_code).name}.")
        return StepFailedError(return_code, f"The step exited with code {return_code}: {self._last_line or 'no log'}")

    def _result(self, stdout: str) -> dict[str, Any]:
        lines = stdout.strip().splitlines()
        try:
            result = json.loads(lines[-1])
        except (IndexError, ValueError):
            result = None
        if not isinstance(result, dict):
            last = lines[-1] if lines else ""
            raise StepFailedError(1, f"The step succeeded but printed {last!r} instead of its JSON result.")
        return result


def step_environment(error_file: Path) -> dict[str, str]:
    """Return the environment of a command: without Airflow's configuration, which holds secrets of its database."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW__", "_AIRFLOW"))}
    return inherited | {ERROR_FILE_VARIABLE: str(error_file)}


def _marked_processes(mark: bytes) -> list[int]:
    """Return the processes whose environment has the variable `mark` (NAME=value)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # the process ended or belongs to another user
            continue
    return found


def record_failure(
    step: Step,
    context: Mapping[str, Any],
    clip: Mapping[str, Any] | None,
    reason: str,
    log_line: Callable[[str], None],
) -> None:
    """Write `reason` to the metadata store in place of the step. If that fails, log it."""
    command = [sys.executable, *CLI, RECORD_FAILURE.command, "--job-id", job_id_of(context)]
    command += ["--step", step.command, *_clip_options(clip), "--reason", reason]
    try:
        StepProcess(command, log_line).run()
    except StepFailedError as failure:
        log_line(f"The reason could not be stored: {failure.message}")


def first_failed_task(dag_id: str, run_id: str) -> str | None:
    """Return the task of a run that failed first, such as `clip.render[3]`; None if none has failed.

    Waits come last: they also fail if the previous clip failed.
    """
    # Imported here, because it loads many libraries and a parse of the DAG does not need it.
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
    failed = []
    for name, state in states.items():
        if state == "failed" and (parts := _TASK_NAME.fullmatch(name)):
            failed.append((parts["task"] == CLIP_WAIT_TASK, int(parts["map_index"] or -1), parts["task"]))
    if not failed:
        return None
    _, map_index, task = min(failed)
    return task if map_index < 0 else f"{task}[{map_index}]"
