"""Check that outages of S3 or PostgreSQL during a render cost time and no clip. Real servers are stopped."""

import gc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from moto.server import ThreadedMotoServer
from structlog.testing import capture_logs

from s2v_tasks.embedded.guard import temporary_home
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import JobCancelledError, TransientError, UnavailableError
from s2v_tasks.metadata import migrate
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.rendering.renderer import Renderer
from s2v_tasks.runtime import cancellation, outages
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

LAYOUT = JobLayout("step-by-step")
Run = Callable[..., dict[str, Any]]
Found = Callable[[], Job]


class Server(Protocol):
    """A server that can be stopped and started again at the same address with its data."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class MotoOnItsPort:
    """An S3 server in this process whose objects survive a stop."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[MotoOnItsPort]:
    server = MotoOnItsPort()
    yield server
    server.stop()


@pytest.fixture
def moto_endpoint(s3_server: MotoOnItsPort) -> str:
    """Replaces the server that all tests share."""
    return s3_server.endpoint_url


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for this file, in a folder that every account can reach."""
    with temporary_home() as home:
        server = PostgresServer(home)
        server.start()
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """Replaces the database on the server that all tests share."""
    url = postgres.ensure_database(f"outages_{uuid.uuid4().hex}")
    migrate.upgrade(url)
    return url


@pytest.fixture
def servers(s3_server: MotoOnItsPort, postgres: PostgresServer) -> dict[str, Server]:
    return {"S3": s3_server, "PostgreSQL": postgres}


@pytest.fixture
def ready(
    servers: dict[str, Server], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_json: object
) -> Run:
    """A planned job of three clips, with an installation that waits up to a minute."""
    monkeypatch.setenv("S2V_RETRY_SECONDS", "60")
    monkeypatch.setenv("S2V_WORK_DIR", str(tmp_path / "work"))
    load_settings.cache_clear()
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)  # boto's own retries
    monkeypatch.setattr(outages, "LONGEST_PAUSE_SECONDS", 0.05)
    run("stage_inputs", num_clip=3)
    run("plan_clips")
    run("encode_conditions")
    return run


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The index of each clip that is rendered, once per render."""
    clips: list[int] = []
    render = Renderer.render

    def note(renderer: Renderer, order: Any, *arguments: Any, **named: Any) -> Any:
        clips.append(order.clip.clip_index)
        return render(renderer, order, *arguments, **named)

    monkeypatch.setattr(Renderer, "render", note)
    return clips


def after_frames(monkeypatch: pytest.MonkeyPatch, clip_index: int, do: Callable[[], None]) -> None:
    """Run `do` when the frames of a clip are rendered and not stored yet."""
    facts = Renderer.clip_facts
    clips = iter(range(10))

    def then(renderer: Renderer) -> dict[str, Any]:
        if next(clips) == clip_index:
            do()
        return facts(renderer)

    monkeypatch.setattr(Renderer, "clip_facts", then)


def at_try(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], None]) -> None:
    """Run `do` when the calls of a step have waited this often for a service."""
    pause = outages._Retried._pause

    def then(target: Any, tries: int, began: float, error: UnavailableError) -> bool:
        if tries == number:
            do()
        return pause(target, tries, began, error)

    monkeypatch.setattr(outages._Retried, "_pause", then)


@pytest.mark.parametrize("service", ["S3", "PostgreSQL"])
def test_a_finished_clip_waits_for_a_service_that_is_away(
    ready: Run,
    servers: dict[str, Server],
    rendered: list[int],
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
    service: str,
) -> None:
    """A clip that is finished during an outage is stored and recorded when the server is back.

    Each clip is rendered once, in one attempt, and the wait counts in the GPU-seconds of the attempt.
    """
    after_frames(monkeypatch, 1, servers[service].stop)
    at_try(monkeypatch, 3, servers[service].start)
    with capture_logs() as logs:
        assert ready("render_clip", 0, count=3) == {"clip_index": 0, "count": 3, "reused": False}
    assert rendered == [0, 1, 2]
    job = found()
    assert [(clip.status, clip.attempts) for clip in job.clips] == [("succeeded", 1)] * 3
    assert [(attempt.step, attempt.outcome) for attempt in job.attempts[1:]] == [("render_clip", "succeeded")] * 3
    [back] = [line for line in logs if line["event"] == "service_is_back"]
    assert back["service"] == service
    assert sum(line["event"] == "service_is_away" for line in logs) >= 3
    waited = [attempt.gpu_seconds or 0.0 for attempt in job.attempts if attempt.clip_index == 1]
    assert waited[0] > back["away_seconds"]


@pytest.mark.parametrize("service", ["S3", "PostgreSQL"])
def test_a_step_begins_and_ends_while_a_service_is_away(
    ready: Run, servers: dict[str, Server], found: Found, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    """The first call of a step waits for the end of an outage."""
    servers[service].stop()
    at_try(monkeypatch, 2, servers[service].start)
    assert ready("render_clip", 0)["reused"] is False
    assert [event.event for event in found().events if event.event == "step_failed"] == []


def test_a_clip_that_waited_in_vain_is_stored_by_the_next_attempt(
    ready: Run,
    servers: dict[str, Server],
    store: ObjectStore,
    rendered: list[int],
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the time limit the attempt is interrupted with code 75, and the clip stays on disk for the next one."""
    monkeypatch.setenv("S2V_RETRY_SECONDS", "0")
    load_settings.cache_clear()
    after_frames(monkeypatch, 0, servers["S3"].stop)
    with pytest.raises(TransientError, match=r"Failed reading s3://.*/clips/0000/manifest\.json at http"):
        ready("render_clip", 0)
    servers["S3"].start()
    assert [attempt.outcome for attempt in found().attempts[1:]] == ["interrupted"]
    assert not store.exists(LAYOUT.clip_manifest(0))
    assert ready("render_clip", 0) == {"clip_index": 0, "count": 1, "reused": True}
    assert rendered == [0]
    [clip] = [clip for clip in found().clips if clip.clip_index == 0]
    assert (clip.status, clip.attempts) == ("succeeded", 1)
    assert [attempt.outcome for attempt in found().attempts[1:]] == ["succeeded"]  # it has made the clip
    assert ready("render_clip", 1)["reused"] is False  # it continues the motion state that was kept


def test_a_process_that_is_asked_to_end_keeps_its_clip(
    ready: Run, servers: dict[str, Server], rendered: list[int], found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGTERM in a wait for S3, a few tries follow; then the clip stays on disk for the next attempt."""
    monkeypatch.setattr(outages, "LAST_SECONDS", 0.2)
    after_frames(monkeypatch, 0, servers["S3"].stop)
    with monkeypatch.context() as patch:
        at_try(patch, 2, lambda: patch.setattr(Worker, "asked_to_end", True))
        with pytest.raises(UnavailableError):
            ready("render_clip", 0, count=2)
    servers["S3"].start()
    assert [attempt.outcome for attempt in found().attempts[1:]] == ["interrupted"]
    assert ready("render_clip", 0)["reused"] is True
    assert rendered == [0]


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # a cancel leaves a connection as it is
def test_a_cancel_ends_the_wait(
    ready: Run,
    servers: dict[str, Server],
    metadata: MetadataStore,
    rendered: list[int],
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancel ends a wait for S3, and the finished clip is stored by the next start of the job."""
    monkeypatch.setattr(cancellation, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(cancellation, "UNWIND_SECONDS", 60.0)
    after_frames(monkeypatch, 0, servers["S3"].stop)
    with monkeypatch.context() as patch:
        at_try(patch, 2, lambda: metadata.jobs.request_cancel("step-by-step") and None)
        with pytest.raises(JobCancelledError):
            ready("render_clip", 0)
    gc.collect()
    servers["S3"].start()
    assert found().status == "cancelled"
    metadata.jobs.enqueue("step-by-step", {})
    assert ready("render_clip", 0)["reused"] is True
    assert rendered == [0]
