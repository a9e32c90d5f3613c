"""Pages made from templates. In a template every value is escaped and every address is relative."""

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_FOLDER = Path(__file__).parent
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def page(request: Request, template: str, **values: Any) -> HTMLResponse:
    """Return a page made from a template. `root` leads from its address to that of the application."""
    depth = request.scope["path"].removeprefix(request.scope.get("root_path", "")).count("/") - 1
    text = _environment().get_template(template).render(values | {"root": "../" * depth or "./"})
    return HTMLResponse(text)


def duration(seconds: float | None) -> str:
    """Return a duration for people: 4.5 s, 2:05 min, 1:02 h."""
    if seconds is None:
        return ""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{int(seconds) // _MINUTE}:{int(seconds) % _MINUTE:02d} min"
    return f"{int(seconds) // _HOUR}:{int(seconds) % _HOUR // _MINUTE:02d} h"


def money(amount: float | None, currency: str | None) -> str:
    """Return an amount with two decimals, or with two digits that count from 0.1 down to 0.0001."""
    if amount is None:
        return ""
    figure = f"{amount:.2f}" if amount == 0 or amount >= 0.1 else f"{amount:.2g}"
    if 0 < amount < 0.0001:
        figure = "< 0.0001"
    return f"{figure}\N{NO-BREAK SPACE}{currency}" if currency else figure


def age(at: datetime | None) -> str:
    """Return the time since `at` in its largest unit."""
    if at is None:
        return ""
    seconds = max((datetime.now(UTC) - at).total_seconds(), 0)
    for unit, length in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "age": age}
    environment.globals |= {"money": money, "asset_version": _asset_version()}
    return environment


def _asset_version() -> str:
    """Return a digest of the static files, so that a browser loads the files of this version of the package."""
    digest = hashlib.sha256()
    for path in sorted((_FOLDER / "static").iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
