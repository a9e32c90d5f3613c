"""Airflow plugin: `/s2v/jobs/<job>/<file>` sends whoever is logged in to Airflow on to a file of a job.

Airflow finds it by the entry point of the package. Every Airflow process loads its plugins, only the API server answers
requests: what answering needs is imported there, with the first request.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError
from s2v_tasks.orchestration.operator_links import URL_PREFIX
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.storage.result_files import JobLinks


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
        """Redirect to the file at the object store, by a URL that is valid for an hour."""
        try:
            url = _links().url(job_id, file)
        except ConfigurationError as error:
            raise HTTPException(500, str(error)) from None
        except PermanentError as error:
            raise HTTPException(404, str(error)) from None
        except TransientError as error:
            raise HTTPException(503, str(error)) from None
        return RedirectResponse(url, headers={"Cache-Control": "no-store"})

    return application


@cache
def _links() -> "JobLinks":
    from s2v_tasks.storage.result_files import JobLinks

    return JobLinks(load_settings())


class JobFilesPlugin(AirflowPlugin):  # type: ignore[misc]
    """Registers the application."""

    name = "s2v_job_files"
    fastapi_apps: ClassVar[list[Any]] = [{"app": job_files, "url_prefix": URL_PREFIX, "name": "Files of a job"}]
