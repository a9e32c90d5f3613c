"""Airflow plugin: `/s2v/jobs/<job>/<file>` sends whoever is logged in to Airflow on to a file of a job.

Every Airflow process loads its plugins, only the API server answers requests: what answering needs is imported there.
"""

import sys
from functools import cache
from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from s2v_tasks.log import get_logger
from s2v_tasks.orchestration.commands import CLI
from s2v_tasks.orchestration.links import URL_PREFIX
from s2v_tasks.orchestration.process import StepFailedError, StepProcess


async def job_files(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    await _application()(scope, receive, send)


@cache
def _application() -> Any:
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi import Depends, FastAPI, HTTPException
    from fastapi.responses import RedirectResponse

    application = FastAPI(title="Files of a job", dependencies=[Depends(get_user)], docs_url=None, openapi_url=None)

    @application.get("/jobs/{job_id}/{file}")
    def job_file(job_id: str, file: str) -> RedirectResponse:
        """To the file itself, at the object store, by a URL that is valid for an hour."""
        command = [sys.executable, *CLI, "link", "--", job_id, file]
        try:
            result = StepProcess(command, get_logger().info).run()
        except StepFailedError as failure:
            raise HTTPException(404 if failure.is_permanent else 503, failure.message) from None
        return RedirectResponse(result["url"], headers={"Cache-Control": "no-store"})

    return application


class JobFilesPlugin(AirflowPlugin):  # type: ignore[misc]
    """Registers the application."""

    name = "s2v_job_files"
    fastapi_apps: ClassVar[list[Any]] = [{"app": job_files, "url_prefix": URL_PREFIX, "name": "Files of a job"}]
