"""Rights and protection of every page: login, permission for the DAG, same origin of changes, headers of answers.

An application that a plugin mounts inherits no check of Airflow. `create_application` therefore demands a login and
`same_origin` of all routes, and `may_read` of all but styles and scripts. Other rights are checks of single routes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from fastapi import Depends, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from s2v_tasks.schemas.steps import JOB_DAG
from s2v_tasks.web.pages import page

User = Annotated[Any, Depends(get_user)]
Check = Callable[[Request, Any], None]
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_NOT_VALID = "Invalid JWT token"  # detail of Airflow's 403 for a token that is no login any more


def _check(method: str, entity: DagAccessEntity, action: str, permission: str) -> Check:
    """Return the check that a user has a permission for the DAG; its refusal names the permission."""
    allows = requires_access_dag(method=method, access_entity=entity, param_dag_id=JOB_DAG)

    def check(request: Request, user: User) -> None:
        try:
            allows(request, user)
        except HTTPException:
            raise HTTPException(
                403,
                f"{user.get_name()} may not {action}: expected the permission to {permission} of the DAG {JOB_DAG}. "
                "Ask an administrator of Airflow.",
            ) from None

    return check


may_read = _check("GET", DagAccessEntity.RUN, "see videos", "read the runs")
may_start = _check("POST", DagAccessEntity.RUN, "start videos", "create runs")
may_change = _check("PUT", DagAccessEntity.RUN, "cancel videos", "edit the runs")
may_answer = _check("PUT", DagAccessEntity.HITL_DETAIL, "approve or reject", "edit the required actions (HITL detail)")


@dataclass(frozen=True)
class Rights:
    """The actions that a page shows to a user. Each action checks again."""

    start: bool
    change: bool
    answer: bool

    @property
    def any(self) -> bool:
        """Return True if the user may do more than read."""
        return self.start or self.change or self.answer


def rights(request: Request, user: User) -> Rights:
    """Return the rights of the user."""

    def passes(check: Check) -> bool:
        try:
            check(request, user)
        except HTTPException:
            return False
        return True

    return Rights(start=passes(may_start), change=passes(may_change), answer=passes(may_answer))


UserRights = Annotated[Rights, Depends(rights)]


async def same_origin(request: Request) -> None:
    """Refuse a change that a page of another site requests (CSRF); a program outside a browser sends no origin."""
    if request.method in _SAFE_METHODS:
        return
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        if site != "same-origin":
            raise HTTPException(403, f"Sec-Fetch-Site is {site[:20]!r}: expected same-origin; use the page of Airflow.")
        return
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "The request comes from another site: use the page of Airflow.")


async def refuse(request: Request, error: Exception) -> Response:
    """Answer a refused request: a person who opens a page without a valid login is sent to the login of Airflow."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    if error.status_code != 401 and error.detail != _NOT_VALID:
        return problem(request, str(error.detail), error.status_code)
    if _wants_page(request) and request.headers.get("sec-fetch-dest") != "iframe":
        return RedirectResponse(get_auth_manager().get_url_login(next_url=str(request.url)), 303)
    return problem(request, f"There is no valid login ({error.detail}): log in to Airflow again.", 401)


def problem(request: Request, sentence: str, status: int) -> Response:
    """Return an error: as a page for a person, as JSON for a program."""
    if not _wants_page(request):
        return JSONResponse({"detail": sentence}, status)
    of_gallery = request.url.path.endswith("/videos")
    answer = page(request, "problem.html", sentence=sentence, status=status, of_gallery=of_gallery)
    answer.status_code = status
    return answer


def _wants_page(request: Request) -> bool:
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


class SecurityHeaders:
    """ASGI middleware that adds the headers that limit the pages of this application.

    `media_origin`: the origin of the object store, where players are sent to it.
    """

    def __init__(self, app: Any, media_origin: str | None = None) -> None:
        self._app = app
        media = f"'self' {quote(media_origin, safe=':/.[]-')}" if media_origin else "'self'"
        policy = (
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {media} blob:; media-src {media} blob:; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
        )
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on and add the headers to its answer."""

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers]}
                if not any(name == b"cache-control" for name, _ in message["headers"]):
                    message["headers"].append((b"cache-control", b"private, no-store"))
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
