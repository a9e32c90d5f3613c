"""Airflow plugin: the page Videos, the tab Video of a DAG run, and links to the files of a job.

Airflow finds it by the entry point of the package. Every Airflow process loads its plugins, but only the API server
answers requests. The application is imported there, with the first request.
"""

from functools import cache
from typing import Any, ClassVar
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk.configuration import conf

from s2v_tasks.orchestration.operator_links import URL_PREFIX

# Relative to the page of Airflow, which may be served below a path prefix.
_ADDRESS = f"{URL_PREFIX.lstrip('/')}/videos"


async def pages(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request: the ASGI application."""
    await _application()(scope, receive, send)


@cache
def _application() -> Any:
    from s2v_tasks.web.application import create_application

    return create_application()


def own_hosts_only(app: Any) -> Any:
    """Return the API server behind a check of the host name in each request.

    A page in a browser can give its own name the address 127.0.0.1 (DNS rebinding) and then read all answers.
    """
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    urls = (conf.get("api", "base_url", fallback=""), conf.get("core", "execution_api_server_url", fallback=""))
    hosts = {"127.0.0.1", "localhost", *filter(None, (urlsplit(url or "").hostname for url in urls))}
    return TrustedHostMiddleware(app, allowed_hosts=sorted(hosts), www_redirect=False)


def root_middlewares() -> list[dict[str, Any]]:
    """Return the check of host names if everybody is an administrator: then no login protects the API server."""
    if not conf.getboolean("core", "simple_auth_manager_all_admins", fallback=False):
        return []
    return [{"middleware": own_hosts_only, "name": "Own host names only"}]


class VideosPlugin(AirflowPlugin):  # type: ignore[misc]
    """Registers the application and its places in the UI."""

    name = "s2v_videos"
    fastapi_root_middlewares: ClassVar[list[Any]] = root_middlewares()
    fastapi_apps: ClassVar[list[Any]] = [{"app": pages, "url_prefix": URL_PREFIX, "name": "Videos"}]
    external_views: ClassVar[list[Any]] = [
        {
            "name": "Videos",
            "href": _ADDRESS,
            "destination": "nav",
            "url_route": "videos",
            "nav_top_level": True,
            "icon": f"{URL_PREFIX.lstrip('/')}/static/icon.svg",
            "icon_dark_mode": f"{URL_PREFIX.lstrip('/')}/static/icon-dark.svg",
        },
        {
            "name": "Video",
            "href": f"{_ADDRESS}/of-run?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "video",
            "icon": f"{URL_PREFIX.lstrip('/')}/static/icon.svg",
            "icon_dark_mode": f"{URL_PREFIX.lstrip('/')}/static/icon-dark.svg",
        },
    ]
