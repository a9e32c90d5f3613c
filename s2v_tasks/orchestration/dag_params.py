"""Generate the form of the DAG from the fields of a request in `schemas.request`."""

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Param

from s2v_tasks.schemas.catalogue import EMPTY, Catalogue, load_catalogue
from s2v_tasks.schemas.job import JOB_ID_PATTERN, PRIORITIES
from s2v_tasks.schemas.preset import prefilled_request
from s2v_tasks.schemas.request import Request
from s2v_tasks.settings import config_dir, load_settings

_LABELS = {
    "continuity": {
        "chained": "One chain: each clip continues the previous clip",
        "cut": "Cut at pauses: chains render in parallel",
    },
    "transition": {"cut": "Plain cut", "crossfade": "Cross-fade (250 ms)"},
    "quality": {"off": "Off", "report": "Measure and report", "gate": "Render bad clips again"},
    "after_retakes": {"keep_best": "Go on with the best take", "stop": "Stop the job"},
    "approval": {"none": "None", "result": "The finished video", "each_clip": "Each clip and the video"},
    "priority": {name: name.capitalize() for name in PRIORITIES},
    # The form of Airflow uses "null" for a choice that may stay empty.
    "sample_solver": {"unipc": "UniPC", "dpm++": "DPM++", "euler": "Euler (few steps)", "null": "As the preset says"},
    "step_cache": {
        "off": "Off",
        "quality": "Quality (small error)",
        "fast": "Fast (larger error)",
        "null": "As the installation says",
    },
}


def form_params() -> dict[str, Param]:
    """Return the form of this installation; on a CPU it is filled with the request of the demo."""
    settings = load_settings()
    return request_params(load_catalogue(config_dir(settings)), prefilled_request(settings))


def request_params(catalogue: Catalogue, prefill: Mapping[str, Any]) -> dict[str, Param]:
    """Return a Param for each field of a request, in its order and with its bounds, and for `job_id`.

    `prefill` replaces defaults, so that the form can be submitted unchanged; other required fields are empty.
    """
    properties: dict[str, dict[str, Any]] = Request.model_json_schema()["properties"]
    params = {name: field_param(name, schema, catalogue, prefill) for name, schema in properties.items()}
    params["job_id"] = Param(
        prefill.get("job_id"),
        title="Job id",
        description="Empty: derived from the run id. The id of an earlier job resumes that job and reuses its "
        "finished clips.",
        type=["null", "string"],
        pattern=JOB_ID_PATTERN,
        section="Rerun",
    )
    return params


def field_param(
    name: str, schema: dict[str, Any], catalogue: Catalogue = EMPTY, prefill: Mapping[str, Any] | None = None
) -> Param:
    """Return the Param of one field with this JSON schema."""
    keywords = {key: value for key, value in schema.items() if key not in {"default", "anyOf"}}
    for alternative in schema.get("anyOf", []):
        if alternative["type"] != "null":
            keywords |= alternative | {"type": ["null", alternative["type"]]}
            if "enum" in alternative:  # JSON schema: null must be a member too
                keywords["enum"] = [*alternative["enum"], None]
    if name in _LABELS:
        keywords["values_display"] = _LABELS[name]
    if name == "prompt":
        keywords["format"] = "multiline"
    if name == "preset":
        keywords["enum"] = list(catalogue.presets)
        keywords["values_display"] = {key: preset.label for key, preset in catalogue.presets.items()}
    if name == "adapters":
        choice = keywords["items"]["properties"]
        known = {"name": choice["name"] | {"enum": list(catalogue.adapters)}}
        keywords["items"] = keywords["items"] | {"properties": choice | known}
    return Param((prefill or {}).get(name, schema.get("default", "")), **keywords)
