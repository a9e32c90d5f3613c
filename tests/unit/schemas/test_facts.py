"""Check typed facts and the manifests that contain them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from s2v_tasks.schemas.manifest import (
    AssemblyFacts,
    ClipFacts,
    ConditionsFacts,
    Facts,
    Manifest,
    PartialClipFacts,
    Producer,
    StagedFacts,
)
from s2v_tasks.schemas.steps import RENDER_CLIP, STAGE_INPUTS, STITCH

# Written by version 0.1.0 before facts were typed.
OLD_MANIFESTS = sorted((Path(__file__).parent / "manifests").glob("*.json"))
NOW = datetime(2026, 11, 26, tzinfo=UTC)


def manifest(step: str, facts: Any) -> Manifest:
    return Manifest(
        step=step,
        job_id="talk",
        fingerprint="f",
        producer=Producer(package_version="1"),
        inputs={},
        outputs={},
        started_at=NOW,
        finished_at=NOW,
        facts=facts,
    )


@pytest.mark.parametrize("path", OLD_MANIFESTS, ids=lambda path: path.stem)
def test_an_old_manifest_loads_and_is_written_as_it_was(path: Path) -> None:
    """Reading and writing a manifest keeps every byte of it, also of its facts."""
    text = path.read_text(encoding="utf-8")
    loaded = Manifest.model_validate_json(text)
    assert type(loaded.facts) is not Facts
    assert loaded.model_dump_json(indent=2) == text


def test_facts_have_the_type_of_their_step() -> None:
    """Facts are attributes, and reading those of another step is an error of the program."""
    facts = manifest(RENDER_CLIP.name, {"start_frame": 0, "end_frame": 80, "encoder": "x264"}).facts_as(ClipFacts)
    assert (facts.end_frame, facts.encoder, facts.mfu) == (80, "x264", None)
    with pytest.raises(TypeError, match="facts of render_clip are ClipFacts: expected StagedFacts"):
        manifest(RENDER_CLIP.name, facts).facts_as(StagedFacts)


def test_an_interrupted_clip_has_other_facts_than_a_rendered_one() -> None:
    """The manifest of a saved state has facts of its own."""
    saved = manifest(RENDER_CLIP.name, {"solver_step": 3, "render_seconds": 1.5})
    assert saved.facts == PartialClipFacts(solver_step=3, render_seconds=1.5)


def test_only_facts_that_were_set_are_written() -> None:
    """A field with its default is not written, so that later fields change no manifest."""
    assert manifest(STITCH.name, AssemblyFacts()).model_dump()["facts"] == {}
    assert manifest(STITCH.name, AssemblyFacts(encoders=("a",))).model_dump(mode="json")["facts"] == {"encoders": ["a"]}


def test_facts_of_a_later_program_are_kept() -> None:
    """A copied manifest keeps facts that this version does not know."""
    later = manifest(RENDER_CLIP.name, {"start_frame": 0, "end_frame": 4, "watts": 300})
    assert Manifest.model_validate_json(later.model_dump_json()).model_dump()["facts"]["watts"] == 300


def test_a_copy_names_the_job_that_made_the_outputs() -> None:
    """A copy of a copy names the first job, and copied outputs do not count as made by this job."""
    own = manifest("x", Facts())
    copy = own.model_copy(update={"facts": own.facts.made_by("first").made_by("second")})
    assert copy.facts.source_job_id == "first"
    assert (own.made_at, copy.made_at) == (NOW, None)


@pytest.mark.parametrize(("step", "facts"), [(STAGE_INPUTS.name, {"image": {}}), (RENDER_CLIP.name, {"end_frame": 4})])
def test_facts_without_required_fields_are_invalid(step: str, facts: dict[str, Any]) -> None:
    """A manifest without required facts is invalid, so that its step runs again."""
    with pytest.raises(ValidationError):
        manifest(step, facts)


def test_facts_keep_their_type_in_a_base_class() -> None:
    """Facts of outputs that were kept on disk get their type when the manifest is made."""
    kept = Facts.model_validate({"prompt": "p", "shapes": {"audio": [1, 2]}})
    assert manifest("encode_conditions", kept).facts == ConditionsFacts(prompt="p", shapes={"audio": (1, 2)})
