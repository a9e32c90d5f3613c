"""Runs in Airflow whose jobs the database does not have yet: waiting, or ended before their first step."""

from collections.abc import Callable
from dataclasses import dataclass

import typer

from s2v_tasks.cli.airflow_api import AirflowApi
from s2v_tasks.errors import JobTakenError, TransientError
from s2v_tasks.metadata.tables import Job
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.steps import JOB_DAG
from s2v_tasks.settings import load_settings

HOW_TO_UNPAUSE = (
    f"the DAG {JOB_DAG} is paused in Airflow, where new DAGs begin paused: nothing starts until it is unpaused, by its "
    "switch in the UI or by `--unpause` of `s2v submit`"
)
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
        """Return what the run waits for."""
        text = f"Job {self.job_id} has not begun: its run {self.run_id} is {self.state}"
        return f"{text}, and {HOW_TO_UNPAUSE}." if self.dag_is_paused else f"{text} in Airflow."

    def check_begins(self, job: Job | None = None) -> None:
        """Raise when the run has ended, so that the job, which was looked up later, never begins.

        JobTakenError where another request has the job, else TransientError.
        """
        if self.state not in _ENDED:
            return
        for event in job.events if job else ():
            if event.event == JobEvent.REQUEST_REFUSED and event.detail["dag_run_id"] == self.run_id:
                raise JobTakenError(event.detail["error"])
        raise TransientError(
            f"Run {self.run_id} of job {self.job_id} is {self.state} in Airflow before its first step: see the "
            "log of its first task there."
        )


def find_run(job_id: str, run_id: str | None = None) -> AwaitedRun | None:
    """The run `run_id` of a job, else its newest that has not ended, else the one of its name; None: there is none."""
    from s2v_tasks.cli.cancel import job_of_run

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


class Waiting:
    """Prints to stderr what a job waits for, whenever that changes."""

    def __init__(self, find: Callable[[], AwaitedRun | None]) -> None:
        self._find = find
        self._printed = ""
        self.run: AwaitedRun | None = None

    def ask(self) -> None:
        """Ask Airflow for the run; an Airflow that does not answer is reported and asked again the next time."""
        try:
            self.run = self._find()
        except TransientError as error:
            self.run = None
            self._print(str(error))

    def report(self, job: Job | None) -> None:
        """Print the state of the run, found before `job` was read; raise if the job never starts."""
        if self.run is not None:
            self.run.check_begins(job)
            self._print(self.run.sentence)

    def _print(self, sentence: str) -> None:
        if sentence != self._printed:
            typer.echo(sentence, err=True)
        self._printed = sentence
