"""Check simulated viewers against a small server."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources

import psutil
import pytest

from s2v_tasks.capacity import browsing
from s2v_tasks.capacity.airflow_state import Reading
from s2v_tasks.capacity.browsing import PAGE, POLL, Answer, answer_times, watch
from s2v_tasks.capacity.viewers import Watching, Window, memory_of, viewers_report

# Polls of the state of the job from the third on get another version.
FIRST_CHANGED = 3


@pytest.fixture
def served() -> Iterator[tuple[str, Counter[str]]]:
    """The address of a server whose job changes its state once, and the number of its answers by path and status."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked[path] += 1
            version = 8 if path.endswith("state.json") and asked[path] >= FIRST_CHANGED else 7
            is_known = self.headers["If-None-Match"] == f'"{version}"'
            body = b"" if is_known else json.dumps({"version": version}).encode()
            asked[f"{path} {304 if is_known else 200}"] += 1
            self.send_response(304 if is_known else 200)
            self.send_header("ETag", f'"{version}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_viewer_polls_with_its_etag_and_loads_a_changed_page_once(
    served: tuple[str, Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One viewer polls the gallery and one the job; an unchanged state costs a 304."""
    monkeypatch.setattr(browsing, "GALLERY_SECONDS", 0.02)
    monkeypatch.setattr(browsing, "JOB_SECONDS", 0.02)
    url, asked = served
    answers = watch(url, ["talk", "other"], 2, 1.0)
    assert asked["/s2v/videos/changes.json 200"] == 1
    assert asked["/s2v/videos/changes.json 304"] >= 3
    assert asked["/s2v/job/talk/state.json 200"] == 2
    assert asked["/s2v/job/talk/state.json 304"] >= 3
    assert asked["/s2v/job/talk"] == 1  # the page of the second job has no viewer
    assert Counter(answer.kind for answer in answers)[PAGE] == 1
    assert {answer.status for answer in answers} == {200, 304}


def test_viewers_poll_as_often_as_the_scripts_of_the_pages() -> None:
    """The seconds between two polls equal those in gallery.js and job.js."""
    static = resources.files("s2v_tasks.web") / "static"
    gallery, job = ((static / name).read_text() for name in ("gallery.js", "job.js"))
    assert re.findall(r"^  (\d+),$", gallery, re.MULTILINE) == [f"{browsing.GALLERY_SECONDS:.0f}"]
    assert re.findall(r"state\.json`, (\d+),", job) == [f"{browsing.JOB_SECONDS:.0f}"]


def test_a_server_that_is_away_is_a_failure_not_an_end(served: tuple[str, Counter[str]]) -> None:
    """A refused connection is recorded with status 0, and the viewer continues."""
    browser = browsing.Browser("http://127.0.0.1:9")
    answer, _, body = browser.get("/", POLL)
    assert (answer.status, body) == (0, b"")


def test_figures_distinguish_unchanged_answers() -> None:
    """Shares and sizes are stated for 304, 200 and 206; any other status is a failure."""
    times = answer_times(
        [
            *(Answer(POLL, 304, 0.01, 100) for _ in range(18)),
            *(Answer(POLL, status, 0.5, 300) for status in (200, 206, 503)),
            Answer(PAGE, 200, 9.0, 9000),
        ],
        POLL,
        seconds=10,
    )
    assert (times.per_second, times.failures, times.longest_seconds) == (2.1, 1, 0.5)
    assert times.unchanged_share == pytest.approx(18 / 21)
    assert (times.unchanged_bytes, times.changed_bytes) == (100, 300)
    assert times.median_seconds == 0.01
    assert times.p95_seconds == 0.5


def test_memory_is_read_after_the_warm_up_and_after_each_thousand(served: tuple[str, Counter[str]]) -> None:
    """All addresses are requested in turn, and the memory is that of the given process."""
    url, asked = served
    watching = Watching(requests=1_500, warm_up=100)
    memory, answers = memory_of(psutil.Process(), url, [("/a", {}), ("/b", {}), ("/c", {})], watching)
    assert list(memory) == [100, 1_100, 1_600]
    assert len(answers) == 1_600
    assert [asked[path] for path in ("/a", "/b", "/c")] == [534, 533, 533]
    assert all(size > 10e6 for size in memory.values())


def test_the_scheduler_is_compared_with_and_without_viewers() -> None:
    """Windows of one kind are added up, and answers are counted per second of their windows."""

    def window(has_viewers: bool, seconds: float) -> Window:
        loops = [{"at": 0.0, "seconds": seconds, "cpu_seconds": seconds / 2}] * 2
        meters = Reading(10.0, {"scheduler": seconds}, {}, 0)
        answers = [Answer(POLL, 304, 0.1, 50)] * 20 if has_viewers else []
        return Window(has_viewers, meters, 0.5, 5 + seconds, loops, answers)

    windows = [window(False, 0.1), window(True, 0.2), window(False, 0.3), window(True, 0.4)]
    report = viewers_report(windows, {10: 1}, [Answer(PAGE, 206, 1.0, 5)])
    assert (report.alone.loops, report.watched.loops) == (4, 4)
    assert report.alone.loop_seconds_mean == pytest.approx(0.2)
    assert report.watched.loop_cpu_seconds_mean == pytest.approx(0.15)
    assert report.watched.longest_heartbeat_age == 5.4
    assert report.watched.cpu_shares["scheduler"] == pytest.approx(0.03)
    assert report.polls.per_second == 2.0
    assert report.memory_answers.failures == 0
