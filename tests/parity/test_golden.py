"""Check that the engine equals the reference, number by number."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.planning.resolution import output_size
from s2v_tasks.verification.parity import components
from s2v_tasks.verification.parity.golden import CaseResult, load_golden
from s2v_tasks.verification.parity.runner import parse_target, run

GOLDEN = Path(__file__).parents[1] / "golden"
ALL_GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
OTHER_DIMENSIONS = {
    "dim": 96, "ffn_dim": 80, "num_heads": 2, "num_layers": 3, "freq_dim": 12, "text_dim": 10, "text_len": 9,
    "audio_dim": 6, "audio_inject_layers": [1, 2], "num_audio_token": 2,
}  # fmt: skip


def rows_of(folder: Path) -> list[CaseResult]:
    return run(folder, output_size=output_size)


def failures(folder: Path) -> dict[str, CaseResult]:
    return {row.name: row for row in rows_of(folder) if not row.ok}


def rewrite(source: Path, target: Path, **changes: torch.Tensor) -> None:
    """Copy a golden file with some of its tensors replaced."""
    golden = load_golden(source)
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    save_file(golden.tensors | changes, target, metadata=metadata)


def test_every_golden_of_the_repository_is_reproduced() -> None:
    """Forwards, sampling loops, solvers and tables are within their tolerances."""
    rows = rows_of(GOLDEN)
    assert [row for row in rows if not row.ok] == []
    assert {path.stem for path in GOLDEN.iterdir()} - {"README"} <= {row.name.split(" ")[0] for row in rows}


@pytest.mark.skipif(not ALL_GOLDEN.is_dir(), reason="the complete golden set is not beside the repository")
def test_every_golden_of_the_complete_set_is_reproduced() -> None:
    """The larger set, with real VAE, pose video, images and wav2vec2, is within its tolerances."""
    assert failures(ALL_GOLDEN) == {}


@pytest.mark.parametrize("change", [1e-4, float("nan")])
def test_a_changed_output_fails_its_case(tmp_path: Path, change: float) -> None:
    """An element that differs by five tolerances, or is NaN, fails its case."""
    shutil.copy(GOLDEN / "dit_tiny.safetensors", tmp_path)
    out = load_golden(GOLDEN / "dit_case_next.safetensors")["out"].clone()
    out[0, 0, 0, 0] += change
    rewrite(GOLDEN / "dit_case_next.safetensors", tmp_path / "dit_case_next.safetensors", out=out)
    assert list(failures(tmp_path)) == ["dit_case_next"]


def test_a_changed_weight_fails_the_forward(tmp_path: Path) -> None:
    """One wrong weight tensor of the last audio injection fails the forward."""
    key = "audio_injector.injector_adain_layers.2.linear.bias"
    weight = load_golden(GOLDEN / "dit_tiny.safetensors")[key]
    rewrite(GOLDEN / "dit_tiny.safetensors", tmp_path / "dit_tiny.safetensors", **{key: weight + 0.01})
    shutil.copy(GOLDEN / "dit_case_next.safetensors", tmp_path)
    assert "dit_case_next" in failures(tmp_path)


def test_a_changed_loop_fails_at_the_clip_that_changed(tmp_path: Path) -> None:
    """Other noise in the second clip fails at the latents of that clip."""
    shutil.copy(GOLDEN / "dit_tiny.safetensors", tmp_path)
    source = GOLDEN / "loop_startref_nocfg.safetensors"
    noise = load_golden(source)["clip1.noise"] * 1.001
    rewrite(source, tmp_path / source.name, **{"clip1.noise": noise})
    assert "worst clip1" in failures(tmp_path)["loop_startref_nocfg"].note


def test_goldens_of_other_dimensions_run(tmp_path: Path) -> None:
    """A set with other dimensions is loaded and compared."""
    write_case(tmp_path, OTHER_DIMENSIONS)
    assert failures(tmp_path) == {}


def test_goldens_that_cannot_run_are_failing_rows(tmp_path: Path) -> None:
    """An unknown file, missing weights and a damaged file are failing rows and do not stop the others."""
    (tmp_path / "surprise.safetensors").write_bytes(b"")
    (tmp_path / "scheduler_cases.safetensors").write_bytes(b"damaged")
    shutil.copy(GOLDEN / "dit_case_next.safetensors", tmp_path)
    shutil.copy(GOLDEN / "size_cases.json", tmp_path)
    found = failures(tmp_path)
    assert set(found) == {"surprise", "scheduler_cases", "dit_case_next"}
    assert "add the weights" in found["dit_case_next"].note


def test_files_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    """Other files beside the goldens are ignored."""
    shutil.copy(GOLDEN / "size_cases.json", tmp_path)
    for name in ("notes.txt", "dit_case_notes.txt", "loop_notes.txt"):
        (tmp_path / name).write_text("only words")
    assert [row.name for row in rows_of(tmp_path)] == ["size_cases"]


def test_a_silent_file_is_not_hidden_by_one_of_a_longer_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without a row fails, whatever the other files of the folder give."""
    for name in ("t5_tiny", "t5_tiny_b"):
        shutil.copy(GOLDEN / "t5_tiny.safetensors", tmp_path / f"{name}.safetensors")
    speaking = components.cases
    monkeypatch.setattr(
        components,
        "cases",
        lambda *args, **named: (row for row in speaking(*args, **named) if row.name.startswith("t5_tiny_b")),
    )
    assert list(failures(tmp_path)) == ["t5_tiny"]


def test_a_folder_without_goldens_is_an_error(tmp_path: Path) -> None:
    """A folder without goldens is an error and not a success."""
    (tmp_path / "README.md").write_text("only words")
    with pytest.raises(PermanentError, match="holds no golden files"):
        rows_of(tmp_path)


def write_case(folder: Path, dimensions: dict[str, object]) -> None:
    """Write a weights file and one forward of a random transformer in the golden format."""
    torch.manual_seed(0)
    config = S2VConfig.from_json(dimensions)
    model = S2VTransformer(config)
    inputs = {
        "in.latents": torch.randn(16, 2, 8, 16),
        "in.timestep": torch.tensor([7]),
        "in.context": torch.randn(4, config.text_dim),
        "in.ref_latents": torch.randn(1, 16, 1, 8, 16),
        "in.motion_latents": torch.randn(1, 16, 19, 8, 16),
        "in.cond_states": torch.randn(1, 16, 2, 8, 16),
        "in.audio_input": torch.randn(1, 25, config.audio_dim, 8),
    }
    outputs: list[torch.Tensor] = []
    model.casual_audio_encoder.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
    with torch.inference_mode():
        clip_tokens = model.prepare_clip_tokens(
            2, inputs["in.ref_latents"], inputs["in.motion_latents"], inputs["in.cond_states"]
        )
        conditioning = model.prepare_conditioning(inputs["in.context"], inputs["in.audio_input"][0].permute(2, 0, 1))
        (out,) = model(inputs["in.latents"][None], inputs["in.timestep"], clip_tokens, [conditioning])
    traces = {"trace.audio_enc.local": outputs[0].clone()}
    save_file(inputs | traces | {"out": out[0]}, folder / "dit_case.safetensors", {"drop_motion_frames": "false"})
    save_file(model.state_dict(), folder / "dit_weights.safetensors", {"config": json.dumps(dimensions)})


def test_bfloat16_has_tolerances_of_its_own(tmp_path: Path) -> None:
    """Only forwards run in bfloat16; an output that differs by more than its rounding fails."""
    bfloat16 = parse_target("cpu", "bfloat16")
    rows = run(GOLDEN, output_size=output_size, target=bfloat16)
    assert [row.name for row in rows] == ["dit_case_next", "dit_eps_case"]
    assert all(row.ok and row.max_abs_diff > 1e-3 for row in rows)
    shutil.copy(GOLDEN / "dit_tiny.safetensors", tmp_path)
    out = load_golden(GOLDEN / "dit_case_next.safetensors")["out"] * 1.02
    rewrite(GOLDEN / "dit_case_next.safetensors", tmp_path / "dit_case_next.safetensors", out=out)
    (row,) = run(tmp_path, output_size=output_size, target=bfloat16)
    assert not row.ok


def test_an_unavailable_target_is_refused() -> None:
    """Another dtype, a missing GPU, and several processes other than float32 on CPUs are refused."""
    for target, named in (
        (("cpu", "float16", 1), "float16"),
        (("tpu", "float32", 1), "tpu"),
        (("cpu", "bfloat16", 2), "2 processes"),
    ):
        with pytest.raises(ConfigurationError, match=named):
            parse_target(*target[:2], num_ranks=target[2])
