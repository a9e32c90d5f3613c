"""Check that the form has the fields, bounds and texts of the request schema."""

import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Param
from airflow.sdk.exceptions import ParamValidationError

from s2v_tasks.orchestration.dag_params import form_params, request_params
from s2v_tasks.schemas.catalogue import Catalogue, load_catalogue
from s2v_tasks.schemas.job import JOB_ID_PATTERN
from s2v_tasks.schemas.model_card import AdapterCard
from s2v_tasks.schemas.request import Request
from s2v_tasks.settings import load_settings

CATALOGUE = load_catalogue(Path(__file__).parents[2] / "config")
PRESETS = CATALOGUE.presets
ADAPTERS = {
    name: AdapterCard(name=name, path=Path("a.safetensors"), sha256="a" * 64, purpose="Style.")
    for name in ("four-steps", "voice")
}
PROPERTIES: dict[str, dict[str, Any]] = Request.model_json_schema()["properties"]
BOUNDS = ["pattern", "minimum", "maximum", "multipleOf", "minLength", "maxLength"]


@pytest.fixture(scope="module")
def params() -> dict[str, Param]:
    return request_params(Catalogue(PRESETS, ADAPTERS), prefill={})


def test_the_form_has_exactly_the_fields_of_a_request_and_the_job_id(params: dict[str, Param]) -> None:
    """The form has every field of a request and the job id, in the order of the schema."""
    assert list(params) == [*Request.model_fields, "job_id"]


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_param_has_type_bounds_and_words_of_its_field(params: dict[str, Param], name: str) -> None:
    """Type, nullability, bounds, title and description are those of the schema."""
    field, form = PROPERTIES[name], params[name].schema
    value = next((choice for choice in field.get("anyOf", []) if choice["type"] != "null"), field)
    nullable = any(choice["type"] == "null" for choice in field.get("anyOf", []))
    assert form["type"] == (["null", value["type"]] if nullable else value["type"])
    assert {key: form.get(key) for key in BOUNDS} == {key: value.get(key) for key in BOUNDS}
    assert (form["title"], params[name].description) == (field["title"], field["description"])
    assert form["section"]
    assert params[name].value == field.get("default", "")


def test_solvers_are_a_list_that_may_stay_empty(params: dict[str, Param]) -> None:
    """An optional choice accepts its members and null, nothing else."""
    assert params["sample_solver"].resolve("dpm++") == "dpm++"
    assert params["sample_solver"].resolve(None) is None
    with pytest.raises(ParamValidationError):
        params["sample_solver"].resolve("heun")


def test_adapters_are_a_list_of_names_and_strengths(params: dict[str, Param]) -> None:
    """The form accepts the adapters of the installation, and refuses others and an adapter without a name."""
    chosen = [{"name": "four-steps", "strength": 0.5}, {"name": "voice"}]
    assert params["adapters"].resolve(chosen) == chosen
    assert params["adapters"].resolve(None) is None
    with pytest.raises(ParamValidationError):
        params["adapters"].resolve([{"strength": 1}])
    with pytest.raises(ParamValidationError, match=r"'cinema' is not one of \['four-steps', 'voice'\]"):
        params["adapters"].resolve([{"name": "cinema"}])
    empty = request_params(CATALOGUE, prefill={})["adapters"]
    assert empty.resolve([]) == []
    with pytest.raises(ParamValidationError, match=r"'voice' is not one of \[\]"):
        empty.resolve([{"name": "voice"}])


def test_presets_are_a_list_with_readable_labels(params: dict[str, Param]) -> None:
    """The form offers the configured presets by their labels."""
    schema = params["preset"].schema
    assert schema["enum"] == list(PRESETS)
    assert schema["values_display"]["quick"] == PRESETS["quick"].label


def test_choices_have_labels_for_each_value(params: dict[str, Param]) -> None:
    """Every value of a choice has a label, and no label has a value that does not exist."""
    for name in ("continuity", "transition", "quality", "after_retakes", "priority", "sample_solver", "step_cache"):
        schema = params[name].schema
        assert list(schema["values_display"]) == [value or "null" for value in schema["enum"]]


def test_every_field_has_a_section_of_its_kind(params: dict[str, Param]) -> None:
    """Related fields are in one section; the last section has the fields of sampling."""
    sections: dict[str, list[str]] = {}
    for name, param in params.items():
        sections.setdefault(param.schema["section"], []).append(name)
    assert sections["Long videos"][0] == "continuity"
    assert sections["Rerun"] == ["parent_job_id", "from_clip", "job_id"]
    assert set(sections["Sampling"]) == {
        "infer_frames", "sample_steps", "sample_guide_scale", "sample_shift", "sample_solver", "guide_steps",
        "adapters", "step_cache", "base_seed", "start_from_ref",
    }  # fmt: skip


def test_the_form_refuses_what_the_schema_refuses(params: dict[str, Param]) -> None:
    """A bad value is stopped in the form, before a run exists."""
    for name, bad in [("infer_frames", 50), ("size", "wide"), ("prompt", "x" * 10_000), ("image_uri", "a.png")]:
        with pytest.raises(ParamValidationError):
            params[name].resolve(bad)


def test_the_form_takes_the_names_that_people_give_their_files(params: dict[str, Param]) -> None:
    """The form accepts the same names as a request and refuses the others."""
    uri = "s3://bucket/Fotos für Anna/Über uns 🎬 #1?.png"
    assert params["image_uri"].resolve(uri) == uri
    with pytest.raises(ParamValidationError):
        params["image_uri"].resolve("s3://bucket/a\tb.png")


def test_the_job_id_follows_the_pattern_of_the_system(params: dict[str, Param]) -> None:
    """The form accepts no job id, or one that matches the pattern."""
    assert params["job_id"].schema["pattern"] == JOB_ID_PATTERN
    assert params["job_id"].resolve(None) is None
    assert re.match(JOB_ID_PATTERN, params["job_id"].resolve("talk-2026"))


def test_the_form_of_the_embedded_stack_can_be_sent_as_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU the form is filled with a request for the sample inputs; with a GPU the inputs are empty.

    A bucket without the samples leaves them empty, too: only the size for a CPU is filled in.
    """
    monkeypatch.setenv("S2V_GPU", "cpu")
    load_settings.cache_clear()
    filled = {name: param.value for name, param in form_params().items()}
    monkeypatch.setenv("S2V_DATA_URI", "s3://own-data")
    load_settings.cache_clear()
    own = {name: param.value for name, param in form_params().items()}
    monkeypatch.setenv("S2V_GPU", "h100-sxm")
    load_settings.cache_clear()
    empty = {name: param.value for name, param in form_params().items()}
    load_settings.cache_clear()
    assert Request.model_validate({k: v for k, v in filled.items() if k != "job_id"}).size == "128*192"
    assert empty["image_uri"] == empty["prompt"] == own["image_uri"] == own["audio_uri"] == own["prompt"] == ""
    assert own["size"] == "128*192"
