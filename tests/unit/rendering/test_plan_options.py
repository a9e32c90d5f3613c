"""Check options and adapters of a plan."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.planning.sampling import planned_adapters
from s2v_tasks.rendering.renderer import plan_adapters, plan_options
from s2v_tasks.schemas.model_card import load_adapter_cards
from s2v_tasks.schemas.plan import PlannedAdapter
from s2v_tasks.schemas.request_fields import AdapterChoice
from s2v_tasks.settings import Settings
from tests.unit.rendering.test_leader import plan

CONTENT = b"\x02\0\0\0\0\0\0\0{}"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return an installation with one adapter beside its snapshot."""
    (tmp_path / "presets.yaml").write_text("")
    (tmp_path / "adapters.yaml").write_text(
        f"voice:\n  path: lora/v.safetensors\n  sha256: {SHA256}\n  purpose: Style.\n  alpha: 64\n"
    )
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "v.safetensors").write_bytes(CONTENT)
    return Settings(config_dir=tmp_path, snapshot_path=tmp_path / "snapshot", step_cache=0.03)


def with_adapter(**changes: Any) -> Any:
    return plan(
        adapters=(PlannedAdapter(**{"name": "voice", "sha256": SHA256, "strength": 0.5, "alpha": 64} | changes),)
    )


def test_adapters_lie_beside_the_snapshot(settings: Settings, tmp_path: Path) -> None:
    """Relative paths of the catalogue start at the snapshot's folder; without adapters nothing is read."""
    (adapter,) = plan_adapters(settings, with_adapter())
    assert adapter.path == tmp_path / "lora" / "v.safetensors"
    assert (adapter.strength, adapter.alpha, adapter.least_matched) == (0.5, 64, 0.9)
    assert plan_adapters(Settings(config_dir=tmp_path / "nowhere"), plan()) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "adapter voice has another digest in adapters.yaml than in the plan: expected 00000000"),
        ({"name": "gone"}, "adapter gone has another digest in adapters.yaml"),
        ({"alpha": None}, "adapter voice has alpha 64.0 in adapters.yaml: expected None, as in the plan"),
        ({"alpha": 32}, "adapter voice has alpha 64.0 in adapters.yaml: expected 32.0, as in the plan"),
    ],
)
def test_a_changed_catalogue_is_refused(settings: Settings, changes: dict[str, Any], words: str) -> None:
    """An adapter whose digest or alpha differs from the plan's is an error before anything is loaded."""
    with pytest.raises(ConfigurationError, match=words):
        plan_adapters(settings, with_adapter(**changes))


def test_the_alpha_of_the_catalogue_is_part_of_the_fingerprint(settings: Settings) -> None:
    """Clips with another alpha have another fingerprint; without an alpha the fingerprint is that of earlier clips."""
    card = load_adapter_cards(settings.config_dir or Path())["voice"]
    chosen = [AdapterChoice(name="voice", strength=0.5)]
    prints = [
        plan(adapters=planned_adapters(chosen, {"voice": card.model_copy(update={"alpha": alpha})})).adapter_fingerprint
        for alpha in (None, 32.0, 64.0)
    ]
    assert prints[0] == [{"adapters": [[SHA256, 0.5]]}]
    assert prints[1] != prints[2] != prints[0] != prints[1]


def test_a_changed_file_is_refused(settings: Settings, tmp_path: Path) -> None:
    """An adapter file whose digest differs from the catalogue's is refused."""
    (tmp_path / "lora" / "v.safetensors").write_bytes(b"other bytes")
    with pytest.raises(ConfigurationError, match=r"v\.safetensors has sha256"):
        plan_adapters(settings, with_adapter())


@pytest.mark.parametrize(("chosen", "expected"), [(None, 0.03), (0.0, 0.0), (0.1, 0.1)])
def test_the_step_cache_of_the_plan_counts(settings: Settings, chosen: float | None, expected: float) -> None:
    """The threshold is the plan's, or that of the installation if the plan has none."""
    made = plan()
    made = made.model_copy(update={"sampling": made.sampling.model_copy(update={"step_cache": chosen})})
    assert plan_options(settings, made).step_cache == expected
