"""Files that browsers upload: bounded while they arrive, then stored like inputs of `s2v submit`."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from starlette.concurrency import run_in_threadpool

from s2v_tasks.scratch import scratch_folder
from s2v_tasks.storage.inputs import plain_name, upload_input
from s2v_tasks.web.access import may_start
from s2v_tasks.web.services import SharedServices

router = APIRouter(prefix="/new", dependencies=[Depends(may_start)])


@router.post("/upload")
async def upload(
    request: Request, services: SharedServices, name: Annotated[str, Query(min_length=1, max_length=300)]
) -> dict[str, str]:
    """Store the body of the request below `uploads/` and return its S3 URI, which has a digest of the content."""
    limit = services.settings.max_input_bytes
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > limit:
        raise _too_large(limit)
    with scratch_folder(services.settings.work_dir, "upload") as folder:
        path = folder / plain_name(name)
        await _receive(request, path, limit)
        return {"uri": await run_in_threadpool(upload_input, services.store, path)}


async def _receive(request: Request, path: Path, limit: int) -> None:
    """Write the body to a file; 413 as soon as it has more bytes than allowed."""
    size_bytes = 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            size_bytes += len(chunk)
            if size_bytes > limit:
                raise _too_large(limit)
            await run_in_threadpool(file.write, chunk)
    if size_bytes == 0:
        raise HTTPException(400, "The file is empty: expected a picture or speech.")


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The file is too large: expected at most {limit} bytes (S2V_MAX_INPUT_BYTES).")
