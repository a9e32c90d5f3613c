"""Check adapters and the step cache in plans."""

from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.planning.installation import Installation
from s2v_tasks.planning.rerun import replan
from s2v_tasks.planning.sampling import STEP_CACHE_THRESHOLDS
from s2v_tasks.planning.table import plan_table
from s2v_tasks.schemas.catalogue import Catalogue
from s2v_tasks.schemas.model_card import AdapterCard, load_adapter_cards
from s2v_tasks.schemas.preset import load_presets
from s2v_tasks.schemas.request_parsing import parse_request
from tests.unit.planning.conftest import CONFIG, FIELDS, PlanOf

TEN_SECONDS = 10 * 16000
CARDS = {
    "four-steps": AdapterCard(
        name="four-steps", path=Path("a.safetensors"), sha256="a" * 64, purpose="Previews.", warning="lips suffer.",
        sample_steps=4, sample_guide_scale=1.0, sample_shift=8.0, sample_solver="euler",
    ),
    "voice": AdapterCard(name="voice", path=Path("b.safetensors"), sha256="b" * 64, purpose="Style."),
}  # fmt: skip


@pytest.fixture
def adapted(plan_of: PlanOf) -> PlanOf:
    """Makes plans of an installation whose catalogue has two adapters."""
    return lambda **fields: plan_of(TEN_SECONDS, catalogue=CARDS, **fields)


def test_the_sampling_of_an_adapter_is_a_default(adapted: PlanOf) -> None:
    """The sampling of an adapter replaces that of the preset, and the request replaces both."""
    plan = adapted(adapters=[{"name": "four-steps"}])
    sampling = plan.sampling
    assert (sampling.sample_steps, sampling.sample_solver, sampling.sample_shift) == (4, "euler", 8.0)
    assert sampling.guided_steps == 0
    assert adapted(adapters=[{"name": "four-steps"}], sample_steps=6).sampling.sample_steps == 6
    assert adapted(adapters=[{"name": "voice"}]).sampling == adapted().sampling


def test_the_plan_states_digest_strength_and_warning(adapted: PlanOf) -> None:
    """The plan has digest and strength of each adapter; one of strength 0 is left out."""
    plan = adapted(adapters=[{"name": "four-steps", "strength": 0.5}, {"name": "voice", "strength": 0}])
    assert [item.model_dump() for item in plan.adapters] == [
        {"name": "four-steps", "sha256": "a" * 64, "strength": 0.5}
    ]
    assert "Adapter four-steps: lips suffer." in plan.warnings
    assert plan_table(plan)


def test_digests_of_clips_depend_on_the_adapters(adapted: PlanOf) -> None:
    """Each strength has its own digest; without adapters it is that of earlier plans."""
    plain, none = adapted(), adapted(adapters=[])
    half, whole = (adapted(adapters=[{"name": "voice", "strength": strength}]) for strength in (0.5, 1.0))
    digests = [plan.digest_of(plan.clips[0]) for plan in (plain, none, half, whole)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert plain.adapter_fingerprint == []


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([{"name": "cinema"}], "adapter 'cinema' is not an entry of adapters.yaml: expected one of four-steps, voice"),
        ([{"name": "voice"}, {"name": "voice"}], "names an adapter twice"),
        ([{"name": "voice", "strength": 9}], "less than or equal to 4"),
        ([{"name": "../voice"}], "adapters.0.name"),
    ],
)
def test_impossible_adapters_are_refused(adapted: PlanOf, chosen: list[dict[str, Any]], words: str) -> None:
    """The message names the adapter and the expectation."""
    with pytest.raises(PermanentError, match=words):
        adapted(adapters=chosen)


def test_a_rerun_keeps_or_replaces_adapters(adapted: PlanOf, model_14b: Any, h100: Any) -> None:
    """Omitted adapters are those of the parent, and an empty list removes them."""
    parent = adapted(adapters=[{"name": "voice"}])
    request = parse_request(FIELDS | {"adapters": [{"name": "voice"}]})
    installation = Installation(Catalogue(load_presets(CONFIG), CARDS), model_14b, h100, max_clips=240)
    rerun = {"parent_job_id": "job-1", "from_clip": 0}
    kept = replan(parent, parse_request(FIELDS | rerun), request, "job-2", installation)
    removed = replan(parent, parse_request(FIELDS | rerun | {"adapters": []}), request, "job-2", installation)
    assert kept.adapters == parent.adapters
    assert removed.adapters == ()


def test_the_step_cache_is_a_level(plan_of: PlanOf) -> None:
    """The plan has the threshold of the level, and its memory counts; without a level it is the installation's."""
    plans = {level: plan_of(TEN_SECONDS, step_cache=level) for level in (None, "off", "quality", "fast")}
    thresholds = [plan.sampling.step_cache for plan in plans.values()]
    assert thresholds == [None, 0.0, STEP_CACHE_THRESHOLDS["quality"], STEP_CACHE_THRESHOLDS["fast"]]
    assert 0 < STEP_CACHE_THRESHOLDS["quality"] < STEP_CACHE_THRESHOLDS["fast"]
    memory = {level: plan.estimate.peak_gpu_memory_gib for level, plan in plans.items()}
    assert memory[None] == memory["off"] < memory["quality"] == memory["fast"]
    with pytest.raises(PermanentError, match="step_cache 'turbo': input should be 'off', 'quality' or 'fast'"):
        plan_of(TEN_SECONDS, step_cache="turbo")


def test_the_catalogue_is_checked(tmp_path: Path) -> None:
    """The shipped catalogue is empty, a missing file is an empty one, and a bad entry is a configuration error."""
    assert load_adapter_cards(CONFIG) == load_adapter_cards(tmp_path) == {}
    (tmp_path / "adapters.yaml").write_text(f"voice:\n  path: v.safetensors\n  sha256: {'c' * 64}\n  purpose: Style.\n")
    assert load_adapter_cards(tmp_path)["voice"].least_matched == 0.9
    (tmp_path / "adapters.yaml").write_text("voice:\n  path: v.safetensors\n  sha256: abc\n")
    with pytest.raises(ConfigurationError, match=r"adapters\.yaml is not a valid file of adapters"):
        load_adapter_cards(tmp_path)
