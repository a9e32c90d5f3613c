"""Check notifications around a step: sent after its work, with bounded delay."""

import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Notification
from s2v_tasks.runtime.context import StepContext, run_step
from s2v_tasks.schemas.steps import STAGE_INPUTS, STITCH
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.webhooks import delivery
from s2v_tasks.webhooks.delivery import deliver_due

Configure = Callable[..., Settings]


@pytest.fixture
def configure(s3_settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Configure an installation that may call receivers on this machine and waits longer for them."""
    monkeypatch.setattr("s2v_tasks.runtime.context.STEP_SECONDS", 60.0)  # a loaded machine needs more than 3 s

    def apply(**settings: str) -> Settings:
        defaults = {"webhook_secret": "the shared secret", "webhook_allowed_hosts": "127.0.0.1"}
        for name, value in (
            defaults | {"webhook_allow_private": "true", "database_url": postgres_url} | settings
        ).items():
            monkeypatch.setenv(f"S2V_{name.upper()}", value)
        load_settings.cache_clear()
        return load_settings()

    return apply


def work(ctx: StepContext, *, url: str) -> dict[str, Any]:
    """Run a step that queues and starts its job."""
    ctx.metadata.jobs.enqueue(ctx.job_id, {"webhook_url": url}, began_at=ctx.began_at)
    ctx.metadata.jobs.start(ctx.job_id, began_at=ctx.began_at)
    return {}


def refuse(ctx: StepContext, *, url: str) -> dict[str, Any]:
    """Run a step that finds its input bad."""
    work(ctx, url=url)
    raise PermanentError("size 9*9 is odd.")


def found(engine: sa.Engine) -> list[tuple[str, str, int, str]]:
    """Return event, status, attempts and last error of each message in order."""
    columns = (Notification.event, Notification.status, Notification.attempts, Notification.last_error)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(Notification.id))]


def test_start_and_failure_reach_the_receiver_in_order(configure: Configure, receiver: Any, engine: sa.Engine) -> None:
    """The message of a failed job has its reason, and the error of the step does not change."""
    configure()
    with pytest.raises(PermanentError, match="size 9"):
        run_step(refuse, step=STAGE_INPUTS, job_id="job-a", url=receiver.url)
    assert [headers["X-S2V-Event"] for _, headers, _ in receiver.requests] == ["job_started", "job_failed"]
    assert b"size 9*9 is odd." in receiver.requests[1][2]
    assert [row[:3] for row in found(engine)] == [("job_started", "delivered", 1), ("job_failed", "delivered", 1)]


def test_a_receiver_that_is_down_costs_one_attempt_per_step(configure: Configure, engine: sa.Engine) -> None:
    """The step succeeds at once; the attempt and its reason are stored, and the next message waits."""
    configure()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        run_step(work, step=STAGE_INPUTS, job_id="job-a", url=url)
        with pytest.raises(PermanentError):
            run_step(refuse, step=STAGE_INPUTS, job_id="job-a", url=url)
    down, waiting = found(engine)
    assert down[:3] == ("job_started", "pending", 1)
    assert "ConnectionRefused" in down[3]
    assert waiting == ("job_failed", "pending", 0, None)


def test_a_slow_receiver_delays_a_step_by_seconds_only(
    configure: Configure, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step continues after its time limit, however long the receiver takes."""
    configure()
    monkeypatch.setattr("s2v_tasks.runtime.context.STEP_SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and never answers
        run_step(work, step=STITCH, job_id="job-a", url=f"http://127.0.0.1:{server.getsockname()[1]}/")
    (row,) = found(engine)
    assert row[:3] == ("job_started", "pending", 1)
    assert "no answer within 0.4 s" in row[3]


@pytest.mark.parametrize(
    ("settings", "status", "reason"),
    [
        ({"webhook_allow_private": "false"}, "refused", "not a public address"),
        ({"webhook_allowed_hosts": "hooks.example.com"}, "refused", "S2V_WEBHOOK_ALLOWED_HOSTS"),
    ],
)
def test_a_forbidden_address_is_not_called(
    configure: Configure, receiver: Any, engine: sa.Engine, settings: dict[str, str], status: str, reason: str
) -> None:
    """The job continues, the reason is stored, and the receiver gets no request."""
    configure(**settings)
    run_step(work, step=STITCH, job_id="job-a", url=receiver.url)
    (row,) = found(engine)
    assert row[:3] == ("job_started", status, 1)
    assert reason in row[3]
    assert receiver.requests == []


def test_nothing_is_sent_unsigned(configure: Configure, receiver: Any, engine: sa.Engine) -> None:
    """Without the shared secret, no message is sent."""
    configure(webhook_secret="")
    run_step(work, step=STITCH, job_id="job-a", url=receiver.url)
    assert receiver.requests == []
    assert "S2V_WEBHOOK_SECRET" in found(engine)[0][3]


def test_a_redirect_to_this_machine_ends_the_message(configure: Configure, receiver: Any, engine: sa.Engine) -> None:
    """A redirect is neither followed nor retried, and its status is stored."""
    configure()
    receiver.answers, receiver.location = [302], "http://127.0.0.1:1/metadata"
    run_step(work, step=STITCH, job_id="job-a", url=receiver.url)
    (row,) = found(engine)
    assert row[:3] == ("job_started", "failed", 1)
    assert "redirects are not followed" in row[3]


def test_the_sweep_sends_failed_messages_later(configure: Configure, receiver: Any, engine: sa.Engine) -> None:
    """After an answer of 500 all messages arrive in order; a silent receiver is called once per sweep."""
    settings = configure()
    receiver.answers = [500, 500, 200]
    for job_id in ("job-a", "job-b"):
        run_step(work, step=STITCH, job_id=job_id, url=receiver.url)
    assert [row[1] for row in found(engine)] == ["pending", "pending"]
    with engine.begin() as connection:
        connection.execute(sa.update(Notification).values(next_attempt_at=sa.func.now()))
    receiver.answers = [500, 200]
    assert deliver_due(MetadataStore(engine), settings, seconds=60) == {
        "delivered": 0,
        "failed": 0,
        "pending": 1,
        "refused": 0,
    }
    with engine.begin() as connection:
        connection.execute(sa.update(Notification).values(next_attempt_at=sa.func.now()))
    assert deliver_due(MetadataStore(engine), settings, seconds=60)["delivered"] == 2
    assert [row[1] for row in found(engine)] == ["delivered", "delivered"]
    identities = [headers["X-S2V-Delivery"] for _, headers, _ in receiver.requests]
    assert len(set(identities)) == 2
    assert len(identities) == 5


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time limit of each message in order; every receiver uses all of its time and does not answer."""
    given: list[float] = []

    def silent(_url: str, _message: Any, *, seconds: float, **_: Any) -> None:
        given.append(seconds)
        raise TransientError("no answer")

    monkeypatch.setattr(delivery, "deliver", silent)
    monkeypatch.setattr(delivery, "time", SimpleNamespace(monotonic=lambda: 1000.0 + sum(given)))
    return given


def test_silent_receivers_hold_a_step_for_three_seconds(
    configure: Configure,
    limits: list[float],
    metadata: MetadataStore,
    engine: sa.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step sends messages of its own job only; the sweep sends those of others, even older ones."""
    configure()
    monkeypatch.setattr("s2v_tasks.runtime.context.STEP_SECONDS", delivery.STEP_SECONDS)
    metadata.jobs.enqueue("earlier", {"webhook_url": "http://127.0.0.1:1/earlier"})
    metadata.jobs.start("earlier")
    run_step(work, step=STITCH, job_id="job-a", url="http://127.0.0.1:1/a")
    assert limits == [3.0]
    assert [(row[0], row[2]) for row in found(engine)] == [("job_started", 0), ("job_started", 1)]


def test_silent_receivers_hold_a_sweep_for_less_than_a_minute(
    configure: Configure, limits: list[float], metadata: MetadataStore
) -> None:
    """Each message has 5 s, the last one the rest of 50 s; the remaining messages wait for the next sweep."""
    settings = configure()
    for number in range(13):
        metadata.jobs.enqueue(f"job-{number}", {"webhook_url": f"http://127.0.0.1:{number + 1}/hook"})
        metadata.jobs.start(f"job-{number}")
    assert deliver_due(metadata, settings, seconds=50)["pending"] == 10
    assert deliver_due(metadata, settings, seconds=12)["pending"] == 3
    assert limits == [5.0] * 12 + [2.0]


def test_a_silent_host_is_called_once_in_a_sweep(
    configure: Configure, limits: list[float], metadata: MetadataStore
) -> None:
    """Jobs with other URLs of a host that does not answer wait for the next sweep; other hosts are still called."""
    settings = configure()
    for number, url in enumerate(("silent.org/1", "silent.org:443/2", "silent.org/3", "silent.organ/4", "no url")):
        metadata.jobs.enqueue(f"job-{number}", {"webhook_url": f"https://{url}"})
        metadata.jobs.start(f"job-{number}")
    assert deliver_due(metadata, settings, seconds=50)["pending"] == 4
    assert limits == [5.0] * 4
    assert deliver_due(metadata, settings, seconds=50)["pending"] == 1
