"""The FastAPI application of the pages, with the checks that hold for all its routes."""

import mimetypes
from pathlib import Path

from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response

from s2v_tasks.errors import ConfigurationError, PermanentError, S2VError, TransientError
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.result_files import result_link
from s2v_tasks.storage.s3_errors import ObjectMissingError
from s2v_tasks.web import actions, approvals, gallery, job_page, media_files, uploads
from s2v_tasks.web.access import SecurityHeaders, may_read, problem, refuse, same_origin
from s2v_tasks.web.services import SharedServices, media_origin
from s2v_tasks.web.wording import with_labels

_STATIC = Path(__file__).parent / "static"
_STATUS = {ConfigurationError: 500, ObjectMissingError: 404, TransientError: 503, PermanentError: 400}


def create_application() -> FastAPI:
    """Return the application; every route demands a login and, except styles and scripts, the right to see runs."""
    application = FastAPI(
        title="Videos",
        dependencies=[Depends(same_origin), Depends(get_user)],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    application.add_middleware(SecurityHeaders, media_origin=media_origin(load_settings()))
    application.add_exception_handler(HTTPException, refuse)
    application.add_exception_handler(RequestValidationError, _refuse_value)
    application.add_exception_handler(S2VError, _explain)
    for part in (gallery, job_page, media_files, actions, approvals, uploads):
        application.include_router(part.router, dependencies=[Depends(may_read)])
    application.add_api_route("/jobs/{job_id}/{file}", job_file, methods=["GET"], dependencies=[Depends(may_read)])
    application.add_api_route("/static/{name}", static_file, methods=["GET"])  # the page of a refusal needs them, too
    return application


def static_file(name: str, request: Request) -> Response:
    """Return a stylesheet, a script or an icon of the pages. Its address changes with its content (`?v=`)."""
    path = _STATIC / name
    if path.parent != _STATIC or not path.is_file():
        raise HTTPException(404, "There is no such file.")
    kept = "private, max-age=31536000, immutable" if "v" in request.query_params else "private, max-age=300"
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(path.read_bytes(), media_type=kind, headers={"Cache-Control": kept})


def job_file(job_id: str, file: str, services: SharedServices) -> RedirectResponse:
    """Redirect to the file at the object store, by a URL that is valid for an hour."""
    try:
        url = result_link(services.settings, services.store, services.public_store, job_id, file)
    except ConfigurationError:
        raise
    except PermanentError as error:
        raise HTTPException(404, str(error)) from None
    return RedirectResponse(url, headers={"Cache-Control": "no-store"})


async def _explain(request: Request, error: Exception) -> Response:
    """Answer with the sentence of an error of this system, in the words of the forms."""
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    return problem(request, with_labels(str(error)), status)


async def _refuse_value(request: Request, error: Exception) -> Response:
    """Answer a request whose path, query or body has a wrong value; the value itself is not repeated."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class
    problems = [f"{'.'.join(map(str, one['loc'])).removeprefix('body.')}: {one['msg']}" for one in error.errors()]
    is_missing = all(one["loc"][0] == "path" for one in error.errors())
    return problem(request, with_labels("; ".join(problems)), 404 if is_missing else 422)
