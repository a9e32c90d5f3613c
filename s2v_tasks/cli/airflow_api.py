"""Airflow's REST API: runs of the DAG that makes videos, their tasks and their questions."""

import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.schemas.steps import JOB_DAG
from s2v_tasks.settings import Settings
from s2v_tasks.stack_env import embedded_remedy

_DAG_PATH = f"/api/v2/dags/{JOB_DAG}"
_TIMEOUT_SECONDS = 30.0
_PAGE = 100
HOW_TO_UNPAUSE = (
    f"the DAG {JOB_DAG} is paused in Airflow, as all new DAGs are: no run starts. Unpause it in the UI or with "
    "`--unpause` of `s2v submit`"
)
_NOT_VALID = "Invalid JWT token"  # detail of Airflow's 403 for a token that is no login any more
# Answers below 500 that a proxy in front of Airflow may give.
_OF_PROXIES = {
    HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS
}  # fmt: skip


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Lets a redirect be an answer: urllib would send a POST again as a GET, which starts nothing."""

    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect."""


class AirflowApi:
    """Client of one API server. It connects at the first call."""

    def __init__(self, url: str, user: str | None = None, password: str | None = None, token: str | None = None):
        self.url = url.rstrip("/")
        self._account = {"username": user, "password": password} if user and not token else None
        self._token = token
        loopback = urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
        proxy = [urllib.request.ProxyHandler({})] if loopback else []
        self._opener = urllib.request.build_opener(_NoRedirects, *proxy)

    @classmethod
    def from_settings(cls, settings: Settings) -> "AirflowApi":
        """Return the API server of this installation; ConfigurationError if none is configured."""
        if settings.airflow_url is None:
            raise ConfigurationError(
                "S2V_AIRFLOW_URL is not set: expected the address of Airflow's API server, such as "
                f"https://airflow.example.org.{embedded_remedy()}"
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
            status, data = self._exchange(request)
        except http.client.InvalidURL as error:
            raise ConfigurationError(f"S2V_AIRFLOW_URL is not a URL: {error}. Correct the setting.") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        answer = self._object(status, data)
        return (status, answer) if status < 300 else self._refused(f"{method} {path.partition('?')[0]}", status, answer)

    def _exchange(self, request: urllib.request.Request) -> tuple[int, bytes]:
        """Send a request and return status and body of any answer; ConfigurationError for a redirect."""
        try:
            answer = self._opener.open(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as refusal:
            answer = refusal
        with answer:
            if target := answer.headers.get("Location") if 300 <= answer.status < 400 else None:
                raise ConfigurationError(
                    f"S2V_AIRFLOW_URL {self.url} redirects to {target}: expected the API server of Airflow itself. Set "
                    "it to the address to which browsers are redirected, with https:// if it is that."
                )
            return answer.status, answer.read()

    def _unreachable(self, error: Exception) -> ConfigurationError | TransientError:
        """Return the error for a server that gives no answer, or only a part of it."""
        if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
            return ConfigurationError(
                f"The certificate of Airflow at {self.url} cannot be verified ({error}): for a certificate of your own "
                "authority, set SSL_CERT_FILE to the file with the certificate of the authority; S2V_AIRFLOW_URL must "
                "have a host name of the certificate."
            )
        return TransientError(
            f"Airflow at {self.url} does not answer ({error}): check that it runs (`s2v up` starts the embedded "
            "one) and that S2V_AIRFLOW_URL names it."
        )

    def _refused(self, call: str, status: int, answer: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        reason = answer.get("detail", "no reason given")
        if status == 401 or reason == _NOT_VALID:
            remedy = (
                "set S2V_AIRFLOW_TOKEN to a new token (Generate Token in the user menu of Airflow)"
                if self._account is None
                else "check S2V_AIRFLOW_USER and S2V_AIRFLOW_PASSWORD; an account of an OAuth provider has no password "
                "here and needs S2V_AIRFLOW_TOKEN"
            )
            raise ConfigurationError(
                f"Airflow at {self.url} refuses the login ({status} {reason}): {remedy}. Check S2V_AIRFLOW_URL, too."
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
        title = re.search("<title>(.+?)</title>", text)
        if status not in _OF_PROXIES and (status < 500 or status == HTTPStatus.NOT_IMPLEMENTED):
            raise ConfigurationError(
                f"S2V_AIRFLOW_URL {self.url} is not the API server of Airflow: it answers {status} {text[:60]!r}; "
                "expected JSON. Correct the setting (`make up` sets it for the embedded Airflow)."
            )
        return {"detail": title[1] if title else text}
