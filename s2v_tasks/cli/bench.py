"""`s2v bench`: measurements of the engine on this machine, each a table of ratios taken in one run."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from typing import Annotated, Any

import typer
from rich.table import Table

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import OPERATORS, console
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.lifetime import end_with_parent

bench = typer.Typer(help="Measure the engine on this machine, with random weights.", no_args_is_help=True)
app.add_typer(bench, name="bench", rich_help_panel=OPERATORS)

# Of the dimensions that a command does not name: about 50 million parameters with heads as wide as in the released
# model, and those of that model.
PRESETS = {
    "50m": {"dim": 512, "ffn_dim": 1408, "num_heads": 4, "num_layers": 8},
    "14b": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}

# A checkpoint below this loads faster than the interpreter and the ranks get ready.
_TELLING_GIGABYTES = 2.0

PresetName = Annotated[str, typer.Option(help=f"Dimensions: {', '.join(PRESETS)}; single ones may be set besides.")]
Dim = Annotated[int | None, typer.Option(min=64, help="Width of the transformer.")]
Layers = Annotated[int | None, typer.Option(min=1, help="Number of blocks.")]
Heads = Annotated[int | None, typer.Option(min=1, help="Attention heads.")]
Ffn = Annotated[int | None, typer.Option(min=1, help="Width of the feed-forward layers.")]
VideoSize = Annotated[str, typer.Option(help="W*H of the video, multiples of 64.")]
Frames = Annotated[int, typer.Option(min=4, max=120, help="Frames of the clip, a multiple of 4.")]
Repeats = Annotated[int, typer.Option(min=1, help="Steps that are timed; the median counts.")]
LayoutName = Annotated[str, typer.Option(help="How several ranks share the work: auto, or like cfg2,ulysses2.")]


@bench.command()
def step(
    preset: PresetName = "50m",
    dim: Dim = None,
    layers: Layers = None,
    heads: Heads = None,
    ffn: Ffn = None,
    size: VideoSize = "448*256",
    frames: Frames = 16,
    repeats: Repeats = 3,
    attention: Annotated[
        str, typer.Option(help="As S2V_ATTENTION: auto, sdpa, cudnn, flash, flash2, flash3, sage.")
    ] = "auto",
    layout: LayoutName = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Time a denoising step with guidance: as rendered, against what the reference computes.

    Under torchrun all ranks share the step.
    """
    shape = {"dim": dim, "num_layers": layers, "num_heads": heads, "ffn_dim": ffn}
    report = _measure_step(_dimensions(preset, shape), size, frames, (repeats, attention, layout))
    if report is None:
        return
    if as_json:
        typer.echo(json.dumps(report))
        return
    console.print(
        f"{report['parameters'] / 1e6:.0f} M parameters, {report['tokens']} tokens, "
        f"{report['step_tflop']:.3g} TFLOP per step, {report['precision']} on {report['device']}, "
        f"{report['world_size']} ranks ({report['layout']})"
    )
    table = Table("variant", "s per step", "ratio", "tokens/s", "TFLOP/s", "MFU", "max abs diff")
    slowest = max(row["seconds_per_step"] for row in report["rows"])
    for row in report["rows"]:
        seconds = row["seconds_per_step"]
        table.add_row(
            row["name"],
            f"{seconds:.3f}",
            f"{slowest / seconds:.2f}",
            f"{report['tokens'] / seconds:.0f}",
            f"{report['step_tflop'] / seconds:.3f}",
            f"{row['mfu']:.1%}" if row["mfu"] is not None else "",
            f"{row['max_abs_diff']:.1e}",
        )
    console.print(table)


@bench.command()
def scaling(
    ranks: Annotated[str, typer.Option(help="Numbers of processes to compare.")] = "1,2,4",
    preset: PresetName = "50m",
    size: VideoSize = "448*256",
    frames: Frames = 32,
    repeats: Repeats = 3,
    layout: LayoutName = "auto",
) -> None:
    """Time a denoising step on several numbers of ranks of this machine, against the first of them.

    On a CPU the ranks share its cores: there the table shows what the exchange costs, not what it gains.
    """
    options = ["--preset", preset, "--size", size, "--frames", str(frames), "--repeats", str(repeats), "--json"]
    table = Table("ranks", "layout", "s per step", "speedup", "efficiency")
    first: float | None = None
    for num_ranks in _numbers(ranks):
        report = _on_ranks(num_ranks, [*options, "--layout", layout if num_ranks > 1 else "auto"])
        seconds = report["rows"][0]["seconds_per_step"]
        first = first or seconds * num_ranks  # perfect scaling from one rank on
        table.add_row(
            str(num_ranks),
            report["layout"],
            f"{seconds:.3f}",
            f"{first / seconds:.2f}",
            f"{first / seconds / num_ranks:.0%}",
        )
    console.print(table)


@bench.command()
def load(
    gigabytes: Annotated[float, typer.Option(min=0.008, help="Size of the checkpoint that is written for it.")] = 0.5,
    ranks: Annotated[int, typer.Option(min=1, max=8, help="Processes that load at once, besides one alone.")] = 2,
) -> None:
    """Load a checkpoint of a given size from the page cache; the ratio is to the naive way on as many ranks."""
    from s2v_tasks.engine.bench.load import bench_load

    results = bench_load(gigabytes * 1e9, ranks, _device())
    naive = {result.num_ranks: result.seconds for result in results if result.name == "naive"}
    table = Table("loader", "ranks", "seconds", "ratio", "GB/s", "peak host memory per rank / checkpoint")
    for result in results:
        table.add_row(
            result.name,
            str(result.num_ranks),
            f"{result.seconds:.2f}",
            f"{naive[result.num_ranks] / result.seconds:.2f}",
            f"{result.bytes_per_second / 1e9:.2f}",
            f"{result.host_memory_ratio:.2f}",
        )
    console.print(table)
    if gigabytes < _TELLING_GIGABYTES:
        console.print(
            f"[yellow]{gigabytes:g} GB take as long to start as to read: compare loaders from --gigabytes "
            f"{_TELLING_GIGABYTES:g} on.[/yellow]"
        )


@bench.command()
def cache(
    preset: PresetName = "50m",
    size: VideoSize = "256*256",
    frames: Frames = 16,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps of the clip.")] = 20,
    thresholds: Annotated[str, typer.Option(help="Values of S2V_STEP_CACHE to compare.")] = "0.02,0.05,0.1",
) -> None:
    """Denoise a clip with the step cache at several thresholds; error and ratio are to the one without it.

    With random weights: the released ones change otherwise from step to step.
    """
    from s2v_tasks.engine.bench.cache import bench_cache
    from s2v_tasks.engine.bench.step import StepBench
    from s2v_tasks.engine.models.config import S2VConfig
    from s2v_tasks.engine.worker import choose_device
    from s2v_tasks.settings import load_settings

    width, height = _sides(size)
    config = S2VConfig.from_json(_dimensions(preset, {"num_layers": None}))
    shape = StepBench(config, (_latent_frames(frames), height // 8, width // 8))
    results = bench_cache(shape, steps, _shares(thresholds), choose_device(load_settings().device))
    table = Table("threshold", "forwards left out", "seconds", "ratio", "relative error")
    for result in results:
        table.add_row(
            f"{result.threshold:g}" if result.threshold else "off",
            f"{result.skipped_share:.0%}",
            f"{result.seconds:.2f}",
            f"{results[0].seconds / result.seconds:.2f}",
            f"{result.relative_error:.1e}",
        )
    console.print(table)


@bench.command()
def decode(
    size: VideoSize = "256*256",
    frames: Frames = 16,
    base_dim: Annotated[int, typer.Option(min=8, help="Channels of the VAE; the released one has 96.")] = 32,
    ranks: Annotated[int, typer.Option(min=1, max=8, help="Processes that share the picture.")] = 2,
) -> None:
    """Decode a later clip of a chain: with its history, without, and in bands on several ranks."""
    from s2v_tasks.engine.bench.decode import DecodeBench, bench_decode

    width, height = _sides(size)
    results = bench_decode(DecodeBench(base_dim, frames, height, width), ranks, _device())
    table = Table("decoded", "seconds", "ratio", "max abs diff")
    for result in results:
        ratio = results[0].seconds / result.seconds
        table.add_row(result.name, f"{result.seconds:.2f}", f"{ratio:.2f}", f"{result.max_abs_diff:.1e}")
    console.print(table)


def _device() -> str:
    from s2v_tasks.engine.worker import choose_device
    from s2v_tasks.settings import load_settings

    return choose_device(load_settings().device).type


def _measure_step(
    dimensions: dict[str, int], size: str, frames: int, how: tuple[int, str, str]
) -> dict[str, Any] | None:
    """What `step` prints; None on the ranks that print nothing."""
    from s2v_tasks.engine.bench.step import StepBench, bench_step
    from s2v_tasks.engine.models.config import S2VConfig
    from s2v_tasks.engine.worker import open_worker
    from s2v_tasks.planning.estimate import ClipShape, clip_tokens, forward_flops
    from s2v_tasks.schemas.model_card import load_gpu_card, load_model_card
    from s2v_tasks.settings import config_dir, load_settings
    from s2v_tasks.steps.clip_meter import peak_flops_per_second

    settings = load_settings()
    width, height = _sides(size)
    repeats, attention, layout = how
    config = S2VConfig.from_json(dimensions)
    measurement = StepBench(config, (_latent_frames(frames), height // 8, width // 8), repeats, attention, layout)
    with open_worker(settings.device) as worker:
        worker.share()
        report = bench_step(measurement, worker)
    if not worker.is_leader:
        return None
    card = load_model_card(config_dir(settings), "wan2.2-s2v-14b")
    model = card.model_copy(update=dimensions | {"audio_inject_layers": config.audio_inject_layers})
    shape = ClipShape(width, height, frames, with_motion=True, starts_chain=False, ends_chain=False)
    step_flops = forward_flops(shape, model).per_step(branches=2)
    gpu = load_gpu_card(config_dir(settings), settings.gpu)
    peak = peak_flops_per_second(gpu, worker.device.type, report.precision, worker.world_size)
    return {
        "parameters": report.num_parameters,
        "tokens": clip_tokens(shape),
        "step_tflop": step_flops / 1e12,
        "device": worker.device.type,
        "world_size": worker.world_size,
        "layout": str(report.layout),
        "precision": report.precision,
        "rows": [
            {
                "name": row.name,
                "seconds_per_step": row.seconds_per_step,
                "max_abs_diff": row.max_abs_diff,
                "mfu": None if peak is None else step_flops / row.seconds_per_step / peak,
            }
            for row in report.rows
        ],
    }


def _dimensions(preset: str, given: dict[str, int | None]) -> dict[str, Any]:
    if preset not in PRESETS:
        raise PermanentError(f"--preset {preset!r}: expected one of {', '.join(PRESETS)}.")
    dimensions: dict[str, Any] = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
    if preset != "14b" or given["num_layers"]:
        dimensions["audio_inject_layers"] = list(range(0, dimensions["num_layers"], 3))  # about as dense as in the 14B
    return dimensions


def _sides(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\*(\d+)", size)
    if match is None or any(int(side) % 64 or int(side) == 0 for side in match.groups()):
        raise PermanentError(f"--size {size!r}: expected W*H, both multiples of 64, like 832*448.")
    return int(match[1]), int(match[2])


def _latent_frames(frames: int) -> int:
    if frames % 4:
        raise PermanentError(f"--frames {frames}: expected a multiple of 4.")
    return frames // 4


def _shares(text: str) -> list[float]:
    if not re.fullmatch(r"0?\.\d+(,0?\.\d+)*", text):
        raise PermanentError(f"--thresholds {text!r}: expected shares between 0 and 1 like 0.02,0.05.")
    return [float(share) for share in text.split(",")]


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d?(,[1-9]\d?)*", text):
        raise PermanentError(f"--ranks {text!r}: expected numbers of processes like 1,2,4.")
    return [int(number) for number in text.split(",")]


def _on_ranks(num_ranks: int, options: list[str]) -> dict[str, Any]:
    """The report of `s2v bench step` on processes of their own; their log goes to stderr."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *launcher, "-m", "s2v_tasks.cli", "bench", "step", *options]
    end_with_us = partial(end_with_parent, signal.SIGTERM, os.getpid())
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, preexec_fn=end_with_us)
    if done.returncode != 0:
        raise TransientError(f"bench step on {num_ranks} ranks ended with code {done.returncode}; its log is above.")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
