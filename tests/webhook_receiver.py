"""A receiver of webhooks on loopback, which answers as receivers outside may do."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Receiver:
    """Answers with the first of `answers`, repeats the last one, and stores each request.

    With `drips` an answer never ends; `cut_off` is set when the caller closes the connection.
    """

    url: str = ""
    answers: list[int] = field(default_factory=lambda: [204])
    location: str | None = None
    drips: bool = False
    num_drops: int = 0
    cut_off: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """A class of handlers that answer like this."""
        return _handler_of(self)


def _handler_of(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append((self.path, dict(self.headers), body))
            status = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            if receiver.drips:
                self._drip(status)
                return
            self.send_response(status)
            if receiver.location:
                self.send_header("Location", receiver.location)
            self.end_headers()

        def _drip(self, status: int) -> None:
            """Send a header that never ends, each byte before the time limit of a single read is over."""
            try:
                self.wfile.write(f"HTTP/1.1 {status} OK\r\nX-Slow: ".encode())
                while not receiver.closing.wait(0.02):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    receiver.num_drops += 1
            except OSError:
                receiver.cut_off.set()

        def log_message(self, *_: Any) -> None:
            return

    return Handler


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A running receiver on loopback."""
    state = Receiver()
    server = ThreadingHTTPServer(("127.0.0.1", 0), state.handler())
    state.url = f"http://127.0.0.1:{server.server_port}/hook?token=abc"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    state.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()
