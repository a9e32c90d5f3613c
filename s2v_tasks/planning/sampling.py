"""Sampling of a plan: fields of the request, else those of the preset."""

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.plan import Sampling
from s2v_tasks.schemas.preset import Preset
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import parse_size

SAMPLING_FIELDS = ("sample_steps", "sample_guide_scale", "sample_shift", "sample_solver", "guide_steps")
LARGE_AREA = 1024 * 704
SHIFT_BELOW_LARGE_AREA, SHIFT_FROM_LARGE_AREA = 3.0, 5.0


def choose_sampling(request: Request, preset: Preset) -> Sampling:
    """Return the sampling of a new job; PermanentError for guided steps that do not fit the other values."""
    area = None
    if request.size is not None:
        width, height = parse_size(request.size)
        area = width * height
    return _checked(request, preset, area)


def choose_sampling_of_rerun(request: Request, preset: Preset, area: int) -> Sampling:
    """Return the sampling of another preset for a video whose frames have `area` pixels; see `choose_sampling`."""
    return _checked(request, preset, area)


def change_sampling(sampling: Sampling, request: Request) -> Sampling:
    """Return `sampling` with the fields that the request gives."""
    changed = {name: value for name in SAMPLING_FIELDS if (value := getattr(request, name)) is not None}
    return check_guide_steps(Sampling.model_validate(sampling.model_dump() | changed))


def _checked(request: Request, preset: Preset, area: int | None) -> Sampling:
    defaults = {name: getattr(preset, name) for name in SAMPLING_FIELDS}
    if area is not None:
        defaults["sample_shift"] = SHIFT_BELOW_LARGE_AREA if area < LARGE_AREA else SHIFT_FROM_LARGE_AREA
    return change_sampling(Sampling(**defaults, start_from_ref=request.start_from_ref), request)


def check_guide_steps(sampling: Sampling) -> Sampling:
    """Return `sampling`; PermanentError if its guided steps are beyond its steps, or if guidance is off."""
    if sampling.guide_steps is None:
        return sampling
    first, end = sampling.guide_steps
    if sampling.sample_guide_scale <= 1:
        raise PermanentError(
            f"guide_steps [{first}, {end}] with sample_guide_scale {sampling.sample_guide_scale:g}: expected a scale "
            "above 1. Leave guide_steps out or raise the scale."
        )
    if not first < end <= sampling.sample_steps:
        raise PermanentError(
            f"guide_steps [{first}, {end}]: expected a range within the {sampling.sample_steps} steps (sample_steps), "
            f"such as [0, {max(1, sampling.sample_steps // 2)}]."
        )
    return sampling
