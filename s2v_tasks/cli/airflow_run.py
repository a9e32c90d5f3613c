"""Runs of jobs that are not on record yet, as Airflow knows them: waiting, or ended before their first step."""

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
            f"Run {self.run_id} of job {self.job_id} is {self.state} in Airflow, and no step of it is on record: see "
            "the log of its first task there."
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
    """Tells, on stderr, what a job waits for whenever that is something new."""

    def __init__(self, find: Callable[[], AwaitedRun | None]) -> None:
        self._find = find
        self._told = ""
        self.run: AwaitedRun | None = None

    def ask(self) -> None:
        """Ask Airflow; one that does not answer is told, too, and asked again the next time."""
        try:
            self.run = self._find()
        except TransientError as error:
            self.run = None
            self._tell(str(error))

    def tell(self, job: Job | None) -> None:
        """Tell of the run, which was asked for before `job` was looked up; raise when the job never begins."""
        if self.run is not None:
            self.run.check_begins(job)
            self._tell(self.run.sentence)

    def _tell(self, sentence: str) -> None:
        if sentence != self._told:
            typer.echo(sentence, err=True)
        self._told = sentence
