"""Airflow plugin: the page Videos, the tab Video of a DAG run, and links to the files of a job.

Airflow finds it by the entry point of the package. Every Airflow process loads its plugins, but only the API server
answers requests. The application is imported there, with the first request.
"""

from functools import cache
from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

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


class VideosPlugin(AirflowPlugin):  # type: ignore[misc]
    """Registers the application and its places in the UI."""

    name = "s2v_videos"
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
