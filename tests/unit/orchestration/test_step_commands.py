"""Check the process of a step: its result, its failure, and the end of its child processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from s2v_tasks.orchestration.step_commands import StepFailedError, StepProcess


def run_script(script: str, log: list[str] | None = None) -> dict[str, object]:
    lines: list[str] = [] if log is None else log
    return StepProcess([sys.executable, "-c", script], lines.append).run()


def wait_until(condition: object, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        threading.Event().wait(0.02)
    return False


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def failure_of(script: str) -> StepFailedError:
    with pytest.raises(StepFailedError) as caught:
        run_script(script)
    return caught.value


WRITE_ERROR = (
    "import json, os, sys; "
    "error = {{'exit_code': {code}, 'message': 'size 9*9: expected 480*832.'}}; "
    "json.dump(error, open(os.environ['STEP_ERROR_FILE'], 'w')); "
    "sys.exit({exit})"
)
# A stand-in for torchrun: a worker in a session of its own that holds the pipe of the log open.
ORPHANING = (
    "import subprocess, sys, os, signal; "
    "worker = subprocess.Popen([sys.executable, '-c', 'import threading; threading.Event().wait(60)'],"
    " start_new_session=True); "
    "print('worker', worker.pid, file=sys.stderr, flush=True); "
)


def test_the_last_line_of_stdout_is_the_result_and_stderr_is_the_log() -> None:
    """Other output before the result is ignored, and log lines arrive complete and in order."""
    log: list[str] = []
    result = run_script(
        "import sys; print('hello'); print('a\\nb', file=sys.stderr); print('{\"job_id\": \"j\"}')", log
    )
    assert result == {"job_id": "j"}
    assert log == ["a", "b"]


def test_all_that_a_step_leaves_in_its_folder_is_deleted() -> None:
    """The folder has the file of the error and the logs of torchrun; it is gone when the step has ended."""
    result = run_script(
        "import json, os; print(json.dumps({name: os.environ[name] for name in ('PET_LOG_DIR', 'STEP_ERROR_FILE')}))"
    )
    assert Path(result["STEP_ERROR_FILE"]).parent == Path(result["PET_LOG_DIR"])
    assert not Path(result["PET_LOG_DIR"]).exists()


def test_a_step_without_result_is_a_failure() -> None:
    """A step that exits with 0 but prints no JSON object has failed."""
    assert "instead of its JSON result" in failure_of("print('done')").message


@pytest.mark.parametrize(
    ("code", "fault"), [(65, "permanent"), (78, "permanent"), (2, "permanent"), (75, "environment"), (1, "step")]
)
def test_exit_codes_decide_whether_a_retry_makes_sense(code: int, fault: str) -> None:
    """Bad input, bad configuration and wrong usage are permanent; other codes are retried."""
    failure = failure_of(f"import sys; print('why', file=sys.stderr); sys.exit({code})")
    assert (failure.exit_code, failure.fault) == (code, fault)
    assert "why" in failure.message


def test_the_error_file_replaces_the_exit_code_of_torchrun() -> None:
    """Exit code and message of the worker have precedence over the launcher's exit code 1."""
    failure = failure_of(WRITE_ERROR.format(code=65, exit=1))
    assert (failure.exit_code, str(failure)) == (65, "size 9*9: expected 480*832.")


def test_a_request_that_no_command_line_can_hold_is_final() -> None:
    """A task with such a request is not tried again, and its reason names the length of the argument."""
    with pytest.raises(StepFailedError, match=r"has 200000 bytes.*Shorten the request") as failed:
        StepProcess([sys.executable, "-c", "pass", "x" * 200_000], print).run()
    assert (failed.value.fault, failed.value.reported_by_step) == ("permanent", True)


def test_a_killed_step_is_retried() -> None:
    """SIGKILL, as sent by the kernel when memory is short, is no permanent failure."""
    failure = failure_of("import os; os.kill(os.getpid(), 9)")
    assert failure.fault == "step"
    assert "SIGKILL" in failure.message


def test_workers_of_a_killed_launcher_do_not_survive() -> None:
    """The workers of a killed torchrun are ended at once."""
    log: list[str] = []
    with pytest.raises(StepFailedError, match="SIGKILL"):
        run_script(ORPHANING + "os.kill(os.getpid(), signal.SIGKILL)", log)
    assert wait_until(lambda: not is_alive(int(log[0].split()[1])))


def test_terminate_ends_a_running_step_with_its_workers() -> None:
    """A cancelled task ends the step and all sessions that it has opened."""
    log: list[str] = []
    process = StepProcess([sys.executable, "-c", ORPHANING + "worker.wait()"], log.append)
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            process.run()
        except StepFailedError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_until(lambda: bool(log))
    process.terminate()
    thread.join(20)
    assert "SIGTERM" in str(outcome[0])
    assert wait_until(lambda: not is_alive(int(log[0].split()[1])))


@pytest.mark.skipif(sys.platform != "linux", reason="parent death signals are Linux's")
def test_a_step_ends_when_its_task_process_is_killed() -> None:
    """A step ends if SIGKILL ends its Airflow worker."""
    step = "import os, sys, threading; print(os.getpid(), file=sys.stderr, flush=True); threading.Event().wait(60)"
    task = (
        "import sys; from s2v_tasks.orchestration.step_commands import StepProcess; "
        f"StepProcess([sys.executable, '-c', {step!r}], lambda line: print(line, flush=True)).run()"
    )
    parent = subprocess.Popen([sys.executable, "-c", task], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    step_pid = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not is_alive(step_pid))


def test_a_step_sees_nothing_of_airflows_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step gets no variable of Airflow, which may hold the password of its database."""
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://secret")
    assert run_script("import os, json; print(json.dumps({'seen': [k for k in os.environ if 'AIRFLOW__' in k]}))") == {
        "seen": []
    }
