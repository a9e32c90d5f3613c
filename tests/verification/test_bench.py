"""Check the bench of a solver step at tiny size."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from s2v_tasks.cli import bench_cache as cache_command
from s2v_tasks.cli import bench_step as bench
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.verification.bench.cache import bench_cache
from s2v_tasks.verification.bench.step import StepBench, bench_step

CONFIG = S2VConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=16, text_dim=12, text_len=8, audio_dim=6,
    audio_inject_layers=(1,),
)  # fmt: skip
SAMPLES = Path(__file__).parents[1] / "samples"
ALONE = Worker(0, 1, torch.device("cpu"))
TINY = ["--dim", "96", "--layers", "2", "--heads", "2", "--ffn", "128", "--size", "64*64", "--frames", "8"]


def test_both_variants_give_the_same_velocity_and_one_prepares_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audio is encoded once per branch for "hoisted" and in each forward for "reference", with equal output."""
    encoded: list[int] = []
    encode = S2VTransformer.encode_audio
    monkeypatch.setattr(S2VTransformer, "encode_audio", lambda *args: encoded.append(1) or encode(*args))
    report = bench_step(StepBench(CONFIG, (2, 8, 8), repeats=2), ALONE)
    assert len(encoded) == 2 + 2 * (1 + 2)
    assert [row.name for row in report.rows] == ["hoisted", "reference"]
    assert all(row.seconds_per_step > 0 for row in report.rows)
    assert all(row.max_abs_diff < 2e-5 for row in report.rows)
    assert report.precision == "float32"


def test_an_impossible_bench_is_refused() -> None:
    """A kernel that is not installed and a layout of too many ranks are configuration errors."""
    with pytest.raises(ConfigurationError, match="flash_attn"):
        bench_step(StepBench(CONFIG, (2, 8, 8), attention="flash2"), ALONE)
    with pytest.raises(ConfigurationError, match="2 x 2 = 4 ranks"):
        bench_step(StepBench(CONFIG, (2, 8, 8), parallel_layout="cfg2,ulysses2"), ALONE)


def test_the_command_prints_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """`s2v bench step` prints a table, or JSON, without the utilisation on a CPU."""
    monkeypatch.setenv("S2V_DEVICE", "cpu")
    monkeypatch.setenv("S2V_GPU", "cpu")
    table = CliRunner().invoke(bench.bench, ["step", *TINY, "--repeats", "1"], catch_exceptions=False)
    assert re.search(r"hoisted .* \d+\.\d\d ", table.stdout)
    assert "%" not in table.stdout
    assert "1.00" in table.stdout
    answer = CliRunner().invoke(bench.bench, ["step", *TINY, "--repeats", "1", "--json"], catch_exceptions=False)
    report = json.loads(answer.stdout)
    assert report["tokens"] == 2 * 16 + 16 + 16 + 4 + 4
    assert report["rows"][0]["mfu"] is None


def test_the_options_of_the_command_are_those_of_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option sets the field of its name; the weights stay on the device, and the reference can be left out."""
    found: list[StepBench] = []

    def measure(measured: StepBench, _given: Any, *, profile: bool) -> None:
        assert not profile
        found.append(measured)

    monkeypatch.setattr(bench, "_measure_step", measure)
    options = "--repeats 7 --attention flash --layout cfg2 --first-clip --no-guidance --compile --weights fp8"
    for more in ([], [*options.split(), "--no-reference"]):
        CliRunner().invoke(bench.bench, ["step", *TINY, *more], catch_exceptions=False)
    plain, chosen = found
    assert plain == StepBench(plain.config, (2, 8, 8))
    assert chosen == StepBench(
        plain.config,
        (2, 8, 8),
        repeats=7,
        attention="flash",
        parallel_layout="cfg2",
        first_clip=True,
        guided=False,
        compiled=True,
        weights_dtype="fp8",
        with_reference=False,
    )


def test_variants_of_a_step_are_measured_alone() -> None:
    """A first clip, without motion tokens, is measured alone; the slowest kernels are listed first."""
    options = ["--first-clip", "--no-guidance", "--profile", "--repeats", "1", "--attention", "flash", "--json"]
    answer = CliRunner().invoke(bench.bench, ["step", *TINY, *options], catch_exceptions=False)
    report = json.loads(answer.stdout)
    assert (report["tokens"], report["attention"]) == (2 * 16 + 16, "flash")
    assert [row["name"] for row in report["rows"]] == ["hoisted"]
    seconds = [kernel["seconds"] for kernel in report["kernels"]]
    assert seconds == sorted(seconds, reverse=True)
    assert len(seconds) <= 25
    assert report["kernels"][0]["share"] <= 1


def test_a_step_cache_trades_accuracy_for_forwards() -> None:
    """Without the cache no forward is skipped and nothing differs; a larger threshold skips more forwards."""
    bench_of = StepBench(CONFIG, (2, 8, 8))
    off, small, large = bench_cache(bench_of, 6, [1e-6, 0.5], torch.device("cpu"))
    assert (off.skipped_share, off.relative_error) == (0, 0)
    assert (small.skipped_share, small.relative_error) == (0, 0)
    assert 0 < large.skipped_share < 1
    assert 0 < large.relative_error < 1


def test_a_step_cache_is_timed_after_the_first_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step runs before the first time is taken, because the first forward of a process is slower."""
    steps: list[int] = []
    monkeypatch.setattr(
        S2VPipeline,
        "denoise",
        lambda _self, denoising, _tokens, sampling: steps.append(sampling.sample_steps) or denoising.latents,
    )
    bench_cache(StepBench(CONFIG, (2, 8, 8)), 6, [0.5], torch.device("cpu"))
    assert steps == [1, 6, 6]


def test_a_step_cache_is_judged_with_the_weights_of_a_snapshot(tiny_snapshot_path: Path) -> None:
    """A clip is rendered from picture and speech; a threshold that skips forwards changes its frames."""
    options = ["--size", "64*64", "--frames", "8", "--steps", "6", "--thresholds", "0.00001,0.5", "--guide-scale", "1"]
    inputs = ["--image", str(SAMPLES / "portrait.jpg"), "--audio", str(SAMPLES / "speech.mp3")]
    command = ["cache", "--json", "--snapshot", str(tiny_snapshot_path), *options]
    answer = CliRunner().invoke(cache_command.bench, [*command, *inputs], catch_exceptions=False)
    off, unused, used = json.loads(answer.stdout[answer.stdout.index("{") :])["thresholds"]
    assert [(row["skipped_share"], row["relative_error"], row["psnr_db"]) for row in (off, unused)] == [
        (0, 0, None)
    ] * 2
    assert 0 < used["skipped_share"] < 1
    assert 10 < used["psnr_db"] < 100
    with pytest.raises(PermanentError, match="expected all three"):
        CliRunner().invoke(cache_command.bench, [*command, *inputs[:2]], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--size", "100*100"], "100"), (["--frames", "30"], "30"), (["--preset", "7b"], "7b")],
)
def test_bad_options_are_named(options: list[str], named: str) -> None:
    """A size that cannot be packed, frames that are no multiple of 4 and an unknown preset are permanent errors."""
    with pytest.raises(PermanentError, match=named):
        CliRunner().invoke(bench.bench, ["step", *TINY, *options], catch_exceptions=False)
