"""Simulate browsers that show pages of videos, and record the time and size of each answer.

A viewer is a visible page: it polls like `web/static/live.js`, with the ETag of the previous answer, and waits between
an answer and the next request. Like `job.js`, the page of a job reloads when the version of its state changes, which
happens with each event of the job.
"""

import http.client
import json
import random
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from s2v_tasks.capacity.simulation import percentile

# As the calls of `poll` in gallery.js and job.js.
GALLERY_SECONDS, JOB_SECONDS = 4.0, 3.0
POLL, PAGE = "poll", "page"
_WITH_CONTENT = {http.client.OK, http.client.PARTIAL_CONTENT}


@dataclass(frozen=True)
class Answer:
    """One answer; `size_bytes` counts its headers and its body. Status 0: the connection failed."""

    kind: str
    status: int
    seconds: float
    size_bytes: int


class Browser:
    """One connection that stays open, like that of a browser."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def get(self, path: str, kind: str, **headers: str) -> tuple[Answer, http.client.HTTPMessage, bytes]:
        """Return an answer with its headers and its body; a connection that the server has closed is opened again."""
        began = time.perf_counter()
        for is_last in (False, True):
            try:
                self._connection.request("GET", path, headers=headers)
                response = self._connection.getresponse()
                body = response.read()
                break
            except (http.client.HTTPException, OSError):
                self._connection.close()
                if is_last:
                    return Answer(kind, 0, time.perf_counter() - began, 0), http.client.HTTPMessage(), b""
        size = len(body) + sum(len(name) + len(value) + 4 for name, value in response.getheaders())
        return Answer(kind, response.status, time.perf_counter() - began, size), response.headers, body

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Viewer(threading.Thread):
    """An open page: the gallery with all `jobs`, or the page of the only one."""

    def __init__(self, url: str, jobs: Sequence[str], ended: threading.Event, *, is_gallery: bool) -> None:
        super().__init__(daemon=True)
        self._browser, self._ended = Browser(url), ended
        self._page = None if is_gallery else f"/s2v/job/{jobs[0]}"
        self._poll = f"/s2v/videos/changes.json?jobs={','.join(jobs)}" if is_gallery else f"{self._page}/state.json"
        self._seconds = GALLERY_SECONDS if is_gallery else JOB_SECONDS
        self.answers: list[Answer] = []

    def run(self) -> None:
        """Poll until the event is set."""
        etag, version = "", 0  # no event has this id
        self._ended.wait(random.uniform(0, self._seconds))
        while not self._ended.is_set():
            answer, headers, body = self._browser.get(self._poll, POLL, **{"If-None-Match": etag} if etag else {})
            self.answers.append(answer)
            if answer.status == http.client.OK:
                etag = headers["ETag"]
                if self._page is not None:
                    before, version = version, int(json.loads(body)["version"])
                    if before not in (0, version):
                        page, _, _ = self._browser.get(self._page, PAGE, Accept="text/html")
                        self.answers.append(page)
            self._ended.wait(self._seconds)
        self._browser.close()


def watch(url: str, jobs: Sequence[str], num_viewers: int, seconds: float) -> list[Answer]:
    """Run viewers for a time, half on the gallery, half on the page of one job each; return all answers."""
    ended = threading.Event()
    viewers = [
        Viewer(url, jobs, ended, is_gallery=True)
        if number % 2 == 0
        else Viewer(url, [jobs[number // 2 % len(jobs)]], ended, is_gallery=False)
        for number in range(num_viewers)
    ]
    for viewer in viewers:
        viewer.start()
    time.sleep(seconds)
    ended.set()
    for viewer in viewers:
        viewer.join()
    return [answer for viewer in viewers for answer in viewer.answers]


@dataclass(frozen=True)
class AnswerTimes:
    """Answers of one kind: their number per second, times, the share without a body, their mean sizes."""

    kind: str
    per_second: float
    median_seconds: float
    p95_seconds: float
    longest_seconds: float
    unchanged_share: float  # 304
    unchanged_bytes: float
    changed_bytes: float
    failures: int


def answer_times(answers: Iterable[Answer], kind: str, seconds: float) -> AnswerTimes:
    """Return the figures of the answers of one kind that came within `seconds`."""
    chosen = [answer for answer in answers if answer.kind == kind]
    times = sorted(answer.seconds for answer in chosen)
    unchanged = [answer.size_bytes for answer in chosen if answer.status == http.client.NOT_MODIFIED]
    changed = [answer.size_bytes for answer in chosen if answer.status in _WITH_CONTENT]
    return AnswerTimes(
        kind,
        per_second=len(chosen) / seconds,
        median_seconds=percentile(times, 50),
        p95_seconds=percentile(times, 95),
        longest_seconds=max(times, default=0.0),
        unchanged_share=len(unchanged) / max(len(chosen), 1),
        unchanged_bytes=sum(unchanged) / max(len(unchanged), 1),
        changed_bytes=sum(changed) / max(len(changed), 1),
        failures=len(chosen) - len(unchanged) - len(changed),
    )
