"""Check the client of the API of Airflow with answers from a server of this test."""

import json
import ssl
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.cli.airflow_api import AirflowApi
from s2v_tasks.embedded.process import free_ports
from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.settings import Settings


class Server(ThreadingHTTPServer):
    """Gives the next of `answers` to each request and stores the request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, str, str | None, Any]] = []
        self.cut_bytes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = json.loads(body) if body else None
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization"), said))
        status, content = self.server.answers.pop(0)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) + self.server.cut_bytes))
        if 300 <= status < 400:
            self.send_header("Location", f"https://airflow.example.org{self.path}")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, *_: Any) -> None:
        """Log nothing: the test reads `asked`."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_account_is_exchanged_for_a_token_once(server: Server) -> None:
    """Account and password are sent to the token endpoint only; every call has the token."""
    server.answers = [(201, {"access_token": "t0k"}), (200, {"state": "running"}), (404, {})]
    api = AirflowApi(server.url, "ann", "secret")
    assert api.run("a/b") == {"state": "running"}
    assert api.run("c") is None
    assert server.asked[0] == ("POST", "/auth/token", None, {"username": "ann", "password": "secret"})
    assert [(path, token) for _, path, token, _ in server.asked[1:]] == [
        ("/api/v2/dags/speech_to_video/dagRuns/a%2Fb", "Bearer t0k"),
        ("/api/v2/dags/speech_to_video/dagRuns/c", "Bearer t0k"),
    ]


def test_active_runs_are_read_page_by_page(server: Server) -> None:
    """All runs that have not ended are found on all pages."""
    pages = [[{"dag_run_id": f"r{n}"} for n in range(first, min(first + 100, 130))] for first in (0, 100)]
    server.answers = [(200, {"dag_runs": page, "total_entries": 130}) for page in pages]
    assert [run["dag_run_id"] for run in AirflowApi(server.url).active_runs()] == [f"r{n}" for n in range(130)]
    assert all("state=queued&state=running" in path for _, path, _, _ in server.asked)


def test_a_run_that_is_there_is_not_started_again(server: Server) -> None:
    """A 409 of Airflow means that the run exists, and is no error."""
    server.answers = [(200, {}), (409, {"detail": "there"})]
    api = AirflowApi(server.url)
    assert [api.trigger("r", {}), api.trigger("r", {})] == [True, False]


@pytest.mark.parametrize(
    ("status", "answer", "error", "words"),
    [
        (401, {"detail": "Token Expired"}, ConfigurationError, r"login \(401 Token Expired\): set S2V_AIRFLOW_TOKEN"),
        (403, {"detail": "Invalid JWT token"}, ConfigurationError, r"login \(403 Invalid .*: set S2V_AIRFLOW_TOKEN"),
        (403, {}, ConfigurationError, "not permit the account of S2V_AIRFLOW_TOKEN to POST .*: ask its administrator"),
        (404, {}, ConfigurationError, "no DAG 'speech_to_video': .* list-import-errors"),
        (400, {"detail": "size is bad\n\nFailed validating 'pattern' in schema: {}"}, PermanentError, "size is bad$"),
        (503, b"<html>busy</html>", TransientError, "503.*busy"),
        (502, b"<html><head><title>502 Bad Gateway</title>", TransientError, r"failed \(502\): 502 Bad Gateway$"),
    ],
)
def test_refusals_have_remedies(server: Server, status: int, answer: Any, error: type[Exception], words: str) -> None:
    """A wrong account, a missing DAG, bad fields and an error of the server have different messages."""
    server.answers = [(status, answer)]
    with pytest.raises(error, match=words):
        AirflowApi(server.url, token="t").trigger("r", {})


def test_a_refused_account_learns_which_accounts_have_no_password(server: Server) -> None:
    """The message names the token for a person who logs in through an OAuth provider and has no password here."""
    remedy = (
        "check S2V_AIRFLOW_USER and S2V_AIRFLOW_PASSWORD; an account of an OAuth provider .* needs S2V_AIRFLOW_TOKEN"
    )
    for answers in ([(401, {"detail": "Invalid credentials"})], [(201, {"access_token": "t0k"}), (401, {})]):
        server.answers = answers
        with pytest.raises(ConfigurationError, match=remedy):
            AirflowApi(server.url, "ann", "secret").run("r")


def test_a_missing_permission_names_the_user_and_the_call(server: Server) -> None:
    """A user who may log in but not start runs learns what to ask for, not to check the password."""
    server.answers = [(201, {"access_token": "t0k"}), (403, {"detail": "Forbidden"})]
    with pytest.raises(ConfigurationError) as refused:
        AirflowApi(server.url, "ann", "secret").active_runs().__next__()
    call = "GET /api/v2/dags/speech_to_video/dagRuns"
    assert f"does not permit the user ann to {call} (403 Forbidden): ask its administrator" in str(refused.value)
    assert "PASSWORD" not in str(refused.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_starts_nothing(server: Server, status: int) -> None:
    """A redirect of a proxy is named with its target; no POST is repeated as a GET, and no token is sent on."""
    target = r"redirects to https://airflow.example.org/api/v2/dags/speech_to_video.*: expected .* https://"
    for call in (lambda api: api.trigger("r", {}), lambda api: api.run("r"), lambda api: api.unpause()):
        server.answers = [(status, b"<html>moved</html>"), (200, {})]
        with pytest.raises(ConfigurationError, match=target):
            call(AirflowApi(server.url, token="t"))
    assert [method for method, *_ in server.asked] == ["POST", "GET", "PATCH"]


@pytest.mark.parametrize("status", [200, 502])
def test_an_answer_that_breaks_off_is_a_transient_error(server: Server, status: int) -> None:
    """A proxy that restarts ends a connection within an answer: the same call may succeed later."""
    server.answers, server.cut_bytes = [(status, {"state": "running"})], 10
    with pytest.raises(TransientError, match="does not answer"):
        AirflowApi(server.url).run("r")


def test_an_unknown_certificate_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of an own authority is no outage: the message names SSL_CERT_FILE."""
    api = AirflowApi("https://airflow.example.org/airflow/")

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError(1, "unable to get local issuer certificate"))

    monkeypatch.setattr(api._opener, "open", refuse)
    with pytest.raises(
        ConfigurationError, match=r"https://airflow.example.org/airflow cannot.*local issuer.*SSL_CERT_FILE"
    ):
        api.run("r")


def test_a_url_that_is_none_is_a_configuration_error() -> None:
    """A port that is no number is named."""
    with pytest.raises(ConfigurationError, match="S2V_AIRFLOW_URL is not a URL: nonnumeric port: '80a'"):
        AirflowApi("http://airflow.example.org:80a").run("r")


@pytest.mark.parametrize("status", [200, 400, 404, 405, 501])
def test_another_server_is_a_configuration_error(server: Server, status: int) -> None:
    """A server that answers with a page, as another program at this address does, is named with its answer."""
    server.answers = [(status, b"<html>\n<h1>Welcome</h1>")]
    with pytest.raises(
        ConfigurationError, match=rf"S2V_AIRFLOW_URL {server.url} is not .*: it answers {status} '<html>"
    ):
        AirflowApi(server.url).run("r")


def test_a_server_that_is_away_is_a_transient_error() -> None:
    """The message names the address and the setting."""
    with pytest.raises(TransientError, match=r"does not answer.*S2V_AIRFLOW_URL"):
        AirflowApi(f"http://127.0.0.1:{free_ports(1)[0]}").run("r")


def test_no_address_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting the message names it and, unless it is there, the file in which a command looks for it."""
    monkeypatch.delenv("S2V_HOME")
    monkeypatch.chdir(tmp_path)
    written = tmp_path / ".s2v" / "stack.env"
    with pytest.raises(ConfigurationError, match=f"S2V_AIRFLOW_URL is not set.*{written} does not exist"):
        AirflowApi.from_settings(Settings())  # type: ignore[call-arg]
    written.parent.mkdir()
    written.touch()
    with pytest.raises(ConfigurationError, match=r"airflow\.example\.org\.$"):
        AirflowApi.from_settings(Settings())  # type: ignore[call-arg]


def test_all_pages_of_the_tasks_of_a_run_are_fetched(server: Server) -> None:
    """The total number that Airflow states decides, not the size of a page."""
    server.answers = [
        (200, {"total_entries": 3, "task_instances": [{"task_id": "a"}, {"task_id": "b"}]}),
        (200, {"total_entries": 3, "task_instances": [{"task_id": "c"}]}),
    ]
    found = AirflowApi(server.url).task_instances("run 1")
    assert [task["task_id"] for task in found] == ["a", "b", "c"]
    assert [path.rpartition("offset=")[2] for _, path, _, _ in server.asked] == ["0", "2"]
    assert all("/dagRuns/run%201/taskInstances" in path for _, path, _, _ in server.asked)


def test_a_paused_dag_is_found_and_unpaused(server: Server) -> None:
    """A DAG is paused only if the answer says so; a DAG that Airflow has not parsed is not."""
    server.answers = [(200, {"is_paused": True}), (200, {"is_paused": False}), (404, {"detail": "x"}), (200, {})]
    api = AirflowApi(server.url)
    assert [api.is_paused() for _ in range(3)] == [True, False, False]
    api.unpause()
    assert {(method, path) for method, path, _, _ in server.asked[:3]} == {("GET", "/api/v2/dags/speech_to_video")}
    method, path, _, body = server.asked[3]
    assert (method, path) == ("PATCH", "/api/v2/dags/speech_to_video?update_mask=is_paused")
    assert body == {"is_paused": False}


def test_an_open_question_is_answered_once(server: Server) -> None:
    """The answer goes to the deferred task; a late answer, or one without a question, is reported."""
    task = {"dag_run_id": "run 1", "task_id": "clip.wait", "map_index": 2}
    question = {"subject": "Approve clip 2 of 3 of job talk?", "task_instance": task}
    server.answers = [(200, {"hitl_details": [question], "total_entries": 1}), (200, {}), (409, {}), (404, {})]
    api = AirflowApi(server.url)
    assert api.open_questions("run 1") == [question]
    assert [api.answer(question, "Reject", {"note": "No."}) for _ in range(3)] == [True, False, False]
    assert "response_received=false&state=awaiting_input" in server.asked[0][1]
    method, path, _, body = server.asked[1]
    assert (method, path.partition("/dagRuns/")[2]) == ("PATCH", "run%201/taskInstances/clip.wait/2/hitlDetails")
    assert body == {"chosen_options": ["Reject"], "params_input": {"note": "No."}}


def test_an_answer_that_airflow_refuses_is_an_error(server: Server) -> None:
    """A refused value and a missing question have different messages."""
    server.answers = [(400, {"detail": "Invalid options"})]
    task = {"dag_run_id": "r", "task_id": "publish", "map_index": -1}
    with pytest.raises(PermanentError, match="Invalid options"):
        AirflowApi(server.url).answer({"task_instance": task}, "Approve", {})
