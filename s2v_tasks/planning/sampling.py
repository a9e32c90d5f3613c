"""Sampling and adapters of a plan: fields of the request, else of the adapters, else of the preset."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.model_card import AdapterCard, find_adapter
from s2v_tasks.schemas.plan import PlannedAdapter, Sampling
from s2v_tasks.schemas.preset import Preset
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import AdapterChoice, parse_size

ADAPTER_FIELDS = ("sample_steps", "sample_guide_scale", "sample_shift", "sample_solver")
PRESET_FIELDS = (*ADAPTER_FIELDS, "guide_steps")
# Thresholds of the first-block cache by level; docs/how-to/speed.md has their errors.
STEP_CACHE_THRESHOLDS = {"off": 0.0, "quality": 0.05, "fast": 0.1}
LARGE_AREA = 1024 * 704
SHIFT_BELOW_LARGE_AREA, SHIFT_FROM_LARGE_AREA = 3.0, 5.0


@dataclass(frozen=True)
class Choice:
    """Sampling and adapters of a plan."""

    sampling: Sampling
    adapters: tuple[PlannedAdapter, ...]


def choose_sampling(
    request: Request, preset: Preset, cards: Mapping[str, AdapterCard], area: int | None = None
) -> Choice:
    """Return sampling and adapters for a video whose frames have `area` pixels (None: that of the request's size).

    Raises PermanentError for an unknown adapter, and for guided steps that do not fit the other values.
    """
    if area is None and request.size is not None:
        width, height = parse_size(request.size)
        area = width * height
    chosen = request.adapters if request.adapters is not None else preset.adapters
    defaults = {name: getattr(preset, name) for name in PRESET_FIELDS}
    if area is not None:
        defaults["sample_shift"] = SHIFT_BELOW_LARGE_AREA if area < LARGE_AREA else SHIFT_FROM_LARGE_AREA
    for choice in chosen:
        card = find_adapter(cards, choice.name)
        defaults |= {name: value for name in ADAPTER_FIELDS if (value := getattr(card, name)) is not None}
    defaults["step_cache"] = STEP_CACHE_THRESHOLDS.get(preset.step_cache or "")
    sampling = Sampling(**defaults, start_from_ref=request.start_from_ref)
    return Choice(change_sampling(sampling, request), planned_adapters(chosen, cards))


def planned_adapters(chosen: Sequence[AdapterChoice], cards: Mapping[str, AdapterCard]) -> tuple[PlannedAdapter, ...]:
    """Return the adapters that change something, with digest and alpha of their entries; see `choose_sampling`."""
    used = [(choice, find_adapter(cards, choice.name)) for choice in chosen if choice.strength]
    return tuple(
        PlannedAdapter(name=choice.name, sha256=card.sha256, strength=choice.strength, alpha=card.alpha)
        for choice, card in used
    )


def adapter_warnings(adapters: Sequence[PlannedAdapter], cards: Mapping[str, AdapterCard]) -> Iterator[str]:
    """Yield the warnings of the catalogue about the adapters of a plan."""
    for adapter in adapters:
        if adapter.name in cards and (warning := cards[adapter.name].warning):
            yield f"Adapter {adapter.name}: {warning}"


def change_sampling(sampling: Sampling, request: Request) -> Sampling:
    """Return `sampling` with the fields that the request gives."""
    changed = {name: value for name in PRESET_FIELDS if (value := getattr(request, name)) is not None}
    if request.step_cache is not None:
        changed["step_cache"] = STEP_CACHE_THRESHOLDS[request.step_cache]
    return check_guide_steps(Sampling.model_validate(sampling.model_dump() | changed))


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
