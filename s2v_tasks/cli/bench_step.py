"""`s2v bench step` and `s2v bench scaling`: time a denoising step on one and on several ranks of this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.table import Table

from s2v_tasks.cli.bench import (
    Dim,
    Ffn,
    Frames,
    Heads,
    Layers,
    LayoutName,
    PresetName,
    Repeats,
    VideoSize,
    bench,
    dimensions,
    latent_frames,
    sides,
)
from s2v_tasks.cli.terminal import console
from s2v_tasks.errors import PermanentError, TransientError
from s2v_tasks.parent_death import end_with_parent
from s2v_tasks.scratch import scratch_folder
from s2v_tasks.settings import AttentionKernel

if TYPE_CHECKING:
    from s2v_tasks.verification.bench.step import StepBench


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
        str, typer.Option(help=f"Like S2V_ATTENTION: {', '.join(get_args(AttentionKernel))}.")
    ] = "auto",
    layout: LayoutName = "auto",
    first_clip: Annotated[bool, typer.Option(help="The first clip of a chain, without motion tokens.")] = False,
    guidance: Annotated[
        bool, typer.Option(help="Compute both branches of guidance, or only the one with the prompt.")
    ] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the blocks, like S2V_COMPILE.")] = False,
    weights: Annotated[
        str, typer.Option(help="Type of the weights, like S2V_WEIGHTS_DTYPE: auto, fp8 or fp8-dynamic.")
    ] = "auto",
    reference: Annotated[
        bool,
        typer.Option(
            help="Also measure the reference implementation; this takes minutes at the size of the released model."
        ),
    ] = True,
    profile: Annotated[bool, typer.Option(help="List the slowest kernels, on one rank.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Time a denoising step, and compare it with the reference implementation.

    Under torchrun all ranks share the step.
    """
    from s2v_tasks.engine.models.config import S2VConfig
    from s2v_tasks.verification.bench.step import StepBench

    given = dimensions(preset, {"dim": dim, "num_layers": layers, "num_heads": heads, "ffn_dim": ffn})
    width, height = sides(size)
    if weights not in {"auto", "fp8", "fp8-dynamic"}:
        raise PermanentError(f"--weights {weights!r}: expected auto, fp8 or fp8-dynamic.")
    measured = StepBench(
        S2VConfig.from_json(given),
        (latent_frames(frames), height // 8, width // 8),
        repeats=repeats,
        attention=attention,
        parallel_layout=layout,
        first_clip=first_clip,
        guided=guidance,
        compiled=compiled,
        weights_dtype=cast(Any, weights),
        with_reference=reference,
    )
    report = _measure_step(measured, given, profile=profile)
    if report is None:
        return
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    """Print the sizes of a step, the time of each variant, and the slowest kernels if they were profiled."""
    console.print(
        f"{report['parameters'] / 1e6:.0f} M parameters, {report['tokens']} tokens, "
        f"{report['step_tflop']:.3g} TFLOP per step, {report['precision']} on {report['device']}, "
        f"{report['attention']}, {report['world_size']} ranks ({report['layout']})"
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
    if report["peak_memory_bytes"] is not None:
        console.print(f"peak memory {report['peak_memory_bytes'] / 2**30:.1f} GiB, weights included")
    if report["kernels"]:
        kernels = Table("kernel", "ms", "calls", "share")
        for kernel in report["kernels"]:
            kernels.add_row(
                kernel["name"][:100], f"{kernel['seconds'] * 1e3:.2f}", str(kernel["calls"]), f"{kernel['share']:.1%}"
            )
        console.print(kernels)


@bench.command()
def scaling(
    ranks: Annotated[str, typer.Option(help="Numbers of processes to compare.")] = "1,2,4",
    preset: PresetName = "50m",
    size: VideoSize = "448*256",
    frames: Frames = 32,
    repeats: Repeats = 3,
    layout: LayoutName = "auto",
) -> None:
    """Time a denoising step on different numbers of ranks of this machine, and compare with the first number.

    On a CPU the ranks share the cores, so the table shows only the cost of the exchanges.
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


def _measure_step(measured: "StepBench", given: dict[str, Any], *, profile: bool) -> dict[str, Any] | None:
    """Return the report that `step` prints; None on all ranks except the leader."""
    from s2v_tasks.engine.worker import open_worker
    from s2v_tasks.planning.estimate import ClipShape, clip_tokens, forward_flops
    from s2v_tasks.rendering.progress import peak_flops_per_second
    from s2v_tasks.schemas.model_card import load_gpu_card, load_model_card
    from s2v_tasks.settings import config_dir, load_settings
    from s2v_tasks.verification.bench.step import bench_step

    settings = load_settings()
    with open_worker(settings.device) as worker:
        worker.share()
        report = bench_step(measured, worker, profile=profile)
    if not worker.is_leader:
        return None
    latents, height, width = measured.latent_shape
    card = load_model_card(config_dir(settings), "wan2.2-s2v-14b")
    model = card.model_copy(update=given | {"audio_inject_layers": measured.config.audio_inject_layers})
    shape = ClipShape(
        8 * width,
        8 * height,
        4 * latents,
        with_motion=not measured.first_clip,
        starts_chain=measured.first_clip,
        ends_chain=False,
    )
    step_flops = forward_flops(shape, model).per_step(branches=1 + measured.guided)
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
        "attention": report.attention,
        "peak_memory_bytes": report.peak_memory_bytes,
        "kernels": [asdict(kernel) for kernel in report.kernels],
        "rows": [
            asdict(row) | {"mfu": None if peak is None else step_flops / row.seconds_per_step / peak}
            for row in report.rows
        ],
    }


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d?(,[1-9]\d?)*", text):
        raise PermanentError(f"--ranks {text!r}: expected numbers of processes like 1,2,4.")
    return [int(number) for number in text.split(",")]


def _on_ranks(num_ranks: int, options: list[str]) -> dict[str, Any]:
    """Return the report of `s2v bench step` on `num_ranks` processes; their log goes to stderr."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *launcher, "-m", "s2v_tasks.cli", "bench", "step", *options]
    end_with_us = partial(end_with_parent, signal.SIGTERM, os.getpid())
    with scratch_folder(None, "torchrun") as logs:
        environment = os.environ | {"PET_LOG_DIR": str(logs)}  # as in `StepProcess`
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=False, preexec_fn=end_with_us)
    if done.returncode != 0:
        raise TransientError(f"bench step on {num_ranks} ranks ended with code {done.returncode}; its log is above.")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
