"""Runs in Airflow whose jobs have not begun: they are not in the database, or there with an earlier end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from s2v_tasks.cli.airflow_api import HOW_TO_UNPAUSE, AirflowApi
from s2v_tasks.errors import JobTakenError, TransientError
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import RestartableStatus, job_id_of_run
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.metadata.tables import Job

_ENDED = ("failed", "success")


@dataclass(frozen=True)
class AwaitedRun:
    """The run of a job; `state` in Airflow's words."""

    job_id: str
    run_id: str
    state: str
    dag_is_paused: bool

    @property
    def sentence(self) -> str:
        """Return the state of the waiting run in one sentence."""
        text = f"Job {self.job_id} waits for the first step of its run {self.run_id}, which is {self.state}"
        return f"{text}, and {HOW_TO_UNPAUSE}." if self.dag_is_paused else f"{text} in Airflow."

    def check_begins(self, job: "Job | None" = None) -> None:
        """Raise if the run has ended before the job was read: the job will not begin.

        JobTakenError if the job belongs to another request, else TransientError.
        """
        if self.state not in _ENDED:
            return
        for event in job.events if job else ():
            if event.event == JobEvent.REQUEST_REFUSED and event.detail["dag_run_id"] == self.run_id:
                raise JobTakenError(event.detail["error"])
        raise TransientError(
            f"Run {self.run_id} of job {self.job_id} is {self.state} in Airflow before its first step: see the log of "
            "its first task in Airflow."
        )


def find_run(job_id: str, run_id: str | None = None) -> AwaitedRun | None:
    """Return the run `run_id` of a job, else its newest active run, else the run named after it, else None."""
    settings = load_settings()
    if settings.airflow_url is None:
        return None
    api = AirflowApi.from_settings(settings)
    if run_id is None:
        active = (run for run in api.active_runs() if job_of_run(run) == job_id)
        run = next(active, None) or api.run(job_id)
    else:
        run = api.run(run_id)
    return None if run is None else AwaitedRun(job_id, str(run["dag_run_id"]), str(run["state"]), api.is_paused())


def new_start_of(job: "Job") -> AwaitedRun | None:
    """Return the run that will start a job again that has ended; None if there is none, or no address of Airflow."""
    settings = load_settings()
    if settings.airflow_url is None or job.status not in list(RestartableStatus):
        return None
    api = AirflowApi.from_settings(settings)
    run = next(runs_to_come(api, job.job_id, job.dag_run_id), None)
    return None if run is None else AwaitedRun(job.job_id, str(run["dag_run_id"]), str(run["state"]), api.is_paused())


def runs_to_come(api: AirflowApi, job_id: str, ended_run: str | None) -> Iterator[dict[str, Any]]:
    """Yield the active runs of a job that has ended with the run `ended_run`.

    The last task of that run may still work, so the run counts only if it is queued again.
    """
    for run in api.active_runs():
        if job_of_run(run) == job_id and (run["dag_run_id"] != ended_run or run["state"] == "queued"):
            yield run


def job_of_run(run: dict[str, Any]) -> str:
    """Return the job of a run of the DAG."""
    return job_id_of_run(run["dag_run_id"], (run["conf"] or {}).get("job_id"))


class Waiting:
    """Prints to stderr the reason for which a job waits, whenever it changes."""

    def __init__(self, find: Callable[[], AwaitedRun | None]) -> None:
        self._find = find
        self._printed = ""
        self.run: AwaitedRun | None = None
        self.is_answered = False

    def ask(self) -> None:
        """Get the run from Airflow; if Airflow does not answer, report it and try again at the next call."""
        try:
            self.run, self.is_answered = self._find(), True
        except TransientError as error:
            self.run, self.is_answered = None, False
            self._print(str(error))

    def report(self, job: "Job | None") -> None:
        """Print the state of the run, found before `job` was read; raise if the job never starts."""
        if self.run is not None:
            self.run.check_begins(job)
            self._print(self.run.sentence)

    def _print(self, sentence: str) -> None:
        if sentence != self._printed:
            typer.echo(sentence, err=True)
        self._printed = sentence
