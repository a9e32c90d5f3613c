"""Check a thousand drops at once in an Airflow whose scheduler is killed twice (`make test-ingestion`)."""

# ruff: noqa: S310 - the address is that of the server under test

import io
import json
import os
import signal
import statistics
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image

from s2v_tasks.embedded.airflow import AirflowInstallation
from s2v_tasks.embedded.postgres import PostgresServer
from s2v_tasks.metadata.session import engine_from_settings
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.layout import drop_folder_uri
from s2v_tasks.storage.s3 import ObjectStore

pytestmark = [pytest.mark.ingestion, pytest.mark.timeout(2400)]

SAMPLES = Path(__file__).parents[1] / "samples"
GOOD, TWINS, BROKEN, SLOW, REPEATED = 880, 25, 50, 20, 25
TINY = {"num_clip": 1, "infer_frames": 16, "sample_steps": 2, "size": "128*128", "prompt": "A person speaks."}
SAMPLE = 2  # jobs that run to their end


@dataclass
class Site:
    """An Airflow with the drop folder, and the time at which each prompt or seed was submitted."""

    airflow: AirflowInstallation
    environment: dict[str, str]
    store: ObjectStore
    incoming: str
    submitted_at: dict[str, datetime] = field(default_factory=dict)
    picture: bytes = b""
    speech: bytes = b""

    def put(self, name: str, data: bytes) -> None:
        self.store.put_bytes(f"{self.incoming}/{name}", data, "application/octet-stream")

    def drop(self, name: str, request: bytes) -> None:
        self.put(f"{name}/portrait.png", self.picture)
        self.put(f"{name}/speech.wav", self.speech)
        self.put(f"{name}/request.json", request)
        self.submitted_at.setdefault(name, datetime.now(UTC))

    def drop_slowly(self, name: str) -> None:
        for file, data in [("speech.wav", self.speech), ("prompt.txt", b"Slow."), ("portrait.png", self.picture)]:
            self.put(f"{name}/{file}", data)
            time.sleep(2)
        self.submitted_at[name] = datetime.now(UTC)

    def call(self, path: str, body: dict[str, Any] | None = None, method: str = "PATCH") -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.airflow.url}/api/v2{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="GET" if body is None else method,
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            parsed: dict[str, Any] = json.load(answer)
        return parsed

    def num_runs(self) -> int:
        return int(self.call("/dags/speech_to_video/dagRuns?limit=1")["total_entries"])

    def runs(self) -> dict[str, datetime]:
        """Return the time of creation of each run by its id."""
        found: dict[str, datetime] = {}
        while len(found) < self.num_runs():
            page = self.call(f"/dags/speech_to_video/dagRuns?limit=100&order_by=id&offset={len(found)}")["dag_runs"]
            found |= {run["dag_run_id"]: datetime.fromisoformat(run["queued_at"]) for run in page}
        return found

    def kill(self, component: str) -> None:
        """Kill one process of Airflow and start it again."""
        os.kill(int((self.airflow.folder / f"{component}.pid").read_text()), signal.SIGKILL)
        time.sleep(1)  # the kernel has to bury it before its process id is looked for
        self.airflow.start(self.environment)

    def run_few(self, num_runs: int) -> None:
        """Unpause the DAG with this limit of active runs, because a thousand at once would starve each other."""
        self.environment["S2V_MAX_RUNNING_JOBS"] = str(num_runs)  # the limit is part of the DAG
        self.airflow.stop()
        self.airflow.start(self.environment)
        wait_until(lambda: self.call("/dags/speech_to_video/details")["max_active_runs"] == num_runs, 120)
        self.call("/dags/speech_to_video", {"is_paused": False})


@pytest.fixture
def site(stack_home: Path, stack: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("S2V_MAX_RUNNING_JOBS", "5000")
    monkeypatch.setenv("S2V_DROP_SETTLE_SECONDS", "8")
    installation = AirflowInstallation(stack_home)
    environment = installation.environment(PostgresServer(stack_home).ensure_database("airflow"))
    installation.start(environment)
    found = Site(
        installation, environment, ObjectStore.from_settings(stack), f"{drop_folder_uri(load_settings())}/incoming"
    )
    picture, speech = io.BytesIO(), io.BytesIO()
    with Image.open(SAMPLES / "portrait.jpg") as portrait:
        portrait.resize((120, 160)).save(picture, "PNG")
    sound, rate = soundfile.read(SAMPLES / "speech.mp3")
    soundfile.write(speech, sound[:rate], rate, format="WAV")  # one second
    found.picture, found.speech = picture.getvalue(), speech.getvalue()
    found.call("/dags/speech_to_video", {"is_paused": True})  # its runs wait: it is the way to them that is tested
    yield found
    installation.stop()


def test_a_batch_runs_from_its_manifest_to_its_summary(site: Site, stack: Settings) -> None:
    """The batch starts a run for each row and summarises their jobs; triggered again, it starts nothing."""
    manifest_uri = site.store.uri("batch/monday.csv")
    site.store.put_bytes("batch/portrait.png", site.picture, "image/png")
    site.store.put_bytes("batch/speech.wav", site.speech, "audio/wav")
    rows = "".join(f"row-{number},portrait.png,speech.wav,A person speaks.,{number}\n" for number in range(3))
    site.store.put_bytes("batch/monday.csv", f"id,image_uri,audio_uri,prompt,base_seed\n{rows}".encode(), "text/csv")
    engine = engine_from_settings(stack)
    metadata = MetadataStore(engine)

    def run_batch() -> str:
        body = {"logical_date": None, "conf": {"manifest_uri": manifest_uri}}
        return str(site.call("/dags/s2v_batch/dagRuns", body, "POST")["dag_run_id"])

    def has_ended(run_id: str) -> bool:
        path = f"/dags/s2v_batch/dagRuns/{urllib.parse.quote(run_id)}"
        state = site.call(path)["state"]
        assert state != "failed", site.call(f"{path}/taskInstances")
        return bool(state == "success")

    try:
        first = run_batch()
        wait_until(lambda: len(site.runs()) == 3, 300)
        assert not has_ended(first)
        for job in metadata.jobs.recent():  # their runs wait, and the jobs end here: it is the batch that is tested
            metadata.jobs.succeed(job.job_id, f"s3://s2v/output/{job.job_id}.mp4", "ab" * 32)
        wait_until(lambda: has_ended(first), 300)
        numbers = json.loads(site.store.get_bytes(f"{manifest_uri}.summary.json"))
        assert numbers["jobs"] == {"succeeded": 3}
        second = run_batch()
        wait_until(lambda: has_ended(second), 300)
        assert len(site.runs()) == len(metadata.jobs.recent()) == 3
    finally:
        engine.dispose()


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.5)


def request_of(number: int, **fields: Any) -> bytes:
    return json.dumps(
        TINY | {"base_seed": number, "priority": "high" if number < SAMPLE else "normal"} | fields
    ).encode()


def flood(site: Site) -> None:
    """The drops, all at once: valid ones, ones with the job id of another, broken ones and slow ones."""
    with ThreadPoolExecutor(16) as pool:
        slow = [pool.submit(site.drop_slowly, f"slow-{number:04}") for number in range(SLOW)]
        drops = [(f"good-{number:04}", request_of(number)) for number in range(GOOD - TWINS)]
        for number in range(GOOD - TWINS, GOOD):
            request = request_of(number, job_id=f"twin-{number}")
            drops += [(f"good-{number:04}", request), (f"twin-{number:04}", request)]
        broken = [b"{", b'{"num_clip": 0}', b'{"image_uri": "../../x"}', b'{"preset": "none"}', b"\xff"]
        drops += [(f"broken-{number:04}", broken[number % len(broken)]) for number in range(BROKEN)]
        for one in [*slow, *[pool.submit(site.drop, *drop) for drop in drops]]:
            one.result()


def test_a_flood_of_drops_becomes_exactly_its_jobs(site: Site, stack: Settings) -> None:
    """1,000 drops with 50 duplicates, 50 broken and 20 slow ones become their jobs; the scheduler is killed twice."""
    engine = engine_from_settings(stack)
    metadata, began = MetadataStore(engine), time.monotonic()
    expected, earlier = GOOD + SLOW, site.runs()

    def jobs_of_drops() -> list[Job]:
        return [job for job in metadata.jobs.recent(limit=5000) if job.source == "drop"]

    try:
        with ThreadPoolExecutor(1) as pool:
            flooding = pool.submit(flood, site)
            wait_until(lambda: len(jobs_of_drops()) >= 150, 300)
            site.kill("scheduler")
            flooding.result()
        flooded = time.monotonic() - began
        with ThreadPoolExecutor(8) as pool:  # exactly the same files again, some while the first are on their way
            list(pool.map(lambda n: site.drop(f"good-{n:04}", request_of(n)), range(REPEATED)))
        wait_until(lambda: site.num_runs() >= len(earlier) + 100, 600)
        site.kill("scheduler")
        wait_until(lambda: site.num_runs() >= len(earlier) + expected, 1200)
        wait_until(lambda: not list(site.store.listing(f"{site.incoming}/")), 300)
        seconds = time.monotonic() - began

        jobs, runs = jobs_of_drops(), site.runs()
        assert sorted(runs.keys() - earlier.keys()) == sorted(job.job_id for job in jobs)
        assert len(jobs) == expected
        seeds = [(job.request or {})["base_seed"] for job in jobs]
        assert sorted(seeds) == sorted([*range(GOOD), *[-1] * SLOW])
        assert MetadataStore(engine).drops.unfinished() == []
        rejected = [
            o for o in site.store.listing(site.incoming.replace("incoming", "rejected/")) if "error.json" in o.uri
        ]
        assert len(rejected) == BROKEN + TWINS + REPEATED
        waits = [(runs[job.job_id] - job.created_at).total_seconds() for job in jobs]
        print(
            f"\n{GOOD + TWINS + BROKEN + SLOW + REPEATED} drops written in {flooded:.0f} s, {len(jobs)} runs after "
            f"{seconds:.0f} s in all; from drop to run: median {statistics.median(waits):.1f} s, "
            f"most {max(waits):.1f} s"
        )

        site.run_few(SAMPLE)
        wait_until(lambda: sum(job.has_ended for job in jobs_of_drops()) >= SAMPLE, 600)
        assert {job.status for job in jobs_of_drops()} <= {"queued", "running", "succeeded"}
    finally:
        engine.dispose()
