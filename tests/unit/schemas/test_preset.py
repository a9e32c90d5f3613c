"""Check the presets file."""

from pathlib import Path

import pytest

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.schemas.preset import find_preset, load_presets

CONFIG = Path(__file__).parents[3] / "config"
ENTRY = (
    "fast:\n  label: Fast\n  infer_frames: 80\n  sample_steps: 4\n  sample_guide_scale: 1\n  sample_shift: 3\n"
    "  size: 480*832\n"
)


def test_shipped_presets() -> None:
    """The presets have their documented values, and only the preview is marked as one."""
    table = [
        (
            name,
            preset.num_clip,
            preset.infer_frames,
            preset.sample_steps,
            preset.sample_guide_scale,
            preset.size,
            preset.sample_shift,
        )
        for name, preset in load_presets(CONFIG).items()
    ]
    assert table == [
        ("quick", 1, 48, 25, 4.0, "480*832", 3.0),
        ("balanced", None, 80, 30, 4.5, "480*832", 3.0),
        ("high", None, 112, 40, 5.0, "1024*704", 5.0),
        ("long", None, 80, 35, 4.5, "480*832", 3.0),
        ("preview", None, 80, 4, 1.0, "480*832", 5.0),
    ]
    assert [name for name, preset in load_presets(CONFIG).items() if preset.preview] == ["preview"]


def test_own_preset_is_found(tmp_path: Path) -> None:
    """An operator's own file replaces the shipped presets."""
    (tmp_path / "presets.yaml").write_text(ENTRY)
    presets = load_presets(tmp_path)
    assert find_preset(presets, "fast").sample_steps == 4
    with pytest.raises(PermanentError, match="preset 'balanced' is unknown: expected one of fast"):
        find_preset(presets, "balanced")


@pytest.mark.parametrize(
    "text",
    [
        ENTRY.replace("infer_frames: 80", "infer_frames: 50"),
        ENTRY.replace("480*832", "100*100"),
        ENTRY.replace("sample_steps: 4", "sample_steps: true"),
        ENTRY.replace("sample_guide_scale: 1", "sample_guide_scale: true"),
        ENTRY.replace("480*832", "４８０*８３２"),
        ENTRY + "  speed: 11\n",
        "",
        "fast: [1\n",
    ],
)
def test_bad_files_are_configuration_errors(tmp_path: Path, text: str) -> None:
    """An illegal value, an unknown key, an empty and a broken file are refused with the path of the file."""
    (tmp_path / "presets.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"presets\.yaml is not a valid preset file"):
        load_presets(tmp_path)


def test_a_bad_preset_is_named_with_its_fields(tmp_path: Path) -> None:
    """The message has the name of the preset and each field that is missing or wrong, in one line."""
    (tmp_path / "presets.yaml").write_text(ENTRY.replace("480*832", "100*100") + "mine: {label: Mine}\n")
    with pytest.raises(ConfigurationError, match=r"preset fast: size '100\*100': expected sides") as refused:
        load_presets(tmp_path)
    assert "\n" not in str(refused.value)
    (tmp_path / "presets.yaml").write_text(ENTRY + "mine: {label: Mine, size: 480*832}\n")
    with pytest.raises(ConfigurationError, match=r"preset mine: infer_frames is missing; sample_steps is "):
        load_presets(tmp_path)


def test_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    """A folder without presets.yaml is refused with the path of the file."""
    with pytest.raises(ConfigurationError, match=r"presets\.yaml is not a valid preset file"):
        load_presets(tmp_path)
