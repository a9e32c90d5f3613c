"""Chromium without a window, controlled by playwright."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from s2v_tasks.embedded.process import free_ports

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: `apt-get install chromium`")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window that may play sound without a click."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(airflow_app: Any) -> Iterator[str]:
    """The address of Airflow's API server on loopback."""
    import uvicorn

    port = free_ports(1)[0]
    running = uvicorn.Server(
        uvicorn.Config(airflow_app, host="127.0.0.1", port=port, log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(timeout=20)


@pytest.fixture
def opened(chromium: Any, server: str, login: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page as an account, or as nobody; errors of scripts and of the content policy fail the test."""
    problems: list[str] = []
    contexts = []

    def opened(address: str, name: str | None = "vera", **options: Any) -> Any:
        context = chromium.new_context(**options)
        contexts.append(context)
        if name is not None:
            context.add_cookies([{"name": "_token", "value": login(name).cookies["_token"], "url": server}])
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console", lambda message: problems.append(message.text) if "Content Security" in message.text else None
        )
        page.goto(f"{server}/s2v/{address}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def until(page: Any, expression: str, seconds: float = 30) -> None:
    """Wait until an expression is true. Playwright's own wait evaluates a string, which the content policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)
