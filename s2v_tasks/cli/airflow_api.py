"""Airflow's REST API: runs of the DAG that makes videos, including runs whose jobs are not in the database yet."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

import typer

from s2v_tasks.errors import ConfigurationError, JobTakenError, PermanentError, TransientError
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import RestartableStatus, job_id_of_run
from s2v_tasks.schemas.steps import JOB_DAG
from s2v_tasks.settings import Settings, load_settings

if TYPE_CHECKING:
    from s2v_tasks.metadata.tables import Job

_DAG_PATH = f"/api/v2/dags/{JOB_DAG}"
_TIMEOUT_SECONDS = 30.0
_PAGE = 100
HOW_TO_UNPAUSE = (
    f"the DAG {JOB_DAG} is paused in Airflow, as all new DAGs are: no run starts. Unpause it in the UI or with "
    "`--unpause` of `s2v submit`"
)
_ENDED = ("failed", "success")
_NOT_VALID = "Invalid JWT token"  # detail of Airflow's 403 for a token that is no login any more
# Answers below 500 that a proxy in front of Airflow may give.
_OF_PROXIES = {
    HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS
}  # fmt: skip


class AirflowApi:
    """Client of one API server. It connects at the first call."""

    def __init__(self, url: str, user: str | None = None, password: str | None = None, token: str | None = None):
        self.url = url.rstrip("/")
        self._account = {"username": user, "password": password} if user else None
        self._token = token
        loopback = urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if loopback else []))

    @classmethod
    def from_settings(cls, settings: Settings) -> "AirflowApi":
        """Return the API server of this installation; ConfigurationError if none is configured."""
        if settings.airflow_url is None:
            raise ConfigurationError(
                "S2V_AIRFLOW_URL is not set: expected the address of Airflow's API server, such as "
                "https://airflow.example.org (`make up` starts an embedded one and sets it)."
            )
        password, token = settings.airflow_password, settings.airflow_token
        return cls(
            settings.airflow_url,
            settings.airflow_user,
            password.get_secret_value() if password else None,
            token.get_secret_value() if token else None,
        )

    def run(self, run_id: str) -> dict[str, Any] | None:
        """Return a run with its state and configuration; None if there is no run of this id."""
        status, answer = self._call("GET", self._path(run_id))
        return None if status == 404 else answer

    def trigger(self, run_id: str, conf: dict[str, Any]) -> bool:
        """Start a run; return False if a run with this id exists. PermanentError if Airflow refuses the fields."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        status, answer = self._call("POST", self._path(), body)
        if status == 404:
            raise ConfigurationError(
                f"Airflow at {self.url} has no DAG {JOB_DAG!r}: set its DAGs folder to dags/ of this project, or "
                "correct the error that `airflow dags list-import-errors` shows."
            )
        if status in {400, 422}:
            sentence = str(answer.get("detail", answer)).partition("\n")[0]  # without the schema that Airflow adds
            raise PermanentError(f"Airflow refuses the request: {sentence}")
        return status != 409

    def is_paused(self) -> bool:
        """Return True if the DAG is paused, so that its runs wait."""
        return bool(self._call("GET", _DAG_PATH)[1].get("is_paused"))

    def unpause(self) -> None:
        """Let Airflow start runs of the DAG."""
        self._call("PATCH", f"{_DAG_PATH}?update_mask=is_paused", {"is_paused": False})

    def active_runs(self) -> Iterator[dict[str, Any]]:
        """Yield the runs that have not ended, newest first."""
        return self._list(self._path(), "dag_runs", state=["queued", "running"], order_by="-id")

    def task_instances(self, run_id: str) -> list[dict[str, Any]]:
        """Return the tasks of a run in their latest try; a mapped task has one entry for each of its values."""
        return list(self._list(f"{self._path(run_id)}/taskInstances", "task_instances"))

    def open_questions(self, run_id: str) -> list[dict[str, Any]]:
        """Return the tasks of a run that wait for the answer of a person, with the questions."""
        waiting = {"response_received": "false", "state": "awaiting_input"}
        return list(self._list(f"{self._path(run_id)}/hitlDetails", "hitl_details", **waiting))

    def answer(self, question: dict[str, Any], option: str, fields: dict[str, Any]) -> bool:
        """Answer one of `open_questions`; return False if it was answered before."""
        task = question["task_instance"]
        path = f"{self._path(task['dag_run_id'])}/taskInstances/{quote(task['task_id'], safe='')}/{task['map_index']}"
        body = {"chosen_options": [option], "params_input": fields}
        status, answer = self._call("PATCH", f"{path}/hitlDetails", body)
        if status in {400, 422}:
            raise PermanentError(f"Airflow does not accept the approval or rejection: {answer.get('detail', answer)}")
        return status == 200

    def fail(self, run_id: str) -> None:
        """End a run: running tasks get a signal, other tasks are skipped, teardowns still run."""
        self._call("PATCH", self._path(run_id), {"state": "failed"})

    def _path(self, run_id: str | None = None) -> str:
        runs = f"{_DAG_PATH}/dagRuns"
        return runs if run_id is None else f"{runs}/{quote(run_id, safe='')}"

    def _list(self, path: str, name: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the entries of a list, which come page by page under `name`."""
        offset, total = 0, 1
        while offset < total:
            _, page = self._call("GET", f"{path}?{urlencode(query | {'limit': _PAGE, 'offset': offset}, doseq=True)}")
            if not (entries := page.get(name)):
                return
            yield from entries
            offset, total = offset + len(entries), page.get("total_entries", 0)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Return status and JSON of an expected answer; raise an error for every other answer."""
        if self._token is None and self._account:
            self._token = str(self._send("POST", "/auth/token", self._account)[1].get("access_token", ""))
        return self._send(method, path, body)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(  # noqa: S310 - the setting begins with http
            self.url + path, method=method, headers=headers, data=None if body is None else json.dumps(body).encode()
        )
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                return answer.status, self._object(answer.status, answer.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                answer = self._object(refusal.code, refusal.read())
                return self._refused(f"{method} {path.partition('?')[0]}", refusal.code, answer)
        except OSError as error:
            raise TransientError(
                f"Airflow at {self.url} does not answer ({error}): check that it runs (`s2v up` starts the embedded "
                "one) and that S2V_AIRFLOW_URL names it."
            ) from error

    def _refused(self, call: str, status: int, answer: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        reason = answer.get("detail", "no reason given")
        if status == 401 or reason == _NOT_VALID:
            raise ConfigurationError(
                f"Airflow at {self.url} refuses the login ({status} {reason}): check S2V_AIRFLOW_USER and "
                "S2V_AIRFLOW_PASSWORD, or S2V_AIRFLOW_TOKEN, and S2V_AIRFLOW_URL."
            )
        if status == 403:
            account = f"the user {self._account['username']}" if self._account else "the account of S2V_AIRFLOW_TOKEN"
            raise ConfigurationError(
                f"Airflow at {self.url} does not permit {account} to {call} ({status} {reason}): ask its administrator "
                "for this permission, or use another account."
            )
        if status in {400, 404, 409, 422}:
            return status, answer
        raise TransientError(f"Airflow at {self.url} failed ({status}): {answer.get('detail', 'see its log')}")

    def _object(self, status: int, data: bytes) -> dict[str, Any]:
        """Return the JSON object of an answer; the page of a proxy becomes an object with its text as `detail`.

        ConfigurationError if the status shows that another server answered.
        """
        with suppress(ValueError):
            parsed = json.loads(data)
            if isinstance(parsed, dict):
                return parsed
        text = " ".join(data[:500].decode(errors="replace").split())
        if status not in _OF_PROXIES and (status < 500 or status == HTTPStatus.NOT_IMPLEMENTED):
            raise ConfigurationError(
                f"S2V_AIRFLOW_URL {self.url} is not the API server of Airflow: it answers {status} {text[:60]!r}; "
                "expected JSON. Correct the setting (`make up` sets it for the embedded Airflow)."
            )
        return {"detail": text}


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

    def ask(self) -> None:
        """Get the run from Airflow; if Airflow does not answer, report it and try again at the next call."""
        try:
            self.run = self._find()
        except TransientError as error:
            self.run = None
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
