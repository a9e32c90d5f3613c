"""The plan and the cost of a new job before it is started: the command `s2v plan` on its input files."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.orchestration.step_commands import CLI, reported_failure, step_environment
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import NOT_PLANNING
from s2v_tasks.scratch import scratch_folder
from s2v_tasks.storage.inputs import plain_name
from s2v_tasks.web.pages import duration, money
from s2v_tasks.web.services import Services
from s2v_tasks.web.wording import with_labels

_TIMEOUT_SECONDS = 180.0
_WAIT_SECONDS = 20.0
# Each decodes a picture and speech: hundreds of MB.
_running = threading.BoundedSemaphore(2)
# Running and waiting ones: each holds one of the 40 threads of Airflow's API server, which heartbeats of tasks need.
_admitted = threading.BoundedSemaphore(8)


class PlanSummary(BaseModel):
    """The plan as the form shows it. `problem`: the reason for which such a job would be refused."""

    model_config = ConfigDict(frozen=True)

    num_clip: int
    duration: str
    size: str
    gpu_time: str
    cost: str
    warnings: tuple[str, ...]
    problem: str | None = None


def estimate(services: Services, request: Request) -> PlanSummary:
    """Return the plan that the request would get; PermanentError when an input is refused."""
    with (
        _permitted(_admitted, 0),
        _permitted(_running, _WAIT_SECONDS),
        scratch_folder(services.settings.work_dir, "estimate") as folder,
    ):
        return _estimate(services, request, folder)


@contextmanager
def _permitted(limit: threading.BoundedSemaphore, seconds: float) -> Iterator[None]:
    """Hold a place within the limit; TransientError if none becomes free in time."""
    if not limit.acquire(timeout=seconds):
        raise TransientError("Other plans are being made: try again in some seconds.")
    try:
        yield
    finally:
        limit.release()


def _estimate(services: Services, request: Request, folder: Path) -> PlanSummary:
    limit = services.settings.max_input_bytes
    files: list[Path] = []
    for uri in (request.image_uri, request.audio_uri):  # errors of `s2v plan` name these files
        path = folder / str(len(files)) / plain_name(uri.rpartition("/")[2])
        path.parent.mkdir()
        files.append(services.store.fetch_uri(uri, path, limit))
    image, audio = files
    error_file = folder / "error.json"
    command = [sys.executable, *CLI, "plan", f"--image={image}", f"--audio={audio}", "--json"]
    command += _options(request)
    try:
        done = subprocess.run(
            command,
            env=step_environment(error_file),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TransientError(f"The plan was not made within {_TIMEOUT_SECONDS:.0f} s: try again.") from None
    failure = reported_failure(error_file.read_text()) if error_file.exists() else None
    problem = failure.message if failure else None
    if not done.stdout:
        raise PermanentError(problem or f"`s2v plan` ended with exit code {done.returncode}: see the log of Airflow.")
    return _summary(Plan.model_validate_json(done.stdout), problem)


def _options(request: Request) -> list[str]:
    """Return the options of `s2v plan` for all given fields that change the plan."""
    options: list[str] = []
    for name, value in request.model_dump(exclude_defaults=True).items():
        option = f"--{name.replace('_', '-')}"
        if name in NOT_PLANNING:
            continue
        if name == "adapters":
            options += [f"--adapter={item['name']}={item['strength']}" for item in value] or ["--adapter=none"]
        elif name == "guide_steps":
            options.append(f"{option}={value[0]}:{value[1]}")
        else:
            options.append(option if value is True else f"{option}={value}")
    return options


def _summary(plan: Plan, problem: str | None) -> PlanSummary:
    return PlanSummary(
        num_clip=plan.num_clip,
        duration=duration(float(plan.duration_seconds)),
        size=f"{plan.width} × {plan.height}",
        gpu_time=f"{duration(plan.estimate.gpu_seconds)} on {plan.estimate.gpu}",
        cost=money(plan.estimate.cost, plan.estimate.currency),
        warnings=tuple(map(with_labels, plan.warnings)),
        problem=None if problem is None else with_labels(problem),
    )
