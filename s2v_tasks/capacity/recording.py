"""Record the costs of each process of a benchmark: statements, requests to S3, moments of its start.

`s2v bench orchestration` puts a module `sitecustomize` on the PYTHONPATH of its own Airflow, and that calls `install`.
No other process loads this module. A step appends one JSON line to `steps.jsonl` when it ends, the scheduler one line
to `loops.jsonl` with each of its loops.

With `CLIP_SECONDS` set, a render waits for that time instead of running the networks, and encodes drawn frames. All
other parts of a step are real: planning, storage, fingerprints, attempts, video encoding, checks.
"""

import atexit
import fcntl
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

FOLDER, CLIP_SECONDS = "BENCH_FOLDER", "BENCH_CLIP_SECONDS"
SITE = "from s2v_tasks.capacity import recording\n\nrecording.install()\n"
_POLLING_THREADS = {"heartbeats", "cancellation"}
_CLI = "s2v_tasks.cli"


def install() -> None:
    """Record this process if it is a step or the scheduler of a benchmark."""
    if FOLDER not in os.environ:
        return
    arguments = sys.orig_argv
    if _CLI in arguments:
        command = arguments[arguments.index(_CLI) + 1 :]
        recorder = StepRecorder(Path(os.environ[FOLDER]) / "steps.jsonl", command)
        sys.meta_path.insert(0, _AfterImport(recorder.hooks()))
        atexit.register(recorder.write)
    elif "scheduler" in arguments:
        loops = Path(os.environ[FOLDER]) / "loops.jsonl"
        sys.meta_path.insert(0, _AfterImport({"airflow.jobs.scheduler_job_runner": lambda m: time_loops(m, loops)}))


class _AfterImport(MetaPathFinder):
    """Calls a function with each of the given modules as soon as it is imported."""

    def __init__(self, hooks: dict[str, Callable[[Any], None]]) -> None:
        self._hooks = hooks

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self._hooks:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        load, hook = spec.loader.exec_module, self._hooks[name]

        def load_and_call(module: Any) -> None:
            load(module)
            hook(module)

        spec.loader.exec_module = load_and_call  # type: ignore[method-assign]
        return spec


class StepRecorder:
    """Counts the work of one `s2v` command.

    `statements` and `requests` count the work. `polls` counts the statements of periodic threads. `moments`: name →
    seconds since the epoch.
    """

    def __init__(self, path: Path, command: list[str]) -> None:
        self._path, self._command = path, command
        self._lock = threading.Lock()
        self.moments: dict[str, float] = {"created": created_at(), "python": time.time()}
        self.statements: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.polls = 0

    def hooks(self) -> dict[str, Callable[[Any], None]]:
        """Return the function to call for each module when it is imported."""
        hooks = {
            "s2v_tasks.metadata.session": self._count_statements,
            "s2v_tasks.storage.client": self._count_requests,
            "s2v_tasks.runtime.attempts": self._mark_attempts,
            "s2v_tasks.rendering.leader": lambda _: self.mark("imported"),
            "s2v_tasks.rendering.progress": self._mark_steps,
        }
        if seconds := os.environ.get(CLIP_SECONDS):
            from s2v_tasks.capacity import stand_in

            hooks["s2v_tasks.rendering.renderer"] = lambda module: stand_in.replace_renderer(module, float(seconds))
            hooks["s2v_tasks.steps.encode_conditions"] = stand_in.replace_encoders
        return hooks

    def mark(self, name: str) -> None:
        """Keep the time of the first moment of this name."""
        self.moments.setdefault(name, time.time())

    def count_statement(self, sql: str) -> None:
        """Count one statement: by its first word, or as a poll."""
        with self._lock:
            if threading.current_thread().name in _POLLING_THREADS:
                self.polls += 1
            else:
                self.statements[sql.split(None, 1)[0].lower()] += 1

    def count_request(self, method: str, sent: int, received: int) -> None:
        """Count one request to S3 and the bytes of both bodies."""
        with self._lock:
            self.requests[method] += 1
            self.bytes.update(sent=sent, received=received)

    def write(self) -> None:
        """Append the record to the file of all steps."""
        self.mark("ended")
        record = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        append_line(self._path, {"command": self._command} | record)

    def _count_statements(self, module: Any) -> None:
        def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            self.count_statement(statement)

        module.sa.event.listen(module.sa.Engine, "after_cursor_execute", executed)

    def _count_requests(self, _module: Any) -> None:
        from botocore.httpsession import URLLib3Session

        send = URLLib3Session.send

        def counted(session: Any, request: Any) -> Any:
            answer = send(session, request)
            sent, received = (int(of.headers.get("Content-Length") or 0) for of in (request, answer))
            self.count_request(request.method, sent, received)
            return answer

        URLLib3Session.send = counted

    def _mark_attempts(self, module: Any) -> None:
        enter = module.Attempt.__enter__

        def marked(attempt: Any) -> Any:
            self.mark("attempt")
            return enter(attempt)

        module.Attempt.__enter__ = marked

    def _mark_steps(self, module: Any) -> None:
        report, begin = module.Progress.__call__, module.Progress.__init__

        def begun(progress: Any, *arguments: Any) -> None:
            self.mark("loaded")
            begin(progress, *arguments)

        def reported(progress: Any, step: int, num_steps: int) -> None:
            self.mark("first_step")
            report(progress, step, num_steps)

        module.Progress.__init__, module.Progress.__call__ = begun, reported


def time_loops(module: Any, path: Path) -> None:
    """Write the duration of each scheduler loop, and its CPU time, which does not depend on other processes."""
    runner = module.SchedulerJobRunner
    schedule = runner._do_scheduling

    def timed(self: Any, session: Any) -> int:
        began, cpu = time.time(), time.thread_time()
        try:
            return int(schedule(self, session))
        finally:
            spent = {"seconds": time.time() - began, "cpu_seconds": time.thread_time() - cpu}
            append_line(path, {"at": began} | spent)

    runner._do_scheduling = timed


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line to a file of several processes."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(record) + "\n")


def created_at() -> float:
    """Return the time at which this process was started, to a hundredth of a second."""
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - since_boot
