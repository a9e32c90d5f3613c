"""Requests of reruns, which are those of earlier jobs with changed fields, and job ids that depend on requests."""

from collections.abc import Mapping
from typing import Any

from s2v_tasks.schemas.job import job_slug
from s2v_tasks.schemas.manifest import fingerprint
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request

# Fields that come from the preset if the request omits them.
SAMPLING_FIELDS = (
    "sample_steps", "sample_guide_scale", "guide_steps", "sample_shift", "sample_solver", "adapters", "step_cache",
)  # fmt: skip
_ID_CHARACTERS = 50  # of the earlier job id; the digest of the request follows


def rerun_request(job_id: str, earlier: Request, fields: Mapping[str, Any], from_clip: int) -> Request:
    """Return the request of job `job_id` with changed fields from a clip on; PermanentError names a bad field.

    A new preset replaces the sampling.
    """
    kept = earlier.model_dump()
    if fields.get("preset", earlier.preset) != earlier.preset:
        kept |= dict.fromkeys(SAMPLING_FIELDS)
    return parse_request(kept | dict(fields) | {"parent_job_id": job_id, "from_clip": from_clip})


def job_id_of_request(name: str, request: Request) -> str:
    """Return a job id that begins with `name`, if that has letters or digits, and is the same for the same request."""
    return f"{job_slug(name) or 'job'}-{fingerprint(request.model_dump())[:10]}"


def rerun_job_id(job_id: str, request: Request) -> str:
    """Return the id of a rerun. It depends only on the changes, so a repeated rerun is the same job."""
    return f"{job_id[:_ID_CHARACTERS].rstrip('-')}-r{fingerprint(request.model_dump())[:10]}"


def changes_something(earlier: Request, plan: Plan, fields: Mapping[str, Any], from_clip: int) -> bool:
    """Return False if a rerun would only render the existing clips again.

    Clips that the earlier job has inherited may have other fields than that job. Rendering them again is a change.
    """
    now = {"prompt": earlier.prompt, "preset": plan.preset, "base_seed": plan.base_seed, "guide_steps": None}
    now |= plan.sampling.model_dump()
    now |= {"adapters": [item.model_dump() for item in earlier.adapters or ()], "step_cache": earlier.step_cache}
    differ = (value not in (now[name], getattr(earlier, name)) for name, value in fields.items() if name in now)
    return any(differ) or from_clip < len(plan.inherited)
